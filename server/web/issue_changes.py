"""What may change on an issue, and what follows from it (spec 06 §6.2, 02 §3.3).

`read_patch` reads a body into a Patch, `apply` carries it out on a locked issue inside the
caller's transaction. Used for one issue and for many.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import attrs

from server.consequences import Consequence
from server.dispatch import derived, enqueue
from server.dispatch.autopilot_end import issues_moved
from server.dispatch.children import children_closed
from server.dispatch.rules import NOWHERE, Candidate, IssueFacts, Target
from server.errors import DomainError, Forbidden, Invalid, NotFound
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


@attrs.frozen(kw_only=True)
class Applied:
    """What became of a change of several issues: those changed, and by id why others were not."""

    changed: Sequence[Issue] = ()
    refused: Mapping[str, DomainError] = attrs.field(factory=dict)
    told: Sequence[Consequence] = ()


async def apply(
    conn: Connection, caller: Membership, before: Issue, patch: Patch
) -> tuple[Issue, list[Consequence]]:
    """Change a locked issue. Raises Invalid or Forbidden before anything is written."""
    done = await apply_to_all(conn, caller, [before], patch)
    if before.id in done.refused:
        raise done.refused[before.id]
    return done.changed[0], list(done.told)


async def apply_to_all(
    conn: Connection, caller: Membership, issues: Sequence[Issue], patch: Patch
) -> Applied:
    """Change locked issues of one workspace alike, in a number of statements that does not grow.

    Files go to the first of them.
    """
    changes = patch.changes
    refused: dict[str, DomainError] = {}
    for issue in issues:
        try:
            _check_rights(caller, issue, changes)
        except DomainError as error:
            refused[issue.id] = error
    assigned = await _check_assignments(conn, caller, issues, changes, refused)
    if changes.get("parent_issue_id") is not None:
        await _check_new_parent(conn, caller, issues, changes["parent_issue_id"], refused)
    project_id = changes.get("project_id")
    moving = [issue for issue in issues if issue.project_id != project_id]
    if moving and project_id is not None:
        try:
            await check_project(conn, caller, project_id)
        except DomainError as error:
            for issue in moving:
                refused.setdefault(issue.id, error)
    fitting = [issue for issue in issues if issue.id not in refused]
    if not fitting:
        return Applied(refused=refused)
    by = (caller.actor.actor_type, caller.actor.actor_id)
    changed = await work.update_issues(conn, fitting, changes, by)
    await bind_to_issue(conn, changed[0], patch.attachment_ids)
    both = list(zip(fitting, changed, strict=True))
    told: list[Consequence] = [
        event(
            caller,
            "issue:updated",
            **_describe(before, after, changes, assigned=after.id in assigned),
        )
        for before, after in both
    ]
    told += await derived.issues_changed(conn, both, caller.actor)
    told += await _start_and_stop(conn, caller, both, patch, assigned)
    return Applied(changed=changed, refused=refused, told=told)


def _check_rights(caller: Membership, before: Issue, changes: Mapping[str, Any]) -> None:
    caller.check(work_thing(caller, before), "issue.update")
    if any(changes.get(key, getattr(before, key)) != getattr(before, key) for key in _TEXTS):
        caller.check(made(caller, before), "issue.rewrite")


async def _start_and_stop(
    conn: Connection,
    caller: Membership,
    changes: Sequence[tuple[Issue, Issue]],
    patch: Patch,
    assigned: Collection[str],
) -> list[Consequence]:
    moved = [(before, after) for before, after in changes if after.status != before.status]
    given = [after for _, after in changes if after.id in assigned]
    cancelled = {after.id for _, after in moved if after.status == "cancelled"}
    told = await enqueue.assignees_changed(
        conn,
        [facts(issue) for issue in given],
        caller.actor,
        # A run that starts and is cancelled in the same breath helps nobody.
        suppressed=[issue.id for issue in given] if patch.suppress_run else cancelled,
        handoff_note=patch.handoff_note,
    )
    told += await enqueue.statuses_changed(
        conn,
        [(facts(after), before.status) for before, after in moved if after.id not in assigned],
        caller.actor,
        suppress_run=patch.suppress_run,
    )
    if moved:
        told += await children_closed(conn, moved, caller.actor)
        told += await issues_moved(conn, [after.id for _, after in moved])
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


_Assignee = tuple[str | None, str | None]


async def _check_assignments(
    conn: Connection,
    caller: Membership,
    issues: Sequence[Issue],
    changes: Mapping[str, Any],
    refused: dict[str, DomainError],
) -> set[str]:
    """Check the assignees that result; return the issues that get somebody new.

    Taking the assignee away is not "changed": running work goes on (02 §3.3).
    """
    wanted: dict[str, _Assignee] = {}
    for issue in issues:
        was = (issue.assignee_type, issue.assignee_id)
        now = (changes.get("assignee_type", was[0]), changes.get("assignee_id", was[1]))
        if now != was:
            wanted[issue.id] = now
    wrong = await _wrong_assignees(conn, caller, set(wanted.values()))
    assigned = set()
    for issue_id, who in wanted.items():
        if who in wrong:
            refused.setdefault(issue_id, wrong[who])
        elif who[0] is not None:
            assigned.add(issue_id)
    return assigned


async def check_assignee(
    conn: Connection, caller: Membership, kind: str | None, who: str | None
) -> None:
    """Raise Invalid unless this can be assigned, Forbidden for a private agent of others."""
    for error in (await _wrong_assignees(conn, caller, {(kind, who)})).values():
        raise error


async def _wrong_assignees(
    conn: Connection, caller: Membership, wanted: Collection[_Assignee]
) -> dict[_Assignee, DomainError]:
    """Those that cannot be assigned, and why. Two statements at most."""
    wrong: dict[_Assignee, DomainError] = {}
    members: list[str] = []
    targets: list[Target] = []
    for kind, who in wanted:
        if (kind is None) != (who is None):
            text = "assignee_type and assignee_id must be given together"
            wrong[kind, who] = Invalid(text)
        elif kind is None or who is None:
            continue
        elif kind not in ASSIGNEES:
            wrong[kind, who] = Invalid(
                f"invalid assignee_type: must be one of {', '.join(ASSIGNEES)}"
            )
        elif kind == "member":
            members.append(who)
        else:
            targets.append(Target(kind, who))
    if members:
        here = await people.members_among(conn, caller.workspace_id, members)
        for who in set(members) - here:
            wrong["member", who] = Invalid("assignee is not a member of this workspace")
    if targets:
        asked = [(NOWHERE, target) for target in targets]
        found = await enqueue.candidates(conn, caller.workspace_id, asked, caller.actor)
        known = {candidate.target: candidate for candidate in found.get(NOWHERE, ())}
        for target in targets:
            error = _wrong_target(target, known.get(target))
            if error is not None:
                wrong[target.kind, target.id] = error
    return wrong


def _wrong_target(target: Target, candidate: Candidate | None) -> DomainError | None:
    agent = target.kind == "agent"
    if candidate is None:
        return Invalid(f"assignee is not {'an agent' if agent else 'an active squad'} here")
    if candidate.archived:
        return Invalid(f"assignee is {'an' if agent else 'led by an'} archived agent")
    if not candidate.open:
        return Forbidden("you do not have access to this agent")
    return None


async def check_parent(conn: Connection, caller: Membership, parent_id: str) -> work.Parent:
    """Return the parent; it stays until the transaction ends. Raises Invalid."""
    parent = await work.find_parent(conn, caller.workspace_id, parent_id)
    if parent is None:
        raise Invalid("parent issue not found in this workspace")
    if caller.actor.agent_id is not None:
        issue = existing(await work.get_issue(conn, caller.workspace_id, parent_id))
        caller.check(work_thing(caller, issue), "issue.update")  # its children are part of it
    return parent


async def _check_new_parent(
    conn: Connection,
    caller: Membership,
    issues: Sequence[Issue],
    parent_id: str,
    refused: dict[str, DomainError],
) -> None:
    try:
        await check_parent(conn, caller, parent_id)
    except DomainError as error:
        for issue in issues:
            refused.setdefault(issue.id, error)
        return
    above = await work.ancestors(conn, caller.workspace_id, parent_id)
    for issue in issues:
        if parent_id == issue.id:
            refused.setdefault(issue.id, Invalid("an issue cannot be its own parent"))
        elif issue.id in above:
            refused.setdefault(issue.id, Invalid("this parent is a descendant of the issue"))


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
