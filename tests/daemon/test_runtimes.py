"""Heartbeats, polls, slots and orphans of runtimes, with exact times."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from daemon.client import Client
from daemon.runtimes.freshness import Freshness
from daemon.runtimes.poller import poll_offset
from daemon.runtimes.runtime import HELD_BACK
from daemon.tasks.backlog import Backlog
from daemon.tasks.journal import Claim, open_journal
from daemon.tasks.outcome import Outcome
from daemon.tasks.task import Job
from shared.wire.runtime import CLAIM_MANY
from shared.wire.task import CompleteRequest, FailRequest
from tests.conftest import ExpectedErrors
from tests.support.daemon_rig import CLAUDE, CODEX, DEMO, Rig, open_rig
from tests.support.fake_server import FakeServer, FakeTask, make_config, open_fake_server, uid
from tests.support.network import HANG, LOSE_RESPONSE, answer, delay

pytestmark = pytest.mark.fast

BEAT = "POST /api/daemon/heartbeat"
RECOVER = "POST /api/daemon/runtimes/.*/recover-orphans"


def _claims(runtime_id: str = ".*") -> str:
    return f"POST /api/daemon/runtimes/{runtime_id}/tasks/claim"


async def _hold(client: Client, job: Job, shutdown: trio.CancelScope) -> None:
    """A task that works for a minute, unless it is cut."""
    await client.start(job.task.id)
    with shutdown:
        await trio.sleep(60)


def _no_socket(server: FakeServer) -> FakeServer:
    server.refuse_sockets = 503
    return server


# -- heartbeats


async def test_http_beats_at_their_interval_without_a_websocket(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(_no_socket(server), tmp_path) as rig:
        await rig.until_running()
        began = trio.current_time()
        await trio.sleep(151)
        first, *rest = server.times(BEAT)
        assert began <= first < began + 15
        assert [later - earlier for earlier, later in pairwise([first, *rest])] == pytest.approx(
            [15.0] * len(rest)
        )
        assert len(rest) in (9, 10)
        assert server.requests(BEAT)[0].body == {
            "runtime_id": server.runtime_id("claude"),
            "supports_batch_import": True,
        }


async def test_first_beats_are_spread(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server:
        for number in range(30):
            server.workspaces[uid(f"w{number}")] = f"W{number}"
        async with open_rig(_no_socket(server), tmp_path) as rig:
            await rig.until_running()
            began = trio.current_time()
            await trio.sleep(15)
            offsets = {at - began for at in server.times(BEAT)}
            assert len(offsets) >= 30
            assert min(offsets) < 5
            assert max(offsets) > 10


async def test_websocket_beats_make_http_beats_needless(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(300)
        assert server.count(BEAT) == 0
        times = [at for at, _, way in server.beats if way == "ws"]
        assert [b - a for a, b in pairwise(times)] == pytest.approx([15.0] * 20)


async def test_http_beats_come_back_as_soon_as_the_socket_goes(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Marks are cleared on close, so the next tick beats, not the one after 30 s."""
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(100)
        server.refuse_sockets = 503
        lost = trio.current_time()
        server.drop_sockets()
        await trio.sleep(15.1)
        [first, *_] = server.times(BEAT)
        assert lost < first <= lost + 15.01


