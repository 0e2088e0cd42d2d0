"""Starts what autopilots have planned, and pauses those that fail nearly always (02 §3.9, §3.10).

A service of every server process, woken by time. A due trigger is locked by whoever sees it first,
and a plan has at most one run by a unique index, so several processes may look at once. Ends by
cancellation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final

import structlog
import trio

from server.consequences import Consequence
from server.database import Database
from server.dispatch import events
from server.dispatch.autopilot import SQL, start_run
from server.dispatch.schedule import latest_due, next_after
from server.push.hub import Hub
from server.store.queries import Connection
from shared import times
from shared.wire.event import Event

log = structlog.get_logger(__name__)

_Unit = Callable[[Connection], Awaitable[tuple[bool, Sequence[Consequence]]]]

TICK: Final = 30.0
MONITOR_AFTER: Final = 60.0
MONITOR_EVERY: Final = 24 * 3600.0

_BATCH: Final = 20
_ROUNDS: Final = 50
"""Batches in one tick: more is a flood, and the next tick goes on."""

_LOOK_BACK: Final = timedelta(days=7)
_ENOUGH_RUNS: Final = 50
_FAILED_SHARE: Final = 0.9


async def run_scheduler(
    database: Database,
    hub: Hub,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Look every 30 s for what is due, for ever."""
    task_status.started()
    look = trio.current_time() + MONITOR_AFTER
    while True:
        await trio.sleep(TICK)
        await tick(database, hub)
        if trio.current_time() >= look:
            look = trio.current_time() + MONITOR_EVERY
            await _apply(database, hub, pause_failing)


async def tick(database: Database, hub: Hub) -> None:
    """Start all that is due now."""
    for _ in range(_ROUNDS):
        if not await _apply(database, hub, start_due):
            return


async def _apply(database: Database, hub: Hub, unit: _Unit) -> bool:
    try:
        more, told = await database.write(unit, deadline=60)
    except Exception:  # it is tried again at the next tick
        log.exception("the scheduler failed", what=getattr(unit, "__name__", ""))
        return False
    hub.announce(told)
    return more


async def start_due(conn: Connection) -> tuple[bool, Sequence[Consequence]]:
    """Start the runs of a batch of due triggers; the value says whether to look again."""
    due = await conn.fetch(SQL.due_triggers, _BATCH)
    now = times.now()
    told: list[Consequence] = []
    for trigger in due:
        anchor = trigger["last_fired_at"] or trigger["created_at"]
        expression, timezone = trigger["cron_expression"], trigger["timezone"]
        plan = latest_due(expression, timezone, anchor, now)
        if plan is not None:
            autopilot = await conn.fetchrow(
                SQL.lock_autopilot, trigger["workspace_id"], trigger["autopilot_id"]
            )
            if autopilot is not None:
                _, more = await start_run(
                    conn, autopilot, source="schedule", trigger=trigger, planned_at=plan
                )
                told += more
        await conn.execute(SQL.set_next, trigger["id"], next_after(expression, timezone, now))
    return len(due) == _BATCH, told


async def pause_failing(conn: Connection) -> tuple[bool, Sequence[Consequence]]:
    """Pause autopilots of which nearly every run of the last days failed, and tell their makers."""
    paused = await conn.fetch(SQL.fail_often, _LOOK_BACK, _ENOUGH_RUNS, _FAILED_SHARE)
    if not paused:
        return False, ()
    bodies = [
        {"id": row["id"], "body": f"{row['failed']} of the last {row['n']} runs failed."}
        for row in paused
    ]
    told: list[Consequence] = [
        Event(
            type="autopilot:updated",
            payload={"autopilot_id": row["id"], "reason": "auto_paused_high_failure_rate"},
            workspace_id=row["workspace_id"],
            **events.autopilot_whose(row),
        )
        for row in paused
    ]
    rows = await conn.fetch(SQL.tell_paused, bodies)
    told += [events.inbox_new(row["item"]) for row in rows]
    return False, told
