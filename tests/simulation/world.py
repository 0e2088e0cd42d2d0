"""A whole daemon's history on virtual time: its lives, its disk, its server, its agents.

The daemon's tree is the real one; the network, the server and the agents are models. A crash is
what kill -9 leaves: from that instant the life reaches no server, and what it still writes while
Trio unwinds it is taken back from the disk. Everything the journal took from a life that was alive
is noted here, and has to be on the server in the end, once and in order.
"""

from __future__ import annotations

import errno
import json
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import httpx
import structlog
import trio

from daemon.agents.contract import Agent, AgentError, AgentRun
from daemon.allowed import allow_directory
from daemon.app import Health, Parts, Stop, be_present
from daemon.client import open_client
from daemon.tasks.journal import Journal
from daemon.tasks.outcome import Outcome
from daemon.tasks.pool import open_pool
from daemon.tasks.slots import Slots
from daemon.tasks.trouble import PATIENCE
from daemon.workspaces.sync import SignInRefused
from shared.home import Home
from shared.wire.task import (
    ACTIVE,
    DISPATCHED,
    FAILED,
    QUEUED,
    RUNNING,
    TERMINAL,
    TaskMessage,
)
from tests.daemon.tasks_support import Agents, Script
from tests.support.daemon_rig import CLAUDE, CODEX
from tests.support.fake_server import WORKSPACE, FakeServer, FakeTask, make_config, uid
from tests.support.network import Fault, Reply, json_reply

LEASE = 90.0
"""Seconds after which the server delivers a task again that was claimed and not started."""

REVIVAL = 20.0
"""Seconds after which a daemon that was refused at its start is started again."""

STOP = 300.0
"""Seconds an orderly stop may take: grace, last reports and the longest call in flight."""

SETTLE = 1800.0
"""Seconds of peace in which everything must come to its end."""


