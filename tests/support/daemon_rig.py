"""The daemon's tree against the fake server, on virtual time: everything but door and signals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from daemon.agents.contract import Program
from daemon.app import Health, Parts, Stop, be_present
from daemon.client import Client
from daemon.config import Config
from daemon.notify import Notifier
from daemon.reload import Load
from daemon.runtimes.abilities import Abilities
from daemon.tasks.backlog import Backlog
from daemon.tasks.pool import TaskPool
from daemon.tasks.task import Job
from daemon.upkeep.update import Updates
from daemon.workspaces.programs import AskVersion, no_version
from tests.support.fake_server import FakeServer, client_of, make_config

RunJob = Callable[[Client, Job, trio.CancelScope], Awaitable[None]]

CLAUDE = Program(provider="claude", path="/bin/claude", version="2.1.0")
CODEX = Program(provider="codex", path="/bin/codex", version="0.120.0")
DEMO = Program(provider="demo", path="/bin/demo", version="1")


async def run_at_once(client: Client, job: Job, shutdown: trio.CancelScope) -> None:
    """A task that starts and completes without taking time."""
    from shared.wire.task import CompleteRequest

    await client.start(job.task.id)
    await client.complete(job.task.id, CompleteRequest(output="done"))


@asynccontextmanager
async def _open_pool(
    config: Config, client: Client, backlog: Backlog, *, run_job: RunJob, **_: Any
) -> AsyncIterator[TaskPool]:
    async with trio.open_nursery() as tasks:
        yield TaskPool(config.max_concurrent_tasks, tasks, partial(run_job, client), backlog.owes)


@attrs.define(eq=False)
class Rig:
    """A running daemon. `programs` is what discovery finds at its next look."""

    server: FakeServer
    config: Config
    stop: Stop
    health: Health
    programs: list[Program]
    ended: trio.Event = attrs.field(factory=trio.Event)

    @property
    def pool(self) -> TaskPool:
        assert self.health.pool is not None
        return self.health.pool

    async def until(self, condition: Callable[[], object], within: float = 600.0) -> float:
        """Wait for a condition, in virtual time; returns when it was seen. Fails after `within`.

        Looks often at first and then every half second; exact times are in the server's records.
        """
        began = trio.current_time()
        with trio.fail_after(within):
            while not condition():  # noqa: ASYNC110 - virtual time, and conditions over many parts
                await trio.sleep(0.01 if trio.current_time() - began < 0.3 else 0.5)
        return trio.current_time()

    async def until_running(self) -> None:
        await self.until(lambda: self.health.status == "running")


@asynccontextmanager
async def open_rig(
    server: FakeServer,
    home: Path,
    *,
    programs: tuple[Program, ...] = (CLAUDE,),
    run_job: RunJob = run_at_once,
    abilities: Abilities | None = None,
    families: frozenset[str] = frozenset({"claude", "codex"}),
    ask_version: AskVersion = no_version,
    load: Load | None = None,
    notifier: Notifier | None = None,
    installer: Updates | None = None,
    **changes: Any,
) -> AsyncIterator[Rig]:
    """Run a daemon for the block; leaving it stops the daemon in order and checks the slots."""
    config = make_config(home, **changes)
    rig = Rig(server, config, Stop(), Health(config), list(programs))

    async def discover() -> list[Program]:
        await trio.lowlevel.checkpoint()
        return list(rig.programs)

    parts = Parts(
        discover=discover,
        families=families,
        ask_version=ask_version,
        open_pool=partial(_open_pool, run_job=run_job),
        connect=server.connect,
        load=load,
        notifier=notifier or Notifier(),
        installer=installer,
        **({"never_updates": ""} if installer else {}),
        **({"abilities": abilities} if abilities else {}),
    )
    async with client_of(server, config) as client, trio.open_nursery() as nursery:

        async def run() -> None:
            await be_present(config, client, parts, stop=rig.stop, health=rig.health)
            rig.ended.set()

        nursery.start_soon(run)
        yield rig
        rig.stop.ask("the test is over")
        await rig.ended.wait()
        assert rig.pool.slots_out == 0, "a slot was not given back"
