"""Endpoints for agents (spec 06 §10, 02 §10.4 and §8.2).

An agent's stored secrets go in and never come out: environment values are write-only, the gateway
token is masked, and the MCP configuration is shown only to people who may manage the agent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.dispatch import enqueue, finish
from server.dispatch.events import agent_whose
from server.errors import Conflict, Forbidden, Invalid, NotFound
from server.rights import Thing
from server.store import agents, runs
from server.store.agents import StoredAgent
from server.store.queries import Connection
from server.web import auth
from server.web.answers import answer
from server.web.auth import Membership
from server.web.fields import Fields
from server.web.unit import event, fields, path_id, query, read, write
from shared import codec
from shared.wire.event import Event
from shared.wire.runtime import Runtime
from shared.wire.task import Task
from shared.wire.team import Agent

LONGEST_NAME: Final = 255
LONGEST_DESCRIPTION: Final = 255
MOST_TASKS: Final = 1000
DEFAULT_TASKS: Final = 6
MOST_ARGS: Final = 256
MOST_ENV: Final = 256

MODES: Final = ("private", "public_to")
VISIBILITIES: Final = ("private", "workspace")
STATUSES: Final = ("idle", "working", "blocked", "error", "offline")

_LEVELS: Final = {
    "claude": ("low", "medium", "high", "xhigh", "max"),
    "codex": ("none", "minimal", "low", "medium", "high", "xhigh"),
    "codebuddy": ("low", "medium", "high", "xhigh"),
}
_FREE_LEVEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_FOREIGN_MODELS: Final = {
    "claude": re.compile(r"(?i)^(gpt|o[1-9]|codex|gemini|grok|kimi|qwen|deepseek)"),
    "codex": re.compile(r"(?i)^(claude|sonnet|opus|haiku|gemini|grok|kimi|qwen|deepseek)"),
}
"""Models that clearly belong to another family: they do not follow an agent to this provider."""

_Told = tuple[Agent, Sequence[Consequence]]


async def list_agents(request: Request) -> Response:
    """GET /api/agents: those the caller may use."""
    caller = await auth.workspace(request)
    unit = partial(
        agents.list_agents,
        workspace_id=caller.workspace_id,
        viewer=caller.caller,
        include_archived=query(request).flag("include_archived"),
    )
    return answer(await read(request, unit))


async def get_agent(request: Request) -> Response:
    """GET /api/agents/{id}."""
    caller = await auth.workspace(request)
    unit = partial(usable_agent, caller=caller, agent_id=path_id(request, "id", "agent id"))
    return answer(await read(request, unit))


async def create_agent(request: Request) -> Response:
    """POST /api/agents: a new one, owned by the caller."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    runtime_id = sent.id("runtime_id")
    values = {
        "name": _name(sent),
        "description": _description(sent),
        "instructions": sent.text("instructions"),
        "avatar_url": sent.optional_text("avatar_url"),
        "runtime_config": agents.restore_gateway(sent.object("runtime_config"), {}),
        "custom_env": environment_of(sent),
        "custom_args": sent.texts("custom_args", most=MOST_ARGS),
        "mcp_config": sent.value("mcp_config"),
        "model": sent.text("model"),
        "thinking_level": sent.text("thinking_level"),
        "visibility": visibility_of(sent) or "private",
        "max_concurrent_tasks": _most_tasks(sent),
    }
    _refuse(sent)
    if runtime_id is None:
        raise Invalid("runtime_id is required")
    owner_id = caller.caller.user_id
    if not caller.may("agent.share", Thing(people=(owner_id,))):
        values["visibility"] = "private"  # an agent's are its owner's, whatever was asked for
    viewer = caller.caller

    async def unit(conn: Connection) -> _Told:
        runtime = await _usable_runtime(conn, caller, runtime_id)
        _check_level(runtime.provider, str(values["thinking_level"]))
        made = await agents.create_agent(
            conn,
            workspace_id=caller.workspace_id,
            owner_id=owner_id,
            runtime=runtime,
            values=values,
            viewer=viewer,
        )
        if made is None:
            raise _name_taken(str(values["name"]))
        return made, (agent_event(caller, "agent:created", made),)

    return answer(await write(request, unit), 201)


