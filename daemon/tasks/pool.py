"""The tasks this daemon has in hand: slots, admission, and the nursery they live in.

Pollers wake it by handing over a claimed task together with the slot they took before claiming.
It owns the nursery of tasks, which survives every change of the runtime set, and the set of task
ids in hand, so that a redelivered task is never run twice. It ends when its block is left: `close`
stops admission, `stop` also gives every task a deadline, `wait_empty` returns when none is left.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from daemon import threads
from daemon.agents.launch import open_agent as open_agent_program
from daemon.agents.models import TakesLevel, any_level
from daemon.tasks.slots import Slot, Slots
from daemon.tasks.task import Job, OpenAgent, TaskRunner
from daemon.workdir.borrowed import sweep
from daemon.workdir.prepare import LiveRoots
from shared.wire.task import ClaimedTask

if TYPE_CHECKING:
    from daemon.client import Client
    from daemon.config import Config
    from daemon.repos.desk import Desk
    from daemon.runtimes.info import RuntimeInfo
    from daemon.tasks.backlog import Backlog

log = structlog.get_logger(__name__)


@attrs.define(eq=False)
class _Held:
    """`shutdown` is the task's outermost scope; only the pool sets its deadline."""

    job: Job
    shutdown: trio.CancelScope = attrs.field(factory=trio.CancelScope)


RunJob = Callable[[Job, trio.CancelScope], Awaitable[None]]
"""Runs one job to its end, inside the given scope; never raises for known ends."""

Owes = Callable[[str], bool]
"""Whether an earlier run of a task, by id, is still to be reported."""


