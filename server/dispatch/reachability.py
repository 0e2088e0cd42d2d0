"""Marks what runs on machines that cannot be reached, and what can be reached again.

Woken by the sweeper, and by the heartbeat of a runtime that comes back. A field beside the status:
a machine behind a cut network goes on working, and its result will be welcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from server.consequences import Consequence
from server.dispatch import events
from server.dispatch.lifecycle import LEASE
from server.store.queries import Connection, load

SQL: Final = load("sweep")

_HOLD: Final = timedelta(seconds=60)
"""As long as a daemon may wait between two tries to report."""

_LEASE: Final = timedelta(seconds=LEASE)


async def unreachable_tasks(conn: Connection) -> list[Consequence]:
    """What runtimes that are offline run, also when they had signed off properly before."""
    return [events.reachability(row) for row in await conn.fetch(SQL.mark_unreachable)]


async def reachable_tasks(
    conn: Connection, *, runtime_ids: Sequence[str] | None = None
) -> list[Consequence]:
    """What runtimes run that are back: all of them, or only these. One statement."""
    rows = await conn.fetch(SQL.mark_reachable, _LEASE, runtime_ids)
    return [events.reachability(row) for row in rows]


async def came_back(conn: Connection, runtime_ids: Sequence[str]) -> list[Consequence]:
    """Runtimes beat again that were offline: what they run is reached again, and what they had run
    may be reported at last, before its new attempt starts.
    """
    await conn.execute(SQL.hold_retries, runtime_ids, _HOLD)
    return await reachable_tasks(conn, runtime_ids=runtime_ids)
