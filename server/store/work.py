"""Issues: reading, writing, searching.

Functions of the asyncio island: they take a connection first, run inside the caller's
transaction, return values ready for the wire, and decide nothing. A row that is not there is
None. A change writes the columns it was given and no others, on a row the caller has locked, so
no two writers undo each other (spec 02 §3.3 [trap]).

Comments and runs have modules of their own; their readers are importable from here too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final

import attrs

from server.store.comments import list_comments
from server.store.queries import Connection, Record, load
from server.store.runs import active_tasks, list_tasks, task_messages
from shared.ids import canonical_id, is_id
from shared.times import stamp, try_stamp
from shared.wire.work import FoundIssue, Issue

__all__ = [
    "METADATA_BYTES",
    "METADATA_KEYS",
    "ORDERS",
    "SQL",
    "Filters",
    "Parent",
    "active_tasks",
    "ancestors",
    "child_progress",
    "create_issue",
    "delete_issues",
    "delete_metadata",
    "find_duplicate",
    "find_parent",
    "get_issue",
    "hold_issue",
    "issue_of",
    "list_children",
    "list_comments",
    "list_issues",
    "list_tasks",
    "lock_doomed",
    "lock_issue",
    "lock_issues",
    "search_issues",
    "set_metadata",
    "task_messages",
    "update_issues",
]

SQL = load("work")

_PRIORITY_RANK = "array_position(array['urgent', 'high', 'medium', 'low', 'none'], m.priority)"

ORDERS: Final[Mapping[str, str]] = {
    "position": "m.position",
    "title": "lower(m.title)",
    "created_at": "m.created_at",
    "start_date": "m.start_date",
    "due_date": "m.due_date",
    "priority": _PRIORITY_RANK,
}
"""What a list may be sorted by, as the expression it stands for. Priority: urgent first."""

METADATA_KEYS: Final = 50
METADATA_BYTES: Final = 8192

_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_SNIPPET_BEFORE: Final = 40
_SNIPPET_AFTER: Final = 80


@attrs.frozen(kw_only=True)
class Filters:
    """Which issues a list shows; None does not filter (06 §6.1)."""

    status: str | None = None
    priority: str | None = None
    assignee_ids: Sequence[str] | None = None
    creator_id: str | None = None
    project_id: str | None = None
    involves_user_id: str | None = None
    metadata: Mapping[str, Any] | None = None
    date_field: str | None = None
    date_start: datetime | None = None
    date_end: datetime | None = None
    scheduled: bool = False
    open_only: bool = False


@attrs.frozen(kw_only=True)
class Parent:
    id: str
    project_id: str | None


async def get_issue(conn: Connection, workspace_id: str, ref: str) -> Issue | None:
    """Return an issue by id or by identifier; of an identifier only the number counts."""
    return await _one(conn, SQL.get_issue, workspace_id, ref)


async def hold_issue(conn: Connection, workspace_id: str, ref: str) -> Issue | None:
    """Return an issue that nobody can delete until the transaction ends."""
    return await _one(conn, SQL.hold_issue, workspace_id, ref)


async def lock_issue(
    conn: Connection, workspace_id: str, ref: str, *, parent: bool = False
) -> Issue | None:
    """Return an issue that nobody else can change until the transaction ends.

    With `parent` its own is locked too: the change may move it.
    """
    statement = SQL.lock_issue_and_parent if parent else SQL.lock_issue
    return await _one(conn, statement, workspace_id, ref)


async def lock_issues(
    conn: Connection, workspace_id: str, issue_ids: Sequence[str], *, parents: bool = False
) -> list[Issue]:
    """Return those of the issues that are in the workspace, locked, in no useful order.

    With `parents` theirs are locked too: the change may move them.
    """
    rows = await conn.fetch(SQL.lock_issues, workspace_id, issue_ids, parents)
    return [issue_of(row) for row in rows]


async def lock_doomed(conn: Connection, workspace_id: str, issue_ids: Sequence[str]) -> list[Issue]:
    """As `lock_issues`, before deleting them: nothing new points at them any more."""
    rows = await conn.fetch(SQL.lock_doomed, workspace_id, issue_ids)
    return [issue_of(row) for row in rows]


async def list_issues(
    conn: Connection,
    workspace_id: str,
    filters: Filters | None = None,
    *,
    sort: str = "position",
    descending: bool = False,
    limit: int = 100,
    offset: int = 0,
) -> tuple[list[Issue], int]:
    """Return one page and the full count. `sort` is a key of ORDERS; ties: newest first."""
    chosen = filters or Filters()
    order = f"{ORDERS[sort]} {'desc' if descending else 'asc'} nulls last,"
    rows = await conn.fetch(
        SQL.list_issues.replace("/*order*/", order),
        workspace_id,
        chosen.status,
        chosen.priority,
        chosen.assignee_ids,
        chosen.creator_id,
        chosen.project_id,
        chosen.involves_user_id,
        chosen.metadata,
        chosen.date_field,
        chosen.date_start,
        chosen.date_end,
        chosen.scheduled,
        chosen.open_only,
        limit,
        offset,
    )
    found = [issue_of(row, labels=row["labels"]) for row in rows if row["id"] is not None]
    return found, _total(rows)


async def list_children(
    conn: Connection, workspace_id: str, parent_ids: Sequence[str]
) -> list[Issue]:
    """Return the direct children of the issues, by number (at most 1000)."""
    rows = await conn.fetch(SQL.list_children, workspace_id, parent_ids)
    return [issue_of(row) for row in rows]


async def child_progress(conn: Connection, workspace_id: str) -> list[dict[str, Any]]:
    """Return `parent_issue_id`, `total` and `done` of every issue that has children."""
    rows = await conn.fetch(SQL.child_progress, workspace_id)
    return [
        {
            "parent_issue_id": row["parent_issue_id"],
            "total": row["total"],
            "done": row["done"],
        }
        for row in rows
    ]


async def find_parent(conn: Connection, workspace_id: str, issue_id: str) -> Parent | None:
    """Return what a child takes from its parent; the parent stays until the transaction ends."""
    row = await conn.fetchrow(SQL.parent_facts, workspace_id, issue_id)
    if row is None:
        return None
    return Parent(id=row["id"], project_id=row["project_id"])


async def ancestors(conn: Connection, workspace_id: str, issue_id: str) -> set[str]:
    """Return the issue's id and its ancestors', ten levels up; nobody else changes parents now."""
    await conn.execute(SQL.lock_family, workspace_id)
    return {row["id"] for row in await conn.fetch(SQL.ancestors, issue_id)}


async def find_duplicate(
    conn: Connection,
    workspace_id: str,
    *,
    project_id: str | None,
    parent_id: str | None,
    title: str,
) -> Issue | None:
    """Return the open issue that has this title here already.

    Others that ask for the same title wait until this transaction ends.
    """
    key = (workspace_id, project_id, parent_id, title)
    await conn.execute(SQL.lock_title, *key)
    row = await conn.fetchrow(SQL.find_duplicate, *key)
    return None if row is None else issue_of(row)


async def create_issue(conn: Connection, workspace_id: str, values: Mapping[str, Any]) -> Issue:
    """Make an issue with the next number, at the top of its column.

    `values`: title, description, status, priority, assignee_type, assignee_id, creator_type,
    creator_id, parent_issue_id, project_id, stage, start_date, due_date, origin_type, origin_id.
    """
    row = await conn.fetchrow(
        SQL.create_issue,
        workspace_id,
        values["title"],
        values["description"],
        values["status"],
        values["priority"],
        values["assignee_type"],
        values["assignee_id"],
        values["creator_type"],
        values["creator_id"],
        values["parent_issue_id"],
        values["project_id"],
        values["stage"],
        values["start_date"],
        values["due_date"],
        values["origin_type"],
        values["origin_id"],
    )
    assert row is not None
    return issue_of(row)


async def update_issues(
    conn: Connection, issues: Sequence[Issue], changes: Mapping[str, Any], by: tuple[str, str]
) -> list[Issue]:
    """Write the given columns of locked issues and no others; dates are `YYYY-MM-DD` or None.

    `by`: the kind and id of who does it.

    Returns the issues as they are now, in the order given.
    """
    ids = [issue.id for issue in issues]
    rows = await conn.fetch(SQL.update_issues, ids, dict(changes), *by)
    found = {row["id"]: row for row in rows}
    return [
        attrs.evolve(issue_of(found[issue.id], identified=False), identifier=issue.identifier)
        for issue in issues
    ]


async def others_wrote(
    conn: Connection, agent_id: str, *, issue_ids: Sequence[str] = (), below: str | None = None
) -> bool:
    """Tell whether others than the agent wrote or attached what would go with these."""
    found: bool = await conn.fetchval(SQL.others_wrote, agent_id, list(issue_ids), below)
    return found


async def delete_issues(conn: Connection, issue_ids: Sequence[str]) -> None:
    """Delete issues with their comments and tasks; their children lose their parent."""
    await conn.execute(SQL.delete_issues, list(issue_ids))


async def set_metadata(
    conn: Connection, issue_id: str, key: str, value: Any
) -> dict[str, Any] | None:
    """Set one key; return the whole map, or None when it would grow over its limits."""
    found: dict[str, Any] | None = await conn.fetchval(
        SQL.set_metadata, issue_id, key, value, METADATA_KEYS, METADATA_BYTES
    )
    return found


async def delete_metadata(conn: Connection, issue_id: str, key: str) -> dict[str, Any] | None:
    """Remove one key if it is there; return the whole map, None when the issue is gone."""
    found: dict[str, Any] | None = await conn.fetchval(SQL.delete_metadata, issue_id, key)
    return found


async def search_issues(
    conn: Connection,
    workspace_id: str,
    phrase: str,
    *,
    include_closed: bool = False,
    limit: int = 20,
    offset: int = 0,
) -> tuple[list[FoundIssue], int]:
    """Return one page of hits, best first, and the full count (06 §6.1)."""
    words = phrase.split()[:16]  # each one is a scan over every comment
    number = phrase.rpartition("-")[2]
    rows = await conn.fetch(
        SQL.search_issues,
        workspace_id,
        phrase,
        _pattern(phrase),
        [_pattern(word) for word in words],
        int(number) if _NUMBER.fullmatch(number) else None,
        include_closed,
        limit,
        offset,
    )
    found = [_found(row, phrase, words) for row in rows if row["id"] is not None]
    return found, _total(rows)


def issue_of(
    row: Record, *, labels: list[dict[str, Any]] | None = None, identified: bool = True
) -> Issue:
    """Turn a row of issue, with `issue_prefix` beside it, into what readers get."""
    return Issue(**_fields(row, identified=identified), labels=labels)


def _fields(row: Record, *, identified: bool = True) -> dict[str, Any]:
    return {
        "id": row["id"],
        "workspace_id": row["workspace_id"],
        "number": row["number"],
        "identifier": f"{row['issue_prefix']}-{row['number']}" if identified else "",
        "title": row["title"],
        "description": row["description"],
        "status": row["status"],
        "priority": row["priority"],
        "assignee_type": row["assignee_type"],
        "assignee_id": row["assignee_id"],
        "creator_type": row["creator_type"],
        "creator_id": row["creator_id"],
        "edited_by_others": row["edited_by_others"],
        "parent_issue_id": row["parent_issue_id"],
        "project_id": row["project_id"],
        "position": row["position"],
        "stage": row["stage"],
        "start_date": _day(row["start_date"]),
        "due_date": _day(row["due_date"]),
        "created_at": stamp(row["created_at"]),
        "updated_at": stamp(row["updated_at"]),
        "metadata": row["metadata"],
        "runs_paused_at": try_stamp(row["runs_paused_at"]),
    }


def _day(value: date | None) -> str | None:
    return None if value is None else value.isoformat()


async def _one(conn: Connection, statement: str, workspace_id: str, ref: str) -> Issue | None:
    if is_id(ref):
        row = await conn.fetchrow(statement, workspace_id, canonical_id(ref), None)
    else:
        prefix, _, number = ref.rpartition("-")
        if not prefix or not _NUMBER.fullmatch(number):
            return None
        row = await conn.fetchrow(statement, workspace_id, None, int(number))
    return None if row is None else issue_of(row)


def _total(rows: Sequence[Record]) -> int:
    return int(rows[0]["total"]) if rows else 0


def _pattern(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _found(row: Record, phrase: str, words: Sequence[str]) -> FoundIssue:
    rank = row["rank"]
    source = "title" if rank <= 4 else "description" if rank <= 6 else "comment"
    description = _snippet(row["description"] or "", phrase, words)
    comment = _snippet(row["comment_content"] or "", phrase, words)
    return FoundIssue(
        **_fields(row),
        match_source=source,
        matched_snippet={"description": description, "comment": comment}.get(source, ""),
        matched_description_snippet=description,
        matched_comment_snippet=comment,
    )


def _snippet(text: str, phrase: str, words: Sequence[str]) -> str:
    """Cut the surroundings of the first match out of a text; empty when nothing matches."""
    low = text.lower()
    for wanted in (phrase, *words):
        at = low.find(wanted.lower())
        if at >= 0:
            start, end = max(at - _SNIPPET_BEFORE, 0), at + len(wanted) + _SNIPPET_AFTER
            before = "..." if start > 0 else ""
            after = "..." if end < len(text) else ""
            return f"{before}{text[start:end]}{after}"
    return ""
