"""Claims for many runtimes in one call, where the server offers it, and all that may go wrong."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from daemon.client import Client
from daemon.runtimes import claims as claims_module
from daemon.runtimes.abilities import unable
from daemon.runtimes.claims import Claims
from daemon.runtimes.directory import Directory
from daemon.runtimes.info import RuntimeInfo
from daemon.runtimes.offers import Offers
from daemon.runtimes.poller import run_poller
from daemon.services import make_services
from daemon.tasks.backlog import Backlog
from daemon.tasks.task import Job
from shared.wire.runtime import CLAIM_MANY
from tests.support.daemon_rig import CLAUDE, CODEX, DEMO, Rig, open_rig
from tests.support.fake_server import FakeServer, client_of, open_fake_server, uid
from tests.support.network import HANG, LOSE_RESPONSE, answer, delay

pytestmark = pytest.mark.fast

MANY = "POST /api/daemon/claims"
ALONE = "POST /api/daemon/runtimes/.*/tasks/claim"
RECOVER = "POST /api/daemon/runtimes/.*/recover-orphans"
REGISTER = "POST /api/daemon/register"
ALL = (CLAUDE, CODEX, DEMO)
GONE = '{"error":"runtime not found"}'


@asynccontextmanager
async def open_offering_server() -> AsyncIterator[FakeServer]:
    async with open_fake_server() as server:
        server.capabilities = [CLAIM_MANY]
        yield server


async def _hold(client: Client, job: Job, shutdown: trio.CancelScope) -> None:
    """A task that works for a minute, unless it is cut."""
    await client.start(job.task.id)
    with shutdown:
        await trio.sleep(60)


async def _settled(server: FakeServer, rig: Rig) -> None:
    """Wait until the websocket's first wake-up has been answered, and forget what was asked."""
    await rig.until_running()
    await rig.until(lambda: server.sockets or server.refuse_sockets)
    await trio.sleep(1)
    server.calls.clear()


def _asked(server: FakeServer) -> list[dict[str, int]]:
    """What each call for many asked for: slots by runtime, and in all under "all"."""
    return [
        {row["runtime_id"]: row["slots"] for row in call.body["runtimes"]}
        | {"all": call.body["slots"]}
        for call in server.requests(MANY)
    ]


