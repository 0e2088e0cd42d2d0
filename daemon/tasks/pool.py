"""The tasks this daemon has in hand: slots, admission, and the nursery they live in.

Pollers wake it by handing over a claimed task together with the slot they took before claiming.
It owns the nursery of tasks, which survives every change of the runtime set, and the set of task
ids in hand, so that a redelivered task is never run twice. It ends when its block is left: `close`
stops admission, `stop` also gives every task a deadline, `wait_empty` returns when no slot is out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from daemon.agents.launch import open_agent as open_agent_program
from daemon.tasks.task import Job, OpenAgent, TaskRunner
from shared.wire.task import ClaimedTask

if TYPE_CHECKING:
    from daemon.client import Client
    from daemon.config import Config
    from daemon.runtimes.info import RuntimeInfo

log = structlog.get_logger(__name__)

CRASH_REPORT_WITHIN = 10.0
"""Seconds a crashed task's report may take; afterwards the server's own time-outs fail the task."""


@attrs.define(eq=False)
class _Held:
    """`shutdown` is the task's outermost scope; only the pool sets its deadline."""

    job: Job
    shutdown: trio.CancelScope = attrs.field(factory=trio.CancelScope)


RunJob = Callable[[Job, trio.CancelScope], Awaitable[None]]
"""Runs one job to its end, inside the given scope; never raises for known ends."""

ReportCrash = Callable[[Job, BaseException], Awaitable[None]]


class TaskPool:
    """Slots 0 to n-1, shared by all runtimes, and the tasks that hold them.

    A slot is out from before the claim until the task's very end, so "no slot is out" means that
    no claim is under way and no task is left. Every method but the two waits is synchronous.
    """

    def __init__(
        self, slots: int, nursery: trio.Nursery, run_job: RunJob, report_crash: ReportCrash
    ) -> None:
        self.capacity = slots
        self._nursery = nursery
        self._run_job = run_job
        self._report_crash = report_crash
        self._free = list(range(slots))
        self._held: dict[str, _Held] = {}
        self._changed = trio.Event()
        self._admitting = True
        self._closed = False
        self._deadline = math.inf

    @property
    def admitting(self) -> bool:
        """Whether new work may be claimed."""
        return self._admitting

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
        """How many slots are taken, by claims under way and by tasks."""
        return self.capacity - len(self._free)

    def active_runtimes(self) -> frozenset[str]:
        """The ids of the runtimes that have a task in hand."""
        return frozenset(held.job.runtime.id for held in self._held.values())

    def try_take_slot(self) -> int | None:
        """Take the lowest free slot; None when all are out or admission is closed."""
        if not self._admitting or not self._free:
            return None
        return heapq.heappop(self._free)

    async def wait_for_room(self, timeout: float = math.inf) -> bool:
        """Wait at most `timeout` seconds until there is a slot to take; False: none came, or closed.

        It is there for whoever takes it before the next await.
        """
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(timeout):
            while not self._closed:
                if self._admitting and self._free:
                    return True
                await self._changed.wait()
        return False

    def give_back(self, slot: int) -> None:
        """Return a slot. Synchronous, so that it needs no shield wherever it is called."""
        assert slot not in self._free
        heapq.heappush(self._free, slot)
        self._announce()

    def close(self) -> None:
        """Admit nothing more, for good. Tasks claimed by now may still be handed over."""
        self._closed, self._admitting = True, False
        self._announce()

    def try_hold(self) -> bool:
        """Admit nothing until `release`, if nothing is in hand and no claim is under way."""
        if self.slots_out or not self._admitting:
            return False
        self._admitting = False
        return True

    def release(self) -> None:
        """Admit again after `try_hold`; changes nothing once the pool is closed."""
        self._admitting = not self._closed
        self._announce()

    def stop(self, grace: float) -> None:
        """Close, and cut every task that still runs in `grace` seconds; each of them reports."""
        self.close()
        self._deadline = min(self._deadline, trio.current_time() + grace)
        for held in self._held.values():
            held.shutdown.deadline = self._deadline

    def hand_over(self, task: ClaimedTask, slot: int, runtime: RuntimeInfo) -> bool:
        """Run a claimed task in its slot. False: the slot went back.

        That is when the task is in hand already, or when the pool has ended.

        The server delivers at least once (spec 01 §3.5); a second run would wipe the first one's
        directory.
        """
        if task.id in self._held:
            log.warning("task is in hand already; redelivery ignored", task_id=task.id)
            self.give_back(slot)
            return False
        held = self._held[task.id] = _Held(Job(task=task, slot=slot, runtime=runtime))
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
        """Wait until no slot is out: no claim under way and no task left. Call after `close`."""
        while self.slots_out:
            await self._changed.wait()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _run(self, held: _Held) -> None:
        job = held.job
        crash: BaseException | None = None
        try:
            try:
                await self._run_job(job, held.shutdown)
            except* Exception as group:  # noqa: BLE001 - any bug of one task must not reach the others
                crash = group
            if crash is not None:
                log.error("task crashed", task_id=job.task.id, exc_info=crash)
                await self._contain(job, crash)
        finally:
            del self._held[job.task.id]
            self.give_back(job.slot)

    async def _contain(self, job: Job, crash: BaseException) -> None:
        """Tell the server of a crash, whatever else is being cancelled; never raise."""
        try:
            with trio.move_on_after(CRASH_REPORT_WITHIN, shield=True):
                await self._report_crash(job, crash)
        except* Exception:
            log.exception("crash not reported", task_id=job.task.id)


@asynccontextmanager
async def open_pool(
    config: Config,
    client: Client,
    *,
    control_port: int = 0,
    open_agent: OpenAgent = open_agent_program,
) -> AsyncIterator[TaskPool]:
    """Open the pool of tasks. `control_port` is the port bound, for the agents' environment.

    Leaving the block normally waits for every task; call `stop` first to bound that wait.
    """
    runner = TaskRunner(config, client, control_port=control_port, open_agent=open_agent)
    async with trio.open_nursery() as tasks:
        yield TaskPool(config.max_concurrent_tasks, tasks, runner.run, runner.report_crash)
