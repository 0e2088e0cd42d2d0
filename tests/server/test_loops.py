"""Agents that set each other to work are stopped, people are told, and people let them go on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from server.consequences import Consequence
from server.database import Database
from server.dispatch import enqueue, finish, loops
from server.dispatch.claim import claim
from server.dispatch.rules import IssueFacts
from server.errors import Conflict
from server.store.queries import Connection, Record
from shared.wire.event import Event
from shared.wire.task import FailRequest
from tests.server.test_finish import kinds
from tests.support.postgres import open_test_database
from tests.support.rows import Actor, World, make_agent, make_comment, make_issue, make_world

pytestmark = pytest.mark.postgres


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    before = loops.limits()
    loops.use(loops.Limits(per_issue=4, per_agent=6, depth=3))
    yield
    loops.use(before)


async def say(
    database: Database, issue: IssueFacts, actor: Actor, text: str, *, ends: bool = True
) -> list[Consequence]:
    """Comment; the run it starts is over at once when `ends`."""

    async def unit(conn: Connection) -> list[Consequence]:
        comment_id = await make_comment(
            conn, issue, actor.actor_id, text, author_type=actor.actor_type
        )
        told = await enqueue.comment_created(
            conn, issue, comment_id=comment_id, content=text, parent_id=None, actor=actor
        )
        if ends:
            await conn.execute("update agent_task_queue set status = 'completed'")
        return told

    return await database.write(unit)


def agent_at_work(world: World, agent_id: str, task_id: str | None = None) -> Actor:
    return Actor(actor_type="agent", actor_id=agent_id, user_id=world.user_id, task_id=task_id)


def at(agent_id: str) -> str:
    return f"[@X](mention://agent/{agent_id}) your turn"


async def latest(database: Database) -> Record:
    row = await database.read(
        lambda conn: conn.fetchrow("select * from agent_task_queue order by created_at desc")
    )
    assert row is not None
    return row


async def paused(database: Database, issue: IssueFacts) -> bool:
    return bool(
        await database.read(
            lambda conn: conn.fetchval(
                "select runs_paused_at is not null from issue where id = $1", issue.id
            )
        )
    )


async def fill(database: Database, world: World, issue: IssueFacts) -> None:
    """Use up what agents may cause on the issue."""
    for _ in range(loops.limits().per_issue):
        told = await say(database, issue, agent_at_work(world, world.agent_id), at(world.agent_id))
        assert kinds(told) == ["task:queued", "TaskAvailable"]


async def test_an_issue_pauses_and_its_people_are_told_once() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        issue = await database.write(lambda conn: make_issue(conn, world, title="Ping"))
        await fill(database, world, issue)
        me = agent_at_work(world, world.agent_id)
        told = await say(database, issue, me, at(world.agent_id))
        assert kinds(told) == ["comment:created", "inbox:new"]
        comment, inbox = told
        assert isinstance(comment, Event)
        assert isinstance(inbox, Event)
        shown = comment.payload["comment"]
        assert (shown["author_type"], shown["type"]) == ("system", "system")
        assert shown["author_id"] == "00000000-0000-0000-0000-000000000000"
        assert "paused" in shown["content"]
        assert inbox.users == (world.user_id,)
        item = inbox.payload["item"]
        assert item["recipient_id"] == world.user_id
        assert (item["type"], item["severity"]) == ("runs_paused", "attention")
        assert (item["issue_id"], item["title"], item["read"]) == (issue.id, "Ping", False)
        assert await paused(database, issue)
        assert await say(database, issue, me, at(world.agent_id)) == []


async def test_a_persons_comment_lets_agents_go_on() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        issue = await database.write(
            lambda conn: make_issue(conn, world, assignee_type=None, assignee_id=None)
        )
        await fill(database, world, issue)
        me = agent_at_work(world, world.agent_id)
        await say(database, issue, me, at(world.agent_id))
        # What is for people only is no leave.
        await say(database, issue, world.actor, "/note what is this")
        assert await paused(database, issue)
        # This starts nobody, and is one.
        assert await say(database, issue, world.actor, "go on") == []
        assert not await paused(database, issue)
        # What agents did before no longer counts.
        assert await say(database, issue, me, at(world.agent_id))
        assert not await paused(database, issue)


async def test_so_does_a_run_that_a_person_starts() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        issue = await database.write(lambda conn: make_issue(conn, world))
        await fill(database, world, issue)
        me = agent_at_work(world, world.agent_id)
        await say(database, issue, me, at(world.agent_id))
        with pytest.raises(Conflict, match="paused"):
            await database.write(lambda conn: enqueue.rerun(conn, issue, None, me))
        await database.write(lambda conn: enqueue.rerun(conn, issue, None, world.actor))
        assert not await paused(database, issue)
        row = await latest(database)
        assert (row["initiator_type"], row["depth"]) == ("member", 0)


async def test_one_agent_is_not_called_from_everywhere() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        other = await database.write(
            lambda conn: make_agent(conn, world.workspace_id, world.runtime_id)
        )
        issues = [
            await database.write(
                lambda conn: make_issue(conn, world, assignee_type=None, assignee_id=None)
            )
            for _ in range(8)
        ]
        me = agent_at_work(world, world.agent_id)
        for issue in issues[:6]:
            assert "task:queued" in kinds(await say(database, issue, me, at(other)))
        assert "inbox:new" in kinds(await say(database, issues[6], me, at(other)))
        # Others may still be called.
        told = await say(database, issues[7], me, at(world.agent_id))
        assert "task:queued" in kinds(told)


async def test_a_chain_ends_wherever_it_goes() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database, max_concurrent_tasks=10)
        task_id: str | None = None
        for depth in range(1, 5):
            # Each run makes a new issue for the next.
            issue = await database.write(
                lambda conn: make_issue(
                    conn, world, creator_type="agent", creator_id=world.agent_id
                )
            )
            actor = agent_at_work(world, world.agent_id, task_id)
            told = await database.write(partial(enqueue.issue_created, issue=issue, actor=actor))
            if depth <= loops.limits().depth:
                assert kinds(told) == ["task:queued", "TaskAvailable"]
                row = await latest(database)
                assert row["depth"] == depth
                task_id = row["id"]
            else:
                # Nobody near is a person: the owners are told.
                assert kinds(told) == ["comment:created", "inbox:new"]
                assert await paused(database, issue)


async def test_a_retry_is_no_deeper() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        issue = await database.write(lambda conn: make_issue(conn, world))
        await say(
            database, issue, agent_at_work(world, world.agent_id), at(world.agent_id), ends=False
        )
        task, _ = await database.write(partial(claim, runtime_id=world.runtime_id))
        assert task is not None
        request: Any = FailRequest(error="x", failure_reason="timeout")
        await database.write(partial(finish.fail, task_id=task.id, request=request))
        row = await latest(database)
        assert (row["parent_task_id"], row["depth"]) == (task.id, 1)
