"""`bullpen repo …`: agents check out repositories, people find what was kept of agents' work.

`checkout` works inside a task only, and asks the task's daemon (spec 03 §2.8). The path is the one
line on stdout, so that a shell can use it; what there is to know besides goes to stderr. `kept` looks
at the disk and needs no daemon.
"""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from daemon.cli.disk_usage import disk_settings
from daemon.cli.errors import UNREACHABLE, CliError
from daemon.cli.groups import Group
from daemon.cli.output import notice, output_option, plain, print_json, short
from daemon.cli.settings import Settings
from shared import times

if TYPE_CHECKING:
    from daemon.repos.kept import Kept

PATIENCE: Final = 300.0
"""Seconds to wait for a checkout (spec 03 §30); the daemon goes on cloning after that."""


@click.group(cls=Group)
def repo() -> None:
    """Check out repositories inside a task; see what was kept of agents' work."""


@repo.command()
@click.option("--drop", metavar="REF", multiple=True, help="Let this one go; may repeat.")
@output_option("table")
@click.pass_obj
def kept(settings: Settings, drop: tuple[str, ...], output: str) -> None:
    """List work of agents that is on no server, and how to get it back.

    It stays for BULLPEN_GC_KEPT_TTL (30 days). The commands are for a checkout of the repository.
    REF is a ref, a commit or a bundle as listed, from their beginning if that is plain.
    """
    if settings.agent_context:
        raise CliError("inside a task, your brief names what is kept for it")
    # git and its libraries are the daemon's; no other command here needs them
    import trio

    found = trio.run(_look, settings)
    if drop:
        chosen = [_chosen(found, text) for text in drop]
        trio.run(_let_go, settings, chosen)
        for each in chosen:
            notice(f"dropped {each.ref or each.place}")
        return
    if output == "json":
        print_json([_as_json(each) for each in found])
        return
    if not found:
        notice("Nothing is kept: all work of agents is on its server or still in its directory.")
        return
    for each in found:
        task = short(each.owner.task_id) or "?"
        what = {"files": "changed files", "commits": "commits", "bundle": "a repository"}[each.kind]
        where = each.place.name.removesuffix(".git").removesuffix(".bundle")
        branch = f", branch {each.branch}" if each.branch else ""
        click.echo(plain(f"{each.at:%Y-%m-%d %H:%M}  {where}: {what} of task {task}{branch}"))
        click.echo(f"    {plain(each.way_back)}")


def _as_json(each: Kept) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "place": str(each.place),
        "ref": each.ref,
        "commit": each.commit,
        "branch": each.branch,
        "subject": each.subject,
        "at": times.stamp(each.at),
        "task_id": each.owner.task_id,
        "issue_id": each.owner.issue_id,
        "command": each.way_back,
    }


async def _look(settings: Settings) -> list[Kept]:
    """Everything that is kept, newest first. Raises CliError."""
    from daemon.repos.clones import clone_dirs
    from daemon.repos.git import Git, GitError, git_environment
    from daemon.repos.kept import bundles, list_kept
    from daemon.repos.visible import FOLDER

    root = disk_settings(settings, settings.home).workspaces_root
    git = Git(env=git_environment(settings.env))
    found: list[Kept] = []
    for clone in clone_dirs(root):
        try:
            found += await list_kept(git, clone)
        except GitError as error:
            notice(plain(f"not looked into {clone}: {error}"))
    for folder in (root / FOLDER).glob("*"):
        found += bundles(folder)
    return sorted(found, key=lambda each: each.at, reverse=True)


async def _let_go(settings: Settings, chosen: list[Kept]) -> None:
    from daemon.repos.git import Git, GitError, git_environment
    from daemon.repos.kept import drop

    git = Git(env=git_environment(settings.env))
    for each in chosen:
        try:
            await drop(git, each)
        except (GitError, OSError) as error:
            raise CliError(f"not dropped: {error}") from error


