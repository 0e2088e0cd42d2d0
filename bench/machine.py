"""What a daemon costs its machine with one runtime and with fifty, and how fast a wake-up is.

A whole Bullpen runs as users start it. The other runtimes are runtime profiles of the same agent
program. The wake-up's clock starts when another listener of the same runtime receives the frame,
which the server sends to both at once, and stops at the agent's first instruction.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import trio
import trio_websocket

from bench.figures import Figure, spread
from bench.latency import timed_bullpen
from tests.support.bullpen import Bullpen, wait_for

_MANY = 50
_SETTLE = 3.0
"""Seconds after the last registration before idleness is measured."""


def idle_cost(bullpen: Bullpen, runtimes: int, seconds: float) -> list[Figure]:
    """Memory and CPU of the daemon with nothing to do."""
    time.sleep(_SETTLE)
    daemon = psutil.Process(bullpen.told["daemon_pid"])
    before = sum(daemon.cpu_times()[:2])
    time.sleep(seconds)
    used = sum(daemon.cpu_times()[:2]) - before
    name = f"daemon, {runtimes} runtime{'s' if runtimes > 1 else ''}"
    note = f"over {seconds:g} s"
    return [
        Figure(f"{name}: memory (RSS)", daemon.memory_info().rss / 2**20, "MiB"),
        Figure(f"{name}: idle CPU", 100 * used / seconds, "% of a core", note),
    ]


def add_runtimes(bullpen: Bullpen, program: Path, total: int) -> None:
    """Make runtime profiles until the machine has `total` runtimes."""
    told = bullpen.told
    with bullpen.api() as api:
        for number in range(total - 1):
            api.post(
                f"/api/workspaces/{told['workspace_id']}/runtime-profiles",
                json={
                    "display_name": f"Profile {number}",
                    "protocol_family": "claude",
                    "command_name": str(program),
                },
            ).raise_for_status()

        def all_there() -> bool:
            rows = api.get("/api/runtimes").raise_for_status().json()
            return sum(row["status"] == "online" for row in rows) == total

        wait_for(f"{total} runtimes", all_there, seconds=120)


def wake_latency(bullpen: Bullpen, marks: Path, rounds: int, runtimes: int) -> list[Figure]:
    """Frame with a task at the daemon → its agent's first instruction."""
    waits: list[float] = []
    told = bullpen.told
    with bullpen.api() as api:
        [agent] = api.get("/api/agents").raise_for_status().json()

        def assign() -> Any:
            issue = {
                "title": f"wake {time.time_ns()}",
                "assignee_type": "agent",
                "assignee_id": agent["id"],
            }
            return api.post("/api/issues", json=issue).raise_for_status().json()

        async def listen() -> None:
            query = f"runtime_ids={agent['runtime_id']}"
            url = told["url"].replace("http://", "ws://") + f"/api/daemon/ws?{query}"
            headers = [(b"Authorization", f"Bearer {told['token']}".encode())]
            async with trio_websocket.open_websocket_url(url, extra_headers=headers) as socket:
                for _ in range(rounds):
                    issue = await trio.to_thread.run_sync(assign)
                    with trio.fail_after(60):
                        frame = json.loads(await socket.get_message())
                    seen = time.time_ns()
                    assert frame["type"] == "daemon:task_available", frame
                    done = partial(bullpen.wait_for_task, issue["id"], "completed", "failed")
                    task = await trio.to_thread.run_sync(done)
                    waits.append((int((marks / task["id"]).read_text()) - seen) / 1e6)

        trio.run(listen)
    name = f"wake-up frame → agent process spawned, {runtimes} runtimes"
    return spread(name.replace(" 1 runtimes", " 1 runtime"), waits, "ms")


def measure(root: Path, *, quick: bool) -> list[Figure]:
    """One Bullpen: first with one runtime, then with fifty."""
    root.mkdir(parents=True)
    rounds, seconds = (8, 15.0) if quick else (40, 60.0)
    figures: list[Figure] = []
    with timed_bullpen(root) as bullpen:
        for runtimes in (1, _MANY):
            if runtimes > 1:
                add_runtimes(bullpen, root / "claude", runtimes)
            figures += idle_cost(bullpen, runtimes, seconds)
            figures += wake_latency(bullpen, root / "marks", rounds, runtimes)
    return figures
