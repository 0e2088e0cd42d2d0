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
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import psutil
import structlog
import trio

from daemon.agents import isolation
from daemon.agents.isolation import Isolation
from daemon.agents.models import TakesLevel
from daemon.client import DEREGISTER, ApiError, Client, open_client
from daemon.config import Config
from daemon.control import Handler, open_control
from daemon.notify import Notifier, run_notify
from daemon.reload import Load, run_reload
from daemon.repos.desk import CREDENTIAL, open_desk
from daemon.repos.desk import ROUTE as CHECKOUT
from daemon.runtimes.abilities import Abilities, unable
from daemon.runtimes.directory import Directory
from daemon.services import Services, make_services
from daemon.tasks.backlog import Backlog
from daemon.tasks.pool import TaskPool, open_pool
from daemon.upkeep.disk import keep_disk_watched
from daemon.upkeep.local_usage import run_local_usage
from daemon.upkeep.reclaim import run_reclaim
from daemon.upkeep.renewal import run_renewal
from daemon.upkeep.update import Successor, Updater, Updates
from daemon.wakeups import Connect, connect, run_wakeups
from daemon.workdir.prepare import LiveRoots
from daemon.workspaces.programs import AskVersion, no_version
from daemon.workspaces.sync import Discover, Sync
from shared import __version__
from shared.log import is_disk_full
from shared.mailbox import Nudge
from shared.supervise import every, supervise

if TYPE_CHECKING:
    from daemon.repos.desk import Desk

log = structlog.get_logger(__name__)

CLAIM_GRACE: Final = 3.0
"""Seconds a claim in flight may hold up a stop; cut, its task is redelivered after 90 s."""

PARENT_LOOK: Final = 1.0
"""Seconds between looks whether the process that started us is still there."""

DRAIN_LOOK: Final = 0.2
"""Seconds between looks whether the last task has ended; somebody is waiting at a terminal."""


class OpenPool(Protocol):
    """`daemon.tasks.pool.open_pool`, as it is used here."""

    def __call__(
        self,
        config: Config,
        client: Client,
        backlog: Backlog,
        *,
        control_port: int,
        desk: Desk,
        live: LiveRoots,
        takes_level: TakesLevel,
    ) -> AbstractAsyncContextManager[TaskPool]: ...


def adopt_nothing(config: Config) -> None:
    """Stand in where nothing outside the tree depends on settings."""


async def isolate_nothing(_: Config) -> Isolation:
    """Stand in where no agent is run as a process."""
    await trio.lowlevel.checkpoint()
    return Isolation()


@attrs.frozen(kw_only=True)
class Parts:
    """What the daemon is made of besides its own tree; tests put in their own.

    `discover` finds agent programs, `families` are the protocols custom runtimes may use,
    `ask_version` starts their programs to be told a version. `abilities` is what can be asked of
    the machine between tasks. `load` reads the settings again when the config file has changed,
    None never; `adopt` is told of those to use from then. `installer` changes Bullpen's own
    version; without one, `never_updates` says why. `isolate` finds out how agents are isolated.
    """

    discover: Discover
    abilities: Abilities = attrs.field(factory=unable)
    families: frozenset[str] = frozenset()
    ask_version: AskVersion = no_version
    open_pool: OpenPool = open_pool
    connect: Connect = connect
    load: Load | None = None
    adopt: Callable[[Config], None] = adopt_nothing
    installer: Updates | None = None
    never_updates: str = "updates are off for this installation"
    notifier: Notifier = attrs.field(factory=Notifier)
    isolate: Callable[[Config], Awaitable[Isolation]] = isolate_nothing


