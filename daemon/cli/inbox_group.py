"""`bullpen inbox …`: one's own news (spec 06 §16). Ours; the reference has no such commands."""

from __future__ import annotations

import click

from daemon.cli.api import open_api, segment
from daemon.cli.groups import Group
from daemon.cli.named import print_json_or
from daemon.cli.names import Names
from daemon.cli.output import ago, output_option, print_json, print_table, shortener
from daemon.cli.refs import need_id
from daemon.cli.settings import Settings

_PATH = "/api/inbox"


@click.group(cls=Group)
def inbox() -> None:
    """Read what concerns you."""


@inbox.command("list")
@click.option("--unread", is_flag=True, help="Only what you have not read.")
@click.option("--full-id", is_flag=True, help="Show full ids.")
@output_option("table")
@click.pass_obj
def list_(settings: Settings, unread: bool, full_id: bool, output: str) -> None:
    """List your news, newest first."""
    with open_api(settings) as api:
        rows = [row for row in api.get(_PATH) if not (unread and row["read"])]
        if output == "json":
            print_json(rows)
            return
        issues = Names(api).issues(row.get("issue_id") for row in rows)
    shown = shortener([row["id"] for row in rows], full_id)
    print_table(
        ["ID", "NEW", "WHEN", "TYPE", "ISSUE", "TITLE"],
        [
            [
                shown(row["id"]),
                "" if row["read"] else "*",
                ago(row["created_at"]),
                row["type"],
                issues[row.get("issue_id")],
                row["title"],
            ]
            for row in rows
        ],
    )


@inbox.command()
@click.argument("item_id", metavar="ID")
@output_option("json")
@click.pass_obj
def read(settings: Settings, item_id: str, output: str) -> None:
    """Mark one as read."""
    _change(settings, item_id, "read", output)


@inbox.command()
@click.argument("item_id", metavar="ID")
@output_option("json")
@click.pass_obj
def archive(settings: Settings, item_id: str, output: str) -> None:
    """Put one away, and all others about the same issue."""
    _change(settings, item_id, "archive", output)


def _change(settings: Settings, item_id: str, what: str, output: str) -> None:
    found = need_id(item_id, "inbox item")
    with open_api(settings) as api:
        changed = api.post(f"{_PATH}/{segment(found)}/{what}", None)
    said = {"read": "marked as read", "archive": "archived"}[what]
    print_json_or(changed, output, f"{found} {said}")


@inbox.command("read-all")
@output_option("table")
@click.pass_obj
def read_all(settings: Settings, output: str) -> None:
    """Mark all of it as read."""
    _change_many(settings, "mark-all-read", "marked as read", output)


@inbox.command("archive-all")
@click.option("--read", "which", flag_value="archive-all-read", help="Only what you have read.")
@click.option(
    "--completed", "which", flag_value="archive-completed", help="Only of finished issues."
)
@output_option("table")
@click.pass_obj
def archive_all(settings: Settings, which: str | None, output: str) -> None:
    """Put all of it away."""
    _change_many(settings, which or "archive-all", "archived", output)


def _change_many(settings: Settings, which: str, said: str, output: str) -> None:
    with open_api(settings) as api:
        answer = api.post(f"{_PATH}/{which}", None)
    print_json_or(answer, output, f"{answer['count']} {said}")
