"""Everybody who locks several rows does it in one order: nothing is tried again for a deadlock."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from server.consequences import Consequence
from server.database import Database
from server.dispatch import enqueue, finish, sweeper
from server.dispatch.claim import claim
from server.dispatch.rules import IssueFacts
from server.errors import DomainError
from server.store import work
from server.store.queries import Connection
from shared.wire.task import CompleteRequest, FailRequest
from tests.support.postgres import open_test_database
from tests.support.rows import World, make_agent, make_comment, make_issue, make_task, make_world

pytestmark = pytest.mark.postgres

AGENTS = 3
ISSUES = 6


async def fill(conn: Connection, world: World) -> tuple[list[IssueFacts], list[str]]:
    """Issues on which several agents run at once; returns them and the tasks."""
    agents = [world.agent_id] + [
        await make_agent(conn, world.workspace_id, world.runtime_id) for _ in range(AGENTS - 1)
    ]
    issues = [await make_issue(conn, world, status="in_progress") for _ in range(ISSUES)]
    tasks = [
        await make_task(conn, world, issue_id=issue.id, agent_id=agent_id, status="running")
        for issue in issues
        for agent_id in agents
    ]
    await conn.execute(
        "update agent_task_queue set dispatched_at = now() - interval '2 days',"
        " started_at = now() - interval '2 days'"
    )
    return issues, tasks


async def test_ending_deleting_sweeping_and_talking_do_not_meet_crosswise() -> None:
    async with open_test_database(pool_size=10) as (database, _):
        world = await make_world(database, max_concurrent_tasks=100)
        for round_number in range(4):
            issues, tasks = await database.write(partial(fill, world=world))
            doomed, kept = issues[: ISSUES // 2], issues[ISSUES // 2 :]
            with capture_logs() as logs:
                async with trio.open_nursery() as nursery:
                    for place, task_id in enumerate(tasks):
                        nursery.start_soon(_end, database, task_id, place)
                    nursery.start_soon(database.write, partial(_delete, issues=doomed))
                    nursery.start_soon(database.write, sweeper.stuck_tasks)
                    nursery.start_soon(
                        database.write,
                        partial(finish.recover_orphans, runtime_id=world.runtime_id),
                    )
                    for issue in kept:
                        nursery.start_soon(
                            database.write, partial(_comment, issue=issue, world=world)
                        )
                        nursery.start_soon(
                            database.write, partial(_unassign, issue=issue, world=world)
                        )
                    nursery.start_soon(database.write, partial(claim, runtime_id=world.runtime_id))
            again = [entry for entry in logs if entry["event"] == "transaction is tried again"]
            assert not again, f"round {round_number}: {again}"
            left = await database.read(
                lambda conn: conn.fetchval(
                    "select count(*) from agent_task_queue where status = 'running'"
                )
            )
            assert left == 0
            await database.write(lambda conn: conn.execute("delete from issue"))


async def _end(database: Database, task_id: str, place: int) -> None:
    unit: Any = partial(finish.complete, task_id=task_id, request=CompleteRequest(output="Did it."))
    if place % 3 == 1:
        unit = partial(finish.fail, task_id=task_id, request=FailRequest(error="boom"))
    if place % 3 == 2:
        unit = partial(finish.cancel, task_id=task_id)
    with suppress(DomainError):  # its issue was deleted
        await database.write(unit)


async def _delete(conn: Connection, issues: list[IssueFacts]) -> list[Consequence]:
    ids = [issue.id for issue in issues]
    await work.lock_doomed(conn, issues[0].workspace_id, ids)
    told = await finish.cancel_issues(conn, ids)
    await work.delete_issues(conn, ids)
    return told


async def _comment(conn: Connection, issue: IssueFacts, world: World) -> list[Consequence]:
    await work.lock_issue(conn, world.workspace_id, issue.id)
    comment_id = await make_comment(conn, issue, world.user_id, "go")
    return await enqueue.comment_created(
        conn, issue, comment_id=comment_id, content="go", parent_id=None, actor=world.actor
    )


async def _unassign(conn: Connection, issue: IssueFacts, world: World) -> list[Consequence]:
    await work.lock_issue(conn, world.workspace_id, issue.id)
    return await enqueue.assignee_changed(conn, issue, world.actor)