class ModelServer(FakeServer):
    """The fake server with leases, a clock that may jump, and faults that last for a while."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__(nursery)
        self.clock_ahead = 0.0
        self.windows: list[tuple[float, re.Pattern[str], Fault]] = []
        self.endings: Counter[str] = Counter()
        self.ended_by_server: set[str] = set()
        self.disorder: list[str] = []
        self.again: list[str] = []
        self.orphaned: list[str] = []
        self._leased: dict[str, float] = {}

    def disturb(self, route: str, fault: Fault, lasting: float) -> None:
        self.windows.append((trio.current_time() + lasting, re.compile(route), fault))

    def _next_fault(self, request: httpx.Request) -> Fault | None:
        found = super()._next_fault(request)
        now, call = trio.current_time(), f"{request.method} {request.url.path}"
        for until, route, fault in self.windows:
            if now < until and route.fullmatch(call):
                return fault
        return found

    def _now(self) -> float:
        return trio.current_time() + self.clock_ahead

    def _claim(self, body: Any, runtime_id: str) -> Reply:
        while self.again:
            task = self.tasks.get(self.again.pop())
            if task and task.runtime_id == runtime_id and task.status in (DISPATCHED, RUNNING):
                return json_reply({"task": {**task.claimed, "status": DISPATCHED}})
        for task in self.tasks.values():
            if task.runtime_id == runtime_id and self._is_due(task):
                task.status = QUEUED
                self._leased[task.id] = self._now() + LEASE
                break
        return super()._claim(body, runtime_id)

    def _is_due(self, task: FakeTask) -> bool:
        expired = self._leased.get(task.id, 0.0) < self._now()
        return task.status == QUEUED or (task.status == DISPATCHED and expired)

    def _lease(self, body: Any, task_id: str) -> Reply:
        reply = super()._lease(body, task_id)
        if reply.status == 200:
            self._leased[task_id] = self._now() + 45
        return reply

    def _recover(self, body: Any, runtime_id: str) -> Reply:
        before = {task.id for task in self.tasks.values() if task.status not in TERMINAL}
        with self._watching(by_server=True):
            reply = super()._recover(body, runtime_id)
        self.orphaned += [key for key in before if self.tasks[key].status in TERMINAL]
        return reply

    def _task_call(self, body: Any, task_id: str, what: str) -> Reply:
        task = self.tasks.get(task_id)
        if task is not None and what == "messages":
            stored_rows = len(task.rows)
            for row in body["messages"]:
                stored = task.rows.get(row["seq"])
                if stored is not None and stored != row:
                    self.disorder.append(f"{task_id}: seq {row['seq']} has two contents")
                if stored is None:
                    if row["seq"] != stored_rows + 1:
                        self.disorder.append(f"{task_id}: seq {row['seq']} after {stored_rows}")
                    stored_rows += 1
        with self._watching(by_server=False):
            if task is not None and what in ("complete", "fail") and is_open(task):
                task.status = RUNNING  # what the daemon says takes the presumption's place
            reply = super()._task_call(body, task_id, what)
            if task is not None and task.status != FAILED:
                task.presumed = False
            elif task is not None and what == "fail":
                task.presumed = task.presumed and task.result is None
            return reply

    def give_up(self, task_id: str) -> None:
        """Presume that a task has failed with its machine; only one that runs can be taken back."""
        task = self.tasks[task_id]
        if task.status in ACTIVE - {QUEUED}:
            with self._watching(by_server=True):
                task.replaced = task.status != RUNNING
                super().give_up(task_id)

    def replace(self, task_id: str) -> None:
        """Begin the new attempt of a task that was given up: from now on that is its end."""
        with self._watching(by_server=True):
            self.tasks[task_id].replaced = True

    def cancel_task(self, task_id: str) -> None:
        if self.tasks[task_id].status not in TERMINAL:
            with self._watching(by_server=True):
                super().cancel_task(task_id)

    def forget_task(self, task_id: str) -> None:
        """Delete a task: every call about it answers 404 from now on."""
        self.tasks.pop(task_id, None)

    def forget_runtime(self, provider: str) -> None:
        """Delete a runtime with what waits for it; the daemon gets a new one for it."""
        for runtime_id in [k for k, row in self.runtimes.items() if row["provider"] == provider]:
            self.delete_runtime(runtime_id)
            for task in [t for t in self.tasks.values() if t.runtime_id == runtime_id]:
                self.forget_task(task.id)

    def deliver_again(self, task_id: str) -> None:
        """Let the next claim answer with a task that somebody has, and tell it to look."""
        if task_id in self.tasks:
            self.again.append(task_id)
            self.wake(self.tasks[task_id].runtime_id)

    @contextmanager
    def _watching(self, *, by_server: bool) -> Iterator[None]:
        before = {task.id: (task.status, is_open(task)) for task in self.tasks.values()}
        yield
        for task_id, (status, was_open) in before.items():
            task = self.tasks[task_id]
            was_over = status in TERMINAL and not was_open
            is_over = task.status in TERMINAL and not is_open(task)
            if was_over != is_over or (was_over and status != task.status):
                self.endings[task_id] += 1
                if by_server:
                    self.ended_by_server.add(task_id)


def is_open(task: FakeTask) -> bool:
    """Whether a task is only presumed to have failed, and its daemon may still say otherwise."""
    return task.status == FAILED and task.presumed and not task.replaced


@attrs.define(eq=False)
class Life(httpx.AsyncBaseTransport):
    """One process of the daemon, and its way to the server. `alive` ends with its crash."""

    world: World
    stop: Stop = attrs.field(factory=Stop)
    health: Health | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)
    alive: bool = True
    claiming: Counter[str] = attrs.field(factory=Counter)
    working: dict[str, Path] = attrs.field(factory=dict)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self.alive:
            await trio.lowlevel.checkpoint()
            raise httpx.ConnectError("this process is dead", request=request)
        claiming = _claimed_for(request)
        self.claiming.update(claiming)
        twice = [key for key in claiming if self.claiming[key] > 1]
        if twice:
            self.world.wrong.append(f"two claims at once: {twice}")
        try:
            return await self.world.server.transport.handle_async_request(request)
        finally:
            self.claiming.subtract(claiming)

    @asynccontextmanager
    async def open_agent(self, run: AgentRun) -> AsyncIterator[Agent]:
        task_id = run.env["MULTICA_TASK_ID"]
        await trio.lowlevel.checkpoint()
        if trio.current_time() < self.world.troubled_until:
            self.world.refused[task_id].append(trio.current_time())
            if next(self.world.troubles) % 2:
                raise AgentError("claude executable not found", passing=True)
            raise OSError(errno.EMFILE, "too many open files")
        for other, place in self.working.items():
            if place.is_relative_to(run.cwd) or run.cwd.is_relative_to(place):
                self.world.wrong.append(f"two agents in one place: {other} and {task_id}")
        self.working[task_id] = run.cwd
        try:
            async with Agents(self.world.scripts[task_id]).open(run) as agent:
                yield agent
        finally:
            del self.working[task_id]

    def resize(self, slots: int) -> None:
        """Have another number of slots, as after a change of the config file."""
        if self.health and self.health.pool:
            settings = {**self.world.settings, "max_concurrent_tasks": slots}
            self.health.pool.adopt(make_config(self.world.home, **settings))

    async def run(self) -> None:
        world = self.world
        config = make_config(world.home, **world.settings)
        self.health = Health(config)

        async def discover() -> Any:
            await trio.lowlevel.checkpoint()
            return [CLAUDE, CODEX]

        parts = Parts(
            discover=discover,
            families=frozenset({"claude", "codex"}),
            open_pool=partial(open_pool, open_agent=self.open_agent),
            connect=world.server.connect,
        )
        refused = False
        try:
            with self.scope:
                async with open_client(config, transport=self) as client:
                    await be_present(config, client, parts, stop=self.stop, health=self.health)
        except* SignInRefused:
            refused = True
        finally:
            pool = self.health.pool
            if pool is not None and not pool.idle:
                world.wrong.append(f"{pool.slots_out} slots leaked")
            if self.working:
                world.wrong.append(f"agents left: {self.working}")
            self.ended.set()
        if refused:
            await trio.sleep(REVIVAL)
            if world.life is self:
                world.start()


def _claimed_for(request: httpx.Request) -> list[str]:
    """The runtimes a request claims for."""
    path = request.url.path
    if path.endswith("/daemon/claims"):
        return [row["runtime_id"] for row in json.loads(request.content)["runtimes"]]
    return [path.split("/")[-3]] if path.endswith("/tasks/claim") else []


class World:
    """What outlives a life of the daemon, and what has to be true in the end."""

    def __init__(self, home: Path, nursery: trio.Nursery, **settings: Any) -> None:
        self.home = home / "daemon"
        self.projects = home / "projects"
        for place in PLACES:
            (self.projects / place).mkdir(parents=True, exist_ok=True)
            (self.projects / place / "AGENTS.md").write_text("the user's")
        self.untouched = read_tree(self.projects)
        allow_directory(Home(self.home), self.projects)
        self.settings = settings
        self.server = ModelServer(nursery)
        self.nursery = nursery
        self.scripts: dict[str, Script] = {}
        self.said: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.decided: dict[str, list[Outcome]] = defaultdict(list)
        self.wrong: list[str] = []
        self.troubled_until = 0.0
        """Until when this machine starts no process."""
        self.troubles = count()
        self.refused: dict[str, list[float]] = defaultdict(list)
        self.life = Life(self)

    def start(self) -> None:
        self.life = Life(self)
        self.nursery.start_soon(self.life.run)

    async def leave(self) -> None:
        """Stop in order."""
        self.server.again.clear()
        self.life.stop.ask("the schedule says so")
        with trio.move_on_after(STOP):
            await self.life.ended.wait()
        if not self.life.ended.is_set():
            self.wrong.append("the daemon does not stop")
            self.life.scope.cancel()
            await self.life.ended.wait()

    async def drain(self, seconds: float) -> None:
        """Ask for a stop that waits for tasks, and take it back, unless it has come by then."""
        stop = self.life.stop
        stop.drain()
        await trio.sleep(seconds)
        stop.resume()
        if stop.asked.is_set():
            await self.leave()
            self.start()

    async def crash(self) -> None:
        """Kill the daemon; the disk stays as it is in this instant."""
        life = self.life
        places = (make_config(self.home).home.journals, self.home / "borrowed", self.projects)
        disk = [read_tree(place) for place in places]
        life.alive = False
        self.server.again.clear()  # whoever had them is dead
        life.scope.cancel()
        self.server.drop_sockets()
        await life.ended.wait()
        for place, files in zip(places, disk, strict=True):
            write_tree(place, files)

    def add_task(
        self, name: str, provider: str, script: Script, place: str | None = None
    ) -> FakeTask | None:
        """Queue a task for a provider's runtime, if it has one; wake whoever listens.

        With `place` it is to work in that directory of the user's.
        """
        server = self.server
        ids = [key for key, row in server.runtimes.items() if row["provider"] == provider]
        if not ids:
            return None
        about: dict[str, Any] = {}
        if place is not None:
            ref = {
                "local_path": str(self.projects / place),
                "daemon_id": make_config(self.home).daemon_id,
            }
            resource = {"resource_type": "local_directory", "resource_ref": ref}
            about["project_resources"] = [resource]
        task = server.add_task(ids[0], uid(name), **about)
        self.scripts[task.id] = script
        server.wake(ids[0])
        return task

    def holds(self, task_id: str) -> bool:
        """Whether the daemon that lives has the task in hand, or has yet to report it."""
        health = self.life.health
        return bool(
            health
            and health.pool
            and health.backlog
            and (task_id in health.pool.active or health.backlog.owes(task_id))
        )

    def tasks(self) -> list[FakeTask]:
        return list(self.server.tasks.values())

    async def settle(self) -> None:
        """After the last fault: peace, until all is told or far too much time has passed."""
        server = self.server
        server.windows.clear()
        server.refuse_sockets, server.answer_beats = None, True
        server.stall_sockets, self.troubled_until = False, 0.0
        server.workspaces.setdefault(WORKSPACE, "Bullpen")
        await self._until_told()
        await self.leave()

    async def _until_told(self) -> None:
        with trio.move_on_after(SETTLE):
            while not (self._all_ended() and not self._journals()):  # noqa: ASYNC110 - virtual time
                await trio.sleep(5)

    def check(self) -> list[str]:
        """Say everything that is not as it must be."""
        server, wrong = self.server, [*self.wrong, *self.server.disorder]
        wrong += [
            f"{key} was taken for an orphan, with its journal on disk"
            for key in server.orphaned
            if self.said[key] or self.decided[key]
        ]
        wrong += [f"journal left: {path.name}" for path in self._journals()]
        wrong += [f"ended {n} times: {key}" for key, n in server.endings.items() if n > 1]
        if read_tree(self.projects) != self.untouched:
            wrong.append(f"left in the user's directories: {read_tree(self.projects)}")
        for task in self.tasks():
            if task.status not in TERMINAL:
                wrong.append(f"{task.id} is {task.status} for ever")
            if is_open(task) and self.said[task.id]:
                wrong.append(f"{task.id} is presumed to have failed for ever")
            rows = [task.rows[seq] for seq in task.seqs]
            told = [(row["seq"], row.get("content") or row.get("output", "")) for row in rows]
            if told != [(row["seq"], row["text"]) for row in self.said[task.id]]:
                wrong.append(f"{task.id}: journalled {self.said[task.id]}, stored {told}")
            refused = self.refused[task.id]
            if any(mark in str(task.result) for mark in TROUBLE) and (
                refused[-1] - refused[0] < PATIENCE / 2
            ):
                wrong.append(f"{task.id} failed for trouble that has passed")
            if task.doubled:
                wrong.append(f"{task.id}: rows {task.doubled} were sent twice")
            if task.id not in server.ended_by_server and not is_open(task):
                wrong += self._check_outcome(task)
        return wrong

    def _check_outcome(self, task: FakeTask) -> list[str]:
        decided = self.decided[task.id]
        if not decided:
            return [f"{task.id} has an outcome nobody decided: {task.result}"]
        want = next((outcome for outcome in decided if outcome.completed), decided[-1])
        body = task.result or {}
        told = (task.status == "completed", body.get("output") or body.get("error", ""))
        if told != (want.completed, want.text):
            return [f"{task.id}: decided {want}, told {told}"]
        return []

    def _all_ended(self) -> bool:
        return all(task.status in TERMINAL for task in self.tasks())

    def _journals(self) -> list[Path]:
        return list(make_config(self.home).home.journals.glob("*"))


TROUBLE = ("executable not found", "too many open files")

PLACES = ("one", "one/inner", "two")
"""Directories of the user's below `World.projects`."""


