"""Answering what the server asks of a runtime between tasks: model lists, skills, updates.

Requests come with heartbeat answers, over HTTP or the websocket. They run here, for as long as the
daemon is present, because the beat that brought one may be cancelled by unrelated changes. A few
workers share a bounded queue; what does not fit is dropped, and the server's request times out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import attrs
import structlog
import trio

from daemon.client import ApiError, Client
from shared.wire.runtime import Beat

log = structlog.get_logger(__name__)

WORKERS: Final = 4
"""Requests answered at a time: they start agent programs, which must not crowd out tasks."""

QUEUE: Final = 64
"""One beat brings at most 13 requests (10 imports and one of each other kind), 20 runtimes beat
within an interval, and nearly all of them bring none."""

WAITS: Final = (0.0, 0.5, 2.0, 4.0)
"""Seconds before each attempt to report; in all below the server's 60 s (spec 01 §1.6)."""


Update = Callable[[str], Awaitable[tuple[dict[str, Any] | None, Callable[[], None]]]]
"""Updates to the version named: what to report, None for nothing, and what to do after that."""


@attrs.frozen(kw_only=True)
class Action:
    """One request. `path` is where its result goes, below the runtime; `what` is for people.

    `target` is the version an update is to.
    """

    runtime_id: str
    path: str
    what: str
    target: str = ""


def plan_actions(runtime_id: str, beat: Beat) -> Iterator[Action]:
    """List what a beat asks for. The plural import list wins over the singular (spec 01 §3.3)."""

    def action(path: str, what: str, target: str = "") -> Action:
        return Action(runtime_id=runtime_id, path=path, what=what, target=target)

    if beat.pending_update is not None:
        update = beat.pending_update
        yield action(f"update/{update.id}", "updating Bullpen", update.target_version)
    if beat.pending_model_list is not None:
        yield action(f"models/{beat.pending_model_list.id}", "listing models")
    if beat.pending_local_skills is not None:
        yield action(f"local-skills/{beat.pending_local_skills.id}", "listing local skills")
    imports = beat.pending_local_skill_imports
    if not imports and beat.pending_local_skill_import is not None:
        imports = [beat.pending_local_skill_import]
    for wanted in imports:
        yield action(f"local-skills/import/{wanted.id}", "importing local skills")


class Actions:
    """The queue and its workers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.update: Update | None = None
        """Does updates; set once by `app.py`."""
        self._send, self._receive = trio.open_memory_channel[Action](QUEUE)

    def submit(self, runtime_id: str, beat: Beat) -> None:
        """Take over what a beat asks for. Never waits."""
        for action in plan_actions(runtime_id, beat):
            try:
                self._send.send_nowait(action)
            except trio.WouldBlock:
                log.warning("too many requests at once; dropped", runtime_id=runtime_id)

    async def run(self) -> None:
        """Answer requests until cancelled."""
        async with trio.open_nursery() as workers:
            for _ in range(WORKERS):
                workers.start_soon(self._work)

    async def _work(self) -> None:
        async for action in self._receive:
            if self.update is not None and action.path.startswith("update/"):
                await self._update(action, self.update)
            else:
                await self._report(action, await self._perform(action))

    async def _update(self, action: Action, update: Update) -> None:
        """Update, saying so first; what ends the daemon comes after the report."""
        await self._report(action, {"status": "running"})
        result, then = await update(action.target)
        if result is not None:
            await self._report(action, result)
        then()

    async def _perform(self, action: Action) -> dict[str, Any]:
        """Do what was asked and return the result to report."""
        await trio.lowlevel.checkpoint()
        return {"status": "failed", "error": f"{action.what} is not supported yet by this daemon"}

    async def _report(self, action: Action, result: dict[str, Any]) -> None:
        """Report, trying again after failures that are not the request's fault (spec 01 §1.6)."""
        for wait in WAITS:
            await trio.sleep(wait)
            try:
                await self._client.report_result(action.runtime_id, action.path, result)
            except ApiError as error:
                log.warning("result not reported", path=action.path, error=str(error))
                if 400 <= error.status < 500:
                    return
            else:
                return
