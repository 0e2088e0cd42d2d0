"""Endpoints for what a person keeps at hand: pinned issues and projects (spec 06 §22, 02 §1.4).

A pin is its owner's alone: nobody else sees it, or hears of it, and agents have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.errors import Invalid, NotFound
from server.store.queries import Connection, Record, load
from server.web import auth
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.unit import fields, path_id, read, write
from shared.times import stamp
from shared.wire.event import Event

SQL: Final = load("pins")

KINDS: Final = ("issue", "project")
MOST: Final = 500

_Told = Sequence[Consequence]
_SHOWN: Final = (
    *("id", "workspace_id", "user_id", "item_type", "item_id", "position"),
    *("title", "status", "identifier", "icon"),
)


async def list_pins(request: Request) -> Response:
    """GET /api/pins: in their order; what has been deleted is left out."""
    caller = await auth.workspace(request)
    rows = await read(request, lambda conn: conn.fetch(SQL.list_pins, *_whose(caller)))
    return answer([_pin(row) for row in rows])


async def create_pin(request: Request) -> Response:
    """POST /api/pins: at the end; once or more often, it is the same."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    kind, item_id = sent.text("item_type"), sent.id("item_id")
    if kind not in KINDS:
        raise Invalid(f"item_type must be one of {', '.join(KINDS)}")
    if item_id is None:
        raise Invalid("item_id is required")

    async def unit(conn: Connection) -> tuple[dict[str, Any], _Told]:
        done = await conn.execute(SQL.pin, *_whose(caller), kind, item_id)
        rows = await conn.fetch(SQL.list_pins, *_whose(caller))
        found = next((r for r in rows if r["item_type"] == kind and r["item_id"] == item_id), None)
        if found is None:
            raise NotFound(f"{kind} not found")
        shown = _pin(found)
        return shown, (_event(caller, "pin:created", pin=shown),) if done.endswith(" 1") else ()

    return answer(await write(request, unit), 201)


async def delete_pin(request: Request) -> Response:
    """DELETE /api/pins/{item_type}/{item_id}."""
    caller = await auth.workspace(request)
    kind, item_id = request.path_params["item_type"], path_id(request, "item_id", "item id")
    if kind not in KINDS:
        raise NotFound("pin not found")

    async def unit(conn: Connection) -> tuple[None, _Told]:
        if await conn.fetchval(SQL.unpin, *_whose(caller), kind, item_id) is None:
            raise NotFound("pin not found")
        return None, (_event(caller, "pin:deleted", item_type=kind, item_id=item_id),)

    await write(request, unit)
    return nothing()


async def reorder_pins(request: Request) -> Response:
    """PUT /api/pins/reorder: the pins named, in that order; ids of pins, not of items."""
    caller = await auth.workspace(request)
    ids = (await fields(request)).ids("pin_ids", most=MOST)

    async def unit(conn: Connection) -> tuple[list[Record], _Told]:
        await conn.execute(SQL.reorder, *_whose(caller), ids)
        return await conn.fetch(SQL.list_pins, *_whose(caller)), (_event(caller, "pin:reordered"),)

    return answer([_pin(row) for row in await write(request, unit)])


def _whose(caller: Membership) -> tuple[str, str]:
    return caller.workspace_id, caller.actor.user_id


def _pin(row: Record) -> dict[str, Any]:
    return {key: row[key] for key in _SHOWN} | {"created_at": stamp(row["created_at"])}


def _event(caller: Membership, kind: str, **payload: Any) -> Event:
    return Event(
        type=kind,
        payload=payload,
        workspace_id=caller.workspace_id,
        actor_type="member",
        actor_id=caller.actor.user_id,
        users=(caller.actor.user_id,),
    )


routes: list[BaseRoute] = [
    Route("/api/pins", list_pins, methods=["GET"]),
    Route("/api/pins", create_pin, methods=["POST"]),
    Route("/api/pins/reorder", reorder_pins, methods=["PUT"]),
    Route("/api/pins/{item_type}/{item_id}", delete_pin, methods=["DELETE"]),
]
