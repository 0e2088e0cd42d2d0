"""How tasks end: completed, failed, cancelled, and everything that follows in the same transaction.

Lock and read, then one change with all its consequences, then what the task's kind asks for
(`settle`). A task that has ended already is answered with its row as it is, so reports may be
repeated (spec 02 §2.3 to §2.6). Failing is the same whoever finds the failure, the daemon, its
restart or the sweeper: the reference is quieter in bulk, and then nobody learns why. What a daemon
says of a task that the server had given up is taken over or kept beside it, never dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, Final

from server.consequences import Consequence, TaskAvailable, TokensRevoked
from server.dispatch import events
from server.dispatch.answer import plan_comment, shown_output
from server.dispatch.autopilot_end import reopen
from server.dispatch.chat import take_back
from server.dispatch.outcome import Ended
from server.dispatch.rules import is_note, summarise
from server.dispatch.settle import settle
from server.dispatch.verdict import RECOVERED, Failure, decide
from server.errors import Invalid
from server.markdown import mentions_in
from server.store.queries import Connection, Record, load
from server.store.tasks import Caller, caller_args, seen, task_of
from server.store.work import issue_of
from shared import codec, failure, times
from shared.redact import redact
from shared.wire.event import Event
from shared.wire.task import (
    CANCELLED,
    COMPLETED,
    FAILED,
    IN_FLIGHT,
    RUNNING,
    TERMINAL,
    CompleteRequest,
    FailRequest,
    RecoverReply,
    Task,
)

SQL: Final = load("finish")

Recheck = Callable[[Connection, Sequence[str]], Awaitable[Collection[str]]]
"""Names those of the tasks that still are what a rule looks for, now that they are locked."""


async def complete(
    conn: Connection, task_id: str, request: CompleteRequest, *, caller: Caller | None = None
) -> tuple[Task, list[Consequence]]:
    """Complete a running task. In any other status nothing happens and the row is returned.

    A task that is not started yet keeps its token: its agent may be about to use it. One that the
    server had failed meanwhile becomes completed, unless its new attempt has started: then the
    result is kept beside. Raises NotFound("task not found"), Foreign.
    """
    row = await _lock_one(conn, task_id, caller)
    result = {
        "pr_url": redact(request.pr_url),
        "output": redact(request.output),
        "session_id": request.session_id,
        "work_dir": request.work_dir,
    }
    told: list[Consequence] = []
    adopting = row["status"] != RUNNING
    if adopting:
        if not _open_to_news(row):
            return task_of(row), []
        called_off = await _call_off(conn, row) if row["presumed"] else None
        if called_off is None:
            return await _keep(conn, row, {"status": COMPLETED, "result": result})
        told = called_off
    comment = plan_comment(request.output, in_thread=row["trigger_comment_id"] is not None)
    changed = await conn.fetchrow(
        SQL.complete, task_id, result, request.session_id, request.work_dir, comment, adopting
    )
    text = shown_output(request.output)
    ended = _ended([row], changed, text=text, adopted=adopting)
    told += await _told(conn, "task:completed", [row], changed, ended)
    return task_of(ended[0].task), told


async def fail(
    conn: Connection, task_id: str, request: FailRequest, *, caller: Caller | None = None
) -> tuple[Task, list[Consequence]]:
    """Fail a task that a daemon has. In any other status nothing happens and the row is returned.

    Queues a new attempt when the reason is the infrastructure's, or a quota that comes back. An
    issue that was in progress and that nobody works on any more goes back to `todo`. What the
    daemon says of a task that the server had failed meanwhile takes the place of the
    presumption, unless its new attempt has started. Raises NotFound, Foreign.
    """
    row = await _lock_one(conn, task_id, caller)
    why = Failure(
        error=redact(request.error),
        reason=failure.reason_of(request.failure_reason, request.error),
        session_id=request.session_id,
        work_dir=request.work_dir,
        resets_at=request.resets_at,
    )
    told: list[Consequence] = []
    adopting = row["status"] not in IN_FLIGHT
    if adopting:
        if not _open_to_news(row):
            return task_of(row), []
        called_off = None
        if row["presumed"] and why.reason not in failure.RETRYABLE:
            called_off = await _call_off(conn, row)
        if called_off is None:
            said = {"status": FAILED, "error": why.error, "failure_reason": why.reason}
            return await _keep(conn, row, said)
        told = called_off
    changed = await conn.fetchrow(SQL.fail, [decide(row, why, _clock(), adopt=adopting)])
    ended = _ended([row], changed, adopted=adopting)
    told += await _told(conn, "task:failed", [row], changed, ended)
    return task_of(ended[0].task), told + await _hand_back(conn, [row])


async def fail_many(
    conn: Connection,
    task_ids: Iterable[str],
    why: Failure,
    statuses: frozenset[str] = IN_FLIGHT,
    *,
    recheck: Recheck | None = None,
) -> tuple[RecoverReply, list[Consequence]]:
    """Fail those of the tasks that are still in one of the statuses, as `fail` does.

    They were found without a lock; `recheck` tells which of them are still meant.
    """
    rows = await _lock(conn, task_ids)
    rows = [row for row in rows if row["status"] in statuses]
    if rows and recheck is not None:
        meant = await recheck(conn, [row["id"] for row in rows])
        rows = [row for row in rows if row["id"] in meant]
    if not rows:
        return RecoverReply(), []
    now = _clock()
    changed = await conn.fetchrow(SQL.fail, [decide(row, why, now) for row in rows])
    ended = _ended(rows, changed)
    consequences = await _told(conn, "task:failed", rows, changed, ended)
    consequences += await _hand_back(conn, rows)
    retried = sum(one.retry is not None for one in ended)
    return RecoverReply(orphaned=len(ended), retried=retried), consequences


async def go_on(
    conn: Connection, task_id: str, *, caller: Caller | None = None
) -> tuple[Task, list[Consequence]]:
    """Take a task back that was given up with its machine, and whose agent works after all.

    Its new attempt is called off, and what giving it up did to its issue or its autopilot's run is
    undone. A task that runs is answered as it is. Raises Invalid when the new attempt has begun,
    when its agent has no room for it or people have ended it, and when there is nothing to take
    back; NotFound, Foreign.
    """
    row = await _lock_one(conn, task_id, caller)
    if row["status"] == RUNNING:
        return task_of(row), []
    told = None
    if row["presumed"] and _open_to_news(row) and row["issue_status"] != "cancelled":
        told = await _call_off(conn, row)
    changed = None if told is None else await conn.fetchrow(SQL.go_on, task_id)
    if told is None or changed is None:
        raise Invalid("go on with task: no rows in result set")
    await reopen(conn, row)
    if row["issue_id"] is not None:
        told += _moved(await conn.fetch(SQL.resume_issue, row["issue_id"]), "todo")
    if changed["agent"] is not None:
        told.append(events.agent_status(changed["agent"]))
    return task_of(changed), [*told, events.task_event("task:running", changed)]


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
    task, _, consequences = await cancel_answering(conn, task_id, caller=caller)
    return task, consequences


async def cancel_answering(
    conn: Connection, task_id: str, *, caller: Caller | None = None
) -> tuple[Task, dict[str, Any], list[Consequence]]:
    """As `cancel`, with what the task's kind adds to the answer (spec 02 §2.6)."""
    row = await _lock_one(conn, task_id, caller)
    if row["status"] in TERMINAL:
        return task_of(row), {}, []
    changed = await conn.fetchrow(SQL.cancel, [task_id])
    ended = _ended([row], changed)
    consequences = await _told(conn, "task:cancelled", [row], changed, ended)
    return task_of(ended[0].task), ended[0].answer, consequences


