"""Endpoints for a workspace's own agent commands and its machines' tokens (spec 06 §17, 02 §10.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence, ProfilesChanged, TokensRevoked
from server.dispatch import finish, heartbeat
from server.errors import Conflict, Forbidden, Invalid, NotFound
from server.store.conflicts import unless_taken
from server.store.queries import Connection, Record, load
from server.store.wire_rows import wire
from server.web import auth
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.fields import Fields
from server.web.unit import event, fields, path_id, read, write
from shared.ids import DAEMON_TOKEN, hash_token, mint_token
from shared.times import stamp
from shared.wire.runtime import RuntimeProfile

SQL: Final = load("profiles")

FAMILIES: Final = (
    "claude",
    "codebuddy",
    "codex",
    "copilot",
    "opencode",
    "openclaw",
    "hermes",
    "pi",
    "cursor",
    "kimi",
    "kiro",
    "antigravity",
)
MOST_ARGS: Final = 64
LONGEST_LIFE: Final = 365
DEFAULT_LIFE: Final = 90
"""Days of a daemon's token."""

_ONE_WORD: Final = re.compile(r"[^\s\0]+")

_Told = Sequence[Consequence]


async def list_profiles(request: Request) -> Response:
    """GET /api/workspaces/{id}/runtime-profiles: also the disabled ones."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    rows = await read(
        request, lambda conn: conn.fetch(heartbeat.SQL.profiles, caller.workspace_id, True)
    )
    return answer({"runtime_profiles": [wire(RuntimeProfile, row) for row in rows]})


async def get_profile(request: Request) -> Response:
    """GET /api/workspaces/{id}/runtime-profiles/{pid}."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    profile_id = path_id(request, "profile_id", "runtime profile id")
    row = await read(
        request, lambda conn: conn.fetchrow(SQL.get_profile, caller.workspace_id, profile_id)
    )
    return answer(wire(RuntimeProfile, _found(row)))


async def create_profile(request: Request) -> Response:
    """POST /api/workspaces/{id}/runtime-profiles."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    sent = await fields(request)
    values = (
        sent.required_text("display_name"),
        sent.one_of("protocol_family", FAMILIES, ""),
        _command(sent),
        sent.optional_text("description"),
        _args(sent),
        sent.flag("enabled") if sent.given("enabled") else True,
    )

    async def unit(conn: Connection) -> tuple[RuntimeProfile, _Told]:
        row = await conn.fetchrow(
            SQL.create_profile, caller.workspace_id, *values, caller.actor.user_id
        )
        if row is None:
            raise _taken(values[0])
        made = wire(RuntimeProfile, row)
        return made, _changed(caller, made.id)

    return answer(await write(request, unit), 201)


async def update_profile(request: Request) -> Response:
    """PATCH or PUT /api/workspaces/{id}/runtime-profiles/{pid}: what was sent, not the family."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    profile_id = path_id(request, "profile_id", "runtime profile id")
    sent = await fields(request)
    changes: dict[str, Any] = {}
    if sent.given("display_name"):
        changes["display_name"] = sent.required_text("display_name")
    if sent.given("command_name"):
        changes["command_name"] = _command(sent)
    if sent.given("description"):
        changes["description"] = sent.text("description")
    if sent.given("fixed_args"):
        changes["fixed_args"] = _args(sent)
    if sent.given("enabled"):
        changes["enabled"] = sent.flag("enabled")

    async def unit(conn: Connection) -> tuple[RuntimeProfile, _Told]:
        before = _found(await conn.fetchrow(SQL.lock_profile, caller.workspace_id, profile_id))
        if sent.text("protocol_family") not in {"", before["protocol_family"]}:
            raise Invalid("protocol_family cannot be changed; make another profile")
        row = await unless_taken(conn.fetchrow(SQL.update_profile, profile_id, changes))
        if row is None:
            raise _taken(changes["display_name"])
        return wire(RuntimeProfile, row), _changed(caller, profile_id)

    return answer(await write(request, unit))


