"""What keeps agents from setting each other to work for ever.

Woken by `enqueue` when an agent is about to cause a run. The reference's rules end the common loops
(spec 02 §3.5), but two agents that mention each other go on for ever, and so does one that mentions
itself. Here three counts end every loop: runs that agents cause on one issue in an hour, runs they
cause for one agent in an hour, and how long the chain is of runs that each caused the next. A count
that is full pauses the issue: agents start nothing more on it, and its people are told. A person's
comment, rerun or change of assignee ends the pause and starts the counts anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import attrs

from server.consequences import Consequence
from server.dispatch import events
from server.store.queries import Connection, load

SQL: Final = load("enqueue")

_WINDOW: Final = timedelta(hours=1)


@attrs.frozen(kw_only=True)
class Limits:
    """How much agents may cause without a person. From the server's configuration."""

    per_issue: int = 20
    """Runs in an hour."""
    per_agent: int = 60
    """Runs in an hour."""
    depth: int = 24
    """Runs, each caused by the one before."""


_limits = Limits()
"""Set once, at the start of the process, by `use`."""


def use(limits: Limits) -> None:
    """Take the limits of the server's configuration."""
    global _limits  # noqa: PLW0603 - a setting of the process; units get no configuration
    _limits = limits


def limits() -> Limits:
    """The limits in use."""
    return _limits


@attrs.frozen
class Leave:
    """Whether a run may be caused: `depth` of the run if so, else why not."""

    depth: int = 0
    refused: str = ""
    pausing: bool = False
    """The refusal is the first: somebody has to be told."""


def judge(caused: Mapping[str, Any], more: int, allowed: Limits) -> Leave:
    """Tell whether an agent may cause `more` runs. `caused` is the statement's row. Pure."""
    if caused["paused"]:
        return Leave(refused="automatic runs are paused on this issue")
    reason = ""
    if caused["depth"] > allowed.depth:
        reason = f"this would be run {caused['depth']} of a chain in which each caused the next"
    elif caused["on_issue"] + more > allowed.per_issue:
        reason = f"agents have caused {caused['on_issue']} runs here within an hour"
    elif caused["by_agent"] >= allowed.per_agent:
        reason = f"agents have set one agent to work {caused['by_agent']} times within an hour"
    return Leave(refused=reason, pausing=True) if reason else Leave(depth=caused["depth"])


async def ask(
    conn: Connection, wanted: Mapping[str, Sequence[str]], task_id: str | None
) -> tuple[dict[str, Leave], list[Consequence]]:
    """Ask whether an agent, at work on a task or not, may set agents to work on issues.

    `wanted` are the agents by issue, and so are the answers; what is allowed to one counts for the
    next. One statement, and one more where there is something to pause.
    """
    asked = [{"issue_id": issue, "agents": list(agents)} for issue, agents in wanted.items()]
    rows = await conn.fetch(SQL.caused, asked, task_id, _WINDOW)
    caused = {row["issue_id"]: row for row in rows}
    leaves: dict[str, Leave] = {}
    more: Counter[str] = Counter()
    for issue_id, agents in wanted.items():
        if issue_id not in caused:
            leaves[issue_id] = Leave(refused="the issue is gone")
            continue
        by_agent = caused[issue_id]["by_agent"] + max(more[agent] for agent in agents)
        leave = judge(dict(caused[issue_id]) | {"by_agent": by_agent}, len(agents), _limits)
        if not leave.refused:
            more.update(agents)
        leaves[issue_id] = leave
    pausing = {issue: leave.refused for issue, leave in leaves.items() if leave.pausing}
    return leaves, await _pause(conn, pausing) if pausing else []


async def resume(conn: Connection, issue_id: str) -> None:
    """A person had their say: what agents did before no longer counts."""
    await conn.execute(SQL.resume_runs, issue_id)


async def _pause(conn: Connection, reasons: Mapping[str, str]) -> list[Consequence]:
    paused = await conn.fetch(
        SQL.pause_runs,
        [
            {"issue_id": issue_id, "reason": reason, "text": _notice(reason)}
            for issue_id, reason in reasons.items()
        ],
    )
    told: list[Consequence] = []
    for one in paused:
        told.append(
            events.comment_created(
                one["comment"], issue_title=one["title"], issue_status=one["status"]
            )
        )
        told += [events.inbox_new(item, issue_status=one["status"]) for item in one["items"]]
    return told


def _notice(reason: str) -> str:
    return (
        f"Automatic runs are paused on this issue: {reason}. "
        "A comment by a person, or a rerun, lets agents go on."
    )