async def update_agent(request: Request) -> Response:
    """PUT /api/agents/{id}: what was sent."""
    caller = await auth.workspace(request)
    agent_id = path_id(request, "id", "agent id")
    sent = await fields(request)
    if sent.sent("custom_env"):
        raise Invalid("custom_env cannot be changed here; use the agent's env endpoint")
    changes = _changes(sent)
    runtime_id = sent.id("runtime_id")

    async def unit(conn: Connection) -> _Told:
        if runtime_id is not None:  # machines are locked before their agents
            await agents.hold_runtime(conn, caller.workspace_id, runtime_id)
        before = await managed_agent(conn, caller, agent_id)
        written = dict(changes)
        if "runtime_config" in written:
            written["runtime_config"] = agents.restore_gateway(
                written["runtime_config"], before.runtime_config
            )
        provider, place = before.provider, before.runtime
        if runtime_id is not None and runtime_id != before.shown.runtime_id:
            runtime = await _usable_runtime(conn, caller, runtime_id)
            provider = runtime.provider
            place = agents.runtime_thing(runtime.visibility, runtime.owner_id)
            written |= {"runtime_id": runtime.id, "runtime_mode": runtime.runtime_mode}
            if "model" not in written and _is_foreign(provider, before.shown.model):
                written["model"] = ""
        if any(key in written and written[key] != was for key, was in _what_runs(before).items()):
            check_configure(caller, place)
        _check_level(provider, written.get("thinking_level", before.shown.thinking_level))
        changed = await agents.update_agent(conn, agent_id, written, caller.caller)
        if changed is None:
            raise _name_taken(str(written.get("name", before.shown.name)))
        told: list[Consequence] = [agent_event(caller, "agent:status", changed)]
        if {"runtime_id", "max_concurrent_tasks"} & set(written):
            told += await enqueue.wake(conn, agent_id)  # what waits may have a place now
        return changed, told

    return answer(await write(request, unit))


async def archive_agent(request: Request) -> Response:
    """POST /api/agents/{id}/archive: no more runs; those under way are cancelled."""
    caller = await auth.workspace(request)
    agent_id = path_id(request, "id", "agent id")

    async def unit(conn: Connection) -> _Told:
        await finish.hold_agent(conn, agent_id)
        await managed_agent(conn, caller, agent_id)
        archived = await agents.archive_agent(conn, agent_id, caller.actor.user_id, caller.caller)
        if archived is None:
            raise Conflict("agent is already archived")
        cancelled = await finish.cancel_agent(conn, agent_id)
        return archived, (*cancelled, agent_event(caller, "agent:archived", archived))

    return answer(await write(request, unit))


async def restore_agent(request: Request) -> Response:
    """POST /api/agents/{id}/restore."""
    caller = await auth.workspace(request)
    agent_id = path_id(request, "id", "agent id")

    async def unit(conn: Connection) -> _Told:
        await managed_agent(conn, caller, agent_id)
        restored = await agents.restore_agent(conn, agent_id, caller.caller)
        if restored is None:
            raise Conflict("agent is not archived")
        return restored, (agent_event(caller, "agent:restored", restored),)

    return answer(await write(request, unit))


async def cancel_tasks(request: Request) -> Response:
    """POST /api/agents/{id}/cancel-tasks: cancel all it has to do."""
    caller = await auth.workspace(request)
    agent_id = path_id(request, "id", "agent id")

    async def unit(conn: Connection) -> tuple[int, Sequence[Consequence]]:
        await finish.hold_agent(conn, agent_id)
        await managed_agent(conn, caller, agent_id)
        told = await finish.cancel_agent(conn, agent_id)
        cancelled = sum(isinstance(c, Event) and c.type == "task:cancelled" for c in told)
        return cancelled, told

    return answer({"cancelled": await write(request, unit)})


async def list_agent_tasks(request: Request) -> Response:
    """GET /api/agents/{id}/tasks: its runs, newest first."""
    caller = await auth.workspace(request)
    agent_id = path_id(request, "id", "agent id")

    async def unit(conn: Connection) -> list[Task]:
        await usable_agent(conn, caller, agent_id)
        return await runs.agent_tasks(conn, agent_id, _chats_of(caller))

    return answer(await read(request, unit))


async def task_snapshot(request: Request) -> Response:
    """GET /api/agent-task-snapshot: what is going on, and how each agent's last run ended."""
    caller = await auth.workspace(request)
    unit = partial(
        runs.task_snapshot,
        workspace_id=caller.workspace_id,
        gate=caller.caller.gate,
        chats_of=_chats_of(caller),
    )
    return answer(await read(request, unit))


