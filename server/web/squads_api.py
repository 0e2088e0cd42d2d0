"""Endpoints for squads (spec 06 §11): a leader agent with members, assignable like an agent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.errors import Conflict, Invalid, NotFound
from server.store import squads, work
from server.store.queries import Connection
from server.store.wire_rows import wire
from server.web import auth
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.fields import Fields
from server.web.unit import event, fields, path_id, read, write
from shared.wire.teamwork import Squad, SquadMember

LONGEST_NAME: Final = 255
MEMBER_TYPES: Final = ("agent", "member")

_Told = Sequence[Consequence]


async def list_squads(request: Request) -> Response:
    """GET /api/squads."""
    caller = await auth.workspace(request)
    return answer(
        await read(request, partial(squads.list_squads, workspace_id=caller.workspace_id))
    )


async def get_squad(request: Request) -> Response:
    """GET /api/squads/{id}."""
    caller = await auth.workspace(request)
    squad_id = path_id(request, "id", "squad id")
    return answer(await read(request, partial(_known, caller=caller, squad_id=squad_id)))


async def create_squad(request: Request) -> Response:
    """POST /api/squads: the leader becomes its first member."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    leader_id = sent.id("leader_id")
    if leader_id is None:
        raise Invalid("leader_id is required")
    values = {
        "name": _name(sent),
        "description": sent.text("description"),
        "instructions": sent.text("instructions"),
        "avatar_url": sent.optional_text("avatar_url"),
        "leader_id": leader_id,
    }

    async def unit(conn: Connection) -> tuple[Squad, _Told]:
        await _check(conn, caller, values)
        made = await squads.create_squad(conn, caller.workspace_id, caller.actor.user_id, values)
        return made, (event(caller, "squad:created", squad=made),)

    return answer(await write(request, unit), 201)


async def update_squad(request: Request) -> Response:
    """PUT /api/squads/{id}: what was sent; a new leader becomes a member."""
    caller = await auth.workspace(request)
    squad_id = path_id(request, "id", "squad id")
    sent = await fields(request)
    changes: dict[str, Any] = {}
    if sent.given("name"):
        changes["name"] = _name(sent)
    for key in ("description", "instructions", "avatar_url"):
        if sent.given(key):
            changes[key] = sent.text(key)
    if (leader_id := sent.id("leader_id")) is not None:
        changes["leader_id"] = leader_id

    async def unit(conn: Connection) -> tuple[Squad, _Told]:
        await _locked(conn, caller, squad_id)
        await _check(conn, caller, changes, squad_id)
        await conn.execute(squads.SQL.update_squad, squad_id, changes)
        changed = await _known(conn, caller, squad_id)
        return changed, (event(caller, "squad:updated", squad=changed),)

    return answer(await write(request, unit))


async def delete_squad(request: Request) -> Response:
    """DELETE /api/squads/{id}: archive it; what it had to do goes to its leader."""
    caller = await auth.workspace(request)
    squad_id = path_id(request, "id", "squad id")

    async def unit(conn: Connection) -> tuple[None, _Told]:
        squad = await _locked(conn, caller, squad_id)
        if squad.archived_at is not None:
            raise Invalid("squad is already archived")
        rows = await conn.fetch(squads.SQL.archive_squad, squad_id, caller.actor.user_id)
        handed = [row["id"] for row in rows]
        told: list[Consequence] = [
            event(
                caller,
                "issue:updated",
                issue=issue,
                assignee_changed=True,
                prev_assignee_type="squad",
                prev_assignee_id=squad_id,
            )
            for issue in await work.lock_issues(conn, caller.workspace_id, handed)
        ]
        gone = event(caller, "squad:deleted", squad_id=squad_id, leader_id=squad.leader_id)
        return None, (*told, gone)

    await write(request, unit)
    return nothing()


async def list_members(request: Request) -> Response:
    """GET /api/squads/{id}/members."""
    caller = await auth.workspace(request)
    squad_id = path_id(request, "id", "squad id")

    async def unit(conn: Connection) -> list[SquadMember]:
        await _known(conn, caller, squad_id)
        return await squads.list_members(conn, squad_id)

    return answer(await read(request, unit))


async def member_status(request: Request) -> Response:
    """GET /api/squads/{id}/members/status."""
    caller = await auth.workspace(request)
    squad_id = path_id(request, "id", "squad id")

    async def unit(conn: Connection) -> list[dict[str, Any]]:
        await _known(conn, caller, squad_id)
        return await squads.member_status(conn, squad_id)

    return answer({"members": await read(request, unit)})


