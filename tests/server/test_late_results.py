"""What a daemon says of a task that the server had given up: taken over or kept, never dropped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from server.consequences import Consequence
from server.database import Database
from server.dispatch import finish
from server.dispatch.claim import claim
from server.dispatch.lifecycle import START
from server.dispatch.sweeper import OFFLINE, TIMED_OUT, forget
from server.dispatch.verdict import RECOVERED, Failure
from server.errors import Invalid
from server.store.queries import Connection, Record
from server.store.tasks import SQL
from shared.times import fine_stamp, parse_stamp
from shared.wire.event import Event
from shared.wire.task import ClaimedTask, CompleteRequest, FailRequest, Task
from tests.server.test_finish import comments, kinds, running, status_of
from tests.support.postgres import open_test_database
from tests.support.rows import World, make_world

pytestmark = pytest.mark.postgres

DONE = CompleteRequest(output="Did it after all.", session_id="s", work_dir="/w")


async def given_up(database: Database, world: World) -> tuple[ClaimedTask, str]:
    """A task that ran and was failed by the server; and its new attempt."""
    task = await running(database, world)
    await database.write(partial(finish.fail_many, task_ids=[task.id], why=OFFLINE))
    return task, await retry_of(database, task.id)


async def retry_of(database: Database, task_id: str) -> str:
    found: str = await database.read(
        lambda conn: conn.fetchval(
            "select id from agent_task_queue where parent_task_id = $1", task_id
        )
    )
    return found


async def row_of(database: Database, task_id: str) -> Record:
    row = await database.read(lambda conn: conn.fetchrow(SQL.get_task, task_id))
    assert row is not None
    return row


async def report(
    database: Database, task_id: str, request: CompleteRequest | FailRequest
) -> tuple[Task, list[Consequence]]:
    end: Any = finish.complete if isinstance(request, CompleteRequest) else finish.fail
    answer: tuple[Task, list[Consequence]] = await database.write(
        partial(end, task_id=task_id, request=request)
    )
    return answer


async def test_a_result_that_comes_late_is_taken_over() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task, retry = await given_up(database, world)
        ended, told = await report(database, task.id, DONE)
        assert (ended.status, ended.error, ended.failure_reason) == ("completed", None, "")
        assert ended.result["output"] == "Did it after all."
        assert await status_of(database, retry) == "cancelled"
        assert await comments(database, task.issue_id) == [
            ("agent", "comment", "Did it after all.")
        ]
        assert kinds(told)[0] == "task:cancelled"
        assert "task:completed" in kinds(told)
        # Said twice, it changes nothing.
        assert await report(database, task.id, DONE) == (ended, [])


async def test_also_when_the_new_attempt_was_handed_out_but_has_not_started() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task, retry = await given_up(database, world)
        handed_out, _ = await database.write(partial(claim, runtime_id=world.runtime_id))
        assert handed_out is not None
        assert handed_out.id == retry
        ended, told = await report(database, task.id, DONE)
        assert ended.status == "completed"
        assert await status_of(database, retry) == "cancelled"
        # The agent of the attempt that is called off must not act any more.
        assert "TokensRevoked" in kinds(told)


async def test_also_when_there_was_no_new_attempt() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        await database.write(lambda conn: conn.execute("update agent_task_queue set attempt = 2"))
        await database.write(partial(finish.fail_many, task_ids=[task.id], why=OFFLINE))
        ended, _ = await report(database, task.id, DONE)
        assert ended.status == "completed"


async def test_beside_an_attempt_that_runs_it_is_kept_and_shown() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task, retry = await given_up(database, world)
        await database.write(partial(claim, runtime_id=world.runtime_id))
        await database.write(
            lambda conn: conn.fetchrow(SQL.start, retry, None, None, sorted(START.sources))
        )
        shown, told = await report(database, task.id, DONE)
        assert (shown.status, shown.failure_reason) == ("failed", "runtime_offline")
        assert shown.late_result["status"] == "completed"
        assert shown.late_result["result"]["output"] == "Did it after all."
        assert kinds(told) == ["task:late_result", "TokensRevoked"]
        assert isinstance(told[0], Event)
        assert await status_of(database, retry) == "running"
        # The first word stands.
        again, told = await report(database, task.id, FailRequest(error="no"))
        assert (again.late_result, told) == (shown.late_result, [])


async def test_a_late_failure_replaces_the_presumption_when_it_knows_better() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task, retry = await given_up(database, world)
        request = FailRequest(error="Invalid API key", session_id="s")
        ended, told = await report(database, task.id, request)
        assert ended.failure_reason == "agent_error.provider_auth_or_access"
        assert await status_of(database, retry) == "cancelled"
        assert await comments(database, task.issue_id) == [("agent", "system", "Invalid API key")]
        assert "task:failed" in kinds(told)
        assert await report(database, task.id, request) == (ended, [])


async def test_a_late_failure_of_the_infrastructure_leaves_the_new_attempt_alone() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task, retry = await given_up(database, world)
        request = FailRequest(error="stopped", failure_reason="runtime_recovery")
        shown, _ = await report(database, task.id, request)
        assert shown.failure_reason == "runtime_offline"
        assert shown.late_result["failure_reason"] == "runtime_recovery"
        assert await status_of(database, retry) == "queued"


async def test_a_failure_the_daemon_reported_itself_stands() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        failed, _ = await report(database, task.id, FailRequest(error="boom"))
        assert await report(database, task.id, DONE) == (failed, [])


async def test_what_a_cancelled_run_had_done_is_kept() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        await database.write(partial(finish.cancel, task_id=task.id))
        shown, _ = await report(database, task.id, DONE)
        assert shown.status == "cancelled"
        assert shown.late_result["result"]["output"] == "Did it after all."
        assert await comments(database, task.issue_id) == []


async def test_a_late_session_is_pinned_while_the_result_may_come() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task, retry = await given_up(database, world)
        await database.write(
            lambda conn: conn.fetchrow(SQL.pin_session, task.id, None, None, "late", "/late")
        )
        assert (await row_of(database, task.id))["session_id"] == "late"
        again, _ = await database.write(partial(claim, runtime_id=world.runtime_id))
        assert again is not None
        assert again.id == retry
        assert (again.prior_session_id, again.prior_work_dir) == ("late", "/late")


async def test_a_quota_that_comes_back_parks_the_work() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        request = FailRequest(
            error="You've hit your usage limit. Try again in 2 hours.", session_id="s"
        )
        ended, told = await report(database, task.id, request)
        assert (ended.status, ended.failure_reason) == (
            "failed",
            "agent_error.provider_quota_limit",
        )
        assert ended.resume_at
        assert "task:queued" in kinds(told)
        # Nobody is woken, and nobody may have it yet.
        assert "TaskAvailable" not in kinds(told)
        assert (await database.write(partial(claim, runtime_id=world.runtime_id)))[0] is None
        parked = await row_of(database, await retry_of(database, task.id))
        # It resumes the session, and waiting was no attempt.
        assert (parked["session_id"], parked["attempt"], parked["max_attempts"]) == ("s", 2, 3)
        await database.write(
            lambda conn: conn.execute(
                "update agent_task_queue set not_before = now() - interval '1 s'"
                " where not_before is not null"
            )
        )
        again, _ = await database.write(partial(claim, runtime_id=world.runtime_id))
        assert again is not None
        assert again.id == parked["id"]


async def test_a_quota_is_waited_for_as_its_daemon_says_whatever_it_calls_it() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        back = datetime.now(UTC) + timedelta(hours=5)
        request = FailRequest(
            error="API Error: 429; you've hit your session limit",
            failure_reason="agent_error.provider_capacity_or_rate_limit",
            resets_at=fine_stamp(back),
        )
        ended, _ = await report(database, task.id, request)
        assert ended.failure_reason == "agent_error.provider_quota_limit"
        assert abs(parse_stamp(ended.resume_at) - back) < timedelta(seconds=1)


async def test_a_quota_that_does_not_say_when_is_a_failure() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        ended, _ = await report(database, task.id, FailRequest(error="Credit balance is too low"))
        assert (ended.status, ended.resume_at) == ("failed", "")
        assert await retry_of(database, task.id) is None


# -- a machine that comes back before its agent is done


async def go_on(database: Database, task_id: str) -> tuple[Task, list[Consequence]]:
    answer: tuple[Task, list[Consequence]] = await database.write(
        partial(finish.go_on, task_id=task_id)
    )
    return answer


async def tokens_of(database: Database, task_id: str) -> int:
    count: int = await database.read(
        lambda conn: conn.fetchval("select count(*) from task_token where task_id = $1", task_id)
    )
    return count


async def test_a_task_given_up_with_its_machine_is_taken_back() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task, retry = await given_up(database, world)
        assert await tokens_of(database, task.id) == 1, "its agent may be at work"
        running_on, told = await go_on(database, task.id)
        assert (running_on.status, running_on.error, running_on.failure_reason) == (
            "running",
            None,
            "",
        )
        assert await status_of(database, retry) == "cancelled"
        assert kinds(told)[-1] == "task:running"
        assert "agent:status" in kinds(told)
        assert await go_on(database, task.id) == (running_on, [])
        ended, _ = await report(database, task.id, DONE)
        assert ended.status == "completed"
        assert await tokens_of(database, task.id) == 0


async def test_not_when_its_new_attempt_has_begun() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task, retry = await given_up(database, world)
        await database.write(partial(claim, runtime_id=world.runtime_id))
        await database.write(
            lambda conn: conn.fetchrow(SQL.start, retry, None, None, sorted(START.sources))
        )
        with pytest.raises(Invalid):
            await go_on(database, task.id)
        assert await status_of(database, task.id) == "failed"
        _, told = await database.write(_forget)
        assert await tokens_of(database, task.id) == 0, "another agent has taken its place"
        assert await tokens_of(database, retry) == 1
        assert "TokensRevoked" in kinds(told)


@pytest.mark.parametrize("why", [TIMED_OUT, RECOVERED])
async def test_not_when_more_than_silence_was_wrong(why: Failure) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        await database.write(partial(finish.fail_many, task_ids=[task.id], why=why))
        assert await tokens_of(database, task.id) == 0
        with pytest.raises(Invalid):
            await go_on(database, task.id)


async def _forget(conn: Connection) -> tuple[None, list[Consequence]]:
    return None, await forget(conn)
