"""`bullpen issue runs|run-messages|usage|rerun|cancel-task`: an issue's tasks (spec 06 §6.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from daemon.cli.api import open_api, segment
from daemon.cli.names import Names
from daemon.cli.output import ago, notice, output_option, print_json, print_table, shortener
from daemon.cli.refs import issue_id, task_id
from daemon.cli.settings import Settings

_USAGE: Final = (
    ("runs", "task_count"),
    ("input tokens", "total_input_tokens"),
    ("output tokens", "total_output_tokens"),
    ("cache read tokens", "total_cache_read_tokens"),
    ("cache write tokens", "total_cache_write_tokens"),
)


@click.command()
@click.argument("ref", metavar="ISSUE")
@click.option("--full-id", is_flag=True, help="Show full ids.")
@output_option("table")
@click.pass_obj
def runs(settings: Settings, ref: str, full_id: bool, output: str) -> None:
    """List an issue's runs, newest first."""
    with open_api(settings) as api:
        found = api.get(f"/api/issues/{issue_id(api, ref)}/task-runs")
        if output == "json":
            print_json(found)
        else:
            print_runs(found, Names(api), full_id)


def print_runs(tasks: list[dict[str, Any]], names: Names, full_id: bool) -> None:
    """Print tasks as a table."""
    shown = shortener([task["id"] for task in tasks], full_id)
    print_table(
        ["ID", "AGENT", "STATUS", "STARTED", "COMPLETED", "ERROR"],
        [
            [
                shown(task["id"]),
                names.of("agent", task["agent_id"]),
                _status(task),
                ago(task.get("started_at")),
                ago(task.get("completed_at")),
                " ".join((task.get("error") or "").split()),
            ]
            for task in tasks
        ],
    )


def _status(task: Mapping[str, Any]) -> str:
    """What a run does, and since when nobody can know."""
    since = task.get("unreachable_since")
    return f"{task['status']} (out of reach, {ago(since)})" if since else str(task["status"])


@click.command("run-messages")
@click.argument("ref", metavar="RUN")
@click.option("--since", type=click.IntRange(0), default=0, show_default=True, help="After this.")
@click.option("--issue", "issue_ref", metavar="ISSUE", help="Its issue, when RUN is shortened.")
@click.option("--follow", is_flag=True, help="Keep printing what arrives until the run ends.")
@output_option("json")
@click.pass_obj
def run_messages(
    settings: Settings, *, ref: str, since: int, issue_ref: str | None, follow: bool, output: str
) -> None:
    """Show what an agent did in a run."""
    with open_api(settings) as api:
        found = task_id(api, ref, issue_ref)
        if follow:
            from daemon.cli.watch import follow_task

            whose = issue_id(api, issue_ref) if issue_ref else ""
            as_json = output == "json"
            code = follow_task(api, found, issue_id=whose, since=since, as_json=as_json)
            raise click.exceptions.Exit(code)
        messages = api.get(f"/api/tasks/{segment(found)}/messages", since=since or None)
    if output == "json":
        print_json(messages)
        return
    print_table(
        ["SEQ", "TYPE", "TOOL", "CONTENT"],
        [
            [
                row["seq"],
                row["type"],
                row.get("tool"),
                " ".join(
                    str(row.get("content") or row.get("output") or row.get("input") or "").split()
                ),
            ]
            for row in messages
        ],
    )


@click.command()
@click.argument("ref", metavar="ISSUE")
@output_option("table")
@click.pass_obj
def usage(settings: Settings, ref: str, output: str) -> None:
    """Show how many tokens an issue's runs took."""
    with open_api(settings) as api:
        found = api.get(f"/api/issues/{issue_id(api, ref)}/usage")
    if output == "json":
        print_json(found)
    else:
        print_table(
            [name.upper() for name, _ in _USAGE], [[found.get(key, 0) for _, key in _USAGE]]
        )


@click.command()
@click.argument("ref", metavar="ISSUE")
@output_option("json")
@click.pass_obj
def rerun(settings: Settings, ref: str, output: str) -> None:
    """Run an issue's agent again, in a fresh session."""
    with open_api(settings) as api:
        task = api.post(f"/api/issues/{issue_id(api, ref)}/rerun", {})
    if output == "json":
        print_json(task)
    else:
        notice(f"run {task['id']} is {task['status']}")


@click.command("cancel-task")
@click.argument("ref", metavar="RUN")
@click.option("--issue", "issue_ref", metavar="ISSUE", help="Its issue, when RUN is shortened.")
@output_option("json")
@click.pass_obj
def cancel_task(settings: Settings, ref: str, issue_ref: str | None, output: str) -> None:
    """Stop a run."""
    with open_api(settings) as api:
        task = api.post(f"/api/tasks/{segment(task_id(api, ref, issue_ref))}/cancel", {})
    if output == "json":
        print_json(task)
    else:
        notice(f"run {task['id']} is {task['status']}")


RUN_COMMANDS: Final = (runs, run_messages, usage, rerun, cancel_task)
