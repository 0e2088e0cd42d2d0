"""Endpoints for runtimes: who sees them, who may use them, and removing one (spec 06 §17).

Runtimes are made by daemons that register; agents inside tasks may look but change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.dispatch import finish, machines
from server.errors import Conflict, Invalid, NotFound
from server.rights import Thing
from server.store import agents
from server.store.queries import Connection
from server.web import auth
from server.web.agents_api import agent_event
from server.web.answers import answer
from server.web.auth import Membership
from server.web.unit import event, fields, path_id, query, read, write
from shared.wire.event import Event
from shared.wire.runtime import Runtime

LONGEST_NAME: Final = 100
MOST_AGENTS: Final = 1000
VISIBILITIES: Final = ("private", "public")


async def list_runtimes(request: Request) -> Response:
    """GET /api/runtimes: the workspace's, or with `owner=me` the caller's."""
    caller = await auth.workspace(request)
    mine = query(request).text("owner") == "me"
    unit = partial(
        agents.list_runtimes,
        workspace_id=caller.workspace_id,
        owner_id=caller.actor.user_id if mine else None,
    )
    return answer(await read(request, unit))


async def update_runtime(request: Request) -> Response:
    """PATCH /api/runtimes/{id}: private or public, and what people call it."""
    caller = await auth.workspace(request)
    runtime_id = path_id(request, "id", "runtime_id")
    sent = await fields(request)
    changes: dict[str, Any] = {}
    if sent.given("visibility"):
        changes["visibility"] = sent.one_of("visibility", VISIBILITIES, "private")
    if sent.sent("custom_name"):
        changes["custom_name"] = sent.text("custom_name").strip() or None
        if len(changes["custom_name"] or "") > LONGEST_NAME:
            raise Invalid(f"custom_name must be at most {LONGEST_NAME} characters")
    if not changes:
        raise Invalid("visibility or custom_name is required")

    async def unit(conn: Connection) -> tuple[Runtime, Sequence[Consequence]]:
        runtime = await _managed(conn, caller, runtime_id)
        if changes.get("visibility") == "public":
            # or an admin could put an agent, which is a shell, on anybody's machine
            caller.check(Thing(people=(runtime.owner_id,)), "runtime.open")
        changed = await agents.change_runtime(conn, runtime_id, changes)
        return changed, (event(caller, "daemon:register", action="update"),)

    return answer(await write(request, unit))


async def delete_runtime(request: Request) -> Response:
    """DELETE /api/runtimes/{id}: refused while agents work on it."""
    caller = await auth.workspace(request)
    runtime_id = path_id(request, "id", "runtime_id")

    async def unit(conn: Connection) -> tuple[None, Sequence[Consequence]]:
        await _deletable(conn, caller, runtime_id)
        active = await agents.agents_on_runtime(conn, runtime_id)
        if active:
            raise Conflict(
                "this runtime has active agents; archive or move them first",
                code="runtime_has_active_agents",
                active_agents=active,
            )
        return None, await _delete(conn, caller, runtime_id)

    await write(request, unit)
    return answer({"status": "ok"})


async def archive_agents_and_delete(request: Request) -> Response:
    """POST /api/runtimes/{id}/archive-agents-and-delete: with the agents the caller has seen."""
    caller = await auth.workspace(request)
    runtime_id = path_id(request, "id", "runtime_id")
    expected = set((await fields(request)).ids("expected_active_agent_ids", most=MOST_AGENTS))

    async def unit(conn: Connection) -> tuple[dict[str, Any], Sequence[Consequence]]:
        await _deletable(conn, caller, runtime_id)
        active = await agents.agents_on_runtime(conn, runtime_id)
        if {agent.id for agent in active} != expected:
            raise Conflict(
                "the agents on this runtime have changed; look again",
                code="runtime_delete_plan_changed",
                active_agents=active,
            )
        archived = await agents.archive_on_runtime(conn, runtime_id, caller.actor.user_id)
        told: list[Consequence] = [
            agent_event(caller, "agent:archived", agent) for agent in archived
        ]
        told += await _delete(conn, caller, runtime_id)
        result = {
            "status": "ok",
            "agents_archived": len(archived),
            "tasks_cancelled": sum(
                isinstance(c, Event) and c.type == "task:cancelled" for c in told
            ),
        }
        return result, told

    return answer(await write(request, unit))


async def hand_over(request: Request) -> Response:
    """POST /api/runtimes/{id}/hand-over: the whole machine the runtime is on, to another member.

    `{"user_id" or "email", "include_agents"?, "include_directories"?}` → what moved and what did not
    (`machines.Moved`). Its owner may, and owners and admins of the workspace; but agents and
    directories go along only when their owner says so.
    """
    caller = await auth.workspace(request)
    runtime_id = path_id(request, "id", "runtime_id")
    sent = await fields(request)
    user_id, email = sent.id("user_id"), sent.text("email").strip() or None
    if (user_id is None) == (email is None):
        raise Invalid("user_id or email must say who gets the machine")
    with_agents, with_directories = sent.flag("include_agents"), sent.flag("include_directories")

    async def unit(conn: Connection) -> tuple[machines.Moved, Sequence[Consequence]]:
        runtime = await _seen(conn, caller, runtime_id)
        if runtime.daemon_id is None:
            raise Conflict("this runtime is on no machine")
        owner_id = await machines.owner_of(conn, caller.workspace_id, runtime.daemon_id)
        caller.check(Thing(people=(owner_id,)))
        if with_agents or with_directories:
            caller.check(Thing(people=(owner_id,)), "runtime.give along")
        heir = await conn.fetchrow(machines.SQL.new_owner, caller.workspace_id, user_id, email)
        if heir is None:
            raise Invalid("who gets the machine must be a member of this workspace")
        if heir["id"] == owner_id:
            raise Conflict(f"the machine belongs to {heir['name']} already")
        return await machines.move(
            conn,
            caller.workspace_id,
            runtime.daemon_id,
            before=owner_id,
            after=heir["id"],
            with_agents=with_agents,
            with_directories=with_directories,
        )

    return answer(await write(request, unit))


async def _deletable(conn: Connection, caller: Membership, runtime_id: str) -> None:
    runtime = await _managed(conn, caller, runtime_id)
    if runtime.profile_id is not None:
        raise Conflict(
            "this runtime belongs to a runtime profile; delete the profile instead",
            code="runtime_profile_instance_delete_unsupported",
        )


async def _delete(conn: Connection, caller: Membership, runtime_id: str) -> list[Consequence]:
    """Delete a locked runtime. Its tasks go with it: those under way are cancelled first."""
    led = await conn.fetch(agents.SQL.squads_led_from, runtime_id)
    if led:
        names = ", ".join(row["name"] for row in led)
        raise Conflict(
            f"agents of this runtime lead squads; give them another leader first: {names}",
            code="runtime_leads_squads",
        )
    paused = await conn.fetch(agents.SQL.pause_autopilots, runtime_id)
    told = await finish.cancel_many(conn, await agents.active_on_runtime(conn, runtime_id))
    await agents.delete_runtime(conn, runtime_id)
    told += [event(caller, "autopilot:updated", autopilot_id=row["id"]) for row in paused]
    told.append(event(caller, "daemon:register", action="delete"))
    return told


async def _managed(conn: Connection, caller: Membership, runtime_id: str) -> Runtime:
    runtime = await agents.lock_runtime(conn, caller.workspace_id, runtime_id)
    if runtime is None:
        raise NotFound("runtime not found")
    caller.check(Thing(people=(runtime.owner_id,)))
    return runtime


async def _seen(conn: Connection, caller: Membership, runtime_id: str) -> Runtime:
    runtime = await agents.hold_runtime(conn, caller.workspace_id, runtime_id)
    if runtime is None:
        raise NotFound("runtime not found")
    return runtime


routes: list[BaseRoute] = [
    Route("/api/runtimes", list_runtimes, methods=["GET"]),
    Route("/api/runtimes/{id}/hand-over", hand_over, methods=["POST"]),
    Route("/api/runtimes/{id}", update_runtime, methods=["PATCH"]),
    Route("/api/runtimes/{id}", delete_runtime, methods=["DELETE"]),
    Route(
        "/api/runtimes/{id}/archive-agents-and-delete", archive_agents_and_delete, methods=["POST"]
    ),
]
