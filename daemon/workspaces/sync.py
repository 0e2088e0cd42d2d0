"""Which workspaces this daemon serves: the ones its owner is a member of, looked up again and again.

Wakes at the sync interval, lists the workspaces and looks for agent programs, and keeps one
reconciler per workspace. A failed list changes nothing. It owns the reconcilers and ends by being
cancelled; only a refused sign-in, before anything has worked, ends it by itself.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from daemon.agents.contract import Program
from daemon.client import ApiError
from daemon.workspaces.programs import AskVersion, no_version
from daemon.workspaces.registration import Find
from daemon.workspaces.workspace import Workspace
from shared.children import Children
from shared.mailbox import Nudge
from shared.supervise import Backoff, supervise

if TYPE_CHECKING:
    from daemon.services import Services

log = structlog.get_logger(__name__)

LOOK_AGAIN: Final = 60.0
"""Seconds between looks for agent programs. People install one and expect it to show up; each look
asks the file system for every command there is, and starts only what is new or changed."""

START_BACKOFF: Final = Backoff(first=1.0, limit=30.0)

Discover = Callable[[], Awaitable[Sequence[Program]]]


class SignInRefused(Exception):
    """The server does not accept the token this daemon was started with."""


@attrs.define(eq=False)
class Sync:
    """The set of workspaces. Its own task changes everything.

    `problem` says in one sentence why the daemon is not doing its job, for `/health`; `look_at` is
    when agent programs are looked for next.
    """

    services: Services
    discover: Discover
    families: frozenset[str] = frozenset()
    find: Find = shutil.which
    ask_version: AskVersion = no_version
    programs: tuple[Program, ...] = ()
    workspaces: dict[str, Workspace] = attrs.field(factory=dict)
    problem: str = ""
    look_at: float = -math.inf
    nudge: Nudge = attrs.field(factory=Nudge)

    @property
    def refusals(self) -> list[str]:
        """Why this machine may not be registered under this account, each reason once."""
        return list(dict.fromkeys(one.refused for one in self.workspaces.values() if one.refused))

    def look_again(self) -> None:
        """Look for programs and workspaces now, and compare every registration: settings changed."""
        self.look_at = -math.inf
        self.nudge.nudge()
        for workspace in self.workspaces.values():
            workspace.nudge.nudge()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the set up to date; started once each workspace's first registration has ended.

        Raises SignInRefused if the first answer the server gives is 401.
        """
        async with trio.open_nursery() as workspaces:
            children = Children(workspaces, self._run_workspace)
            await self._first_pass(children)
            for workspace in tuple(self.workspaces.values()):
                await workspace.settled.wait()
            task_status.started()
            while True:
                await self.nudge.wait(self.services.config.sync_interval)
                try:
                    await self._pass(children)
                except ApiError as error:
                    self._failed(error)

    async def _first_pass(self, children: Children[str]) -> None:
        """Wait for a server that may be away: the machine may well be up before it is."""
        failures = 0
        while (error := await self._try_pass(children)) is not None:
            if error.unauthorized and await self.services.client.surely_unauthorized():
                raise SignInRefused(
                    "the server refused this daemon's token: run `bullpen login` again"
                ) from error
            self._failed(error)
            failures += 1
            await self.nudge.wait(START_BACKOFF.wait(failures))

    async def _try_pass(self, children: Children[str]) -> ApiError | None:
        try:
            await self._pass(children)
        except ApiError as error:
            return error
        return None

    def _failed(self, error: ApiError) -> None:
        self.problem = f"no workspaces from {self.services.config.server_url}: {error}"
        if error.unauthorized:
            self.problem = "the server refuses the token: run `bullpen login`"
        log.warning("workspace sync failed", problem=self.problem)

    async def _pass(self, children: Children[str]) -> None:
        """Look for programs and workspaces once. Raises ApiError with the set untouched."""
        await self._look_for_programs()
        listed = await self.services.client.workspaces()
        self.problem = "" if self.programs else "no agent program was found on this machine"
        wanted = {workspace.id for workspace in listed}
        for key in self.workspaces.keys() - wanted:
            log.info("workspace left", workspace_id=key)
            self.services.directory.leave(key)
            del self.workspaces[key]
        for key in wanted - self.workspaces.keys():
            log.info("workspace joined", workspace_id=key)
            self.workspaces[key] = Workspace(
                self.services,
                key,
                lambda: self.programs,
                self.families,
                self.find,
                self.ask_version,
            )
        await children.reconcile(wanted)

    async def _look_for_programs(self) -> None:
        """Look now and then: programs come and go. A failure changes nothing."""
        if trio.current_time() < self.look_at:
            return
        self.look_at = trio.current_time() + LOOK_AGAIN
        found: tuple[Program, ...] | None = None
        try:
            found = tuple(await self.discover())
        except* Exception:
            log.exception("looking for agent programs failed")
        if found is None:
            return
        if found != self.programs:
            self.programs = found
            for workspace in self.workspaces.values():
                workspace.nudge.nudge()

    async def _run_workspace(self, workspace_id: str) -> None:
        workspace = self.workspaces.get(workspace_id)
        if workspace is not None:
            # however often one crashes: the tasks of the others are worth more than an end with a bang
            await supervise(f"workspace {workspace_id}", workspace.run, intensity=None)
