"""One workspace: makes what is registered there equal to what this machine has to offer.

One reconciler does everything the reference spreads over a sync pass, a drift check and a recovery
of vanished runtimes: it compares plan and registration, and registers, with back-off, until they
agree. It is woken by a nudge (programs changed, profiles changed, a runtime gone) and at the sync
interval. It owns the workspace's runtimes as keyed children and ends by being cancelled.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from daemon.agents.contract import Program
from daemon.client import ApiError
from daemon.runtimes.info import RuntimeInfo
from daemon.runtimes.runtime import run_runtime
from daemon.workspaces.programs import AskVersion, no_version
from daemon.workspaces.registration import (
    Find,
    Plan,
    custom_paths,
    dropped,
    plan_runtimes,
    registration,
    runtimes_of,
    with_versions,
)
from shared.children import Children
from shared.codec import DecodeError, loads
from shared.mailbox import Nudge
from shared.supervise import Backoff, supervise
from shared.wire.runtime import RuntimeProfile

if TYPE_CHECKING:
    from daemon.services import Services

log = structlog.get_logger(__name__)

BACKOFF = Backoff(first=1.0, limit=60.0)

MOST_REPAIRS: Final = 3
REPAIR_WINDOW: Final = 30.0
"""At most so many registrations within so many seconds because runtimes were lost. Losses are repaired
at once, but a server that registers a runtime and does not know it the next moment must not be
asked as fast as it answers; those who wait share the next registration."""


class RegistrationFailed(Exception):
    """The server's answer is no registration."""


def refusal_of(error: ApiError | RegistrationFailed) -> str:
    """What a server says that does not take this machine under this account; "" for any other error."""
    if not isinstance(error, ApiError) or error.status != 403:
        return ""
    try:
        said = loads(error.text.encode())
    except DecodeError:
        said = None
    text = said.get("error") if isinstance(said, dict) else None
    return text if isinstance(text, str) else error.text


@attrs.define(eq=False)
class Workspace:
    """The reconciler's state. Its own task changes everything but what `gone` says it changes.

    `lost` holds ids the server said it does not know, until a registration has answered for them.
    `registered_plan` is what the last successful registration told, `repairs` when the last ones
    were made because of losses. `settled` is set once the first attempt to register has ended, well
    or not. `registered_with` is the token of the last registration that was accepted, `refused` why
    the machine may not be registered under this account.
    """

    services: Services
    id: str
    programs: Callable[[], Sequence[Program]]
    families: frozenset[str]
    find: Find = shutil.which
    ask_version: AskVersion = no_version
    settled: trio.Event = attrs.field(factory=trio.Event)
    nudge: Nudge = attrs.field(factory=Nudge)
    profiles: list[RuntimeProfile] = attrs.field(factory=list)
    registered: dict[str, RuntimeInfo] = attrs.field(factory=dict)
    registered_plan: Plan | None = None
    lost: set[str] = attrs.field(factory=set)
    repairs: deque[float] = attrs.field(factory=deque)
    registered_with: str = attrs.field(default="", repr=False)
    refused: str = ""

    def gone(self, runtime_id: str) -> None:
        """Note that the server does not know a runtime; its loss is repaired by the reconciler."""
        if self.registered.pop(runtime_id, None) is not None:
            self.lost.add(runtime_id)
            self._publish()
            self.nudge.nudge()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        self.services.directory.join(self.id, recheck=self.nudge.nudge, gone=self.gone)
        self._publish()
        async with trio.open_nursery() as runtimes:
            children = Children(runtimes, self._run_runtime)
            failures = 0
            while True:
                await children.reconcile(self.registered)
                await trio.sleep(self._patience())
                try:
                    await self._agree(children)
                except (ApiError, RegistrationFailed) as error:
                    failures += 1
                    self.refused = refusal_of(error)
                    wait = BACKOFF.wait(failures)
                    log.warning(
                        "registration failed; trying again",
                        workspace_id=self.id,
                        wait=round(wait, 1),
                        error=str(error),
                    )
                    self.settled.set()
                    await trio.sleep(wait)
                else:
                    failures = 0
                    self.settled.set()
                    await self.nudge.wait(self.services.config.sync_interval)

    def _patience(self) -> float:
        """How long a loss has to wait for its repair."""
        now = trio.current_time()
        while self.repairs and now - self.repairs[0] > REPAIR_WINDOW - 0.001:
            self.repairs.popleft()
        if not self.lost or len(self.repairs) < MOST_REPAIRS:
            return 0.0
        log.warning("the server keeps losing runtimes", workspace_id=self.id)
        return self.repairs[0] + REPAIR_WINDOW - now

    async def _agree(self, children: Children[str]) -> None:
        """Register if plan and registration differ. Raises ApiError or RegistrationFailed."""
        self.nudge.take()  # everything said so far is looked at now
        plan = await self._plan()
        if plan == self.registered_plan and not self.lost:
            return
        before = self.registered.copy()
        if plan:
            config = self.services.config
            anew = config.token != self.registered_with
            reply = await self.services.client.register(
                registration(config, self.id, plan, take_over=anew)
            )
            self.registered_with = config.token
            self.refused = ""
            self.services.offers.learn(reply.capabilities)
            runtimes = runtimes_of(self.id, plan, reply)
            if not runtimes and not plan.failed:
                raise RegistrationFailed("the server registered nothing")
        else:
            runtimes = ()
        # Losses reported while we registered belong to the wave this answer covers. A runtime both
        # lost and answered for exists again: its child is replaced, it may have given up.
        stale = frozenset(self.lost)
        if stale:
            self.repairs.append(trio.current_time())
        self.lost.clear()
        self.registered = {runtime.id: runtime for runtime in runtimes}
        self.registered_plan = plan
        self._publish()
        await children.reconcile(self.registered.keys() - stale)
        await children.reconcile(self.registered)
        await self._deregister(dropped(before, self.registered))
        log.info("registered", workspace_id=self.id, runtimes=len(self.registered))

    async def _plan(self) -> Plan:
        """Plan from the programs of this machine and the workspace's profiles.

        Profiles that cannot be fetched stay what they were: an older server has none (03 §8.3).
        """
        try:
            self.profiles = await self.services.client.profiles(self.id)
        except ApiError as error:
            log.debug("profiles not fetched", workspace_id=self.id, error=str(error))
        config = self.services.config
        plan = plan_runtimes(
            self.programs(),
            self.profiles,
            families=self.families,
            device_name=config.runtime_name or config.device_name,
            overrides=config.profile_command_overrides,
            find=self.find,
        )
        versions: dict[str, str] = {}

        async def ask(path: str) -> None:
            versions[path] = await self.ask_version(path)

        async with trio.open_nursery() as asking:
            for path in custom_paths(plan):
                asking.start_soon(ask, path)
        return with_versions(plan, versions)

    async def _deregister(self, runtime_ids: list[str]) -> None:
        """Tell the server what is no longer offered. Best effort: it notices by itself too."""
        if not runtime_ids:
            return
        try:
            await self.services.client.deregister(runtime_ids)
        except ApiError as error:
            log.warning("not deregistered", workspace_id=self.id, error=str(error))

    def _publish(self) -> None:
        self.services.directory.publish(self.id, self.registered.values())

    async def _run_runtime(self, runtime_id: str) -> None:
        runtime = self.registered.get(runtime_id)
        if runtime is not None:
            run = partial(run_runtime, self.services, runtime)
            await supervise(f"runtime {runtime_id}", run, intensity=None)
