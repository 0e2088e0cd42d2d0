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
from daemon.tasks.slots import Slot, Slots
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


async def _has_room(pool: TaskPool, within: float) -> bool:
    with trio.move_on_after(within):
        return await pool.wait_for_room()
    return False


async def test_waiting_for_room_ends_with_a_slot(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        pool = _pool(nursery, _sleep, slots=1)
        assert pool.try_take_slot() == 0
        start = trio.current_time()
        assert not await _has_room(pool, 2)
        assert pool.hand_over(_task("a"), 0, RUNTIME)
        assert await pool.wait_for_room()
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
        assert not pool.try_pause("test"), "a claim is under way"
        assert pool.try_take_slot() == 1, "and nothing was closed"
        pool.give_back(0)
        pool.give_back(1)
        assert pool.hand_over(_task("a"), cast("int", pool.try_take_slot()), RUNTIME)
        assert not pool.try_pause("test"), "a task is in hand"
        await trio.sleep(11)
        assert pool.try_pause("test")
        assert pool.try_take_slot() is None
        assert not pool.closed, "pollers stay"
        assert not await _has_room(pool, 5)
        found: list[bool] = []

        async def wait() -> None:
            found.append(await pool.wait_for_room())

        tasks.start_soon(wait)
        await trio.sleep(1)
        pool.resume("test")
        await trio.sleep(0.1)
        assert found == [True]
        pool.close()
        pool.resume("test")
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


async def test_fewer_slots_admit_nothing_while_as_many_are_out(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Whichever numbers they have: it is the tasks at work that count."""
    async with trio.open_nursery() as tasks:
        pool = _pool(tasks, _sleep, slots=4)
        assert [pool.try_take_slot() for _ in range(4)] == [0, 1, 2, 3]
        pool.give_back(0)
        pool.give_back(1)
        pool.adopt(make_config(tmp_path, max_concurrent_tasks=2))
        assert pool.try_take_slot() is None, "two are at work, and two may be"
        assert not await _has_room(pool, 1)
        pool.give_back(3)
        assert pool.try_take_slot() == 0
        for slot in (0, 2):
            pool.give_back(slot)


async def test_each_barrier_is_opened_by_who_closed_it(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as tasks:
        pool = _pool(tasks, _sleep)
        assert pool.try_pause("update")
        pool.pause("drain")
        pool.resume("drain")
        pool.resume("drain")
        assert pool.try_take_slot() is None, "an update is under way"
        pool.resume("update")
        assert pool.try_take_slot() == 0
        pool.give_back(0)


async def test_a_task_that_waits_for_something_lends_its_slot(autojump_clock: Clock) -> None:
    waited, worked = trio.Event(), trio.Event()
    numbers: dict[str, int | None] = {}

    async def run(job: Job, shutdown: trio.CancelScope) -> None:
        if job.task.id == "waits":
            job.slot.lend()
            await waited.wait()
            await job.slot.regain()
        else:
            await worked.wait()
        numbers[job.task.id] = job.slot.number

    async with trio.open_nursery() as tasks:
        pool = _pool(tasks, run, slots=1)
        assert pool.hand_over(_task("waits"), cast("int", pool.try_take_slot()), RUNTIME)
        assert await _has_room(pool, 1), "somebody else may work meanwhile"
        assert not pool.idle, "but it is in hand"
        assert not pool.try_pause("update")
        assert pool.hand_over(_task("works"), cast("int", pool.try_take_slot()), RUNTIME)
        waited.set()
        await trio.sleep(5)
        assert not numbers, "no slot, no work"
        got: list[bool] = []

        async def poll() -> None:
            got.append(await _has_room(pool, 1))

        tasks.start_soon(poll)
        await trio.testing.wait_all_tasks_blocked()
        worked.set()
        pool.close()
        await pool.wait_empty()
    assert numbers == {"works": 0, "waits": 0}
    assert got == [False], "what is in hand comes before what is new"
    assert pool.slots_out == 0


async def test_who_is_cancelled_in_line_neither_keeps_nor_loses_a_slot(
    autojump_clock: Clock,
) -> None:
    """At the very moment its turn comes, too."""
    for late in (False, True):
        slots = Slots(1, lambda: None)
        holder, other = cast("int", slots.try_take()), Slot(None, slots)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.regain)
            await trio.testing.wait_all_tasks_blocked()
            if late:
                slots.give_back(holder)
            nursery.cancel_scope.cancel()
        other.lend()
        if not late:
            slots.give_back(holder)
        assert (slots.out, slots.has_room) == (0, True)


async def test_lent_slots_come_back_in_order_and_within_the_capacity(
    autojump_clock: Clock,
) -> None:
    slots = Slots(3, lambda: None)
    holders = [Slot(slots.try_take(), slots) for _ in range(3)]
    back: list[int] = []

    async def want(place: int) -> None:
        await holders[place].regain()
        back.append(place)

    async with trio.open_nursery() as nursery:
        holders[1].lend()
        holders[0].lend()
        others = [slots.try_take(), slots.try_take()]
        assert others == [0, 1]
        for place in (1, 0):
            nursery.start_soon(want, place)
            await trio.testing.wait_all_tasks_blocked()
        slots.resize(2)
        slots.give_back(1)
        await trio.testing.wait_all_tasks_blocked()
        assert back == [], "two are out, and two may be"
        assert slots.try_take() is None
        slots.give_back(0)
        await trio.testing.wait_all_tasks_blocked()
        assert back == [1], "first come, first served"
        slots.resize(3)
        await trio.testing.wait_all_tasks_blocked()
        assert back == [1, 0]
    for holder in holders:
        holder.lend()
        holder.lend()
    assert slots.out == 0
