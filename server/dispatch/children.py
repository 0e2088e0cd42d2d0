"""Tells a parent issue when its children are finished, and sets its assignee to work again.

Woken by a change of status, in its transaction. The parent is locked first: in the reference two
children that finish together may both find the last one closed, and post twice (spec 02 §3.6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from server.consequences import Consequence
from server.dispatch import events, rules
from server.dispatch.enqueue import SQL, Actor, candidates, queue
from server.dispatch.rules import IssueFacts, summarise
from server.markdown import as_text, mention
from server.store.queries import Connection
from shared.wire.work import CLOSED, Issue


@attrs.frozen(kw_only=True)
class Stage:
    """The children of one stage; those without a stage have None."""

    number: int | None
    total: int
    closed: int

    @property
    def open(self) -> int:
        """How many are not finished."""
        return self.total - self.closed


async def child_closed(
    conn: Connection, before: Issue, after: Issue, actor: Actor
) -> list[Consequence]:
    """Go on with the parent if a child that has just been closed was the last of its stage."""
    if after.status not in CLOSED or before.status in CLOSED or after.parent_issue_id is None:
        return []
    parent = await conn.fetchrow(SQL.lock_parent, after.parent_issue_id)
    if parent is None:
        return []
    stages = [
        Stage(number=row["stage"], total=row["total"], closed=row["closed"])
        for row in await conn.fetch(SQL.stages, parent["id"])
    ]
    if not is_last(stages, after.stage):
        return []
    text = describe(parent, after, stages)
    comment = await conn.fetchrow(SQL.post_system, parent["id"], parent["workspace_id"], text)
    assert comment is not None
    told: list[Consequence] = [
        events.comment_created(comment, issue_title=parent["title"], issue_status=parent["status"])
    ]
    return told + await _go_on(conn, _facts(parent), _facts(after), comment, actor)


async def _go_on(
    conn: Connection,
    parent: IssueFacts,
    child: IssueFacts,
    comment: Mapping[str, Any],
    actor: Actor,
) -> list[Consequence]:
    if parent.target is None:
        return []
    found = await candidates(conn, parent.workspace_id, [(parent.id, parent.target)], actor)
    candidate = next(iter(found.get(parent.id, ())), None)
    child_agent = child.agent_id
    if child.squad_id is not None:
        child_agent = await conn.fetchval(SQL.leader_of, child.squad_id)
    choice = rules.child_closed(parent, child, candidate, child_agent)
    _, told = await queue(
        conn,
        parent,
        [] if choice is None else [choice],
        actor,
        trigger_comment_id=comment["id"],
        trigger_summary=summarise(comment["content"]),
    )
    return told


def is_last(stages: Sequence[Stage], stage: int | None) -> bool:
    """Tell whether a child of a stage that has just closed was the last one to wait for. Pure.

    Where some have stages, only those count, and of them the ones up to its own.
    """
    staged = [one for one in stages if one.number is not None]
    if not staged:
        return all(one.open == 0 for one in stages)
    if stage is None:
        return False
    return all(one.open == 0 for one in staged if one.number is not None and one.number <= stage)


def describe(parent: Mapping[str, Any], child: Issue, stages: Sequence[Stage]) -> str:
    """What the comment on the parent says. Pure."""
    link = f"[{child.identifier}](mention://issue/{child.id})"
    title = as_text(child.title)
    lines = [f"{link} “{title}” is {child.status}."]
    staged = [one for one in stages if one.number is not None]
    if not staged:
        lines.append("All child issues are finished.")
    else:
        counts = ", ".join(f"stage {one.number}: {one.closed} of {one.total}" for one in staged)
        later = [
            one.number
            for one in staged
            if one.open and one.number is not None and one.number > (child.stage or 0)
        ]
        coming = f"Next is stage {later[0]}." if later else "It was the last stage."
        lines.append(f"Stage {child.stage} is complete ({counts}). {coming}")
    return _greeting(parent) + " ".join(lines)


_KINDS: Final = ("agent", "squad")


def _greeting(parent: Mapping[str, Any]) -> str:
    name = parent["assignee_name"]
    if parent["assignee_type"] not in _KINDS or name is None:
        return ""
    return f"{mention(parent['assignee_type'], parent['assignee_id'], name)} "


def _facts(issue: Mapping[str, Any] | Issue) -> IssueFacts:
    row = attrs.asdict(issue, recurse=False) if isinstance(issue, Issue) else issue
    return IssueFacts(
        id=row["id"],
        workspace_id=row["workspace_id"],
        status=row["status"],
        priority=row["priority"],
        assignee_type=row["assignee_type"],
        assignee_id=row["assignee_id"],
    )