async def delete_profile(request: Request) -> Response:
    """DELETE /api/workspaces/{id}/runtime-profiles/{pid}: with its instances, when nobody works."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    profile_id = path_id(request, "profile_id", "runtime profile id")

    async def unit(conn: Connection) -> tuple[None, _Told]:
        _found(await conn.fetchrow(SQL.lock_profile, caller.workspace_id, profile_id))
        used = await conn.fetchrow(SQL.profile_in_use, profile_id)
        assert used is not None
        for kind in ("agents", "squads"):
            if used[kind]:
                names = ", ".join(used[kind])
                raise Conflict(f"{kind} still depend on this runtime profile: {names}")
        active = [row["id"] for row in await conn.fetch(SQL.active_on_instances, profile_id)]
        told = await finish.cancel_many(conn, active)
        await conn.execute(SQL.drop_agents, profile_id)
        await conn.execute(SQL.drop_instances_agents, profile_id)
        await conn.execute(SQL.drop_instances, profile_id)
        await conn.execute(SQL.drop_profile, profile_id)
        gone = event(caller, "daemon:register", deleted_runtime_profile_id=profile_id)
        return None, (*told, ProfilesChanged(caller.workspace_id, profile_id), gone)

    await write(request, unit)
    return nothing()


# --- tokens of machines (ours: the protocol knows them, but nothing in the reference makes one) ----


async def list_daemon_tokens(request: Request) -> Response:
    """GET /api/workspaces/{id}/daemon-tokens: those that are valid; never the token itself."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    rows = await read(request, lambda conn: conn.fetch(SQL.list_tokens, caller.workspace_id))
    return answer({"daemon_tokens": [_token(row) for row in rows]})


async def create_daemon_token(request: Request) -> Response:
    """POST /api/workspaces/{id}/daemon-tokens: one for a machine; its text is here and nowhere else."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    sent = await fields(request)
    daemon_id = sent.required_text("daemon_id")
    days = sent.whole("expires_in_days", low=1, high=LONGEST_LIFE) or DEFAULT_LIFE
    token = mint_token(DAEMON_TOKEN)

    async def unit(conn: Connection) -> tuple[dict[str, Any], _Told]:
        # The token acts as its maker, and a machine answers to nobody but its owner.
        owner = await conn.fetchrow(SQL.machine_owner, caller.workspace_id, daemon_id)
        if owner is not None and owner["owner_id"] != caller.actor.user_id:
            raise Forbidden(
                f"this machine belongs to {owner['name']}, who alone can make its tokens"
            )
        row = await conn.fetchrow(
            SQL.create_token,
            caller.workspace_id,
            daemon_id,
            sent.text("name"),
            hash_token(token),
            caller.actor.user_id,
            days,
        )
        assert row is not None
        return _token(row) | {"token": token}, ()

    return answer(await write(request, unit), 201)


async def delete_daemon_token(request: Request) -> Response:
    """DELETE /api/workspaces/{id}/daemon-tokens/{tid}: it is dead at once, everywhere."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    token_id = path_id(request, "token_id", "token id")

    async def unit(conn: Connection) -> tuple[None, _Told]:
        revoked = await conn.fetchval(SQL.delete_token, caller.workspace_id, token_id)
        return None, () if revoked is None else (TokensRevoked((revoked,)),)

    await write(request, unit)
    return nothing()


def _token(row: Record) -> dict[str, Any]:
    return dict(row) | {name: stamp(row[name]) for name in ("expires_at", "created_at")}


# --- rules ----------------------------------------------------------------------------------------


def _found(row: Record | None) -> Record:
    if row is None:
        raise NotFound("runtime profile not found")
    return row


def _changed(caller: Membership, profile_id: str) -> _Told:
    return (
        ProfilesChanged(caller.workspace_id, profile_id),
        event(caller, "daemon:register", runtime_profile_id=profile_id),
    )


def _taken(name: str) -> Conflict:
    return Conflict(f"a runtime profile named {name!r} already exists in this workspace")


def _command(sent: Fields) -> str:
    name = sent.required_text("command_name")
    if not _ONE_WORD.fullmatch(name):
        raise Invalid("command_name must be one word without blanks")
    return name


def _args(sent: Fields) -> list[str]:
    args = sent.texts("fixed_args", most=MOST_ARGS)
    if not all(arg.strip() for arg in args):
        raise Invalid("fixed_args must not contain blank arguments")
    return args


_PROFILES: Final = "/api/workspaces/{id}/runtime-profiles"
_TOKENS: Final = "/api/workspaces/{id}/daemon-tokens"

routes: list[BaseRoute] = [
    Route(_PROFILES, list_profiles, methods=["GET"]),
    Route(_PROFILES, create_profile, methods=["POST"]),
    Route(f"{_PROFILES}/{{profile_id}}", get_profile, methods=["GET"]),
    Route(f"{_PROFILES}/{{profile_id}}", update_profile, methods=["PUT", "PATCH"]),
    Route(f"{_PROFILES}/{{profile_id}}", delete_profile, methods=["DELETE"]),
    Route(_TOKENS, list_daemon_tokens, methods=["GET"]),
    Route(_TOKENS, create_daemon_token, methods=["POST"]),
    Route(f"{_TOKENS}/{{token_id}}", delete_daemon_token, methods=["DELETE"]),
]
