"""What people ask of a machine between tasks, and what it answers (spec 02 §9.2, 01 §3.16-§3.19).

A person creates a request and polls it; the daemon gets it with a heartbeat and reports a result.
All kinds live in one table and differ only by the rows of KINDS.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.dispatch import heartbeat
from server.errors import Conflict, Invalid, NotFound, Unavailable
from server.rights import Thing
from server.store import agents, skills
from server.store.queries import Connection, Record, load
from server.store.tasks import seen
from server.web import auth, body
from server.web.answers import answer
from server.web.auth import Membership
from server.web.daemon_calls import change, daemon_caller
from server.web.daemon_calls import path_id as daemon_id
from server.web.fields import Fields, json_of, text_of
from server.web.unit import fields, path_id, read, write
from shared.skillbundle import clash, is_inside, path_fault
from shared.times import fine_stamp
from shared.wire.event import Event
from shared.wire.runtime import Runtime

SQL: Final = load("requests")

LONGEST_OUTPUT: Final = 64 * 1024
LARGEST_SKILL: Final = 8 * 1024 * 1024

_Told = Sequence[Consequence]


@attrs.frozen(kw_only=True)
class Kind:
    """How a kind of request is treated. Times in seconds (02 §9.2)."""

    name: str
    path: str
    waits: float
    runs: float
    kept: float
    missing: str = "request not found"
    needs_online: bool = True
    alone: bool = False

    @property
    def limits(self) -> tuple[timedelta, timedelta, timedelta]:
        return (
            timedelta(seconds=self.waits),
            timedelta(seconds=self.runs),
            timedelta(seconds=self.kept),
        )


UPDATE: Final = Kind(
    name="update",
    path="update",
    waits=120,
    runs=150,
    kept=300,
    missing="update not found",
    needs_online=False,
    alone=True,
)
MODELS: Final = Kind(name="models", path="models", waits=30, runs=60, kept=120)
LOCAL_SKILLS: Final = Kind(name="local_skills", path="local-skills", waits=180, runs=60, kept=300)
IMPORT: Final = Kind(name="import", path="local-skills/import", waits=180, runs=60, kept=300)
PING: Final = Kind(name="ping", path="ping", waits=60, runs=120, kept=300)

KINDS: Final = (UPDATE, MODELS, LOCAL_SKILLS, IMPORT, PING)


# --- people ask -----------------------------------------------------------------------------------


async def create(request: Request, kind: Kind) -> Response:
    """POST /api/runtimes/{id}/…: ask."""
    caller = await auth.workspace(request)
    runtime_id = path_id(request, "id", "runtime_id")
    params = _params(kind, await _sent(request))
    waits, runs, kept = kind.limits

    async def unit(conn: Connection) -> tuple[Record, _Told]:
        runtime = await _asked_of(conn, caller, runtime_id)
        if kind.needs_online and runtime.status != "online":
            raise Unavailable("runtime is offline")
        row = await conn.fetchrow(
            SQL.create,
            secrets.token_hex(16),
            runtime_id,
            kind.name,
            params,
            caller.actor.user_id,
            waits,
            runs,
            kept,
            kind.alone,
        )
        if row is None:
            raise Conflict("an update is already in progress for this runtime")
        return row, ()

    return answer(_shown(kind, await write(request, unit)))


async def poll(request: Request, kind: Kind) -> Response:
    """GET /api/runtimes/{id}/…/{requestId}: how far it is."""
    caller = await auth.workspace(request)
    runtime_id = path_id(request, "id", "runtime_id")
    request_id = request.path_params["request_id"]

    async def unit(conn: Connection) -> Record:
        await _asked_of(conn, caller, runtime_id)
        row = await conn.fetchrow(
            SQL.look_up, request_id, runtime_id, kind.name, timedelta(seconds=kind.kept)
        )
        if row is None:
            raise NotFound(kind.missing)
        return row

    return answer(_shown(kind, await read(request, unit)))


async def _sent(request: Request) -> Fields:
    declared = request.headers.get("content-length")
    empty = declared in {None, "0"} and "transfer-encoding" not in request.headers
    return Fields({}) if empty else await fields(request)


async def _asked_of(conn: Connection, caller: Membership, runtime_id: str) -> Runtime:
    runtime = await agents.hold_runtime(conn, caller.workspace_id, runtime_id)
    if runtime is None:
        raise NotFound("runtime not found")
    kind = "private" if runtime.visibility == "private" else ""
    caller.check(Thing(kind=kind, people=(runtime.owner_id,)))
    return runtime


def _params(kind: Kind, sent: Fields) -> dict[str, Any]:
    if kind is UPDATE:
        return {"target_version": sent.required_text("target_version")}
    if kind is not IMPORT:
        return {}
    action = sent.text("action")
    if action not in {"", "overwrite"}:
        raise Invalid('action must be "" or "overwrite"')
    return {
        "skill_key": sent.required_text("skill_key"),
        "name": sent.text("name").strip(),
        "description": sent.optional_text("description"),
        "action": action,
        "target_skill_id": sent.id("target_skill_id"),
        "supports_conflict": sent.flag("supports_conflict"),
    }


def _shown(kind: Kind, row: Record) -> dict[str, Any]:
    """The request object; what is empty is left out."""
    shown: dict[str, Any] = {
        "id": row["id"],
        "runtime_id": row["runtime_id"],
        "status": row["shown"],
    }
    if kind is UPDATE:
        shown["target_version"] = row["params"]["target_version"]
    elif kind in {MODELS, LOCAL_SKILLS}:
        shown["supported"] = True
    elif kind is IMPORT:
        shown["skill_key"] = row["params"]["skill_key"]
    shown |= row["result"]
    if row["error"]:
        shown["error"] = row["error"]
    elif row["shown"] == "timeout":
        shown["error"] = "the machine did not answer in time"
    shown["created_at"] = fine_stamp(row["created_at"])
    shown["updated_at"] = fine_stamp(row["updated_at"])
    return shown


# --- machines answer ------------------------------------------------------------------------------


async def report(request: Request, kind: Kind) -> Response:
    """POST /api/daemon/runtimes/{id}/…/{requestId}/result. A late or repeated one changes nothing."""
    caller = await daemon_caller(request)
    runtime_id = daemon_id(request, "runtime_id")
    sent = Fields(await body.load(request))
    status = sent.text("status")
    if kind is UPDATE and status not in {"running", "completed", "failed"}:
        raise Invalid(f"invalid status: {status}")

    async def unit(conn: Connection) -> tuple[None, list[Consequence]]:
        runtime = await conn.fetchrow(heartbeat.SQL.see_runtime, runtime_id, *caller.args)
        workspace_id = seen(runtime, "runtime not found")["workspace_id"]
        row = await conn.fetchrow(
            SQL.lock, request.path_params["request_id"], runtime_id, kind.name
        )
        if row is None:
            raise NotFound(kind.missing)
        if not row["open"]:
            return None, []
        if status == "running":
            await conn.execute(SQL.acknowledge, row["id"])
            return None, []
        if status != "completed":
            error = sent.text("error")[:LONGEST_OUTPUT] or "the machine could not do it"
            await conn.execute(SQL.finish, row["id"], "failed", _output(kind, sent), error)
            return None, []
        if kind is IMPORT:
            return None, await _import(conn, row, workspace_id, sent)
        await conn.execute(SQL.finish, row["id"], "completed", _output(kind, sent), "")
        return None, []

    await change(request, unit)
    return answer({"status": "ok"})


def _output(kind: Kind, sent: Fields) -> dict[str, Any]:
    if kind in {MODELS, LOCAL_SKILLS}:
        name = "models" if kind is MODELS else "skills"
        listed = sent.value(name)
        if listed is not None and not isinstance(listed, list):
            raise Invalid("invalid request body")
        supported = sent.flag("supported") if sent.given("supported") else True
        return ({name: listed} if listed else {}) | {"supported": supported}
    found: dict[str, Any] = {}
    if text := sent.text("output")[:LONGEST_OUTPUT]:
        found["output"] = text
    if kind is PING and (took := sent.whole("duration_ms", low=0)) is not None:
        found["duration_ms"] = took
    return found


async def _import(
    conn: Connection, row: Record, workspace_id: str, sent: Fields
) -> list[Consequence]:
    """Make the skill or overwrite the one it was meant for; the outcome is the request's."""
    params = row["params"]
    try:
        values, files = _skill(sent, row["runtime_id"], params)
    except Invalid as error:
        await conn.execute(SQL.finish, row["id"], "failed", {}, error.text)
        return []
    same = await conn.fetchrow(SQL.skill_named, workspace_id, values["name"])
    may_overwrite = same is not None and same["created_by"] == row["created_by"]
    if same is None:
        if params["action"] == "overwrite":
            return await _failed(conn, row, "the skill to overwrite does not exist any more")
        made = await skills.create_skill(conn, workspace_id, row["created_by"], values, files)
        kind = "skill:created"
    elif params["action"] == "overwrite":
        if params["target_skill_id"] not in {None, same["id"]} or not may_overwrite:
            return await _failed(conn, row, "you cannot overwrite this skill")
        made = await skills.update_skill(conn, same["id"], values, files)
        kind = "skill:updated"
    elif params["supports_conflict"]:
        conflict = {
            "existing_skill_id": same["id"],
            "existing_created_by": same["created_by"],
            "can_overwrite": may_overwrite,
        }
        await conn.execute(SQL.finish, row["id"], "conflict", {"conflict": conflict}, "")
        return []
    else:
        return await _failed(conn, row, f"a skill named {values['name']!r} already exists")
    assert made is not None
    await conn.execute(SQL.finish, row["id"], "completed", {"skill": attrs.asdict(made)}, "")
    return [
        Event(
            type=kind,
            payload={"skill": attrs.asdict(made)},
            workspace_id=workspace_id,
            actor_type="member",
            actor_id=row["created_by"] or "",
        )
    ]


