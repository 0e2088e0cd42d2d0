"""Who gets a task when something happens to an issue, and what keeps agents from looping.

Woken by the endpoints that write issues and comments, in their transaction. The rules are pure
functions of the event; the statement that queues decides the races: an agent has at most one
pending task on an issue, so further triggers fall into the one that waits (spec 02 §3).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final, Protocol

import attrs

from server.consequences import Consequence, TaskAvailable
from server.dispatch import events
from server.dispatch.finish import cancel_issue
from server.errors import Invalid
from server.store.queries import Connection, Record, load
from server.store.tasks import get_task, task_of
from shared.ids import canonical_id, is_id
from shared.wire.task import Task

SQL: Final = load("enqueue")

PRIORITY: Final = {"urgent": 4, "high": 3, "medium": 2, "low": 1, "none": 0}

SUMMARY_LENGTH: Final = 200

AGENT_TASKS_AN_HOUR: Final = 20
"""How many tasks agents may cause on one issue in an hour. The reference sets no limit, and two
agents that mention each other go on for ever."""

_MENTION: Final = re.compile(
    r"\[@?(.+?)\]\(mention://(member|agent|squad|issue|all)/([0-9a-fA-F-]+|all)\)"
)
_BLANK: Final = re.compile(r"[\n\r\t]")


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


@attrs.frozen(kw_only=True)
class IssueFacts:
    """What the rules need to know of an issue, as it is after the change."""

    id: str
    workspace_id: str
    status: str
    priority: str = "none"
    assignee_type: str | None = None
    assignee_id: str | None = None
    identifier: str = ""

    @property
    def agent_id(self) -> str | None:
        """The agent it is assigned to."""
        return self.assignee_id if self.assignee_type == "agent" else None


@attrs.frozen
class Mention:
    """A mention in a comment: `kind` is member, agent, squad, issue or all."""

    kind: str
    id: str


async def issue_created(conn: Connection, issue: IssueFacts, actor: Actor) -> list[Consequence]:
    """Queue the assigned agent, unless the issue waits in the backlog."""
    if issue.agent_id is None or issue.status == "backlog":
        return []
    return _told(await _enqueue(conn, issue, [issue.agent_id], actor, gated=False))


async def assignee_changed(
    conn: Connection,
    issue: IssueFacts,
    actor: Actor,
    *,
    suppress_run: bool = False,
    handoff_note: str = "",
) -> list[Consequence]:
    """Cancel what is active on the issue, then queue the new assignee unless told not to."""
    consequences = await cancel_issue(conn, issue.id)
    if issue.agent_id is not None and issue.status != "backlog" and not suppress_run:
        rows = await _enqueue(
            conn, issue, [issue.agent_id], actor, gated=False, handoff_note=handoff_note
        )
        consequences += _told(rows)
    return consequences


async def status_changed(
    conn: Connection,
    issue: IssueFacts,
    previous_status: str,
    actor: Actor,
    *,
    suppress_run: bool = False,
) -> list[Consequence]:
    """Leaving the backlog starts the assignee; becoming cancelled cancels what is active."""
    if issue.status == "cancelled":
        return await cancel_issue(conn, issue.id)
    leaves_backlog = previous_status == "backlog" and issue.status not in ("backlog", "done")
    if issue.agent_id is None or not leaves_backlog or suppress_run:
        return []
    if await _works_on(conn, actor, issue.id):
        return []
    return _told(await _enqueue(conn, issue, [issue.agent_id], actor, gated=False))


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
    """Queue the agents that the comment addresses."""
    if is_note(content):
        return []
    parent = None
    if parent_id is not None and actor.actor_type == "member":
        parent = await conn.fetchrow(SQL.replied_to, parent_id, issue.agent_id)
    agents = [
        agent_id
        for agent_id in addressed(
            content,
            by_member=actor.actor_type == "member",
            assignee=issue.agent_id,
            parent_by_member=parent is not None and parent["author_type"] == "member",
            parent_content="" if parent is None else parent["content"],
            assignee_answered=parent is not None and parent["answered"],
        )
        if agent_id not in suppress_agent_ids
    ]
    if not agents:
        return []
    rows = await _enqueue(
        conn,
        issue,
        agents,
        actor,
        gated=True,
        trigger_comment_id=comment_id,
        trigger_summary=summarise(content),
    )
    return _told(rows)


async def rerun(
    conn: Connection, issue: IssueFacts, task_id: str | None, actor: Actor
) -> tuple[Task, list[Consequence]]:
    """Run an agent on an issue once more, with a fresh session.

    With a task: its agent, role and trigger. Without: the assigned agent. Raises Invalid.
    """
    again: Record | None = None
    agent_id = issue.agent_id
    if task_id is not None:
        again = await get_task(conn, task_id)
        if again is None or again["issue_id"] != issue.id:
            raise Invalid("task does not belong to this issue")
        agent_id = again["agent_id"]
    if agent_id is None:
        raise Invalid("issue is not assigned to an agent")
    consequences = await cancel_issue(conn, issue.id, agent_id=agent_id)
    rows = await _enqueue(
        conn,
        issue,
        [agent_id],
        actor,
        gated=True,
        trigger_comment_id=again["trigger_comment_id"] if again else None,
        trigger_summary=(again["trigger_summary"] or "") if again else "",
        leader=again["is_leader_task"] if again else False,
        fresh=True,
    )
    if not rows:
        raise Invalid("agent cannot take this task")
    return task_of(rows[0]), consequences + _told(rows)


def is_note(content: str) -> bool:
    """Tell whether the comment is for people only: its first word is `/note`. Pure."""
    words = content.split(None, 1)
    return bool(words) and words[0].lower() == "/note"


def mentions_in(content: str) -> list[Mention]:
    """The mentions of a comment, each once, in order; malformed ids are no mentions. Pure."""
    found: dict[Mention, None] = {}
    for match in _MENTION.finditer(content):
        kind, ref = match[2], match[3]
        if kind == "all" or ref == "all":
            found[Mention("all", "all")] = None
        elif is_id(ref):
            found[Mention(kind, canonical_id(ref))] = None
    return list(found)


def addressed(
    content: str,
    *,
    by_member: bool,
    assignee: str | None,
    parent_by_member: bool = False,
    parent_content: str = "",
    assignee_answered: bool = False,
) -> list[str]:
    """The agents a comment sets to work, each once (spec 02 §3.4). Pure.

    Rule 1: a member's comment reaches the assigned agent, unless it is for others or part of a
    conversation between people. Rule 3: mentions reach whom they name; a member's reply that names
    nobody passes on what its member-written parent named. Agents never do that.
    """
    mentions = [mention for mention in mentions_in(content) if mention.kind != "issue"]
    of_parent = [mention for mention in mentions_in(parent_content) if mention.kind != "issue"]
    agents: dict[str, None] = {}
    if by_member and assignee is not None:
        me = Mention("agent", assignee)
        for_all = any(mention.kind == "all" for mention in mentions)
        for_me = not for_all and (not mentions or me in mentions)
        between_people = parent_by_member and not (
            me in mentions or me in of_parent or assignee_answered
        )
        if for_me and not between_people:
            agents[assignee] = None
    if by_member and parent_by_member and not mentions_in(content):
        mentions = of_parent
    for mention in mentions:
        if mention.kind == "agent":
            agents[mention.id] = None
    return list(agents)


def summarise(content: str) -> str:
    """The first 200 characters on one line, for showing beside a task. Pure."""
    line = _BLANK.sub(" ", content).strip()
    return line if len(line) <= SUMMARY_LENGTH else line[:SUMMARY_LENGTH] + "…"


async def _works_on(conn: Connection, actor: Actor, issue_id: str) -> bool:
    """Whether the actor is an agent at work on this very issue."""
    if actor.actor_type != "agent" or actor.task_id is None:
        return False
    task = await get_task(conn, actor.task_id)
    return task is not None and task["issue_id"] == issue_id


async def _enqueue(
    conn: Connection,
    issue: IssueFacts,
    agent_ids: Sequence[str],
    actor: Actor,
    *,
    gated: bool,
    trigger_comment_id: str | None = None,
    trigger_summary: str = "",
    handoff_note: str = "",
    fresh: bool = False,
    leader: bool = False,
) -> list[Record]:
    """`gated`: the actor's right to private agents was not checked yet. Agents may use all."""
    return await conn.fetch(
        SQL.enqueue,
        issue.workspace_id,
        issue.id,
        list(agent_ids),
        PRIORITY.get(issue.priority, 0),
        trigger_comment_id,
        trigger_summary,
        actor.actor_type,
        actor.actor_id,
        actor.user_id if gated and actor.actor_type == "member" else None,
        handoff_note,
        fresh,
        leader,
        AGENT_TASKS_AN_HOUR,
    )


def _told(rows: Sequence[Record]) -> list[Consequence]:
    consequences: list[Consequence] = []
    for row in rows:
        consequences.append(events.task_event("task:queued", row))
        consequences.append(TaskAvailable(row["runtime_id"], row["id"]))
    return consequences
