"""One task from hand-over to confirmed report (spec 03 §13, §14)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import attrs
import trio

from daemon.agents.contract import Agent, AgentRun
from shared.wire.task import ClaimedTask

if TYPE_CHECKING:
    from daemon.client import Client
    from daemon.config import Config
    from daemon.runtimes.runtime import RuntimeInfo

OpenAgent = Callable[[AgentRun], AbstractAsyncContextManager[Agent]]


@attrs.frozen(kw_only=True)
class Job:
    """A claimed task, the slot it runs in and the runtime it was claimed for."""

    task: ClaimedTask
    slot: int
    runtime: RuntimeInfo


class TaskRunner:
    """Runs jobs; one per daemon."""

    def __init__(
        self,
        config: Config,
        client: Client,
        *,
        control_port: int = 0,
        open_agent: OpenAgent | None = None,
    ) -> None:
        self._config = config
        self._client = client
        self._control_port = control_port
        self._open_agent = open_agent

    async def run(self, job: Job, shutdown: trio.CancelScope) -> None:
        raise NotImplementedError

    async def report_crash(self, job: Job, crash: BaseException) -> None:
        raise NotImplementedError
