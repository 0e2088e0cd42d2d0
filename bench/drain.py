"""How fast a daemon takes in what an agent says: from the agent's pipe to the server's answer.

A real agent process that says all it has at once, the task pipeline of one daemon in this process
with its journal on disk, and a server in memory that takes every batch. So the figures are the
daemon's alone.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from statistics import median

import trio

from bench.figures import Figure
from daemon.agents.contract import Program
from daemon.agents.launch import open_agent
from daemon.runtimes.info import RuntimeInfo
from daemon.tasks.backlog import Backlog
from daemon.tasks.pool import open_pool
from shared import codec
from shared.log import set_up
from shared.wire.task import COMPLETED, DISPATCHED, ClaimedTask
from tests.support.fake_server import WORKSPACE, client_of, make_config, open_fake_server, uid

_SPEAKER = Path(__file__).with_name("speaker.py")


def measure(root: Path, *, quick: bool = False) -> list[Figure]:
    """Run some talkative tasks, one after the other and then several at once."""
    calls = 2_000 if quick else 10_000
    rounds = 2 if quick else 5
    root.mkdir(parents=True)
    set_up("warning")
    os.environ |= {"BENCH_LINES": str(calls), "BENCH_EVERY": "0"}
    alone = [trio.run(_talk, root / f"alone{n}", 1, calls) for n in range(rounds)]
    before = resource.getrusage(resource.RUSAGE_SELF)
    together = [trio.run(_talk, root / f"together{n}", 4, calls) for n in range(rounds)]
    after = resource.getrusage(resource.RUSAGE_SELF)
    items = rounds * 4 * (2 * calls)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    how = f"{2 * calls} items a task, median of {rounds}; the agent process shares the cores"
    return [
        Figure("transcript through the daemon, 1 agent", median(alone), "items/s", how),
        Figure("transcript through the daemon, 4 agents", median(together), "items/s", how),
        Figure("the daemon's processor time an item", 1e6 * spent / items, "µs", "4 agents"),
    ]


async def _talk(home: Path, agents: int, calls: int) -> float:
    """Let agents talk as fast as they are heard; return items a second."""
    program = Program(
        provider="claude", path=sys.executable, version="2.1.0", args=(str(_SPEAKER),)
    )
    runtime = RuntimeInfo(
        id=uid("runtime"), workspace_id=WORKSPACE, provider="claude", program=program
    )
    async with open_fake_server() as server:
        config = make_config(home)
        async with client_of(server, config) as client:
            backlog = Backlog(client, config.home.journals)
            began = time.perf_counter()
            async with open_pool(config, client, backlog, open_agent=open_agent) as pool:
                tasks = [server.add_task(runtime.id, uid(f"task {n}")) for n in range(agents)]
                for task in tasks:
                    task.status = DISPATCHED
                    slot = pool.try_take_slot()
                    assert slot is not None
                    claimed = codec.structure({**task.claimed, "status": DISPATCHED}, ClaimedTask)
                    pool.hand_over(claimed, slot, runtime)
            took = time.perf_counter() - began
        for task in tasks:
            assert task.status == COMPLETED, task.result
            assert task.seqs == list(range(1, 2 * calls + 1)), "rows are missing"
    return agents * 2 * calls / took
