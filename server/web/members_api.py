"""Endpoints for members and invitations, and the end of a workspace (spec 06 §4, 02 §10.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence, TokensRevoked
from server.dispatch import finish
from server.errors import Conflict, Forbidden, Gone, Invalid, NotFound
from server.store.queries import Connection, Record, load
from server.store.wire_rows import wire
from server.web import auth
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.unit import event, fields, path_id, read, write
from shared.times import stamp
from shared.wire.event import Event
from shared.wire.team import Member

SQL: Final = load("members")

ROLES: Final = ("owner", "admin", "member")
INVITED: Final = ("admin", "member")
LONGEST_EMAIL: Final = 254

EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+")

_Told = Sequence[Consequence]


# --- members --------------------------------------------------------------------------------------


async def change_role(request: Request) -> Response:
    """PATCH /api/workspaces/{id}/members/{memberId}: only owners may touch owners."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    member_id = path_id(request, "member_id", "member id")
    sent = await fields(request)
    if not sent.text("role"):
        raise Invalid("role is required")
    role = sent.one_of("role", ROLES, "")

    async def unit(conn: Connection) -> tuple[Member, _Told]:
        members = await conn.fetch(SQL.lock_members, caller.workspace_id)
        target = _member(members, member_id)
        if "owner" in {role, target["role"]}:
            caller.check(right="member.manage owners")
        if target["role"] == "owner" and role != "owner":
            _keep_an_owner(members)
        await conn.execute(SQL.set_role, member_id, role)
        row = await conn.fetchrow(SQL.get_member, caller.workspace_id, member_id)
        assert row is not None
        changed = wire(Member, row)
        return changed, (event(caller, "member:updated", member=changed),)

    return answer(await write(request, unit))


async def remove_member(request: Request) -> Response:
    """DELETE /api/workspaces/{id}/members/{memberId}: with their machines."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    member_id = path_id(request, "member_id", "member id")

    async def unit(conn: Connection) -> tuple[None, _Told]:
        members = await conn.fetch(SQL.lock_members, caller.workspace_id)
        target = _member(members, member_id)
        if target["role"] == "owner":
            caller.check(right="member.manage owners")
            _keep_an_owner(members)
        return None, await _remove(conn, caller, target)

    await write(request, unit)
    return nothing()


async def leave(request: Request) -> Response:
    """POST /api/workspaces/{id}/leave: as being removed, by oneself."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])

    async def unit(conn: Connection) -> tuple[None, _Told]:
        members = await conn.fetch(SQL.lock_members, caller.workspace_id)
        mine = next((one for one in members if one["user_id"] == caller.actor.user_id), None)
        if mine is None:
            raise NotFound("member not found")
        if mine["role"] == "owner":
            _keep_an_owner(members)
        return None, await _remove(conn, caller, mine)

    await write(request, unit)
    return nothing()


async def _remove(conn: Connection, caller: Membership, target: Record) -> list[Consequence]:
    user_id = target["user_id"]
    rows = await conn.fetch(SQL.active_of_member, caller.workspace_id, user_id)
    told = await finish.cancel_many(conn, [row["id"] for row in rows])
    left = await conn.fetchrow(
        SQL.remove_member, caller.workspace_id, user_id, caller.actor.user_id
    )
    assert left is not None
    told += [event(caller, "agent:archived", agent={"id": agent_id}) for agent_id in left["agents"]]
    told.append(
        event(
            caller,
            "member:removed",
            member_id=target["id"],
            workspace_id=caller.workspace_id,
            user_id=user_id,
        )
    )
    told.append(event(caller, "daemon:register", action="delete"))
    if left["tokens"]:
        told.append(TokensRevoked(tuple(left["tokens"])))
    return told


def _member(members: Sequence[Record], member_id: str) -> Record:
    found = next((one for one in members if one["id"] == member_id), None)
    if found is None:
        raise NotFound("member not found")
    return found


def _keep_an_owner(members: Sequence[Record]) -> None:
    if sum(one["role"] == "owner" for one in members) == 1:
        raise Invalid("a workspace must keep at least one owner")


# --- invitations ----------------------------------------------------------------------------------


