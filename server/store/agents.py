"""Agents and runtimes as the user API reads and writes them.

Functions of the asyncio island, as in `people`. Secrets stay here: environment values are never
put into a value, `gateway.token` is masked, and `mcp_config` is shown only to the viewer who may
see it (spec 02 §8.2, 06 §10.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import asyncpg
import attrs

from server.rights import Caller, Thing, may
from server.store.queries import Connection, Record, load
from shared.times import stamp, try_stamp
from shared.wire.runtime import Runtime
from shared.wire.team import Agent, SkillSummary

SQL = load("agents")

MASK: Final = "***"
"""What stands in an answer where a stored secret is."""

_LAUNCH_HEADERS: Final = {"claude": "claude (stream-json)", "codex": "codex app-server"}


@attrs.frozen(kw_only=True)
class StoredAgent:
    """An agent locked for a change, with what the rules need and no answer may contain."""

    shown: Agent
    runtime_config: dict[str, Any] = attrs.field(repr=False)
    mcp_config: Any = attrs.field(repr=False)
    provider: str
    runtime: Thing
    """The runtime it is bound to, as the table of rights knows it for people."""


async def list_agents(
    conn: Connection,
    workspace_id: str,
    viewer: Caller | None = None,
    *,
    include_archived: bool = False,
) -> list[Agent]:
    """Return the agents the viewer may use, oldest first (at most 1000).

    Without a viewer: all of them, redacted.
    """
    gate = None if viewer is None else viewer.gate
    rows = await conn.fetch(SQL.list_agents, workspace_id, include_archived, gate)
    return [_agent(row, viewer) for row in rows]


async def get_agent(
    conn: Connection, workspace_id: str, agent_id: str, viewer: Caller
) -> tuple[Agent, Thing] | None:
    """Return one agent, private or not, and what decides whether the viewer may see it."""
    row = await conn.fetchrow(SQL.get_agent, workspace_id, agent_id, viewer.gate)
    if row is None:
        return None
    return _agent(row, viewer), agent_thing(row["visibility"], row["owner_id"], row["open"])


def agent_thing(visibility: str, owner_id: str | None, mine: bool = False) -> Thing:
    """An agent as the table of rights knows it; `mine`: an agent finds it in its circle."""
    kind = "private" if visibility == "private" else ""
    return Thing(kind=kind, people=(owner_id,), mine=mine)


def runtime_thing(visibility: str, owner_id: str | None, mine: bool = False) -> Thing:
    """A runtime as the table of rights knows it; `mine`: an agent runs on it, or its owner owns it."""
    kind = "private" if visibility == "private" else ""
    return Thing(kind=kind, people=(owner_id,), mine=mine)


async def lock_agent(conn: Connection, workspace_id: str, agent_id: str) -> StoredAgent | None:
    """Return one agent for a change; it cannot change otherwise until the transaction ends."""
    row = await conn.fetchrow(SQL.lock_agent, workspace_id, agent_id)
    if row is None:
        return None
    return StoredAgent(
        shown=_agent(row, None),
        runtime_config=row["runtime_config"],
        mcp_config=row["mcp_config"],
        provider=row["provider"],
        runtime=runtime_thing(row["runtime_visibility"], row["runtime_owner"]),
    )


async def create_agent(
    conn: Connection,
    *,
    workspace_id: str,
    owner_id: str,
    runtime: Runtime,
    values: Mapping[str, Any],
    viewer: Caller | None,
) -> Agent | None:
    """Make an agent on the runtime; None when the workspace has one of that name.

    `values`: name, description, instructions, avatar_url, runtime_config, custom_env,
    custom_args, mcp_config, model, thinking_level, visibility, max_concurrent_tasks.
    """
    row = await conn.fetchrow(
        SQL.create_agent,
        workspace_id,
        values["name"],
        values["description"],
        values["instructions"],
        values["avatar_url"],
        runtime.runtime_mode,
        runtime.id,
        values["runtime_config"],
        values["custom_env"],
        values["custom_args"],
        values["mcp_config"],
        values["model"],
        values["thinking_level"],
        values["visibility"],
        runtime.status == "online",
        values["max_concurrent_tasks"],
        owner_id,
    )
    return None if row is None else _agent(row, viewer)


async def update_agent(
    conn: Connection, agent_id: str, changes: Mapping[str, Any], viewer: Caller | None
) -> Agent | None:
    """Write the given columns and no others; None when another agent has that name."""
    try:
        row = await conn.fetchrow(SQL.update_agent, agent_id, dict(changes))
    except asyncpg.UniqueViolationError:
        return None
    return None if row is None else _agent(row, viewer)


async def environment(conn: Connection, agent_id: str) -> dict[str, str]:
    """Return an agent's environment values: secrets, for nobody but who may read them."""
    stored: dict[str, str] = await conn.fetchval(SQL.environment, agent_id)
    return stored


async def archive_agent(
    conn: Connection, agent_id: str, user_id: str, viewer: Caller | None
) -> Agent | None:
    """Archive an agent; None when it already is."""
    row = await conn.fetchrow(SQL.archive_agent, agent_id, user_id)
    return None if row is None else _agent(row, viewer)


async def restore_agent(conn: Connection, agent_id: str, viewer: Caller | None) -> Agent | None:
    """Bring an archived agent back; None when it is not archived."""
    row = await conn.fetchrow(SQL.restore_agent, agent_id)
    return None if row is None else _agent(row, viewer)


