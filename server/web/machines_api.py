"""What a machine says of itself and asks of its workspaces (spec 01 §3.1-§3.4, §3.14).

`… not found` texts are protocol: daemons act on them, so they come only from a row that is really
absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.dispatch import heartbeat, register
from server.errors import Foreign, Invalid, NotFound
from server.store.queries import Connection, Record
from server.store.tasks import Caller, seen
from server.web import body
from server.web.answers import answer
from server.web.context import services
from server.web.daemon_calls import canonical, change, daemon_caller, offers, path_id, see_task
from shared.times import fine_stamp, fine_stamp_or_none_value, stamp
from shared.wire.runtime import (
    REPOSITORY_ACCESS,
    DeregisterRequest,
    HeartbeatRequest,
    ProfilesReply,
    RegisterRequest,
    ReposReply,
    RuntimeProfile,
)

_OK: Final = {"status": "ok"}


async def register_runtimes(request: Request) -> Response:
    caller = await daemon_caller(request)
    wanted = await body.decode(request, RegisterRequest)
    return answer(
        await change(
            request,
            partial(
                register.register,
                request=wanted,
                caller=caller,
                apart=offers(request, REPOSITORY_ACCESS),
            ),
        )
    )


async def deregister_runtimes(request: Request) -> Response:
    caller = await daemon_caller(request)
    wanted = (await body.decode(request, DeregisterRequest)).runtime_ids
    if not wanted:
        raise Invalid("runtime_ids is required")
    ids = [canonical(text, "invalid runtime_ids") for text in wanted]
    parts = services(request)
    told = await parts.database.write(
        partial(register.deregister, runtime_ids=ids, caller=caller), one_statement=True
    )
    parts.hub.announce(told)
    return answer(_OK)


async def beat(request: Request) -> Response:
    caller = await daemon_caller(request)
    sent = await body.decode(request, HeartbeatRequest)
    if not sent.runtime_id:
        raise Invalid("runtime_id is required")
    unit = partial(
        heartbeat.take_beat,
        runtime_id=canonical(sent.runtime_id, "invalid runtime_id"),
        caller=caller,
        supports_batch_import=sent.supports_batch_import,
    )
    return answer(await change(request, unit, one_statement=True))


async def workspace_repos(request: Request) -> Response:
    caller = await daemon_caller(request)
    workspace_id = path_id(request, "workspace_id")
    row = await services(request).database.read(partial(_known, workspace_id, caller))
    apart = offers(request, REPOSITORY_ACCESS)
    credentials = row["credentials"] or {}
    repos = register.repos_of(row["repos"], {} if apart else credentials)
    return answer(
        ReposReply(
            workspace_id=workspace_id,
            repos=repos,
            repos_version=register.repos_version(repos),
            settings=row["settings"],
            credentials=credentials if apart else {},
        )
    )


async def runtime_profiles(request: Request) -> Response:
    caller = await daemon_caller(request)
    workspace_id = path_id(request, "workspace_id")

    async def unit(conn: Connection) -> list[Record]:
        await _known(workspace_id, caller, conn)
        return await conn.fetch(heartbeat.SQL.profiles, workspace_id, False)

    rows = await services(request).database.read(unit)
    return answer(
        ProfilesReply(workspace_id=workspace_id, runtime_profiles=[_profile(row) for row in rows])
    )


async def _known(workspace_id: str, caller: Caller, conn: Connection) -> Record:
    """The workspace; whether there is one that the caller may not see is told to nobody."""
    try:
        return await register.see_workspace(conn, workspace_id, caller)
    except NotFound:
        raise Foreign from None


def _profile(row: Record) -> RuntimeProfile:
    return RuntimeProfile(
        id=row["id"],
        workspace_id=row["workspace_id"],
        display_name=row["display_name"],
        protocol_family=row["protocol_family"],
        command_name=row["command_name"],
        description=row["description"],
        fixed_args=row["fixed_args"],
        visibility=row["visibility"],
        created_by=row["created_by"],
        enabled=row["enabled"],
        created_at=stamp(row["created_at"]),
        updated_at=stamp(row["updated_at"]),
    )


async def task_gc_check(request: Request) -> Response:
    row = await see_task(request)
    ended = fine_stamp_or_none_value(row["completed_at"])
    return answer({"status": row["status"], "completed_at": ended})


async def issue_gc_check(request: Request) -> Response:
    row = await _see(request, "issue_id", heartbeat.SQL.see_issue, "issue not found")
    return answer({"status": row["status"], "updated_at": fine_stamp(row["updated_at"])})


async def chat_gc_check(request: Request) -> Response:
    row = await _see(request, "session_id", heartbeat.SQL.see_chat, "chat session not found")
    return answer({"status": row["status"], "updated_at": fine_stamp(row["updated_at"])})


async def run_gc_check(request: Request) -> Response:
    row = await _see(request, "run_id", heartbeat.SQL.see_run, "autopilot run not found")
    ended = fine_stamp_or_none_value(row["completed_at"])
    return answer({"status": row["status"], "completed_at": ended})


async def _see(request: Request, name: str, statement: str, missing: str) -> Record:
    caller = await daemon_caller(request)
    row_id = path_id(request, name)
    found = await services(request).database.read(
        lambda conn: conn.fetchrow(statement, row_id, *caller.args)
    )
    return seen(found, missing)


_TASK: Final = "/api/daemon/tasks/{task_id}"
_WORKSPACE: Final = "/api/daemon/workspaces/{workspace_id}"

routes: Sequence[BaseRoute] = [
    Route("/api/daemon/register", register_runtimes, methods=["POST"]),
    Route("/api/daemon/deregister", deregister_runtimes, methods=["POST"]),
    Route("/api/daemon/heartbeat", beat, methods=["POST"]),
    Route(f"{_WORKSPACE}/repos", workspace_repos),
    Route(f"{_WORKSPACE}/runtime-profiles", runtime_profiles),
    Route(f"{_TASK}/gc-check", task_gc_check),
    Route("/api/daemon/issues/{issue_id}/gc-check", issue_gc_check),
    Route("/api/daemon/chat-sessions/{session_id}/gc-check", chat_gc_check),
    Route("/api/daemon/autopilot-runs/{run_id}/gc-check", run_gc_check),
]
