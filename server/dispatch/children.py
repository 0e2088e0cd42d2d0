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
from server.dispatch.enqueue import SQL, Actor, Wanted, candidates, queue_all
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


async def children_closed(
    conn: Connection, changes: Sequence[tuple[Issue, Issue]], actor: Actor
) -> list[Consequence]:
    """Go on with the parents of whose children those that have just been closed were the last.

    `changes` are issues of one workspace before and after. A parent is told once, of the child
    furthest on. A fixed number of statements, however many there are.
    """
    closed: dict[str, list[Issue]] = {}
    for before, after in changes:
        parent_id = after.parent_issue_id
        if after.status in CLOSED and before.status not in CLOSED and parent_id is not None:
            closed.setdefault(parent_id, []).append(after)
    if not closed:
        return []
    parents = await conn.fetch(SQL.lock_parents, list(closed))
    stages: dict[str, list[Stage]] = {}
    for row in (
        await conn.fetch(SQL.stages, [parent["id"] for parent in parents]) if parents else ()
    ):
        stage = Stage(number=row["stage"], total=row["total"], closed=row["closed"])
        stages.setdefault(row["parent_id"], []).append(stage)
    done: list[tuple[Mapping[str, Any], Issue]] = []
    for parent in parents:
        last = [
            child for child in closed[parent["id"]] if is_last(stages[parent["id"]], child.stage)
        ]
        if last:
            done.append((parent, max(last, key=lambda child: (child.stage or 0, child.number))))
    if not done:
        return []
    texts = [
        {
            "issue_id": parent["id"],
            "workspace_id": parent["workspace_id"],
            "content": describe(parent, child, stages[parent["id"]]),
        }
        for parent, child in done
    ]
    comments = {row["issue_id"]: row for row in await conn.fetch(SQL.post_system, texts)}
    told: list[Consequence] = [
        events.comment_created(
            comments[parent["id"]], issue_title=parent["title"], issue_status=parent["status"]
        )
        for parent, _ in done
    ]
    return told + await _go_on(conn, done, comments, actor)


async def _go_on(
    conn: Connection,
    done: Sequence[tuple[Mapping[str, Any], Issue]],
    comments: Mapping[str, Mapping[str, Any]],
    actor: Actor,
) -> list[Consequence]:
    families = [(_facts(parent), _facts(child)) for parent, child in done]
    asked = [(parent.id, parent.target) for parent, _ in families if parent.target is not None]
    if not asked:
        return []
    found = await candidates(conn, families[0][0].workspace_id, asked, actor)
    squads = [child.squad_id for _, child in families if child.squad_id is not None]
    leaders: dict[str | None, str] = {}
    if squads:
        rows = await conn.fetch(SQL.leaders_of, squads)
        leaders = {row["id"]: row["leader_id"] for row in rows}
    wanted = []
    for parent, child in families:
        candidate = next(iter(found.get(parent.id, ())), None)
        child_agent = child.agent_id if child.squad_id is None else leaders.get(child.squad_id)
        choice = rules.child_closed(parent, child, candidate, child_agent)
        if choice is not None:
            comment = comments[parent.id]
            wanted.append(Wanted(parent, choice, comment["id"], summarise(comment["content"])))
    return (await queue_all(conn, wanted, actor))[1]


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
