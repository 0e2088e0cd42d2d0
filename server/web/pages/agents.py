"""The agents page: who can be given work, on which machine, and what they do now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.store import pages as store
from server.store.queries import Connection
from server.web.pages import shell, view
from shared.wire import task as wire
from shared.wire.team import Agent


@attrs.frozen(kw_only=True)
class Work:
    """An issue an agent works on: what the link says and where it leads."""

    ref: str
    label: str


@attrs.frozen(kw_only=True)
class Row:
    agent: Agent
    person: view.Person
    provider: str
    state: str
    word: str
    left_behind: bool
    """Whether its machine changed hands and does not work for it any more."""
    working: list[Work]


def row(
    agent: Agent,
    person: view.Person,
    runs: list[store.ActiveRun],
    prefix: str,
    *,
    left_behind: bool = False,
) -> Row:
    """Say what an agent is doing: its runs first, then whether its machine works for it."""
    mine = [run for run in runs if run.agent_id == agent.id]
    busy = [run for run in mine if run.status in wire.IN_FLIGHT]
    if agent.archived_at:
        state, word = "archived", "Archived"
    elif busy:
        state, word = "running", "Working"
    elif left_behind:
        state, word = "offline", "Needs another machine"
    elif not person.online:
        state, word = "offline", "Machine offline"
    elif mine:
        state, word = "queued", "Work is queued"
    else:
        state, word = "online", "Ready"
    working = [
        Work(ref=f"{prefix}-{run.number}", label=f"{prefix}-{run.number}")
        for run in mine
        if run.number is not None
    ]
    return Row(
        agent=agent,
        person=person,
        provider=person.provider or "no program",
        state=state,
        word=word,
        left_behind=left_behind,
        working=working,
    )


async def agents(request: Request) -> Response:
    """GET /{slug}/agents."""
    show_archived = request.query_params.get("archived") == "1"

    async def read(conn: Connection, visit: shell.Visit) -> Mapping[str, Any]:
        runs = await store.active_runs(conn, visit.workspace.id)
        rows = [
            row(
                agent,
                person,
                runs,
                visit.workspace.issue_prefix,
                left_behind=agent.id in visit.people.left_behind,
            )
            for agent, person in zip(visit.agents, visit.people.agents, strict=True)
        ]
        return {
            "agents": [each for each in rows if show_archived or not each.agent.archived_at],
            "archived_count": sum(1 for each in rows if each.agent.archived_at),
            "show_archived": show_archived,
            "blank": Agent(id="", visibility="workspace"),
        }

    return await shell.show(request, "agents.html", "agents", read)


routes: list[BaseRoute] = [Route("/{slug:slug}/agents", agents)]
