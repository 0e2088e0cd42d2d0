"""`bullpen project …` (spec 06 §14, §20.6)."""

from __future__ import annotations

from typing import Any

import click

from daemon.cli.api import open_api
from daemon.cli.errors import CliError
from daemon.cli.named import Named, add_basics, given, print_json_or
from daemon.cli.output import notice, output_option, print_json, print_table, short
from daemon.cli.refs import need_id
from daemon.cli.settings import Settings

PROJECTS = Named(
    what="project",
    path="/api/projects",
    key="projects",
    name="title",
    columns=("status", "priority", "issue_count", "done_count"),
)

_STATUSES = click.Choice(["planned", "in_progress", "paused", "completed", "cancelled"])


@click.group()
def project() -> None:
    """Work with projects and their repositories and directories."""


add_basics(project, PROJECTS)


@project.command()
@click.option("--title", required=True)
@click.option("--description")
@click.option("--status", type=_STATUSES)
@click.option("--icon")
@click.option("--repo", "repos", multiple=True, metavar="URL", help="A repository; may repeat.")
@output_option("json")
@click.pass_obj
def create(
    settings: Settings, /, repos: tuple[str, ...], output: str, **options: str | None
) -> None:
    """Make a project."""
    body: dict[str, Any] = given(**options)
    if repos:
        body["resources"] = [
            {"resource_type": "github_repo", "resource_ref": {"url": url}} for url in repos
        ]
    with open_api(settings) as api:
        made = api.post(PROJECTS.path, body)
    PROJECTS.show_one(made, output)


@project.command()
@click.argument("ref", metavar="PROJECT")
@click.option("--title")
@click.option("--description")
@click.option("--status", type=_STATUSES)
@click.option("--icon")
@output_option("json")
@click.pass_obj
def update(settings: Settings, /, ref: str, output: str, **options: str | None) -> None:
    """Change a project."""
    body = given(**options)
    if not body:
        raise CliError("nothing to change: give at least one option")
    with open_api(settings) as api:
        changed = api.put(PROJECTS.url(api, ref), body)
    PROJECTS.show_one(changed, output)


@project.command()
@click.argument("ref", metavar="PROJECT")
@click.argument("status", type=_STATUSES)
@output_option("table")
@click.pass_obj
def status(settings: Settings, ref: str, status: str, output: str) -> None:
    """Set a project's status."""
    with open_api(settings) as api:
        changed = api.put(PROJECTS.url(api, ref), {"status": status})
    print_json_or(changed, output, f"{changed['title']}: {status}")


@project.group()
def resource() -> None:
    """Work with what agents get of a project."""


@resource.command("list")
@click.argument("ref", metavar="PROJECT")
@output_option("table")
@click.pass_obj
def list_resources(settings: Settings, ref: str, output: str) -> None:
    """List a project's resources."""
    with open_api(settings) as api:
        found = api.get(f"{PROJECTS.url(api, ref)}/resources")["resources"]
    if output == "json":
        print_json(found)
        return
    print_table(
        ["ID", "TYPE", "WHERE", "LABEL"],
        [
            [
                short(row["id"]),
                row["resource_type"],
                row["resource_ref"].get("url") or row["resource_ref"].get("local_path") or "",
                row["label"] or "",
            ]
            for row in found
        ],
    )


@resource.command()
@click.argument("ref", metavar="PROJECT")
@click.option("--url", help="A repository.")
@click.option("--ref", "start", help="Where its runs start: a branch, tag or commit.")
@click.option("--default-branch-hint", help="Its branch to begin from.")
@click.option("--local-path", help="A directory, on the machine --daemon-id names.")
@click.option("--daemon-id")
@click.option("--label")
@output_option("json")
@click.pass_obj
def add(settings: Settings, /, ref: str, output: str, **options: str | None) -> None:
    """Attach a repository or a directory."""
    label, start = options.pop("label"), options.pop("start")
    where = given(**options) | given(ref=start)
    if start and "url" not in where:
        raise CliError("--ref is for a repository: give --url")
    if ("url" in where) == ("local_path" in where):
        raise CliError("give --url for a repository, or --local-path and --daemon-id")
    body = {
        "resource_type": "github_repo" if "url" in where else "local_directory",
        "resource_ref": where,
    } | given(label=label)
    with open_api(settings) as api:
        made = api.post(f"{PROJECTS.url(api, ref)}/resources", body)
    print_json_or(made, output, "attached")


@resource.command()
@click.argument("ref", metavar="PROJECT")
@click.argument("resource_ref", metavar="RESOURCE")
@click.pass_obj
def remove(settings: Settings, ref: str, resource_ref: str) -> None:
    """Detach a resource, named by its full id."""
    with open_api(settings) as api:
        api.delete(f"{PROJECTS.url(api, ref)}/resources/{need_id(resource_ref, 'resource')}")
    notice("detached")
