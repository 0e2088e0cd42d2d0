"""The tree of `bullpen up`: signals round the server, the server round the daemon.

    signals ⊃ server ⊃ daemon ⊃ (agents, link, up.json, then wait)

The first signal cancels the innermost part only, so the blocks are left in order: the daemon stops
while its server still answers, then the server stops and its Postgres with it. Ends when a signal
says so, or with CliError when a part cannot be kept running.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import psutil
import trio

from daemon.agents.launch import DRIVERS
from daemon.cli.browser import browser_opener, open_detached
from daemon.cli.errors import CliError
from daemon.cli.settings import read_config, save_config
from daemon.cli.up import introduce
from daemon.cli.up.child import ChildSpec, Stopping, keep_child
from daemon.cli.up.greeting import greet
from daemon.cli.up.lock import HomeLock, has_ended, hold_home, is_alive, stop_leftovers
from daemon.cli.up.plan import Plan, about_disk, check_home, choose_port
from daemon.cli.up.voice import Voice
from daemon.threads import in_thread
from daemon.upkeep.disk import free_bytes
from shared import log
from shared.home import write_private
from shared.supervise import every

Problem = TypeVar("Problem", bound=Exception)

_STOP_BUDGET: Final = 8.5
"""Seconds for everything to stop: with what killing and reaping take, it stays below ten."""

_SERVER_RESERVE: Final = 3.5
"""The part of it that is the server's: connections drain, Postgres writes its checkpoint."""

_POSTGRES_LAST: Final = 0.8
"""Seconds Postgres may take from removing its lock file to its end."""

_POSTGRES_LOOK: Final = 1.0
"""Seconds between looks whether it is still there."""

_DISK_LOOK: Final = 5.0
_LITTLE: Final = 16 * 2**20
"""Bytes: one segment of the database's log, less than which nothing can be written any more."""

_SERVER_PATIENCE: Final = 240.0
"""A first start makes a database; on a slow disk that takes minutes."""

_DAEMON_PATIENCE: Final = 60.0
"""It asks every agent program for its version before it registers them."""


def run_up(plan: Plan, voice: Voice | None = None) -> int:
    """Run until stopped; returns 0 after an orderly stop. Raises CliError."""
    voice = voice or Voice()
    with hold_home(plan.home) as lock:
        try:
            check_home(plan.home)
            plan.home.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (plan.home.logs / "up.log").open("a", encoding="utf-8") as own_log:
                log.set_up("info", own_log)
                return trio.run(_Up(plan, lock, voice).run)
        except OSError as error:
            raise CliError(about_disk(plan.home, error)) from error


