"""What may change on an issue, and what follows from it (spec 06 §6.2, 02 §3.3).

`read_patch` reads a body into a Patch, `apply` carries it out on a locked issue inside the
caller's transaction. Used for one issue and for many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from server.consequences import Consequence
from server.dispatch import derived, enqueue
from server.dispatch.autopilot_end import issue_moved
from server.dispatch.children import child_closed
from server.dispatch.rules import NOWHERE, IssueFacts, Target
from server.errors import Forbidden, Invalid, NotFound
from server.rights import NOTHING, Thing
from server.store import people, work
from server.store.attachments import bind_to_issue
from server.store.queries import Connection
from server.web.auth import Membership
from server.web.fields import Fields
from server.web.projects_api import check_project
from server.web.unit import event
from shared.wire.work import PRIORITIES, STATUSES, Issue

ASSIGNEES: Final = ("member", "agent", "squad")
MOST_ATTACHMENTS: Final = 500

_TEXTS: Final = ("title", "description")
"""What somebody wrote, which agents leave as it is."""

_FLAGS: Final = ("status", "priority", "start_date", "due_date", "title")
_PREVIOUS: Final = (
    "title",
    "assignee_type",
    "assignee_id",
    "status",
    "priority",
    "start_date",
    "due_date",
    "description",
)


@attrs.frozen(kw_only=True)
class Patch:
    """The columns that were sent with their new values, and how to treat the run they start."""

    changes: Mapping[str, Any] = attrs.field(factory=dict)
    suppress_run: bool = False
    handoff_note: str = ""
    attachment_ids: tuple[str, ...] = ()


def read_patch(sent: Fields) -> Patch:
    """Read a partial update. Raises Invalid.

    Null clears what is nullable, and is ignored for the rest.
    """
    changes: dict[str, Any] = {}
    if sent.given("title"):
        changes["title"] = sent.required_text("title")
    if sent.given("description"):
        changes["description"] = sent.text("description")
    if sent.given("status"):
        changes["status"] = sent.one_of("status", STATUSES, "")
    if sent.given("priority"):
        changes["priority"] = sent.one_of("priority", PRIORITIES, "")
    if sent.given("position"):
        changes["position"] = sent.number("position")
    if sent.sent("assignee_type"):
        changes["assignee_type"] = sent.text("assignee_type") or None
    for key in ("assignee_id", "parent_issue_id", "project_id"):
        if sent.sent(key):
            changes[key] = sent.id(key)
    if sent.sent("stage"):
        changes["stage"] = sent.whole("stage", low=1)
    for key in ("start_date", "due_date"):
        if sent.sent(key):
            day = sent.day(key)
            changes[key] = None if day is None else day.isoformat()
    return Patch(
        attachment_ids=tuple(sent.ids("attachment_ids", most=MOST_ATTACHMENTS)),
        changes=changes,
        suppress_run=sent.flag("suppress_run"),
        handoff_note=sent.text("handoff_note"),
    )


async def apply(
    conn: Connection, caller: Membership, before: Issue, patch: Patch
) -> tuple[Issue, list[Consequence]]:
    """Change a locked issue. Raises Invalid or Forbidden before anything is written."""
    caller.check(work_thing(caller, before), "issue.update")
    if any(patch.changes.get(key, getattr(before, key)) != getattr(before, key) for key in _TEXTS):
        caller.check(made(caller, before), "issue.rewrite")
    changes = dict(patch.changes)
    assigned = await _check_assignment(conn, caller, before, changes)
    if changes.get("parent_issue_id") is not None:
        await _check_new_parent(conn, caller, before, changes["parent_issue_id"])
    if changes.get("project_id") is not None and changes["project_id"] != before.project_id:
        await check_project(conn, caller, changes["project_id"])
    after = await work.update_issue(conn, before, changes)
    await bind_to_issue(conn, after, patch.attachment_ids)
    told: list[Consequence] = [
        event(caller, "issue:updated", **_describe(before, after, changes, assigned=assigned))
    ]
    told += await derived.issue_changed(conn, before, after, caller.actor)
    told += await _start_and_stop(conn, caller, before, after, patch, assigned=assigned)
    return after, told


async def _start_and_stop(
    conn: Connection,
    caller: Membership,
    before: Issue,
    after: Issue,
    patch: Patch,
    *,
    assigned: bool,
) -> list[Consequence]:
    told: list[Consequence] = []
    moved = after.status != before.status
    if assigned:
        told += await enqueue.assignee_changed(
            conn,
            facts(after),
            caller.actor,
            # A run that starts and is cancelled in the same breath helps nobody.
            suppress_run=patch.suppress_run or (moved and after.status == "cancelled"),
            handoff_note=patch.handoff_note,
        )
    elif moved:
        told += await enqueue.status_changed(
            conn, facts(after), before.status, caller.actor, suppress_run=patch.suppress_run
        )
    if moved:
        told += await child_closed(conn, before, after, caller.actor)
        told += await issue_moved(conn, after.id)
    return told


def _describe(
    before: Issue, after: Issue, changes: Mapping[str, Any], *, assigned: bool
) -> dict[str, Any]:
    """What the event says (01 §5.5). A description that was sent counts as changed."""
    flags = {f"{key}_changed": getattr(before, key) != getattr(after, key) for key in _FLAGS}
    previous = {f"prev_{key}": getattr(before, key) for key in _PREVIOUS}
    return {
        "issue": after,
        "assignee_changed": assigned,
        **flags,
        "description_changed": "description" in changes,
        **previous,
        "creator_type": after.creator_type,
        "creator_id": after.creator_id,
    }


async def _check_assignment(
    conn: Connection, caller: Membership, before: Issue, changes: Mapping[str, Any]
) -> bool:
    """Check the assignee that results; tell whether it is somebody new.

    Taking the assignee away is not "changed": running work goes on (02 §3.3).
    """
    kind = changes.get("assignee_type", before.assignee_type)
    who = changes.get("assignee_id", before.assignee_id)
    if (kind, who) == (before.assignee_type, before.assignee_id):
        return False
    await check_assignee(conn, caller, kind, who)
    return kind is not None


async def check_assignee(
    conn: Connection, caller: Membership, kind: str | None, who: str | None
) -> None:
    """Raise Invalid unless this can be assigned, Forbidden for a private agent of others."""
    if (kind is None) != (who is None):
        raise Invalid("assignee_type and assignee_id must be given together")
    if kind is None or who is None:
        return
    if kind not in ASSIGNEES:
        raise Invalid(f"invalid assignee_type: must be one of {', '.join(ASSIGNEES)}")
    if kind == "member":
        if not await people.is_member(conn, caller.workspace_id, who):
            raise Invalid("assignee is not a member of this workspace")
        return
    target = Target(kind, who)
    found = await enqueue.candidates(conn, caller.workspace_id, [(NOWHERE, target)], caller.actor)
    candidate = next(iter(found.get(NOWHERE, ())), None)
    if candidate is None:
        raise Invalid(
            f"assignee is not {'an agent' if kind == 'agent' else 'an active squad'} here"
        )
    if candidate.archived:
        raise Invalid(f"assignee is {'an' if kind == 'agent' else 'led by an'} archived agent")
    if not candidate.open:
        raise Forbidden("you do not have access to this agent")


async def check_parent(conn: Connection, caller: Membership, parent_id: str) -> work.Parent:
    """Return the parent; it stays until the transaction ends. Raises Invalid."""
    parent = await work.find_parent(conn, caller.workspace_id, parent_id)
    if parent is None:
        raise Invalid("parent issue not found in this workspace")
    return parent


async def _check_new_parent(
    conn: Connection, caller: Membership, issue: Issue, parent_id: str
) -> None:
    if parent_id == issue.id:
        raise Invalid("an issue cannot be its own parent")
    await check_parent(conn, caller, parent_id)
    if await work.would_circle(conn, caller.workspace_id, issue.id, parent_id):
        raise Invalid("this parent is a descendant of the issue")


def work_thing(caller: Membership, issue: Issue) -> Thing:
    """An issue as the table of rights knows it: whether it is among the work of an agent that asks.

    That is its task's issue, the parent and the children of it, and what the agent made itself. A
    task without an issue (a chat, an autopilot's) is about whatever it is told.
    """
    actor = caller.actor
    if actor.agent_id is None:
        return NOTHING
    mine = (
        actor.issue_id is None
        or actor.issue_id in (issue.id, issue.parent_issue_id)
        or actor.parent_id == issue.id
        or made(caller, issue).mine
    )
    return Thing(mine=mine)


def made(caller: Membership, issue: Issue) -> Thing:
    """An issue, and whether the agent that asks has made it."""
    creator = (issue.creator_type, issue.creator_id)
    return Thing(mine=creator == (caller.actor.actor_type, caller.actor.actor_id))


def existing(issue: Issue | None) -> Issue:
    """Return the issue. Raises NotFound when there is none."""
    if issue is None:
        raise NotFound("issue not found")
    return issue


def facts(issue: Issue) -> IssueFacts:
    """Return what the rules of dispatch need to know of an issue."""
    return IssueFacts(
        id=issue.id,
        workspace_id=issue.workspace_id,
        identifier=issue.identifier,
        status=issue.status,
        priority=issue.priority,
        assignee_type=issue.assignee_type,
        assignee_id=issue.assignee_id,
    )
