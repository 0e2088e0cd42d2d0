"""Comments and their threads.

Functions of the asyncio island, as in `work`. A thread is a root comment with all its
descendants; the reading modes of spec 06 §7.1 are one `Reading` value each. Bad combinations are
the endpoint's business; here the first mode that is set counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import attrs

from server.store.queries import Connection, Record, load
from shared.times import stamp, try_stamp
from shared.wire.work import Comment

SQL = load("comments")

SUMMARY_LENGTH: Final = 200


@attrs.frozen(kw_only=True)
class Cursor:
    """Where the previous page began: a moment and the id that breaks ties."""

    at: datetime
    id: str


@attrs.frozen(kw_only=True)
class Reading:
    """How comments are read: everything, or one thread, or recent threads, or only roots."""

    since: datetime | None = None
    thread: str | None = None
    tail: int | None = None
    recent: int | None = None
    before: Cursor | None = None
    roots_only: bool = False
    summary: bool = False
    fold: bool = False


@attrs.frozen(kw_only=True)
class Page:
    """The comments of one reading; `older` is where the next page ends, if there is one."""

    comments: list[Comment]
    older: Cursor | None = None


async def list_comments(conn: Connection, issue_id: str) -> list[Comment]:
    """Return an issue's comments, oldest first (at most 2000)."""
    page = await read_comments(conn, issue_id, Reading())
    return [] if page is None else page.comments


async def read_comments(conn: Connection, issue_id: str, how: Reading) -> Page | None:
    """Return what the reading asks for; None when it names a thread the issue does not have."""
    if how.thread is not None:
        return await _thread(conn, issue_id, how, how.thread)
    if how.recent is not None:
        return await _recent(conn, issue_id, how, how.recent)
    if how.roots_only:
        rows = await conn.fetch(SQL.list_roots, issue_id, how.since, how.summary)
        return Page(comments=[_comment(row, how) for row in rows])
    rows = await conn.fetch(SQL.list_comments, issue_id, how.since, how.summary)
    return Page(comments=_maybe_folded(rows, how))


async def _thread(conn: Connection, issue_id: str, how: Reading, comment_id: str) -> Page | None:
    root_id = await conn.fetchval(SQL.find_root, issue_id, comment_id)
    if root_id is None:
        return None
    before = how.before
    rows = await conn.fetch(
        SQL.list_thread,
        root_id,
        how.since,
        how.summary,
        how.tail,
        before and before.at,
        before and before.id,
        issue_id,
    )
    replies = [row for row in rows if row["id"] != root_id]
    older = None
    if how.tail is not None and len(replies) > how.tail:
        # One more than asked for was read: there is an older page.
        dropped = len(replies) - how.tail
        kept = replies[dropped:]
        rows = [row for row in rows if row["id"] == root_id] + kept
        older = Cursor(at=kept[0]["created_at"], id=kept[0]["id"]) if kept else None
    return Page(comments=_maybe_folded(rows, how), older=older)


async def _recent(conn: Connection, issue_id: str, how: Reading, count: int) -> Page:
    before = how.before
    rows = await conn.fetch(
        SQL.list_recent,
        issue_id,
        how.since,
        how.summary,
        count,
        before and before.at,
        before and before.id,
    )
    roots = {row["root_id"]: row["last_activity"] for row in rows}
    older = None
    if count and len(roots) == count:
        root_id, at = next(iter(roots.items()))  # the threads come oldest activity first
        older = Cursor(at=at, id=str(root_id))
    return Page(comments=_maybe_folded(rows, how), older=older)


async def lock_thread(
    conn: Connection, workspace_id: str, comment_id: str
) -> tuple[str, Comment] | None:
    """Return the root's id and the comment; nobody else changes its thread from now on.

    To be called before any other lock on comments. None when there is no such comment.
    """
    root_id = await conn.fetchval(SQL.lock_thread, workspace_id, comment_id)
    row = root_id and await conn.fetchrow(SQL.lock_comment, workspace_id, comment_id)
    return (root_id, _comment(row)) if row else None


async def create_comment(
    conn: Connection,
    *,
    issue_id: str,
    workspace_id: str,
    author_type: str,
    author_id: str,
    content: str,
    kind: str,
    parent_id: str | None,
) -> Comment:
    """Write one comment on a locked issue; the parent must be known to be on it."""
    row = await conn.fetchrow(
        SQL.create_comment,
        issue_id,
        workspace_id,
        author_type,
        author_id,
        content,
        kind,
        parent_id,
    )
    assert row is not None
    return _comment(row)


async def update_comment(
    conn: Connection, comment_id: str, content: str, by: tuple[str, str]
) -> Comment:
    """Replace the text of a locked comment."""
    row = await conn.fetchrow(SQL.update_comment, comment_id, content, *by)
    assert row is not None
    return _comment(row)


