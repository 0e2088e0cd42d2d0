"""Everybody who locks several rows does it in one order: nothing is tried again for a deadlock."""

from __future__ import annotations

import random
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
from server.dispatch.register import register
from server.dispatch.rules import IssueFacts
from server.errors import DomainError
from server.store import work
from server.store.queries import Connection
from server.store.tasks import Caller
from shared import codec
from shared.wire.runtime import RegisterRequest
from shared.wire.task import CompleteRequest, FailRequest
from tests.support.api import Api, open_api
from tests.support.postgres import open_test_database
from tests.support.rows import (
    World,
    insert,
    make_agent,
    make_comment,
    make_issue,
    make_runtime,
    make_task,
    make_world,
)

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
    return await enqueue.assignees_changed(conn, [issue], world.actor)


async def test_families_are_locked_by_id_whoever_closes_or_deletes_what() -> None:
    families, children = 4, 3
    async with open_api() as api:
        with capture_logs() as logs, trio.fail_after(90):
            for number in range(6):
                parents = [
                    await api.run(partial(make_issue, world=api.world, status="in_progress"))
                    for _ in range(families)
                ]
                born = [
                    await api.run(
                        partial(
                            make_issue,
                            world=api.world,
                            status="in_progress",
                            parent_issue_id=parent.id,
                            assignee_type=None,
                            assignee_id=None,
                        )
                    )
                    for parent in parents
                    for _ in range(children)
                ]
                calls: list[tuple[str, str, Any]] = [
                    ("PUT", f"/api/issues/{child.id}", {"status": "done"}) for child in born
                ]
                calls += [
                    ("PUT", f"/api/issues/{parent.id}", {"status": "todo"}) for parent in parents
                ]
                everybody = [issue.id for issue in (*born, *parents)]
                body = {"issue_ids": everybody, "updates": {"status": "in_review"}}
                calls += [("POST", "/api/issues/batch-update", body)] * 2
                calls.append(("DELETE", f"/api/issues/{parents[0].id}", ...))
                doomed = {"issue_ids": [parents[1].id, parents[2].id]}
                calls.append(("POST", "/api/issues/batch-delete", doomed))
                random.Random(number).shuffle(calls)
                async with trio.open_nursery() as nursery:
                    for call in calls:
                        nursery.start_soon(_call, api, call)
        again = [entry for entry in logs if entry["event"] == "transaction is tried again"]
        assert not again, again


async def _call(api: Api, call: tuple[str, str, Any]) -> None:
    method, path, body = call
    answer = await api.owner.call(method, path, body)
    assert answer.status_code in {200, 204, 404}, answer.text


async def test_registrations_of_one_machine_in_any_order_do_not_meet_crosswise() -> None:
    kinds = ["claude", "codex", "gemini", "opencode", "cursor", "pi"]
    async with open_test_database(pool_size=10) as (database, _):
        world = await make_world(database)
        profiles = [
            await database.write(partial(_make_profile, world=world, name=f"p{number}"))
            for number in range(6)
        ]
        with capture_logs() as logs, trio.fail_after(60):
            for _ in range(5):
                async with trio.open_nursery() as nursery:
                    for number in range(8):
                        rng = random.Random(number)
                        order, broken = rng.sample(kinds, len(kinds)), rng.sample(profiles, 6)
                        body = {
                            "workspace_id": world.workspace_id,
                            "daemon_id": "one",
                            "runtimes": [{"type": kind} for kind in order]
                            + [{"type": "x", "profile_id": one} for one in broken[:3]],
                            "failed_profiles": [{"profile_id": one} for one in broken[3:]],
                        }
                        unit = partial(_register, world=world, body=body)
                        nursery.start_soon(database.write, unit)
        again = [entry for entry in logs if entry["event"] == "transaction is tried again"]
        assert not again


async def test_a_comment_that_races_the_merge_of_an_earlier_machine_is_kept() -> None:
    rounds = 25
    async with open_test_database(pool_size=10) as (database, _):
        world = await make_world(database)
        kept = 0
        with trio.fail_after(60):
            for number in range(rounds):
                issue = await database.write(partial(make_issue, world=world))
                old, agent_id = await database.write(partial(_make_old, world=world, number=number))
                body = {
                    "workspace_id": world.workspace_id,
                    "daemon_id": f"new-{number}",
                    "legacy_daemon_ids": [f"OLD-{number}"],
                    "runtimes": [{"type": "claude"}],
                }
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(
                        database.write, partial(_ask, issue=issue, world=world, agent_id=agent_id)
                    )
                    nursery.start_soon(database.write, partial(_register, world=world, body=body))
                rows = await database.read(
                    lambda conn: conn.fetch(
                        "select q.runtime_id, a.runtime_id as bound from agent_task_queue q"
                        " join agent a on a.id = q.agent_id where q.issue_id = $1",
                        issue.id,  # noqa: B023
                    )
                )
                kept += len(rows)
                assert all(row["bound"] != old for row in rows)
        assert kept == rounds


async def _register(conn: Connection, world: World, body: dict[str, Any]) -> Any:
    caller = Caller(user_id=world.user_id, workspace_id=None)
    return await register(conn, codec.structure(body, RegisterRequest), caller=caller)


async def _make_profile(conn: Connection, world: World, name: str) -> str:
    return await insert(
        conn,
        "runtime_profile",
        workspace_id=world.workspace_id,
        display_name=name,
        protocol_family="claude",
        command_name=name,
    )


async def _make_old(conn: Connection, world: World, number: int) -> tuple[str, str]:
    old = await make_runtime(conn, world.workspace_id, world.user_id, daemon_id=f"old-{number}")
    return old, await make_agent(conn, world.workspace_id, old)


async def _ask(
    conn: Connection, issue: IssueFacts, world: World, agent_id: str
) -> list[Consequence]:
    await work.lock_issue(conn, world.workspace_id, issue.id)
    content = f"[@A](mention://agent/{agent_id}) go"
    comment_id = await make_comment(conn, issue, world.user_id, content)
    return await enqueue.comment_created(
        conn, issue, comment_id=comment_id, content=content, parent_id=None, actor=world.actor
    )
