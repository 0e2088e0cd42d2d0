"""`bullpen repo checkout`: an agent asks its daemon for a repository (spec 03 §2.8).

Works inside a task only. The path is the one line on stdout, so that a shell can use it; what there
is to know besides goes to stderr.
"""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any, Final

import click

from daemon.cli.errors import UNREACHABLE, CliError
from daemon.cli.output import notice, plain
from daemon.cli.settings import Settings

PATIENCE: Final = 300.0
"""Seconds to wait for a checkout (spec 03 §30); the daemon goes on cloning after that."""


@click.group()
def repo() -> None:
    """Check out repositories inside a task."""


@repo.command()
@click.argument("url")
@click.option("--ref", default="", metavar="REF", help="A branch, tag or commit to start from.")
@click.pass_obj
def checkout(settings: Settings, url: str, ref: str) -> None:
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
    }
    told = _post(int(port), request, env.get("MULTICA_CHECKOUT_SECRET", "").strip())
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


def _post(port: int, request: dict[str, str], secret: str) -> dict[str, Any]:
    """Ask the daemon, never through a proxy. Raises CliError with what it said."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    headers = {"Content-Type": "application/json"}
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    try:
        connection.request("POST", "/repo/checkout", json.dumps(request).encode(), headers)
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
