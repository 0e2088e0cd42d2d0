"""Endpoints for a person's inbox and what they want to hear of (spec 06 §16). Not for agents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.errors import Invalid, NotFound
from server.store.queries import Connection, Record, load
from server.web import auth
from server.web.answers import answer
from server.web.auth import Membership
from server.web.unit import fields, path_id, read, write
from shared.times import stamp
from shared.wire.event import Event

SQL: Final = load("inbox")

GROUPS: Final = (
    "assignments",
    "status_changes",
    "comments",
    "updates",
    "agent_activity",
    "system_notifications",
)

_KEYS: Final = (
    *("id", "workspace_id", "recipient_type", "recipient_id", "type", "severity", "issue_id"),
    *("title", "body", "read", "archived", "actor_type", "actor_id", "details", "issue_status"),
)

_Told = Sequence[Consequence]


async def list_items(request: Request) -> Response:
    """GET /api/inbox: what is not archived, newest first."""
    caller = await auth.workspace(request)
    rows = await read(request, lambda conn: conn.fetch(SQL.list_items, *_whose(caller)))
    return answer([_item(row) for row in rows])


async def count_unread(request: Request) -> Response:
    """GET /api/inbox/unread-count."""
    caller = await auth.workspace(request)
    count = await read(request, lambda conn: conn.fetchval(SQL.count_unread, *_whose(caller)))
    return answer({"count": count})


async def read_item(request: Request) -> Response:
    """POST /api/inbox/{id}/read."""
    caller = await auth.workspace(request)
    item_id = path_id(request, "id", "inbox item id")

    async def unit(conn: Connection) -> tuple[Record, _Told]:
        row = await conn.fetchrow(SQL.read_item, *_whose(caller), item_id)
        if row is None:
            raise NotFound("inbox item not found")
        return row, (_event(caller, "inbox:read", item_id=item_id),)

    return answer(_item(await write(request, unit)))


async def archive_item(request: Request) -> Response:
    """POST /api/inbox/{id}/archive: with all others of the same issue."""
    caller = await auth.workspace(request)
    item_id = path_id(request, "id", "inbox item id")

    async def unit(conn: Connection) -> tuple[Record, _Told]:
        rows = await conn.fetch(SQL.archive_item, *_whose(caller), item_id)
        row = next((row for row in rows if row["id"] == item_id), None)
        if row is None:
            raise NotFound("inbox item not found")
        told = _event(caller, "inbox:archived", item_id=item_id, issue_id=row["issue_id"])
        return row, (told,)

    return answer(_item(await write(request, unit)))


async def change_many(request: Request, which: str) -> Response:
    """POST /api/inbox/mark-all-read and /archive-…: how many it were."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> tuple[int, _Told]:
        if which == "unread":
            count = await conn.fetchval(SQL.read_all, *_whose(caller))
            kind = "inbox:batch-read"
        else:
            count = await conn.fetchval(SQL.archive_many, *_whose(caller), which)
            kind = "inbox:batch-archived"
        return count, (_event(caller, kind, count=count),)

    return answer({"count": await write(request, unit)})


async def get_preferences(request: Request) -> Response:
    """GET /api/notification-preferences."""
    caller = await auth.workspace(request)
    found = await read(request, lambda conn: conn.fetchval(SQL.get_preferences, *_whose(caller)))
    return answer({"workspace_id": caller.workspace_id, "preferences": found or {}})


async def set_preferences(request: Request) -> Response:
    """PUT /api/notification-preferences: `all` or `muted` by group."""
    caller = await auth.workspace(request)
    wanted = (await fields(request)).object("preferences")
    for group, value in wanted.items():
        if group not in GROUPS:
            raise Invalid(f"unknown group {group!r}: must be one of {', '.join(GROUPS)}")
        if value not in {"all", "muted"}:
            raise Invalid(f"{group} must be all or muted")

    async def unit(conn: Connection) -> tuple[Any, _Told]:
        return await conn.fetchval(SQL.set_preferences, *_whose(caller), wanted), ()

    stored = await write(request, unit)
    return answer({"workspace_id": caller.workspace_id, "preferences": stored})


def _whose(caller: Membership) -> tuple[str, str]:
    return caller.workspace_id, caller.actor.user_id


def _item(row: Record) -> dict[str, Any]:
    shown = {key: row[key] for key in _KEYS}
    return shown | {"created_at": stamp(row["created_at"])}


def _event(caller: Membership, kind: str, **payload: Any) -> Event:
    return Event(
        type=kind,
        payload=payload | {"recipient_id": caller.actor.user_id},
        workspace_id=caller.workspace_id,
        actor_type="member",
        actor_id=caller.actor.user_id,
        users=(caller.actor.user_id,),
    )


def _many(path: str, which: str) -> Route:
    return Route(f"/api/inbox/{path}", partial(change_many, which=which), methods=["POST"])


routes: list[BaseRoute] = [
    Route("/api/inbox", list_items, methods=["GET"]),
    Route("/api/inbox/unread-count", count_unread, methods=["GET"]),
    _many("mark-all-read", "unread"),
    _many("archive-all", "all"),
    _many("archive-all-read", "read"),
    _many("archive-completed", "completed"),
    Route("/api/inbox/{id}/read", read_item, methods=["POST"]),
    Route("/api/inbox/{id}/archive", archive_item, methods=["POST"]),
    Route("/api/notification-preferences", get_preferences, methods=["GET"]),
    Route("/api/notification-preferences", set_preferences, methods=["PUT"]),
]
