"""What follows when a task ends, by what the task was for: one table for every cause.

Whoever ends a task (its daemon, a person, the sweeper, a daemon that starts again, an agent that is
archived) ends it through `finish`, which calls `settle` in the same transaction. What all kinds
have in common (comments on issues, the agent's status, tokens, events) is `finish`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from server.consequences import Consequence
from server.dispatch.autopilot_end import settle_issues, settle_runs
from server.dispatch.chat import settle_chats
from server.dispatch.derived import settle_failures
from server.dispatch.outcome import Ended, Settler
from server.dispatch.quick_create import settle_quick_creates
from server.store.queries import Connection

SETTLERS: Final[Mapping[str, tuple[Settler, ...]]] = {
    "issue": (settle_issues, settle_failures),
    "chat": (settle_chats,),
    "autopilot": (settle_runs,),
    "quick_create": (settle_quick_creates,),
}
"""The functions live with their subject, in modules that import neither `finish` nor `enqueue`."""


async def settle(conn: Connection, ended: Sequence[Ended]) -> list[Consequence]:
    """Do what follows for tasks that have just ended together."""
    consequences: list[Consequence] = []
    for kind, settlers in SETTLERS.items():
        if group := [one for one in ended if one.kind == kind]:
            for settler in settlers:
                consequences += await settler(conn, group)
    return consequences
