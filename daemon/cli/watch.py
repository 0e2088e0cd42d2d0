"""`bullpen watch <issue>`: an agent's run as it happens, in the terminal.

Polls the transcript from the last sequence number seen, so a broken connection misses nothing and
repeats nothing. Ends when the run has ended and its last message is shown.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import click

from daemon.cli.api import Api, open_api, segment
from daemon.cli.errors import ABSENT, UNREACHABLE, CliError
from daemon.cli.names import Names
from daemon.cli.output import notice, plain, print_json
from daemon.cli.refs import get_issue
from daemon.cli.settings import Settings
from shared.ids import short_id

ENDED: Final = frozenset({"completed", "failed", "cancelled"})
_PAUSE: Final = 0.5
_PATIENCE: Final = 60.0
"""How long a server that is away is waited for."""
_LINES: Final = 12
"""How much of one tool result is shown."""


@click.command()
@click.argument("ref", metavar="ISSUE")
@click.option("--wait", type=click.FloatRange(0), default=30.0, help="Seconds to wait for a run.")
@click.pass_obj
def watch(settings: Settings, ref: str, wait: float) -> None:
    """Follow the newest run of an issue until it ends; exits 0 when it was completed."""
    with open_api(settings) as api:
        found = get_issue(api, ref)
        task = _newest(api, found["id"])
        deadline = time.monotonic() + wait
        while task is None and time.monotonic() < deadline:
            time.sleep(_PAUSE)
            task = _newest(api, found["id"])
        if task is None:
            raise CliError(f"{found['identifier']} has no run; assign it to an agent first", ABSENT)
        agent = Names(api).of("agent", task["agent_id"])
        notice(f"{found['identifier']} {plain(found['title'])} · {plain(agent)}")
        code = follow_task(api, task["id"], issue_id=found["id"])
    raise click.exceptions.Exit(code)


def _newest(api: Api, issue_id: str) -> dict[str, Any] | None:
    """The run that is active, else the newest of all."""
    runs: list[dict[str, Any]] = api.get(f"/api/issues/{issue_id}/task-runs")
    active = [run for run in runs if run["status"] not in ENDED]
    return next(iter(active or runs), None)


def follow_task(
    api: Api, task_id: str, *, issue_id: str = "", since: int = 0, as_json: bool = False
) -> int:
    """Print a run's messages until it has ended; 0 when it was completed, else 1.

    Without its issue the run's end is only known once a message has named the issue.
    Raises CliError when the server stays away for longer than a minute.
    """
    status = ""
    away_since: float | None = None
    while True:
        try:
            # The status first: what it says has ended has all its messages by then.
            told = _status(api, task_id, issue_id)
            messages = api.get(f"/api/tasks/{segment(task_id)}/messages", since=since or None)
        except CliError as error:
            if error.code != UNREACHABLE:
                raise
            if away_since is None:
                away_since = time.monotonic()
                notice("… the server is away; waiting for it")
            elif time.monotonic() - away_since > _PATIENCE:
                raise
            time.sleep(_PAUSE)
            continue
        away_since = None
        for message in messages:
            if message["seq"] <= since:
                continue
            if message["seq"] > since + 1 and not as_json:
                notice(f"… messages {since + 1} to {message['seq'] - 1} are missing")
            since = message["seq"]
            issue_id = issue_id or message.get("issue_id") or ""
            _print(message, as_json)
        if told is not None and told["status"] != status:
            status = told["status"]
            notice(f"run {short_id(task_id)} is {status}")
        if status in ENDED:
            error_text = (told or {}).get("error")
            if error_text:
                notice(plain(error_text, keep_lines=True))
            return 0 if status == "completed" else 1
        time.sleep(_PAUSE)


def _status(api: Api, task_id: str, issue_id: str) -> dict[str, Any] | None:
    if not issue_id:
        return None
    rows: list[dict[str, Any]] = api.get(f"/api/issues/{issue_id}/task-runs")
    return next((row for row in rows if row["id"] == task_id), None)


def _print(message: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(message, indent=None)
        return
    kind = message["type"]
    tool = plain(message.get("tool") or "")
    if kind == "tool_use":
        given = message.get("input") or {}
        what = given.get("command") if isinstance(given, dict) and "command" in given else None
        shown = str(what) if what else json.dumps(given, ensure_ascii=False)
        _lines(f"▸ {tool}", shown, "cyan")
    elif kind == "tool_result":
        _lines("  ↳", message.get("output") or message.get("content") or "", "bright_black")
    elif kind == "thinking":
        _lines("·", message.get("content") or "", "bright_black")
    elif kind == "error":
        _lines("!", message.get("content") or "", "red")
    else:
        _lines("", message.get("content") or "", None)


def _lines(mark: str, text: str, colour: str | None) -> None:
    lines = plain(text, keep_lines=True).rstrip("\n").split("\n")
    if len(lines) > _LINES:
        lines = [*lines[:_LINES], f"… {len(lines) - _LINES} more lines"]
    prefix = f"{mark} " if mark else ""
    shown = "\n".join(
        (prefix if place == 0 else " " * len(prefix)) + line for place, line in enumerate(lines)
    )
    click.echo(click.style(shown, fg=colour) if colour and sys.stdout.isatty() else shown)