def _chosen(found: list[Kept], text: str) -> Kept:
    """The one thing a text names. Raises CliError."""
    exact = [each for each in found if text in (each.ref or each.place.name, str(each.place))]
    near = [each for each in found if len(text) >= 4 and _begins(each, text)]
    chosen = exact or near
    if len(chosen) != 1:
        many = "several are" if chosen else "nothing is"
        raise CliError(f"{many} kept as {text!r}: bullpen repo kept")
    return chosen[0]


def _begins(each: Kept, text: str) -> bool:
    if each.kind == "bundle":
        return each.place.name.startswith(text)
    return each.ref.startswith(text) or each.commit.startswith(text)


@repo.command()
@click.argument("url")
@click.option("--ref", default="", metavar="REF", help="A branch, tag or commit to start from.")
@click.option("--no-submodules", is_flag=True, help="Leave its submodules empty.")
@click.pass_obj
def checkout(settings: Settings, url: str, ref: str, *, no_submodules: bool) -> None:
    """Check a repository out below this directory, on a branch of this task's own.

    Repeating it loses nothing: work that is there already is left, or kept under a ref if --ref
    asks for another start.
    """
    env = settings.env
    port = env.get("MULTICA_DAEMON_PORT", "").strip()
    if not port.isdecimal():
        raise CliError(
            "MULTICA_DAEMON_PORT is not set: repositories are checked out inside a task, by its "
            "agent"
        )
    request = {
        "url": url,
        "workspace_id": settings.workspace_id(),
        "workdir": str(Path.cwd()),
        "ref": ref,
        "agent_name": env.get("MULTICA_AGENT_NAME", ""),
        "task_id": settings.task_id,
        "submodules": "false" if no_submodules else "",
    }
    secret = env.get("MULTICA_CHECKOUT_SECRET", "").strip()
    told = _post(int(port), "/repo/checkout", request, secret)
    path, branch = told.get("path"), told.get("branch_name")
    if not isinstance(path, str) or not path:
        raise CliError("the daemon's answer names no path")
    notice(plain(f"Checked out {url} in {path} on branch {branch or '(none)'}."))
    if told.get("note"):
        notice(plain(f"Note: {told['note']}."))
    if told.get("saved"):
        notice(plain(f"Work that was there is kept: `git stash apply {told['saved']}` or "
                     f"`git log {told['saved']}` in the repository."))  # fmt: skip
    click.echo(path)


@repo.command(hidden=True)
@click.argument("action")
@click.pass_obj
def credential(settings: Settings, action: str) -> None:
    """Answer git, as the credential helper of a checkout: its task's password for a repository."""
    if action != "get":
        return
    asked = dict(line.strip().partition("=")[::2] for line in sys.stdin)
    request = {key: asked.get(key, "") for key in ("protocol", "host", "path")}
    port = settings.env.get("MULTICA_DAEMON_PORT", "").strip()
    if not port.isdecimal():
        raise CliError("MULTICA_DAEMON_PORT is not set: a task's agent can ask, while it runs")
    secret = settings.env.get("MULTICA_CHECKOUT_SECRET", "").strip()
    told = _post(int(port), "/repo/credential", request, secret)
    for key in ("username", "password"):
        click.echo(f"{key}={told.get(key) or ''}")


def _post(port: int, path: str, request: dict[str, str], secret: str) -> dict[str, Any]:
    """Ask the daemon, never through a proxy. Raises CliError with what it said."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    headers = {"Content-Type": "application/json"}
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    try:
        connection.request("POST", path, json.dumps(request).encode(), headers)
        answer = connection.getresponse()
        body = answer.read(1 << 20).decode("utf-8", "replace").strip()
    except TimeoutError as error:
        raise CliError(
            f"not checked out within {PATIENCE:g} s; the daemon goes on fetching the repository: "
            "run the same command again",
            UNREACHABLE,
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise CliError(
            f"the daemon does not answer on port {port}: {error}", UNREACHABLE
        ) from error
    finally:
        connection.close()
    if answer.status != 200:
        raise CliError(body or f"the daemon refused ({answer.status})")
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise CliError("the daemon's answer cannot be read")
    return told
