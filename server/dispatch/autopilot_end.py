"""How an autopilot's run ends: with its bare task, or with its issue (spec 02 §3.9).

Called in the transaction that ends the task or changes the issue, so no run stays open behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from server.consequences import Consequence
from server.dispatch import events
from server.dispatch.outcome import Ended, Row
from server.store.queries import Connection, Record, load
from shared.wire.event import Event

SQL: Final = load("autopilots")


async def settle_runs(conn: Connection, ended: Sequence[Ended]) -> list[Consequence]:
    """Settler of bare tasks: the run goes as its task went."""
    rows = [
        {
            "run_id": one.before["autopilot_run_id"],
            "status": "completed" if one.completed else "failed",
            "reason": "" if one.completed else one.text or one.status,
            "result": one.task["result"],
        }
        for one in ended
        if one.retry is None
    ]
    return _done(await conn.fetch(SQL.finish_task_runs, rows)) if rows else []


async def settle_issues(conn: Connection, ended: Sequence[Ended]) -> list[Consequence]:
    """Settler of tasks on issues: a failure that nobody takes over fails the run.

    One that turned out to be none gives it back to what the issue says.
    """
    told: list[Consequence] = []
    for one in ended:
        if one.adopted and one.completed:
            await reopen(conn, one.before)
            told += await issues_moved(conn, [one.before["issue_id"]])
    issues = [
        one.before["issue_id"] for one in ended if one.status == "failed" and one.retry is None
    ]
    if issues:
        told += _done(await conn.fetch(SQL.finish_issue_runs, issues, "task failed"))
    return told


async def reopen(conn: Connection, task: Row) -> None:
    """A task that had failed a run goes on, or has done its work: the run is open again."""
    if task["autopilot_run_id"] or task["issue_id"]:
        await conn.execute(SQL.reopen_runs, task["autopilot_run_id"], task["issue_id"])


async def issues_moved(conn: Connection, issue_ids: Sequence[str]) -> list[Consequence]:
    """Issues have a new status, which may say how the runs behind them went."""
    return _done(await conn.fetch(SQL.finish_issue_runs, list(issue_ids), None))


async def issues_deleted(conn: Connection, issue_ids: Sequence[str]) -> list[Consequence]:
    """Issues are about to be deleted; their runs have failed."""
    return _done(await conn.fetch(SQL.fail_deleted, list(issue_ids)))


def _done(rows: Sequence[Record]) -> list[Consequence]:
    return [
        Event(
            type="autopilot:run_done",
            payload={
                "run_id": row["id"],
                "autopilot_id": row["autopilot_id"],
                "status": row["status"],
            },
            workspace_id=row["workspace_id"],
            **events.autopilot_whose(row),
        )
        for row in rows
    ]
