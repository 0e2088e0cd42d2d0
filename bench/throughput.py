"""How much one server process carries: claims, heartbeats, transcript rows per second.

One server process on its embedded Postgres, loaded from this process over keep-alive connections;
both share the machine's cores, so the figures are what this machine does, not what the server could.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import attrs
import httpx
import trio
import trio_websocket

from bench import ceiling, raw
from bench.figures import Figure, spread
from server.database import Database, open_database
from tests.support import many_tasks
from tests.support.bullpen import clean_environment, wait_for
from tests.support.rows import World

_CONNECTIONS = 16
_BATCH = 20
"""Rows per message batch: what a chatty agent makes in half a second."""


@attrs.frozen
class Target:
    """The server under load, and runtimes on it with one agent each."""

    url: str
    token: str
    database_url: str
    workspace_id: str
    user_id: str
    runtime_ids: tuple[str, ...]
    agent_ids: tuple[str, ...]


@contextmanager
def bare_server(root: Path) -> Iterator[dict[str, Any]]:
    """A server process alone, with its embedded Postgres; yields its ready file."""
    ready = root / "ready.json"
    words = [sys.executable, "-m", "server", "--home", str(root / "home"), "--port", "0"]
    with (root / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*words, "--setup", "--ready-file", str(ready)],
            env=clean_environment(LOG_LEVEL="warning"),
            stdout=log,
            stderr=log,
        )
    try:
        wait_for("the server", lambda: ready.exists() or None, seconds=60)
        yield json.loads(ready.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def prepare(told: dict[str, Any], runtimes: int = _CONNECTIONS) -> Target:
    """Register runtimes and make an agent for each that may run everything at once."""
    headers = {
        "Authorization": f"Bearer {told['token']}",
        "X-Workspace-ID": told["workspace_id"],
    }
    with httpx.Client(base_url=told["url"], headers=headers, trust_env=False) as api:
        ids, agents = [], []
        for number in range(runtimes):
            registered = api.post(
                "/api/daemon/register",
                json={
                    "workspace_id": told["workspace_id"],
                    "daemon_id": f"bench-{number}",
                    "device_name": "bench",
                    "runtimes": [{"name": "Bench", "type": "claude", "version": "2.1.0"}],
                },
            )
            ids.append(registered.raise_for_status().json()["runtimes"][0]["id"])
            agent = api.post(
                "/api/agents",
                json={
                    "name": f"bench {number}",
                    "runtime_id": ids[-1],
                    "max_concurrent_tasks": 1000,
                },
            )
            agents.append(agent.raise_for_status().json()["id"])
        return Target(
            url=told["url"],
            token=told["token"],
            database_url=told["postgres"]["url"],
            workspace_id=told["workspace_id"],
            user_id=told["user_id"],
            runtime_ids=tuple(ids),
            agent_ids=tuple(agents),
        )


_QUEUE = """
with numbered as (
    select n, gen_random_uuid() as issue_id,
           ($2::uuid[])[n % cardinality($2::uuid[]) + 1] as agent_id
    from generate_series(1, $3::int) as n
), issues as (
    insert into issue (id, workspace_id, number, title, creator_type, creator_id,
                       assignee_type, assignee_id)
    select issue_id, $1, $4::int + n, 'bench ' || n, 'agent', agent_id, 'agent', agent_id
    from numbered
    returning id, assignee_id
)
insert into agent_task_queue (workspace_id, agent_id, runtime_id, issue_id)
select $1, i.assignee_id, a.runtime_id, i.id
from issues i join agent a on a.id = i.assignee_id
"""


async def queue_tasks(database: Database, target: Target, count: int) -> None:
    """Empty our agents' queues, then fill them with `count` tasks, spread evenly."""

    async def unit(conn: asyncpg.Connection) -> None:
        mine = list(target.agent_ids)
        await conn.execute("delete from agent_task_queue where agent_id = any($1::uuid[])", mine)
        await conn.execute("delete from issue where assignee_id = any($1::uuid[])", mine)
        await conn.execute(_QUEUE, target.workspace_id, mine, count, 0)
        await conn.execute("analyze agent_task_queue")

    await database.write(unit)


async def _load(
    target: Target, seconds: float, call: Callable[[raw.Connection, int], Awaitable[bool]]
) -> tuple[int, list[float]]:
    """Run `call` on each connection until time or work is up; the count and single durations."""
    done = 0
    waits: list[float] = []

    async def worker(number: int) -> None:
        nonlocal done
        connection = await raw.connect(target.url, target.token)
        while True:
            started = trio.current_time()
            if not await call(connection, number):
                break
            waits.append(1000 * (trio.current_time() - started))
            done += 1
        await connection.aclose()

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for number in range(_CONNECTIONS):
                nursery.start_soon(worker, number)
    return done, waits