async def delete_comment(conn: Connection, comment_id: str) -> None:
    """Delete a comment and the replies below it."""
    await conn.execute(SQL.delete_comment, comment_id)


async def resolve_comment(
    conn: Connection, comment: Comment, root_id: str, actor_type: str, actor_id: str
) -> tuple[Comment, list[Comment]]:
    """Resolve a locked comment; return it, and those of its thread that no longer are."""
    cleared = await conn.fetch(SQL.unresolve_others, root_id, comment.id)
    row = await conn.fetchrow(SQL.resolve_comment, comment.id, actor_type, actor_id)
    assert row is not None
    return _comment(row), [_comment(other) for other in cleared]


async def unresolve_comment(conn: Connection, comment_id: str) -> Comment | None:
    """Take a resolution back; None when there is none."""
    row = await conn.fetchrow(SQL.unresolve_comment, comment_id)
    return None if row is None else _comment(row)


async def trigger_of(conn: Connection, task_id: str, issue_id: str) -> str | None:
    """Return the comment that the task, if it is on this issue, has to answer."""
    found = await conn.fetchval(SQL.trigger_of, task_id, issue_id)
    return None if found is None else str(found)


async def is_on(conn: Connection, comment_id: str, issue_id: str) -> bool:
    """Tell whether a comment is on an issue."""
    return await conn.fetchval(SQL.is_on, comment_id, issue_id) is not None


async def kept_silence(conn: Connection, task_id: str, issue_id: str) -> bool:
    """Tell whether a squad's leader has decided, in this task, that there is nothing to do."""
    return await conn.fetchval(SQL.kept_silence, issue_id, task_id) is not None


def fold(comments: Sequence[Comment]) -> list[Comment]:
    """Collapse resolved threads to their root and conclusion (06 §7.1). Pure.

    A resolved root stands alone; otherwise the root and the reply resolved last. The root then
    says how many comments were dropped.
    """
    roots = _roots(comments)
    threads: dict[str, list[Comment]] = {}
    for comment in comments:
        threads.setdefault(roots[comment.id], []).append(comment)
    kept: dict[str, Comment] = {}
    for root_id, thread in threads.items():
        for comment in _conclusion(root_id, thread):
            kept[comment.id] = comment
    return [kept[comment.id] for comment in comments if comment.id in kept]


def _conclusion(root_id: str, thread: Sequence[Comment]) -> Sequence[Comment]:
    root = next((comment for comment in thread if comment.id == root_id), None)
    resolved = [comment for comment in thread if comment.resolved_at is not None]
    if root is None or not resolved:
        return thread
    if root.resolved_at is not None:
        shown = []
    else:
        shown = [max(resolved, key=lambda comment: comment.resolved_at or "")]
    dropped = len(thread) - 1 - len(shown)
    return [attrs.evolve(root, thread_resolved=True, folded_count=dropped), *shown]


def _roots(comments: Sequence[Comment]) -> Mapping[str, str]:
    """Name the root of each comment; a parent that was not read is its own root."""
    parents = {comment.id: comment.parent_id for comment in comments}
    roots: dict[str, str] = {}
    for comment in comments:
        path = []
        at = comment.id
        while at not in roots and (parent := parents.get(at)) is not None:
            path.append(at)
            at = parent
        root = roots.get(at, at)
        roots[comment.id] = root
        for passed in path:
            roots[passed] = root
    return roots


def _maybe_folded(rows: Sequence[Record], how: Reading) -> list[Comment]:
    comments = [_comment(row, how) for row in rows]
    return fold(comments) if how.fold else comments


_PLAIN: Final = Reading()


def _comment(row: Record, how: Reading = _PLAIN) -> Comment:
    content: str = row["shown"]
    extra: dict[str, Any] = {}
    if how.summary:
        cut = len(content) > SUMMARY_LENGTH
        content = content[:SUMMARY_LENGTH] + "…" if cut else content
        extra["content_truncated"] = cut
    if how.roots_only:
        extra["reply_count"] = row["replies"]
        extra["last_activity_at"] = stamp(row["last_activity"])
    return Comment(
        id=row["id"],
        issue_id=row["issue_id"],
        author_type=row["author_type"],
        author_id=row["author_id"],
        edited_by_others=row["edited_by_others"],
        content=content,
        type=row["type"],
        parent_id=row["parent_id"],
        created_at=stamp(row["created_at"]),
        updated_at=stamp(row["updated_at"]),
        resolved_at=try_stamp(row["resolved_at"]),
        resolved_by_type=row["resolved_by_type"],
        resolved_by_id=row["resolved_by_id"],
        source_task_id="" if row["source_task_id"] is None else row["source_task_id"],
        **extra,
    )
