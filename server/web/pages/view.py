"""What templates are given: people, states and times, turned into words. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

import attrs

from shared import times
from shared.wire import task as wire
from shared.wire.runtime import ONLINE, Runtime
from shared.wire.team import Agent, Member

DEMO: Final = "demo"
"""The provider that ships with Bullpen and is no coding agent; labelled wherever it is shown."""

STATUSES: Final = {
    "backlog": "Backlog",
    "todo": "Todo",
    "in_progress": "In progress",
    "in_review": "In review",
    "blocked": "Blocked",
    "done": "Done",
    "cancelled": "Cancelled",
}
"""In the order of the board's columns."""

ALWAYS_SHOWN: Final = frozenset({"backlog", "todo", "in_progress", "in_review", "done"})
"""Columns that stand on the board even when they are empty."""

PRIORITIES: Final = {
    "urgent": "Urgent",
    "high": "High",
    "medium": "Medium",
    "low": "Low",
    "none": "No priority",
}

RUN_STATES: Final = {
    wire.QUEUED: "Queued",
    wire.DISPATCHED: "Preparing",
    wire.WAITING_LOCAL_DIRECTORY: "Waiting for directory",
    wire.RUNNING: "Running",
    wire.COMPLETED: "Completed",
    wire.FAILED: "Failed",
    wire.CANCELLED: "Stopped",
}

_TINTS: Final = 8
"""How many avatar colours the stylesheet has."""


@attrs.frozen(kw_only=True)
class Person:
    """A member or an agent as an avatar, a name and a label."""

    kind: str
    id: str
    name: str
    initials: str
    tint: int
    provider: str = ""
    machine: str = ""
    online: bool = True
    archived: bool = False

    @property
    def demo(self) -> bool:
        return self.provider == DEMO

    @property
    def key(self) -> str:
        """What a select's option is called: `<type>:<id>`."""
        return f"{self.kind}:{self.id}"


def initials(name: str) -> str:
    """Return one or two letters that stand for a name."""
    words = [word for word in name.replace("-", " ").replace("_", " ").split() if word[0].isalnum()]
    if not words:
        return "?"
    if len(words) == 1:
        return words[0][:2].upper()
    return (words[0][0] + words[-1][0]).upper()


def person(
    kind: str, key: str, name: str, *, provider: str = "", machine: str = "",
    online: bool = True, archived: bool = False,
) -> Person:  # fmt: skip
    """Make a Person; the colour follows from the id, so that it stays the same everywhere."""
    return Person(
        kind=kind,
        id=key,
        name=name or "Unnamed",
        initials=initials(name),
        tint=sum(key.encode()) % _TINTS,
        provider=provider,
        machine=machine,
        online=online,
        archived=archived,
    )


SYSTEM: Final = Person(kind="system", id="", name="Bullpen", initials="B", tint=0)


class Directory:
    """Everyone a page may name, by (type, id). Filled once, then only read."""

    def __init__(
        self, members: Iterable[Member], agents: Iterable[Agent], runtimes: Iterable[Runtime]
    ) -> None:
        self.runtimes = {runtime.id: runtime for runtime in runtimes}
        agents = list(agents)
        self.left_behind = {agent.id for agent in agents if self._left_behind(agent)}
        self.members = [person("member", m.user_id, m.name) for m in members]
        self.agents = [self._agent(agent) for agent in agents]
        self._known = {(p.kind, p.id): p for p in (*self.members, *self.agents)}

    def _agent(self, agent: Agent) -> Person:
        runtime = self.runtimes.get(agent.runtime_id)
        return person(
            "agent",
            agent.id,
            agent.name,
            provider="" if runtime is None else runtime.provider,
            machine=machine(runtime),
            online=runtime is not None and runtime.status == ONLINE,
            archived=agent.archived_at is not None,
        )

    def _left_behind(self, agent: Agent) -> bool:
        """Whether the agent's machine changed hands and does not work for it any more."""
        runtime = self.runtimes.get(agent.runtime_id)
        return (
            runtime is not None
            and agent.placed_under not in {"", runtime.owner_id}
            and agent.owner_id != runtime.owner_id
            and runtime.visibility != "public"
        )

    @property
    def assignable(self) -> list[Person]:
        return [agent for agent in self.agents if not agent.archived]

    def find(self, kind: str | None, key: str | None) -> Person | None:
        """Return the person, a stand-in for one who left, or None for nobody."""
        if not kind or not key:
            return None
        if kind == "system":
            return SYSTEM
        return self._known.get((kind, key)) or person(kind, key, f"Former {kind}")


def machine(runtime: Runtime | None) -> str:
    """Name the machine a runtime is on; `device_info` is `<device> · <version>` (spec 01 §3.1)."""
    if runtime is None:
        return "its machine"
    return runtime.device_info.split(" · ")[0] or runtime.name or "its machine"


def parse(stamp: str | None) -> datetime | None:
    """Read a wire time; None for none."""
    return times.parse_stamp(stamp) if stamp else None


def ago(stamp: str | None, now: datetime) -> str:
    """Say how long ago something was, as the script says it too (`times.js`)."""
    moment = parse(stamp)
    if moment is None:
        return "never"
    seconds = max(0, int((now - moment).total_seconds()))
    if seconds < 10:
        return "just now"
    if seconds < 60:
        return f"{seconds // 10 * 10} s ago"
    if seconds < 3600:
        return f"{seconds // 60} min ago"
    if seconds < 86400:
        return f"{seconds // 3600} h ago"
    if seconds < 86400 * 14:
        return f"{seconds // 86400} d ago"
    return moment.strftime("%-d %b %Y")


def duration(seconds: float) -> str:
    """Say how long something took, as the script says it too (`times.js`)."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def run_seconds(task: wire.Task, now: datetime) -> float | None:
    """Return how long a run took or has taken: from its start, or None if it never started."""
    begun = parse(task.started_at or task.dispatched_at)
    if begun is None:
        return None
    return ((parse(task.completed_at) or now) - begun).total_seconds()


def full_time(stamp: str | None) -> str:
    """Spell a time out, for titles."""
    moment = parse(stamp)
    return moment.strftime("%-d %B %Y, %H:%M:%S UTC") if moment else ""
