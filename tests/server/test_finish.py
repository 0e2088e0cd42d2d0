"""How tasks end, against a real database: the transition table, replays, retries, races."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import trio

from server.consequences import Consequence, TaskAvailable, TokensRevoked
from server.database import Database
from server.dispatch import enqueue, finish, loops
from server.dispatch.claim import claim
from server.dispatch.finish import fail_many, recover_orphans
from server.dispatch.lifecycle import CHANGES, CLAIM, PARK, REDELIVER, START
from server.dispatch.verdict import RECOVERED
from server.errors import Foreign, Invalid, NotFound
from server.store.queries import Connection
from server.store.tasks import SQL, Caller
from shared.ids import hash_token, new_id
from shared.wire.event import Event
from shared.wire.task import (
    ACTIVE,
    TERMINAL,
    ClaimedTask,
    CompleteRequest,
    FailRequest,
    RecoverReply,
    Task,
)
from tests.support.postgres import open_test_database
from tests.support.rows import (
    Actor,
    World,
    make_agent,
    make_comment,
    make_issue,
    make_task,
    make_user,
    make_world,
)
from tests.support.statements import counted

pytestmark = pytest.mark.postgres

STATUSES = sorted(ACTIVE | TERMINAL)


def kinds(consequences: list[Consequence]) -> list[str]:
    return [c.type if isinstance(c, Event) else type(c).__name__ for c in consequences]


async def status_of(database: Database, task_id: str) -> str:
    status: str = await database.read(
        lambda conn: conn.fetchval("select status from agent_task_queue where id = $1", task_id)
    )
    return status


async def running(database: Database, world: World, **issue: Any) -> ClaimedTask:
    """A task that was assigned, claimed and started."""
    facts = await database.write(lambda conn: make_issue(conn, world, **issue))
    await database.write(lambda conn: enqueue.issue_created(conn, facts, world.actor))
    task, _ = await database.write(partial(claim, runtime_id=world.runtime_id))
    assert task is not None
    await database.write(
        lambda conn: conn.fetchrow(SQL.start, task.id, None, None, sorted(START.sources))
    )
    return task


async def comments(database: Database, issue_id: str) -> list[tuple[str, str, str]]:
    rows = await database.read(
        lambda conn: conn.fetch(
            "select author_type, type, content from comment where issue_id = $1 order by created_at",
            issue_id,
        )
    )
    return [(row["author_type"], row["type"], row["content"]) for row in rows]


async def apply(conn: Connection, change: str, task_id: str, world: World) -> None:
    lease = timedelta(seconds=45)
    match change:
        case "claim" | "redeliver":
            await claim(conn, world.runtime_id)
        case "park":
            await conn.fetchrow(
                SQL.wait_local_directory, task_id, None, None, sorted(PARK.sources), "x", lease
            )
        case "start":
            await conn.fetchrow(SQL.start, task_id, None, None, sorted(START.sources))
        case "complete":
            await finish.complete(conn, task_id, CompleteRequest(output="x"))
        case "fail":
            await finish.fail(conn, task_id, FailRequest(error="x"))
        case "expire":
            await fail_many(conn, [task_id], RECOVERED, CHANGES["expire"].sources)
        case "cancel":
            await finish.cancel(conn, task_id)


@pytest.mark.parametrize("change", sorted(CHANGES))
async def test_the_transition_table(change: str) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        for status in STATUSES:
            task_id = await database.write(
                lambda conn, status=status: make_task(
                    conn, world, status=status, autopilot_run_id=new_id()
                )
            )
            if CHANGES[change] is REDELIVER:
                await database.write(
                    lambda conn, task_id=task_id: conn.execute(
                        "update agent_task_queue set dispatched_at = now() - interval '2 min'"
                        " where id = $1",
                        task_id,
                    )
                )
            if CHANGES[change] in (CLAIM, REDELIVER) and status in ("queued", "dispatched"):
                # Both are claims; which of them it is depends on the status.
                expected = "dispatched"
            elif status in CHANGES[change].sources:
                expected = CHANGES[change].target
            else:
                expected = status
            await database.write(partial(apply, change=change, task_id=task_id, world=world))
            assert await status_of(database, task_id) == expected, f"{change} from {status}"
            await database.write(lambda conn: conn.execute("delete from agent_task_queue"))


async def test_completing() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        request = CompleteRequest(
            output=r"Did it.\nKey: sk-abcdefghijklmnopqrstuvwx", session_id="s", work_dir="/w"
        )
        (ended, told), sent = await counted(
            database, partial(finish.complete, task_id=task.id, request=request)
        )
        assert len([text for text in sent if "current_setting('jit')" not in text]) <= 4
        assert sent[-1] == finish.SQL.complete
        assert (ended.status, ended.work_dir) == ("completed", "/w")
        assert ended.result["session_id"] == "s"
        assert "sk-abc" not in str(ended.result)
        assert kinds(told) == [
            *("comment:created", "activity:created", "agent:status", "task:completed"),
            "TokensRevoked",
        ]
        assert told[-1] == TokensRevoked((hash_token(task.auth_token),))
        posted = await comments(database, task.issue_id)
        assert posted == [("agent", "comment", "Did it.\nKey: [REDACTED API KEY]")]
        issue = await database.read(lambda conn: conn.fetchrow("select * from issue"))
        assert issue is not None
        assert issue["first_executed_at"] is not None
        assert issue["status"] == "todo"


async def test_completing_twice_changes_nothing() -> None:
    async with open_test_database(pool_size=2) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        request = CompleteRequest(output="Did it.")
        answers: list[tuple[Task, list[Consequence]]] = []

        async def report() -> None:
            answers.append(
                await database.write(partial(finish.complete, task_id=task.id, request=request))
            )

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(report)
        assert {ended.status for ended, _ in answers} == {"completed"}
        assert len([told for _, told in answers if told]) == 1
        assert len(await comments(database, task.issue_id)) == 1
        late, told = await database.write(
            partial(finish.fail, task_id=task.id, request=FailRequest(error="late"))
        )
        assert (late.status, told) == ("completed", [])


async def test_an_agent_that_wrote_itself_is_not_spoken_for() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        facts = enqueue.IssueFacts(id=task.issue_id, workspace_id=world.workspace_id, status="todo")
        await database.write(
            lambda conn: make_comment(
                conn, facts, world.agent_id, "Look here.", author_type="agent"
            )
        )
        await database.write(
            partial(finish.complete, task_id=task.id, request=CompleteRequest(output="Did it."))
        )
        assert await comments(database, task.issue_id) == [("agent", "comment", "Look here.")]


async def test_a_completion_keeps_the_pinned_session() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        await database.write(
            lambda conn: conn.fetchrow(SQL.pin_session, task.id, None, None, "pinned", "/w")
        )
        await database.write(
            partial(finish.complete, task_id=task.id, request=CompleteRequest(output="x"))
        )
        row = await database.read(lambda conn: conn.fetchrow(SQL.get_task, task.id))
        assert row is not None
        assert (row["session_id"], row["work_dir"]) == ("pinned", "/w")


async def test_completing_what_has_not_started_keeps_the_token() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        await database.write(lambda conn: make_task(conn, world))
        task, _ = await database.write(partial(claim, runtime_id=world.runtime_id))
        assert task is not None
        ended, told = await database.write(
            partial(finish.complete, task_id=task.id, request=CompleteRequest(output="x"))
        )
        assert (ended.status, told) == ("dispatched", [])
        assert await database.read(lambda conn: conn.fetchval("select count(*) from task_token"))


async def test_failing_for_good_says_why() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        request = FailRequest(error="API Error: 429 overloaded, token=abc", session_id="s")
        ended, told = await database.write(partial(finish.fail, task_id=task.id, request=request))
        assert ended.failure_reason == "agent_error.provider_capacity_or_rate_limit"
        assert ended.error == "API Error: 429 overloaded, [REDACTED CREDENTIAL]"
        assert kinds(told) == [
            "comment:created",
            "activity:created",
            "agent:status",
            "task:failed",
            "TokensRevoked",
        ]
        assert await comments(database, task.issue_id) == [("agent", "system", ended.error)]
        row = await database.read(lambda conn: conn.fetchrow(SQL.get_task, task.id))
        assert row is not None
        assert row["session_id"] == "s"


async def test_a_retry_inherits_what_the_run_was_about() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        facts = await database.write(lambda conn: make_issue(conn, world, priority="urgent"))
        await database.write(
            lambda conn: enqueue.assignees_changed(
                conn, [facts], world.actor, handoff_note="Mind the gap."
            )
        )
        await database.write(
            lambda conn: conn.execute("update agent_task_queue set is_leader_task = true")
        )
        task, _ = await database.write(partial(claim, runtime_id=world.runtime_id))
        assert task is not None
        request = FailRequest(
            error="gone", failure_reason="runtime_offline", session_id="s", work_dir="/w"
        )
        ended, told = await database.write(partial(finish.fail, task_id=task.id, request=request))
        assert ended.status == "failed"
        assert kinds(told) == [
            "agent:status",
            "task:failed",
            "task:queued",
            "TaskAvailable",
            "TokensRevoked",
        ]
        assert await comments(database, facts.id) == []
        rows = await database.read(
            lambda conn: conn.fetch("select * from agent_task_queue where status = 'queued'")
        )
        assert len(rows) == 1
        row = rows[0]
        assert row["parent_task_id"] == task.id
        assert row["attempt"] == 2
        assert row["priority"] == 4
        assert row["handoff_note"] == "Mind the gap."
        assert row["is_leader_task"] is True
        assert (row["initiator_type"], row["initiator_id"]) == ("member", world.user_id)
        assert (row["session_id"], row["work_dir"]) == ("s", "/w")
        assert row["force_fresh_session"] is False

        again, _ = await database.write(partial(claim, runtime_id=world.runtime_id))
        assert again is not None
        await database.write(partial(finish.fail, task_id=again.id, request=request))
        assert await comments(database, facts.id) == [("agent", "system", "gone")]
        left = await database.read(
            lambda conn: conn.fetchval(
                "select count(*) from agent_task_queue where status = 'queued'"
            )
        )
        assert left == 0


async def test_a_spoilt_session_is_not_handed_to_the_retry() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        request = FailRequest(
            error="x", failure_reason="codex_semantic_inactivity", session_id="s", work_dir="/w"
        )
        await database.write(partial(finish.fail, task_id=task.id, request=request))
        row = await database.read(
            lambda conn: conn.fetchrow("select * from agent_task_queue where status = 'queued'")
        )
        assert row is not None
        assert (row["session_id"], row["work_dir"]) == (None, None)
        assert row["force_fresh_session"] is True


async def test_a_retry_gives_way_to_a_follow_up() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        facts = enqueue.IssueFacts(
            id=task.issue_id,
            workspace_id=world.workspace_id,
            status="todo",
            assignee_type="agent",
            assignee_id=world.agent_id,
        )
        await database.write(lambda conn: enqueue.issue_created(conn, facts, world.actor))
        request = FailRequest(error="x", failure_reason="timeout")
        ended, told = await database.write(partial(finish.fail, task_id=task.id, request=request))
        assert ended.status == "failed"
        assert "task:queued" not in kinds(told)
        # Its turn has come.
        assert [c for c in told if isinstance(c, TaskAvailable)]
        # Work goes on, so there is nothing to complain about.
        assert await comments(database, task.issue_id) == []


async def test_recovering_orphans() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)

        async def fill(conn: Connection) -> list[str]:
            first = await make_issue(conn, world, status="in_progress")
            second = await make_issue(conn, world, status="in_progress")
            return [
                await make_task(conn, world, status="running", issue_id=first.id),
                await make_task(conn, world, status="dispatched", issue_id=second.id, attempt=2),
                await make_task(conn, world, status="waiting_local_directory"),
                await make_task(conn, world, status="queued"),
                await make_task(conn, world, status="completed"),
            ]

        ids = await database.write(fill)
        caller = Caller(user_id=world.user_id, workspace_id=None)
        unit = partial(recover_orphans, runtime_id=world.runtime_id, caller=caller)
        reply, told = await database.write(unit)
        assert reply == RecoverReply(orphaned=3, retried=1)
        assert [await status_of(database, task_id) for task_id in ids] == [
            "failed",
            "failed",
            "failed",
            "queued",
            "completed",
        ]
        rows = await database.read(
            lambda conn: conn.fetch("select status from issue order by number")
        )
        # The first is tried again; nobody works on the second any more.
        assert [row["status"] for row in rows] == ["in_progress", "todo"]
        assert "issue:updated" in kinds(told)
        assert (await database.write(unit))[0] == RecoverReply(orphaned=0, retried=0)
        with pytest.raises(NotFound, match="runtime not found"):
            await database.write(partial(recover_orphans, runtime_id=new_id(), caller=caller))
        stranger = await make_world(database)
        with pytest.raises(Foreign):
            await database.write(
                partial(
                    recover_orphans,
                    runtime_id=world.runtime_id,
                    caller=Caller(user_id=stranger.user_id, workspace_id=None),
                )
            )


async def test_agents_are_idle_when_their_last_runs_end_together() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database, max_concurrent_tasks=100, status="working")

        async def fill(conn: Connection) -> list[str]:
            return [
                await make_task(conn, world, status="running", autopilot_run_id=new_id())
                for _ in range(30)
            ]

        async with trio.open_nursery() as nursery:
            for task_id in await database.write(fill):
                nursery.start_soon(
                    database.write,
                    partial(finish.complete, task_id=task_id, request=CompleteRequest()),
                )
        status = await database.read(lambda conn: conn.fetchval("select status from agent"))
        assert status == "idle"


async def test_assigning_cancels_what_was_active_and_starts_the_new_one() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        other = await database.write(
            lambda conn: make_agent(conn, world.workspace_id, world.runtime_id)
        )
        facts = enqueue.IssueFacts(
            id=task.issue_id,
            workspace_id=world.workspace_id,
            status="todo",
            assignee_type="agent",
            assignee_id=other,
        )
        told = await database.write(
            lambda conn: enqueue.assignees_changed(conn, [facts], world.actor)
        )
        assert await status_of(database, task.id) == "cancelled"
        assert kinds(told) == [
            "agent:status",
            "task:cancelled",
            "TokensRevoked",
            "task:queued",
            "TaskAvailable",
        ]
        told = await database.write(
            lambda conn: enqueue.assignees_changed(
                conn, [facts], world.actor, suppressed=[facts.id]
            )
        )
        assert kinds(told) == ["task:cancelled"]


async def test_leaving_the_backlog_starts_and_cancelling_ends() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        facts = await database.write(lambda conn: make_issue(conn, world, status="backlog"))
        assert not await database.write(
            lambda conn: enqueue.issue_created(conn, facts, world.actor)
        )
        moved = enqueue.IssueFacts(
            id=facts.id,
            workspace_id=facts.workspace_id,
            status="todo",
            assignee_type="agent",
            assignee_id=world.agent_id,
        )
        told = await database.write(
            lambda conn: enqueue.statuses_changed(conn, [(moved, "backlog")], world.actor)
        )
        assert kinds(told) == ["task:queued", "TaskAvailable"]
        assert not await database.write(
            lambda conn: enqueue.statuses_changed(conn, [(moved, "todo")], world.actor)
        )
        closed = enqueue.IssueFacts(
            id=facts.id, workspace_id=facts.workspace_id, status="cancelled"
        )
        told = await database.write(
            lambda conn: enqueue.statuses_changed(conn, [(closed, "todo")], world.actor)
        )
        assert kinds(told) == ["task:cancelled"]


async def test_an_agent_does_not_start_itself_by_its_status() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        facts = enqueue.IssueFacts(
            id=task.issue_id,
            workspace_id=world.workspace_id,
            status="todo",
            assignee_type="agent",
            assignee_id=world.agent_id,
        )
        itself = Actor(
            actor_type="agent", actor_id=world.agent_id, user_id=world.user_id, task_id=task.id
        )
        assert not await database.write(
            lambda conn: enqueue.statuses_changed(conn, [(facts, "backlog")], itself)
        )


async def test_comments_queue_one_follow_up() -> None:
    async with open_test_database() as (database, _):
        world = await make_world(database)
        facts = await database.write(lambda conn: make_issue(conn, world))

        async def talk(conn: Connection, text: str, *, user_id: str) -> list[Consequence]:
            comment_id = await make_comment(conn, facts, user_id, text)
            return await enqueue.comment_created(
                conn,
                facts,
                comment_id=comment_id,
                content=text,
                parent_id=None,
                actor=Actor(actor_id=user_id, user_id=user_id),
            )

        assert not await database.write(partial(talk, text="/note x", user_id=world.user_id))
        answers: list[list[Consequence]] = []

        async def say() -> None:
            answers.append(await database.write(partial(talk, text="go", user_id=world.user_id)))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(say)
        assert len([told for told in answers if told]) == 1


async def test_private_agents_answer_to_their_people_only() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database, visibility="private")
        facts = await database.write(lambda conn: make_issue(conn, world))
        guest = await database.write(make_user)
        await database.write(
            lambda conn: conn.execute(
                "insert into member (workspace_id, user_id, role) values ($1, $2, 'member')",
                world.workspace_id,
                guest,
            )
        )

        async def talk(conn: Connection, user_id: str) -> list[Consequence]:
            comment_id = await make_comment(conn, facts, user_id, "go")
            return await enqueue.comment_created(
                conn,
                facts,
                comment_id=comment_id,
                content="go",
                parent_id=None,
                actor=Actor(actor_id=user_id, user_id=user_id),
            )

        assert await database.write(partial(talk, user_id=guest)) == []
        assert await database.write(partial(talk, user_id=world.user_id))


async def test_agents_cannot_wake_each_other_for_ever() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        other = await database.write(
            lambda conn: make_agent(conn, world.workspace_id, world.runtime_id)
        )
        facts = await database.write(lambda conn: make_issue(conn, world))
        started = 0
        speaker, listener = world.agent_id, other
        for _ in range(loops.limits().per_issue + 10):
            text = f"[@X](mention://agent/{listener}) your turn"

            async def talk(
                conn: Connection, text: str = text, speaker: str = speaker
            ) -> list[Consequence]:
                comment_id = await make_comment(conn, facts, speaker, text, author_type="agent")
                told = await enqueue.comment_created(
                    conn,
                    facts,
                    comment_id=comment_id,
                    content=text,
                    parent_id=None,
                    actor=Actor(actor_type="agent", actor_id=speaker, user_id=world.user_id),
                )
                await conn.execute("update agent_task_queue set status = 'completed'")
                return told

            started += "task:queued" in kinds(await database.write(talk))
            speaker, listener = listener, speaker
        assert started == loops.limits().per_issue


async def test_rerunning() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task = await running(database, world)
        facts = enqueue.IssueFacts(id=task.issue_id, workspace_id=world.workspace_id, status="todo")
        with pytest.raises(Invalid):
            await database.write(lambda conn: enqueue.rerun(conn, facts, None, world.actor))
        with pytest.raises(Invalid):
            await database.write(lambda conn: enqueue.rerun(conn, facts, new_id(), world.actor))
        again, told = await database.write(
            lambda conn: enqueue.rerun(conn, facts, task.id, world.actor)
        )
        assert (again.status, again.attempt, again.parent_task_id) == ("queued", 1, "")
        assert await status_of(database, task.id) == "cancelled"
        assert kinds(told)[-2:] == ["task:queued", "TaskAvailable"]
