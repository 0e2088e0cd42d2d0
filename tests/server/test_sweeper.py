"""The sweeper's rules, each against rows that it must and must not touch."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any

import attrs
import pytest
import trio

from server.config import DAY, Kept
from server.consequences import Consequence, Counted, TaskAvailable
from server.database import Database
from server.dispatch import finish, heartbeat, sweeper
from server.dispatch.claim import claim
from server.push.hub import Hub
from server.store.queries import Connection
from server.store.tasks import Caller, get_task, task_of
from shared import codec
from shared.ids import new_id
from shared.wire.event import Event
from shared.wire.task import CompleteRequest
from tests.conftest import ExpectedErrors
from tests.support.postgres import open_test_database
from tests.support.rows import World, insert, make_issue, make_runtime, make_task, make_world
from tests.support.statements import counted

pytestmark = pytest.mark.postgres

AFTER = timedelta(seconds=150)


@attrs.frozen
class Settings:
    offline_after: float = 150.0
    offline_grace: float = 900.0
    sweep_interval: float = 0.01
    kept = Kept()


def kinds(consequences: list[Consequence]) -> list[str]:
    return [c.type if isinstance(c, Event) else type(c).__name__ for c in consequences]


async def ago(conn: Connection, table: str, row_id: str, **columns: float) -> None:
    for column, seconds in columns.items():
        await conn.execute(
            f"update {table} set {column} = now() - $2::interval where id = $1",
            row_id,
            timedelta(seconds=seconds),
        )


async def aged_task(
    database: Database, world: World, *, since: dict[str, float] | None = None, **columns: Any
) -> str:
    async def unit(conn: Connection) -> str:
        task_id = await make_task(conn, world, **columns)
        await ago(conn, "agent_task_queue", task_id, **(since or {}))
        return task_id

    return await database.write(unit)


async def failed(database: Database) -> dict[str, str]:
    """Failed tasks and why."""
    rows = await database.read(
        lambda conn: conn.fetch(
            "select id, failure_reason from agent_task_queue where status = 'failed'"
        )
    )
    return {row["id"]: row["failure_reason"] for row in rows}


async def unreachable_for(database: Database, task_id: str, seconds: float) -> None:
    await database.write(
        lambda conn: ago(conn, "agent_task_queue", task_id, unreachable_since=seconds)
    )


async def test_silent_runtimes_are_offline_and_what_they_run_is_unreachable() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)

        async def fill(conn: Connection) -> tuple[str, str, str]:
            silent = await make_runtime(conn, world.workspace_id, world.user_id)
            await ago(conn, "agent_runtime", silent, last_seen_at=46)
            await ago(conn, "agent_runtime", world.runtime_id, last_seen_at=44)
            issue = await make_issue(conn, world)
            lost = await make_task(
                conn, world, runtime_id=silent, status="running", issue_id=issue.id
            )
            kept = await make_task(conn, world, status="running", autopilot_run_id=new_id())
            return silent, lost, kept

        silent, lost, _ = await database.write(fill)
        after, grace = timedelta(seconds=45), timedelta(seconds=900)
        told = await database.write(partial(sweeper.stale_runtimes, after=after))
        assert [(c.type, c.payload) for c in told if isinstance(c, Event)] == [
            ("daemon:register", {"action": "stale_sweep"})
        ]
        rows = await database.read(lambda conn: conn.fetch("select id, status from agent_runtime"))
        assert {row["id"]: row["status"] for row in rows} == {
            silent: "offline",
            world.runtime_id: "online",
        }
        (event,) = await database.write(sweeper.unreachable_tasks)
        assert isinstance(event, Event)
        assert (event.type, event.payload["task_id"]) == ("task:unreachable", lost)
        assert (event.payload["status"], bool(event.payload["unreachable_since"])) == (
            "running",
            True,
        )
        assert await database.write(sweeper.unreachable_tasks) == []
        # It may come back.
        await unreachable_for(database, lost, 890)
        assert await database.write(partial(sweeper.left_behind, after=grace)) == []
        assert await failed(database) == {}
        await unreachable_for(database, lost, 910)
        told = await database.write(partial(sweeper.left_behind, after=grace))
        assert await failed(database) == {lost: "runtime_offline"}
        # The new attempt waits for the machine that the agent is on now.
        retry = await database.read(
            lambda conn: conn.fetchval(
                "select runtime_id from agent_task_queue where parent_task_id = $1", lost
            )
        )
        assert retry == world.runtime_id
        assert "TaskAvailable" in kinds(told)
        assert await database.write(partial(sweeper.stale_runtimes, after=after)) == []
        assert await database.write(partial(sweeper.left_behind, after=grace)) == []


async def test_a_machine_that_comes_back_has_lost_nothing() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task_id = await aged_task(
            database, world, status="dispatched", since={"dispatched_at": 2000}
        )
        await database.write(
            lambda conn: conn.execute("update agent_runtime set status = 'offline'")
        )
        await database.write(sweeper.unreachable_tasks)
        await unreachable_for(database, task_id, 800)
        # While it is away it is not merely late.
        assert await database.write(sweeper.stuck_tasks) == []
        (online, ready, event), _ = await counted(database, partial(beat_of, world=world))
        assert ready == Counted("runtime_ready")
        assert [c.type for c in (online, event) if isinstance(c, Event)] == [
            "daemon:register",
            "task:unreachable",
        ]
        assert isinstance(event, Event)
        assert event.payload["unreachable_since"] is None
        # It has the length of a lease to say that it is still preparing.
        assert await database.write(sweeper.stuck_tasks) == []
        assert await database.write(sweeper.reachable_tasks) == []
        assert await failed(database) == {}


async def beat_of(conn: Connection, world: World) -> list[Consequence]:
    _, told = await heartbeat.take_beat(
        conn, runtime_id=world.runtime_id, caller=Caller(user_id=world.user_id)
    )
    return told


async def test_a_machine_that_was_given_up_may_bring_its_results_along() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        issue = await database.write(lambda conn: make_issue(conn, world))
        task_id = await aged_task(database, world, status="running", issue_id=issue.id)
        await database.write(
            lambda conn: conn.execute("update agent_runtime set status = 'offline'")
        )
        await unreachable_for(database, task_id, 1000)
        await database.write(partial(sweeper.left_behind, after=AFTER))
        await database.write(partial(beat_of, world=world))
        # The new attempt leaves it the time to do so.
        assert (await database.write(partial(claim, runtime_id=world.runtime_id)))[0] is None
        done, _ = await database.write(
            partial(finish.complete, task_id=task_id, request=CompleteRequest(output="Did it."))
        )
        assert done.status == "completed"


async def test_a_machine_that_registers_anew_is_noticed_by_the_sweeper() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task_id = await aged_task(database, world, status="running")
        await unreachable_for(database, task_id, 10_000)
        assert await database.write(partial(sweeper.left_behind, after=AFTER)) == []
        assert kinds(await database.write(sweeper.reachable_tasks)) == ["task:unreachable"]


async def test_the_task_shows_since_when_it_is_unreachable() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task_id = await aged_task(database, world, status="running")
        await unreachable_for(database, task_id, 60)
        row = await database.read(lambda conn: get_task(conn, task_id))
        assert row is not None
        shown = codec.unstructure(task_of(row))
        assert shown["status"] == "running"
        assert shown["unreachable_since"].endswith("Z")


async def test_a_claim_that_is_never_heard_is_given_up() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        issue = await database.write(lambda conn: make_issue(conn, world))
        task_id = await aged_task(database, world, issue_id=issue.id)
        handed = 0
        for _ in range(10):
            task, _ = await database.write(partial(claim, runtime_id=world.runtime_id))
            if task is None:
                break
            assert task.id == task_id
            handed += 1
            await database.write(
                lambda conn: ago(
                    conn,
                    "agent_task_queue",
                    task_id,
                    dispatched_at=91,
                    prepare_lease_expires_at=46,
                )
            )
            if handed < 5:
                assert await database.write(sweeper.undeliverable_tasks) == []
        assert handed == 5
        told = await database.write(sweeper.undeliverable_tasks)
        assert "task:failed" in kinds(told)
        row = await database.read(lambda conn: get_task(conn, task_id))
        assert row is not None
        assert (row["failure_reason"], row["error"]) == (
            "timeout",
            "task was handed to its runtime five times and never started",
        )


async def test_parked_tasks_are_announced_and_do_not_expire() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        old = {"created_at": 90_000.0}
        later = await aged_task(database, world, since=old | {"not_before": -3600})
        due = await aged_task(database, world, since=old | {"not_before": 5})
        assert await database.write(sweeper.due_tasks) == [TaskAvailable(world.runtime_id, due)]
        assert await database.write(sweeper.expired_tasks) == []
        await database.write(lambda conn: ago(conn, "agent_task_queue", due, not_before=7300))
        await database.write(sweeper.expired_tasks)
        assert await failed(database) == {due: "queued_expired"}
        assert later


@pytest.mark.parametrize(
    ("status", "since", "ends"),
    [
        ("dispatched", {"dispatched_at": 290}, False),
        ("dispatched", {"dispatched_at": 310}, True),
        ("dispatched", {"dispatched_at": 310, "prepare_lease_expires_at": -30}, False),
        ("dispatched", {"dispatched_at": 310, "prepare_lease_expires_at": 1}, True),
        ("dispatched", {"dispatched_at": 90000, "prepare_lease_expires_at": -30}, True),
        (
            "waiting_local_directory",
            {"dispatched_at": 4000, "prepare_lease_expires_at": 200},
            False,
        ),
        ("waiting_local_directory", {"dispatched_at": 4000, "prepare_lease_expires_at": 310}, True),
        ("running", {"dispatched_at": 9100, "started_at": 8900}, False),
        ("running", {"dispatched_at": 9100, "started_at": 9010}, True),
        ("running", {"dispatched_at": 90000, "started_at": 90000}, True),
        ("queued", {}, False),
        ("completed", {"dispatched_at": 90000}, False),
    ],
)
async def test_stuck_tasks(status: str, since: dict[str, float], ends: bool) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task_id = await aged_task(database, world, status=status, since=since)
        await database.write(sweeper.stuck_tasks)
        assert await failed(database) == ({task_id: "timeout"} if ends else {})


async def test_a_long_run_that_still_speaks_goes_on() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task_id = await aged_task(database, world, status="running", since={"started_at": 20000})
        await database.write(
            lambda conn: conn.execute(
                "insert into task_message (task_id, seq, type) values ($1, 1, 'text')", task_id
            )
        )
        await database.write(sweeper.stuck_tasks)
        assert await failed(database) == {}


async def test_tasks_that_nobody_fetches_expire() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        old = {"created_at": 7300.0}
        running = await aged_task(database, world, status="running", autopilot_run_id=new_id())
        waiting = await aged_task(database, world, since=old)
        young = await aged_task(database, world, since={"created_at": 7100.0})
        await database.write(sweeper.expired_tasks)
        assert await failed(database) == {}
        await database.write(
            lambda conn: conn.execute(
                "update agent_task_queue set status = 'completed' where id = $1", running
            )
        )
        await database.write(sweeper.expired_tasks)
        assert await failed(database) == {waiting: "queued_expired"}
        left = await database.read(
            lambda conn: conn.fetch("select id from agent_task_queue where status = 'queued'")
        )
        # It expired, so it is not tried again.
        assert [row["id"] for row in left] == [young]


@pytest.mark.parametrize(
    ("rule", "columns", "since", "change"),
    [
        (
            sweeper.stuck_tasks,
            {"status": "running"},
            {"started_at": 9100, "dispatched_at": 9100},
            "insert into task_message (task_id, seq, type) values ($1, 1, 'text')",
        ),
        (
            sweeper.expired_tasks,
            {"status": "queued"},
            {"created_at": 7300},
            "update agent_task_queue set not_before = now() where id = $1",
        ),
        (
            partial(sweeper.left_behind, after=timedelta(seconds=900)),
            {"status": "running"},
            {"started_at": 2000, "unreachable_since": 1000},
            "update agent_task_queue set unreachable_since = null, back_at = now() where id = $1",
        ),
        (
            sweeper.undeliverable_tasks,
            {"status": "dispatched", "deliveries": 5},
            {"dispatched_at": 200},
            "update agent_task_queue set dispatched_at = now() where id = $1",
        ),
    ],
    ids=["stuck", "expired", "left behind", "undeliverable"],
)
async def test_what_has_changed_while_it_was_locked_is_let_alone(
    rule: Any, columns: dict[str, Any], since: dict[str, float], change: str
) -> None:
    async with open_test_database(pool_size=4) as (database, _):
        world = await make_world(database)
        offline = "update agent_runtime set status = 'offline'"
        task_id = await aged_task(database, world, since=since, **columns)
        if "unreachable_since" in since:
            await database.write(lambda conn: conn.execute(offline))
        held, found = asyncio.Event(), asyncio.Event()

        async def hold(conn: Connection) -> None:
            await conn.execute(
                "select from agent_task_queue where id = $1 for no key update", task_id
            )
            held.set()
            await found.wait()
            await conn.execute(change, task_id)

        async def sweep(conn: Connection) -> list[Consequence]:
            await held.wait()
            told: list[Consequence] = await rule(conn)
            return told

        async def wait_for_the_sweep() -> None:
            waiting = (
                "select from pg_stat_activity"
                " where datname = current_database() and wait_event_type = 'Lock'"
            )
            while not await database.read(lambda conn: conn.fetch(waiting)):  # noqa: ASYNC110
                await trio.sleep(0.01)
            await database.read(set_found)

        async def set_found(_: Connection) -> None:
            found.set()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(database.write, hold, deadline=30))
                nursery.start_soon(partial(database.write, sweep, deadline=30))
                nursery.start_soon(wait_for_the_sweep)
        assert await failed(database) == {}
        # Without anybody in the way it is what the rule looks for.
        other = await aged_task(database, world, since=since, **columns)
        await database.write(rule)
        assert list(await failed(database)) == [other]


async def test_what_is_forgotten() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        week = 7 * 86400 + 10.0

        async def fill(conn: Connection) -> tuple[str, str, str]:
            unused, with_task, away = [
                await make_runtime(conn, world.workspace_id, world.user_id, status="offline")
                for _ in range(3)
            ]
            for runtime_id in (unused, with_task, world.runtime_id):
                await ago(conn, "agent_runtime", runtime_id, last_seen_at=week)
            await conn.execute("update agent_runtime set status = 'offline'")
            task_id = await make_task(conn, world, runtime_id=with_task, status="completed")
            for hours, name in ((-1, "live"), (1, "dead")):
                await conn.execute(
                    "insert into task_token (token_hash, task_id, agent_id, workspace_id, user_id,"
                    " expires_at) values ($1, $2, $3, $4, $5, now() - $6::interval)",
                    name,
                    task_id,
                    world.agent_id,
                    world.workspace_id,
                    world.user_id,
                    timedelta(hours=hours),
                )
            return unused, with_task, away

        _, with_task, away = await database.write(fill)
        told = await database.write(sweeper.forget)
        assert [c.payload for c in told if isinstance(c, Event)] == [{"action": "runtime_gc"}]
        rows = await database.read(lambda conn: conn.fetch("select id from agent_runtime"))
        assert {row["id"] for row in rows} == {world.runtime_id, away}
        tasks = await database.read(
            lambda conn: conn.fetch("select runtime_id from agent_task_queue")
        )
        assert [row["runtime_id"] for row in tasks] == [with_task]
        tokens = await database.read(lambda conn: conn.fetch("select token_hash from task_token"))
        assert [row["token_hash"] for row in tokens] == ["live"]


@pytest.mark.parametrize(("days", "left"), [(3, 0), (5, 1)])
async def test_how_long_records_are_kept_is_a_setting(days: float, left: int) -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)

        async def fill(conn: Connection) -> None:
            await insert(
                conn,
                "inbox_item",
                workspace_id=world.workspace_id,
                recipient_type="member",
                recipient_id=world.user_id,
                type="mentioned",
                severity="info",
                title="x",
                archived=True,
            )
            await conn.execute("update inbox_item set created_at = now() - interval '4 days'")

        await database.write(fill)
        kept = Kept(archived=days * DAY)
        await database.write(lambda conn: sweeper.forget(conn, kept=kept))
        rows = await database.read(lambda conn: conn.fetch("select id from inbox_item"))
        assert len(rows) == left


async def test_several_processes_sweep_together() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)

        async def fill(conn: Connection) -> None:
            for _ in range(40):
                issue = await make_issue(conn, world, status="in_progress")
                task_id = await make_task(conn, world, status="dispatched", issue_id=issue.id)
                await ago(conn, "agent_task_queue", task_id, dispatched_at=400)

        await database.write(fill)
        events: list[Consequence] = []

        async def sweep() -> None:
            events.extend(await database.write(sweeper.stuck_tasks))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(sweep)
        assert kinds(events).count("task:failed") == 40
        assert kinds(events).count("TaskAvailable") == 40
        assert len(await failed(database)) == 40


async def test_the_service(error_log: ExpectedErrors) -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)
        await aged_task(database, world, status="dispatched", since={"dispatched_at": 400})
        hub = Hub()
        heard = trio.Event()

        def hear(consequence: Consequence) -> None:
            if isinstance(consequence, Event) and consequence.type == "task:failed":
                heard.set()

        hub.observe(hear)
        # A rule that cannot work must not keep the others from working.
        await database.write(lambda conn: conn.execute("alter table daemon_token rename to gone"))
        silent = await database.write(
            lambda conn: insert(
                conn,
                "agent_runtime",
                workspace_id=world.workspace_id,
                name="x",
                provider="x",
                status="online",
            )
        )
        await database.write(lambda conn: ago(conn, "agent_runtime", silent, created_at=1000))
        async with trio.open_nursery() as nursery:
            await nursery.start(sweeper.run_sweeper, database, hub, Settings())
            with trio.fail_after(10):
                await heard.wait()
                while not error_log.records:  # noqa: ASYNC110 - a log record is no event
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        error_log.expect("sweeping failed")
        # The process is young: silence may have been its own.
        status = await database.read(
            lambda conn: conn.fetchval("select status from agent_runtime where id = $1", silent)
        )
        assert status == "online"
