"""How a daemon gets work and what it needs to prepare it (spec 01 §3.5-§3.8, §3.15)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.dispatch import claim as claiming
from server.dispatch import finish, heartbeat
from server.dispatch.lifecycle import LEASE, PREPARING
from server.errors import Conflict, Invalid, NotFound
from server.store import skills, tasks
from server.store.queries import Connection, Record
from server.store.tasks import SQL, Caller, seen, task_of
from server.web import body
from server.web.answers import answer
from server.web.context import services
from server.web.daemon_calls import change, daemon_caller, path_id
from shared.ids import is_id
from shared.skillbundle import WORKSPACE
from shared.wire.task import (
    ClaimReply,
    ResolveRequest,
    ResolveResponse,
    SkillBundle,
)

_LEASE: Final = timedelta(seconds=LEASE)
_BUNDLES: Final = "skill-bundles-v1"


async def claim(request: Request) -> Response:
    caller = await daemon_caller(request)
    runtime_id = path_id(request, "runtime_id")
    offered = request.headers.get("x-client-capabilities", "").split(",")
    by_ref = _BUNDLES in {name.strip() for name in offered}
    unit = partial(claiming.claim, runtime_id=runtime_id, caller=caller, by_ref=by_ref)
    try:
        task = await change(request, unit)
    except claiming.OwnerMissing:
        return answer({"error": "runtime owner required to mint task token"}, 500)
    return answer(ClaimReply(task=task))


async def pending(request: Request) -> Response:
    caller = await daemon_caller(request)
    runtime_id = path_id(request, "runtime_id")

    async def unit(conn: Connection) -> list[Record]:
        row = await conn.fetchrow(heartbeat.SQL.see_runtime, runtime_id, *caller.args)
        seen(row, "runtime not found")
        return await conn.fetch(SQL.pending_of_runtime, runtime_id)

    return answer([task_of(row) for row in await services(request).database.read(unit)])


async def recover_orphans(request: Request) -> Response:
    caller = await daemon_caller(request)
    runtime_id = path_id(request, "runtime_id")
    unit = partial(finish.recover_orphans, runtime_id=runtime_id, caller=caller)
    return answer(await change(request, unit))


async def prepare_lease(request: Request) -> Response:
    caller = await daemon_caller(request)
    runtime_id = path_id(request, "runtime_id")
    task_id = path_id(request, "task_id")
    args = (sorted(PREPARING), runtime_id, _LEASE)

    async def unit(conn: Connection) -> Record:
        row = await conn.fetchrow(SQL.extend_lease, task_id, *caller.args, *args)
        if row is None:
            await _see_runtime(conn, runtime_id, caller)
        return seen(row)

    row = await services(request).database.write(unit)
    if not row["changed"]:
        raise Invalid("extend task prepare lease: no rows in result set")
    return answer(task_of(row))


async def _see_runtime(conn: Connection, runtime_id: str, caller: Caller) -> None:
    """Raise NotFound or Foreign if the runtime is the reason why nothing was found."""
    row = await conn.fetchrow(heartbeat.SQL.see_runtime, runtime_id, *caller.args)
    seen(row, "runtime not found")


async def resolve_bundles(request: Request) -> Response:
    """The skills of a task that is being prepared, whole; changed ones as they are now."""
    caller = await daemon_caller(request)
    runtime_id = path_id(request, "runtime_id")
    task_id = path_id(request, "task_id")
    wanted = (await body.decode(request, ResolveRequest)).skills
    for ref in wanted:
        if not ref.id.strip() or not ref.source.strip() or not ref.hash.strip():
            raise Invalid("invalid skill ref")
    ids = [ref.id for ref in wanted if ref.source == WORKSPACE and is_id(ref.id)]

    async def unit(conn: Connection) -> dict[str, SkillBundle]:
        await _see_runtime(conn, runtime_id, caller)
        task = await tasks.see_task(conn, task_id, caller)
        if task["runtime_id"] != runtime_id:
            raise NotFound("task not found")
        if task["status"] not in PREPARING:
            raise Conflict("task is not preparing")
        return await skills.bundles(conn, task["agent_id"], ids)

    found = await services(request).database.read(unit)
    try:
        bundles = [found[ref.id] for ref in wanted]
    except KeyError:
        raise NotFound("skill bundle not found") from None
    return answer(ResolveResponse(bundles=bundles))


_RUNTIME: Final = "/api/daemon/runtimes/{runtime_id}"

routes: Sequence[BaseRoute] = [
    Route(f"{_RUNTIME}/tasks/claim", claim, methods=["POST"]),
    Route(f"{_RUNTIME}/tasks/pending", pending),
    Route(f"{_RUNTIME}/tasks/{{task_id}}/prepare-lease", prepare_lease, methods=["POST"]),
    Route(f"{_RUNTIME}/tasks/{{task_id}}/skill-bundles/resolve", resolve_bundles, methods=["POST"]),
    Route(f"{_RUNTIME}/recover-orphans", recover_orphans, methods=["POST"]),
]