async def cancel_many(conn: Connection, task_ids: Collection[str]) -> list[Consequence]:
    """Cancel those of the tasks that have not ended."""
    if not task_ids:
        return []
    rows = await _lock(conn, task_ids)
    changed = await conn.fetchrow(SQL.cancel, [row["id"] for row in rows])
    return await _told(conn, "task:cancelled", rows, changed, _ended(rows, changed))


async def cancel_issue(
    conn: Connection, issue_id: str, *, agent_id: str | None = None
) -> list[Consequence]:
    """Cancel all active tasks of an issue, or only those of one agent."""
    return await _cancel(conn, await conn.fetch(SQL.active_of_issue, [issue_id], agent_id))


async def cancel_issues(conn: Connection, issue_ids: Sequence[str]) -> list[Consequence]:
    """Cancel all active tasks of issues, which are locked."""
    return await _cancel(conn, await conn.fetch(SQL.active_of_issue, issue_ids, None))


async def cancel_agent(conn: Connection, agent_id: str) -> list[Consequence]:
    """Cancel all active tasks of an agent."""
    return await _cancel(conn, await conn.fetch(SQL.active_of_agent, agent_id))


async def hold_agent(conn: Connection, agent_id: str) -> None:
    """Lock what cancelling an agent's tasks will lock, in the common order.

    To be called before the agent itself is locked for anything else.
    """
    found = await conn.fetch(SQL.active_of_agent, agent_id)
    if found:
        await _lock(conn, [row["id"] for row in found])