class TaskPool:
    """Slots 0 to n-1, shared by all runtimes, and the tasks that hold them.

    A slot is out from before the claim; a task in hand may lend its own while it waits. So the pool
    is `idle`, nothing claimed and nothing in hand, when no slot is out and no task is held. Every
    method but the two waits is synchronous. `held_back` says why no slot is given out at present; ""
    when they are.
    """

    def __init__(
        self,
        slots: int,
        nursery: trio.Nursery,
        run_job: RunJob,
        owes: Owes,
        adopt: Callable[[Config], None] | None = None,
    ) -> None:
        self.held_back = ""
        self._slots = Slots(slots, self._announce)
        self._adopt = adopt
        self._nursery = nursery
        self._run_job = run_job
        self._owes = owes
        self._barriers: set[str] = set()
        self._held: dict[str, _Held] = {}
        self._changed = trio.Event()
        self._closed = False
        self._deadline = math.inf

    @property
    def admitting(self) -> bool:
        """Whether new work may be claimed."""
        return not (self._closed or self._barriers or self.held_back)

    @property
    def closed(self) -> bool:
        """Whether no work will be claimed any more."""
        return self._closed

    @property
    def active(self) -> frozenset[str]:
        """The ids of the tasks in hand."""
        return frozenset(self._held)

    @property
    def slots_out(self) -> int:
        """How many slots are taken, by claims under way and by tasks that did not lend theirs."""
        return self._slots.out

    @property
    def idle(self) -> bool:
        """Whether no claim is under way and no task is left."""
        return not (self._slots.out or self._held)

    def active_runtimes(self) -> frozenset[str]:
        """The ids of the runtimes that have a task in hand."""
        return frozenset(held.job.runtime.id for held in self._held.values())

    def try_take_slot(self) -> int | None:
        """Take the lowest free slot; None when all are out, held back, or admission is closed."""
        return self._slots.try_take() if self.admitting else None

    async def wait_for_room(self) -> bool:
        """Wait until there is a slot to take; False: nothing more is admitted.

        It is there for whoever takes it before the next await.
        """
        await trio.lowlevel.checkpoint()
        while not self._closed:
            if self.admitting and self._slots.has_room:
                return True
            await self._changed.wait()
        return False

    def give_back(self, slot: int) -> None:
        """Return a slot. Synchronous, so that it needs no shield wherever it is called."""
        self._slots.give_back(slot)

    def pause(self, why: str) -> None:
        """Close the claim barrier: nothing new is claimed, what is in hand goes on.

        Each `why` closes one of its own; claims need all of them open.
        """
        self._barriers.add(why)

    def try_pause(self, why: str) -> bool:
        """Close the claim barrier if no claim is under way and no task is left; tell whether."""
        if self.idle:
            self.pause(why)
        return self.idle

    def resume(self, why: str) -> None:
        """Open what was closed for the same reason. Idempotent."""
        self._barriers.discard(why)
        self._announce()

    def adopt(self, config: Config) -> None:
        """Use changed settings. Slots that are no longer there are not handed out again."""
        self._slots.resize(config.max_concurrent_tasks)
        if self._adopt is not None:
            self._adopt(config)

    def hold_back(self, reason: str) -> None:
        """Give out no slots for now, or again with ""; tasks in hand go on."""
        if reason != self.held_back:
            self.held_back = reason
            self._announce()

    def close(self) -> None:
        """Admit nothing more, for good. Tasks claimed by now may still be handed over."""
        self._closed = True
        self._announce()

    def stop(self, grace: float) -> None:
        """Close, and cut every task that still runs in `grace` seconds; each of them reports."""
        self.close()
        self._deadline = min(self._deadline, trio.current_time() + grace)
        for held in self._held.values():
            held.shutdown.deadline = self._deadline

    def hand_over(self, task: ClaimedTask, slot: int, runtime: RuntimeInfo) -> bool:
        """Run a claimed task in its slot. False: the slot went back.

        That is when the task is in hand already, or was and is not reported yet, or when the pool
        has ended.

        The server delivers at least once (spec 01 §3.5); a second run would wipe the first one's
        directory.
        """
        if task.id in self._held or self._owes(task.id):
            log.warning("task is in hand already; redelivery ignored", task_id=task.id)
            self.give_back(slot)
            return False
        job = Job(task=task, slot=Slot(slot, self._slots), runtime=runtime)
        held = self._held[task.id] = _Held(job)
        held.shutdown.deadline = self._deadline
        try:
            self._nursery.start_soon(self._run, held, name=f"task {task.id}")
        except RuntimeError:  # the nursery has ended: everything was cancelled during the claim
            log.warning("claimed too late; the server will deliver it again", task_id=task.id)
            del self._held[task.id]
            self.give_back(slot)
            return False
        return True

    async def wait_empty(self) -> None:
        """Wait until no claim is under way and no task is left. Call after `close`."""
        while not self.idle:
            await self._changed.wait()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _run(self, held: _Held) -> None:
        """Run one job; what its run leaves untold is the backlog's, so a bug costs one task."""
        task_id = held.job.task.id
        try:
            await self._run_job(held.job, held.shutdown)
        except* Exception as crash:
            log.exception("task crashed", task_id=task_id, exc_info=crash)
        finally:
            del self._held[task_id]
            held.job.slot.lend()
            self._announce()


@asynccontextmanager
async def open_pool(
    config: Config,
    client: Client,
    backlog: Backlog,
    *,
    control_port: int = 0,
    open_agent: OpenAgent = open_agent_program,
    desk: Desk | None = None,
    live: LiveRoots | None = None,
    takes_level: TakesLevel = any_level,
) -> AsyncIterator[TaskPool]:
    """Open the pool of tasks. `control_port` is the port bound, for the agents' environment.

    `desk` is where their agents ask for repositories, `live` the directories in use, `takes_level`
    says how hard their programs can be made to think.

    Leaving the block normally waits for every task; call `stop` first to bound that wait.
    """
    await threads.in_thread(partial(sweep, config.home.borrowed))
    runner = TaskRunner(
        config,
        client,
        backlog=backlog,
        control_port=control_port,
        open_agent=open_agent,
        desk=desk,
        live=live,
        takes_level=takes_level,
    )
    async with trio.open_nursery() as tasks:
        slots = config.max_concurrent_tasks
        yield TaskPool(slots, tasks, runner.run, backlog.owes, runner.adopt)
