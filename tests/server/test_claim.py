"""Claiming under contention, its rules, and what the payload holds."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import trio

from server.consequences import Consequence, TaskAvailable
from server.database import Database
from server.dispatch import enqueue, finish
from server.dispatch.claim import OwnerMissing, claim
from server.dispatch.register import repos_of
from server.errors import Foreign, NotFound
from server.store.queries import Connection
from server.store.tasks import SQL, Caller
from shared.ids import hash_token, new_id
from shared.wire.event import Event
from shared.wire.task import ClaimedTask, CompleteRequest, FailRequest
from tests.support.postgres import open_test_database
from tests.support.rows import (
    World,
    insert,
    make_agent,
    make_autopilot_run,
    make_comment,
    make_issue,
    make_runtime,
    make_task,
    make_user,
    make_world,
)
from tests.support.statements import counted

pytestmark = pytest.mark.postgres

PATIENCE = 110.0
"""Seconds. Two hundred callers share twenty connections, and the machine may have other work: how long
each of them waits for its turn is no part of what is tested."""


async def take(database: Database, runtime_id: str, *, deadline: float = 15) -> ClaimedTask | None:
    task, _ = await database.write(partial(claim, runtime_id=runtime_id), deadline=deadline)
    return task


async def take_one(database: Database, runtime_id: str) -> ClaimedTask:
    task = await take(database, runtime_id)
    assert task is not None
    return task


async def begin(conn: Connection, task_id: str) -> None:
    row = await conn.fetchrow(SQL.start, task_id, None, None, ["dispatched"])
    assert row is not None
    assert row["changed"]


async def age(conn: Connection, task_id: str, seconds: float) -> None:
    """Let a claimed task look as if its claim and its lease were long ago."""
    await conn.execute(
        "update agent_task_queue set dispatched_at = dispatched_at - $2::interval,"
        " prepare_lease_expires_at = prepare_lease_expires_at - $2::interval where id = $1",
        task_id,
        timedelta(seconds=seconds),
    )


def kinds(consequences: list[Consequence]) -> list[str]:
    return [c.type if isinstance(c, Event) else type(c).__name__ for c in consequences]


async def test_two_hundred_claimers_take_each_of_a_thousand_tasks_once() -> None:
    capacity, agents, tasks = 7, 20, 1000
    async with open_test_database() as (database, _):
        world = await make_world(database)
        runtimes: list[str] = []

        async def fill(conn: Connection) -> None:
            run_id = await make_autopilot_run(conn, world)
            for _ in range(agents // 2):
                runtime_id = await make_runtime(conn, world.workspace_id, world.user_id)
                runtimes.append(runtime_id)
                for _ in range(2):
                    agent_id = await make_agent(
                        conn, world.workspace_id, runtime_id, max_concurrent_tasks=capacity
                    )
                    issue = await make_issue(conn, world)
                    # Half of the tasks share one issue, so runs must also be serialised there.
                    await conn.execute(
                        "insert into agent_task_queue"
                        " (workspace_id, agent_id, runtime_id, autopilot_run_id, priority)"
                        " select $1, $2, $3, $4, n % 5 from generate_series(1, $5) n",
                        world.workspace_id,
                        agent_id,
                        runtime_id,
                        run_id,
                        tasks // agents - 1,
                    )
                    await make_task(
                        conn, world, agent_id=agent_id, runtime_id=runtime_id, issue_id=issue.id
                    )

        await database.write(fill)
        seen: Counter[str] = Counter()
        worst = 0

        async def watch() -> None:
            nonlocal worst
            while True:
                worst = max(
                    worst,
                    await database.read(
                        lambda conn: conn.fetchval(
                            "select coalesce(max(n), 0) from (select count(*) as n"
                            " from agent_task_queue where status in ('dispatched', 'running')"
                            " group by agent_id) x"
                        ),
                        deadline=PATIENCE,
                    ),
                )
                await trio.sleep(0.01)

        async def claimer(number: int) -> None:
            runtime_id = runtimes[number % len(runtimes)]
            while seen.total() < tasks:
                task = await take(database, runtime_id, deadline=PATIENCE)
                if task is None:
                    left = await database.read(
                        lambda conn: conn.fetchval(
                            "select count(*) from agent_task_queue t join agent a"
                            " on a.id = t.agent_id where a.runtime_id = $1 and t.status = 'queued'",
                            runtime_id,
                        ),
                        deadline=PATIENCE,
                    )
                    if not left:
                        return
                    await trio.sleep(random.uniform(0, 0.02))
                    continue
                seen[task.id] += 1
                await database.write(partial(begin, task_id=task.id), deadline=PATIENCE)
                await database.write(
                    partial(finish.complete, task_id=task.id, request=CompleteRequest()),
                    deadline=PATIENCE,
                )

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as watching:
                watching.start_soon(watch)
                async with trio.open_nursery() as claimers:
                    for number in range(200):
                        claimers.start_soon(claimer, number)
                watching.cancel_scope.cancel()
        assert len(seen) == tasks
        assert set(seen.values()) == {1}
        assert 0 < worst <= capacity
        rows = await database.read(
            lambda conn: conn.fetch(
                "select status, count(*) as n from agent_task_queue group by status"
            )
        )
        assert {row["status"]: row["n"] for row in rows} == {"completed": tasks}
        idle = await database.read(
            lambda conn: conn.fetchval("select count(*) from agent where status = 'working'")
        )
        assert idle == 0


async def test_capacity_holds_when_everybody_asks_at_once() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database, max_concurrent_tasks=3)

        async def fill(conn: Connection) -> None:
            for _ in range(30):
                await make_task(conn, world, autopilot_run_id=new_id())

        await database.write(fill)
        got: list[ClaimedTask] = []

        async def ask() -> None:
            task = await take(database, world.runtime_id)
            if task is not None:
                got.append(task)

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(ask)
        assert len({task.id for task in got}) == 3


@pytest.mark.parametrize("place", ["issue_id", "chat_session_id", "none"])
async def test_an_agent_runs_once_in_a_place(place: str) -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)

        async def fill(conn: Connection) -> tuple[str, str]:
            where: dict[str, Any] = {"chat_session_id": new_id()}
            if place == "issue_id":
                where = {"issue_id": (await make_issue(conn, world)).id}
            if place == "none":
                where = {}
            running = await make_task(conn, world, status="running", **where)
            return running, await make_task(conn, world, **where)

        running, waiting = await database.write(fill)
        assert await take(database, world.runtime_id) is None
        await database.write(partial(finish.cancel, task_id=running))
        assert (await take_one(database, world.runtime_id)).id == waiting


async def test_order_is_by_priority_then_age_over_all_agents() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)

        async def fill(conn: Connection) -> list[str]:
            other = await make_agent(conn, world.workspace_id, world.runtime_id)
            low, mid, high = [], [], []
            for number, (agent_id, priority) in enumerate(
                [(world.agent_id, 1), (other, 4), (other, 1), (world.agent_id, 4), (other, 2)]
            ):
                task_id = await make_task(
                    conn,
                    world,
                    agent_id=agent_id,
                    priority=priority,
                    autopilot_run_id=new_id(),
                )
                await conn.execute(
                    "update agent_task_queue set created_at = now() + $2::interval where id = $1",
                    task_id,
                    timedelta(seconds=number),
                )
                {1: low, 2: mid, 4: high}[priority].append(task_id)
            return high + mid + low

        expected = await database.write(fill)
        got = [(await take_one(database, world.runtime_id)).id for _ in expected]
        assert got == expected


async def test_a_queued_task_follows_its_agent() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)

        async def move(conn: Connection) -> str:
            await make_task(conn, world)
            runtime_id = await make_runtime(conn, world.workspace_id, world.user_id)
            await conn.execute(
                "update agent set runtime_id = $1 where id = $2", runtime_id, world.agent_id
            )
            return runtime_id

        new_runtime = await database.write(move)
        assert await take(database, world.runtime_id) is None
        task = await take_one(database, new_runtime)
        assert task.runtime_id == new_runtime


async def test_archived_agents_get_nothing() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)

        async def archive(conn: Connection) -> None:
            await make_task(conn, world)
            await conn.execute("update agent set archived_at = now()")

        await database.write(archive)
        assert await take(database, world.runtime_id) is None


async def test_a_lost_answer_is_delivered_again_with_a_new_token() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)
        await database.write(lambda conn: make_task(conn, world))
        first = await take_one(database, world.runtime_id)
        assert await take(database, world.runtime_id) is None
        await database.write(partial(age, task_id=first.id, seconds=91))

        again, told = await database.write(partial(claim, runtime_id=world.runtime_id))
        assert again is not None
        assert again.id == first.id
        assert again.auth_token != first.auth_token
        assert told == []
        hashes = await database.read(
            lambda conn: conn.fetch(
                "select token_hash from task_token where task_id = $1", first.id
            )
        )
        assert {row["token_hash"] for row in hashes} == {
            hash_token(first.auth_token),
            hash_token(again.auth_token),
        }


async def test_a_lease_and_a_start_protect_from_redelivery() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)
        await database.write(lambda conn: make_task(conn, world))
        task = await take_one(database, world.runtime_id)
        await database.write(partial(age, task_id=task.id, seconds=91))
        extended = await database.write(
            lambda conn: conn.fetchrow(
                SQL.extend_lease,
                task.id,
                None,
                None,
                ["dispatched"],
                world.runtime_id,
                timedelta(seconds=45),
            )
        )
        assert extended is not None
        assert extended["changed"]
        assert await take(database, world.runtime_id) is None
        await database.write(partial(begin, task_id=task.id))
        await database.write(partial(age, task_id=task.id, seconds=1000))
        assert await take(database, world.runtime_id) is None


async def test_claim_against_cancel() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database, max_concurrent_tasks=1000)

        async def fill(conn: Connection) -> list[str]:
            return [await make_task(conn, world, autopilot_run_id=new_id()) for _ in range(60)]

        ids = await database.write(fill)
        claimed: set[str] = set()
        cancelled: set[str] = set()

        async def ask() -> None:
            task = await take(database, world.runtime_id)
            if task is not None:
                claimed.add(task.id)

        async def stop(task_id: str) -> None:
            task, told = await database.write(partial(finish.cancel, task_id=task_id))
            assert task.status == "cancelled"
            assert "task:cancelled" in kinds(told)
            cancelled.add(task.id)

        async with trio.open_nursery() as nursery:
            for task_id in ids:
                nursery.start_soon(ask)
                nursery.start_soon(stop, task_id)
        assert cancelled == set(ids)
        # No token outlives its task, whoever came first; and nobody works on anything.
        left = await database.read(lambda conn: conn.fetchval("select count(*) from task_token"))
        assert left == 0
        status = await database.read(
            lambda conn: conn.fetchval("select status from agent where id = $1", world.agent_id)
        )
        assert status != "working"
        assert await take(database, world.runtime_id) is None


async def test_who_may_claim() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)
        stranger = await make_world(database)
        await database.write(lambda conn: make_task(conn, world))
        daemon_id = await database.read(
            lambda conn: conn.fetchval(
                "select daemon_id from agent_runtime where id = $1", world.runtime_id
            )
        )

        async def as_caller(runtime_id: str, caller: Caller) -> ClaimedTask | None:
            unit = partial(claim, runtime_id=runtime_id, caller=caller)
            task, _ = await database.write(unit)
            return task

        with pytest.raises(Foreign):
            await as_caller(world.runtime_id, Caller(user_id=stranger.user_id))
        with pytest.raises(Foreign):
            await as_caller(
                world.runtime_id,
                Caller(user_id=None, workspace_id=stranger.workspace_id, daemon_id=daemon_id),
            )
        with pytest.raises(Foreign):
            await as_caller(world.runtime_id, Caller(user_id=None))
        with pytest.raises(NotFound, match="runtime not found"):
            await as_caller(new_id(), Caller(user_id=world.user_id))
        assert await as_caller(
            world.runtime_id,
            Caller(user_id=None, workspace_id=world.workspace_id, daemon_id=daemon_id),
        )


async def test_without_an_owner_nothing_is_claimed() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)
        task_id = await database.write(lambda conn: make_task(conn, world))
        await database.write(lambda conn: conn.execute("update agent_runtime set owner_id = null"))
        with pytest.raises(OwnerMissing):
            await take(database, world.runtime_id)
        await database.write(
            lambda conn: conn.execute("update agent_runtime set owner_id = $1", world.user_id)
        )
        assert (await take_one(database, world.runtime_id)).id == task_id


async def test_statements_of_a_claim() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        # asyncpg looks a type up when a connection first meets it.
        await take(database, world.runtime_id)
        _, sent = await counted(database, partial(claim, runtime_id=world.runtime_id))
        assert len(sent) == 1
        await database.write(lambda conn: make_task(conn, world))
        (task, told), sent = await counted(database, partial(claim, runtime_id=world.runtime_id))
        assert task is not None
        assert sent == [SQL.lock_claimable, SQL.claim]
        assert kinds(told) == ["task:dispatch", "agent:status"]


async def test_the_payload_of_a_direct_task() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(
            database,
            instructions="You own the API.",
            custom_env={"KEY": "value"},
            custom_args=["--verbose"],
            mcp_config={"servers": {}},
            model="opus",
            runtime_config={"gateway": {"token": "t0"}},
        )

        async def fill(conn: Connection) -> list[Consequence]:
            await conn.execute(
                "update workspace set context = 'Write in English.', repos = $1",
                [{"url": " https://example.test/a.git ", "description": "backend"}, {"no": 1}],
            )
            issue = await make_issue(conn, world, priority="high", title="Fix login")
            return await enqueue.assignees_changed(
                conn, [issue], world.actor, handoff_note="Look at the cookie."
            )

        told = await database.write(fill)
        assert kinds(told) == ["task:queued", "TaskAvailable"]
        assert isinstance(told[1], TaskAvailable)
        assert told[1].runtime_id == world.runtime_id
        task = await take_one(database, world.runtime_id)
        assert task.kind == "direct"
        assert task.status == "dispatched"
        assert task.priority == 3
        assert task.thread_name == "Fix login"
        assert task.handoff_note == "Look at the cookie."
        assert task.workspace_context == "Write in English."
        assert [repo.description for repo in task.repos] == ["backend"]
        assert task.requesting_user_name == "Dana"
        assert task.requesting_user_profile_description == "Writes tests."
        assert task.initiator_id == world.user_id
        assert task.initiator_email.endswith("@bullpen.local")
        assert task.auth_token.startswith("mat_")
        assert task.agent is not None
        assert task.agent.custom_env == {"KEY": "value"}
        assert task.agent.custom_args == ["--verbose"]
        assert task.agent.mcp_config == {"servers": {}}
        assert task.agent.runtime_config == {"gateway": {"token": "t0"}}
        assert task.agent.model == "opus"
        assert not task.prior_session_id
        assert not task.new_comments_since
        for secret in (task.auth_token, "t0", "'KEY'"):
            assert secret not in repr(task)


async def test_the_payload_of_a_follow_up_by_comment() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)
        issue = await database.write(lambda conn: make_issue(conn, world))
        await database.write(lambda conn: enqueue.issue_created(conn, issue, world.actor))
        first = await take_one(database, world.runtime_id)
        await database.write(partial(begin, task_id=first.id))
        await database.write(
            partial(
                finish.complete,
                task_id=first.id,
                request=CompleteRequest(output="Done it.", session_id="s-1", work_dir="/w/1"),
            )
        )

        async def talk(conn: Connection) -> tuple[str, str]:
            other = await make_user(conn, "Eve")
            await make_comment(conn, issue, other, "by the way")
            root = await make_comment(conn, issue, world.user_id, "and one more thing")
            text = "please\nretry " + "x" * 300
            reply = await make_comment(conn, issue, world.user_id, text, parent_id=root)
            await enqueue.comment_created(
                conn,
                issue,
                comment_id=reply,
                content=f"[@A](mention://agent/{world.agent_id}) {text}",
                parent_id=root,
                actor=world.actor,
            )
            return root, reply

        root, reply = await database.write(talk)
        task = await take_one(database, world.runtime_id)
        assert task.kind == "comment"
        assert task.trigger_comment_id == reply
        assert task.trigger_thread_id == root
        assert task.trigger_comment_content.startswith("please\nretry")
        assert task.trigger_author_type == "member"
        assert task.trigger_author_name == "Dana"
        assert len(task.trigger_summary) == 201
        assert "\n" not in task.trigger_summary
        assert task.prior_session_id == "s-1"
        assert task.prior_work_dir == "/w/1"
        # Neither the trigger nor what the agent itself wrote.
        assert task.new_comment_count == 2
        assert task.new_comments_since.endswith("Z")


async def past_run(
    database: Database, world: World, issue_id: str, *, outcome: str, session: str, **columns: Any
) -> None:
    async def unit(conn: Connection) -> None:
        task_id = await make_task(
            conn,
            world,
            issue_id=issue_id,
            status=outcome if outcome in {"completed", "cancelled"} else "failed",
            failure_reason=None if outcome in {"completed", "cancelled"} else outcome,
            session_id=session or None,
            work_dir=f"/w/{session}",
            **columns,
        )
        await conn.execute(
            "update agent_task_queue set completed_at = clock_timestamp() where id = $1", task_id
        )

    await database.write(unit)


@pytest.mark.parametrize(
    ("runs", "session"),
    [
        ([("completed", "a")], "a"),
        ([("completed", "a"), ("timeout", "b")], "b"),
        ([("completed", "a"), ("iteration_limit", "b")], "a"),
        ([("completed", "a"), ("api_invalid_request", "a")], ""),
        ([("completed", "a"), ("completed", "b"), ("agent_fallback_message", "b")], "a"),
        ([("completed", "a"), ("agent_error.context_overflow", "a")], ""),
        ([("completed", "a"), ("cancelled", "b")], "b"),
        ([("completed", "a"), ("cancelled", "")], "a"),
    ],
)
async def test_which_session_is_resumed(runs: list[tuple[str, str]], session: str) -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)
        issue = await database.write(lambda conn: make_issue(conn, world))
        for outcome, name in runs:
            await past_run(database, world, issue.id, outcome=outcome, session=name)
        await database.write(lambda conn: enqueue.issue_created(conn, issue, world.actor))
        task = await take_one(database, world.runtime_id)
        assert task.prior_session_id == session
        assert task.prior_work_dir == (f"/w/{session}" if session else "")


async def test_a_session_is_not_resumed_on_another_machine_or_after_a_rerun() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)
        issue = await database.write(lambda conn: make_issue(conn, world))
        other = await database.write(
            lambda conn: make_runtime(conn, world.workspace_id, world.user_id)
        )
        await past_run(
            database, world, issue.id, outcome="completed", session="a", runtime_id=other
        )
        await database.write(lambda conn: enqueue.issue_created(conn, issue, world.actor))
        task = await take_one(database, world.runtime_id)
        assert (task.prior_session_id, task.prior_work_dir) == ("", "/w/a")

        await past_run(database, world, issue.id, outcome="completed", session="b")
        again, _ = await database.write(lambda conn: enqueue.rerun(conn, issue, None, world.actor))
        task = await take_one(database, world.runtime_id)
        assert task.id == again.id
        assert (task.prior_session_id, task.prior_work_dir) == ("", "")


async def test_the_retry_of_a_rerun_goes_on_in_the_reruns_own_session() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)
        issue = await database.write(lambda conn: make_issue(conn, world))
        await past_run(database, world, issue.id, outcome="completed", session="rejected")

        async def rerun_that_times_out(session: str) -> ClaimedTask:
            await database.write(lambda conn: enqueue.rerun(conn, issue, None, world.actor))
            task = await take_one(database, world.runtime_id)
            assert task.prior_session_id == ""
            request = FailRequest(error="x", failure_reason="timeout", session_id=session)
            await database.write(partial(finish.fail, task_id=task.id, request=request))
            return await take_one(database, world.runtime_id)

        assert (await rerun_that_times_out("its own")).prior_session_id == "its own"
        retry = await rerun_that_times_out("")
        assert retry.prior_session_id == ""
        # and what follows does not go back behind the rerun
        request = FailRequest(error="x", failure_reason="agent_blocked")
        await database.write(partial(finish.fail, task_id=retry.id, request=request))
        await database.write(lambda conn: enqueue.issue_created(conn, issue, world.actor))
        assert (await take_one(database, world.runtime_id)).prior_session_id == ""


async def test_a_retry_is_claimable_at_once_and_resumes() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)
        issue = await database.write(lambda conn: make_issue(conn, world))
        await database.write(lambda conn: enqueue.issue_created(conn, issue, world.actor))
        first = await take_one(database, world.runtime_id)
        await database.write(
            partial(
                finish.fail,
                task_id=first.id,
                request=FailRequest(error="x", failure_reason="timeout", session_id="s"),
            )
        )
        task = await take_one(database, world.runtime_id)
        assert task.parent_task_id == first.id
        assert task.attempt == 2
        assert task.prior_session_id == "s"


def test_a_row_without_extras_assembles() -> None:
    assert repos_of(None) == []
    assert [repo.url for repo in repos_of([{"url": 3}, "x", {"url": "u"}])] == ["u"]


async def test_a_task_of_another_workspace_is_cancelled_when_claimed() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)
        other = await make_world(database)
        await database.write(
            lambda conn: insert(
                conn,
                "agent_task_queue",
                workspace_id=other.workspace_id,
                agent_id=world.agent_id,
                runtime_id=world.runtime_id,
            )
        )
        issue = await database.write(partial(make_issue, world=world))
        good = await database.write(partial(make_task, world=world, issue_id=issue.id))
        unit = partial(claim, runtime_id=world.runtime_id)
        task, told = await database.write(unit)
        assert task is None
        assert [one.type for one in told if isinstance(one, Event)][:1] == ["task:cancelled"]
        assert any(isinstance(one, TaskAvailable) for one in told)  # it asks again
        assert (await take_one(database, world.runtime_id)).id == good
        rows = await database.read(
            lambda conn: conn.fetch("select id, status from agent_task_queue order by status")
        )
        assert {row["id"]: row["status"] for row in rows}.pop(good) == "dispatched"
        assert sorted(row["status"] for row in rows) == ["cancelled", "dispatched"]
