"""The runtimes page: machines, the agent programs on them, and whether they are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.store.queries import Connection
from server.web.pages import shell, view
from shared.wire.runtime import ONLINE, Runtime


@attrs.frozen(kw_only=True)
class Row:
    runtime: Runtime
    version: str
    problem: str
    agents: list[view.Person]
    left_behind: str
    """Names of agents it does not work for since the machine changed hands, or ""."""


@attrs.frozen(kw_only=True)
class Machine:
    key: str
    name: str
    version: str
    owner: view.Person | None
    """Whose machine it is."""
    exposed: str
    """Why its agents are not isolated, in one sentence, or ""."""
    runtimes: list[Row]

    @property
    def online(self) -> bool:
        return any(row.runtime.status == ONLINE for row in self.runtimes)


def machines(visit: shell.Visit) -> list[Machine]:
    """Group the runtimes by the machine they are on; those that are there come first."""
    groups: dict[str, list[Runtime]] = {}
    for runtime in visit.people.runtimes.values():
        groups.setdefault(runtime.daemon_id or runtime.id, []).append(runtime)
    found = [
        Machine(
            key=key,
            name=view.machine(runtimes[0]),
            version=str(
                runtimes[0].metadata.get("bullpen_version")
                or runtimes[0].metadata.get("cli_version")
                or ""
            ),
            owner=visit.people.find("member", runtimes[0].owner_id),
            exposed=_isolation_problem(runtimes),
            runtimes=[_row(runtime, visit) for runtime in runtimes],
        )
        for key, runtimes in groups.items()
    ]
    return sorted(found, key=lambda machine: not machine.online)


def _isolation_problem(runtimes: list[Runtime]) -> str:
    """Say why a machine's agents are not isolated, by what is there now; empty if they are.

    A runtime whose program is gone keeps what was told with it before.
    """
    here = [runtime for runtime in runtimes if runtime.status == ONLINE] or runtimes
    told = (runtime.metadata.get("isolation_problem") for runtime in here)
    return next((str(problem) for problem in told if problem), "")


def _row(runtime: Runtime, visit: shell.Visit) -> Row:
    failed = runtime.metadata.get("runtime_profile_registration_error")
    here = [
        person
        for agent, person in zip(visit.agents, visit.people.agents, strict=True)
        if agent.runtime_id == runtime.id and not person.archived
    ]
    left = [person.name for person in here if person.id in visit.people.left_behind]
    return Row(
        runtime=runtime,
        version=str(runtime.metadata.get("version") or ""),
        problem=str(runtime.metadata.get("runtime_profile_failure_reason")) if failed else "",
        agents=here,
        left_behind=", ".join(left),
    )


async def _read(_: Connection, visit: shell.Visit) -> Mapping[str, Any]:
    return {"machines": machines(visit)}


async def runtimes(request: Request) -> Response:
    """GET /{slug}/runtimes."""
    return await shell.show(request, "runtimes.html", "runtimes", _read)


routes: list[BaseRoute] = [Route("/{slug:slug}/runtimes", runtimes)]
