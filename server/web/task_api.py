"""Endpoints for runs: reading them, their transcripts, stopping and repeating them.

Spec 06 §6.1, §6.2 and §6.5, 02 §4.12. What happens to a task is decided in `dispatch`; here is who
may ask for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.dispatch import enqueue, finish
from server.errors import NotFound
from server.rights import NOTHING, Thing
from server.store import runs, work
from server.store.queries import Connection
from server.store.runs import FoundTask
from server.web import auth
from server.web.answers import answer
from server.web.auth import Membership
from server.web.fields import LARGEST_INT
from server.web.issue_changes import existing, facts, work_thing
from server.web.unit import optional_fields, path_id, query, read, write
from shared import codec
from shared.wire.task import Task, TaskMessagePayload
from shared.wire.work import Issue, IssueUsage

_Told = tuple[Task, Sequence[Consequence]]
_Cancelled = tuple[dict[str, Any], Sequence[Consequence]]


async def list_runs(request: Request) -> Response:
    """GET /api/issues/{id}/task-runs: newest first."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> list[Task]:
        return await runs.list_tasks(
            conn, (await _issue(conn, caller, request)).id, caller.caller.gate
        )

    return answer(await read(request, unit))


async def list_active(request: Request) -> Response:
    """GET /api/issues/{id}/active-task: the runs that are not over."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> list[Task]:
        return await runs.active_tasks(
            conn, (await _issue(conn, caller, request)).id, caller.caller.gate
        )

    return answer({"tasks": await read(request, unit)})


async def get_usage(request: Request) -> Response:
    """GET /api/issues/{id}/usage: the tokens of all runs."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> IssueUsage:
        return await runs.issue_usage(conn, (await _issue(conn, caller, request)).id)

    return answer(await read(request, unit))


async def rerun(request: Request) -> Response:
    """POST /api/issues/{id}/rerun: once more, with a fresh session."""
    caller = await auth.workspace(request)
    task_id = (await optional_fields(request)).id("task_id")

    async def unit(conn: Connection) -> _Told:
        ref = request.path_params["id"]
        issue = existing(await work.lock_issue(conn, caller.workspace_id, ref))
        caller.check(work_thing(caller, issue))
        return await enqueue.rerun(conn, facts(issue), task_id, caller.actor)

    return answer(await write(request, unit), 202)


async def cancel_run(request: Request) -> Response:
    """POST /api/issues/{id}/tasks/{task_id}/cancel."""
    caller = await auth.workspace(request)
    task_id = path_id(request, "task_id")

    async def unit(conn: Connection) -> _Cancelled:
        issue = await _issue(conn, caller, request)
        found = await _usable(conn, caller, task_id)
        if found.task.issue_id != issue.id:
            raise NotFound("task not found")
        caller.check(_cancellable(found, work_thing(caller, issue)))
        return await _cancel(conn, task_id)

    return answer(await write(request, unit))


async def cancel_task(request: Request) -> Response:
    """POST /api/tasks/{id}/cancel: a task that is over is returned as it is."""
    caller = await auth.workspace(request)
    task_id = path_id(request, "id", "task_id")

    async def unit(conn: Connection) -> _Cancelled:
        found = await _usable(conn, caller, task_id)
        issue_id = found.task.issue_id
        issue = await work.get_issue(conn, caller.workspace_id, issue_id) if issue_id else None
        caller.check(_cancellable(found, NOTHING if issue is None else work_thing(caller, issue)))
        return await _cancel(conn, task_id)

    return answer(await write(request, unit))


async def _cancel(conn: Connection, task_id: str) -> _Cancelled:
    """Cancel; the answer is the task and what its kind adds, as a chat's message to restore."""
    task, extra, told = await finish.cancel_answering(conn, task_id)
    return codec.unstructure(task) | extra, told


async def list_messages(request: Request) -> Response:
    """GET /api/tasks/{id}/messages?since=: the transcript after a sequence number."""
    caller = await auth.workspace(request)
    task_id = path_id(request, "id", "task_id")
    since = query(request).whole("since", low=-LARGEST_INT)

    async def unit(conn: Connection) -> list[TaskMessagePayload]:
        await _usable(conn, caller, task_id)
        return await runs.task_messages(conn, task_id, -1 if since is None else since)

    return answer(await read(request, unit))


async def _issue(conn: Connection, caller: Membership, request: Request) -> Issue:
    return existing(await work.get_issue(conn, caller.workspace_id, request.path_params["id"]))


def _cancellable(found: FoundTask, issue: Thing) -> Thing:
    """A run to cancel: an agent's if it is on its work, and not for being its agent's friend."""
    return attrs.evolve(found.thing, mine=issue.mine)


async def _usable(conn: Connection, caller: Membership, task_id: str) -> FoundTask:
    """Return a task of an agent that the caller may use (06 §3.4)."""
    found = await runs.get_task(conn, caller.workspace_id, task_id, caller.caller.gate)
    if found is None:
        raise NotFound("task not found")
    caller.check(found.thing, "run.read")
    return found


routes: list[BaseRoute] = [
    Route("/api/issues/{id}/task-runs", list_runs, methods=["GET"]),
    Route("/api/issues/{id}/active-task", list_active, methods=["GET"]),
    Route("/api/issues/{id}/usage", get_usage, methods=["GET"]),
    Route("/api/issues/{id}/rerun", rerun, methods=["POST"]),
    Route("/api/issues/{id}/tasks/{task_id}/cancel", cancel_run, methods=["POST"]),
    Route("/api/tasks/{id}/cancel", cancel_task, methods=["POST"]),
    Route("/api/tasks/{id}/messages", list_messages, methods=["GET"]),
]