async def list_runtimes(
    conn: Connection, workspace_id: str, *, owner_id: str | None = None
) -> list[Runtime]:
    """Return the workspace's runtimes, oldest first (at most 1000)."""
    rows = await conn.fetch(SQL.list_runtimes, workspace_id, owner_id)
    return [runtime_of(row) for row in rows]


async def hold_runtime(conn: Connection, workspace_id: str, runtime_id: str) -> Runtime | None:
    """Return one runtime; it cannot be deleted until the transaction ends."""
    row = await conn.fetchrow(SQL.hold_runtime, workspace_id, runtime_id)
    return None if row is None else runtime_of(row)


async def lock_runtime(conn: Connection, workspace_id: str, runtime_id: str) -> Runtime | None:
    """Return one runtime; no agent is bound to it until the transaction ends."""
    row = await conn.fetchrow(SQL.lock_runtime, workspace_id, runtime_id)
    return None if row is None else runtime_of(row)


async def change_runtime(conn: Connection, runtime_id: str, changes: Mapping[str, Any]) -> Runtime:
    """Write `visibility` and `custom_name` as far as they are given."""
    row = await conn.fetchrow(SQL.change_runtime, runtime_id, dict(changes))
    assert row is not None
    return runtime_of(row)


async def agents_on_runtime(conn: Connection, runtime_id: str) -> list[Agent]:
    """Return the agents that still work on a runtime, redacted (at most 1000)."""
    return [_agent(row, None) for row in await conn.fetch(SQL.agents_on_runtime, runtime_id)]


async def archive_on_runtime(conn: Connection, runtime_id: str, user_id: str) -> list[Agent]:
    """Archive the agents that still work on a locked runtime; return them, redacted."""
    rows = await conn.fetch(SQL.archive_on_runtime, runtime_id, user_id)
    return [_agent(row, None) for row in rows]


async def active_on_runtime(conn: Connection, runtime_id: str) -> list[str]:
    """Return the ids of the active tasks that would be deleted with the runtime."""
    return [row["id"] for row in await conn.fetch(SQL.active_on_runtime, runtime_id)]


async def delete_runtime(conn: Connection, runtime_id: str) -> None:
    """Delete a locked runtime without active agents, and the archived agents bound to it.

    With them go archived squads that they led; active ones must not be there.
    """
    await conn.execute(SQL.delete_archived_squads, runtime_id)
    await conn.execute(SQL.delete_archived_agents, runtime_id)
    await conn.execute(SQL.delete_runtime, runtime_id)


def runtime_of(row: Record) -> Runtime:
    """Turn a row of agent_runtime into what every endpoint shows."""
    return Runtime(
        id=row["id"],
        workspace_id=row["workspace_id"],
        daemon_id=row["daemon_id"],
        name=row["name"],
        custom_name=row["custom_name"],
        runtime_mode=row["runtime_mode"],
        provider=row["provider"],
        launch_header=_LAUNCH_HEADERS.get(row["provider"], ""),
        status=row["status"],
        device_info=row["device_info"],
        metadata=row["metadata"],
        owner_id=row["owner_id"],
        visibility=row["visibility"],
        profile_id=row["profile_id"],
        last_seen_at=try_stamp(row["last_seen_at"]),
        created_at=stamp(row["created_at"]),
        updated_at=stamp(row["updated_at"]),
    )


def mask_gateway(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runtime configuration with the gateway's token hidden."""
    gateway = config.get("gateway")
    if isinstance(gateway, Mapping) and isinstance(gateway.get("token"), str):
        return {**config, "gateway": {**gateway, "token": MASK}}
    return dict(config)


def restore_gateway(sent: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Put the stored token where the mask was sent back; without one the key is dropped."""
    gateway = sent.get("gateway")
    if not isinstance(gateway, Mapping) or gateway.get("token") != MASK:
        return dict(sent)
    kept = {key: value for key, value in gateway.items() if key != "token"}
    before = stored.get("gateway")
    if isinstance(before, Mapping) and isinstance(before.get("token"), str):
        kept["token"] = before["token"]
    return {**sent, "gateway": kept}


def _agent(row: Record, viewer: Caller | None) -> Agent:
    owner_id = row["owner_id"]
    owned = agent_thing(row["visibility"], owner_id)
    shown = viewer is not None and may(viewer, "agent.read mcp", owned) and not row["redact_always"]
    environment: dict[str, str] = row["custom_env"]
    return Agent(
        id=row["id"],
        workspace_id=row["workspace_id"],
        runtime_id=row["runtime_id"],
        name=row["name"],
        description=row["description"],
        instructions=row["instructions"],
        avatar_url=row["avatar_url"],
        runtime_mode=row["runtime_mode"],
        runtime_config=mask_gateway(row["runtime_config"]),
        custom_args=row["custom_args"],
        mcp_config=row["mcp_config"] if shown else None,
        mcp_config_redacted=not shown,
        has_custom_env=bool(environment),
        custom_env_key_count=len(environment),
        visibility=row["visibility"],
        permission_mode="private" if row["visibility"] == "private" else "public_to",
        invocation_targets=(
            [] if row["visibility"] == "private" else [{"target_type": "workspace"}]
        ),
        status=row["status"],
        max_concurrent_tasks=row["max_concurrent_tasks"],
        model=row["model"] or "",
        thinking_level=row["thinking_level"] or "",
        owner_id=owner_id,
        skills=[SkillSummary(**skill) for skill in row["skills"]],
        created_at=stamp(row["created_at"]),
        updated_at=stamp(row["updated_at"]),
        archived_at=try_stamp(row["archived_at"]),
        archived_by=row["archived_by"],
        placed_under=row["placed_under"] or "",
    )
