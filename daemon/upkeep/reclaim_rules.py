"""What becomes of a task's directory (spec 03 §24): a table, from what is known of it. ◇"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

import attrs

from daemon.workdir.meta import CHAT, ISSUE, QUICK, RUN, Meta
from shared.times import parse_stamp

Action = Literal["keep", "remove", "artifacts"]

ENDPOINTS: Final = {ISSUE: "issues", CHAT: "chat-sessions", RUN: "autopilot-runs", QUICK: "tasks"}
"""Where the server is asked about a directory of each kind."""

_OVER: Final = {
    RUN: frozenset({"completed", "failed", "skipped", "issue_created"}),
    QUICK: frozenset({"completed", "failed", "cancelled"}),
}


@attrs.frozen(kw_only=True)
class Limits:
    """The user's settings, in seconds; `artifacts` 0 switches that rule off, `kept` 0 its own."""

    ttl: float
    orphan: float
    artifacts: float
    patterns: frozenset[str] = frozenset()
    kept: float = 0.0


@attrs.frozen(kw_only=True)
class Known:
    """What the server said: `missing` when it knows no such thing, `failed` when it said nothing.

    `gone_for_good` is a chat that was deleted; any other absence may be a lost right to see it.
    """

    status: str = ""
    updated_at: str = ""
    missing: bool = False
    gone_for_good: bool = False
    failed: str = ""


@attrs.frozen(kw_only=True)
class Decision:
    """`why` is what a person reads about a directory that stays, or went."""

    action: Action
    why: str


def decide(
    meta: Meta | None, known: Known | None, *, idle: float, now: datetime, limits: Limits
) -> Decision:
    """Decide about a directory nobody works in, last changed `idle` seconds ago.

    `known` is None where the server was not asked, because there is nothing to ask about.
    """
    if meta is None:
        return _orphan(None, "nothing says whose it is", idle, limits)
    if meta.kind not in ENDPOINTS:
        return _orphan(meta, f"unknown kind {meta.kind!r}", idle, limits)
    if not meta.parent_id or known is None:
        return _orphan(meta, f"its {meta.kind} is not named", idle, limits)
    if known.failed:
        return Decision(action="keep", why=f"the server could not be asked: {known.failed}")
    if known.missing:
        if meta.kind == CHAT and known.gone_for_good:
            return _remove(meta, "its chat was deleted", limits)
        return _orphan(meta, f"the server does not show its {meta.kind}", idle, limits)
    if meta.kind in _OVER:
        if known.status in _OVER[meta.kind]:
            return _remove(meta, f"its {meta.kind} is {known.status}", limits)
        return Decision(action="keep", why=f"its {meta.kind} is {known.status}")
    changed = _age(known.updated_at, now)
    if changed is None:
        return Decision(action="keep", why="the server's answer has no time")
    ended = ("archived",) if meta.kind == CHAT else ("done", "cancelled")
    if known.status in ended and changed > limits.ttl:
        return _remove(meta, f"its {meta.kind} is {known.status} for {span(changed)}", limits)
    why = f"its {meta.kind} is {known.status}"
    if known.status in ended:
        why = f"{why} for only {span(changed)}"
    completed = _age(meta.completed_at, now)
    if (
        meta.kind == ISSUE
        and limits.artifacts > 0
        and limits.patterns
        and completed is not None
        and completed > limits.artifacts
    ):
        return Decision(action="artifacts", why=why)
    return Decision(action="keep", why=why)


def span(seconds: float) -> str:
    """A length of time as people read it."""
    minutes = int(seconds // 60)
    hours, days = minutes // 60, minutes // 1440
    if days >= 2:
        return f"{days} d"
    if hours >= 2:
        return f"{hours} h"
    return f"{minutes} min" if minutes >= 2 else f"{int(seconds)} s"


def _orphan(meta: Meta | None, why: str, idle: float, limits: Limits) -> Decision:
    if meta is not None and meta.local_directory:
        return Decision(action="keep", why=f"{why}, and it belongs to a directory of the user's")
    if idle > limits.orphan:
        return Decision(action="remove", why=f"{why}, unchanged for {span(idle)}")
    return Decision(action="keep", why=f"{why}, changed {span(idle)} ago")


def _remove(meta: Meta, why: str, limits: Limits) -> Decision:
    if not meta.local_directory:
        return Decision(action="remove", why=why)
    if limits.patterns:
        return Decision(action="artifacts", why=f"{why}; it belongs to a directory of the user's")
    return Decision(action="keep", why="it belongs to a directory of the user's")


def _age(stamp: str, now: datetime) -> float | None:
    """Seconds since a time; None for none, or for one that is no time."""
    try:
        moment = parse_stamp(stamp)
    except ValueError:
        return None
    return None if moment.year == 1 else (now - moment).total_seconds()
