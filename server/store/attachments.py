"""Which issue or comment an uploaded file belongs to. Functions of the asyncio island."""

from __future__ import annotations

from collections.abc import Sequence

from server.store.queries import Connection, load
from shared.wire.work import Issue

SQL = load("attachments")


async def bind_to_issue(conn: Connection, issue: Issue, attachment_ids: Sequence[str]) -> None:
    """Give an issue files that belong to nothing yet; others are left where they are."""
    if attachment_ids:
        await conn.execute(SQL.bind_issue, issue.workspace_id, issue.id, list(attachment_ids))


async def bind_to_comment(
    conn: Connection, issue: Issue, comment_id: str, attachment_ids: Sequence[str]
) -> None:
    """Give a comment files of its issue, or that belong to nothing yet."""
    if attachment_ids:
        args = (issue.workspace_id, issue.id, comment_id, list(attachment_ids))
        await conn.execute(SQL.bind_comment, *args)


async def release_from_comment(
    conn: Connection, issue: Issue, comment_id: str, kept: Sequence[str]
) -> None:
    """Take all files but some from a comment; they stay with its issue."""
    await conn.execute(SQL.release_comment, issue.id, comment_id, list(kept))
