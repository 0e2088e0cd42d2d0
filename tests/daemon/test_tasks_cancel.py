"""One task, ended at every step it takes, in every way it can be ended.

Whatever the moment: no agent is left, every slot is back, the transcript on the server has no gap,
and the task is either reported or still known, to the server or to the journal that the next start
replays.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.client import Client
from daemon.config import Config
from daemon.tasks.backlog import Backlog
from daemon.tasks.pool import TaskPool
from daemon.tasks.task import TaskRunner
from shared.wire.runtime import MACHINE_REPORTS
from shared.wire.task import CANCELLED, COMPLETED, DISPATCHED, FAILED, RUNNING
from tests.daemon.tasks_support import (
    RUNTIME,
    Agents,
    Bench,
    Script,
    open_bench,
    status,
    tell_journals,
    text,
    tool_result,
    tool_use,
)
from tests.support.fake_server import FakeServer, client_of, make_config, open_fake_server, uid
from tests.support.network import LOSE_RESPONSE

pytestmark = pytest.mark.fast

SCRIPT = Script(
    steps=(status("s1"), text("a"), tool_use("c1"), 1.0, tool_result("c1", "out"), text("b")),
)


class AtStep(trio.abc.Instrument):
    """Does something before the n-th step of the tasks whose names begin with `task `."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self._left = step
        self._action = action
        self.fired = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.fired or not task.name.startswith(("task ", "daemon.tasks.")):
            return
        self._left -= 1
        if self._left <= 0:
            self.fired = True
            self._action()


Way = Callable[[Bench, trio.Nursery, Any], None]


def cancel_the_nursery(bench: Bench, tasks: trio.Nursery, task: Any) -> None:
    tasks.cancel_scope.cancel()


def stop_at_once(bench: Bench, tasks: trio.Nursery, task: Any) -> None:
    bench.pool.stop(0)


def cancel_on_the_server(bench: Bench, tasks: trio.Nursery, task: Any) -> None:
    if task.status in (DISPATCHED, RUNNING):
        task.status = CANCELLED


async def _scenario(home: Path, way: Way, step: int) -> bool:
    """Run one task and end it at the step; tell whether the step was reached."""
    agents = Agents(SCRIPT)
    async with open_fake_server() as server:
        config = make_config(home)
        async with client_of(server, config) as client:
            fired, bench, task = await _run(server, client, config, agents, way=way, step=step)
            ours = task.status
            await tell_journals(client, config.home.journals)
        assert bench.pool.slots_out == 0
        assert bench.pool.active == frozenset()
        assert agents.alive == 0
        assert task.seqs == list(range(1, len(task.rows) + 1)), "a gap in the transcript"
        sent = [seq for call in server.requests(".*/messages") for seq in _seqs(call.body)]
        assert sorted(set(sent)) == sorted(sent), "a row was sent twice without need"
        assert bench.journals == []
        if way is cancel_on_the_server:
            assert task.status in (CANCELLED, COMPLETED)
        elif ours not in (COMPLETED, FAILED):
            # not reported: nobody may believe otherwise, and the server still has it in flight
            assert task.status in (DISPATCHED, RUNNING, COMPLETED, FAILED)
            assert task.status != COMPLETED or task.result is not None
        reports = [call for call in bench.routes(task) if call in ("complete", "fail")]
        assert len(set(reports)) <= 1, "two different reports"
    return fired


def _seqs(body: Any) -> list[int]:
    return [row["seq"] for row in body["messages"]]


async def _run(
    server: FakeServer, client: Client, config: Config, agents: Agents, *, way: Way, step: int
) -> tuple[bool, Bench, Any]:
    backlog = Backlog(client, config.home.journals)
    runner = TaskRunner(config, client, open_agent=agents.open, backlog=backlog, env={})
    async with trio.open_nursery() as tasks:
        pool = TaskPool(2, tasks, runner.run, backlog.owes)
        bench = Bench(server, client, config, pool, agents, runner, backlog)
        task = bench.add()
        instrument = AtStep(step, lambda: way(bench, tasks, task))
        trio.lowlevel.add_instrument(instrument)
        try:
            bench.hand_over(task)
            with trio.CancelScope(shield=True), trio.fail_after(600):
                await pool.wait_empty()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return instrument.fired, bench, task


@pytest.mark.parametrize("way", [cancel_the_nursery, stop_at_once, cancel_on_the_server])
async def test_ended_at_every_step(autojump_clock: MockClock, tmp_path: Path, way: Way) -> None:
    step = 0
    while await _scenario(tmp_path / str(step), way, step := step + 1):
        assert step < 2000
    assert step > 30, "the scenario is too short to mean anything"


async def test_every_lost_answer_alone_changes_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    routes = ("start", "progress", "session", "messages", "usage", "status", "complete")
    for number, route in enumerate(routes):
        async with open_fake_server() as server:
            config = make_config(tmp_path / str(number))
            async with client_of(server, config) as client, trio.open_nursery() as tasks:
                agents = Agents(SCRIPT)
                backlog = Backlog(client, config.home.journals)
                runner = TaskRunner(config, client, open_agent=agents.open, backlog=backlog, env={})
                pool = TaskPool(1, tasks, runner.run, backlog.owes)
                bench = Bench(server, client, config, pool, agents, runner, backlog)
                server.fail_next(f".*/{route}", LOSE_RESPONSE)
                task = await bench.run(bench.add())
            assert task.status == COMPLETED
            assert task.seqs == [1, 2, 3, 4]
            assert task.session["session_id"] == "s1"
            assert ("claude", "opus") in task.usage
            assert RUNTIME.id == task.runtime_id
            assert uid("task") == task.id


async def test_a_cancel_is_acknowledged_when_the_agent_has_stopped(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """To a server that offers it, once, and before the rest is reported."""
    for offered in (True, False):
        async with open_bench(tmp_path / str(offered), Script(steps=(text("a"), 60.0))) as bench:
            if offered:
                bench.client.offers.learn([MACHINE_REPORTS])
            bench.hand_over(task := bench.add())
            await trio.sleep(2)
            task.status = CANCELLED
            await bench.pool.wait_empty()
            routes = bench.routes(task)
            assert routes.count("cancel-ack") == offered
            if offered:
                assert routes.index("cancel-ack") < routes.index("usage")
            assert bench.agents.alive == 0
