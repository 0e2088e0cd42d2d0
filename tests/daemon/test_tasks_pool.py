"""The pool of tasks: slots, admission, duplicates, crashes and the shutdown deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock as Clock

from daemon.tasks.pool import TaskPool
from daemon.tasks.task import Job
from shared.wire.task import ClaimedTask
from tests.conftest import ExpectedErrors
from tests.support.fake_server import make_config

pytestmark = pytest.mark.fast

RUNTIME = cast("Any", SimpleNamespace(id="r1"))


def _pool(
    nursery: trio.Nursery,
    run: Callable[[Job, trio.CancelScope], Awaitable[None]],
    *,
    slots: int = 2,
    owed: frozenset[str] = frozenset(),
) -> TaskPool:
    return TaskPool(slots, nursery, run, owed.__contains__)


def _task(name: str) -> ClaimedTask:
    return ClaimedTask(id=name)


async def _sleep(job: Job, shutdown: trio.CancelScope) -> None:
    with shutdown:
        await trio.sleep(10)


async def test_lowest_free_slot_first_and_none_when_all_are_out(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        pool = _pool(nursery, _sleep)
        assert [pool.try_take_slot() for _ in range(3)] == [0, 1, None]
        pool.give_back(1)
        pool.give_back(0)
        assert pool.try_take_slot() == 0


async def test_waiting_for_room_ends_with_a_slot_or_the_timeout(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        pool = _pool(nursery, _sleep, slots=1)
        assert pool.try_take_slot() == 0
        start = trio.current_time()
        assert not await pool.wait_for_room(2)
        assert trio.current_time() - start == 2
        assert pool.hand_over(_task("a"), 0, RUNTIME)
        assert await pool.wait_for_room(60)
        assert trio.current_time() - start == 12
        assert pool.slots_out == 0, "room is not taken by waiting for it"


async def test_closing_ends_the_wait_and_admits_nothing(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        pool = _pool(nursery, _sleep, slots=1)
        assert pool.try_take_slot() == 0
        got: list[bool] = []

        async def wait() -> None:
            got.append(await pool.wait_for_room())

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        pool.close()
        await trio.testing.wait_all_tasks_blocked()
        assert got == [False]
        pool.give_back(0)
        assert pool.try_take_slot() is None
        assert not pool.admitting
        assert pool.closed


async def test_a_redelivered_task_is_refused_and_its_slot_goes_back(autojump_clock: Clock) -> None:
    runs: list[str] = []

    async def run(job: Job, shutdown: trio.CancelScope) -> None:
        runs.append(job.task.id)
        await trio.sleep(5)

    async with trio.open_nursery() as nursery:
        pool = _pool(nursery, run)
        first, second = pool.try_take_slot(), pool.try_take_slot()
        assert first is not None
        assert second is not None
        assert pool.hand_over(_task("a"), first, RUNTIME)
        assert not pool.hand_over(_task("a"), second, RUNTIME)
        assert pool.slots_out == 1
        assert pool.active == {"a"}
        assert pool.active_runtimes() == {"r1"}
        pool.close()
        await pool.wait_empty()
    assert runs == ["a"]
    assert pool.active == frozenset()


async def test_a_task_whose_last_run_is_not_reported_is_refused(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        pool = _pool(nursery, _sleep, owed=frozenset({"a"}))
        slot = pool.try_take_slot()
        assert slot is not None
        assert not pool.hand_over(_task("a"), slot, RUNTIME)
        assert pool.slots_out == 0


async def test_a_crash_hurts_no_other_task(
    autojump_clock: Clock, error_log: ExpectedErrors
) -> None:
    finished: list[str] = []

    async def run(job: Job, shutdown: trio.CancelScope) -> None:
        await trio.sleep(1)
        if job.task.id == "bad":
            raise RuntimeError("boom")
        await trio.sleep(1)
        finished.append(job.task.id)

    async with trio.open_nursery() as nursery:
        pool = _pool(nursery, run)
        for name in ("bad", "good"):
            slot = pool.try_take_slot()
            assert slot is not None
            pool.hand_over(_task(name), slot, RUNTIME)
        pool.close()
        await pool.wait_empty()
    error_log.expect("task crashed")
    assert finished == ["good"]


async def test_no_slot_is_given_out_while_they_are_held_back(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        pool = _pool(nursery, _sleep)
        pool.hold_back("the disk is full")
        assert pool.try_take_slot() is None
        got: list[bool] = []

        async def wait() -> None:
            got.append(await pool.wait_for_room())

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not got
        assert not pool.admitting
        assert not pool.closed, "pollers stay"
        pool.hold_back("")
        await trio.testing.wait_all_tasks_blocked()
        assert got == [True]
        assert pool.try_take_slot() == 0
        pool.give_back(0)


async def test_stop_cuts_tasks_exactly_at_the_deadline_even_late_ones(
    autojump_clock: Clock,
) -> None:
    ends: dict[str, float] = {}

    async def run(job: Job, shutdown: trio.CancelScope) -> None:
        with shutdown:
            await trio.sleep(3 if job.task.id == "short" else 1000)
        ends[job.task.id] = trio.current_time()

    async with trio.open_nursery() as nursery:
        pool = _pool(nursery, run, slots=3)
        slots = [pool.try_take_slot() for _ in range(3)]
        start = trio.current_time()
        pool.hand_over(_task("short"), cast("int", slots[0]), RUNTIME)
        pool.hand_over(_task("long"), cast("int", slots[1]), RUNTIME)
        pool.stop(10)
        await trio.sleep(1)
        pool.hand_over(_task("late"), cast("int", slots[2]), RUNTIME)  # a claim that was in flight
        await pool.wait_empty()
    assert {name: end - start for name, end in ends.items()} == {
        "short": 3,
        "long": 10,
        "late": 10,
    }


async def test_not_empty_while_a_claim_is_in_flight(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        pool = _pool(nursery, _sleep)
        slot = pool.try_take_slot()
        assert slot is not None
        pool.close()
        with trio.move_on_after(5) as waited:
            await pool.wait_empty()
        assert waited.cancelled_caught
        pool.give_back(slot)
        await pool.wait_empty()


async def test_cancelling_the_nursery_gives_all_slots_back(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        pool = _pool(nursery, _sleep)
        slot = pool.try_take_slot()
        assert slot is not None
        pool.hand_over(_task("a"), slot, RUNTIME)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert pool.slots_out == 0
    assert pool.active == frozenset()


async def test_a_claim_that_comes_after_the_end_keeps_no_slot(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        pool = _pool(nursery, _sleep)
        slot = pool.try_take_slot()
        assert slot is not None
    assert not pool.hand_over(_task("a"), slot, RUNTIME)
    assert pool.slots_out == 0
    assert pool.active == frozenset()


async def test_the_claim_barrier(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as tasks:
        pool = _pool(tasks, _sleep)
        slot = pool.try_take_slot()
        assert slot == 0
        assert not pool.try_pause(), "a claim is under way"
        assert pool.try_take_slot() == 1, "and nothing was closed"
        pool.give_back(0)
        pool.give_back(1)
        assert pool.hand_over(_task("a"), cast("int", pool.try_take_slot()), RUNTIME)
        assert not pool.try_pause(), "a task is in hand"
        await trio.sleep(11)
        assert pool.try_pause()
        assert pool.try_take_slot() is None
        assert not pool.closed, "pollers stay"
        assert not await pool.wait_for_room(5)
        found: list[bool] = []

        async def wait() -> None:
            found.append(await pool.wait_for_room())

        tasks.start_soon(wait)
        await trio.sleep(1)
        pool.resume()
        await trio.sleep(0.1)
        assert found == [True]
        pool.close()
        pool.resume()
        assert not pool.admitting, "closed is closed"


async def test_slots_come_and_go_with_the_settings(autojump_clock: Clock, tmp_path: Path) -> None:
    async with trio.open_nursery() as tasks:
        pool = _pool(tasks, _sleep, slots=3)
        assert [pool.try_take_slot() for _ in range(3)] == [0, 1, 2]
        pool.adopt(make_config(tmp_path, max_concurrent_tasks=1))
        assert pool.slots_out == 3
        pool.give_back(2)
        assert pool.try_take_slot() is None
        pool.give_back(0)
        pool.give_back(1)
        assert (pool.slots_out, pool.try_take_slot(), pool.try_take_slot()) == (0, 0, None)
        pool.adopt(make_config(tmp_path, max_concurrent_tasks=3))
        assert [pool.try_take_slot() for _ in range(3)] == [1, 2, None]
        for slot in range(3):
            pool.give_back(slot)
