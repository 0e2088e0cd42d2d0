"""`bullpen skill …` (spec 06 §12, §20.6)."""

from __future__ import annotations

from typing import Any

import click

from daemon.cli.api import open_api
from daemon.cli.errors import CliError
from daemon.cli.groups import Group
from daemon.cli.named import Named, add_basics, given, print_json_or
from daemon.cli.output import notice, output_option, print_json, print_table
from daemon.cli.refs import need_id
from daemon.cli.settings import Settings
from daemon.cli.text import read_text, text_options

SKILLS = Named(what="skill", path="/api/skills", columns=("description",))


@click.group(cls=Group)
def skill() -> None:
    """Work with skills: what agents are taught."""


add_basics(skill, SKILLS)


@skill.command()
@click.option("--name", required=True)
@click.option("--description", help="When to use it, in a line.")
@text_options("content", "what the skill says")
@output_option("json")
@click.pass_obj
def create(
    settings: Settings,
    name: str,
    description: str | None,
    output: str,
    *,
    content: str | None,
    content_stdin: bool,
    content_file: str | None,
) -> None:
    """Make a skill."""
    text = read_text("content", content, content_stdin, content_file)
    with open_api(settings) as api:
        made = api.post(SKILLS.path, given(name=name, description=description, content=text))
    SKILLS.show_one(made, output)


@skill.command()
@click.argument("ref", metavar="SKILL")
@click.option("--name")
@click.option("--description")
@text_options("content", "what the skill says")
@output_option("json")
@click.pass_obj
def update(
    settings: Settings,
    ref: str,
    name: str | None,
    description: str | None,
    output: str,
    *,
    content: str | None,
    content_stdin: bool,
    content_file: str | None,
) -> None:
    """Change a skill."""
    text = read_text("content", content, content_stdin, content_file)
    body: dict[str, Any] = given(name=name, description=description, content=text)
    if not body:
        raise CliError("nothing to change: give at least one option")
    with open_api(settings) as api:
        changed = api.put(SKILLS.url(api, ref), body)
    SKILLS.show_one(changed, output)


@skill.group()
def files() -> None:
    """Work with a skill's files."""


@files.command("list")
@click.argument("ref", metavar="SKILL")
@output_option("table")
@click.pass_obj
def list_files(settings: Settings, ref: str, output: str) -> None:
    """List a skill's files."""
    with open_api(settings) as api:
        rows = api.get(f"{SKILLS.url(api, ref)}/files")
    if output == "json":
        print_json(rows)
        return
    print_table(
        ["ID", "PATH", "BYTES"],
        [[row["id"], row["path"], len(row["content"].encode())] for row in rows],
    )


@files.command()
@click.argument("ref", metavar="SKILL")
@click.option("--path", required=True, help="Where it lies in the skill.")
@text_options("content", "the file's text")
@output_option("json")
@click.pass_obj
def upsert(
    settings: Settings,
    ref: str,
    path: str,
    output: str,
    *,
    content: str | None,
    content_stdin: bool,
    content_file: str | None,
) -> None:
    """Write a file of a skill."""
    text = read_text("content", content, content_stdin, content_file)
    if text is None:
        raise CliError("give --content, --content-stdin or --content-file")
    with open_api(settings) as api:
        made = api.put(f"{SKILLS.url(api, ref)}/files", {"path": path, "content": text})
    print_json_or(made, output, f"{path} written")


@files.command("delete")
@click.argument("ref", metavar="SKILL")
@click.argument("file", metavar="FILE")
@click.pass_obj
def delete_file(settings: Settings, ref: str, file: str) -> None:
    """Delete a file of a skill, named by its full id."""
    with open_api(settings) as api:
        api.delete(f"{SKILLS.url(api, ref)}/files/{need_id(file, 'file')}")
    notice("deleted")


@skill.command("import")
@click.argument("url", metavar="URL")
@click.option(
    "--on-conflict",
    type=click.Choice(["fail", "overwrite", "rename", "skip"]),
    default="fail",
    show_default=True,
    help="What to do when there is one of that name.",
)
@output_option("json")
@click.pass_obj
def import_(settings: Settings, url: str, on_conflict: str, output: str) -> None:
    """Bring a skill in from a public repository (github.com, skills.sh)."""
    with open_api(settings) as api:
        done = api.post("/api/skills/import", {"url": url, "on_conflict": on_conflict})
    skill = done.get("skill") or done.get("existing_skill") or {}
    print_json_or(
        done, output, f"{done['status']}: {skill.get('name', '')} ({skill.get('id', '')})"
    )
