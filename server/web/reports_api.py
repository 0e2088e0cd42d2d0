"""What a daemon reports of a task while it runs and when it ends (spec 01 §3.9-§3.13)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.dispatch import events, finish
from server.dispatch.lifecycle import LEASE, PARK, START, Change
from server.errors import Invalid
from server.store import tasks
from server.store.queries import Connection, Record
from server.store.tasks import SQL, message_of, seen, task_of
from server.web import body
from server.web.answers import answer, nothing
from server.web.context import services
from server.web.daemon_calls import change, daemon_caller, path_id, see_task
from shared import codec
from shared.failure import RUNTIME_OFFLINE
from shared.redact import redact, redact_value
from shared.wire.task import (
    RUNNING,
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
    request: Request, statement: str, step: Change, kind: str, *args: Any
) -> tuple[Record, bool]:
    """Run a conditional change; return the task as it is then and whether it was changed now."""
    caller = await daemon_caller(request)
    task_id = path_id(request, "task_id")

    async def unit(conn: Connection) -> tuple[tuple[Record, bool], list[Consequence]]:
        row = seen(
            await conn.fetchrow(statement, task_id, *caller.args, sorted(step.sources), *args)
        )
        if row["changed"]:
            return (row, True), [events.task_event(kind, row)]
        if row["status"] in step.sources:
            # Somebody changed it while this statement waited: read what it has become.
            row = await tasks.see_task(conn, task_id, caller)
        return (row, False), []

    result: tuple[Record, bool] = await change(request, unit)
    return result


async def progress(request: Request) -> Response:
    caller = await daemon_caller(request)
    sent = await body.decode(request, ProgressRequest)
    task_id = path_id(request, "task_id")
    payload: dict[str, Any] = {"task_id": task_id, "summary": redact(sent.summary)}
    payload |= {key: value for key in ("step", "total") if (value := getattr(sent, key))}
    kept = {key: value for key, value in payload.items() if key != "task_id"}

    async def unit(conn: Connection) -> tuple[None, list[Consequence]]:
        row = seen(await conn.fetchrow(SQL.set_progress, task_id, *caller.args, kept))
        event = events.task_progress(row, payload)
        return None, [event]

    await change(request, unit, one_statement=True)
    return answer(_OK)


async def add_messages(request: Request) -> Response:
    caller = await daemon_caller(request)
    # cut, not refused: a stock daemon would drop the whole batch
    sent = (await body.decode(request, MessagesRequest, cut=True)).messages
    if not sent:
        return answer(_OK)
    task_id = path_id(request, "task_id")
    rows = [_message_row(message) for message in sent]

    async def unit(conn: Connection) -> tuple[None, list[Consequence]]:
        stored = await conn.fetch(SQL.add_messages, task_id, *caller.args, rows)
        seen(stored[0] if stored else None)
        return None, [
            events.task_message(row, message_of(row)) for row in stored if row["seq"] is not None
        ]

    await change(request, unit, one_statement=True)
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
    caller = await daemon_caller(request)
    task_id = path_id(request, "task_id")
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
    caller = await daemon_caller(request)
    sent = await body.decode(request, SessionRequest)
    if not sent.session_id and not sent.work_dir:
        raise Invalid("session_id or work_dir required")
    task_id = path_id(request, "task_id")
    args = (task_id, *caller.args, sent.session_id, sent.work_dir)
    row = await services(request).database.write(
        lambda conn: conn.fetchrow(SQL.pin_session, *args), one_statement=True
    )
    seen(row)
    return nothing()


async def add_usage(request: Request) -> Response:
    caller = await daemon_caller(request)
    sent = (await body.decode(request, UsageRequest)).usage
    task_id = path_id(request, "task_id")
    args = (task_id, *caller.args, [_usage_row(entry) for entry in sent])
    row = await services(request).database.write(
        lambda conn: conn.fetchrow(SQL.add_usage, *args), one_statement=True
    )
    services(request).metrics.usage(seen(row)["grown"])
    return answer(_OK)


def _usage_row(entry: ModelUsage) -> dict[str, Any]:
    row: dict[str, Any] = codec.unstructure(entry)
    return {
        key: min(max(value, 0), _BIGINT) if isinstance(value, int) else value
        for key, value in row.items()
    }


async def task_status(request: Request) -> Response:
    """Tell the status, and of a failure whether it only means that nothing was heard."""
    row = await see_task(request)
    given_up = row["presumed"] and row["failure_reason"] == RUNTIME_OFFLINE and row["late"] is None
    return answer(StatusReply(status=row["status"], presumed=given_up))


async def go_on(request: Request) -> Response:
    """Run on after a cut (ours): see `finish.go_on`."""
    caller = await daemon_caller(request)
    task_id = path_id(request, "task_id")
    return answer(await change(request, lambda conn: finish.go_on(conn, task_id, caller=caller)))


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
    caller = await daemon_caller(request)
    sent = await body.decode(request, kind)
    task_id = path_id(request, "task_id")
    return answer(await change(request, lambda conn: end(conn, task_id, sent, caller=caller)))


_TASK: Final = "/api/daemon/tasks/{task_id}"

routes: Sequence[BaseRoute] = [
    Route(f"{_TASK}/status", task_status),
    Route(f"{_TASK}/start", start, methods=["POST"]),
    Route(f"{_TASK}/go-on", go_on, methods=["POST"]),
    Route(f"{_TASK}/wait-local-directory", wait_local_directory, methods=["POST"]),
    Route(f"{_TASK}/progress", progress, methods=["POST"]),
    Route(f"{_TASK}/messages", add_messages, methods=["POST"]),
    Route(f"{_TASK}/messages", list_messages),
    Route(f"{_TASK}/session", pin_session, methods=["POST"]),
    Route(f"{_TASK}/usage", add_usage, methods=["POST"]),
    Route(f"{_TASK}/complete", complete, methods=["POST"]),
    Route(f"{_TASK}/fail", fail, methods=["POST"]),
]