def read_tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write_tree(folder: Path, files: dict[str, bytes]) -> None:
    """Make a folder hold these files and no other ones."""
    for path in folder.rglob("*"):
        if path.is_file() and str(path.relative_to(folder)) not in files:
            path.unlink()
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@contextmanager
def watch_journals(world: World) -> Iterator[None]:
    """Note what the journal has taken while its process was alive."""
    take_message, take_outcome = Journal.note_message, Journal.note_outcome

    def note_message(self: Journal, message: TaskMessage) -> None:
        take_message(self, message)
        if world.life.alive:
            row = {"seq": self.last_seq, "text": message.content or message.output}
            world.said[self.path.stem].append(row)

    def note_outcome(self: Journal, outcome: Outcome) -> None:
        take_outcome(self, outcome)
        if world.life.alive:
            world.decided[self.path.stem].append(outcome)

    with (
        mock.patch.object(Journal, "note_message", note_message),
        mock.patch.object(Journal, "note_outcome", note_outcome),
    ):
        yield


@contextmanager
def watch_slots(world: World) -> Iterator[None]:
    """See that no slot is taken while as many are out as may be."""
    take = Slots.try_take

    def try_take(self: Slots) -> int | None:
        number = take(self)
        if number is not None and self.out > self.capacity:
            world.wrong.append(f"{self.out} slots are out of {self.capacity}")
        return number

    with mock.patch.object(Slots, "try_take", try_take):
        yield


@contextmanager
def no_git() -> Iterator[None]:
    """Do without a real process, which does not go together with virtual time."""

    async def nowhere(*_: Any) -> None:
        await trio.lowlevel.checkpoint()

    with mock.patch("daemon.tasks.paths.find_excludes", nowhere):
        yield


@contextmanager
def watch_log() -> Iterator[list[str]]:
    """Collect the errors nobody may log."""
    errors: list[str] = []

    def collect(_: Any, method: str, record: Any) -> Any:
        if method in {"error", "exception", "critical"}:
            errors.append(f"logged: {dict(record)}")
        raise structlog.DropEvent

    structlog.configure(processors=[collect], cache_logger_on_first_use=False)
    yield errors
