"""The order in which the daemon stops: no new work, grace, the cut, the goodbye."""

from __future__ import annotations

import functools
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.app import duration_text
from daemon.client import Client
from daemon.tasks.task import Job
from shared.wire.task import CompleteRequest, FailRequest
from tests.support.daemon_rig import Rig, open_rig
from tests.support.fake_server import FakeServer, FakeTask, open_fake_server
from tests.support.network import HANG, delay

pytestmark = pytest.mark.fast

CLAIM = "POST /api/daemon/runtimes/.*/tasks/claim"


async def _work(client: Client, job: Job, shutdown: trio.CancelScope) -> None:
    """A task that takes as many seconds as its thread name says, then reports within a shield."""
    await client.start(job.task.id)
    with shutdown:
        await trio.sleep(float(job.task.thread_name))
    with trio.move_on_after(5, shield=True):
        if shutdown.cancelled_caught:
            await trio.sleep(1)  # reporting takes time, too
            request = FailRequest(error="cut", failure_reason="runtime_recovery")
            await client.fail(job.task.id, request)
        else:
            await client.complete(job.task.id, CompleteRequest(output="done"))


open_working_rig = functools.partial(open_rig, run_job=_work)


async def _with_tasks(rig: Rig, server: FakeServer, *seconds: float) -> list[FakeTask]:
    await rig.until_running()
    await trio.sleep(40)
    runtime_id = server.runtime_id("claude")
    tasks = [server.add_task(runtime_id, thread_name=str(number)) for number in seconds]
    server.wake(runtime_id)
    await rig.until(lambda: all(task.status == "running" for task in tasks))
    return tasks


