"""Who gets a task when something happens to an issue: asks the database, then the rules, then queues.

Woken by the endpoints that write issues and comments, in their transaction, and by the previews,
which stop before the last step. `rules` chooses, `loops` says whether agents may go on among
themselves, and the statement that queues decides the races: an agent has at most one pending task
on an issue, so further triggers fall into the one that waits (spec 02 §3).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, Protocol

import attrs

from server.consequences import Consequence, TaskAvailable
from server.dispatch import events, loops, rules
from server.dispatch.finish import cancel_issue, cancel_issues
from server.dispatch.rules import (
    Candidate,
    Choice,
    IssueFacts,
    Remark,
    Target,
    is_note,
    summarise,
)
from server.errors import Conflict, Forbidden, Invalid
from server.store.queries import Connection, Record, load
from server.store.tasks import get_task, task_of
from shared.wire.task import Task

__all__ = [
    "PRIORITY",
    "Actor",
    "IssueFacts",
    "Wanted",
    "assignees_changed",
    "candidates",
    "comment_created",
    "gate",
    "issue_created",
    "preview_comment",
    "queue",
    "queue_all",
    "rerun",
    "statuses_changed",
    "wake",
]

SQL: Final = load("enqueue")

PRIORITY: Final = {"urgent": 4, "high": 3, "medium": 2, "low": 1, "none": 0}


class Actor(Protocol):
    """Who does it: `actor_type` is `member` or `agent`; `task_id` an acting agent's task."""

    @property
    def actor_type(self) -> str: ...
    @property
    def actor_id(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def task_id(self) -> str | None: ...


# --- what happens ---------------------------------------------------------------------------------


async def issue_created(conn: Connection, issue: IssueFacts, actor: Actor) -> list[Consequence]:
    """Queue the assignee, unless the issue waits in the backlog."""
    if issue.target is None or issue.status == "backlog":
        return []
    choice = rules.assigned(issue, await _candidate(conn, issue, actor))
    return (await queue(conn, issue, [choice] if choice else [], actor))[1]


async def assignees_changed(
    conn: Connection,
    issues: Sequence[IssueFacts],
    actor: Actor,
    *,
    suppressed: Collection[str] = (),
    handoff_note: str = "",
) -> list[Consequence]:
    """Cancel what is active on the issues, then queue their new assignees.

    Not where the issue is in `suppressed` or waits in the backlog.
    """
    if not issues:
        return []
    consequences = await cancel_issues(conn, [issue.id for issue in issues])
    starting = [
        issue for issue in issues if issue.status != "backlog" and issue.id not in suppressed
    ]
    found = await _assignees(conn, starting, actor)
    wanted = [
        Wanted(issue, choice)
        for issue in starting
        if (choice := rules.assigned(issue, found.get(issue.id))) is not None
    ]
    return consequences + (await queue_all(conn, wanted, actor, handoff_note=handoff_note))[1]


async def statuses_changed(
    conn: Connection,
    moved: Sequence[tuple[IssueFacts, str]],
    actor: Actor,
    *,
    suppress_run: bool = False,
) -> list[Consequence]:
    """Leaving the backlog starts the assignee; becoming cancelled cancels what is active.

    `moved` are issues with the status each had before.
    """
    cancelled = [issue.id for issue, _ in moved if issue.status == "cancelled"]
    consequences = await cancel_issues(conn, cancelled) if cancelled else []
    leaving = [
        (issue, before)
        for issue, before in moved
        if issue.status != "cancelled" and before == "backlog" and issue.target is not None
    ]
    if not leaving or suppress_run:
        return consequences
    at_work = await _works_on(conn, actor)
    found = await _assignees(conn, [issue for issue, _ in leaving], actor)
    wanted = [
        Wanted(issue, choice)
        for issue, before in leaving
        if issue.id != at_work
        and (choice := rules.released(issue, before, found.get(issue.id))) is not None
    ]
    return consequences + (await queue_all(conn, wanted, actor))[1]


async def comment_created(
    conn: Connection,
    issue: IssueFacts,
    *,
    comment_id: str,
    content: str,
    parent_id: str | None,
    actor: Actor,
    suppress_agent_ids: Collection[str] = (),
) -> list[Consequence]:
    """Queue the agents that the comment addresses. A person's comment also ends a pause."""
    if is_note(content):
        return []
    chosen = await preview_comment(
        conn,
        issue,
        content=content,
        parent_id=parent_id,
        actor=actor,
        suppress_agent_ids=suppress_agent_ids,
    )
    if not chosen and actor.actor_type == "member":
        await loops.resume(conn, issue.id)
    _, told = await queue(
        conn,
        issue,
        chosen,
        actor,
        trigger_comment_id=comment_id,
        trigger_summary=summarise(content),
    )
    return told


async def rerun(
    conn: Connection, issue: IssueFacts, task_id: str | None, actor: Actor
) -> tuple[Task, list[Consequence]]:
    """Run an agent on an issue once more, with a fresh session.

    With a task: its agent, role and trigger. Without: the assigned agent, or the leader of the
    assigned squad. A person may repeat a run on an issue that is closed. Raises Invalid, Conflict.
    """
    again: Record | None = None
    target = issue.target
    if task_id is not None:
        again = await get_task(conn, task_id)
        if again is None or again["issue_id"] != issue.id:
            raise Invalid("task does not belong to this issue")
        target = Target("agent", again["agent_id"])
    if target is None:
        raise Invalid("issue is not assigned to an agent or squad")
    if actor.actor_type == "agent" and issue.status in ("done", "cancelled"):
        raise Conflict(f"the issue is {issue.status}; only a person may run it again")
    found = (await candidates(conn, issue.workspace_id, [(issue.id, target)], actor)).get(issue.id)
    if not found or not found[0].bound:
        raise Invalid("agent cannot take this task")
    if not found[0].open:
        raise Forbidden("you do not have access to this agent")
    choice = Choice(
        agent_id=found[0].agent_id,
        source="rerun",
        leads=again["is_leader_task"] if again else found[0].leads,
    )
    consequences = await cancel_issue(conn, issue.id, agent_id=choice.agent_id)
    rows, told = await queue(
        conn,
        issue,
        [choice],
        actor,
        trigger_comment_id=again["trigger_comment_id"] if again else None,
        trigger_summary=(again["trigger_summary"] or "") if again else "",
        fresh=True,
        must=True,
    )
    if not rows:
        raise Invalid("agent cannot take this task")
    return task_of(rows[0]), consequences + told


# --- what would happen ----------------------------------------------------------------------------


async def preview_comment(
    conn: Connection,
    issue: IssueFacts,
    *,
    content: str,
    parent_id: str | None,
    actor: Actor,
    suppress_agent_ids: Collection[str] = (),
    editing_comment_id: str | None = None,
) -> list[Choice]:
    """The agents a comment sets to work; tasks of the comment being edited are not in the way."""
    by_member = actor.actor_type == "member"
    remark = Remark(content=content, by_member=by_member, author_id=actor.actor_id)
    if is_note(content):
        return []
    if parent_id is not None and by_member:
        parent = await conn.fetchrow(SQL.replied_to, parent_id, issue.agent_id)
        if parent is not None:
            remark = Remark(
                content=content,
                by_member=True,
                author_id=actor.actor_id,
                parent_by_member=parent["author_type"] == "member",
                parent_content=parent["content"],
                assignee_answered=parent["answered"],
            )
    asked = [(issue.id, target) for target in rules.targets(issue, remark)]
    found = await candidates(
        conn, issue.workspace_id, asked, actor, editing_comment_id=editing_comment_id
    )
    return rules.commented(issue, remark, found.get(issue.id, ()), suppressed=suppress_agent_ids)


# --- the steps ------------------------------------------------------------------------------------


def gate(actor: Actor) -> str | None:
    """Whose right to private agents is checked; None: the server's own, which may use all."""
    return actor.actor_id if actor.actor_type == "agent" else actor.user_id


async def candidates(
    conn: Connection,
    workspace_id: str,
    asked: Sequence[tuple[str, Target]],
    actor: Actor,
    *,
    editing_comment_id: str | None = None,
) -> dict[str, list[Candidate]]:
    """Look up the agents that targets stand for, with respect to each issue. One statement."""
    if not asked:
        return {}
    wanted = [{"issue_id": issue, "kind": to.kind, "id": to.id} for issue, to in asked]
    rows = await conn.fetch(SQL.candidates, workspace_id, wanted, gate(actor), editing_comment_id)
    found: dict[str, list[Candidate]] = {}
    for row in rows:
        found.setdefault(row["issue_id"], []).append(_candidate_of(row))
    return found


@attrs.frozen
class Wanted:
    """A run that is to be queued: the agent, and what it is to answer if anything."""

    issue: IssueFacts
    choice: Choice
    trigger_comment_id: str | None = None
    trigger_summary: str = ""


async def queue(
    conn: Connection,
    issue: IssueFacts,
    chosen: Sequence[Choice],
    actor: Actor,
    *,
    trigger_comment_id: str | None = None,
    trigger_summary: str = "",
    fresh: bool = False,
    must: bool = False,
) -> tuple[list[Record], list[Consequence]]:
    """Queue a task for each choice on one issue, as `queue_all` does."""
    wanted = [Wanted(issue, choice, trigger_comment_id, trigger_summary) for choice in chosen]
    return await queue_all(conn, wanted, actor, fresh=fresh, must=must)


async def queue_all(
    conn: Connection,
    wanted: Sequence[Wanted],
    actor: Actor,
    *,
    handoff_note: str = "",
    fresh: bool = False,
    must: bool = False,
) -> tuple[list[Record], list[Consequence]]:
    """Queue what is wanted in one workspace, where agents may go on; return the rows and what follows.

    With `must` a refusal is Conflict.
    """
    if not wanted:
        return [], []
    depths: dict[str, int] = {}
    told: list[Consequence] = []
    if actor.actor_type == "agent":
        agents: dict[str, list[str]] = {}
        for one in wanted:
            agents.setdefault(one.issue.id, []).append(one.choice.agent_id)
        leaves, told = await loops.ask(conn, agents, actor.task_id)
        refused = next((leave.refused for leave in leaves.values() if leave.refused), "")
        if refused and must:
            raise Conflict(refused)
        depths = {issue: leave.depth for issue, leave in leaves.items()}
        wanted = [one for one in wanted if not leaves[one.issue.id].refused]
        if not wanted:
            return [], told
    rows = await conn.fetch(
        SQL.enqueue,
        wanted[0].issue.workspace_id,
        [_row(one, depths.get(one.issue.id, 0)) for one in wanted],
        actor.actor_type,
        actor.actor_id,
        handoff_note,
        fresh,
    )
    for row in rows:
        told.append(events.task_event("task:queued", row))
        told.append(TaskAvailable(row["runtime_id"], row["id"]))
    return rows, told


def _row(one: Wanted, depth: int) -> dict[str, Any]:
    return {
        "issue_id": one.issue.id,
        "agent_id": one.choice.agent_id,
        "leads": one.choice.leads,
        "priority": PRIORITY.get(one.issue.priority, 0),
        "comment_id": one.trigger_comment_id,
        "summary": one.trigger_summary,
        "depth": depth,
    }


async def wake(conn: Connection, agent_id: str) -> list[Consequence]:
    """Tell the agent's runtime of what waits for it: it may be another one, or have a place now."""
    rows = await conn.fetch(SQL.waiting, agent_id)
    return [TaskAvailable(row["runtime_id"], row["id"]) for row in rows]


async def _candidate(conn: Connection, issue: IssueFacts, actor: Actor) -> Candidate | None:
    """The agent that the assignee stands for."""
    return (await _assignees(conn, [issue], actor)).get(issue.id)


async def _assignees(
    conn: Connection, issues: Sequence[IssueFacts], actor: Actor
) -> dict[str, Candidate]:
    """The agents that the assignees of issues of one workspace stand for, by issue."""
    asked = [(issue.id, issue.target) for issue in issues if issue.target is not None]
    if not asked:
        return {}
    found = await candidates(conn, issues[0].workspace_id, asked, actor)
    return {issue_id: those[0] for issue_id, those in found.items()}


def _candidate_of(row: Record) -> Candidate:
    same: dict[str, Any] = {
        key: row[key]
        for key in (
            *("agent_id", "name", "avatar_url", "archived", "online", "open", "pending"),
            *("led_last", "cli_version"),
        )
    }
    return Candidate(target=Target(row["kind"], row["target_id"]), **same)


async def _works_on(conn: Connection, actor: Actor) -> str | None:
    """The issue that the actor is at work on, if it is an agent."""
    if actor.actor_type != "agent" or actor.task_id is None:
        return None
    issue_id: str | None = await conn.fetchval(SQL.issue_of_task, actor.task_id)
    return issue_id