async def _failed(conn: Connection, row: Record, error: str) -> list[Consequence]:
    await conn.execute(SQL.finish, row["id"], "failed", {}, error)
    return []


def _skill(
    sent: Fields, runtime_id: str, params: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What a machine sent as a skill; files that lie elsewhere are left out.

    Raises Invalid for one that no other machine could write.
    """
    skill = Fields(sent.object("skill"))
    name = params["name"] or skill.text("name").strip()
    if not name:
        raise Invalid("the skill has no name")
    content = skill.text("content")
    given = skill.value("files") or []
    if not isinstance(given, list):
        raise Invalid("the skill's files are not a list")
    files = {
        item["path"]: text_of(item.get("content") or "")
        for item in given
        if isinstance(item, dict)
        and isinstance(item.get("path"), str)
        and isinstance(item.get("content") or "", str)
        and is_inside(item["path"])
        and item["path"].lower() != "skill.md"
    }
    faults = [*map(path_fault, files), clash(files)]
    if fault := next(filter(None, faults), ""):
        raise Invalid(fault)
    if len(content.encode()) + sum(len(text.encode()) for text in files.values()) > LARGEST_SKILL:
        raise Invalid(f"the skill is larger than {LARGEST_SKILL} bytes")
    origin = {
        "type": "runtime_local",
        "runtime_id": runtime_id,
        "provider": skill.text("provider"),
        "source_path": skill.text("source_path"),
    }
    values = {
        "name": name,
        "description": params["description"]
        if params["description"] is not None
        else skill.text("description"),
        "content": content,
        "config": json_of({"origin": origin}, "config"),
    }
    return values, files


def _routes() -> list[BaseRoute]:
    """Three routes per kind; the import's before the one that would take "import" for an id."""
    table: list[BaseRoute] = []
    for kind in sorted(KINDS, key=lambda kind: -len(kind.path)):
        here = f"/api/runtimes/{{id}}/{kind.path}"
        there = f"/api/daemon/runtimes/{{runtime_id}}/{kind.path}/{{request_id}}/result"
        table += [
            Route(here, partial(create, kind=kind), methods=["POST"]),
            Route(f"{here}/{{request_id}}", partial(poll, kind=kind), methods=["GET"]),
            Route(there, partial(report, kind=kind), methods=["POST"]),
        ]
    return table


routes = _routes()
