"""Endpoints that count: tokens and time, by day, hour, agent and machine (spec 02 §11.4, 06 §18).

All take `days` and `tz`; a day is one of the zone asked for, else of the caller's, else of UTC. N days
reach from the start of today N days back, so there are N + 1 of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.errors import NotFound
from server.store.queries import Connection, Record, load
from server.web import auth
from server.web.answers import answer
from server.web.auth import Membership
from server.web.unit import path_id, query, read
from shared import times
from shared.times import stamp

SQL: Final = load("usage")

MOST_DAYS: Final = 365


@attrs.frozen(kw_only=True)
class Span:
    """From when on is counted, and in whose days."""

    start: datetime
    zone: str


async def of_runtime(request: Request, statement: str, days: int) -> Response:
    """GET /api/runtimes/{id}/…: one machine's.

    By day also what its programs' own logs say (`source=local`), which is more than its runs.
    """
    caller = await auth.workspace(request)
    daily = statement == "runtime_daily"
    if daily and query(request).text("source") == "local":
        statement = "local_daily"
    runtime_id = path_id(request, "id", "runtime_id")

    async def unit(conn: Connection) -> list[Record]:
        if await conn.fetchval(SQL.runtime_exists, caller.workspace_id, runtime_id) is None:
            raise NotFound("runtime not found")
        span = await _span(conn, request, caller, days)
        args = (span.start, span.zone, runtime_id, *_gate(caller, statement))
        return await conn.fetch(SQL[statement], *args)

    rows = await read(request, unit)
    extra = {"runtime_id": runtime_id} if daily else {}
    return answer([extra | _shown(row) for row in rows])


async def of_workspace(request: Request, statement: str) -> Response:
    """GET /api/dashboard/…: the workspace's, or one project's."""
    caller = await auth.workspace(request)
    project_id = query(request).id("project_id")

    async def unit(conn: Connection) -> list[Record]:
        span = await _span(conn, request, caller, 30)
        gate = _gate(caller, statement)
        args = (span.start, span.zone, caller.workspace_id, project_id, *gate)
        return await conn.fetch(SQL[statement], *args)

    return answer([_shown(row) for row in await read(request, unit)])


async def of_agents(request: Request, statement: str) -> Response:
    """GET /api/agent-run-counts and /api/agent-activity-30d: of agents the caller may use."""
    caller = await auth.workspace(request)
    gate = caller.caller.gate

    async def unit(conn: Connection) -> list[Record]:
        span = await _span(conn, request, caller, 30)
        return await conn.fetch(SQL[statement], span.start, span.zone, caller.workspace_id, gate)

    return answer([_shown(row) for row in await read(request, unit)])


def _gate(caller: Membership, statement: str) -> tuple[str | None, ...]:
    """Who looks, for a statement that names agents; sums over all name none."""
    return (caller.caller.gate,) if statement in _BY_AGENT else ()


_BY_AGENT: Final = frozenset({"runtime_by_agent", "by_agent", "agent_time"})


def _shown(row: Record) -> dict[str, Any]:
    plain: Mapping[str, Any] = row
    return {
        key: stamp(value) if isinstance(value, datetime) else value for key, value in plain.items()
    }


async def _span(conn: Connection, request: Request, caller: Membership, days: int) -> Span:
    asked = query(request)
    wanted = asked.text("days") or ""
    count = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 5 else days
    if not 1 <= count <= MOST_DAYS:
        count = days
    zone = _zone(asked.text("tz"))
    if zone is None:
        zone = _zone(await conn.fetchval(SQL.zone_of, caller.actor.user_id)) or ZoneInfo("UTC")
    today = times.now().astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
    return Span(start=today - timedelta(days=count), zone=zone.key)


def _zone(name: str | None) -> ZoneInfo | None:
    """The zone of that name; None for nothing and for what is no zone."""
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _runtime(path: str, statement: str, days: int = 30) -> Route:
    end = partial(of_runtime, statement=statement, days=days)
    return Route(f"/api/runtimes/{{id}}/{path}", end, methods=["GET"])


def _dashboard(path: str, statement: str) -> Route:
    end = partial(of_workspace, statement=statement)
    return Route(f"/api/dashboard/{path}", end, methods=["GET"])


routes: list[BaseRoute] = [
    _runtime("usage", "runtime_daily", 90),
    _runtime("usage/by-agent", "runtime_by_agent"),
    _runtime("usage/by-hour", "runtime_by_hour"),
    _runtime("activity", "runtime_activity", MOST_DAYS),
    _dashboard("usage/daily", "daily"),
    _dashboard("usage/by-agent", "by_agent"),
    _dashboard("agent-runtime", "agent_time"),
    _dashboard("runtime/daily", "daily_time"),
    Route("/api/agent-run-counts", partial(of_agents, statement="run_counts"), methods=["GET"]),
    Route("/api/agent-activity-30d", partial(of_agents, statement="agent_days"), methods=["GET"]),
]
