"""What daemons call: registration, heartbeats, claims, reports and transcripts (spec 01 §3).

Each endpoint decodes, runs one unit and encodes. The caller's right to a row is checked by the
statement that reads the row: one look-up less, and never out of date. `… not found` texts are
protocol: daemons act on them, so they come only from a row that is really absent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.dispatch import claim as claiming
from server.dispatch import events, finish, heartbeat, register
from server.dispatch.lifecycle import LEASE, PARK, PREPARING, START, Change
from server.errors import Foreign, Invalid, NotFound
from server.store import tasks
from server.store.queries import Connection, Record
from server.store.tasks import SQL, Caller, message_of, seen, task_of
from server.web import auth, body
from server.web.answers import answer, nothing
from server.web.context import Services, services
from shared import codec
from shared.ids import InvalidId, canonical_id
from shared.redact import redact, redact_value
from shared.times import fine_stamp, fine_stamp_or_none_value, stamp
from shared.wire.event import Event
from shared.wire.runtime import (
    DeregisterRequest,
    HeartbeatRequest,
    ProfilesReply,
    RegisterRequest,
    ReposReply,
    RuntimeProfile,
)
from shared.wire.task import (
    RUNNING,
    ClaimReply,
    CompleteRequest,
    FailRequest,
    MessagesRequest,
    ModelUsage,
    ProgressRequest,
    SessionRequest,
    StatusReply,
    Task,
    TaskMessage,
    UsageRequest,
    WaitRequest,
)

_OK: Final = {"status": "ok"}
_LEASE: Final = timedelta(seconds=LEASE)
_INT: Final = 2**31 - 1
_BIGINT: Final = 2**63 - 1

_Unit = Callable[[Connection], Awaitable[tuple[Any, list[Consequence]]]]


# --- machines -------------------------------------------------------------------------------------


async def register_runtimes(request: Request) -> Response:
    caller = await _caller(request)
    wanted = await body.decode(request, RegisterRequest)
    return answer(await _change(request, partial(register.register, request=wanted, caller=caller)))


async def deregister_runtimes(request: Request) -> Response:
    caller = await _caller(request)
    wanted = (await body.decode(request, DeregisterRequest)).runtime_ids
    if not wanted:
        raise Invalid("runtime_ids is required")
    ids = [_canonical(text, "invalid runtime_ids") for text in wanted]
    parts = services(request)
    told = await parts.database.write(
        partial(register.deregister, runtime_ids=ids, caller=caller), one_statement=True
    )
    parts.hub.announce(told)
    return answer(_OK)


async def beat(request: Request) -> Response:
    caller = await _caller(request)
    sent = await body.decode(request, HeartbeatRequest)
    if not sent.runtime_id:
        raise Invalid("runtime_id is required")
    unit = partial(
        heartbeat.take_beat,
        runtime_id=_canonical(sent.runtime_id, "invalid runtime_id"),
        user_id=caller.user_id,
        workspace_id=caller.workspace_id,
        supports_batch_import=sent.supports_batch_import,
    )
    return answer(await _change(request, unit, one_statement=True))


async def workspace_repos(request: Request) -> Response:
    caller = await _caller(request)
    workspace_id = _path_id(request, "workspace_id")
    row = await services(request).database.read(
        partial(register.see_workspace, workspace_id=workspace_id, caller=caller)
    )
    repos = register.repos_of(row["repos"])
    return answer(
        ReposReply(
            workspace_id=workspace_id,
            repos=repos,
            repos_version=register.repos_version(repos),
            settings=row["settings"] or None,
        )
    )


async def runtime_profiles(request: Request) -> Response:
    caller = await _caller(request)
    workspace_id = _path_id(request, "workspace_id")

    async def unit(conn: Connection) -> list[Record]:
        try:
            await register.see_workspace(conn, workspace_id, caller)
        except NotFound:
            raise Foreign from None
        return await conn.fetch(heartbeat.SQL.profiles, workspace_id, False)

    rows = await services(request).database.read(unit)
    return answer(
        ProfilesReply(workspace_id=workspace_id, runtime_profiles=[_profile(row) for row in rows])
    )


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


# --- getting work ---------------------------------------------------------------------------------


async def claim(request: Request) -> Response:
    caller = await _caller(request)
    runtime_id = _path_id(request, "runtime_id")
    unit = partial(claiming.claim, runtime_id=runtime_id, caller=caller)
    try:
        task = await _change(request, unit)
    except claiming.OwnerMissing:
        return answer({"error": "runtime owner required to mint task token"}, 500)
    return answer(ClaimReply(task=task))


async def pending(request: Request) -> Response:
    caller = await _caller(request)
    runtime_id = _path_id(request, "runtime_id")

    async def unit(conn: Connection) -> list[Record]:
        row = await conn.fetchrow(heartbeat.SQL.see_runtime, runtime_id, *caller.args)
        seen(row, "runtime not found")
        return await conn.fetch(SQL.pending_of_runtime, runtime_id)

    return answer([task_of(row) for row in await services(request).database.read(unit)])


async def recover_orphans(request: Request) -> Response:
    caller = await _caller(request)
    runtime_id = _path_id(request, "runtime_id")
    unit = partial(finish.recover_orphans, runtime_id=runtime_id, caller=caller)
    return answer(await _change(request, unit))


async def prepare_lease(request: Request) -> Response:
    caller = await _caller(request)
    runtime_id = _path_id(request, "runtime_id")
    task_id = _path_id(request, "task_id")
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


# --- while a task runs ----------------------------------------------------------------------------


async def start(request: Request) -> Response:
    """Start; a start that is repeated because its answer was lost is answered with the row."""
    row, changed = await _transition(request, SQL.start, START, "task:running")
    if not changed and row["status"] != RUNNING:
        raise Invalid("start task: no rows in result set")
    return answer(task_of(row))


async def wait_local_directory(request: Request) -> Response:
    raw = await body.read(request)
    try:
        wanted = codec.decode(raw, WaitRequest) if raw.strip() else WaitRequest()
    except codec.DecodeError as error:
        raise Invalid("invalid request body") from error
    row, changed = await _transition(
        request,
        SQL.wait_local_directory,
        PARK,
        "task:waiting_local_directory",
        wanted.reason.strip(),
        _LEASE,
    )
    if not changed:
        raise Invalid("mark task waiting_local_directory: no rows in result set")
    return answer(task_of(row))


async def _transition(
    request: Request, statement: str, change: Change, kind: str, *args: Any
) -> tuple[Record, bool]:
    """Run a conditional change; return the task as it is then and whether it was changed now."""
    caller = await _caller(request)
    task_id = _path_id(request, "task_id")

    async def unit(conn: Connection) -> tuple[tuple[Record, bool], list[Consequence]]:
        row = seen(
            await conn.fetchrow(statement, task_id, *caller.args, sorted(change.sources), *args)
        )
        if row["changed"]:
            return (row, True), [events.task_event(kind, row)]
        if row["status"] in change.sources:
            # Somebody changed it while this statement waited: read what it has become.
            row = await tasks.see_task(conn, task_id, caller)
        return (row, False), []

    result: tuple[Record, bool] = await _change(request, unit)
    return result


async def progress(request: Request) -> Response:
    sent = await body.decode(request, ProgressRequest)
    caller = await _caller(request)
    task_id = _path_id(request, "task_id")
    payload: dict[str, Any] = {"task_id": task_id, "summary": redact(sent.summary)}
    payload |= {key: value for key in ("step", "total") if (value := getattr(sent, key))}
    kept = {key: value for key, value in payload.items() if key != "task_id"}

    async def unit(conn: Connection) -> tuple[None, list[Consequence]]:
        row = seen(await conn.fetchrow(SQL.set_progress, task_id, *caller.args, kept))
        event = Event(type="task:progress", payload=payload, workspace_id=row["workspace_id"])
        return None, [event]

    await _change(request, unit, one_statement=True)
    return answer(_OK)


async def add_messages(request: Request) -> Response:
    caller = await _caller(request)
    sent = (await body.decode(request, MessagesRequest)).messages
    if not sent:
        return answer(_OK)
    task_id = _path_id(request, "task_id")
    rows = [_message_row(message) for message in sent]

    async def unit(conn: Connection) -> tuple[None, list[Consequence]]:
        stored = await conn.fetch(SQL.add_messages, task_id, *caller.args, rows)
        seen(stored[0] if stored else None)
        return None, [
            events.task_message(row["workspace_id"], message_of(row))
            for row in stored
            if row["seq"] is not None
        ]

    await _change(request, unit, one_statement=True)
    return answer(_OK)


def _message_row(message: TaskMessage) -> dict[str, Any]:
    if not 0 <= message.seq <= _INT:
        raise Invalid("invalid request body")
    return {
        "seq": message.seq,
        "type": message.type,
        "tool": message.tool or None,
        "content": redact(message.content) if message.content else None,
        "input": redact_value(message.input) if message.input is not None else None,
        "output": redact(message.output) if message.output else None,
    }


async def list_messages(request: Request) -> Response:
    caller = await _caller(request)
    task_id = _path_id(request, "task_id")
    since = request.query_params.get("since", "") or "-1"
    try:
        after = int(since)
    except ValueError:
        raise Invalid("invalid since parameter") from None
    if abs(after) > _BIGINT:
        raise Invalid("invalid since parameter")
    stored = await services(request).database.read(
        lambda conn: conn.fetch(SQL.list_messages, task_id, *caller.args, after)
    )
    seen(stored[0] if stored else None)
    return answer([message_of(row) for row in stored if row["seq"] is not None])


async def pin_session(request: Request) -> Response:
    caller = await _caller(request)
    sent = await body.decode(request, SessionRequest)
    if not sent.session_id and not sent.work_dir:
        raise Invalid("session_id or work_dir required")
    task_id = _path_id(request, "task_id")
    args = (task_id, *caller.args, sent.session_id, sent.work_dir)
    row = await services(request).database.write(
        lambda conn: conn.fetchrow(SQL.pin_session, *args), one_statement=True
    )
    seen(row)
    return nothing()


async def add_usage(request: Request) -> Response:
    caller = await _caller(request)
    sent = (await body.decode(request, UsageRequest)).usage
    task_id = _path_id(request, "task_id")
    args = (task_id, *caller.args, [_usage_row(entry) for entry in sent])
    row = await services(request).database.write(
        lambda conn: conn.fetchrow(SQL.add_usage, *args), one_statement=True
    )
    seen(row)
    return answer(_OK)


def _usage_row(entry: ModelUsage) -> dict[str, Any]:
    row: dict[str, Any] = codec.unstructure(entry)
    return {
        key: min(max(value, 0), _BIGINT) if isinstance(value, int) else value
        for key, value in row.items()
    }


async def task_status(request: Request) -> Response:
    return answer(StatusReply(status=(await _see_task(request))["status"]))


# --- how a task ends ------------------------------------------------------------------------------


async def complete(request: Request) -> Response:
    """Complete. A task that does not run is answered with its row, so a report may be repeated.

    One that was not started yet keeps its token: in the reference this call revokes the token of an
    agent that may still be at work, and drops its output besides.
    """
    return await _finish(request, CompleteRequest, finish.complete)


async def fail(request: Request) -> Response:
    return await _finish(request, FailRequest, finish.fail)


async def _finish(
    request: Request,
    kind: type[Any],
    end: Callable[..., Awaitable[tuple[Task, list[Consequence]]]],
) -> Response:
    caller = await _caller(request)
    sent = await body.decode(request, kind)
    task_id = _path_id(request, "task_id")
    return answer(await _change(request, lambda conn: end(conn, task_id, sent, caller=caller)))


# --- garbage collection ---------------------------------------------------------------------------


async def task_gc_check(request: Request) -> Response:
    row = await _see_task(request)
    ended = fine_stamp_or_none_value(row["completed_at"])
    return answer({"status": row["status"], "completed_at": ended})


async def issue_gc_check(request: Request) -> Response:
    caller = await _caller(request)
    issue_id = _path_id(request, "issue_id")
    found = await services(request).database.read(
        lambda conn: conn.fetchrow(heartbeat.SQL.see_issue, issue_id, *caller.args)
    )
    row = seen(found, "issue not found")
    return answer({"status": row["status"], "updated_at": fine_stamp(row["updated_at"])})


# --- helpers --------------------------------------------------------------------------------------


async def _caller(request: Request) -> Caller:
    actor = await auth.daemon(request)
    if actor.token_kind == "mdt_":
        return Caller(user_id=None, workspace_id=actor.workspace_id)
    return Caller(user_id=actor.user_id or None, workspace_id=None)


async def _see_task(request: Request) -> Record:
    caller = await _caller(request)
    task_id = _path_id(request, "task_id")
    unit = partial(tasks.see_task, task_id=task_id, caller=caller)
    return await services(request).database.read(unit)


async def _change(request: Request, unit: _Unit, *, one_statement: bool = False) -> Any:
    """Run the unit, tell its consequences, return its value."""
    parts: Services = services(request)
    value, told = await parts.database.write(unit, one_statement=one_statement)
    parts.hub.announce(told)
    return value


def _path_id(request: Request, name: str) -> str:
    return _canonical(request.path_params[name], f"invalid {name}")


def _canonical(text: str, error: str) -> str:
    try:
        return canonical_id(text)
    except InvalidId:
        raise Invalid(error) from None


_TASK: Final = "/api/daemon/tasks/{task_id}"
_RUNTIME: Final = "/api/daemon/runtimes/{runtime_id}"
_WORKSPACE: Final = "/api/daemon/workspaces/{workspace_id}"

routes: Sequence[BaseRoute] = [
    Route("/api/daemon/register", register_runtimes, methods=["POST"]),
    Route("/api/daemon/deregister", deregister_runtimes, methods=["POST"]),
    Route("/api/daemon/heartbeat", beat, methods=["POST"]),
    Route(f"{_WORKSPACE}/repos", workspace_repos),
    Route(f"{_WORKSPACE}/runtime-profiles", runtime_profiles),
    Route(f"{_RUNTIME}/tasks/claim", claim, methods=["POST"]),
    Route(f"{_RUNTIME}/tasks/pending", pending),
    Route(f"{_RUNTIME}/tasks/{{task_id}}/prepare-lease", prepare_lease, methods=["POST"]),
    Route(f"{_RUNTIME}/recover-orphans", recover_orphans, methods=["POST"]),
    Route(f"{_TASK}/status", task_status),
    Route(f"{_TASK}/start", start, methods=["POST"]),
    Route(f"{_TASK}/wait-local-directory", wait_local_directory, methods=["POST"]),
    Route(f"{_TASK}/progress", progress, methods=["POST"]),
    Route(f"{_TASK}/messages", add_messages, methods=["POST"]),
    Route(f"{_TASK}/messages", list_messages),
    Route(f"{_TASK}/session", pin_session, methods=["POST"]),
    Route(f"{_TASK}/usage", add_usage, methods=["POST"]),
    Route(f"{_TASK}/complete", complete, methods=["POST"]),
    Route(f"{_TASK}/fail", fail, methods=["POST"]),
    Route(f"{_TASK}/gc-check", task_gc_check),
    Route("/api/daemon/issues/{issue_id}/gc-check", issue_gc_check),
]
