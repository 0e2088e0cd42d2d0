"""The daemon's nursery tree, and the order in which it starts and stops.

Opened first and closed last is the control door, because holding it is being the daemon. Inside it
is the client, then presence: everything that says "we exist", which ends only when the pool of
tasks is empty. A stop closes the pool, lets tasks finish within the grace, cuts the rest, and only
then cancels presence, tells the server goodbye and lets go of the door (spec 03 §23).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final, Protocol

import attrs
import psutil
import structlog
import trio

from daemon.client import DEREGISTER, ApiError, Client, open_client
from daemon.config import Config
from daemon.control import open_control
from daemon.runtimes.abilities import Abilities, unable
from daemon.runtimes.directory import Directory
from daemon.services import Services, make_services
from daemon.tasks.pool import TaskPool, open_pool
from daemon.upkeep.renewal import run_renewal
from daemon.wakeups import Connect, connect, run_wakeups
from daemon.workspaces.programs import AskVersion, no_version
from daemon.workspaces.sync import Discover, Sync
from shared import __version__
from shared.supervise import every, supervise

log = structlog.get_logger(__name__)

CLAIM_GRACE: Final = 3.0
"""Seconds a claim in flight may hold up a stop; cut, its task is redelivered after 90 s."""

PARENT_LOOK: Final = 1.0
"""Seconds between looks whether the process that started us is still there."""

Replay = Callable[[Client], Awaitable[None]]


class OpenPool(Protocol):
    """`daemon.tasks.pool.open_pool`, as it is used here."""

    def __call__(
        self, config: Config, client: Client, *, control_port: int
    ) -> AbstractAsyncContextManager[TaskPool]: ...


async def replay_nothing(client: Client) -> None:
    """Stand in where there are no journals."""


@attrs.frozen(kw_only=True)
class Parts:
    """What the daemon is made of besides its own tree; tests put in their own.

    `discover` finds agent programs, `abilities` is what can be asked of the machine between tasks,
    `replay` sends what journals of earlier processes still owe the server, `families` are the
    protocols custom runtimes may use, `ask_version` starts their programs to be told a version.
    """

    discover: Discover
    abilities: Abilities = attrs.field(factory=unable)
    families: frozenset[str] = frozenset()
    ask_version: AskVersion = no_version
    replay: Replay = replay_nothing
    open_pool: OpenPool = open_pool
    connect: Connect = connect


@attrs.define(eq=False)
class Stop:
    """The one way to end the daemon: `ask` once for an orderly stop, `insist` to cut it short.

    Anyone asks; `root` is cancelled by the second signal only.
    """

    asked: trio.Event = attrs.field(factory=trio.Event)
    root: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def ask(self, reason: str) -> None:
        if not self.asked.is_set():
            log.info("stopping", reason=reason)
            self.asked.set()

    def insist(self, reason: str) -> None:
        """Ask; if that was done before, stop at once: tasks are cut now, each still reports."""
        if self.asked.is_set():
            log.warning("stopping at once", reason=reason)
            self.root.cancel(reason=reason)
        self.ask(reason)


@attrs.define(eq=False)
class Health:
    """What `/health` tells. `app.py` fills it in as the parts come up."""

    config: Config
    started: float = attrs.field(factory=trio.current_time)
    status: str = "starting"
    pool: TaskPool | None = None
    directory: Directory | None = None
    sync: Sync | None = None

    def tell(self) -> dict[str, Any]:
        """The object of spec 01 §6.1; `problem` is ours and there only while there is one."""
        told: dict[str, Any] = {
            "status": self.status,
            "pid": os.getpid(),
            "os": {"win32": "windows"}.get(sys.platform, sys.platform),
            "uptime": duration_text(trio.current_time() - self.started),
            "daemon_id": self.config.daemon_id,
            "device_name": self.config.device_name,
            "server_url": self.config.server_url,
            "cli_version": __version__,
            "active_task_count": len(self.pool.active) if self.pool else 0,
            "agents": sorted({p.provider for p in self.sync.programs}) if self.sync else [],
            "workspaces": [
                {"id": key, "runtimes": ids} for key, ids in self.directory.by_workspace().items()
            ]
            if self.directory
            else [],
        }
        if self.sync and self.sync.problem:
            told["problem"] = self.sync.problem
        return told


def duration_text(seconds: float) -> str:
    """Write whole seconds as `1h2m3s`, without leading zero parts."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    if hour:
        return f"{hour}h{minute}m{second}s"
    return f"{minute}m{second}s" if minute else f"{second}s"