def _chats_of(caller: Membership) -> str | None:
    """Whose chats' runs the caller may see: their own, and an agent nobody's."""
    own = Thing(kind="chat", people=(caller.actor.user_id,))
    return caller.actor.user_id if caller.may("run.see", own) else None


# --- rules ----------------------------------------------------------------------------------------


async def usable_agent(conn: Connection, caller: Membership, agent_id: str) -> Agent:
    found = await agents.get_agent(conn, caller.workspace_id, agent_id, caller.caller)
    if found is None:
        raise NotFound("agent not found")
    agent, thing = found
    caller.check(thing, "agent.use")
    return agent


async def managed_agent(conn: Connection, caller: Membership, agent_id: str) -> StoredAgent:
    found = await agents.lock_agent(conn, caller.workspace_id, agent_id)
    if found is None:
        raise NotFound("agent not found")
    caller.check(agents.agent_thing(found.shown.visibility, found.shown.owner_id))
    return found


def _what_runs(agent: StoredAgent) -> dict[str, Any]:
    """What makes an agent's program run other code on its machine, as it is stored."""
    return {
        "custom_args": agent.shown.custom_args,
        "mcp_config": agent.mcp_config,
        "runtime_config": agent.runtime_config,
    }


def check_configure(caller: Membership, runtime: Thing) -> None:
    """Raise Forbidden unless the caller may say what runs on the runtime's machine."""
    if not caller.may("runtime.configure", runtime):
        raise Forbidden(
            "this agent runs on somebody else's private machine: only the machine's owner sets"
            " arguments, MCP servers, runtime configuration and environment of what runs there"
        )


async def _usable_runtime(conn: Connection, caller: Membership, runtime_id: str) -> Runtime:
    runtime = await agents.hold_runtime(conn, caller.workspace_id, runtime_id)
    if runtime is None:
        raise Invalid("runtime_id does not name a runtime of this workspace")
    caller.check(await runtime_thing(conn, caller, runtime), "runtime.use")
    return runtime


async def runtime_thing(conn: Connection, caller: Membership, runtime: Runtime) -> Thing:
    """A runtime as the table of rights knows it: an agent's are the one it runs on, and its owner's."""
    known = caller.caller
    mine = known.is_agent and (
        (runtime.owner_id is not None and runtime.owner_id == known.user_id)
        or await conn.fetchval(agents.SQL.runs_on, known.agent_id, runtime.id) is not None
    )
    return agents.runtime_thing(runtime.visibility, runtime.owner_id, mine)


def _check_level(provider: str, level: str) -> None:
    if not level:
        return
    if provider == "opencode":
        known = _FREE_LEVEL.fullmatch(level) is not None
    else:
        known = level in _LEVELS.get(provider, ())
    if not known:
        raise Invalid(f"thinking_level {level!r} is not known to {provider}")


def _is_foreign(provider: str, model: str) -> bool:
    pattern = _FOREIGN_MODELS.get(provider)
    return pattern is not None and pattern.match(model) is not None


def _name_taken(name: str) -> Conflict:
    return Conflict(f"an agent named {name!r} already exists in this workspace")


def agent_event(caller: Membership, kind: str, agent: Agent, **payload: Any) -> Event:
    """Tell who may see an agent that it changed, or with a payload what; never how it works."""
    shown = {
        key: value for key, value in codec.unstructure(agent).items() if key not in _HOW_IT_WORKS
    }
    told = event(caller, kind, **(payload or {"agent": shown}))
    return attrs.evolve(told, **agent_whose(agent.visibility, agent.owner_id))


_HOW_IT_WORKS: Final = frozenset(
    {
        *("instructions", "runtime_config", "custom_args", "mcp_config", "mcp_config_redacted"),
        *("has_custom_env", "custom_env_key_count"),
    }
)


# --- bodies ---------------------------------------------------------------------------------------


def _name(sent: Fields) -> str:
    name = sent.required_text("name")
    if len(name) > LONGEST_NAME:
        raise Invalid(f"name must be at most {LONGEST_NAME} characters")
    return name


