"""Runs: lists, transcripts, usage, cancelling, repeating (spec 06 §6.1, §6.2, §6.5)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.consequences import TaskAvailable, TokensRevoked
from server.store.queries import Connection
from shared.depth import CUT, DEEPEST
from tests.support.api import Api, open_api
from tests.support.rows import make_agent, make_issue, make_task

pytestmark = pytest.mark.postgres

NOBODY = "00000000-0000-4000-8000-000000000000"


async def make_run(api: Api, **task: Any) -> tuple[str, str]:
    """Make an issue assigned to the world's agent, and a task on it."""

    async def unit(conn: Connection) -> tuple[str, str]:
        issue = await make_issue(conn, api.world)
        return issue.id, await make_task(conn, api.world, issue_id=issue.id, **task)

    made: tuple[str, str] = await api.run(unit)
    return made


@pytest.mark.spec("06 §6.1", "GET /api/issues/{id}/task-runs")
async def test_a_run_is_shown_whole() -> None:
    async with open_api() as api:
        issue_id, task_id = await make_run(
            api,
            status="failed",
            priority=3,
            result={"output": "x"},
            error="boom",
            failure_reason="agent_error",
            work_dir="/home/dana/work/repo",
        )
        (task,) = await api.member.get(f"/api/issues/{issue_id}/task-runs")
        assert task == {
            "id": task_id,
            "agent_id": api.world.agent_id,
            "runtime_id": api.world.runtime_id,
            "issue_id": issue_id,
            "workspace_id": api.world.workspace_id,
            "status": "failed",
            "priority": 3,
            "dispatched_at": None,
            "started_at": None,
            "completed_at": None,
            "result": {"output": "x"},
            "error": "boom",
            "failure_reason": "agent_error",
            "attempt": 1,
            "max_attempts": 2,
            "created_at": task["created_at"],
            "work_dir": "/home/dana/work/repo",
            "relative_work_dir": "work/repo",
            "kind": "direct",
        }
        assert await api.member.get(f"/api/issues/{issue_id}/active-task") == {"tasks": []}


@pytest.mark.spec("06 §6.1", "GET /api/issues/{id}/active-task")
@pytest.mark.spec("06 §6.1", "GET /api/issues/{id}/usage")
async def test_active_runs_and_usage() -> None:
    async with open_api() as api:
        issue_id, task_id = await make_run(api, status="running")

        async def unit(conn: Connection) -> None:
            await make_task(conn, api.world, issue_id=issue_id, status="completed")
            for model in ("a", "b"):
                await conn.execute(
                    "insert into task_usage (task_id, model, input_tokens, output_tokens,"
                    " cache_read_tokens, cache_write_tokens) values ($1, $2, 1, 2, 3, 4)",
                    task_id,
                    model,
                )

        await api.run(unit)
        active = await api.member.get(f"/api/issues/{issue_id}/active-task")
        assert [task["id"] for task in active["tasks"]] == [task_id]
        assert await api.member.get(f"/api/issues/{issue_id}/usage") == {
            "total_input_tokens": 2,
            "total_output_tokens": 4,
            "total_cache_read_tokens": 6,
            "total_cache_write_tokens": 8,
            "task_count": 1,
        }
        empty = await api.owner.ok(201, "POST", "/api/issues", {"title": "None"})
        usage = await api.member.get(f"/api/issues/{empty['identifier']}/usage")
        assert set(usage.values()) == {0}


async def test_what_is_nested_too_deeply_is_cut_where_it_is_stored_and_refused_where_it_comes() -> (
    None
):
    def nested(levels: int) -> str:
        return '{"a":' * levels + "1" + "}" * levels

    async with open_api() as api:
        _, task_id = await make_run(api, status="running")

        async def unit(conn: Connection) -> None:  # by a version that had no bound
            for seq, levels in ((1, 400), (2, 3)):
                await conn.execute(
                    "insert into task_message (task_id, seq, type, tool, input)"
                    f" values ($1, $2, 'tool_use', 'Bash', '{nested(levels)}'::jsonb)",
                    task_id,
                    seq,
                )

        await api.run(unit)
        for path in (f"/api/tasks/{task_id}/messages", f"/api/daemon/tasks/{task_id}/messages"):
            deep, flat = await api.owner.get(path)
            text = json.dumps(deep["input"])
            assert CUT in text
            assert text.count("{") == DEEPEST
            assert flat["input"] == {"a": {"a": {"a": 1}}}

        for levels in (DEEPEST + 1, 400, 100_000):
            for method, path in (
                ("POST", "/api/issues"),
                ("POST", f"/api/daemon/tasks/{task_id}/complete"),
                ("PUT", f"/api/agents/{api.world.agent_id}"),
            ):
                body = f'{{"title":"x","output":"x","mcp_config":{nested(levels)}}}'
                answer = await api.owner.client.request(method, path, content=body)
                assert answer.status_code == 400, answer.text
                assert "nested" in answer.json()["error"]
        # a transcript is not refused but cut: a daemon would send it for ever
        row = f'{{"seq":3,"type":"tool_use","tool":"Bash","input":{nested(400)}}}'
        path = f"/api/daemon/tasks/{task_id}/messages"
        sent = await api.owner.client.post(path, content=f'{{"messages":[{row}]}}')
        assert sent.status_code == 200, sent.text
        *_, last = await api.owner.get(path)
        assert CUT in json.dumps(last["input"])