@attrs.define(eq=False)
class Stop:
    """The one way to end the daemon: `ask` once for an orderly stop, `insist` to cut it short.

    Anyone asks; `root` is cancelled by the second signal only. `drain` asks for a stop that waits
    for every task, claiming nothing new; `resume` takes that back. `draining` says which holds.
    `make_room` ends the daemon for a `successor`.
    """

    asked: trio.Event = attrs.field(factory=trio.Event)
    root: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    successor: Successor | None = None
    draining: bool = False
    changed: Nudge = attrs.field(factory=Nudge)

    def drain(self) -> dict[str, Any]:
        log.info("stopping once no task is left")
        self.draining = True
        self.changed.nudge()
        return {"status": "draining"}

    def make_room(self, successor: Successor) -> None:
        if not self.asked.is_set():
            self.successor = successor
        self.ask(f"making room for version {successor.version}")

    def resume(self) -> dict[str, Any]:
        self.draining = False
        self.changed.nudge()
        return {"status": "stopping" if self.asked.is_set() else "running"}

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
    backlog: Backlog | None = None
    directory: Directory | None = None
    client: Client | None = None
    sync: Sync | None = None
    stop: Stop | None = None
    isolation: Isolation = attrs.field(factory=isolation.machine.get)

    def tell(self) -> dict[str, Any]:
        """The object of spec 01 §6.1; what follows `workspaces` is ours, there when it applies."""
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
        if self.config.service:
            told["service"] = self.config.service
        if self.stop and self.stop.draining:
            told["draining"] = True
        told["isolation"] = self.isolation.backend
        if self.isolation.problem:
            told["isolation_problem"] = self.isolation.problem
        problems = [
            self.sync.problem if self.sync else "",
            self.client.problem if self.client else "",
            self.pool.held_back if self.pool else "",
            "disk full: the log cannot be written" if is_disk_full() else "",
            *(self.sync.refusals if self.sync else ()),
        ]
        if any(problems):
            told["problem"] = "; ".join(filter(None, problems))
        if self.backlog is not None:
            told["unreported_task_count"] = self.backlog.count
        return told