def _description(sent: Fields) -> str:
    description = sent.text("description")
    if len(description) > LONGEST_DESCRIPTION:
        raise Invalid(f"description must be at most {LONGEST_DESCRIPTION} characters")
    return description


def _most_tasks(sent: Fields) -> int:
    return sent.whole("max_concurrent_tasks", low=0, high=MOST_TASKS) or DEFAULT_TASKS


def environment_of(sent: Fields) -> dict[str, str]:
    """The environment values of a body, by name. Raises Invalid."""
    environment = sent.object("custom_env")
    if len(environment) > MOST_ENV:
        raise Invalid(f"custom_env may have at most {MOST_ENV} keys")
    for key, value in environment.items():
        if not key or "=" in key:
            raise Invalid("custom_env has an invalid name")
        if not isinstance(value, str):
            raise Invalid("invalid request body")
    return environment


def visibility_of(sent: Fields) -> str | None:
    """Who may set an agent to work, in either of the protocol's spellings; None: nothing said.

    The later one is `permission_mode` (`private`, `public_to`) with `invocation_targets`, which name
    the workspace here: some of its members alone cannot be named. Raises Invalid.
    """
    said = sent.one_of("visibility", VISIBILITIES, "private") if sent.given("visibility") else None
    targets = sent.value("invocation_targets")
    if targets is not None and not isinstance(targets, list):
        raise Invalid("invocation_targets must be a list")
    for target in targets or ():
        if not isinstance(target, dict) or target.get("target_type") != "workspace":
            raise Invalid(
                "invocation_targets is not supported but for"
                ' [{"target_type": "workspace"}]: an agent is its owner\'s or everybody\'s'
            )
    if not sent.given("permission_mode"):
        if targets and said != "workspace":
            raise Invalid('invocation_targets needs permission_mode "public_to"')
        return said
    mode = sent.one_of("permission_mode", MODES, "private")
    if mode == "public_to" and not targets:
        raise Invalid('permission_mode "public_to" needs invocation_targets')
    if mode == "private" and targets:
        raise Invalid('invocation_targets needs permission_mode "public_to"')
    meant = "private" if mode == "private" else "workspace"
    if said not in (None, meant):
        raise Invalid("visibility and permission_mode contradict each other")
    return meant


def _refuse(sent: Fields) -> None:
    """What later servers of the protocol take and this one cannot do is said, not dropped."""
    sent.refuse("service_tier", "set it in the agent program's own configuration or custom_args")
    sent.refuse("execution_mode", "agents run on their owners' machines", "local")
    sent.refuse("runtime_mode", "agents run on their owners' machines", "local")


def _changes(sent: Fields) -> dict[str, Any]:
    _refuse(sent)
    changes: dict[str, Any] = {}
    if sent.given("name"):
        changes["name"] = _name(sent)
    if sent.given("description"):
        changes["description"] = _description(sent)
    for key in ("instructions", "avatar_url", "model", "thinking_level"):
        if sent.given(key):
            changes[key] = sent.text(key)
    if sent.given("runtime_config"):
        changes["runtime_config"] = sent.object("runtime_config")
    if sent.given("custom_args"):
        changes["custom_args"] = sent.texts("custom_args", most=MOST_ARGS)
    if sent.sent("mcp_config"):
        changes["mcp_config"] = sent.value("mcp_config")
    if (visibility := visibility_of(sent)) is not None:
        changes["visibility"] = visibility
    if sent.given("status"):
        changes["status"] = sent.one_of("status", STATUSES, "idle")
    if sent.given("max_concurrent_tasks"):
        changes["max_concurrent_tasks"] = _most_tasks(sent)
    return changes


routes: list[BaseRoute] = [
    Route("/api/agents", list_agents, methods=["GET"]),
    Route("/api/agents", create_agent, methods=["POST"]),
    Route("/api/agents/{id}", get_agent, methods=["GET"]),
    Route("/api/agents/{id}", update_agent, methods=["PUT"]),
    Route("/api/agents/{id}/archive", archive_agent, methods=["POST"]),
    Route("/api/agents/{id}/restore", restore_agent, methods=["POST"]),
    Route("/api/agents/{id}/cancel-tasks", cancel_tasks, methods=["POST"]),
    Route("/api/agents/{id}/tasks", list_agent_tasks, methods=["GET"]),
    Route("/api/agent-task-snapshot", task_snapshot, methods=["GET"]),
]
