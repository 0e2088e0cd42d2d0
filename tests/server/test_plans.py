"""The hot paths stay fast when the tables are large: the planner takes the indexes made for them.

The statements are those that the real functions send, with their real arguments, explained with the
generic plans the server uses (`server/database.py`), on a million finished and a hundred thousand
queued tasks.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from server.database import Database
from server.dispatch import claim, finish, heartbeat, reachability, sweeper
from server.store.queries import Connection
from server.store.tasks import SQL, Caller
from shared.wire.task import CompleteRequest
from tests.support import many_tasks
from tests.support.postgres import open_test_database
from tests.support.rows import World, make_world

pytestmark = pytest.mark.postgres

FINISHED = 1_000_000
QUEUED = 100_000

LARGE = {"agent_task_queue", "issue", "comment", "task_message", "task_token"}

INTENDED = {
    "empty claim": {"task_queued"},
    "claim": {"task_queued", "task_in_flight", "task_issue"},
    "sweeper: left_behind": {"task_in_flight_runtime"},
    "sweeper: expired_tasks": {"task_queued_since"},
}
"""Which indexes the paths are built on; everywhere else it is enough that little is read."""

Sent = list[tuple[str, tuple[Any, ...]]]


async def statements(
    database: Database, unit: Callable[[Connection], Awaitable[Any]]
) -> tuple[Any, Sent]:
    """Run a unit as one write; return its value and what it sent."""
    sent: Sent = []

    async def run(conn: Any) -> Any:
        with conn.query_logger(lambda record: sent.append((record.query, record.args))):
            return await unit(conn)

    return await database.write(run, deadline=60), sent


async def plan(conn: Connection, query: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """The generic plan of a statement, with what running it touched."""
    await conn.execute(f"prepare hot as {query.rstrip().rstrip(';')}")
    given = ", ".join(literal(value) for value in args)
    explain = "explain (analyze, buffers, format json) execute hot"
    text = await conn.fetchval(f"{explain}({given})" if args else explain)
    await conn.execute("deallocate hot")
    found: dict[str, Any] = (json.loads(text) if isinstance(text, str) else text)[0]["Plan"]
    return found


def literal(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if isinstance(value, timedelta):
        return f"interval '{value.total_seconds()} seconds'"
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        return "'{" + ", ".join(json.dumps(item) for item in value).replace("'", "''") + "}'"
    text = value if isinstance(value, str) else json.dumps(value)
    return "'" + text.replace("'", "''") + "'"


def nodes(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield found
    for child in found.get("Plans", ()):
        yield from nodes(child)


def assert_narrow(name: str, found: dict[str, Any]) -> set[str]:
    """No large table is read whole, and little is touched; returns the indexes used."""
    indexes = set()
    for node in nodes(found):
        whole = node["Node Type"] == "Seq Scan" and node.get("Relation Name") in LARGE
        assert not (whole and node["Actual Loops"]), f"{name} reads all of {node['Relation Name']}"
        read = node.get("Actual Rows", 0) * node["Actual Loops"]
        read += node.get("Rows Removed by Filter", 0) * node["Actual Loops"]
        assert node.get("Relation Name") not in LARGE or read <= 5000, (
            f"{name}: {read} rows, {node}"
        )
        if "Index Name" in node:
            indexes.add(node["Index Name"])
    pages = found["Shared Hit Blocks"] + found["Shared Read Blocks"]
    assert pages < 5000, f"{name} touches {pages} pages"
    return indexes


async def test_hot_statements_use_their_indexes_on_large_tables() -> None:
    async with open_test_database(pool_size=2) as (database, _):
        world = await make_world(database)
        runtimes = await database.write(
            lambda conn: many_tasks.fill(conn, world, finished=FINISHED, queued=QUEUED),
            deadline=300,
        )
        await database.write(many_tasks.settle, one_statement=True, deadline=300)
        used: dict[str, set[str]] = {}
        for name, sent in (await hot(database, world, runtimes[0])).items():

            async def explain(conn: Connection, name: str = name, sent: Sent = sent) -> None:
                for query, args in sent:
                    used.setdefault(name, set()).update(
                        assert_narrow(name, await plan(conn, query, args))
                    )

            with pytest.raises(Undone):
                await database.write(undoing(explain), deadline=60)
        for name, indexes in INTENDED.items():
            assert indexes <= used[name], f"{name} takes {used[name]}, not {indexes}"


class Undone(Exception):
    """Rolls a transaction back that only looked."""


def undoing(
    work: Callable[[Connection], Awaitable[None]],
) -> Callable[[Connection], Awaitable[None]]:
    async def unit(conn: Connection) -> None:
        await work(conn)
        raise Undone

    return unit


async def hot(database: Database, world: World, runtime_id: str) -> dict[str, Sent]:
    """What each hot path sends, in the order of a task's life."""
    found: dict[str, Sent] = {}

    async def record(name: str, unit: Callable[[Connection], Awaitable[Any]]) -> Any:
        value, found[name] = await statements(database, unit)
        return value

    await record("empty claim", lambda conn: claim.claim(conn, world.runtime_id))
    task, _ = await record("claim", lambda conn: claim.claim(conn, runtime_id))
    await record(
        "heartbeat",
        lambda conn: heartbeat.take_beat(
            conn, runtime_id=runtime_id, caller=Caller(user_id=world.user_id)
        ),
    )
    who = (world.user_id, None)
    row = {"seq": 1, "type": "text", "content": "x"}
    await record("messages", lambda conn: conn.fetch(SQL.add_messages, task.id, *who, [row]))
    await record("start", lambda conn: conn.fetch(SQL.start, task.id, *who, ["dispatched"]))
    await record(
        "complete", lambda conn: finish.complete(conn, task.id, CompleteRequest(output="done"))
    )
    again, _ = await database.write(lambda conn: claim.claim(conn, runtime_id))
    await database.write(lambda conn: conn.fetch(SQL.start, again.id, *who, ["dispatched"]))
    lost = [again.id]
    await record("give up", lambda conn: finish.fail_many(conn, lost, sweeper.OFFLINE))
    await record("come back", lambda conn: reachability.came_back(conn, [runtime_id]))
    await record("go on", lambda conn: finish.go_on(conn, again.id))
    for rule in sweeper.rules(150.0):
        await record(f"sweeper: {rule.name}", rule.find)
    return found
