"""What a person waits for: from assigning to a spawned agent, from a written line to the page.

A whole Bullpen runs as users start it; the agent program is a script that notes when it was
spawned and stamps what it says. All clocks are this machine's wall clock.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import trio
import trio_websocket

from bench.figures import Figure, spread
from tests.support.bullpen import Bullpen, start_up

_QUIET = 0.7
"""Seconds between lines such that each ends a quiet period (batches are at most 0.5 s apart)."""
_BUSY = 0.02


@contextmanager
def timed_bullpen(root: Path) -> Iterator[Bullpen]:
    """`bullpen up` whose only agent is the timed one, registered as `claude`."""
    marks = root / "marks"
    marks.mkdir()
    program = root / "claude"
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "2.1.197 (Claude Code)"; exit; fi\n'
        f'date +%s%N > "{marks}/$MULTICA_TASK_ID"\n'
        f'exec "{sys.executable}" "{Path(__file__).with_name("speaker.py")}"\n'
    )
    program.chmod(0o755)
    env = {"BULLPEN_CLAUDE_PATH": str(program), "BENCH_MARKS": str(marks)}
    env |= {key: value for key, value in os.environ.items() if key.startswith("BENCH_")}
    with start_up(root / "home", env=env, agents="claude") as bullpen:
        yield bullpen


def spawn_latency(bullpen: Bullpen, marks: Path, rounds: int) -> list[Figure]:
    """Issue assigned (request sent) → agent process spawned (its first instruction)."""
    waits: list[float] = []
    with bullpen.api() as api:
        agents = api.get("/api/agents").raise_for_status().json()
        for number in range(rounds):
            asked = time.time_ns()
            issue = api.post(
                "/api/issues",
                json={
                    "title": f"round {number}",
                    "assignee_type": "agent",
                    "assignee_id": agents[0]["id"],
                },
            )
            issue.raise_for_status()
            task = bullpen.wait_for_task(issue.json()["id"], "completed", "failed")
            spawned = int((marks / task["id"]).read_text())
            waits.append((spawned - asked) / 1e6)
    return spread("issue assigned → agent process spawned", waits, "ms")


def line_latency(bullpen: Bullpen, name: str) -> list[Figure]:
    """Agent line written → frame received by a browser-like websocket client."""
    waits: list[float] = []
    told = bullpen.told

    async def watch() -> None:
        url = told["url"].replace("http://", "ws://") + f"/ws?workspace_id={told['workspace_id']}"
        async with trio_websocket.open_websocket_url(url) as socket:
            auth = {"type": "auth", "payload": {"token": told["token"]}}
            await socket.send_message(json.dumps(auth))
            with bullpen.api() as api:
                agents = api.get("/api/agents").raise_for_status().json()
                api.post(
                    "/api/issues",
                    json={
                        "title": f"{name} {time.time_ns()}",
                        "assignee_type": "agent",
                        "assignee_id": agents[0]["id"],
                    },
                ).raise_for_status()
            with trio.fail_after(120):
                while True:
                    frame = json.loads(await socket.get_message())
                    seen = time.time_ns()
                    if frame.get("type") == "task:message":
                        written = (frame["payload"].get("input") or {}).get("at")
                        if written:
                            waits.append((seen - written) / 1e6)
                    if frame.get("type") in {"task:completed", "task:failed"}:
                        return

    trio.run(watch)
    return spread(f"agent line written → frame at the browser, {name}", waits, "ms")


def idle_cost(bullpen: Bullpen, seconds: float) -> list[Figure]:
    """Memory and CPU of server and daemon with nothing to do."""
    told = bullpen.told
    figures = []
    processes = {
        "server": psutil.Process(told["server_pid"]),
        "daemon": psutil.Process(told["daemon_pid"]),
    }
    before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    time.sleep(seconds)
    for name, process in processes.items():
        used = sum(process.cpu_times()[:2]) - before[name]
        figures.append(Figure(f"{name}: memory (RSS)", process.memory_info().rss / 2**20, "MiB"))
        figures.append(Figure(f"{name}: idle CPU", 100 * used / seconds, "% of a core"))
    return figures


def measure(root: Path, *, quick: bool) -> list[Figure]:
    """All latencies; starts three Bullpens, one per way of speaking."""
    figures: list[Figure] = []
    rounds = 10 if quick else 50
    ways = (("after a quiet period", _QUIET, 12 if quick else 40), ("busy", _BUSY, 200))
    with timed_bullpen(_fresh(root, "spawn")) as bullpen:
        figures += spawn_latency(bullpen, root / "spawn" / "marks", rounds)
        figures += idle_cost(bullpen, 5 if quick else 20)
    for name, pause, lines in ways:
        os.environ |= {"BENCH_LINES": str(lines), "BENCH_EVERY": str(pause)}
        with timed_bullpen(_fresh(root, name.split()[-1])) as bullpen:
            figures += line_latency(bullpen, name)
        del os.environ["BENCH_LINES"], os.environ["BENCH_EVERY"]
    return figures


def _fresh(root: Path, name: str) -> Path:
    path = root / name
    path.mkdir(parents=True)
    return path