class _Up:
    """One run. The fields below `_told` are changed by the children's callbacks only."""

    def __init__(self, plan: Plan, lock: HomeLock, voice: Voice) -> None:
        self._plan = plan
        self._home = plan.home
        self._lock = lock
        self._voice = voice
        self._stopping = Stopping(_STOP_BUDGET)
        self._pids: dict[str, int] = {}
        self._told: dict[str, Any] = {}
        self._is_up = False
        self._disk_full = False
        self._port = 0
        self._mint = not read_config(plan.home).get("token")
        self._server_back = trio.Event()
        self._server_told: Mapping[str, Any] = {}

    async def run(self) -> int:
        work = trio.CancelScope()
        failure: CliError | None = None
        async with trio.open_nursery() as signals:
            await signals.start(self._watch_signals, work)
            try:
                await self._run_server(work)
            except* CliError as group:
                failure = _first(group, CliError)
            except* OSError as group:
                failure = CliError(about_disk(self._home, _first(group, OSError)))
            finally:
                self._home.up_file.unlink(missing_ok=True)
            signals.cancel_scope.cancel(reason="everything has stopped")
        if failure is not None:
            raise CliError(failure.text, detail=failure.detail) from failure
        self._voice.say("Bullpen has stopped.")
        return 130 if self._stopping.in_a_hurry else 0

    async def _watch_signals(
        self, work: trio.CancelScope, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """The first signal begins an orderly stop, the second ends all waiting for it."""
        stops = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup wants it ignored
            stops.append(signal.SIGHUP)
        with trio.open_signal_receiver(*stops) as received:
            task_status.started()
            async for _ in received:
                if self._stopping.deadline is not None:
                    self._voice.warn("killing what still runs")
                    self._stopping.hurry()
                    continue
                self._voice.say()
                self._voice.say("Stopping … (once more to kill)")
                self._stopping.begin()
                work.cancel(reason="a signal")

    async def _run_server(self, work: trio.CancelScope) -> None:
        async with trio.open_nursery() as services:
            with work:
                left = await stop_leftovers(self._lock)
                if left:
                    self._voice.say(f"Stopped what an earlier run had left: {', '.join(left)}")
                self._home.up_file.unlink(missing_ok=True)
                known = str(read_config(self._home).get("server_url") or "")
                self._port = choose_port(self._plan, known)
                with self._voice.stage("Starting the server and its database"):
                    told = await services.start(
                        keep_child,
                        self._server_spec(),
                        self._stopping,
                        self._started,
                        self._server_is_back,
                        self._server_died,
                    )
                self._server_is_useful(told)
                services.start_soon(every, _POSTGRES_LOOK, self._look_after_postgres)
                services.start_soon(every, _DISK_LOOK, self._look_at_disk)
                await self._run_daemon()
            self._stopping.begin()
            services.cancel_scope.cancel(reason="the daemon has stopped")
        await self._see_postgres_off()

    async def _run_daemon(self) -> None:
        async with introduce.open_caller(self._url()) as caller, trio.open_nursery() as presence:
            with self._voice.stage("Signing in"):
                await self._sign_in(caller)
            with self._voice.stage("Starting the daemon and looking for agent programs"):
                health = await presence.start(
                    keep_child,
                    self._daemon_spec(caller),
                    self._stopping,
                    self._started,
                    self._daemon_is_back,
                    self._voice.warn,
                )
            for name in ("problem", "isolation_problem"):
                if health.get(name):
                    self._voice.warn(str(health[name]))
            runtimes = await introduce.runtimes_of(caller, health["daemon_id"])
            self._warn_of_missing(runtimes)
            made, agents = await introduce.make_agents(caller, runtimes)
            for name in await introduce.close_demos(caller, runtimes):
                self._voice.warn(
                    f"the agent {name} was open to the whole workspace and is yours alone now;"
                    f" `bullpen agent update {name} --visibility workspace` opens it again"
                )
            link = await introduce.sign_in_link(caller)
            self._told |= {"token": caller.token, "workspace_id": caller.workspace_id}
            self._is_up = True
            self._write_up_file()
            greet(self._voice, self._plan, url=self._url(), link=link, made=made, agents=agents)
            opener = browser_opener(self._plan.env) if self._plan.browser else None
            if opener is not None and sys.stdout.isatty():
                with suppress(OSError):
                    await trio.to_thread.run_sync(open_detached, [opener, link])
            await trio.sleep_forever()

    async def _sign_in(self, caller: introduce.Caller) -> None:
        """Keep the home's token while it works; else have the server mint one, which takes it a
        start of its own, since minting revokes the tokens of earlier starts.
        """
        config = read_config(self._home)
        wanted = str(config.get("workspace_id") or "")
        token = str(self._server_told.get("token") or config.get("token") or "")
        if not await introduce.sign_in(caller, token, wanted):
            self._mint = True
            os.kill(self._pids["server"], signal.SIGTERM)
            await self._server_back.wait()
            token = str(self._server_told.get("token") or "")
            if not await introduce.sign_in(caller, token, wanted):
                raise CliError("the server does not take the token it has just made")
        save_config(
            self._home,
            {
                "server_url": self._url(),
                "token": caller.token,
                "workspace_id": caller.workspace_id,
            },
        )

    def _warn_of_missing(self, runtimes: Sequence[Mapping[str, Any]]) -> None:
        found = {runtime["provider"] for runtime in runtimes}
        for name in self._plan.agents or ():
            if name not in found:
                self._voice.warn(
                    f"{name} was asked for, but no usable one was found on this machine; set "
                    f"BULLPEN_{name.upper()}_PATH if it is not in PATH"
                )

    async def _look_at_disk(self) -> None:
        """Say it once when the home's disk is full, and once when it has room again."""
        free = await in_thread(lambda: free_bytes(self._home.root))
        full = free is not None and free < _LITTLE
        if full and not self._disk_full:
            self._voice.warn(
                f"disk full: {self._home.root} has {(free or 0) // 2**20} MiB left. Bullpen runs on, but"
                " keeps nothing new until there is room"
            )
        elif self._disk_full and not full:
            self._voice.say("The disk has room again.")
        self._disk_full = full

    # --- the children -----------------------------------------------------------------------------

    def _url(self) -> str:
        return f"http://{self._plan.local_host}:{self._port}"

    def _environment(self, **own: str) -> dict[str, str]:
        """Our environment, without what an agent's task would have put there."""
        env = {k: v for k, v in self._plan.env.items() if not k.startswith("MULTICA_")}
        return {**env, "PYTHONUNBUFFERED": "1", "BULLPEN_HOME": str(self._home.root), **own}

    def _server_spec(self) -> ChildSpec:
        def command() -> Sequence[str]:
            self._home.ready_file.unlink(missing_ok=True)
            words = [sys.executable, "-P", "-m", "server"]  # -P: not what the current directory has
            words += ["--home", str(self._home.root), "--port", str(self._port)]
            words += ["--ready-file", str(self._home.ready_file), "--parent-pid", str(os.getpid())]
            words += ["--host", self._plan.host] if self._plan.host else []
            return words + (["--setup"] if self._mint else [])

        async def probe(pid: int) -> Any:
            await trio.lowlevel.checkpoint()
            try:
                told = json.loads(self._home.ready_file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return None
            return told if isinstance(told, dict) and told.get("pid") == pid else None

        return ChildSpec(
            name="server",
            command=command,
            env=self._environment(BULLPEN_DRAIN=self._plan.env.get("BULLPEN_DRAIN") or "1.5"),
            log_file=self._home.logs / "server.log",
            probe=probe,
            patience=_SERVER_PATIENCE,
        )

    def _daemon_spec(self, caller: introduce.Caller) -> ChildSpec:
        given = self._plan.env
        env = self._environment(
            BULLPEN_SERVER_URL=self._url(),
            BULLPEN_DAEMON_PORT=given.get("BULLPEN_DAEMON_PORT") or "0",
            BULLPEN_PARENT_PID=str(os.getpid()),
            BULLPEN_DAEMON_SHUTDOWN_GRACE=given.get("BULLPEN_DAEMON_SHUTDOWN_GRACE") or "2s",
            BULLPEN_AGENTS=",".join(self._plan.agents or ())
            or given.get("BULLPEN_AGENTS", "").strip()
            or ",".join(DRIVERS),  # the demo as well, which a daemon alone does not offer
        )

        def command() -> Sequence[str]:
            return [sys.executable, "-P", "-m", "daemon", "--home", str(self._home.root)]

        async def probe(pid: int) -> Any:
            health = await caller.daemon_health(self._home.daemon_file, pid)
            return health if health and health.get("status") == "running" else None

        return ChildSpec(
            name="daemon",
            command=command,
            env=env,
            log_file=self._home.logs / "daemon.log",
            probe=probe,
            patience=_DAEMON_PATIENCE,
            reserve=_SERVER_RESERVE,
        )

    def _started(self, name: str, pid: int) -> None:
        self._pids[name] = pid
        self._lock.record(name, pid)

    def _server_is_useful(self, told: Mapping[str, Any]) -> None:
        self._port = urlsplit(str(told["url"])).port or self._port
        self._told["postgres"] = told.get("postgres") or {}
        self._server_told = told
        self._mint = False
        self._home.ready_file.unlink(missing_ok=True)  # it names secrets, and has been read
        self._write_up_file()

    def _server_is_back(self, told: Mapping[str, Any]) -> None:
        self._server_is_useful(told)
        self._server_back.set()
        self._voice.say("The server is back.")

    def _server_died(self, how: str) -> None:
        if not self._mint:  # then we restart it ourselves
            self._voice.warn(how)

    async def _look_after_postgres(self) -> None:
        """A server does not outlive its database by itself: start both anew when that has died."""
        told, server = self._told.get("postgres") or {}, self._server_told.get("pid")
        is_serving = server == self._pids["server"] and not self._mint
        if told.get("embedded") and is_serving and not _runs(told.get("pid")):
            self._voice.warn("the database has died; restarting the server")
            with suppress(ProcessLookupError):
                os.kill(self._pids["server"], signal.SIGKILL)
        await trio.lowlevel.checkpoint()

    def _daemon_is_back(self, _: Any) -> None:
        self._write_up_file()
        self._voice.say("The daemon is back.")

    def _write_up_file(self) -> None:
        """Say how things are; only once everything is up, since others wait for this file."""
        if not self._is_up:
            return
        told = {
            "url": self._url(),
            **self._told,
            "pid": os.getpid(),
            "server_pid": self._pids["server"],
            "daemon_pid": self._pids["daemon"],
        }
        write_private(self._home.up_file, json.dumps(told, indent=2) + "\n")

    async def _see_postgres_off(self) -> None:
        """Wait for the Postgres that the server has stopped; stop it for a server we had to kill."""
        told = self._told.get("postgres") or {}
        if not told.get("embedded"):
            return
        with suppress(psutil.Error, KeyError, TypeError), trio.CancelScope(shield=True) as last:
            last.deadline = trio.current_time() + _POSTGRES_LAST
            process = psutil.Process(told["pid"])
            if "postgres" not in process.name():
                return
            if "server" in self._stopping.killed:
                process.send_signal(signal.SIGINT)  # its "fast" shutdown
            await has_ended(process, _POSTGRES_LAST)


def _runs(pid: Any) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except (psutil.Error, TypeError, ValueError):
        return False


def _first(group: BaseExceptionGroup[Problem], kind: type[Problem]) -> Problem:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, kind)
    return found
