"""How tasks end: completed, failed, cancelled, and everything that follows in the same transaction.

Always two statements: lock and read, then one change with all its consequences. A task that has
ended already is answered with its row as it is, so reports may be repeated (spec 02 §2.3 to §2.6).
Failing is the same whoever finds the failure, the daemon, its restart or the sweeper: the
reference is quieter in bulk, and then nobody learns why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs

from server.consequences import Consequence, TaskAvailable, TokensRevoked
from server.dispatch import events
from server.store.queries import Connection, Record, load
from server.store.tasks import Caller, caller_args, get_task, seen, task_of
from server.store.work import get_issue
from shared import codec, failure
from shared.redact import redact
from shared.wire.event import Event
from shared.wire.task import (
    IN_FLIGHT,
    RUNNING,
    TERMINAL,
    CompleteRequest,
    FailRequest,
    RecoverReply,
    Task,
)

SQL: Final = load("finish")

_ESCAPE: Final = re.compile(r"\\([nrt\\])")
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}

_TRIVIAL: Final = frozenset({"done", "готово", "готова", "сделано", "完成", "完了"})
_DECORATION: Final = ".!！。… "  # noqa: RUF001

_CLOSED_ISSUE: Final = frozenset({"done", "cancelled"})


@attrs.frozen(kw_only=True)
class Failure:
    """Why a task is failed, and what the daemon knew of its agent."""

    error: str
    reason: str
    session_id: str = ""
    work_dir: str = ""


RECOVERED: Final = Failure(
    error="daemon restarted while task was in flight", reason=failure.RUNTIME_RECOVERY
)


async def complete(
    conn: Connection, task_id: str, request: CompleteRequest, *, caller: Caller | None = None
) -> tuple[Task, list[Consequence]]:
    """Complete a running task. In any other status nothing happens and the row is returned.

    A task that is not started yet keeps its token: its agent may be about to use it. Raises
    NotFound("task not found"), Foreign.
    """
    row = await _lock_one(conn, task_id, caller)
    if row["status"] != RUNNING:
        return task_of(row), []
    result = {
        "pr_url": redact(request.pr_url),
        "output": redact(request.output),
        "session_id": request.session_id,
        "work_dir": request.work_dir,
    }
    comment = plan_comment(request.output, in_thread=row["trigger_comment_id"] is not None)
    changed = await conn.fetchrow(
        SQL.complete, task_id, result, request.session_id, request.work_dir, comment
    )
    return await _ended(conn, "task:completed", [row], changed)


async def fail(
    conn: Connection, task_id: str, request: FailRequest, *, caller: Caller | None = None
) -> tuple[Task, list[Consequence]]:
    """Fail a task that a daemon has. In any other status nothing happens and the row is returned.

    Queues a new attempt when the reason is the infrastructure's. Raises NotFound, Foreign.
    """
    row = await _lock_one(conn, task_id, caller)
    if row["status"] not in IN_FLIGHT:
        return task_of(row), []
    error = redact(request.error)
    reason = request.failure_reason.strip() or failure.classify(request.error)
    why = Failure(
        error=error, reason=reason, session_id=request.session_id, work_dir=request.work_dir
    )
    changed = await conn.fetchrow(SQL.fail, [_decide(row, why)])
    return await _ended(conn, "task:failed", [row], changed)


async def fail_many(
    conn: Connection, task_ids: Iterable[str], why: Failure, statuses: frozenset[str] = IN_FLIGHT
) -> tuple[RecoverReply, list[Consequence]]:
    """Fail those of the tasks that are still in one of the statuses, as `fail` does.

    An issue that was in progress and that nobody works on any more goes back to `todo`.
    """
    rows = await conn.fetch(SQL.lock_tasks, list(task_ids), None, None)
    rows = [row for row in rows if row["status"] in statuses]
    if not rows:
        return RecoverReply(), []
    changed = await conn.fetchrow(SQL.fail, [_decide(row, why) for row in rows])
    assert changed is not None
    _, consequences = await _ended(conn, "task:failed", rows, changed)
    stuck = {row["issue_id"] for row in rows if row["issue_status"] == "in_progress"}
    if stuck:
        consequences += await _reset_issues(conn, sorted(stuck))
    reply = RecoverReply(orphaned=len(changed["tasks"]), retried=len(changed["retries"]))
    return reply, consequences


async def recover_orphans(
    conn: Connection, runtime_id: str, *, caller: Caller | None = None
) -> tuple[RecoverReply, list[Consequence]]:
    """Fail what a runtime had in flight: its daemon has just started and has none of it.

    Raises NotFound("runtime not found"), Foreign.
    """
    rows = await conn.fetch(SQL.in_flight_of_runtime, runtime_id, *caller_args(caller))
    seen(rows[0] if rows else None, "runtime not found")
    return await fail_many(conn, [row["task_id"] for row in rows if row["task_id"]], RECOVERED)


async def cancel(
    conn: Connection, task_id: str, *, caller: Caller | None = None
) -> tuple[Task, list[Consequence]]:
    """Cancel a task; one that has ended is returned as it is. Raises NotFound, Foreign."""
    row = await _lock_one(conn, task_id, caller)
    if row["status"] in TERMINAL:
        return task_of(row), []
    changed = await conn.fetchrow(SQL.cancel, [task_id])
    return await _ended(conn, "task:cancelled", [row], changed)


async def cancel_issue(
    conn: Connection, issue_id: str, *, agent_id: str | None = None
) -> list[Consequence]:
    """Cancel all active tasks of an issue, or only those of one agent."""
    return await _cancel(conn, await conn.fetch(SQL.active_of_issue, issue_id, agent_id))


async def cancel_agent(conn: Connection, agent_id: str) -> list[Consequence]:
    """Cancel all active tasks of an agent."""
    return await _cancel(conn, await conn.fetch(SQL.active_of_agent, agent_id))


async def cancel_trigger(conn: Connection, comment_id: str) -> list[Consequence]:
    """Cancel all active tasks that a comment has triggered; to be called before it is deleted."""
    return await _cancel(conn, await conn.fetch(SQL.active_of_trigger, comment_id))


def plan_comment(output: str, *, in_thread: bool) -> str:
    """Return what to post for an agent that wrote no comment itself; "" for nothing.

    The two-character escapes some agents print are decoded. An answer that only says "done" is
    left out in a thread, where the agent's silence says as much (spec 02 §2.3). Pure.
    """
    text = _ESCAPE.sub(lambda match: _ESCAPES[match[1]], output)
    if not text.strip():
        return ""
    if in_thread and text.strip().strip(_DECORATION).lower() in _TRIVIAL:
        return ""
    return redact(text)


def decide_retry(row: Mapping[str, Any], reason: str) -> bool:
    """Tell whether a failed task gets a new attempt (spec 02 §6).

    Unlike the reference's, it brings no archived agent and no closed issue back to life. Pure.
    """
    return (
        reason in failure.RETRYABLE
        and row["attempt"] < row["max_attempts"]
        and row["autopilot_run_id"] is None
        and (row["issue_id"] is not None or row["chat_session_id"] is not None)
        and row["issue_status"] not in _CLOSED_ISSUE
        and not row["agent_archived"]
    )


def _decide(row: Record, why: Failure) -> dict[str, Any]:
    retry = decide_retry(row, why.reason)
    return {
        "id": row["id"],
        "error": why.error,
        "reason": why.reason,
        "session_id": why.session_id,
        "work_dir": why.work_dir,
        "comment": "" if retry else why.error,
        "retry": retry,
        "fresh": why.reason in failure.RESUME_UNSAFE,
    }


async def _lock_one(conn: Connection, task_id: str, caller: Caller | None) -> Record:
    rows = await conn.fetch(SQL.lock_tasks, [task_id], *caller_args(caller))
    return seen(rows[0] if rows else None)


async def _cancel(conn: Connection, found: Sequence[Record]) -> list[Consequence]:
    if not found:
        return []
    ids = [row["id"] for row in found]
    rows = await conn.fetch(SQL.lock_tasks, ids, None, None)
    changed = await conn.fetchrow(SQL.cancel, ids)
    assert changed is not None
    if not changed["tasks"]:
        return []
    return (await _ended(conn, "task:cancelled", rows, changed))[1]


async def _ended(
    conn: Connection, kind: str, locked: Sequence[Record], changed: Record | None
) -> tuple[Task, list[Consequence]]:
    """Collect what the change returned. `locked` are the rows as they were before it."""
    assert changed is not None
    issues = {row["issue_id"]: row for row in locked if row["issue_id"] is not None}
    consequences: list[Consequence] = []
    for comment in changed["comments"]:
        issue = issues[comment["issue_id"]]
        consequences.append(
            events.comment_created(
                comment, issue_title=issue["issue_title"], issue_status=issue["issue_status"]
            )
        )
    consequences += [events.agent_status(agent) for agent in changed["agents"]]
    consequences += [events.task_event(kind, row) for row in changed["tasks"]]
    for row in changed["retries"]:
        consequences.append(events.task_event("task:queued", row))
        consequences.append(TaskAvailable(row["runtime_id"], row["id"]))
    if changed["tokens"]:
        consequences.append(TokensRevoked(tuple(changed["tokens"])))
    if changed["tasks"]:
        return task_of(changed["tasks"][0]), consequences
    # The row was locked and in the right status: nobody can have changed it.
    row = await get_task(conn, locked[0]["id"])
    assert row is not None
    return task_of(row), consequences


async def _reset_issues(conn: Connection, issue_ids: list[str]) -> list[Consequence]:
    consequences: list[Consequence] = []
    for row in await conn.fetch(SQL.reset_issues, issue_ids):
        issue = await get_issue(conn, row["workspace_id"], row["id"])
        if issue is not None:
            payload = {
                "issue": codec.unstructure(issue),
                "status_changed": True,
                "prev_status": "in_progress",
            }
            consequences.append(
                Event(type="issue:updated", payload=payload, workspace_id=row["workspace_id"])
            )
    return consequences
