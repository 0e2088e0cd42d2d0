"""What a first start needs from the server, asked over HTTP as any client would.

A token that works, the daemon's runtimes, one agent for each runtime that has none, a link that
signs a browser in. Everything here may be repeated on a home that has it already: what exists is
kept.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from daemon.cli.api import explain
from daemon.cli.errors import CliError
from shared.home import OURS

_CALL: Final = 15.0
"""Seconds one call may take; the server is on this machine and idle."""

_DEMO: Final = "demo"

_ABOUT: Final = {
    _DEMO: "A demonstration: it shows the loop without any model.",
    "claude": "Claude Code on this machine.",
}


_OPEN_DEMO: Final = "Demonstration only: it shows the loop without any model."
"""How earlier versions described the demo agent, which they opened to the whole workspace."""


class Caller:
    """Calls the local server as the home's owner."""

    def __init__(self, client: httpx.AsyncClient, url: str, token: str, workspace_id: str) -> None:
        self._client = client
        self.url = url
        self.token = token
        self.workspace_id = workspace_id

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Make one call and return the decoded answer. Raises CliError."""
        status, value = await self.ask(method, path, body)
        if status >= 400:
            told = value.get("error", "") if isinstance(value, dict) else ""
            text, code = explain(status, str(told))
            raise CliError(f"{method} {path}: {text}", code)
        return value

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Make one call and return status and decoded answer (None if it is not JSON)."""
        headers = {"Authorization": f"Bearer {self.token}", "X-Client-Platform": "cli"}
        if self.workspace_id:
            headers["X-Workspace-ID"] = self.workspace_id
        try:
            with trio.fail_after(_CALL):
                response = await self._client.request(
                    method, self.url + path, headers=headers, json=body
                )
        except (httpx.HTTPError, trio.TooSlowError) as error:
            raise CliError(f"the server does not answer ({type(error).__name__})", 2) from error
        try:
            return response.status_code, response.json()
        except ValueError:
            return response.status_code, None

    async def daemon_health(self, file: Path, pid: int) -> dict[str, Any] | None:
        """What the daemon with this pid says of itself, or None while it says nothing."""
        try:
            told = json.loads(file.read_text(encoding="utf-8"))  # noqa: ASYNC240 - a few bytes
            if told["pid"] != pid:
                return None
            with trio.move_on_after(2):
                address = f"http://127.0.0.1:{told['port']}/health"
                response = await self._client.get(address, headers={OURS: "1"})
                health: dict[str, Any] = response.json()
                return health
        except (OSError, ValueError, KeyError, TypeError, httpx.HTTPError):
            return None
        return None


@asynccontextmanager
async def open_caller(url: str) -> AsyncIterator[Caller]:
    """A Caller without a token yet; one at a time uses it."""
    async with httpx.AsyncClient(timeout=_CALL, trust_env=False, verify=False) as client:  # noqa: S501 - loopback
        yield Caller(client, url, "", "")


async def sign_in(caller: Caller, token: str, wanted_workspace: str) -> bool:
    """Settle on a token and on a workspace it may use, the wanted one if possible.

    Tells whether the server takes the token. Raises CliError when it does not answer or its user
    has no workspace.
    """
    caller.token, caller.workspace_id = token, ""
    status, mine = await caller.ask("GET", "/api/workspaces")
    if status == 401:
        return False
    if status != 200 or not isinstance(mine, list):
        raise CliError(f"the server answered {status} to the sign-in")
    ids = [workspace["id"] for workspace in mine]
    if not ids:
        raise CliError("the signed-in user has no workspace")
    caller.workspace_id = wanted_workspace if wanted_workspace in ids else ids[0]
    return True


async def runtimes_of(caller: Caller, daemon_id: str) -> list[dict[str, Any]]:
    """The daemon's runtimes in our workspace that are online."""
    rows = await caller.call("GET", "/api/runtimes")
    return [row for row in rows if row["daemon_id"] == daemon_id and row["status"] == "online"]


async def make_agents(
    caller: Caller, runtimes: Sequence[dict[str, Any]]
) -> tuple[list[str], list[str]]:
    """Make an agent, named by its provider, for each runtime that never had one.

    Returns the names of agents made now, and of all that can be given issues.
    """
    agents = await caller.call("GET", "/api/agents?include_archived=true")
    taken = {agent["name"] for agent in agents}
    served = {agent["runtime_id"] for agent in agents}
    made = []
    for runtime in runtimes:
        if runtime["id"] in served:
            continue
        name = _free_name(runtime["provider"], taken)
        taken.add(name)
        provider = runtime["provider"]
        body = {
            "name": name,
            "description": _ABOUT.get(provider, f"{provider} on this machine."),
            "runtime_id": runtime["id"],
            "visibility": "private",  # its owner shares it, if anybody does
        }
        await caller.call("POST", "/api/agents", body)
        made.append(name)
    ours = {runtime["id"] for runtime in runtimes}
    usable = [a["name"] for a in agents if a["runtime_id"] in ours and not a.get("archived_at")]
    return made, sorted(made + usable, key=lambda name: (name != _DEMO, name))


async def close_demos(caller: Caller, runtimes: Sequence[dict[str, Any]]) -> list[str]:
    """Make private what earlier versions made for everybody: the demo agents of our runtimes.

    Returns their names. One that its owner opens again stays open, since its description is new.
    """
    ours = {runtime["id"] for runtime in runtimes if runtime["provider"] == _DEMO}
    closed = []
    for agent in await caller.call("GET", "/api/agents") if ours else ():
        opened = agent["visibility"] == "workspace" and agent["description"] == _OPEN_DEMO
        if agent["runtime_id"] in ours and opened:
            change = {"visibility": "private", "description": _ABOUT[_DEMO]}
            await caller.call("PUT", f"/api/agents/{agent['id']}", change)
            closed.append(agent["name"])
    return closed


def _free_name(provider: str, taken: set[str]) -> str:
    if provider not in taken:
        return provider
    return next(n for i in range(2, 10_000) if (n := f"{provider}-{i}") not in taken)


async def sign_in_link(caller: Caller) -> str:
    """A fresh link that signs a browser in once."""
    made = await caller.call("POST", "/auth/link", {})
    return str(made["url"])