def duration_text(seconds: float) -> str:
    """Write whole seconds as `1h2m3s`, without leading zero parts."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    if hour:
        return f"{hour}h{minute}m{second}s"
    return f"{minute}m{second}s" if minute else f"{second}s"


async def run_daemon(config: Config, parts: Parts) -> Successor | None:
    """Be the daemon until a signal, `/shutdown` or the end of the parent process.

    Returns who takes over, if the daemon made room after an update. Raises AlreadyRunning, or an
    exception group holding SignInRefused, NotIsolated or a bug.
    """
    isolation.machine.set(await parts.isolate(config))
    stop, health = Stop(), Health(config)
    word = Nudge()
    commands: dict[str, Callable[[], dict[str, Any]]] = {
        "/drain": stop.drain,
        "/resume": stop.resume,
        "/reclaim": partial(_pass_on, word),
    }
    async with (
        open_control(
            config.home,
            config.control_port,
            status=health.tell,
            stop=stop.ask,
            commands=commands,
        ) as door,
        open_client(config) as client,
        _watchers(stop, config.parent_pid),
    ):
        await be_present(
            config,
            client,
            parts,
            stop=stop,
            health=health,
            control_port=door.port,
            routes=door.routes,
            word=word,
        )
    return stop.successor


def _pass_on(word: Nudge) -> dict[str, Any]:
    """Tell the reclaim that an operator wants everything gone that may go."""
    word.nudge()
    return {"status": "reclaiming"}


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
    routes: dict[str, Handler] | None = None,
    word: Nudge | None = None,
) -> None:
    """Serve until asked to stop, then leave in order. Raises a group if a service crashes.

    `routes` are the door's; checkouts are answered there while there may be tasks.
    """
    directory = health.directory = Directory()
    health.stop, health.client = stop, client
    live = LiveRoots()
    routes = {} if routes is None else routes
    try:
        with stop.root:
            async with (
                open_desk(client, config.workspaces_root) as desk,
                trio.open_nursery() as presence,
            ):
                backlog = health.backlog = Backlog(client, config.home.journals)
                async with parts.open_pool(
                    config,
                    client,
                    backlog,
                    control_port=control_port,
                    desk=desk,
                    live=live,
                    takes_level=parts.abilities.takes_level,
                ) as pool:
                    routes[CHECKOUT] = desk.answer
                    routes[CREDENTIAL] = desk.credential
                    health.pool = pool
                    if config.trial:
                        pool.pause("trial")
                    services = make_services(
                        config,
                        client,
                        pool,
                        backlog,
                        directory=directory,
                        abilities=parts.abilities,
                    )
                    presence.start_soon(_start, presence, services, parts, health, stop)
                    notify = partial(run_notify, parts.notifier, health.tell)
                    presence.start_soon(_bear, "notify", notify)
                    reclaim = partial(run_reclaim, config, client, desk.clones, live, word)
                    presence.start_soon(_bear, "reclaim", reclaim)
                    await stop.asked.wait()
                    health.status = "stopping"
                    if stop.successor is None:  # a manager would end us, whoever comes next
                        parts.notifier.tell(STOPPING=1)
                    _close(services)
                    await pool.wait_empty()
                presence.cancel_scope.cancel(reason="no task is left")
    finally:
        routes.pop(CHECKOUT, None)
        routes.pop(CREDENTIAL, None)
        health.status = "stopping"
        with trio.move_on_after(DEREGISTER, shield=True):
            await _say_goodbye(client, directory)


async def _start(
    presence: trio.Nursery, services: Services, parts: Parts, health: Health, stop: Stop
) -> None:
    """Start every service; ready when the first registrations have been tried."""
    presence.start_soon(_bear, "drain", partial(_watch_drain, stop, services.pool))
    presence.start_soon(_bear, "renewal", partial(run_renewal, services.client))
    updater = Updater(
        services=services,
        installer=parts.installer,
        make_room=stop.make_room,
        refusal=parts.never_updates,
    )
    if parts.abilities.update is None:
        services.actions.update = updater.answer
    presence.start_soon(_bear, "updates", updater.run)
    presence.start_soon(_bear, "backlog", services.backlog.run)
    presence.start_soon(_bear, "disk", partial(keep_disk_watched, services))
    presence.start_soon(_bear, "local usage", partial(run_local_usage, services))
    presence.start_soon(_bear, "actions", services.actions.run)
    wakeups = partial(run_wakeups, services, connect=parts.connect)
    presence.start_soon(_bear, "wakeups", wakeups)
    sync = health.sync = Sync(
        services, parts.discover, parts.families, ask_version=parts.ask_version
    )
    if parts.load is not None:
        adopt = partial(_adopt, services, sync, parts)
        reload = partial(run_reload, services.config, parts.load, adopt)
        presence.start_soon(_bear, "reload", reload)
    await presence.start(health.sync.run)
    if health.status == "starting":
        health.status = "running"
        log.info("running", server_url=services.config.server_url)
    if services.config.trial:
        stop.ask("the trial start has succeeded")


async def _bear(name: str, duty: Callable[[], Awaitable[None]]) -> None:
    """Run what tasks can do without for a while, and restart it for as long as it crashes.

    Its bugs must not cost hours of agents' work, as the end of the daemon would; only a crash of
    `workspaces/sync`, which everything else hangs from, is one.
    """
    await supervise(name, duty, intensity=None)


def _adopt(services: Services, sync: Sync, parts: Parts, config: Config) -> None:
    """Hand changed settings to everyone who keeps a copy, and compare what follows from them."""
    services.config = config
    services.client.use_token(config.token)
    services.pool.adopt(config)
    parts.adopt(config)
    sync.look_again()


async def _watch_drain(stop: Stop, pool: TaskPool) -> None:
    """Hold the claim barrier while a stop waits for tasks, and stop when none is left."""
    while True:
        await stop.changed.wait()
        while stop.draining:
            pool.pause("drain")
            if pool.idle:
                stop.ask("asked to, and no task is left")
                return
            await trio.sleep(DRAIN_LOOK)
        pool.resume("drain")


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
