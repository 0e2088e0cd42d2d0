"""Finds what nobody will report: machines that went away, tasks that hang, work nobody fetched.

A service of every server process, woken by time; several may sweep at once, since a rule is applied
by one process at a time and changes rows only while they still are what it looks for. A rule is one
unit and takes a bounded number of rows; one that fails is logged and the next runs. Ends by
cancellation.

A machine that is silent is not a machine that is lost: what it runs is shown as unreachable, and
failed only when it stays away for the grace period, or says itself that it has nothing left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final, Protocol
from zlib import crc32

import attrs
import structlog
import trio

from server.config import Kept
from server.consequences import Consequence, Counted, TaskAvailable, TokensRevoked
from server.database import Database
from server.dispatch import events
from server.dispatch.finish import fail_many
from server.dispatch.lifecycle import (
    DISPATCH_TIMEOUT,
    EXPIRE,
    QUEUE_TIMEOUT,
    REDELIVER_AFTER,
    RUNNING_TIMEOUT,
    TOKEN_LIFE,
)
from server.dispatch.reachability import SQL, reachable_tasks, unreachable_tasks
from server.dispatch.verdict import Failure
from server.push.hub import Hub
from server.store.queries import Connection
from shared import failure
from shared.wire.task import IN_FLIGHT

log = structlog.get_logger(__name__)

_SILENCE: Final = timedelta(seconds=7200)
"""Without a transcript row for so long, a long run counts as stuck; a single tool call may take this
long. The reference ends every run after 9000 s, working or not."""

_REDELIVER_AFTER: Final = timedelta(seconds=REDELIVER_AFTER)
_DUE: Final = timedelta(minutes=2)
"""How long a parked task is announced: far more than a round, so that one round may be lost."""

_DEADLINE: Final = 60.0
_ROUNDS: Final = 50
"""Batches of a rule in one sweep. What is left then waits for the next."""

_LOCK: Final = 0x73776570 << 32
"""The advisory locks' common part ("swep")."""

OFFLINE: Final = Failure(
    error="runtime went offline", reason=failure.RUNTIME_OFFLINE, presumed=True
)
TIMED_OUT: Final = Failure(error="task timed out", reason=failure.TIMEOUT, presumed=True)
UNDELIVERABLE: Final = Failure(
    error="task was handed to its runtime five times and never started",
    reason=failure.TIMEOUT,
    presumed=True,
)
EXPIRED: Final = Failure(error="task expired in queue", reason=failure.QUEUED_EXPIRED)


class Settings(Protocol):
    """What the sweeper reads of the server's configuration; seconds."""

    @property
    def offline_after(self) -> float: ...
    @property
    def offline_grace(self) -> float: ...
    @property
    def sweep_interval(self) -> float: ...
    @property
    def kept(self) -> Kept: ...


@attrs.frozen
class Rule:
    """One thing that is looked for. `drains`: what it found once it does not find again."""

    find: Callable[[Connection], Awaitable[list[Consequence]]]
    drains: bool = True

    @property
    def name(self) -> str:
        """What it is called in the log."""
        found = self.find.func if isinstance(self.find, partial) else self.find
        return str(getattr(found, "__name__", found))

    async def __call__(self, conn: Connection) -> list[Consequence]:
        """Apply it once, unless another process is at it."""
        lock = _LOCK | crc32(self.name.encode())
        if not await conn.fetchval("select pg_try_advisory_xact_lock($1)", lock):
            return []
        return await self.find(conn)


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
        for rule in rules(
            config.offline_after, config.offline_grace, judge_silence=grown_up, kept=config.kept
        ):
            await _apply(database, hub, rule)


def rules(
    offline_after: float, grace: float = 900.0, *, judge_silence: bool = True, kept: Kept = Kept()
) -> list[Rule]:
    """The rules in the order they run: a task of a lost machine is not merely late."""
    silence = [
        Rule(partial(stale_runtimes, after=timedelta(seconds=offline_after))),
        Rule(unreachable_tasks),
        Rule(partial(left_behind, after=timedelta(seconds=grace))),
    ]
    return [
        Rule(reachable_tasks),
        *(silence if judge_silence else []),
        Rule(undeliverable_tasks),
        Rule(stuck_tasks),
        Rule(expired_tasks),
        Rule(due_tasks, drains=False),
        Rule(partial(forget, kept=kept)),
    ]


