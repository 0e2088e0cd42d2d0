"""What starts runs, and what says beforehand that it would."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from server.consequences import TaskAvailable
from server.store.queries import Connection, Record
from tests.support.api import Api, open_api
from tests.support.rows import insert, make_agent, make_issue, make_runtime, make_task

pytestmark = pytest.mark.postgres

NOBODY = "00000000-0000-4000-8000-000000000000"
SYSTEM = "00000000-0000-0000-0000-000000000000"


def at(kind: str, who: str, name: str = "X") -> str:
    return f"[@{name}](mention://{kind}/{who})"


async def agent(api: Api, **columns: Any) -> str:
    made: str = await api.run(
        lambda conn: make_agent(conn, api.world.workspace_id, api.world.runtime_id, **columns)
    )
    return made


async def squad(api: Api, leader_id: str, **columns: Any) -> str:
    made: str = await api.run(
        lambda conn: insert(
            conn,
            "squad",
            workspace_id=api.world.workspace_id,
            leader_id=leader_id,
            **({"name": "Crew"} | columns),
        )
    )
    return made


async def issue(api: Api, **columns: Any) -> str:
    made: str = (await api.run(lambda conn: make_issue(conn, api.world, **columns))).id
    return made


async def queued(api: Api) -> list[Record]:
    rows: list[Record] = await api.run(
        lambda conn: conn.fetch(
            "select * from agent_task_queue where status = 'queued' order by created_at, agent_id"
        )
    )
    return rows


async def comments_of(api: Api, issue_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await api.member.get(f"/api/issues/{issue_id}/comments")
    return found


# --- comments -------------------------------------------------------------------------------------


@pytest.mark.spec("06 §7.4", "POST /api/issues/{id}/comments")
async def test_a_comment_starts_all_whom_it_mentions() -> None:
    async with open_api() as api:
        first, second, led = await agent(api), await agent(api), await agent(api)
        crew = await squad(api, led)
        issue_id = await issue(api, assignee_type=None, assignee_id=None)
        text = f"{at('agent', first)} {at('agent', second)} {at('squad', crew)} please"
        made = await api.member.ok(
            201, "POST", f"/api/issues/{issue_id}/comments", {"content": text}
        )
        rows = await queued(api)
        assert {(row["agent_id"], row["is_leader_task"]) for row in rows} == {
            (first, False),
            (second, False),
            (led, True),
        }
        assert {row["trigger_comment_id"] for row in rows} == {made["id"]}
        assert sum(isinstance(told, TaskAvailable) for told in api.told) == 3


@pytest.mark.spec("06 §7.4", "POST /api/issues/{id}/comments")
async def test_who_is_suppressed_is_not_started() -> None:
    async with open_api() as api:
        other = await agent(api)
        issue_id = await issue(api)
        body = {
            "content": f"{at('agent', other)} {at('agent', api.world.agent_id)}",
            "suppress_agent_ids": [api.world.agent_id],
        }
        await api.member.ok(201, "POST", f"/api/issues/{issue_id}/comments", body)
        assert [row["agent_id"] for row in await queued(api)] == [other]


@pytest.mark.spec(
    "02 §3.4",
    "POST /api/issues/{id}/comments",
    differs="A malformed id in a mention is no mention; the reference answers 500.",
)
async def test_a_malformed_mention_is_text() -> None:
    async with open_api() as api:
        issue_id = await issue(api, assignee_type=None, assignee_id=None)
        body = {"content": "[@X](mention://agent/abc)"}
        await api.member.ok(201, "POST", f"/api/issues/{issue_id}/comments", body)
        assert await queued(api) == []


@pytest.mark.spec("06 §7.4", "POST /api/issues/{id}/comments")
async def test_an_agents_comment_starts_the_leader_of_the_assigned_squad() -> None:
    async with open_api() as api:
        led = await agent(api)
        crew = await squad(api, led)
        issue_id = await issue(api, assignee_type="squad", assignee_id=crew)
        path = f"/api/issues/{issue_id}/comments"
        await (await api.agent()).ok(201, "POST", path, {"content": "I am finished."})
        (row,) = await queued(api)
        assert (row["agent_id"], row["is_leader_task"]) == (led, True)


@pytest.mark.spec("06 §7.2", "POST /api/issues/{id}/comments")
async def test_a_leader_that_decided_to_do_nothing_is_silent() -> None:
    async with open_api() as api:
        issue_id = await issue(api)

        leader = await api.agent(issue_id=issue_id)

        async def unit(conn: Connection) -> None:
            task_id = await conn.fetchval("select task_id from task_token")
            await insert(
                conn,
                "activity_log",
                workspace_id=api.world.workspace_id,
                issue_id=issue_id,
                actor_type="agent",
                actor_id=api.world.agent_id,
                action="squad_leader_evaluated",
                details={"outcome": "no_action", "task_id": task_id},
            )

        await api.run(unit)
        path = f"/api/issues/{issue_id}/comments"
        assert "no_action" in await leader.refused(409, "POST", path, {"content": "but"})


@pytest.mark.spec(
    "02 §3.2",
    "POST /api/issues/{id}/comments",
    differs="Only a task token makes an agent: headers are not read, and an agent that all may use"
    " opens no private one.",
)
async def test_headers_open_no_private_agent() -> None:
    async with open_api() as api:
        secret = await agent(api, visibility="private", owner_id=api.world.user_id)
        issue_id = await issue(api, assignee_type=None, assignee_id=None)
        task_id = await api.run(lambda conn: make_task(conn, api.world, status="completed"))
        response = await api.member.call(
            "POST",
            f"/api/issues/{issue_id}/comments",
            {"content": at("agent", secret)},
            headers={"X-Agent-ID": api.world.agent_id, "X-Task-ID": task_id},
        )
        assert response.status_code == 201, response.text
        assert response.json()["author_type"] == "member"
        assert await queued(api) == []
        told = f"/api/issues/{issue_id}/comments", {"content": at("agent", secret)}
        await (await api.agent()).ok(201, "POST", *told)
        assert await queued(api) == []
        await api.run(
            lambda conn: conn.execute(
                "update agent set visibility = 'private' where id = $1", api.world.agent_id
            )
        )
        await (await api.agent()).ok(201, "POST", *told)
        assert [row["agent_id"] for row in await queued(api)] == [secret]


@pytest.mark.spec("06 §7.3", "POST /api/issues/{id}/comments/trigger-preview")
async def test_the_preview_of_a_comment() -> None:
    async with open_api() as api:
        led = await agent(api, name="Lead", avatar_url="/a.png")
        crew = await squad(api, led)
        other = await agent(api, name="Other")
        issue_id = await issue(api, assignee_type="agent", assignee_id=other)
        path = f"/api/issues/{issue_id}/comments/trigger-preview"
        text = f"{at('agent', other)} {at('squad', crew)} {at('agent', NOBODY)}"
        assert await api.member.ok(200, "POST", path, {"content": text}) == {
            "agents": [
                {
                    "id": other,
                    "name": "Other",
                    "source": "issue_assignee",
                    "reason": "assigned to this issue",
                },
                {
                    "id": led,
                    "name": "Lead",
                    "avatar_url": "/a.png",
                    "source": "mention_squad_leader",
                    "reason": "leads a squad that is mentioned",
                },
            ]
        }
        assert await api.member.ok(200, "POST", path, {"content": "/note x"}) == {"agents": []}
        assert await queued(api) == []
        # A task of the comment that is being edited is not in the way.
        comments = f"/api/issues/{issue_id}/comments"
        made = await api.member.ok(201, "POST", comments, {"content": "go"})
        assert await api.member.ok(200, "POST", path, {"content": "go"}) == {"agents": []}
        edited = {"content": "go", "editing_comment_id": made["id"]}
        assert len((await api.member.ok(200, "POST", path, edited))["agents"]) == 1
        stray = {"content": "go", "parent_id": NOBODY}
        assert await api.member.refused(400, "POST", path, stray)
        await api.member.refused(404, "POST", f"/api/issues/{NOBODY}/comments/trigger-preview", {})


# --- issues ---------------------------------------------------------------------------------------


@pytest.mark.spec("06 §6.2", "POST /api/issues")
async def test_a_squads_issue_starts_its_leader_if_it_is_there() -> None:
    async with open_api() as api:
        crew = await squad(api, api.world.agent_id)
        body = {"title": "One", "assignee_type": "squad", "assignee_id": crew}
        await api.member.ok(201, "POST", "/api/issues", body)
        (row,) = await queued(api)
        assert (row["agent_id"], row["is_leader_task"]) == (api.world.agent_id, True)
        away = await api.run(
            lambda conn: make_runtime(
                conn, api.world.workspace_id, api.world.user_id, status="offline"
            )
        )
        gone = await api.run(lambda conn: make_agent(conn, api.world.workspace_id, away))
        body = {"title": "Two", "assignee_type": "squad", "assignee_id": await squad(api, gone)}
        await api.member.ok(201, "POST", "/api/issues", body)
        assert len(await queued(api)) == 1


@pytest.mark.spec("02 §3.3", "POST /api/issues")
async def test_which_squads_can_be_assigned() -> None:
    async with open_api() as api:
        archived = await agent(api, archived_at=await _now(api))
        secret = await agent(api, visibility="private", owner_id=api.world.user_id)

        async def refused(status: int, squad_id: str) -> None:
            body = {"title": squad_id, "assignee_type": "squad", "assignee_id": squad_id}
            await api.member.refused(status, "POST", "/api/issues", body)

        await refused(400, NOBODY)
        await refused(400, await squad(api, api.world.agent_id, archived_at=await _now(api)))
        await refused(400, await squad(api, archived))
        await refused(403, await squad(api, secret))


async def _now(api: Api) -> Any:
    return await api.run(lambda conn: conn.fetchval("select now()"))


@pytest.mark.spec("02 §3.3", "POST /api/issues/preview-trigger")
async def test_the_preview_of_an_assignment() -> None:
    async with open_api() as api:
        path = "/api/issues/preview-trigger"
        waiting = await issue(api, status="backlog")
        mine = await issue(api)
        theirs = await issue(api, assignee_type="member", assignee_id=api.world.user_id)
        ids = [waiting, mine, NOBODY, theirs]
        body: dict[str, Any] = {
            "issue_ids": ids,
            "is_create": False,
            "assignee_type": "agent",
            "assignee_id": api.world.agent_id,
        }
        assigned = {
            "agent_id": api.world.agent_id,
            "source": "assign",
            "handoff_supported": False,
        }
        assert await api.member.ok(200, "POST", path, body) == {
            "triggers": [{"issue_id": theirs, **assigned}],
            "total_count": 1,
        }
        await api.run(
            lambda conn: conn.execute(
                """update agent_runtime set metadata = '{"cli_version": "v0.3.28"}'::jsonb"""
            )
        )
        body = {"issue_ids": ids, "status": "todo"}
        released = {"source": "status", "handoff_supported": True}
        assert await api.member.ok(200, "POST", path, body) == {
            "triggers": [{"issue_id": waiting, **assigned, **released}],
            "total_count": 1,
        }
        body = {
            "issue_ids": [],
            "is_create": True,
            "assignee_type": "agent",
            "assignee_id": api.world.agent_id,
        }
        assert await api.member.ok(200, "POST", path, body) == {
            "triggers": [{"issue_id": "", **assigned, "handoff_supported": True}],
            "total_count": 1,
        }
        body["status"] = "backlog"
        assert await api.member.ok(200, "POST", path, body) == {"triggers": [], "total_count": 0}
        await api.member.refused(400, "POST", path, {"issue_ids": [NOBODY] * 501})


# --- children -------------------------------------------------------------------------------------


@pytest.mark.spec("06 §6.3", "PUT /api/issues/{id}")
async def test_the_parent_goes_on_when_its_children_are_finished() -> None:
    async with open_api() as api:
        parent = await issue(api, status="in_progress", title="Big")
        one = await issue(
            api,
            parent_issue_id=parent,
            title="[x](mention://all/all)",
            assignee_type=None,
            assignee_id=None,
        )
        two = await issue(api, parent_issue_id=parent, assignee_type=None, assignee_id=None)
        await api.member.ok(200, "PUT", f"/api/issues/{one}", {"status": "done"})
        assert await comments_of(api, parent) == []
        await api.member.ok(200, "PUT", f"/api/issues/{two}", {"status": "cancelled"})
        (comment,) = await comments_of(api, parent)
        assert (comment["author_type"], comment["author_id"], comment["type"]) == (
            "system",
            SYSTEM,
            "system",
        )
        assert comment["parent_id"] is None
        assert comment["content"].startswith("[@")
        assert f"](mention://agent/{api.world.agent_id}) " in comment["content"]
        assert f"](mention://issue/{two})" in comment["content"]
        (row,) = await queued(api)
        assert (row["issue_id"], row["agent_id"]) == (parent, api.world.agent_id)
        assert row["trigger_comment_id"] == comment["id"]
        # Closed is closed: from done to cancelled is no news.
        await api.member.ok(200, "PUT", f"/api/issues/{two}", {"status": "done"})
        assert len(await comments_of(api, parent)) == 1


@pytest.mark.spec("06 §6.3", "PUT /api/issues/{id}")
async def test_stages_are_barriers() -> None:
    async with open_api() as api:
        parent = await issue(api, status="in_progress")

        async def child(stage: int | None) -> str:
            return await issue(
                api, parent_issue_id=parent, stage=stage, assignee_type=None, assignee_id=None
            )

        first, other, second, loose = (
            await child(1),
            await child(1),
            await child(2),
            await child(None),
        )
        for done, posts in ((loose, 0), (second, 0), (first, 0), (other, 1)):
            await api.member.ok(200, "PUT", f"/api/issues/{done}", {"status": "done"})
            assert len(await comments_of(api, parent)) == posts
        (comment,) = await comments_of(api, parent)
        assert "Stage 1 is complete (stage 1: 2 of 2, stage 2: 1 of 1)" in comment["content"]
        assert "last stage" in comment["content"]


@pytest.mark.parametrize(
    "parent",
    [
        {"status": "backlog"},
        {"status": "done"},
        {"status": "cancelled"},
        {"status": "todo", "assignee_type": "member", "assignee_id": NOBODY},
    ],
)
@pytest.mark.spec("06 §6.3", "PUT /api/issues/{id}")
async def test_which_parents_are_left_alone(parent: dict[str, Any]) -> None:
    async with open_api() as api:
        parent_id = await issue(api, **parent)
        child = await issue(api, parent_issue_id=parent_id, assignee_type=None, assignee_id=None)
        await api.member.ok(200, "PUT", f"/api/issues/{child}", {"status": "done"})
        assert await comments_of(api, parent_id) == []
        assert await queued(api) == []


@pytest.mark.spec("06 §6.3", "PUT /api/issues/{id}")
async def test_a_squad_is_not_woken_by_what_it_did_itself() -> None:
    async with open_api() as api:
        crew = await squad(api, api.world.agent_id)
        parent = await issue(api, assignee_type="squad", assignee_id=crew)
        for who in ({"assignee_type": "squad", "assignee_id": crew}, {}):
            child = await issue(api, parent_issue_id=parent, **who)
            await api.member.ok(200, "PUT", f"/api/issues/{child}", {"status": "done"})
        assert len(await comments_of(api, parent)) == 2
        assert await queued(api) == []
        other = await agent(api)
        child = await issue(api, parent_issue_id=parent, assignee_id=other)
        await api.member.ok(200, "PUT", f"/api/issues/{child}", {"status": "done"})
        (row,) = await queued(api)
        assert (row["agent_id"], row["is_leader_task"]) == (api.world.agent_id, True)


# --- repeating ------------------------------------------------------------------------------------


@pytest.mark.spec("06 §6.2", "POST /api/issues/{id}/rerun")
async def test_a_rerun_starts_the_leader_of_the_assigned_squad() -> None:
    async with open_api() as api:
        crew = await squad(api, api.world.agent_id)
        issue_id = await issue(api, assignee_type="squad", assignee_id=crew)
        task = await api.member.ok(202, "POST", f"/api/issues/{issue_id}/rerun", {})
        assert (task["agent_id"], task["status"], task["attempt"]) == (
            api.world.agent_id,
            "queued",
            1,
        )
        (row,) = await queued(api)
        assert (row["is_leader_task"], row["force_fresh_session"]) == (True, True)


@pytest.mark.spec(
    "02 §3.11",
    "POST /api/issues/{id}/rerun",
    differs="Private and archived agents are respected, and only a person reruns a closed issue.",
)
async def test_what_cannot_be_run_again() -> None:
    async with open_api() as api:
        await api.run(
            lambda conn: conn.execute(
                "update agent set visibility = 'private' where id = $1", api.world.agent_id
            )
        )
        issue_id = await issue(api, status="done")
        path = f"/api/issues/{issue_id}/rerun"
        assert await api.member.refused(403, "POST", path, {})
        assert "only a person" in await (await api.agent()).refused(409, "POST", path, {})
        await api.owner.ok(202, "POST", path, {})
        await api.run(lambda conn: conn.execute("update agent set archived_at = now()"))
        assert await api.owner.refused(400, "POST", path, {})


async def test_two_children_that_finish_together_are_told_once() -> None:
    async with open_api() as api:
        parent = await issue(api, status="in_progress")
        children = [
            await issue(api, parent_issue_id=parent, assignee_type=None, assignee_id=None)
            for _ in range(6)
        ]
        async with trio.open_nursery() as nursery:
            for child in children:
                nursery.start_soon(
                    api.member.ok, 200, "PUT", f"/api/issues/{child}", {"status": "done"}
                )
        assert len(await comments_of(api, parent)) == 1


# --- evaluating -----------------------------------------------------------------------------------


@pytest.mark.spec("06 §11.2", "POST /api/issues/{id}/squad-evaluated")
async def test_a_leader_says_what_its_turn_came_to() -> None:
    async with open_api() as api:
        crew = await squad(api, api.world.agent_id)
        issue_id = await issue(api, assignee_type="squad", assignee_id=crew)
        leader = await api.agent(issue_id=issue_id)
        path = f"/api/issues/{issue_id}/squad-evaluated"
        body = {"outcome": "no_action", "reason": "All is well."}
        made = await leader.ok(201, "POST", path, body)
        assert set(made) == {"id", "action", "created_at"}
        assert made["action"] == "squad_leader_evaluated"
        (event,) = api.events("activity:created")
        (task,) = await api.fetch("select task_id as id from task_token")
        assert event.payload == {
            "issue_id": issue_id,
            "entry": {
                "type": "activity",
                "id": made["id"],
                "actor_type": "agent",
                "actor_id": api.world.agent_id,
                "action": "squad_leader_evaluated",
                "details": {"squad_id": crew, "task_id": task["id"], **body},
                "created_at": made["created_at"],
            },
        }
        comments = f"/api/issues/{issue_id}/comments"
        assert "no_action" in await leader.refused(409, "POST", comments, {"content": "but"})
        # Nothing is posted in its name either.
        done = f"/api/daemon/tasks/{task['id']}/complete"
        assert (await api.owner.ok(200, "POST", done, {"output": "Nothing to do."}))["status"] == (
            "completed"
        )
        assert await comments_of(api, issue_id) == []


@pytest.mark.spec("06 §11.2", "POST /api/issues/{id}/squad-evaluated")
async def test_who_may_evaluate() -> None:
    async with open_api() as api:
        body = {"outcome": "action"}
        mine = await issue(api)
        path = f"/api/issues/{mine}/squad-evaluated"
        await (await api.agent(issue_id=mine)).refused(400, "POST", path, body)
        crew = await squad(api, await agent(api))
        theirs = await issue(api, assignee_type="squad", assignee_id=crew)
        path = f"/api/issues/{theirs}/squad-evaluated"
        await (await api.agent(issue_id=theirs)).refused(403, "POST", path, body)
        await api.owner.refused(403, "POST", path, body)
        await api.run(
            lambda conn: conn.execute("update squad set leader_id = $1", api.world.agent_id)
        )
        await (await api.agent()).refused(400, "POST", path, body)
        await (await api.agent(issue_id=theirs)).refused(400, "POST", path, {"outcome": "x"})
