"""Whoever ends a task: the same follows, in the same transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import attrs
import pytest

from server.consequences import Consequence
from server.database import Database
from server.dispatch import finish, settle, sweeper
from server.dispatch.lifecycle import ADOPT, CHANGES
from server.dispatch.outcome import Ended
from server.dispatch.sweeper import OFFLINE
from server.store.queries import Connection
from shared.ids import new_id
from shared.wire.event import Event
from shared.wire.task import CompleteRequest, FailRequest
from tests.server.test_finish import kinds
from tests.support.postgres import open_test_database
from tests.support.rows import World, make_issue, make_task, make_world

pytestmark = pytest.mark.postgres

Cause = Callable[[Connection, World, str], Awaitable[Any]]


async def by_its_daemon(conn: Connection, _: World, task_id: str) -> list[Consequence]:
    request = FailRequest(error="boom", failure_reason="agent_blocked")
    return (await finish.fail(conn, task_id, request))[1]


async def by_the_sweeper(conn: Connection, _: World, task_id: str) -> list[Consequence]:
    await conn.execute(
        "update agent_task_queue set dispatched_at = now() - interval '2 days',"
        " started_at = now() - interval '2 days' where id = $1",
        task_id,
    )
    return await sweeper.stuck_tasks(conn)


async def by_recovery(conn: Connection, world: World, _: str) -> list[Consequence]:
    return (await finish.recover_orphans(conn, world.runtime_id))[1]


async def by_its_lost_machine(conn: Connection, _: World, task_id: str) -> list[Consequence]:
    return (await finish.fail_many(conn, [task_id], OFFLINE))[1]


async def by_a_person(conn: Connection, _: World, task_id: str) -> list[Consequence]:
    return (await finish.cancel(conn, task_id))[1]


async def with_its_agent(conn: Connection, world: World, _: str) -> list[Consequence]:
    return await finish.cancel_agent(conn, world.agent_id)


async def by_completing(conn: Connection, _: World, task_id: str) -> list[Consequence]:
    return (await finish.complete(conn, task_id, CompleteRequest(output=r"One\ntwo")))[1]


FAILING: list[Cause] = [by_its_daemon, by_the_sweeper, by_recovery, by_its_lost_machine]
CAUSES: list[Cause] = [*FAILING, by_a_person, with_its_agent, by_completing]


@attrs.define
class Heard:
    """A settler that remembers what it was given."""

    ended: list[Ended] = attrs.field(factory=list)
    calls: int = 0
    breaks: bool = False

    async def __call__(self, conn: Connection, ended: Sequence[Ended]) -> list[Consequence]:
        assert await conn.fetchval("select true")
        self.calls += 1
        self.ended += ended
        for one in ended:
            one.answer["settled"] = one.kind
        if self.breaks:
            raise RuntimeError("no")
        return [Event(type="settled", payload={}, workspace_id=ended[0].task["workspace_id"])]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    one = Heard()
    monkeypatch.setattr(settle, "SETTLERS", dict.fromkeys(settle.SETTLERS, (one,)))
    return one


async def run_of(conn: Connection, world: World, kind: str, **columns: Any) -> str:
    match kind:
        case "issue":
            issue = await make_issue(conn, world, status="in_progress")
            columns["issue_id"] = issue.id
        case "chat":
            columns["chat_session_id"] = new_id()
        case "autopilot":
            columns["autopilot_run_id"] = new_id()
    row = {"status": "running", "attempt": 2} | columns
    task_id = await make_task(conn, world, **row)
    await conn.execute("update agent_task_queue set started_at = now() where id = $1", task_id)
    await conn.execute(
        "insert into task_token (token_hash, task_id, agent_id, workspace_id, user_id, expires_at)"
        " values ($1, $2, $3, $4, $5, now() + interval '1 day')",
        f"hash {task_id}",
        task_id,
        world.agent_id,
        world.workspace_id,
        world.user_id,
    )
    await conn.execute("update agent set status = 'working'")
    return task_id


@pytest.mark.parametrize("kind", sorted(settle.SETTLERS))
@pytest.mark.parametrize("cause", CAUSES)
async def test_every_cause_settles_every_kind(cause: Cause, kind: str, heard: Heard) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task_id = await database.write(partial(run_of, world=world, kind=kind))
        told = await database.write(_call(cause, world, task_id))
        (one,) = heard.ended
        assert (one.id, one.kind, one.retry) == (task_id, kind, None)
        assert one.before["status"] == "running"
        assert one.status == {by_completing: "completed"}.get(
            cause, "failed" if cause in FAILING else "cancelled"
        )
        assert bool(one.text) == (one.status != "cancelled")
        if cause is by_completing:
            assert (one.text, one.completed) == ("One\ntwo", True)
        assert "settled" in kinds(told)
        # What all have in common.
        for common in ("agent:status", f"task:{one.status}"):
            assert kinds(told).count(common) == 1, common
        # An agent out of reach may be at work, and keeps its token until another takes its place.
        lost = cause is by_its_lost_machine
        assert kinds(told).count("TokensRevoked") == (not lost)
        if kind == "issue":
            assert kinds(told).count("comment:created") == (one.status != "cancelled")
            assert kinds(told).count("issue:updated") == (one.status == "failed")
        assert await tokens(database) == lost


def _call(cause: Cause, world: World, task_id: str) -> Callable[[Connection], Awaitable[Any]]:
    return lambda conn: cause(conn, world, task_id)


async def tokens(database: Database) -> int:
    count: int = await database.read(lambda conn: conn.fetchval("select count(*) from task_token"))
    return count


@pytest.mark.parametrize("kind", ["issue", "chat"])
@pytest.mark.parametrize("cause", FAILING[1:])
async def test_a_new_attempt_is_told_with_the_failure(
    cause: Cause, kind: str, heard: Heard
) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task_id = await database.write(partial(run_of, world=world, kind=kind, attempt=1))
        told = await database.write(_call(cause, world, task_id))
        (one,) = heard.ended
        assert one.retry is not None
        assert (one.retry["status"], one.retry["parent_task_id"]) == ("queued", task_id)
        # Work goes on: nobody is bothered.
        assert not {"comment:created", "issue:updated"} & set(kinds(told))


async def test_many_that_end_together_settle_together(heard: Heard) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)

        async def fill(conn: Connection) -> None:
            for kind in ("chat", "chat", "autopilot", "issue", "issue", "issue"):
                await run_of(conn, world, kind)

        await database.write(fill)
        told = await database.write(_call(by_recovery, world, ""))
        assert heard.calls == 3
        assert len(heard.ended) == 6
        assert kinds(told).count("task:failed") == 6


async def test_a_settler_that_breaks_ends_nothing(heard: Heard) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task_id = await database.write(partial(run_of, world=world, kind="chat"))
        heard.breaks = True
        with pytest.raises(RuntimeError):
            await database.write(_call(by_completing, world, task_id))
        status = await database.read(
            lambda conn: conn.fetchval("select status from agent_task_queue")
        )
        assert status == "running"
        assert await tokens(database) == 1


async def test_a_settler_adds_to_the_answer(heard: Heard) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task_id = await database.write(partial(run_of, world=world, kind="chat"))
        _, answer, _ = await database.write(partial(finish.cancel_answering, task_id=task_id))
        assert answer == {"settled": "chat"}
        assert heard.calls == 1


async def test_a_late_result_settles_as_one(heard: Heard) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)
        task_id = await database.write(partial(run_of, world=world, kind="chat", attempt=1))
        await database.write(_call(by_its_lost_machine, world, task_id))
        await database.write(_call(by_completing, world, task_id))
        failed, called_off, completed = heard.ended
        assert (failed.status, failed.adopted) == ("failed", False)
        assert called_off.status == "cancelled"
        assert (completed.id, completed.status, completed.adopted) == (task_id, "completed", True)
        assert (completed.before["status"], completed.task["status"]) == (
            next(iter(ADOPT.sources)),
            ADOPT.target,
        )
        assert ADOPT not in CHANGES.values()