async def cancel_chat(conn: Connection, session_id: str) -> list[Consequence]:
    """Cancel all active tasks of a chat session; to be called before it is deleted."""
    return await _cancel(conn, await conn.fetch(SQL.active_of_chat, session_id))


async def cancel_autopilot(conn: Connection, autopilot_id: str) -> list[Consequence]:
    """Cancel the bare tasks of an autopilot's runs; to be called before it is deleted."""
    return await _cancel(conn, await conn.fetch(SQL.active_of_autopilot, autopilot_id))


async def cancel_trigger(
    conn: Connection, comment_id: str, *, replies: bool = False
) -> list[Consequence]:
    """Cancel all active tasks that a comment has triggered; to be called before it is deleted.

    With `replies` also those of the replies below it, which are deleted with it.
    """
    return await _cancel(conn, await conn.fetch(SQL.active_of_trigger, comment_id, replies))


def _clock() -> Any:
    """The time by which a failure is judged."""
    return times.now()


async def _lock(conn: Connection, task_ids: Iterable[str]) -> list[Record]:
    return await conn.fetch(SQL.lock_tasks, list(task_ids), None, None)


async def _lock_one(conn: Connection, task_id: str, caller: Caller | None) -> Record:
    rows = await conn.fetch(SQL.lock_tasks, [task_id], *caller_args(caller))
    return seen(rows[0] if rows else None)


async def _cancel(conn: Connection, found: Sequence[Record]) -> list[Consequence]:
    return await cancel_many(conn, [row["id"] for row in found])


def _open_to_news(row: Record) -> bool:
    """Whether a task has ended without its daemon's word, and nothing was heard since."""
    given_up = row["status"] == CANCELLED or (row["status"] == FAILED and row["presumed"])
    return given_up and row["late"] is None


async def _call_off(conn: Connection, row: Record) -> list[Consequence] | None:
    """Cancel the new attempt of a task that turns out not to need one; None when it has begun.

    What people have said to the new attempt meanwhile, the task has not heard: it gets a run.
    """
    found = await conn.fetch(SQL.retries_of, row["id"], row["back_at"])
    if not found:
        return []
    retries = [retry["id"] for retry in found]
    if any(
        retry["started_at"] or retry["status"] in TERMINAL for retry in await _lock(conn, retries)
    ):
        return None
    queued = None
    if row["chat_session_id"] is not None:
        queued = await take_back(conn, row["id"], retries)
    told = await cancel_many(conn, retries)
    if row["issue_id"] is not None:
        queued = await _answer_missed(conn, row, retries)
    if queued is not None:
        told.append(events.task_event("task:queued", queued))
        told.append(TaskAvailable(queued["runtime_id"], queued["id"]))
    return told