@pytest.mark.spec("06 §6.2", "GET /api/tasks/{id}/messages")
async def test_a_transcript_is_read_from_any_point() -> None:
    async with open_api() as api:
        issue_id, task_id = await make_run(api, status="running")

        async def unit(conn: Connection) -> None:
            for seq in range(1, 4):
                await conn.execute(
                    "insert into task_message (task_id, seq, type, tool, input, content)"
                    " values ($1, $2, 'tool_use', 'Bash', $3, null)",
                    task_id,
                    seq,
                    {"command": "ls"},
                )

        await api.run(unit)
        path = f"/api/tasks/{task_id}/messages"
        messages = await api.member.get(path)
        assert [message["seq"] for message in messages] == [1, 2, 3]
        assert messages[0] == {
            "task_id": task_id,
            "issue_id": issue_id,
            "seq": 1,
            "type": "tool_use",
            "tool": "Bash",
            "input": {"command": "ls"},
            "created_at": messages[0]["created_at"],
        }
        assert [m["seq"] for m in await api.member.get(path, since=2)] == [3]
        for since in (3, 2**31, 10**15):
            assert await api.member.get(path, since=since) == []
        for since in ("x", "1.5"):
            response = await api.member.call("GET", path, params={"since": since})
            assert response.status_code == 400
        assert await api.stranger.refused(404, "GET", path) == "task not found"
        assert await api.owner.refused(404, "GET", f"/api/tasks/{NOBODY}/messages")
        assert await api.owner.refused(400, "GET", "/api/tasks/x/messages")


async def test_cancelling_is_idempotent_and_revokes_the_token() -> None:
    async with open_api() as api:
        issue_id, task_id = await make_run(api, status="queued")
        path = f"/api/tasks/{task_id}/cancel"
        cancelled = await api.member.ok(200, "POST", path, {})
        assert (cancelled["id"], cancelled["status"]) == (task_id, "cancelled")
        assert len(api.events("task:cancelled")) == 1
        assert await api.member.ok(200, "POST", path, None) == cancelled
        assert len(api.events("task:cancelled")) == 1

        other = await api.run(lambda conn: make_issue(conn, api.world))
        agent = await api.agent(issue_id=other.id)
        (task,) = await api.owner.get(f"/api/issues/{other.id}/task-runs")
        wrong = f"/api/issues/{issue_id}/tasks/{task['id']}/cancel"
        assert await api.owner.refused(404, "POST", wrong, {}) == "task not found"
        right = f"/api/issues/{other.id}/tasks/{task['id']}/cancel"
        assert (await api.owner.ok(200, "POST", right))["status"] == "cancelled"
        assert any(isinstance(told, TokensRevoked) for told in api.told)
        await agent.refused(401, "GET", "/api/me")
        for caller in (api.stranger,):
            assert await caller.refused(404, "POST", path, {}) == "task not found"


@pytest.mark.spec(
    "06 §6.2",
    "GET /api/tasks/{id}/messages",
    differs="Transcripts of private agents are for those who may use them.",
)
async def test_runs_of_private_agents_are_for_those_who_may_use_them() -> None:
    async with open_api() as api:

        async def unit(conn: Connection) -> str:
            world = api.world
            private = await make_agent(
                conn,
                world.workspace_id,
                world.runtime_id,
                owner_id=world.user_id,
                visibility="private",
            )
            issue = await make_issue(conn, world, assignee_id=private)
            return await make_task(conn, world, agent_id=private, issue_id=issue.id)

        task_id = await api.run(unit)
        await api.member.refused(403, "GET", f"/api/tasks/{task_id}/messages")
        await api.member.refused(403, "POST", f"/api/tasks/{task_id}/cancel", {})
        assert await api.member.get("/api/agent-task-snapshot") == []
        agent = await api.agent()
        await agent.refused(403, "GET", f"/api/tasks/{task_id}/messages")
        await api.run(
            lambda conn: conn.execute(
                "update agent set visibility = 'private' where id = $1", api.world.agent_id
            )
        )
        await agent.get(f"/api/tasks/{task_id}/messages")
        await api.owner.ok(200, "POST", f"/api/tasks/{task_id}/cancel", {})


@pytest.mark.spec("06 §6.2", "POST /api/issues/{id}/rerun")
async def test_a_rerun_replaces_what_is_active() -> None:
    async with open_api() as api:
        issue_id, task_id = await make_run(api, status="running")
        path = f"/api/issues/{issue_id}/rerun"
        again = await api.member.ok(202, "POST", path, {})
        assert (again["status"], again["attempt"], again["issue_id"]) == ("queued", 1, issue_id)
        rows = await api.fetch(
            "select id, status, force_fresh_session from agent_task_queue order by created_at"
        )
        assert [(r["id"], r["status"], r["force_fresh_session"]) for r in rows] == [
            (task_id, "cancelled", False),
            (again["id"], "queued", True),
        ]
        assert TaskAvailable(api.world.runtime_id, again["id"]) in api.told
        for body in ({"task_id": task_id}, {"task_id": ""}, None, ...):
            await api.member.ok(202, "POST", path, body)
        _, foreign = await make_run(api)
        for bad in ({"task_id": NOBODY}, {"task_id": foreign}, {"task_id": "x"}, {"task_id": 1}):
            await api.member.refused(400, "POST", path, bad)
        bare = await api.owner.ok(201, "POST", "/api/issues", {"title": "Nobody's"})
        await api.member.refused(400, "POST", f"/api/issues/{bare['id']}/rerun", {})