async def _apply(database: Database, hub: Hub, rule: Rule) -> None:
    for _ in range(_ROUNDS if rule.drains else 1):
        try:
            consequences = await database.write(rule, deadline=_DEADLINE)
        except Exception:  # it is tried again at the next round
            log.exception("sweeping failed", rule=rule.name)
            return
        hub.announce(consequences)
        if not consequences:
            return


# --- machines -------------------------------------------------------------------------------------


async def stale_runtimes(conn: Connection, *, after: timedelta) -> list[Consequence]:
    """Machines that have stopped beating are offline."""
    rows = await conn.fetch(SQL.stale, after)
    if not rows:
        return []
    told: list[Consequence] = [
        events.runtimes_changed(workspace_id, action="stale_sweep")
        for workspace_id in sorted({row["workspace_id"] for row in rows})
    ]
    return [*told, Counted("runtime_offline", len(rows))]


async def left_behind(conn: Connection, *, after: timedelta) -> list[Consequence]:
    """What lost machines ran has failed, as far as anybody can know."""
    return await _fail(conn, OFFLINE, SQL.tasks_left_behind, after)


# --- tasks ----------------------------------------------------------------------------------------


async def undeliverable_tasks(conn: Connection) -> list[Consequence]:
    """Tasks whose claims are all lost: the runtime asks and never hears the answer."""
    return await _fail(conn, UNDELIVERABLE, SQL.tasks_undeliverable, _REDELIVER_AFTER)


async def stuck_tasks(conn: Connection) -> list[Consequence]:
    """Tasks that were fetched and not started, parked and forgotten, or run without a word."""
    return await _fail(
        conn,
        TIMED_OUT,
        SQL.tasks_stuck,
        timedelta(seconds=DISPATCH_TIMEOUT),
        timedelta(seconds=RUNNING_TIMEOUT),
        _SILENCE,
        timedelta(seconds=TOKEN_LIFE),
    )


async def expired_tasks(conn: Connection) -> list[Consequence]:
    """Tasks that waited too long for a machine; waiting behind the agent's other work is fine."""
    after = timedelta(seconds=QUEUE_TIMEOUT)
    return await _fail(conn, EXPIRED, SQL.tasks_expired, after, statuses=EXPIRE.sources)


async def due_tasks(conn: Connection) -> list[Consequence]:
    """Parked tasks whose time has come: their machine is told."""
    rows = await conn.fetch(SQL.tasks_due, _DUE)
    return [TaskAvailable(row["runtime_id"], row["id"]) for row in rows]


async def forget(conn: Connection, *, kept: Kept = Kept()) -> list[Consequence]:
    """Rows that have no further use: dead tokens, machines that nothing refers to."""
    await conn.execute(SQL.forget_tokens)
    forsaken = await conn.fetch(SQL.revoke_forsaken, timedelta(seconds=TOKEN_LIFE))
    await conn.execute(SQL.forget_daemon_tokens)
    await conn.execute(
        SQL.forget_records,
        timedelta(seconds=kept.deliveries),
        timedelta(seconds=kept.skipped_runs),
        timedelta(seconds=kept.archived),
    )
    rows = await conn.fetch(SQL.forget_runtimes, timedelta(seconds=kept.machines))
    told: list[Consequence] = [
        events.runtimes_changed(workspace_id, action="runtime_gc")
        for workspace_id in sorted({row["workspace_id"] for row in rows})
    ]
    if forsaken:
        told.append(TokensRevoked(tuple(row["token_hash"] for row in forsaken)))
    return told


async def _fail(
    conn: Connection,
    why: Failure,
    statement: str,
    *args: Any,
    statuses: frozenset[str] = IN_FLIGHT,
) -> list[Consequence]:
    """Fail what the statement finds, and still finds once it is locked."""

    async def find(again: Connection, among: Sequence[str] | None) -> Collection[str]:
        return {row["id"] for row in await again.fetch(statement, *args, among)}

    found = await find(conn, None)
    if not found:
        return []
    return (await fail_many(conn, found, why, statuses, recheck=find))[1]
