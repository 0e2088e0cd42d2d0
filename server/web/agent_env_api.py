"""An agent's environment values: the one place where they are read, each time on record (06 §10.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.store import agents
from server.store.queries import Connection
from server.web import auth
from server.web.agents_api import agent_event, check_configure, environment_of, managed_agent
from server.web.answers import answer
from server.web.auth import Membership
from server.web.unit import fields, path_id, write

KEEP: Final = "****"
"""Sent for a value that stays as it is stored."""

_Told = Sequence[Consequence]


async def get_env(request: Request) -> Response:
    """GET /api/agents/{id}/env: the values themselves, for owners and admins of the workspace."""
    caller = await auth.workspace(request)
    agent_id = path_id(request, "id", "agent id")

    async def unit(conn: Connection) -> tuple[dict[str, Any], _Told]:
        await managed_agent(conn, caller, agent_id)
        stored = await agents.environment(conn, agent_id)
        await _record(conn, caller, "agent_env_revealed", agent_id, {"keys": sorted(stored)})
        return {"agent_id": agent_id, "custom_env": stored}, ()

    return answer(await write(request, unit))


async def put_env(request: Request) -> Response:
    """PUT /api/agents/{id}/env: these values and no others; `****` keeps one that is stored.

    The answer has the values for who may read them, else `****` for each.
    """
    caller = await auth.workspace(request)
    agent_id = path_id(request, "id", "agent id")
    sent = environment_of(await fields(request))

    async def unit(conn: Connection) -> tuple[dict[str, Any], _Told]:
        agent = await managed_agent(conn, caller, agent_id)
        check_configure(caller, agent.runtime)
        stored = await agents.environment(conn, agent_id)
        wanted = {
            key: stored[key] if value == KEEP else value
            for key, value in sent.items()
            if value != KEEP or key in stored
        }
        await conn.execute(agents.SQL.set_environment, agent_id, wanted)
        await _record(conn, caller, "agent_env_updated", agent_id, _difference(stored, wanted))
        shown = await agents.lock_agent(conn, caller.workspace_id, agent_id)
        assert shown is not None
        told = agent_event(caller, "agent:status", shown.shown)
        if not caller.may("agent.read environment"):
            wanted = dict.fromkeys(wanted, KEEP)  # what was kept may be another's secret
        return {"agent_id": agent_id, "custom_env": wanted}, (told,)

    return answer(await write(request, unit))


def _difference(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    both = before.keys() & after.keys()
    return {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(key for key in both if before[key] != after[key]),
        "preserved": sorted(key for key in both if before[key] == after[key]),
    }


async def _record(
    conn: Connection, caller: Membership, action: str, agent_id: str, names: Mapping[str, Any]
) -> None:
    """Who did it, to which names; in the same transaction, so nothing happens off the record."""
    await conn.execute(
        agents.SQL.record_access,
        caller.workspace_id,
        caller.actor.user_id,
        action,
        {"agent_id": agent_id, **names},
    )


routes: list[BaseRoute] = [
    Route("/api/agents/{id}/env", get_env, methods=["GET"]),
    Route("/api/agents/{id}/env", put_env, methods=["PUT"]),
]
