"""What follows for people when an issue is made, changed, commented or failed (spec 02 §11.3).

Each function is one statement in the transaction of the change, and returns the events of what it
wrote. System comments tell nobody: whoever caused them is told by something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from server.consequences import Consequence
from server.dispatch import events
from server.dispatch.outcome import Ended
from server.markdown import mentions_in
from server.store.queries import Connection, load
from shared.wire.event import Event
from shared.wire.work import Issue

SQL: Final = load("derived")

_FIELDS: Final = ("status", "priority", "start_date", "due_date")
_MUTES: Final = {"status": "status_changes"}

_ALONE: Final = (*(f"{name}_changed" for name in _FIELDS), "task_failed")

_FIRST, _SECOND = 1, 2
"""Of notes with a rank a listener gets the first only: a mention rather than the comment it is in."""

_Row = dict[str, Any]


class Actor(Protocol):
    """Who did it."""

    @property
    def actor_type(self) -> str: ...
    @property
    def actor_id(self) -> str: ...


async def issue_made(conn: Connection, issue: Issue, actor: Actor) -> list[Consequence]:
    """Its creator and assignee follow it, and the assignee is told."""
    follow = [_follower(issue.creator_type, issue.creator_id, "creator")]
    notes: list[_Row] = []
    if issue.assignee_type in {"member", "agent"} and issue.assignee_id:
        follow.append(_follower(issue.assignee_type, issue.assignee_id, "assignee"))
    if issue.assignee_type == "member":
        notes.append(_assigned(issue))
    follow += [
        _follower(mention.kind, mention.id, "mentioned")
        for mention in mentions_in(issue.description or "")
        if mention.kind in {"member", "agent"}
    ]
    made = [{"action": "created"}]
    return await _derive_one(conn, issue, actor, follow=follow, done=made, notes=notes)


async def issues_changed(
    conn: Connection, changes: Sequence[tuple[Issue, Issue]], actor: Actor
) -> list[Consequence]:
    """Their followers are told of what matters; everything goes into the timeline.

    `changes` are issues of one workspace before and after.
    """
    done: list[_Row] = []
    notes: list[_Row] = []
    follow: list[_Row] = []
    for before, after in changes:
        one = _changed(before, after)
        follow += _of(after, one[0])
        done += _of(after, one[1])
        notes += _of(after, one[2])
    if not done:
        return []
    return await _derive(
        conn, [after for _, after in changes], actor, follow=follow, done=done, notes=notes
    )


def _changed(before: Issue, after: Issue) -> tuple[list[_Row], list[_Row], list[_Row]]:
    """Who follows an issue from now on, what was done to it, and what is to be told."""
    done: list[_Row] = []
    notes: list[_Row] = []
    follow: list[_Row] = []
    for name in _FIELDS:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            change = {"from": old, "to": new}
            done.append({"action": f"{name}_changed", "details": change})
            notes.append(_note(f"{name}_changed", _MUTES.get(name, "updates"), details=change))
    if before.title != after.title:
        change = {"from": before.title, "to": after.title}
        done.append({"action": "title_changed", "details": change})
    if before.description != after.description:
        done.append({"action": "description_updated"})
        known = {mention.id for mention in mentions_in(before.description or "")}
        follow += [
            _follower(mention.kind, mention.id, "mentioned")
            for mention in mentions_in(after.description or "")
            if mention.kind in {"member", "agent"} and mention.id not in known
        ]
    was, now = (before.assignee_type, before.assignee_id), (after.assignee_type, after.assignee_id)
    if was != now:
        change = {"from_type": was[0], "from_id": was[1], "to_type": now[0], "to_id": now[1]}
        done.append({"action": "assignee_changed", "details": change})
        if now[0] in {"member", "agent"} and now[1]:
            follow.append(_follower(now[0], now[1], "assignee"))
        if now[0] == "member":
            notes.append(_assigned(after))
        if was[0] == "member":
            notes.append(
                _note("unassigned", "assignments", user_id=was[1], details=change, rank=_FIRST)
            )
        notes.append(_note("assignee_changed", "assignments", details=change, rank=_SECOND))
    return follow, done, notes


async def commented(
    conn: Connection, issue: Issue, comment_id: str, content: str, actor: Actor
) -> list[Consequence]:
    """The author follows the issue now; who is mentioned, and who follows it, is told."""
    about = {"comment_id": comment_id}
    body = content[:500]
    follow = [_follower(actor.actor_type, actor.actor_id, "commenter")]
    notes = [_note("new_comment", "comments", body=body, details=about, rank=_SECOND)]
    for mention in mentions_in(content):
        who: _Row
        if mention.kind == "member":
            who = {"user_id": mention.id}
            follow.append(_follower("member", mention.id, "mentioned"))
        elif mention.kind == "squad":
            who = {"squad_id": mention.id}
        elif mention.kind == "all":
            who = {"everyone": True}
        else:
            continue
        notes.append(_note("mentioned", "comments", body=body, details=about, rank=_FIRST, **who))
    return await _derive_one(conn, issue, actor, follow=follow, done=[], notes=notes)


async def settle_failures(conn: Connection, ended: Sequence[Ended]) -> list[Consequence]:
    """Settler of tasks on issues: followers hear of failures that nobody takes over."""
    failed = [
        {
            "task_id": one.id,
            "issue_id": one.before["issue_id"],
            "agent_id": one.task["agent_id"],
            "text": one.text[:500],
        }
        for one in ended
        if one.status == "failed" and one.retry is None and one.before["issue_id"]
    ]
    if not failed:
        return []
    row = await conn.fetchrow(SQL.tell_failed, failed)
    assert row is not None
    told: list[Consequence] = [events.activity_created(done) for done in row["activities"]]
    told += [events.inbox_new(item) for item in row["items"]]
    return told


async def _derive_one(
    conn: Connection,
    issue: Issue,
    actor: Actor,
    *,
    follow: Sequence[_Row],
    done: Sequence[_Row],
    notes: Sequence[_Row],
) -> list[Consequence]:
    return await _derive(
        conn,
        [issue],
        actor,
        follow=_of(issue, follow),
        done=_of(issue, done),
        notes=_of(issue, notes),
    )


async def _derive(
    conn: Connection,
    issues: Sequence[Issue],
    actor: Actor,
    *,
    follow: Sequence[_Row],
    done: Sequence[_Row],
    notes: Sequence[_Row],
) -> list[Consequence]:
    """Write what follows for issues of one workspace; each row says for which of them."""
    workspace_id = issues[0].workspace_id
    statuses = {issue.id: issue.status for issue in issues}
    row = await conn.fetchrow(
        SQL.derive,
        workspace_id,
        actor.actor_type,
        actor.actor_id,
        list(follow),
        list(done),
        list(notes),
    )
    assert row is not None
    told: list[Consequence] = [
        Event(type="subscriber:added", payload=follower, workspace_id=workspace_id)
        for follower in row["followers"]
    ]
    told += [events.activity_created(activity) for activity in row["activities"]]
    told += [
        events.inbox_new(item, issue_status=statuses[item["issue_id"]]) for item in row["items"]
    ]
    return told


def _of(issue: Issue, rows: Sequence[_Row]) -> list[_Row]:
    return [row | {"issue_id": issue.id} for row in rows]


def _follower(kind: str, user_id: str, reason: str) -> _Row:
    return {"user_type": kind, "user_id": user_id, "reason": reason}


def _assigned(issue: Issue) -> _Row:
    return _note(
        "issue_assigned",
        "assignments",
        severity="action_required",
        user_id=issue.assignee_id,
        rank=_FIRST,
    )


def _note(kind: str, mute: str, *, severity: str = "info", **more: Any) -> _Row:
    """A note. Those without a rank of their own are told each for itself."""
    alone = -1 - _ALONE.index(kind) if kind in _ALONE else 0
    return {"type": kind, "severity": severity, "mute": mute, "rank": alone} | more
