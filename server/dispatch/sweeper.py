"""Finds what nobody will report: machines that went away, tasks that hang, work nobody fetched.

A service of every server process, woken by time; several may sweep at once, since each rule changes
rows only while they still are what it looks for. A rule is one unit; one that fails is logged and
the next runs. Ends by cancellation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Final, Protocol

import structlog
import trio

from server.consequences import Consequence
from server.database import Database
from server.dispatch import events
from server.dispatch.finish import fail_many
from server.dispatch.heartbeat import SQL
from server.dispatch.lifecycle import (
    DISPATCH_TIMEOUT,
    EXPIRE,
    QUEUE_TIMEOUT,
    RUNNING_TIMEOUT,
    TOKEN_LIFE,
)
from server.dispatch.verdict import Failure
from server.push.hub import Hub
from server.store.queries import Connection
from shared import failure

log = structlog.get_logger(__name__)

Rule = Callable[[Connection], Awaitable[list[Consequence]]]

_SILENCE: Final = 7200.0
"""Seconds without a transcript row before a long run counts as stuck; a single tool call may take
this long. The reference ends every run after 9000 s, working or not."""

_FORGET: Final = timedelta(days=7)

_DEADLINE: Final = 60.0

OFFLINE: Final = Failure(
    error="runtime went offline", reason=failure.RUNTIME_OFFLINE, presumed=True
)
TIMED_OUT: Final = Failure(error="task timed out", reason=failure.TIMEOUT, presumed=True)
EXPIRED: Final = Failure(error="task expired in queue", reason=failure.QUEUED_EXPIRED)


class Settings(Protocol):
    """What the sweeper reads of the server's configuration; seconds."""

    @property
    def offline_after(self) -> float: ...
    @property
    def sweep_interval(self) -> float: ...


async def run_sweeper(
    database: Database,
    hub: Hub,
    config: Settings,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Sweep every `sweep_interval` seconds, for ever.

    While this process is younger than `offline_after`, silence proves nothing: it may have been
    the server that was away.
    """
    task_status.started()
    start = trio.current_time()
    while True:
        await trio.sleep(config.sweep_interval)
        grown_up = trio.current_time() - start >= config.offline_after
        for rule in rules(config.offline_after, judge_silence=grown_up):
            await _apply(database, hub, rule)


def rules(offline_after: float, *, judge_silence: bool = True) -> list[Rule]:
    """The rules in the order they run: a task of a dead machine is not merely late."""
    gone = timedelta(seconds=offline_after)
    silence: list[Rule] = [partial(stale_runtimes, after=gone), partial(left_behind, after=gone)]
    return [*(silence if judge_silence else []), stuck_tasks, expired_tasks, forget]


async def _apply(database: Database, hub: Hub, rule: Rule) -> None:
    try:
        consequences = await database.write(rule, deadline=_DEADLINE)
    except Exception:  # it is tried again at the next round
        log.exception("sweeping failed", rule=str(getattr(rule, "func", rule)))
    else:
        hub.announce(consequences)


async def stale_runtimes(conn: Connection, *, after: timedelta) -> list[Consequence]:
    """Machines that have stopped beating are offline."""
    rows = await conn.fetch(SQL.stale, after)
    return [
        events.runtimes_changed(workspace_id, action="stale_sweep")
        for workspace_id in sorted({row["workspace_id"] for row in rows})
    ]


async def left_behind(conn: Connection, *, after: timedelta) -> list[Consequence]:
    """What they had in flight has failed, also when they had signed off properly before."""
    rows = await conn.fetch(SQL.tasks_left_behind, after)
    return (await fail_many(conn, [row["id"] for row in rows], OFFLINE))[1]


async def stuck_tasks(conn: Connection) -> list[Consequence]:
    """Tasks that were fetched and not started, parked and forgotten, or run without a word."""
    rows = await conn.fetch(
        SQL.tasks_stuck,
        timedelta(seconds=DISPATCH_TIMEOUT),
        timedelta(seconds=RUNNING_TIMEOUT),
        timedelta(seconds=_SILENCE),
        timedelta(seconds=TOKEN_LIFE),
    )
    return (await fail_many(conn, [row["id"] for row in rows], TIMED_OUT))[1]


async def expired_tasks(conn: Connection) -> list[Consequence]:
    """Tasks that waited too long for a machine; waiting behind the agent's other work is fine."""
    rows = await conn.fetch(SQL.tasks_expired, timedelta(seconds=QUEUE_TIMEOUT))
    return (await fail_many(conn, [row["id"] for row in rows], EXPIRED, EXPIRE.sources))[1]


async def forget(conn: Connection) -> list[Consequence]:
    """Rows that have no further use: dead tokens, machines that nothing refers to."""
    await conn.execute(SQL.forget_tokens)
    await conn.execute(SQL.forget_daemon_tokens)
    rows = await conn.fetch(SQL.forget_runtimes, _FORGET)
    return [
        events.runtimes_changed(workspace_id, action="runtime_gc")
        for workspace_id in sorted({row["workspace_id"] for row in rows})
    ]