async def claims(database: Database, target: Target, count: int) -> tuple[list[Figure], list[str]]:
    """Claims until the queue is empty; also returns the claimed tasks' ids."""
    await queue_tasks(database, target, count)
    claimed: list[str] = []

    async def claim(connection: raw.Connection, number: int) -> bool:
        path = f"/api/daemon/runtimes/{target.runtime_ids[number]}/tasks/claim"
        answer = await connection.post(path)
        if answer["task"] is None:
            return False
        claimed.append(answer["task"]["id"])
        return True

    started = trio.current_time()
    done, waits = await _load(target, 120, claim)
    elapsed = trio.current_time() - started
    assert len(set(claimed)) == len(claimed), "a task was claimed twice"
    note = f"{_CONNECTIONS} claimers, {count} queued"
    figures = [Figure("claims", done / elapsed, "1/s", note), *spread("claim", waits, "ms", note)]
    return figures, claimed


async def claims_among_many(
    database: Database, target: Target, count: int, bare: float, *, quick: bool
) -> list[Figure]:
    """Claims again, in tables as they are after years; `bare` is the rate without all that."""
    finished, queued = (100_000, 10_000) if quick else (1_000_000, 100_000)
    world = World(
        user_id=target.user_id,
        workspace_id=target.workspace_id,
        slug="",
        runtime_id=target.runtime_ids[0],
        agent_id=target.agent_ids[0],
        token=target.token,
    )
    await database.write(
        lambda conn: many_tasks.fill(conn, world, finished=finished, queued=queued), deadline=900
    )
    await database.write(many_tasks.settle, one_statement=True, deadline=900)
    figures, _ = await claims(database, target, count)
    about = f"among {finished:,} finished and {queued:,} queued tasks"
    named = [
        Figure(f"{figure.name}, {about}", figure.value, figure.unit, figure.note)
        for figure in figures
    ]
    return [*named, Figure("claims there, compared with empty tables", named[0].value / bare, "x")]


async def heartbeats_http(target: Target, seconds: float) -> list[Figure]:
    async def beat(connection: raw.Connection, number: int) -> bool:
        await connection.post("/api/daemon/heartbeat", {"runtime_id": target.runtime_ids[number]})
        return True

    done, _ = await _load(target, seconds, beat)
    return [Figure("heartbeats over HTTP", done / seconds, "1/s", f"{_CONNECTIONS} connections")]


async def heartbeats_websocket(target: Target, seconds: float) -> list[Figure]:
    """One socket with all runtimes; a beat is sent when one of 16 outstanding is answered."""
    joined = "%2C".join(sorted(target.runtime_ids))
    url = f"{target.url.replace('http://', 'ws://')}/api/daemon/ws?runtime_ids={joined}"
    headers = [("Authorization", f"Bearer {target.token}")]
    done = 0
    async with trio_websocket.open_websocket_url(url, extra_headers=headers) as socket:

        async def beat(number: int) -> None:
            payload = {"runtime_id": target.runtime_ids[number % len(target.runtime_ids)]}
            await socket.send_message(json.dumps({"type": "daemon:heartbeat", "payload": payload}))

        for number in range(len(target.runtime_ids)):
            await beat(number)
        with trio.move_on_after(seconds):
            while True:
                frame = json.loads(await socket.get_message())
                if frame["type"] == "daemon:heartbeat_ack":
                    done += 1
                    await beat(done)
    return [Figure("heartbeats over a websocket", done / seconds, "1/s", "one socket")]


async def messages(target: Target, tasks: list[str], seconds: float) -> list[Figure]:
    """Transcript rows in batches of 20, each connection on a task of its own."""
    for task_id in tasks[:_CONNECTIONS]:
        connection = await raw.connect(target.url, target.token)
        await connection.post(f"/api/daemon/tasks/{task_id}/start")
        await connection.aclose()
    sent = [0] * _CONNECTIONS

    async def batch(connection: raw.Connection, number: int) -> bool:
        first = sent[number] + 1
        rows = [
            {"seq": seq, "type": "tool_result", "tool": "Bash", "output": "some output " * 10}
            for seq in range(first, first + _BATCH)
        ]
        await connection.post(f"/api/daemon/tasks/{tasks[number]}/messages", {"messages": rows})
        sent[number] += _BATCH
        return True

    done, waits = await _load(target, seconds, batch)
    note = f"batches of {_BATCH}, {_CONNECTIONS} connections"
    return [
        Figure("transcript rows", done * _BATCH / seconds, "1/s", note),
        *spread("transcript batch", waits, "ms", note),
    ]


def measure(root: Path, *, quick: bool) -> list[Figure]:
    root.mkdir(parents=True)
    with bare_server(root) as told:
        target = prepare(told)

        async def run() -> list[Figure]:
            seconds, count = (2.0, 800) if quick else (6.0, 3200)
            async with open_database(target.database_url) as database:
                await queue_tasks(database, target, count)
                script = ceiling.claim_script(target.runtime_ids, target.user_id)
                most = ceiling.run(
                    root, target.database_url, script, clients=_CONNECTIONS, each=count // 32
                )
                figures, claimed = await claims(database, target, count)
                figures.insert(1, most)
                share = 100 * figures[0].value / most.value
                figures.insert(2, Figure("claims as a share of pgbench's", share, "%"))
            figures += await heartbeats_http(target, seconds)
            figures += await heartbeats_websocket(target, seconds)
            figures += await messages(target, claimed, seconds)
            async with open_database(target.database_url) as database:
                figures += await claims_among_many(
                    database, target, count, figures[0].value, quick=quick
                )
            return figures

        return trio.run(run)
