"""What keeps agents from setting each other to work for ever.

Woken by `enqueue` when an agent is about to cause a run. The reference's rules end the common loops
(spec 02 §3.5), but two agents that mention each other go on for ever, and so does one that mentions
itself. Here three counts end every loop: runs that agents cause on one issue in an hour, runs they
cause for one agent in an hour, and how long the chain is of runs that each caused the next. A count
that is full pauses the issue: agents start nothing more on it, and its people are told. A person's
comment, rerun or change of assignee ends the pause and starts the counts anew.
"""

from __future__ import annotations

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
    conn: Connection, issue_id: str, agent_ids: Sequence[str], task_id: str | None
) -> tuple[Leave, list[Consequence]]:
    """Ask whether an agent, at work on a task or not, may set agents to work on an issue."""
    caused = await conn.fetchrow(SQL.caused, issue_id, agent_ids, task_id, _WINDOW)
    if caused is None:
        return Leave(refused="the issue is gone"), []
    leave = judge(caused, len(agent_ids), _limits)
    return leave, await _pause(conn, issue_id, leave.refused) if leave.pausing else []


async def resume(conn: Connection, issue_id: str) -> None:
    """A person had their say: what agents did before no longer counts."""
    await conn.execute(SQL.resume_runs, issue_id)


async def _pause(conn: Connection, issue_id: str, reason: str) -> list[Consequence]:
    text = (
        f"Automatic runs are paused on this issue: {reason}. "
        "A comment by a person, or a rerun, lets agents go on."
    )
    paused = await conn.fetchrow(SQL.pause_runs, issue_id, text, reason)
    if paused is None:
        return []
    told: list[Consequence] = [
        events.comment_created(
            paused["comment"], issue_title=paused["title"], issue_status=paused["status"]
        )
    ]
    told += [events.inbox_new(item, issue_status=paused["status"]) for item in paused["items"]]
    return told
