"""How a daemon gets work and what it needs to prepare it (spec 01 §3.5-§3.8, §3.15)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.dispatch import builtin_skills, finish, heartbeat
from server.dispatch import claim as claiming
from server.dispatch.lifecycle import LEASE, PREPARING
from server.errors import Conflict, DomainError, Invalid, NotFound
from server.store import skills, tasks
from server.store.queries import Connection, Record
from server.store.tasks import SQL, Caller, seen, task_of
from server.web import body
from server.web.answers import answer
from server.web.context import services
from server.web.daemon_calls import canonical, change, daemon_caller, offers, path_id
from shared.ids import is_id
from shared.skillbundle import BUILTIN, WORKSPACE
from shared.wire.runtime import REPOSITORY_ACCESS, SKILL_BUNDLES
from shared.wire.task import (
    ClaimedTask,
    ClaimManyReply,
    ClaimManyRequest,
    ClaimReply,
    ResolveRequest,
    ResolveResponse,
    RuntimeClaims,
    SkillBundle,
)

_LEASE: Final = timedelta(seconds=LEASE)
_OWNERLESS: Final = "runtime owner required to mint task token"

MOST_RUNTIMES: Final = 200
MOST_SLOTS: Final = 100


async def claim(request: Request) -> Response:
    caller = await daemon_caller(request)
    runtime_id = path_id(request, "runtime_id")
    unit = partial(
        claiming.claim,
        runtime_id=runtime_id,
        caller=caller,
        by_ref=offers(request, SKILL_BUNDLES),
        apart=offers(request, REPOSITORY_ACCESS),
    )
    try:
        task = await change(request, unit)
    except claiming.OwnerMissing:
        return answer({"error": _OWNERLESS}, 500)
    return answer(ClaimReply(task=task))


async def claim_many(request: Request) -> Response:
    """Ours: claims for many runtimes and many slots in one call.

    `{"runtimes": [{"runtime_id", "slots"?}], "slots"?}` → `{"claims": [{"runtime_id", "tasks",
    "error"?}]}` in the order asked; what is wrong with one runtime does not keep the others.
    """
    caller = await daemon_caller(request)
    sent = await body.decode(request, ClaimManyRequest)
    if not sent.runtimes or len(sent.runtimes) > MOST_RUNTIMES:
        raise Invalid(f"runtimes must name 1 to {MOST_RUNTIMES} runtimes")
    if not all(1 <= room <= MOST_SLOTS for room in (sent.slots, *(r.slots for r in sent.runtimes))):
        raise Invalid(f"slots must be between 1 and {MOST_SLOTS}")
    slots = {canonical(r.runtime_id, "invalid runtime_id"): r.slots for r in sent.runtimes}
    unit = partial(
        claiming.claim_many,
        slots=slots,
        total=sent.slots,
        caller=caller,
        by_ref=offers(request, SKILL_BUNDLES),
        apart=offers(request, REPOSITORY_ACCESS),
    )
    given = await change(request, unit)
    return answer(ClaimManyReply(claims=[_claimed(one, given[one]) for one in slots]))


def _claimed(runtime_id: str, given: list[ClaimedTask] | Exception) -> RuntimeClaims:
    if isinstance(given, list):
        return RuntimeClaims(runtime_id=runtime_id, tasks=given)
    if isinstance(given, DomainError):
        return RuntimeClaims(runtime_id=runtime_id, error=given.text)
    return RuntimeClaims(runtime_id=runtime_id, error=_OWNERLESS)


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
        if row is None or not row["allowed"]:
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
        return await skills.bundles(conn, task["agent_id"], ids) if ids else {}

    found = await services(request).database.read(unit)
    known = {WORKSPACE: found, BUILTIN: builtin_skills.BUNDLES}
    try:
        bundles = [known[ref.source][ref.id] for ref in wanted]
    except KeyError:
        raise NotFound("skill bundle not found") from None
    return answer(ResolveResponse(bundles=bundles))


_RUNTIME: Final = "/api/daemon/runtimes/{runtime_id}"

routes: Sequence[BaseRoute] = [
    Route("/api/daemon/claims", claim_many, methods=["POST"]),
    Route(f"{_RUNTIME}/tasks/claim", claim, methods=["POST"]),
    Route(f"{_RUNTIME}/tasks/pending", pending),
    Route(f"{_RUNTIME}/tasks/{{task_id}}/prepare-lease", prepare_lease, methods=["POST"]),
    Route(f"{_RUNTIME}/tasks/{{task_id}}/skill-bundles/resolve", resolve_bundles, methods=["POST"]),
    Route(f"{_RUNTIME}/recover-orphans", recover_orphans, methods=["POST"]),
]
