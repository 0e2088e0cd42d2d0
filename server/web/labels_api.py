"""Endpoints for labels, and for those of an issue (spec 06 §8). Any member may do all of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.errors import Conflict, Invalid, NotFound
from server.store import work
from server.store.conflicts import unless_taken
from server.store.queries import Connection, load
from server.store.wire_rows import wire
from server.web import auth
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.fields import Fields
from server.web.issue_changes import work_thing
from server.web.unit import event, fields, path_id, read, write
from shared.wire.teamwork import Label

SQL: Final = load("labels")

LONGEST_NAME: Final = 32
"""Bytes."""

_COLOR: Final = re.compile(r"#?([0-9a-fA-F]{6})")

_Told = Sequence[Consequence]


async def list_labels(request: Request) -> Response:
    """GET /api/labels: by name."""
    caller = await auth.workspace(request)
    rows = await read(request, lambda conn: conn.fetch(SQL.list_labels, caller.workspace_id))
    return answer({"labels": [wire(Label, row) for row in rows], "total": len(rows)})


async def get_label(request: Request) -> Response:
    """GET /api/labels/{id}."""
    caller = await auth.workspace(request)
    label_id = path_id(request, "id", "label id")
    return answer(await read(request, lambda conn: _known(conn, caller, label_id)))


async def create_label(request: Request) -> Response:
    """POST /api/labels."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    name, color = _name(sent), _color(sent)

    async def unit(conn: Connection) -> tuple[Label, _Told]:
        row = await conn.fetchrow(SQL.create_label, caller.workspace_id, name, color)
        if row is None:
            raise _taken(name)
        made = wire(Label, row)
        return made, (event(caller, "label:created", label=made),)

    return answer(await write(request, unit), 201)


async def update_label(request: Request) -> Response:
    """PUT /api/labels/{id}: what was sent."""
    caller = await auth.workspace(request)
    label_id = path_id(request, "id", "label id")
    sent = await fields(request)
    name = _name(sent) if sent.given("name") else None
    color = _color(sent) if sent.given("color") else None

    async def unit(conn: Connection) -> tuple[Label, _Told]:
        if await conn.fetchrow(SQL.get_label, caller.workspace_id, label_id) is None:
            raise NotFound("label not found")
        row = await unless_taken(
            conn.fetchrow(SQL.update_label, caller.workspace_id, label_id, name, color)
        )
        if row is None:
            raise _taken(name or "")
        changed = wire(Label, row)
        return changed, (event(caller, "label:updated", label=changed),)

    return answer(await write(request, unit))


async def delete_label(request: Request) -> Response:
    """DELETE /api/labels/{id}: also from every issue."""
    caller = await auth.workspace(request)
    label_id = path_id(request, "id", "label id")

    async def unit(conn: Connection) -> tuple[None, _Told]:
        if await conn.fetchval(SQL.delete_label, caller.workspace_id, label_id) is None:
            raise NotFound("label not found")
        return None, (event(caller, "label:deleted", label_id=label_id),)

    await write(request, unit)
    return nothing()


async def issue_labels(request: Request) -> Response:
    """GET /api/issues/{id}/labels."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> Any:
        issue_id = await _issue(conn, caller, request)
        return await conn.fetchval(SQL.labels_of, issue_id)

    return answer({"labels": await read(request, unit)})


async def attach_label(request: Request) -> Response:
    """POST /api/issues/{id}/labels: once or more often, it is the same."""
    caller = await auth.workspace(request)
    label_id = (await fields(request)).id("label_id")
    if label_id is None:
        raise Invalid("label_id is required")
    return await _relabel(request, caller, SQL.attach, label_id, must_exist=True)


async def detach_label(request: Request) -> Response:
    """DELETE /api/issues/{id}/labels/{labelId}."""
    caller = await auth.workspace(request)
    label_id = path_id(request, "label_id", "label id")
    return await _relabel(request, caller, SQL.detach, label_id, must_exist=False)


async def _relabel(
    request: Request, caller: Membership, statement: str, label_id: str, *, must_exist: bool
) -> Response:
    async def unit(conn: Connection) -> tuple[Any, _Told]:
        issue_id = await _issue(conn, caller, request, hold=True)
        if must_exist:
            await _known(conn, caller, label_id)
        await conn.execute(statement, issue_id, label_id)
        labels = await conn.fetchval(SQL.labels_of, issue_id)
        return labels, (event(caller, "issue_labels:changed", issue_id=issue_id, labels=labels),)

    return answer({"labels": await write(request, unit)})


async def _issue(
    conn: Connection, caller: Membership, request: Request, *, hold: bool = False
) -> str:
    look_up = work.hold_issue if hold else work.get_issue
    found = await look_up(conn, caller.workspace_id, request.path_params["id"])
    if found is None:
        raise NotFound("issue not found")
    if hold:
        caller.check(work_thing(caller, found))
    return found.id


async def _known(conn: Connection, caller: Membership, label_id: str) -> Label:
    row = await conn.fetchrow(SQL.get_label, caller.workspace_id, label_id)
    if row is None:
        raise NotFound("label not found")
    return wire(Label, row)


def _taken(name: str) -> Conflict:
    return Conflict(f"a label named {name!r} already exists in this workspace")


def _name(sent: Fields) -> str:
    name = sent.required_text("name")
    if len(name.encode()) > LONGEST_NAME:
        raise Invalid(f"name must be at most {LONGEST_NAME} bytes")
    return name


def _color(sent: Fields) -> str:
    found = _COLOR.fullmatch(sent.text("color").strip())
    if found is None:
        raise Invalid("color must be six hex digits, such as #3b82f6")
    return f"#{found[1].lower()}"


routes: list[BaseRoute] = [
    Route("/api/labels", list_labels, methods=["GET"]),
    Route("/api/labels", create_label, methods=["POST"]),
    Route("/api/labels/{id}", get_label, methods=["GET"]),
    Route("/api/labels/{id}", update_label, methods=["PUT"]),
    Route("/api/labels/{id}", delete_label, methods=["DELETE"]),
    Route("/api/issues/{id}/labels", issue_labels, methods=["GET"]),
    Route("/api/issues/{id}/labels", attach_label, methods=["POST"]),
    Route("/api/issues/{id}/labels/{label_id}", detach_label, methods=["DELETE"]),
]
