"""What a change of issues would start, for showing before it is made (spec 02 §3.3).

The same look-up and the same rules as `enqueue`, without the last step. Previews of comments are
`enqueue.preview_comment`, which writing a comment goes through as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.dispatch import enqueue, rules
from server.dispatch.enqueue import SQL, Actor
from server.dispatch.rules import NOWHERE, Choice, IssueFacts, Target
from server.store.queries import Connection
from server.store.tasks import get_task


async def preview_issues(
    conn: Connection,
    workspace_id: str,
    issue_ids: Sequence[str],
    actor: Actor,
    *,
    assignee: Target | None,
    status: str | None,
) -> list[tuple[str, Choice]]:
    """The runs that giving issues this assignee or status would start, in their order.

    None means that it stays as it is. Two statements, however many issues.
    """
    before = {
        row["id"]: IssueFacts(
            id=row["id"],
            workspace_id=row["workspace_id"],
            status=row["status"],
            assignee_type=row["assignee_type"],
            assignee_id=row["assignee_id"],
        )
        for row in await conn.fetch(SQL.issues_facts, workspace_id, issue_ids)
    }
    after = {
        issue.id: IssueFacts(
            id=issue.id,
            workspace_id=workspace_id,
            status=status or issue.status,
            assignee_type=assignee.kind if assignee else issue.assignee_type,
            assignee_id=assignee.id if assignee else issue.assignee_id,
        )
        for issue in before.values()
    }
    asked = [(issue.id, issue.target) for issue in after.values() if issue.target is not None]
    found = await enqueue.candidates(conn, workspace_id, asked, actor)
    busy = await _own_issue(conn, actor)
    chosen: list[tuple[str, Choice]] = []
    for issue_id, issue in after.items():
        candidate = next(iter(found.get(issue_id, ())), None)
        if issue.target != before[issue_id].target:
            choice = rules.assigned(issue, candidate)
        elif issue_id == busy:
            choice = None
        else:
            choice = rules.released(issue, before[issue_id].status, candidate)
        if choice is not None:
            chosen.append((issue_id, choice))
    return chosen


async def preview_new_issue(
    conn: Connection, workspace_id: str, actor: Actor, *, assignee: Target, status: str
) -> Choice | None:
    """The run that a new issue would start."""
    issue = IssueFacts(
        id=NOWHERE,
        workspace_id=workspace_id,
        status=status,
        assignee_type=assignee.kind,
        assignee_id=assignee.id,
    )
    found = await enqueue.candidates(conn, workspace_id, [(issue.id, assignee)], actor)
    return rules.assigned(issue, next(iter(found.get(issue.id, ())), None))


async def _own_issue(conn: Connection, actor: Actor) -> str | None:
    """The issue that an acting agent is at work on."""
    if actor.actor_type != "agent" or actor.task_id is None:
        return None
    task = await get_task(conn, actor.task_id)
    return None if task is None else task["issue_id"]
