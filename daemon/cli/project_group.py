"""`bullpen project …` (spec 06 §14, §20.6)."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from daemon.allowed import AllowedError
from daemon.cli.allow_dir import allow
from daemon.cli.api import open_api
from daemon.cli.daemon_group import find_running
from daemon.cli.errors import CliError
from daemon.cli.groups import Group
from daemon.cli.named import Named, add_basics, given, print_json_or
from daemon.cli.output import notice, output_option, print_json, print_table, shortener
from daemon.cli.refs import need_id
from daemon.cli.settings import Settings
from daemon.identity import IdentityError, find_daemon_id
from shared.ids import machine_key

PROJECTS = Named(
    what="project",
    path="/api/projects",
    key="projects",
    name="title",
    columns=("status", "priority", "issue_count", "done_count"),
)

_STATUSES = click.Choice(["planned", "in_progress", "paused", "completed", "cancelled"])


@click.group(cls=Group)
def project() -> None:
    """Work with projects and their repositories and directories."""


add_basics(project, PROJECTS)


@project.command()
@click.option("--title", required=True)
@click.option("--description")
@click.option("--status", type=_STATUSES)
@click.option("--icon")
@click.option("--start-date", metavar="DAY", help="When it begins (YYYY-MM-DD).")
@click.option("--due-date", metavar="DAY", help="When it is to be done (YYYY-MM-DD).")
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
@click.option("--start-date", metavar="DAY", help="When it begins (YYYY-MM-DD).")
@click.option("--due-date", metavar="DAY", help="When it is to be done (YYYY-MM-DD).")
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
    shown = shortener([row["id"] for row in found])
    print_table(
        ["ID", "TYPE", "WHERE", "LABEL"],
        [
            [
                shown(row["id"]),
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
@click.option("--local-path", help="A directory of your own machine; tasks may work in it then.")
@click.option("--daemon-id", help="The machine, unless it is this one.")
@click.option("--label")
@output_option("json")
@click.pass_obj
def add(settings: Settings, /, ref: str, output: str, **options: str | None) -> None:
    """Attach a repository or a directory.

    A directory of this machine is allowed for tasks with it (`bullpen daemon allow-dir`).
    """
    label, start = options.pop("label"), options.pop("start")
    where = given(**options) | given(ref=start)
    if start and "url" not in where:
        raise CliError("--ref is for a repository: give --url")
    if ("url" in where) == ("local_path" in where):
        raise CliError("give --url for a repository, or --local-path for a directory")
    here = _is_here(settings, where) if "local_path" in where else False
    body = {
        "resource_type": "github_repo" if "url" in where else "local_directory",
        "resource_ref": where,
    } | given(label=label)
    with open_api(settings) as api:
        made = api.post(f"{PROJECTS.url(api, ref)}/resources", body)
    if here:
        try:
            allow(settings, where["local_path"])
        except (AllowedError, CliError) as error:
            notice(f"attached, but tasks may not work there yet: {error}")
    elif "local_path" in where:
        path = shlex.quote(where["local_path"])
        notice(f"on that machine, let tasks work there: bullpen daemon allow-dir {path}")
    print_json_or(made, output, "attached")


def _is_here(settings: Settings, where: dict[str, Any]) -> bool:
    """Whether a directory is on this machine; one without a machine is. Raises CliError.

    Fills in the machine, and makes the path absolute.
    """
    if settings.agent_context:
        raise CliError("an agent cannot name directories of its machine")
    try:
        mine = find_daemon_id(settings.home)
    except IdentityError as error:
        raise CliError(str(error)) from error
    running = find_running(settings)
    if running is not None:
        mine = str(running.health.get("daemon_id") or mine)
    if "daemon_id" not in where:
        if not mine:
            raise CliError("no daemon has run on this machine yet: name one with --daemon-id")
        where["daemon_id"] = mine
    if machine_key(where["daemon_id"]) != machine_key(mine):
        return False
    where["local_path"] = str(Path(where["local_path"]).expanduser().absolute())
    return True


@resource.command()
@click.argument("ref", metavar="PROJECT")
@click.argument("resource_ref", metavar="RESOURCE")
@click.pass_obj
def remove(settings: Settings, ref: str, resource_ref: str) -> None:
    """Detach a resource, named by its full id."""
    with open_api(settings) as api:
        api.delete(f"{PROJECTS.url(api, ref)}/resources/{need_id(resource_ref, 'resource')}")
    notice("detached")
