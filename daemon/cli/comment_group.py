"""`bullpen issue comment …`: reading threads and writing to them (spec 06 §7.1, §20.5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from daemon.cli.api import Api, open_api, segment
from daemon.cli.errors import CliError
from daemon.cli.groups import Group
from daemon.cli.names import Names
from daemon.cli.output import ago, notice, output_option, print_json, print_table
from daemon.cli.refs import issue_id, need_id
from daemon.cli.settings import Settings
from daemon.cli.text import read_text, text_options

_NEXT: Final = "X-Multica-Next-Before"
_NEXT_ID: Final = "X-Multica-Next-Before-Id"


@click.group(cls=Group)
def comment() -> None:
    """Read and write an issue's comments."""


@comment.command("list")
@click.argument("ref", metavar="ISSUE")
@click.option("--since", metavar="TIME", help="Only comments after this time (RFC 3339).")
@click.option("--thread", metavar="ID", help="Only the thread of this comment.")
@click.option("--tail", type=click.IntRange(0), help="With --thread: only its N newest replies.")
@click.option("--recent", type=click.IntRange(1), help="Only the N most recently active threads.")
@click.option("--roots-only", is_flag=True, help="Only the comments that open a thread.")
@click.option("--summary", is_flag=True, help="Only the beginning of each comment.")
@click.option("--full", is_flag=True, help="Resolved threads whole, too.")
@click.option("--before", metavar="TIME", help="Page on: the cursor's time.")
@click.option("--before-id", metavar="ID", help="Page on: the cursor's id.")
@output_option("table")
@click.pass_obj
def list_(
    settings: Settings,
    *,
    ref: str,
    since: str | None,
    thread: str | None,
    tail: int | None,
    recent: int | None,
    roots_only: bool,
    summary: bool,
    full: bool,
    before: str | None,
    before_id: str | None,
    output: str,
) -> None:
    """List an issue's comments, oldest first; resolved threads are folded."""
    if roots_only and (thread or recent is not None or tail is not None or before or before_id):
        raise CliError("--roots-only goes without --thread, --recent, --tail and --before")
    if thread and recent is not None:
        raise CliError("give only one of --thread and --recent")
    if tail is not None and not thread:
        raise CliError("--tail needs --thread <comment id>")
    if bool(before) != bool(before_id):
        raise CliError("--before and --before-id belong together")
    if before and recent is None and not (thread and tail is not None):
        raise CliError("--before needs --recent N, or --thread <id> with --tail N")
    fold = not (full or since or tail is not None or roots_only)
    query = {
        "since": since,
        "thread": need_id(thread, "comment") if thread else None,
        "tail": tail,
        "recent": recent,
        "roots_only": "true" if roots_only else None,
        "summary": "true" if summary else None,
        "fold": "true" if fold else None,
        "before": before,
        "before_id": before_id,
    }
    with open_api(settings) as api:
        found, headers = api.exchange(
            "GET", f"/api/issues/{issue_id(api, ref)}/comments", query=query
        )
        if output == "json":
            print_json(found)
        else:
            _print_comments(api, found)
    if headers.get(_NEXT):
        what = "reply" if thread else "thread"
        notice(
            f"Next {what} cursor: --before {headers[_NEXT]} --before-id {headers.get(_NEXT_ID, '')}"
        )


def _print_comments(api: Api, comments: list[dict[str, Any]]) -> None:
    names = Names(api)
    print_table(
        ["ID", "AUTHOR", "WHEN", "PARENT", "CONTENT"],
        [
            [
                row["id"],
                names.of(row["author_type"], row["author_id"]),
                ago(row["created_at"]),
                row.get("parent_id"),
                " ".join(row["content"].split()),
            ]
            for row in comments
        ],
    )


@comment.command()
@click.argument("ref", metavar="ISSUE")
@text_options("content", "the comment")
@click.option("--parent", metavar="ID", help="The comment this one answers.")
@click.option("--attachment", "files", multiple=True, metavar="PATH", help="A file; may repeat.")
@output_option("json")
@click.pass_obj
def add(
    settings: Settings,
    *,
    ref: str,
    content: str | None,
    content_stdin: bool,
    content_file: str | None,
    parent: str | None,
    files: tuple[str, ...],
    output: str,
) -> None:
    """Write a comment; a mention of an agent, or one to the assigned agent, starts it."""
    text = read_text("content", content, content_stdin, content_file)
    if text is None or not text.strip():
        raise CliError("say something: --content <text>, --content-stdin or --content-file <path>")
    body: dict[str, Any] = {"content": text}
    if parent:
        body["parent_id"] = need_id(parent, "comment")
    with open_api(settings) as api:
        found = issue_id(api, ref)
        if files:
            sent = [api.upload(Path(file), issue_id=found) for file in files]
            body["attachment_ids"] = [each["id"] for each in sent]
        made = api.post(f"/api/issues/{found}/comments", body)
    if output == "json":
        print_json(made)
    else:
        notice(f"comment {made['id']} added")


@comment.command()
@click.argument("comment_id", metavar="ID")
@click.pass_obj
def delete(settings: Settings, comment_id: str) -> None:
    """Delete a comment and its replies."""
    found = need_id(comment_id, "comment")
    with open_api(settings) as api:
        api.delete(f"/api/comments/{segment(found)}")
    notice(f"comment {found} deleted")


@comment.command()
@click.argument("comment_id", metavar="ID")
@output_option("json")
@click.pass_obj
def resolve(settings: Settings, comment_id: str, output: str) -> None:
    """Mark a comment as what settles its thread."""
    found = need_id(comment_id, "comment")
    with open_api(settings) as api:
        _show_change(api.post(f"/api/comments/{segment(found)}/resolve", None), output, "resolved")


@comment.command()
@click.argument("comment_id", metavar="ID")
@output_option("json")
@click.pass_obj
def unresolve(settings: Settings, comment_id: str, output: str) -> None:
    """Take that mark away."""
    found = need_id(comment_id, "comment")
    with open_api(settings) as api:
        _show_change(api.delete(f"/api/comments/{segment(found)}/resolve"), output, "unresolved")


def _show_change(changed: dict[str, Any], output: str, what: str) -> None:
    if output == "json":
        print_json(changed)
    else:
        notice(f"comment {changed['id']} {what}")
