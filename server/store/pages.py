"""What only the HTML pages read: less of more rows than the API's own reads give.

Functions of the asyncio island, as in `work`: a connection first, values out, no decisions.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from server.store.queries import Connection, load

SQL = load("pages")

COLUMN_LIMIT: Final = 100
"""How many issues a column of the board shows; more than a person looks through."""


@attrs.frozen(kw_only=True)
class BoardIssue:
    """An issue as a card: no description, so that a full board is one small read."""

    id: str
    number: int
    title: str
    status: str
    priority: str
    assignee_type: str | None
    assignee_id: str | None
    in_column: int


@attrs.frozen(kw_only=True)
class ActiveRun:
    """A run that has not ended; without an issue for other kinds of task."""

    id: str
    issue_id: str | None
    agent_id: str
    status: str
    number: int | None


@attrs.frozen(kw_only=True)
class RunNote:
    """An active run's last progress (`summary`, `step`, `total`) and what it waits for."""

    progress: dict[str, Any]
    wait_reason: str


async def board(conn: Connection, workspace_id: str) -> list[BoardIssue]:
    """Return the first issues of every column, with the column's full count."""
    rows = await conn.fetch(SQL.board, workspace_id, COLUMN_LIMIT)
    return [
        BoardIssue(
            id=str(row["id"]),
            number=row["number"],
            title=row["title"],
            status=row["status"],
            priority=row["priority"],
            assignee_type=row["assignee_type"],
            assignee_id=_text(row["assignee_id"]),
            in_column=row["in_column"],
        )
        for row in rows
    ]


async def active_runs(conn: Connection, workspace_id: str) -> list[ActiveRun]:
    """Return the workspace's runs that have not ended, oldest first."""
    rows = await conn.fetch(SQL.active_runs, workspace_id)
    return [
        ActiveRun(
            id=str(row["id"]),
            issue_id=_text(row["issue_id"]),
            agent_id=str(row["agent_id"]),
            status=row["status"],
            number=row["number"],
        )
        for row in rows
    ]


async def run_notes(conn: Connection, issue_id: str, gate: str | None) -> dict[str, RunNote]:
    """Return what the issue's active runs say of themselves, by task id; `gate` says who looks."""
    rows = await conn.fetch(SQL.run_notes, issue_id, gate)
    return {
        str(row["id"]): RunNote(
            progress=row["progress"] or {}, wait_reason=row["wait_reason"] or ""
        )
        for row in rows
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)
