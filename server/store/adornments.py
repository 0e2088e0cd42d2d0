"""Reactions and files, as readers of issues and comments get them (spec 06 §5, §7, §9).

Functions of the asyncio island. However many comments there are, two statements read what hangs on
them. `base` is the address people reach the server by, for links in texts; empty leaves them
relative.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs

from server.store.attachments import SQL as FILES
from server.store.queries import Connection, Record, load
from shared.times import stamp
from shared.wire.work import Comment, Issue

SQL: Final = load("adornments")

_FILE_KEYS: Final = (
    *("id", "workspace_id", "issue_id", "comment_id", "chat_session_id", "chat_message_id"),
    *("uploader_type", "uploader_id", "filename", "content_type", "size_bytes"),
)

Shown = list[dict[str, Any]]


async def adorn_issue(conn: Connection, issue: Issue, base: str) -> Issue:
    """The issue with its reactions and files, those of its comments among them."""
    reactions = await conn.fetch(SQL.issue_reactions, issue.id)
    files = await conn.fetch(FILES.of_issue, issue.id)
    return attrs.evolve(
        issue,
        reactions=[show_reaction("issue_id", row) for row in reactions],
        attachments=[show_file(row, base) for row in files],
    )


async def adorn_comments(conn: Connection, found: Sequence[Comment], base: str) -> list[Comment]:
    """The comments with their reactions and files."""
    reactions, files = await on_comments(conn, [comment.id for comment in found], base)
    return [
        attrs.evolve(
            comment,
            reactions=reactions.get(comment.id, []),
            attachments=files.get(comment.id, []),
        )
        if comment.id in reactions or comment.id in files
        else comment
        for comment in found
    ]


async def adorn_comment(conn: Connection, comment: Comment, base: str) -> Comment:
    """One comment with its reactions and files."""
    return (await adorn_comments(conn, [comment], base))[0]


async def on_comments(
    conn: Connection, ids: Sequence[str], base: str
) -> tuple[dict[str, Shown], dict[str, Shown]]:
    """Reactions and files by comment; comments without any are not there."""
    if not ids:
        return {}, {}
    reactions = await conn.fetch(SQL.comment_reactions, list(ids))
    files = await conn.fetch(SQL.comment_attachments, list(ids))
    return (
        _by_comment((row, show_reaction("comment_id", row)) for row in reactions),
        _by_comment((row, show_file(row, base)) for row in files),
    )


def _by_comment(shown: Iterable[tuple[Record, dict[str, Any]]]) -> dict[str, Shown]:
    found: dict[str, Shown] = {}
    for row, value in shown:
        found.setdefault(row["comment_id"], []).append(value)
    return found


def show_reaction(target: str, row: Record) -> dict[str, Any]:
    """A row of issue_reaction or comment_reaction; `target` is its column of those."""
    keys = ("id", target, "actor_type", "actor_id", "emoji")
    return {key: row[key] for key in keys} | {"created_at": stamp(row["created_at"])}


def show_file(row: Record, base: str) -> dict[str, Any]:
    """A row of attachment."""
    path = f"/api/attachments/{row['id']}/download"
    return {key: row[key] for key in _FILE_KEYS} | {
        "url": path,
        "download_url": path,
        "markdown_url": f"{base}{path}",
        "created_at": stamp(row["created_at"]),
    }