async def test_whoever_wishes_at_the_same_time_is_asked_for_together(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        tasks = [server.add_task(runtime_id) for runtime_id in server.runtimes]
        began = trio.current_time()
        await server.push("daemon:task_available", None)
        await rig.until(lambda: all(task.status == "completed" for task in tasks), within=0.1)
        first, *_ = _asked(server)
        assert first == dict.fromkeys(server.runtimes, 1) | {"all": 3}
        assert server.times(MANY)[0] == began, "nobody waits for company"


async def test_idle_runtimes_are_polled_by_one_call(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_offering_server() as server:
        for number in range(50):
            server.workspaces[uid(f"w{number}")] = "W"
        async with open_rig(server, tmp_path) as rig:
            await _settled(server, rig)
            await trio.sleep(60)  # each has asked once by now, in its own time
            server.calls.clear()
            await trio.sleep(299)
            times = server.times(MANY)
            assert [b - a for a, b in pairwise(times)] == pytest.approx([30.0] * (len(times) - 1))
            assert len(times) in (9, 10)
            assert all(len(call.body["runtimes"]) == 51 for call in server.requests(MANY))
            assert {call.body["slots"] for call in server.requests(MANY)} == {20}
            assert server.count(ALONE) == 0


@pytest.mark.parametrize("interval", [30.0, 0.7, 0.1])
async def test_a_common_poll_is_never_followed_by_itself(
    autojump_clock: MockClock, tmp_path: Path, interval: float
) -> None:
    """Whatever the rounding of times that are multiples of an interval."""
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        offers = Offers()
        offers.learn([CLAIM_MANY])
        async with client_of(server, rig.config) as client:
            await trio.sleep(0.3)
            claims = Claims(client, rig.pool, Directory(), offers)
            for _ in range(300):
                at = claims.next_poll(interval)
                await trio.sleep_until(at)
                assert interval * 0.9 < claims.next_poll(interval) - at < interval * 1.1


async def test_a_stock_server_is_never_asked_for_many(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await rig.until_running()
        await trio.sleep(120)
        assert server.count(MANY) == 0
        assert server.count(ALONE) >= 12


async def test_a_wake_up_of_one_runtime_claims_for_it_alone(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        claude = server.runtime_id("claude")
        task = server.add_task(claude)
        server.wake(claude)
        await rig.until(lambda: task.status == "completed", within=0.1)
        assert all(claude in call.path or call.body for call in server.requests(f"{MANY}|{ALONE}"))
        assert {key for asked in _asked(server) for key in asked} <= {claude, "all"}


async def test_a_queue_is_taken_in_few_calls(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Who got all it asked for asks for twice as much, up to the slots there are."""
    async with (
        open_offering_server() as server,
        open_rig(server, tmp_path, run_job=_hold, max_concurrent_tasks=20) as rig,
    ):
        await _settled(server, rig)
        claude = server.runtime_id("claude")
        tasks = [server.add_task(claude) for _ in range(25)]
        server.wake(claude)
        await rig.until(lambda: rig.pool.slots_out == 20, within=0.1)
        assert sum(task.status == "running" for task in tasks) == 20
        assert server.count(ALONE) == 1
        assert [asked["all"] for asked in _asked(server)] == [2, 4, 8, 5]
        await trio.sleep(20)
        assert server.count(MANY) == 4, "no slot, no claim"


async def test_a_single_free_slot_is_offered_to_all_at_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with (
        open_offering_server() as server,
        open_rig(server, tmp_path, programs=ALL, run_job=_hold, max_concurrent_tasks=3) as rig,
    ):
        await _settled(server, rig)
        first = [server.add_task(server.runtime_id("claude")) for _ in range(2)]
        server.wake(server.runtime_id("claude"))
        await rig.until(lambda: rig.pool.slots_out == 2, within=0.1)
        server.calls.clear()
        task = server.add_task(server.runtime_id("demo"))
        await server.push("daemon:task_available", None)
        await rig.until(lambda: task.status == "running", within=0.1)
        assert _asked(server) == [dict.fromkeys(server.runtimes, 1) | {"all": 1}]
        assert all(row.status == "running" for row in first)


@pytest.mark.parametrize("status", [404, 405])
async def test_an_offer_that_does_not_hold_is_forgotten_until_it_is_repeated(
    autojump_clock: MockClock, tmp_path: Path, status: int
) -> None:
    """As after the server was replaced by an older one: nothing is lost, not even time."""
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        server.fail_always(MANY, answer(status, "404 page not found"))
        tasks = [server.add_task(runtime_id) for runtime_id in server.runtimes]
        await server.push("daemon:task_available", None)
        await rig.until(lambda: all(task.status == "completed" for task in tasks), within=0.1)
        assert server.count(MANY) == 1
        await trio.sleep(100)
        assert server.count(MANY) == 1
        assert server.count(REGISTER) == 0, "404 of the call is not 404 of a runtime"
        server.fail_always(MANY, None)
        server.workspaces[uid("other")] = "Other"  # a registration, which repeats the offer
        await rig.until(lambda: len(server.runtimes) == 6, within=31)
        await server.push("daemon:task_available", None)
        await trio.sleep(1)
        assert server.count(MANY) > 1


async def test_a_wrong_request_is_made_one_by_one(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        server.fail_next(MANY, answer(400, '{"error":"invalid runtime_id"}'))
        tasks = [server.add_task(runtime_id) for runtime_id in server.runtimes]
        await server.push("daemon:task_available", None)
        await rig.until(lambda: all(task.status == "completed" for task in tasks), within=0.1)
        assert server.count(ALONE) >= 3
        before = server.count(MANY)
        await trio.sleep(20)
        await server.push("daemon:task_available", None)
        await trio.sleep(0.1)
        assert server.count(MANY) > before, "the offer still stands"


async def test_failures_wait_for_the_next_poll(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        await trio.sleep(60)
        server.calls.clear()
        server.fail_always(MANY, answer(500))
        await trio.sleep(119)
        times = server.times(MANY)
        assert [b - a for a, b in pairwise(times)] == pytest.approx([30.0] * (len(times) - 1))
        assert len(times) >= 3
        assert server.count(ALONE) == 0
        assert rig.pool.slots_out == 0


async def test_a_runtime_that_is_gone_does_not_keep_the_others(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        lost = server.runtime_id("codex")
        server.delete_runtime(lost)
        task = server.add_task(server.runtime_id("claude"))
        await server.push("daemon:task_available", None)
        await rig.until(lambda: task.status == "completed", within=0.1)
        await rig.until(lambda: len(server.runtimes) == 3, within=0.1)
        assert server.count(REGISTER) == 1
        await rig.until(
            lambda: server.runtime_id("codex") in rig.health.tell()["workspaces"][0]["runtimes"]
        )
        assert lost not in server.runtimes


async def test_what_is_wrong_with_one_runtime_is_only_logged(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """No owner, or a foreign workspace: neither is a reason to register again."""
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        told = [
            {"runtime_id": runtime_id, "tasks": [], "error": error}
            for runtime_id, error in zip(
                server.runtimes,
                ("not found", "runtime owner required to mint task token", ""),
                strict=True,
            )
        ]
        server.fail_next(MANY, answer(200, json.dumps({"claims": told})))
        await server.push("daemon:task_available", None)
        await trio.sleep(20)
        assert server.count(REGISTER) == 0


async def test_a_hanging_call_holds_up_nobody_else(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        server.fail_next(MANY, HANG)
        await server.push("daemon:task_available", None)
        await trio.sleep(0.1)
        assert rig.pool.slots_out == 3
        assert server.count(MANY) == 1
        server.workspaces[uid("other")] = "Other"
        await rig.until(lambda: len(server.runtimes) == 6, within=31)
        await trio.sleep(0.5)
        theirs = server.runtime_id("claude", uid("other"))
        task = server.add_task(theirs)
        server.wake(theirs)
        await rig.until(lambda: task.status == "completed", within=0.5)
        await trio.sleep(40)
        assert rig.pool.slots_out == 0


async def test_a_lost_answer_costs_only_time(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        tasks = [server.add_task(runtime_id) for runtime_id in server.runtimes]
        server.fail_next(MANY, LOSE_RESPONSE)
        await server.push("daemon:task_available", None)
        await rig.until(lambda: all(task.status == "dispatched" for task in tasks))
        await trio.sleep(0.1)
        assert rig.pool.slots_out == 0
        for task in tasks:
            server.redeliver(task.id)  # as the server does after 90 s
        await rig.until(lambda: all(task.status == "completed" for task in tasks), within=31)


async def test_more_than_was_asked_for_is_not_taken(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with (
        open_offering_server() as server,
        open_rig(server, tmp_path, programs=ALL, run_job=_hold, max_concurrent_tasks=2) as rig,
    ):
        await _settled(server, rig)
        claude = server.runtime_id("claude")
        rows = [server.add_task(claude) for _ in range(2)]
        for row in rows:
            row.status = "dispatched"
        told = [{"runtime_id": claude, "tasks": [row.claimed for row in rows]}]
        server.fail_next(MANY, answer(200, json.dumps({"claims": told})))
        await server.push("daemon:task_available", None)
        await rig.until(lambda: rig.pool.slots_out == 2, within=0.1)
        assert rig.pool.active == {rows[0].id, rows[1].id}


async def test_a_call_in_flight_is_finished_when_asked_to_stop(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The barrier: nothing new is asked for, and what is on its way is taken and run."""
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        tasks = [server.add_task(runtime_id) for runtime_id in server.runtimes]
        server.fail_next(MANY, delay(2))
        await server.push("daemon:task_available", None)
        await trio.sleep(0.5)
        rig.stop.ask("test")
        await rig.ended.wait()
        assert all(task.status == "completed" for task in tasks)
        assert server.count(MANY) == 1
        assert rig.pool.slots_out == 0


async def test_a_call_that_hangs_holds_up_a_stop_for_three_seconds(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        server.fail_next(MANY, HANG)
        await server.push("daemon:task_available", None)
        await trio.sleep(0.5)
        asked = trio.current_time()
        rig.stop.ask("test")
        await rig.ended.wait()
        assert trio.current_time() - asked == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("place", range(len(ALL)))
async def test_no_orphans_are_recovered_while_a_claim_for_the_runtime_is_under_way(
    autojump_clock: MockClock, tmp_path: Path, place: int
) -> None:
    """Not by the one who takes over from a poller that only waited for the leader's call either."""
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        server.fail_next(MANY, delay(5))
        await server.push("daemon:task_available", None)
        await rig.until(lambda: server.count(MANY))
        answered = server.times(MANY)[0] + 5
        gone = {"runtime_id": list(server.runtimes)[place], "status": "runtime_gone"}
        await server.push("daemon:heartbeat_ack", gone)  # in error: it is registered as it was
        await rig.until(lambda: server.count(RECOVER), within=30)
        assert server.times(RECOVER)[0] >= answered


async def test_pollers_outlive_a_hold(autojump_clock: MockClock, tmp_path: Path) -> None:
    """As while an update is tried: nothing is claimed, and afterwards all is as before."""
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        assert rig.pool.try_pause("test")
        tasks = [server.add_task(runtime_id) for runtime_id in server.runtimes]
        await server.push("daemon:task_available", None)
        await trio.sleep(100)
        assert server.count(f"{MANY}|{ALONE}") == 0
        rig.pool.resume("test")
        await rig.until(lambda: all(task.status == "completed" for task in tasks), within=6)


async def test_many_runtimes_are_asked_for_in_several_calls(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "MOST_RUNTIMES", 2)
    async with open_offering_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await _settled(server, rig)
        tasks = [server.add_task(runtime_id) for runtime_id in server.runtimes]
        await server.push("daemon:task_available", None)
        await rig.until(lambda: all(task.status == "completed" for task in tasks), within=0.1)
        assert [len(call.body["runtimes"]) for call in server.requests(MANY)[:2]] == [2, 1]


# -- every way out


class _CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when a task of the given name is about to take its n-th step."""

    def __init__(self, name: str, step: int, scope: trio.CancelScope) -> None:
        self._name, self._left, self._scope = name, step, scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name == self._name:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def _scenario(server: FakeServer, rig: Rig, step: int) -> bool:
    """Two pollers that wish together, one cancelled at its n-th step; tell whether it got there."""
    async with client_of(server, rig.config) as client:
        services = make_services(
            rig.config,
            client,
            rig.pool,
            Backlog(client, rig.config.home.journals),
            directory=Directory(),
            abilities=unable(),
        )
        services.offers.learn([CLAIM_MANY])
        tasks = []
        for key in ("r1", "r2"):
            server.runtimes[key] = {"key": None, "provider": "x", "workspace_id": "w"}
            tasks += [server.add_task(key) for _ in range(3)]
        scope = trio.CancelScope()
        instrument = _CancelAtStep("victim", step, scope)

        async def poll(key: str) -> None:
            runtime = RuntimeInfo(id=key, workspace_id="w", provider="claude", program=CLAUDE)
            await run_poller(services, runtime, lambda: None)

        async def poll_in_scope() -> None:
            with scope:
                await poll("r1")

        trio.lowlevel.add_instrument(instrument)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(poll_in_scope, name="victim")
                nursery.start_soon(poll, "r2", name="other")
                await trio.sleep(200)
                nursery.cancel_scope.cancel()
        finally:
            trio.lowlevel.remove_instrument(instrument)
        await rig.until(lambda: not rig.pool.active)
        assert rig.pool.slots_out == 0, f"a slot was lost by a cancel at step {step}"
        theirs = [task.status for task in tasks if task.runtime_id == "r2"]
        assert theirs == ["completed"] * 3, f"{theirs} after a cancel at {step}"
        ours = {task.status for task in tasks if task.runtime_id == "r1"}
        assert ours <= {"queued", "completed"}, f"{ours} after a cancel at {step}"
        for key in ("r1", "r2"):
            del server.runtimes[key]
        server.tasks.clear()
        return scope.cancelled_caught


@pytest.mark.parametrize("seed", range(2))
async def test_slots_never_leak_wherever_a_poller_is_cancelled(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whether it leads or follows, which the seed decides by the order of steps."""
    from trio._core import _run

    monkeypatch.setattr(_run, "_r", random.Random(seed))
    monkeypatch.setattr("daemon.runtimes.poller.poll_offset", lambda *_: 1.0)
    async with open_offering_server() as server:
        server.workspaces.clear()
        server.fail_always(f"{MANY}|{ALONE}", delay(1))
        async with open_rig(server, tmp_path, max_concurrent_tasks=4) as rig:
            await rig.until_running()
            step = 1
            while await _scenario(server, rig, step):
                step += 1
            assert step > 20, "the scenario reaches wishes, calls, hand-overs and waits"