async def test_unacknowledged_beats_are_not_fresh_for_long(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(100)
        last = max(at for at, _, _ in server.beats)
        server.answer_beats = False
        await rig.until(lambda: server.count(BEAT))
        [first, *_] = server.times(BEAT)
        assert last + 30 <= first < last + 45


async def test_a_mark_is_fresh_for_two_intervals(autojump_clock: MockClock) -> None:
    freshness = Freshness(15.0)
    assert not freshness.is_fresh("r")
    freshness.mark("r")
    await trio.sleep(29.9)
    assert freshness.is_fresh("r")
    assert not freshness.is_fresh("other")
    await trio.sleep(0.1)
    assert not freshness.is_fresh("r")
    freshness.mark("r")
    freshness.clear()
    assert not freshness.is_fresh("r")


async def test_a_slow_runtime_does_not_delay_another(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with (
        open_fake_server() as server,
        open_rig(_no_socket(server), tmp_path, programs=(CLAUDE, CODEX)) as rig,
    ):
        await rig.until_running()
        slow, quick = server.runtime_id("claude"), server.runtime_id("codex")
        await trio.sleep(16)

        def beats(runtime_id: str) -> list[float]:
            return [
                call.at for call in server.requests(BEAT) if call.body["runtime_id"] == runtime_id
            ]

        server.fail_always(f"{BEAT} .*{slow}.*", delay(29))
        await trio.sleep(300)
        assert [b - a for a, b in pairwise(beats(quick))] == pytest.approx(
            [15.0] * (len(beats(quick)) - 1)
        )
        assert [b - a for a, b in pairwise(beats(slow))][2:] == pytest.approx(
            [29.0] * (len(beats(slow)) - 3)
        )


async def test_failed_beats_are_only_logged(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, open_rig(_no_socket(server), tmp_path) as rig:
        await rig.until_running()
        server.fail_always(BEAT, answer(401, '{"error":"invalid token"}'))
        await trio.sleep(100)
        assert server.count("POST /api/daemon/register") == 1
        times = server.times(BEAT)
        assert [b - a for a, b in pairwise(times)] == pytest.approx([15.0] * (len(times) - 1))


# -- polling


def test_poll_offsets_are_fnv_1a_modulo_the_interval() -> None:
    """Vectors: FNV-1a-64 of "" is the offset basis, of "a" af63dc4c8601ec8c."""
    assert poll_offset("", 30) == 0xCBF29CE484222325 % 30_000_000_000 / 1e9
    assert poll_offset("a", 30) == 0xAF63DC4C8601EC8C % 30_000_000_000 / 1e9
    offsets = [poll_offset(uid(str(number)), 30) for number in range(100)]
    assert min(offsets) < 3
    assert 27 < max(offsets) < 30


async def test_polls_come_at_their_offset_and_interval(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with (
        open_fake_server() as server,
        open_rig(_no_socket(server), tmp_path, programs=(CLAUDE, CODEX, DEMO)) as rig,
    ):
        await rig.until_running()
        await trio.sleep(121)
        for runtime_id in server.runtimes:
            times = server.times(_claims(runtime_id))
            offset = poll_offset(runtime_id, 30)
            expected = [offset + 30 * number for number in range(5)]
            assert times == pytest.approx(expected[: len(times)])
            assert len(times) >= 4


async def test_a_wake_up_claims_at_once_and_only_there(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, programs=(CLAUDE, CODEX)) as rig,
    ):
        await rig.until_running()
        await trio.sleep(5)
        claude, codex = server.runtime_id("claude"), server.runtime_id("codex")
        before = server.count(_claims(codex))
        task = server.add_task(claude)
        server.wake(claude)
        began = trio.current_time()
        await trio.lowlevel.checkpoint()
        await rig.until(lambda: task.status == "completed", within=0.1)
        assert server.times(_claims(claude))[-2] == began
        assert server.count(_claims(codex)) == before
        await server.push("daemon:task_available", None)
        await trio.sleep(0.1)
        assert server.count(_claims(codex)) == before + 1, "no runtime named means all"
        await server.push("daemon:task_available", {"runtime_id": uid("unknown")})
        await trio.sleep(0.1)
        assert server.count(_claims(codex)) == before + 1


async def test_a_queue_is_worked_off_without_waiting(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(1)
        runtime_id = server.runtime_id("claude")
        tasks = [server.add_task(runtime_id) for _ in range(25)]
        server.wake(runtime_id)
        await rig.until(lambda: all(task.status == "completed" for task in tasks), within=0.1)


async def test_a_wake_up_while_claiming_is_not_lost(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(5)
        runtime_id = server.runtime_id("claude")
        server.fail_next(_claims(), answer(200, '{"task":null}'))
        server.fail_always(_claims(), delay(3))
        began = trio.current_time()
        server.wake(runtime_id)  # this claim is answered "nothing" at once ...
        await trio.sleep(0.1)
        server.wake(runtime_id)  # ... this one takes 3 s, and finds nothing either
        await trio.sleep(1)
        for _ in range(5):
            server.wake(runtime_id)  # five wake-ups while it claims are one more claim
        await trio.sleep(20)
        server.fail_always(_claims(), None)
        times = [at - began for at in server.times(_claims()) if at >= began]
        assert times == pytest.approx([0, 0.1, 3.1], abs=0.01)


async def test_no_slot_no_claim(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, run_job=_hold, max_concurrent_tasks=2) as rig,
    ):
        await rig.until_running()
        await trio.sleep(5)
        runtime_id = server.runtime_id("claude")
        tasks = [server.add_task(runtime_id) for _ in range(4)]
        server.wake(runtime_id)
        began = trio.current_time()
        await trio.sleep(50)
        assert [task.status for task in tasks] == ["running", "running", "queued", "queued"]
        assert len([at for at in server.times(_claims()) if at >= began]) == 2
        assert rig.pool.slots_out == 2
        await trio.sleep(20)
        later = [at - began for at in server.times(_claims()) if at >= began][2:]
        assert len(later) >= 2
        assert later[0] == pytest.approx(60), "a freed slot is used at once"


async def test_a_freed_slot_is_used_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, max_concurrent_tasks=1) as rig,
    ):
        await rig.until_running()
        await trio.sleep(100)
        runtime_id = server.runtime_id("claude")
        slot = rig.pool.try_take_slot()
        assert slot is not None
        server.wake(runtime_id)  # it begins to queue now
        before = server.count(_claims())
        await trio.sleep(200)
        assert server.count(_claims()) == before, "no slot, no claim"
        rig.pool.give_back(slot)
        freed = trio.current_time()
        await trio.sleep(1)
        assert server.times(_claims())[before] == pytest.approx(freed)


@pytest.mark.parametrize("offered", [[], [CLAIM_MANY]])
async def test_nobody_starves_for_a_slot(
    autojump_clock: MockClock, tmp_path: Path, offered: list[str]
) -> None:
    """Two runtimes with work without end share one slot, and no time is lost between two tasks."""

    async def work(client: Client, job: Job, shutdown: trio.CancelScope) -> None:
        await client.start(job.task.id)
        await trio.sleep(60)
        await client.complete(job.task.id, CompleteRequest())

    async with open_fake_server() as server:
        server.capabilities = offered
        async with open_rig(
            server, tmp_path, run_job=work, max_concurrent_tasks=1, programs=(CLAUDE, CODEX)
        ) as rig:
            await rig.until_running()
            queues = [
                [server.add_task(server.runtime_id(provider)) for _ in range(40)]
                for provider in ("claude", "codex")
            ]
            server.drop_sockets()
            await trio.sleep(40 * 60)
            done = [sum(task.status == "completed" for task in queue) for queue in queues]
            assert sum(done) == 39, "one at work, all others done"
            assert min(done) >= 5, done


async def test_a_redelivered_task_is_not_run_twice(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path, run_job=_hold) as rig:
        await rig.until_running()
        await trio.sleep(5)
        runtime_id = server.runtime_id("claude")
        task = server.add_task(runtime_id)
        server.wake(runtime_id)
        await rig.until(lambda: task.status == "running")
        server.redeliver(task.id)
        server.wake(runtime_id)
        await rig.until(lambda: task.deliveries == 2)
        await trio.sleep(1)
        assert rig.pool.active == {task.id}
        assert rig.pool.slots_out == 1
        assert server.count(f"POST /api/daemon/tasks/{task.id}/start") == 1


async def test_a_lost_claim_answer_costs_only_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(5)
        runtime_id = server.runtime_id("claude")
        task = server.add_task(runtime_id)
        server.fail_next(_claims(), LOSE_RESPONSE)
        server.wake(runtime_id)
        await rig.until(lambda: task.status == "dispatched")
        assert rig.pool.slots_out == 0
        server.redeliver(task.id)  # as the server does after 90 s
        await rig.until(lambda: task.status == "completed", within=31)
        assert task.deliveries == 2


async def test_failed_claims_wait_a_poll_interval(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(_no_socket(server), tmp_path) as rig:
        await rig.until_running()
        server.fail_always(_claims(), answer(500))
        await trio.sleep(130)
        times = server.times(_claims())
        assert [b - a for a, b in pairwise(times)] == pytest.approx([30.0] * (len(times) - 1))


async def test_no_runtime_is_polled_twice(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Whatever changes around it: registrations, wake-ups and lists never double a poller."""
    async with open_fake_server() as server:
        server.fail_always(_claims(), delay(2))
        async with open_rig(server, tmp_path, programs=(CLAUDE, CODEX)) as rig:
            await rig.until_running()
            for number in range(20):
                runtime_id = server.runtime_id("claude")
                if number % 4 == 0:
                    gone = answer(404, '{"error":"runtime not found"}')
                    server.fail_next(_claims(runtime_id), gone)
                if number % 5 == 0:
                    server.workspaces[uid(f"w{number}")] = "W"
                server.wake(runtime_id)
                server.wake(server.runtime_id("codex"))
                await trio.sleep(7)
            for runtime_id in server.runtimes:
                times = server.times(_claims(runtime_id))
                gaps = [b - a for a, b in pairwise(times)]
                assert all(gap >= 1.99 or gap < 0.2 for gap in gaps), gaps
                assert sum(gap < 0.2 for gap in gaps) <= 5, "only after a gone answer"


# -- orphans


def leave_journal(server: FakeServer, home: Path, runtime_id: str = "") -> FakeTask:
    """What a daemon that died after its agent had finished leaves on disk and on the server."""
    task = server.add_task("old", uid("old task"))
    task.status = "running"
    claim = Claim(task_id=task.id, runtime_id=runtime_id)
    journal = open_journal(make_config(home).home.journals, claim)
    journal.note_outcome(Outcome(completed=True, text="done"))
    journal.close()
    return task


async def run_and_fail(client: Client, job: Job, shutdown: trio.CancelScope) -> None:
    await client.start(job.task.id)
    await client.fail(job.task.id, FailRequest(error="no"))


async def test_orphans_are_recovered_before_the_first_claim_and_after_the_journals(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        old = leave_journal(server, tmp_path)
        server.fail_always(".*/complete", answer(503))
        async with open_rig(server, tmp_path) as rig:
            await rig.until_running()
            await trio.sleep(50)
            assert server.count(RECOVER) == server.count(_claims()) == 0
            assert server.beats, "it beats meanwhile"
            server.fail_always(".*/complete", None)
            await trio.sleep(60)
            [recovered] = server.times(RECOVER)
            [completed] = [c.at for c in server.calls if c.path.endswith("/complete")][-1:]
            assert old.status == "completed"
            assert recovered >= completed
            assert server.times(_claims())[0] >= recovered


async def test_a_report_the_server_never_takes_does_not_keep_the_daemon_idle(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        leave_journal(server, tmp_path)
        server.fail_always(".*/complete", answer(503))
        async with open_rig(server, tmp_path, run_job=run_and_fail) as rig:
            await rig.until_running()
            assert rig.health.tell()["unreported_task_count"] == 1
            task = server.add_task(server.runtime_id("claude"))
            await rig.until(lambda: task.status == "failed", within=HELD_BACK + 31)
            assert trio.current_time() >= HELD_BACK
            assert server.count(RECOVER) == 0, "it would fail what is still to be reported"


async def test_a_full_disk_holds_up_claims_and_says_so(
    autojump_clock: MockClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error_log: ExpectedErrors,
) -> None:
    free = {"bytes": 10}
    monkeypatch.setattr("daemon.upkeep.disk.free_bytes", lambda folder: free["bytes"])
    async with open_fake_server() as server, open_rig(server, tmp_path, min_free_disk=100) as rig:
        await rig.until_running()
        task = server.add_task(server.runtime_id("claude"))
        server.wake(task.runtime_id)
        await trio.sleep(60)
        assert server.count(_claims()) == 0
        assert "new tasks wait" in rig.health.tell()["problem"]
        free["bytes"] = 100
        await rig.until(lambda: task.status == "completed", within=11)
        assert "problem" not in rig.health.tell()
    error_log.expect("no new tasks")


async def test_recovery_is_repeated_until_it_is_answered(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.fail_next(RECOVER, answer(500), HANG, answer(503))
        async with open_rig(server, tmp_path) as rig:
            await rig.until_running()
            await rig.until(lambda: server.count(_claims()), within=60)
            times = server.times(RECOVER)
            assert [b - a for a, b in pairwise(times)] == pytest.approx([1, 7, 4], abs=0.9)
            assert server.times(_claims())[0] >= times[-1]


async def test_a_refused_recovery_does_not_stop_the_work(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.fail_always(RECOVER, answer(400, '{"error":"invalid runtime_id"}'))
        async with open_rig(server, tmp_path) as rig:
            await rig.until_running()
            task = server.add_task(server.runtime_id("claude"))
            await rig.until(lambda: task.status == "completed", within=31)
            assert server.count(RECOVER) == 1


async def test_a_stranger_in_place_of_the_recovery_holds_the_work_up_for_a_while_only(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.fail_always(RECOVER, answer(404, "404 page not found"))
        async with open_rig(server, tmp_path) as rig:
            await rig.until_running()
            task = server.add_task(server.runtime_id("claude"))
            await trio.sleep(60)
            assert task.status == "queued", "whose orphans it has is not known"
            await rig.until(lambda: task.status == "completed", within=150)


async def test_orphans_are_not_recovered_while_we_hold_a_task(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The runtime is lost and comes back with the same id while its task runs on."""
    async with open_fake_server() as server, open_rig(server, tmp_path, run_job=_hold) as rig:
        await rig.until_running()
        await trio.sleep(5)
        runtime_id = server.runtime_id("claude")
        task = server.add_task(runtime_id)
        server.wake(runtime_id)
        await rig.until(lambda: task.status == "running")
        server.fail_next(_claims(), answer(404, '{"error":"runtime not found"}'))
        server.wake(runtime_id)
        await rig.until(lambda: server.count("POST /api/daemon/register") == 2)
        await trio.sleep(40)
        assert server.recovered == [runtime_id], "only at the start"
        assert task.status == "running"
        assert server.count(_claims(runtime_id)) > 3


# -- every way out


class _CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when a named task is about to take its n-th step."""

    def __init__(self, name: str, step: int, scope: trio.CancelScope) -> None:
        self._name, self._left, self._scope = name, step, scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._name in task.name:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def _poller_scenario(server: FakeServer, rig: Rig, step: int) -> bool:
    """Run a poller by itself, cancelled at its n-th step; tell whether it came that far."""
    from daemon.runtimes.abilities import unable
    from daemon.runtimes.directory import Directory
    from daemon.runtimes.info import RuntimeInfo
    from daemon.runtimes.poller import run_poller
    from daemon.services import make_services
    from tests.support.fake_server import client_of

    runtime = RuntimeInfo(id="r", workspace_id="w", provider="claude", program=CLAUDE)
    async with client_of(server, rig.config) as client:
        backlog = Backlog(client, rig.config.home.journals)
        services = make_services(
            rig.config, client, rig.pool, backlog, directory=Directory(), abilities=unable()
        )
        server.runtimes["r"] = {"key": None, "provider": "x", "workspace_id": "w"}
        task = server.add_task("r")
        taken = [slot for _ in range(2) if (slot := rig.pool.try_take_slot()) is not None]

        async def free_later() -> None:
            await trio.sleep(33)
            for slot in taken:
                rig.pool.give_back(slot)

        scope = trio.CancelScope()
        instrument = _CancelAtStep("run_scoped_poller", step, scope)

        async def run_scoped_poller() -> None:
            with scope:
                await run_poller(services, runtime, lambda: None)

        trio.lowlevel.add_instrument(instrument)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(free_later)
                nursery.start_soon(run_scoped_poller, name="run_scoped_poller")
                await trio.sleep(200)
                nursery.cancel_scope.cancel()
        finally:
            trio.lowlevel.remove_instrument(instrument)
        await rig.until(lambda: not rig.pool.active)
        assert rig.pool.slots_out == 0, f"a slot was lost by a cancel at step {step}"
        assert task.status in ("queued", "completed"), f"{task.status} after a cancel at {step}"
        del server.runtimes["r"], server.tasks[task.id]
        return scope.cancelled_caught


async def test_slots_never_leak_wherever_a_poller_is_cancelled(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.workspaces.clear()
        server.fail_always(_claims(), delay(1))
        async with open_rig(server, tmp_path, max_concurrent_tasks=2) as rig:
            await rig.until_running()
            step = 1
            while await _poller_scenario(server, rig, step):
                step += 1
            assert step > 20, "the scenario reaches claims, hand-overs and waits"