async def _answer_missed(conn: Connection, row: Record, retries: Sequence[str]) -> Record | None:
    """Queue a run for the newest comment that fell into attempts that are called off."""
    for said in await conn.fetch(SQL.missed, retries):
        content = said["content"]
        meant = said["author_type"] == "member" or any(
            mention.id == row["agent_id"] for mention in mentions_in(content)
        )
        if meant and not is_note(content):
            author = (said["author_type"], said["author_id"])
            summary = summarise(content)
            return await conn.fetchrow(SQL.follow_up, retries[0], said["id"], summary, *author)
    return None


async def _keep(
    conn: Connection, row: Record, said: dict[str, Any]
) -> tuple[Task, list[Consequence]]:
    """Keep what a daemon said of a task beside the result that stands."""
    said["at"] = times.stamp(times.now())
    kept = await conn.fetchrow(SQL.keep_late, row["id"], said)
    if kept is None:
        return task_of(row), []
    told: list[Consequence] = [events.task_event("task:late_result", kept)]
    if kept["tokens"]:
        told.append(TokensRevoked(tuple(kept["tokens"])))
    return task_of(kept), told


def _ended(
    locked: Sequence[Record], changed: Record | None, *, text: str = "", adopted: bool = False
) -> list[Ended]:
    """Put together what the change returned. `locked` are the rows as they were before it."""
    assert changed is not None
    before = {row["id"]: row for row in locked}
    retries = {row["parent_task_id"]: row for row in changed["retries"]}
    return [
        Ended(
            task=task,
            before=before[task["id"]],
            retry=retries.get(task["id"]),
            text=text if task["status"] == COMPLETED else task["error"] or "",
            resume_unsafe=failure.spoils_session(task["failure_reason"], task["error"]),
            adopted=adopted,
        )
        for task in changed["tasks"]
    ]


async def _told(
    conn: Connection,
    kind: str,
    locked: Sequence[Record],
    changed: Record | None,
    ended: Sequence[Ended],
) -> list[Consequence]:
    """Do what the tasks' kinds ask for, and collect all there is to tell."""
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
    replied_to = [comment["parent_id"] for comment in changed["comments"] if comment["parent_id"]]
    if replied_to:
        reopened = await conn.fetch(SQL.reopen_threads, replied_to)
        consequences += [events.comment_unresolved(comment) for comment in reopened]
    consequences += [events.activity_created(row) for row in changed.get("activities", ())]
    consequences += await settle(conn, ended)
    consequences += [events.agent_status(agent) for agent in changed["agents"]]
    consequences += [events.task_event(kind, row) for row in changed["tasks"]]
    for row in changed["retries"]:
        consequences.append(events.task_event("task:queued", row))
        if row["not_before"] is None:
            consequences.append(TaskAvailable(row["runtime_id"], row["id"]))
    consequences += [TaskAvailable(row["runtime_id"], row["id"]) for row in changed["next"]]
    if changed["tokens"]:
        consequences.append(TokensRevoked(tuple(changed["tokens"])))
    return consequences


async def _hand_back(conn: Connection, failed: Sequence[Record]) -> list[Consequence]:
    """Make issues that failed tasks leave with nobody at work on them ready to be picked up."""
    stuck = {row["issue_id"] for row in failed if row["issue_status"] == "in_progress"}
    if not stuck:
        return []
    return _moved(await conn.fetch(SQL.reset_issues, sorted(stuck)), "in_progress")


def _moved(rows: Sequence[Record], before: str) -> list[Consequence]:
    """Issues have a new status that nobody gave them."""
    consequences: list[Consequence] = []
    for row in rows:
        payload = {
            "issue": codec.unstructure(issue_of(row)),
            "status_changed": True,
            "prev_status": before,
        }
        consequences.append(
            Event(type="issue:updated", payload=payload, workspace_id=row["workspace_id"])
        )
        consequences.append(events.activity_created(row["activity"]))
    return consequences
