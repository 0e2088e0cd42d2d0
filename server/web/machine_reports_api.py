"""What a daemon says of its machine beside tasks: use by the programs' own logs, agents stopped.

Neither is in the documented protocol; newer daemons send both.
"""

from __future__ import annotations

from datetime import date
from typing import Any, Final

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.dispatch import finish, heartbeat
from server.errors import Invalid
from server.store import tasks
from server.store.queries import Connection, load
from server.web import body
from server.web.answers import answer
from server.web.daemon_calls import change, daemon_caller, path_id
from shared.wire.runtime import DayUsage, UsageReport

SQL: Final = load("usage")
MOST_ENTRIES: Final = 5000

_OK: Final = {"status": "ok"}
_BIGINT: Final = 2**63 - 1


async def report_usage(request: Request) -> Response:
    """POST /api/daemon/runtimes/{runtime_id}/usage: totals by day, provider and model.

    A repeated report replaces what was told of the same day, provider and model.
    """
    caller = await daemon_caller(request)
    runtime_id = path_id(request, "runtime_id")
    sent = await body.decode(request, UsageReport)
    if len(sent.entries) > MOST_ENTRIES:
        raise Invalid(f"entries may have at most {MOST_ENTRIES} items")
    entries = [_entry(entry) for entry in sent.entries]

    async def unit(conn: Connection) -> tuple[None, list[Consequence]]:
        row = await conn.fetchrow(heartbeat.SQL.see_runtime, runtime_id, *caller.args)
        tasks.seen(row, "runtime not found")
        if entries:
            await conn.execute(SQL.store_local, runtime_id, entries)
        return None, []

    await change(request, unit)
    return answer(_OK)


async def acknowledge_cancel(request: Request) -> Response:
    """POST /api/daemon/tasks/{task_id}/cancel-ack: the agent of a cancelled task has stopped."""
    caller = await daemon_caller(request)
    task_id = path_id(request, "task_id")

    async def unit(conn: Connection) -> tuple[None, list[Consequence]]:
        await tasks.see_task(conn, task_id, caller)
        if await conn.fetchval(finish.SQL.acknowledge_cancel, task_id) is None:
            raise Invalid("task is not cancelled")
        return None, []

    await change(request, unit)
    return answer(_OK)


def _entry(entry: DayUsage) -> dict[str, Any]:
    try:
        date.fromisoformat(entry.date)
    except ValueError:
        raise Invalid(f"invalid date {entry.date!r}: expected YYYY-MM-DD") from None
    if not entry.model.strip() or not entry.provider.strip():
        raise Invalid("provider and model are required")
    shown: dict[str, Any] = attrs.asdict(entry)
    if any(not 0 <= value <= _BIGINT for value in shown.values() if isinstance(value, int)):
        raise Invalid("token counts must be whole numbers from 0 on")
    return shown


routes: list[BaseRoute] = [
    Route("/api/daemon/runtimes/{runtime_id}/usage", report_usage, methods=["POST"]),
    Route("/api/daemon/tasks/{task_id}/cancel-ack", acknowledge_cancel, methods=["POST"]),
]