async def run_daemon(config: Config, parts: Parts) -> None:
    """Be the daemon until a signal, `/shutdown` or the end of the parent process.

    Raises AlreadyRunning, or an exception group holding SignInRefused or a bug.
    """
    stop, health = Stop(), Health(config)
    async with (
        open_control(config.home, config.control_port, status=health.tell, stop=stop.ask) as door,
        open_client(config) as client,
        _watchers(stop, config.parent_pid),
    ):
        await be_present(config, client, parts, stop=stop, health=health, control_port=door.port)


@asynccontextmanager
async def _watchers(stop: Stop, parent_pid: int) -> AsyncIterator[None]:
    """Turn signals and the parent's death into a stop, for as long as the block lasts."""
    async with trio.open_nursery() as watchers:
        await watchers.start(_watch_signals, stop)
        if parent_pid:
            watchers.start_soon(_watch_parent, stop, parent_pid)
        yield
        watchers.cancel_scope.cancel(reason="the daemon has stopped")


async def _watch_signals(
    stop: Stop, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            stop.insist(signal.Signals(number).name)


async def _watch_parent(stop: Stop, pid: int) -> None:
    is_child = os.getppid() == pid

    async def look() -> None:
        if os.getppid() != pid if is_child else not psutil.pid_exists(pid):
            stop.ask("the process that started the daemon has ended")
        await trio.lowlevel.checkpoint()

    await every(PARENT_LOOK, look)


async def be_present(
    config: Config,
    client: Client,
    parts: Parts,
    *,
    stop: Stop,
    health: Health,
    control_port: int = 0,
) -> None:
    """Serve until asked to stop, then leave in order. Raises a group if a service crashes."""
    directory = health.directory = Directory()
    try:
        with stop.root:
            async with trio.open_nursery() as presence:
                async with parts.open_pool(config, client, control_port=control_port) as pool:
                    health.pool = pool
                    services = make_services(config, client, pool, directory, parts.abilities)
                    presence.start_soon(_start, presence, services, parts, health)
                    await stop.asked.wait()
                    health.status = "stopping"
                    _close(services)
                    await pool.wait_empty()
                presence.cancel_scope.cancel(reason="no task is left")
    finally:
        health.status = "stopping"
        with trio.move_on_after(DEREGISTER, shield=True):
            await _say_goodbye(client, directory)


async def _start(presence: trio.Nursery, services: Services, parts: Parts, health: Health) -> None:
    """Start every service; ready when the first registrations have been tried."""
    presence.start_soon(run_renewal, services.client)
    presence.start_soon(_replay, services, parts.replay)
    presence.start_soon(supervise, "actions", services.actions.run)
    wakeups = partial(run_wakeups, services, connect=parts.connect)
    presence.start_soon(supervise, "wakeups", wakeups)
    health.sync = Sync(services, parts.discover, parts.families, ask_version=parts.ask_version)
    await presence.start(health.sync.run)
    if health.status == "starting":
        health.status = "running"
        log.info("running", server_url=services.config.server_url)


async def _replay(services: Services, replay: Replay) -> None:
    """Settle the past before new work begins; a failure there must not keep the daemon idle."""
    try:
        await replay(services.client)
    except Exception:
        log.exception("journals of earlier runs were not replayed")
    services.journals_replayed.set()


def _close(services: Services) -> None:
    """Admit nothing more, and give everything under way its deadline."""
    services.pool.stop(services.config.shutdown_grace)
    services.claims.cut(CLAIM_GRACE)


async def _say_goodbye(client: Client, directory: Directory) -> None:
    """Take the runtimes offline now, instead of when the server misses their beats."""
    ids = directory.ids()
    if not ids:
        return
    try:
        await client.deregister(ids)
    except ApiError as error:
        log.warning("not deregistered", error=str(error))
