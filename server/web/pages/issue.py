"""An issue: what is asked, who works on it and how, what was said, and every run so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.errors import NotFound
from server.store import comments as conversation
from server.store import pages as store
from server.store import runs as history
from server.store import work
from server.store.queries import Connection
from server.web.pages import failures, shell, view
from shared.wire import task as wire
from shared.wire.runtime import Runtime
from shared.wire.work import Comment

SHOWN_COMMENTS: Final = 100
"""Threads shown without being asked for all of them."""


@attrs.frozen(kw_only=True)
class Entry:
    """A comment with its author and the thread below it, flattened to one level."""

    comment: Comment
    author: view.Person
    reply: bool = False
    replies: list[Entry] = attrs.field(factory=list)

    @property
    def edited(self) -> bool:
        return self.comment.updated_at > self.comment.created_at


@attrs.frozen(kw_only=True)
class Live:
    """A run that has not ended, for its card."""

    task: wire.Task
    agent: view.Person
    word: str
    detail: str
    begun: str
    elapsed: str
    summary: str
    step: int
    total: int


@attrs.frozen(kw_only=True)
class Past:
    """A run that has ended, for its row of the history."""

    task: wire.Task
    agent: view.Person
    word: str
    took: str
    words: failures.Words | None
    late: str
    again: bool


def threads(comments: Iterable[Comment], people: view.Directory) -> list[Entry]:
    """Arrange comments, given oldest first, as roots with their replies."""
    roots: dict[str, Entry] = {}
    top: dict[str, Entry] = {}
    for comment in comments:
        author = people.find(comment.author_type, comment.author_id) or view.SYSTEM
        root = roots.get(comment.parent_id or "")
        entry = Entry(comment=comment, author=author, reply=root is not None)
        if root is None:
            top[comment.id] = entry
        else:
            root.replies.append(entry)
        roots[comment.id] = root or entry
    return list(top.values())


def live(
    task: wire.Task,
    people: view.Directory,
    note: store.RunNote | None,
    now: datetime,
) -> Live:
    """Say in words where an active run stands."""
    agent = people.find("agent", task.agent_id) or view.SYSTEM
    runtime = people.runtimes.get(task.runtime_id)
    left = task.status == wire.QUEUED and task.agent_id in people.left_behind
    begun = task.created_at
    if task.status != wire.QUEUED:
        begun = task.started_at or task.dispatched_at or task.created_at
    since = view.parse(begun) or now
    progress = note.progress if note else {}
    return Live(
        task=task,
        agent=agent,
        word=_word(task, runtime, now) if not left else "Waiting for machine",
        detail=_detail(task, runtime, note, now) if not left else _left_behind(runtime),
        begun=begun,
        elapsed=view.duration((now - since).total_seconds()),
        summary=str(progress.get("summary") or ""),
        step=int(progress.get("step") or 0),
        total=int(progress.get("total") or 0),
    )


def _left_behind(runtime: Runtime | None) -> str:
    return (
        f"{view.machine(runtime)} belongs to somebody else now and does not work for this agent: its "
        "owner moves the agent to another machine, or the machine's owner makes it public."
    )


def _word(task: wire.Task, runtime: Runtime | None, now: datetime) -> str:
    if task.unreachable_since:
        return "Machine unreachable"
    if _parked(task, now):
        return "Waiting to start"
    if task.status == wire.QUEUED and (runtime is None or runtime.status != "online"):
        return "Waiting for machine"
    return view.RUN_STATES.get(task.status, task.status)


def _detail(
    task: wire.Task, runtime: Runtime | None, note: store.RunNote | None, now: datetime
) -> str:
    where = view.machine(runtime)
    if task.unreachable_since:
        silent = view.ago(task.unreachable_since, now)
        return f"{where} fell silent {silent}. The run counts as going on while it may come back."
    if parked := _parked(task, now):
        wait = view.duration((parked - now).total_seconds())
        why = "A quota that is used up, or a machine that has just come back, needs the time."
        return f"This attempt starts by itself in {wait}. {why}"
    match task.status:
        case wire.QUEUED if runtime is None or runtime.status != "online":
            seen = view.ago(runtime.last_seen_at if runtime else None, now)
            return f"{where} is offline, last seen {seen}. Start it there with: bullpen up"
        case wire.QUEUED:
            return f"{where} takes it as soon as it has a free slot."
        case wire.DISPATCHED:
            return f"{where} has it and prepares the work directory."
        case wire.WAITING_LOCAL_DIRECTORY:
            reason = note.wait_reason if note else ""
            return reason or "Another run holds the work directory."
    return f"On {where}."


def _parked(task: wire.Task, now: datetime) -> datetime | None:
    """When a queued run may be claimed, if that is still to come."""
    due = view.parse(task.not_before)
    return due if task.status == wire.QUEUED and due is not None and due > now else None


def _late(task: wire.Task) -> str:
    """What the daemon reported after the server had gone on without it."""
    late = task.late_result or {}
    output = (late.get("result") or {}).get("output") or late.get("error") or ""
    return str(output)


def past(task: wire.Task, people: view.Directory, now: datetime, *, newest: bool) -> Past:
    """Say in words how a run ended."""
    seconds = view.run_seconds(task, now)
    failed = task.status == wire.FAILED
    return Past(
        task=task,
        agent=people.find("agent", task.agent_id) or view.SYSTEM,
        word=view.RUN_STATES.get(task.status, task.status),
        took="" if seconds is None else view.duration(seconds),
        words=failures.explain(task.failure_reason) if failed else None,
        late=_late(task),
        again=newest and task.status in {wire.FAILED, wire.CANCELLED},
    )


async def issue(request: Request) -> Response:
    """GET /{slug}/issues/{ref}; `?all=1` shows every comment."""
    everything = request.query_params.get("all") == "1"

    async def read(conn: Connection, visit: shell.Visit) -> Mapping[str, Any]:
        found = await work.get_issue(conn, visit.workspace.id, request.path_params["ref"])
        if found is None:
            raise NotFound("issue not found")
        comments = await conversation.list_comments(conn, found.id)
        tasks = await history.list_tasks(conn, found.id, visit.viewer.gate)
        notes = await store.run_notes(conn, found.id, visit.viewer.gate)
        entries = threads(comments, visit.people)
        shown = entries if everything else entries[-SHOWN_COMMENTS:]
        active = [task for task in reversed(tasks) if task.status in wire.ACTIVE]
        ended = [task for task in tasks if task.status in wire.TERMINAL]
        assignee = visit.people.find(found.assignee_type, found.assignee_id)
        return {
            "issue": found,
            "assignee": assignee,
            "assignee_listed": assignee in (*visit.people.assignable, *visit.people.members),
            "creator": visit.people.find(found.creator_type, found.creator_id),
            "comments": shown,
            "comment_count": len(comments),
            "earlier": len(entries) - len(shown),
            "active": [live(task, visit.people, notes.get(task.id), visit.now) for task in active],
            "runs": [
                past(task, visit.people, visit.now, newest=number == 0 and not active)
                for number, task in enumerate(ended)
            ],
        }

    return await shell.show(request, "issue.html", "issues", read)


routes: list[BaseRoute] = [Route("/{slug:slug}/issues/{ref}", issue)]