async def invite(request: Request) -> Response:
    """POST /api/workspaces/{id}/members: ask somebody by e-mail address."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    sent = await fields(request)
    email = sent.required_text("email").lower()
    if not EMAIL.fullmatch(email) or len(email) > LONGEST_EMAIL:
        raise Invalid("email must be an e-mail address")
    role = sent.one_of("role", INVITED, "member")

    async def unit(conn: Connection) -> tuple[dict[str, Any], _Told]:
        if await conn.fetchval(SQL.is_member_by_email, caller.workspace_id, email):
            raise Conflict("already a member of this workspace")
        await conn.execute(SQL.expire, caller.workspace_id)
        made = await conn.fetchval(
            SQL.invite, caller.workspace_id, caller.actor.user_id, email, role
        )
        if made is None:
            raise Conflict("already invited to this workspace")
        (row,) = await conn.fetch(SQL.list_invitations, caller.workspace_id, None, None, made)
        shown = _invitation(row)
        return shown, _to_invitee(caller, "created", row, invitation=shown)

    return answer(await write(request, unit), 201)


async def list_invitations(request: Request) -> Response:
    """GET /api/workspaces/{id}/invitations: pending ones."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    rows = await read(
        request,
        lambda conn: conn.fetch(SQL.list_invitations, caller.workspace_id, None, None, None),
    )
    return answer([_invitation(row) for row in rows])


async def withdraw(request: Request) -> Response:
    """DELETE /api/workspaces/{id}/invitations/{invId}."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    invitation_id = path_id(request, "invitation_id", "invitation id")

    async def unit(conn: Connection) -> tuple[None, _Told]:
        row = await conn.fetchrow(SQL.withdraw, caller.workspace_id, invitation_id)
        if row is None:
            raise NotFound("invitation not found")
        return None, _to_invitee(
            caller,
            "revoked",
            row,
            invitation_id=invitation_id,
            invitee_email=row["invitee_email"],
            invitee_user_id=row["invitee_user_id"],
        )

    await write(request, unit)
    return nothing()


async def my_invitations(request: Request) -> Response:
    """GET /api/invitations: those that wait for the caller."""
    actor = await auth.human(request)
    rows = await read(
        request,
        lambda conn: conn.fetch(SQL.list_invitations, None, actor.user_id, actor.email, None),
    )
    return answer([_invitation(row) for row in rows])


async def get_invitation(request: Request) -> Response:
    """GET /api/invitations/{id}: one of the caller's."""
    actor = await auth.human(request)
    invitation_id = path_id(request, "id", "invitation id")
    rows = await read(
        request,
        lambda conn: conn.fetch(
            SQL.list_invitations, None, actor.user_id, actor.email, invitation_id
        ),
    )
    if not rows:
        raise NotFound("invitation not found")
    return answer(_invitation(rows[0]))


async def accept(request: Request) -> Response:
    """POST /api/invitations/{id}/accept: become a member."""
    return answer(await join(request, await auth.human(request)))


async def join(request: Request, actor: auth.Actor) -> Member:
    """Make who is invited by the path's id a member. Raises NotFound, Forbidden, Invalid, Gone."""
    invitation_id = path_id(request, "id", "invitation id")

    async def unit(conn: Connection) -> tuple[Member, _Told]:
        row = await _mine(conn, actor, invitation_id)
        workspace_id = row["workspace_id"]
        if row["late"]:
            raise Gone("this invitation has expired; ask for another one")
        member_id = await conn.fetchval(SQL.join, workspace_id, actor.user_id, row["role"])
        if member_id is None:
            raise Conflict("already a member of this workspace")
        await conn.execute(SQL.answer_invitation, invitation_id, "accepted", actor.user_id)
        joined = await conn.fetchrow(SQL.get_member, workspace_id, member_id)
        assert joined is not None
        member = wire(Member, joined)
        caller = Membership(actor=actor, workspace_id=workspace_id, role=row["role"])
        told = (
            event(caller, "member:added", member=member),
            event(caller, "invitation:accepted", invitation_id=invitation_id, member=member),
        )
        return member, told

    return await write(request, unit)