async def add_member(request: Request) -> Response:
    """POST /api/squads/{id}/members."""
    caller = await auth.workspace(request)
    squad_id = path_id(request, "id", "squad id")
    sent = await fields(request)
    kind, member_id = _member(sent)
    role = sent.text("role")

    async def unit(conn: Connection) -> tuple[SquadMember, _Told]:
        await _locked(conn, caller, squad_id)
        if not await conn.fetchval(squads.SQL.member_exists, caller.workspace_id, kind, member_id):
            raise Invalid(f"member_id does not name {_called(kind)} of this workspace")
        row = await conn.fetchrow(squads.SQL.add_member, squad_id, kind, member_id, role)
        if row is None:
            raise Conflict("already a member of this squad")
        return wire(SquadMember, row), (event(caller, "squad:updated", squad_id=squad_id),)

    return answer(await write(request, unit), 201)


async def remove_member(request: Request) -> Response:
    """DELETE /api/squads/{id}/members: named in the body."""
    caller = await auth.workspace(request)
    squad_id = path_id(request, "id", "squad id")
    kind, member_id = _member(await fields(request))

    async def unit(conn: Connection) -> tuple[None, _Told]:
        squad = await _locked(conn, caller, squad_id)
        if (kind, member_id) == ("agent", squad.leader_id):
            raise Invalid("the leader cannot be removed; give the squad another leader first")
        gone = await conn.fetchval(squads.SQL.remove_member, squad_id, kind, member_id)
        if gone is None:
            raise NotFound("squad member not found")
        return None, (event(caller, "squad:updated", squad_id=squad_id),)

    await write(request, unit)
    return nothing()


async def set_role(request: Request) -> Response:
    """PATCH /api/squads/{id}/members/role."""
    caller = await auth.workspace(request)
    squad_id = path_id(request, "id", "squad id")
    sent = await fields(request)
    kind, member_id = _member(sent)
    role = sent.text("role")

    async def unit(conn: Connection) -> tuple[SquadMember, _Told]:
        await _locked(conn, caller, squad_id)
        row = await conn.fetchrow(squads.SQL.set_role, squad_id, kind, member_id, role)
        if row is None:
            raise NotFound("squad member not found")
        return wire(SquadMember, row), (event(caller, "squad:updated", squad_id=squad_id),)

    return answer(await write(request, unit))


# --- rules ----------------------------------------------------------------------------------------


async def _known(conn: Connection, caller: Membership, squad_id: str) -> Squad:
    found = await squads.get_squad(conn, caller.workspace_id, squad_id)
    if found is None:
        raise NotFound("squad not found")
    return found


async def _locked(conn: Connection, caller: Membership, squad_id: str) -> Squad:
    found = await squads.lock_squad(conn, caller.workspace_id, squad_id)
    if found is None:
        raise NotFound("squad not found")
    return found


async def _check(
    conn: Connection, caller: Membership, values: dict[str, Any], squad_id: str | None = None
) -> None:
    """The name is free and the leader is an agent that works here."""
    name, leader_id = values.get("name"), values.get("leader_id")
    if name is not None and await conn.fetchval(
        squads.SQL.name_taken, caller.workspace_id, name, squad_id
    ):
        raise Conflict(f"a squad named {name!r} already exists in this workspace")
    if leader_id is not None and not await conn.fetchval(
        squads.SQL.hold_agent, caller.workspace_id, leader_id
    ):
        raise Invalid("leader_id does not name an active agent of this workspace")


def _called(kind: str) -> str:
    return "an agent" if kind == "agent" else "a member"


def _name(sent: Fields) -> str:
    name = sent.required_text("name")
    if len(name) > LONGEST_NAME:
        raise Invalid(f"name must be at most {LONGEST_NAME} characters")
    return name


def _member(sent: Fields) -> tuple[str, str]:
    kind = sent.one_of("member_type", MEMBER_TYPES, "agent")
    member_id = sent.id("member_id")
    if member_id is None:
        raise Invalid("member_id is required")
    return kind, member_id


routes: list[BaseRoute] = [
    Route("/api/squads", list_squads, methods=["GET"]),
    Route("/api/squads", create_squad, methods=["POST"]),
    Route("/api/squads/{id}", get_squad, methods=["GET"]),
    Route("/api/squads/{id}", update_squad, methods=["PUT"]),
    Route("/api/squads/{id}", delete_squad, methods=["DELETE"]),
    Route("/api/squads/{id}/members", list_members, methods=["GET"]),
    Route("/api/squads/{id}/members", add_member, methods=["POST"]),
    Route("/api/squads/{id}/members", remove_member, methods=["DELETE"]),
    Route("/api/squads/{id}/members/role", set_role, methods=["PATCH"]),
    Route("/api/squads/{id}/members/status", member_status, methods=["GET"]),
]
