"""A machine comes back with its agent at work: what giving its task up had caused is undone."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from server.consequences import Consequence
from server.database import Database
from server.dispatch import finish, heartbeat, sweeper
from server.dispatch.claim import claim
from server.dispatch.lifecycle import START
from server.dispatch.sweeper import OFFLINE
from server.errors import Invalid
from server.store.queries import Connection, load
from server.store.tasks import SQL, Caller
from shared.wire.task import CompleteRequest, FailRequest
from tests.server.test_finish import kinds, running, status_of
from tests.support.postgres import open_test_database
from tests.support.rows import (
    World,
    insert,
    make_autopilot_run,
    make_issue,
    make_task,
    make_world,
)

pytestmark = pytest.mark.postgres

CHAT = load("chat")
DONE = CompleteRequest(output="Did it after all.")


async def run(database: Database, unit: Any, **kwargs: Any) -> Any:
    """Run a unit that returns consequences, and return all it returns."""
    return await database.write(partial(unit, **kwargs))


async def fetch(database: Database, statement: str, *args: Any) -> list[Any]:
    return await database.read(lambda conn: conn.fetch(statement, *args))


async def execute(database: Database, statement: str, *args: Any) -> None:
    await database.write(lambda conn: conn.execute(statement, *args))


async def give_up(database: Database, task_id: str) -> list[Consequence]:
    return (await run(database, finish.fail_many, task_ids=[task_id], why=OFFLINE))[1]


async def start(database: Database, task_id: str) -> None:
    await database.write(
        lambda conn: conn.fetchrow(SQL.start, task_id, None, None, sorted(START.sources))
    )


async def claimed(database: Database, world: World) -> str | None:
    task, _ = await run(database, claim, runtime_id=world.runtime_id)
    return None if task is None else task.id


async def newest(database: Database, *, but: str) -> Any:
    rows = await fetch(
        database,
        "select * from agent_task_queue where id <> $1 order by created_at desc, status = 'queued' desc",
        but,
    )
    return rows[0] if rows else None


# -- chats


async def chat(database: Database, world: World) -> tuple[str, str]:
    """A session whose question is being answered; returns it and the task."""

    async def open_session(conn: Connection) -> str:
        return await insert(
            conn, "chat_session", workspace_id=world.workspace_id, agent_id=world.agent_id,
            creator_id=world.user_id,
        )  # fmt: skip

    session_id = await database.write(open_session)
    await say(database, world, session_id, "why?")
    task_id = await claimed(database, world)
    assert task_id is not None
    await start(database, task_id)
    return session_id, task_id


async def say(database: Database, world: World, session_id: str, text: str) -> None:
    await database.write(lambda conn: conn.fetchrow(CHAT.say, session_id, text, world.user_id, []))


async def said(database: Database, session_id: str) -> list[tuple[str, str, str]]:
    rows = await fetch(
        database,
        "select role, content, task_id from chat_message where chat_session_id = $1"
        " order by created_at, id",
        session_id,
    )
    return [(row["role"], row["content"], row["task_id"]) for row in rows]


@pytest.mark.parametrize("how", ["go on", "report"])
async def test_a_chat_keeps_its_question(how: str) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        session_id, task_id = await chat(database, world)
        await give_up(database, task_id)
        if how == "go on":
            await run(database, finish.go_on, task_id=task_id)
            assert await said(database, session_id) == [("user", "why?", task_id)]
        await run(database, finish.complete, task_id=task_id, request=DONE)
        assert await said(database, session_id) == [
            ("user", "why?", task_id),
            ("assistant", DONE.output, task_id),
        ]


@pytest.mark.parametrize("fetched", [False, True])
async def test_what_was_said_meanwhile_is_answered_too(*, fetched: bool) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        session_id, task_id = await chat(database, world)
        await give_up(database, task_id)
        await say(database, world, session_id, "still there?")
        if fetched:
            assert await claimed(database, world) is not None
        _, told = await run(database, finish.go_on, task_id=task_id)
        assert "TaskAvailable" in kinds(told)
        later = await newest(database, but=task_id)
        assert later["status"] == "queued"
        assert await said(database, session_id) == [
            ("user", "why?", task_id),
            ("user", "still there?", later["id"]),
        ]
        assert await claimed(database, world) is None, "one at a time in a session"
        await run(database, finish.complete, task_id=task_id, request=DONE)
        assert await claimed(database, world) == later["id"]


async def test_a_deleted_chat_stays_deleted() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        session_id, task_id = await chat(database, world)
        await execute(database, "update agent_task_queue set attempt = max_attempts")
        await give_up(database, task_id)
        await execute(database, CHAT.delete_session, session_id)
        with pytest.raises(Invalid):
            await run(database, finish.go_on, task_id=task_id)
        await sweep(database)
        assert await fetch(database, "select * from task_token") == []


# -- issues


async def remark(database: Database, world: World, issue_id: str, text: str) -> str:
    made: str = await run(
        database, insert, table="comment", issue_id=issue_id, workspace_id=world.workspace_id,
        author_type="member", author_id=world.user_id, content=text,
    )  # fmt: skip
    return made


@pytest.mark.parametrize("how", ["go on", "report"])
async def test_a_comment_that_fell_into_the_new_attempt_gets_a_run(how: str) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        await give_up(database, task.id)
        comment_id = await remark(database, world, task.issue_id, "Also mind the gap")
        if how == "go on":
            await run(database, finish.go_on, task_id=task.id)
        else:
            await run(database, finish.complete, task_id=task.id, request=DONE)
        later = await newest(database, but=task.id)
        assert (later["status"], later["trigger_comment_id"]) == ("queued", comment_id)
        assert later["trigger_summary"] == "Also mind the gap"
        assert (later["initiator_type"], later["initiator_id"]) == ("member", world.user_id)
        assert (later["attempt"], later["parent_task_id"]) == (1, None)


async def test_without_a_comment_nothing_is_queued() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        await remark(database, world, task.issue_id, "said before")
        await give_up(database, task.id)
        await remark(database, world, task.issue_id, "/note to self")
        await run(database, finish.go_on, task_id=task.id)
        rows = await fetch(database, "select status from agent_task_queue order by status")
        assert [row["status"] for row in rows] == ["cancelled", "running"]


async def test_an_agent_does_not_run_twice_on_an_issue() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        issue = {"issue_id": task.issue_id}
        follow_up = await database.write(partial(make_task, world=world, **issue))
        await give_up(database, task.id)  # a new attempt gives way to what is queued already
        assert await claimed(database, world) == follow_up
        await start(database, follow_up)
        with pytest.raises(Invalid):
            await run(database, finish.go_on, task_id=task.id)


async def test_not_after_a_follow_up_that_took_the_new_attempts_place() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        issue = {"issue_id": task.issue_id}
        follow_up = await database.write(partial(make_task, world=world, **issue))
        await give_up(database, task.id)
        await sweep(database)
        assert len(await fetch(database, "select * from task_token")) == 1
        assert await claimed(database, world) == follow_up
        await start(database, follow_up)
        await run(database, finish.complete, task_id=follow_up, request=DONE)
        with pytest.raises(Invalid):
            await run(database, finish.go_on, task_id=task.id)
        await sweep(database)
        assert await fetch(database, "select * from task_token") == []


async def test_an_agent_does_not_do_more_at_once_than_it_may() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database, max_concurrent_tasks=1)
        task = await running(database, world)
        issue = await database.write(partial(make_issue, world=world))
        other = await database.write(partial(make_task, world=world, issue_id=issue.id, priority=4))
        await give_up(database, task.id)
        assert await claimed(database, world) == other
        with pytest.raises(Invalid):
            await run(database, finish.go_on, task_id=task.id)
        await run(database, finish.cancel, task_id=other)
        assert (await run(database, finish.go_on, task_id=task.id))[0].status == "running"


async def test_other_work_waits_a_little_for_what_a_machine_brings_back() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database, max_concurrent_tasks=1)
        task = await running(database, world)
        issue = await database.write(partial(make_issue, world=world))
        other = await database.write(partial(make_task, world=world, issue_id=issue.id))
        await execute(database, "update agent_runtime set status = 'offline'")
        await give_up(database, task.id)
        beats = {world.runtime_id: False}
        caller = Caller(user_id=world.user_id, workspace_id=None)
        await run(database, heartbeat.take_beats, beating=beats, caller=caller)
        assert await claimed(database, world) is None
        await run(database, finish.go_on, task_id=task.id)
        await run(database, finish.complete, task_id=task.id, request=DONE)
        await execute(
            database, "update agent_task_queue set not_before = not_before - interval '2 minutes'"
        )
        assert await claimed(database, world) == other


@pytest.mark.parametrize("change", ["archived", "cancelled"])
async def test_what_people_have_ended_stays_ended(change: str) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        await execute(database, "update agent_task_queue set attempt = max_attempts")
        await give_up(database, task.id)
        if change == "archived":
            await execute(database, "update agent set archived_at = now()")
        else:
            await execute(database, "update issue set status = 'cancelled'")
        with pytest.raises(Invalid):
            await run(database, finish.go_on, task_id=task.id)
        await sweep(database)
        assert await fetch(database, "select * from task_token") == [], "nor may its agent act"


async def test_the_token_dies_with_the_new_attempt_and_with_the_last_word() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        await give_up(database, task.id)
        await sweep(database)
        assert len(await fetch(database, "select * from task_token")) == 1
        retry = await newest(database, but=task.id)
        await run(database, finish.cancel, task_id=retry["id"])  # a person says stop
        await sweep(database)
        assert await fetch(database, "select * from task_token") == []

    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        await give_up(database, task.id)
        request = FailRequest(error="overloaded", failure_reason="runtime_offline")
        await run(database, finish.fail, task_id=task.id, request=request)
        await sweep(database)
        assert await fetch(database, "select * from task_token") == []


async def sweep(database: Database) -> None:
    for rule in sweeper.rules(45.0):
        await database.write(rule)


@pytest.mark.parametrize("how", ["go on", "report"])
async def test_a_machine_may_be_lost_and_found_twice(how: str) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        for _round in range(2):
            await give_up(database, task.id)
            assert (await run(database, finish.go_on, task_id=task.id))[0].status == "running"
        await give_up(database, task.id)
        if how == "report":
            await run(database, finish.complete, task_id=task.id, request=DONE)
            assert await status_of(database, task.id) == "completed"


async def test_a_long_sleep_is_no_silence() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        await give_up(database, task.id)
        await execute(
            database, "update agent_task_queue set started_at = started_at - interval '8 hours'"
        )
        await run(database, finish.go_on, task_id=task.id)
        await sweep(database)
        assert await status_of(database, task.id) == "running"
        await later(database, timedelta(hours=3))
        await sweep(database)
        assert await status_of(database, task.id) == "failed"


async def test_nor_is_one_that_ends_in_time() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        await execute(
            database,
            "update agent_task_queue set started_at = started_at - interval '8 hours',"
            " unreachable_since = now() - interval '8 hours'",
        )
        await sweep(database)  # the machine is online
        assert await status_of(database, task.id) == "running"


async def later(database: Database, passed: timedelta) -> None:
    """Let time pass for a task."""
    await execute(
        database,
        "update agent_task_queue set started_at = started_at - $1::interval,"
        " back_at = back_at - $1::interval",
        passed,
    )


# -- who it was for


async def test_the_issue_is_in_progress_again() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world, status="in_progress")
        await execute(database, "update agent_task_queue set attempt = max_attempts")
        told = await give_up(database, task.id)
        assert await issue_status(database) == "todo"
        assert "activity:created" in kinds(told)
        _, told = await run(database, finish.go_on, task_id=task.id)
        assert await issue_status(database) == "in_progress"
        assert {"issue:updated", "activity:created"} <= set(kinds(told))


async def test_but_not_when_somebody_moved_it_meanwhile() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world, status="in_progress")
        await execute(database, "update agent_task_queue set attempt = max_attempts")
        await give_up(database, task.id)
        await execute(
            database,
            "insert into activity_log (workspace_id, issue_id, actor_type, actor_id, action)"
            " select workspace_id, id, 'member', creator_id, 'status_changed' from issue",
        )
        await run(database, finish.go_on, task_id=task.id)
        assert await issue_status(database) == "todo"


async def issue_status(database: Database) -> str:
    [row] = await fetch(database, "select status from issue")
    return str(row["status"])


async def test_an_autopilots_run_goes_on_with_its_task() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        run_id = await database.write(partial(make_autopilot_run, world=world))
        await database.write(partial(make_task, world=world, autopilot_run_id=run_id))
        task_id = await claimed(database, world)
        assert task_id is not None
        await start(database, task_id)
        await execute(database, "update autopilot_run set status = 'running'")
        await give_up(database, task_id)
        assert await run_status(database) == ("failed", "runtime went offline")
        await run(database, finish.go_on, task_id=task_id)
        assert await run_status(database) == ("running", None)
        await run(database, finish.fail, task_id=task_id, request=FailRequest(error="boom"))
        assert await run_status(database) == ("failed", "boom")


@pytest.mark.parametrize("how", ["go on", "report"])
async def test_an_autopilots_issue_too(how: str) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        run_id = await database.write(partial(make_autopilot_run, world=world))
        await execute(
            database,
            "update autopilot_run set status = 'issue_created', issue_id = $1 where id = $2",
            task.issue_id,
            run_id,
        )
        await execute(database, "update agent_task_queue set attempt = max_attempts")
        await give_up(database, task.id)
        assert await run_status(database) == ("failed", "task failed")
        if how == "go on":
            await run(database, finish.go_on, task_id=task.id)
        else:
            await execute(database, "update issue set status = 'in_review'")
            await run(database, finish.complete, task_id=task.id, request=DONE)
        expected = "issue_created" if how == "go on" else "completed"
        assert await run_status(database) == (expected, None)


async def run_status(database: Database) -> tuple[str, str | None]:
    [row] = await fetch(database, "select status, failure_reason from autopilot_run")
    return row["status"], row["failure_reason"]