async def test_short_tasks_finish_and_the_long_one_is_cut_at_the_deadline(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_working_rig(server, tmp_path) as rig:
        short, long = await _with_tasks(rig, server, 5, 500)
        asked = trio.current_time()
        rig.stop.ask("test")
        await trio.sleep(0.01)
        assert rig.health.tell()["status"] == "stopping"
        assert rig.health.tell()["active_task_count"] == 2
        await rig.ended.wait()
        assert (short.status, long.status) == ("completed", "failed")
        assert long.failure_reason == "runtime_recovery"
        [cut] = server.times(f"POST /api/daemon/tasks/{long.id}/fail")
        assert cut - asked == pytest.approx(11, abs=0.1), "10 s of grace and the report"
        [(gone, ids)] = server.deregistered
        assert gone == trio.current_time() == cut, "goodbye comes last, and at once"
        assert ids == tuple(server.runtimes)


async def test_beats_go_on_until_the_last_task_is_done(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    for refused in (None, 503):
        async with open_fake_server() as server:
            server.refuse_sockets = refused
            async with open_working_rig(server, tmp_path, shutdown_grace=300.0) as rig:
                [_] = await _with_tasks(rig, server, 200)
                asked = trio.current_time()
                rig.stop.ask("test")
                await rig.ended.wait()
                ended = trio.current_time()
                beats = [at for at, _, _ in server.beats if asked < at <= ended]
                assert ended - asked > 150
                assert len(beats) >= (ended - asked) // 15


async def test_nothing_is_claimed_after_the_stop(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server:
        async with open_working_rig(server, tmp_path, shutdown_grace=300.0) as rig:
            await _with_tasks(rig, server, 200)
            await trio.sleep(0.1)
            asked, claims = trio.current_time(), server.count(CLAIM)
            rig.stop.ask("test")
            runtime_id = server.runtime_id("claude")
            late = server.add_task(runtime_id, thread_name="1")
            server.wake(runtime_id)
            await rig.ended.wait()
            assert trio.current_time() - asked > 150
        assert late.status == "queued"
        assert server.count(CLAIM) == claims


async def test_a_claim_in_flight_is_finished_and_its_task_run(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_working_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(40)
        runtime_id = server.runtime_id("claude")
        task = server.add_task(runtime_id, thread_name="1")
        server.fail_next(CLAIM, delay(2))
        server.wake(runtime_id)
        await trio.sleep(0.5)
        rig.stop.ask("test")
        await rig.ended.wait()
        assert task.status == "completed"
        assert task.deliveries == 1


async def test_a_claim_that_hangs_holds_the_stop_up_for_3_s_only(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_working_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(40)
        server.fail_always(CLAIM, HANG)
        server.wake(server.runtime_id("claude"))
        await trio.sleep(0.5)
        asked = trio.current_time()
        rig.stop.ask("test")
        await rig.ended.wait()
        assert trio.current_time() - asked == pytest.approx(3, abs=0.1)


async def test_an_idle_daemon_stops_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, open_working_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(40)
        asked = trio.current_time()
        rig.stop.ask("test")
        await rig.ended.wait()
        assert trio.current_time() == asked
        assert len(server.deregistered) == 1


async def test_a_second_signal_cuts_every_task_now(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_working_rig(server, tmp_path) as rig:
        tasks = await _with_tasks(rig, server, 500, 500, 500)
        rig.stop.insist("SIGTERM")
        await trio.sleep(2)
        assert not rig.ended.is_set()
        insisted = trio.current_time()
        rig.stop.insist("SIGTERM")
        await rig.ended.wait()
        assert trio.current_time() - insisted < 6
        assert len(server.deregistered) == 1, "it still says goodbye"
        told = {(task.status, task.failure_reason) for task in tasks}
        assert told == {("failed", "runtime_recovery")}, "each is reported, not left to time-outs"


async def test_asking_twice_is_not_insisting(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, open_working_rig(server, tmp_path) as rig:
        [task] = await _with_tasks(rig, server, 8)
        rig.stop.ask("by /shutdown")
        rig.stop.ask("by /shutdown again")
        await rig.ended.wait()
        assert task.status == "completed"


async def test_a_server_that_is_away_holds_the_goodbye_up_for_5_s_only(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_working_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(40)
        server.fail_always(".*", HANG)
        asked = trio.current_time()
        rig.stop.ask("test")
        await rig.ended.wait()
        assert trio.current_time() - asked == pytest.approx(5, abs=0.1)


async def test_stopping_while_the_start_still_waits(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.fail_always(".*", HANG)
        async with open_working_rig(server, tmp_path) as rig:
            await trio.sleep(7)
            rig.stop.ask("test")
            await rig.ended.wait()
            assert trio.current_time() == 7
            assert server.count("POST /api/daemon/deregister") == 0, "nothing was registered"


def _crash_from(monkeypatch: pytest.MonkeyPatch, name: str, at: float) -> list[float]:
    """Let a service of the daemon crash whenever it runs from a time on; returns when it did."""
    place, _, attribute = name.rpartition(".")
    owner = pkgutil.resolve_name(f"daemon.{place}")
    original, crashes = getattr(owner, attribute), []

    async def crash(*args: Any, **names: Any) -> None:
        with trio.CancelScope(deadline=at):
            await original(*args, **names)
        crashes.append(trio.current_time())
        raise ZeroDivisionError

    monkeypatch.setattr(owner, attribute, crash)
    return crashes


async def test_a_crash_at_the_root_stops_the_daemon_and_tasks_still_report(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _crash_from(monkeypatch, "workspaces.sync.Sync.run", 50)
    async with open_fake_server() as server:
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            async with open_working_rig(server, tmp_path) as rig:
                [task] = await _with_tasks(rig, server, 500)
                await trio.sleep_forever()
        assert trio.current_time() < 60
        assert len(server.deregistered) == 1
        assert task.status == "running"
        assert rig.pool.idle


@pytest.mark.parametrize(
    "duty",
    [
        "app.run_renewal",
        "app.run_wakeups",
        "app.keep_disk_watched",
        "app.run_reclaim",
        "app.run_notify",
        "tasks.backlog.Backlog.run",
        "runtimes.actions.Actions.run",
        "upkeep.update.Updater.run",
        "workspaces.workspace.run_runtime",
        "workspaces.workspace.Workspace.run",
    ],
)
async def test_a_duty_that_crashes_again_and_again_costs_no_task(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, duty: str
) -> None:
    crashes = _crash_from(monkeypatch, duty, 100)
    async with open_fake_server() as server, open_working_rig(server, tmp_path) as rig:
        [task] = await _with_tasks(rig, server, 500)
        await rig.until(lambda: task.status == "completed")
        assert len(crashes) > 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m0s"),
        (3600, "1h0m0s"),
        (7391, "2h3m11s"),
        (360000, "100h0m0s"),
    ],
)
def test_uptime(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


async def test_a_drain_waits_for_every_task_and_claims_nothing_new(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_working_rig(server, tmp_path) as rig:
        [task] = await _with_tasks(rig, server, 300)
        assert rig.stop.drain() == {"status": "draining"}
        await trio.sleep(1)
        assert rig.health.tell()["draining"]
        claims = server.count(CLAIM)
        late = server.add_task(server.runtime_id("claude"), thread_name="1")
        server.wake(server.runtime_id("claude"))
        await rig.ended.wait()
        assert task.status == "completed", "whatever the grace is"
        assert trio.current_time() == pytest.approx(340, abs=5)
        assert (late.status, server.count(CLAIM)) == ("queued", claims)


async def test_a_drain_can_be_taken_back(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, open_working_rig(server, tmp_path) as rig:
        [task] = await _with_tasks(rig, server, 100)
        rig.stop.drain()
        await trio.sleep(50)
        assert rig.stop.resume() == {"status": "running"}
        late = server.add_task(server.runtime_id("claude"), thread_name="1")
        await trio.sleep(100)
        assert "draining" not in rig.health.tell()
        assert (task.status, late.status) == ("completed", "completed")
        assert not rig.ended.is_set()


async def test_a_trial_start_registers_claims_nothing_and_ends(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        async with open_working_rig(server, tmp_path, trial=True) as rig:
            await rig.ended.wait()
            assert trio.current_time() < 5
        assert server.count("POST /api/daemon/register") == 1
        assert server.count(CLAIM) == 0
        assert len(server.deregistered) == 1