async def decline(request: Request) -> Response:
    """POST /api/invitations/{id}/decline."""
    await refuse(request, await auth.human(request))
    return nothing()


async def refuse(request: Request, actor: auth.Actor) -> None:
    """Decline the invitation of the path's id. Raises NotFound, Forbidden, Invalid."""
    invitation_id = path_id(request, "id", "invitation id")

    async def unit(conn: Connection) -> tuple[None, _Told]:
        row = await _mine(conn, actor, invitation_id)
        await conn.execute(SQL.answer_invitation, invitation_id, "declined", actor.user_id)
        caller = Membership(actor=actor, workspace_id=row["workspace_id"], role="")
        told = event(
            caller,
            "invitation:declined",
            invitation_id=invitation_id,
            invitee_email=row["invitee_email"],
        )
        return None, (told,)

    await write(request, unit)


async def _mine(conn: Connection, actor: auth.Actor, invitation_id: str) -> Record:
    row = await conn.fetchrow(SQL.lock_invitation, invitation_id)
    if row is None:
        raise NotFound("invitation not found")
    theirs = row["invitee_email"].lower() != actor.email.lower()
    if theirs and row["invitee_user_id"] != actor.user_id:
        raise Forbidden("this invitation is for somebody else")
    if row["status"] != "pending":
        raise Invalid("this invitation is not pending")
    return row


def _invitation(row: Record) -> dict[str, Any]:
    shown = {
        key: row[key]
        for key in (
            *("id", "workspace_id", "inviter_id", "invitee_email", "invitee_user_id"),
            *("role", "status"),
        )
    }
    shown |= {key: stamp(row[key]) for key in ("created_at", "updated_at", "expires_at")}
    named = ("inviter_name", "inviter_email", "workspace_name")
    return shown | {key: row[key] for key in named if row[key]}


def _to_invitee(caller: Membership, what: str, row: Record, **payload: Any) -> list[Event]:
    """Told to the one who is invited, if they are known; nobody else needs to hear."""
    if row["invitee_user_id"] is None:
        return []
    return [
        Event(
            type=f"invitation:{what}",
            payload=payload,
            workspace_id=caller.workspace_id,
            actor_type="member",
            actor_id=caller.actor.user_id,
            users=(row["invitee_user_id"],),
        )
    ]


# --- the end of a workspace -----------------------------------------------------------------------


async def delete_workspace(request: Request) -> Response:
    """DELETE /api/workspaces/{id}: with everything in it."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])

    async def unit(conn: Connection) -> tuple[None, _Told]:
        workspace_id = caller.workspace_id
        rows = await conn.fetch(SQL.active_of_workspace, workspace_id)
        told = await finish.cancel_many(conn, [row["id"] for row in rows])
        # What others must not outlive goes first: agents hold machines, squads hold agents.
        for statement in (SQL.drop_tasks, SQL.drop_squads, SQL.drop_agents, SQL.drop_workspace):
            await conn.execute(statement, workspace_id)
        return None, (*told, event(caller, "workspace:deleted", workspace_id=workspace_id))

    await write(request, unit)
    return nothing()


# --- rules ----------------------------------------------------------------------------------------


_ONE: Final = "/api/workspaces/{id}"

routes: list[BaseRoute] = [
    Route(_ONE, delete_workspace, methods=["DELETE"]),
    Route(f"{_ONE}/members", invite, methods=["POST"]),
    Route(f"{_ONE}/members/{{member_id}}", change_role, methods=["PATCH"]),
    Route(f"{_ONE}/members/{{member_id}}", remove_member, methods=["DELETE"]),
    Route(f"{_ONE}/leave", leave, methods=["POST"]),
    Route(f"{_ONE}/invitations", list_invitations, methods=["GET"]),
    Route(f"{_ONE}/invitations/{{invitation_id}}", withdraw, methods=["DELETE"]),
    Route("/api/invitations", my_invitations, methods=["GET"]),
    Route("/api/invitations/{id}", get_invitation, methods=["GET"]),
    Route("/api/invitations/{id}/accept", accept, methods=["POST"]),
    Route("/api/invitations/{id}/decline", decline, methods=["POST"]),
]
