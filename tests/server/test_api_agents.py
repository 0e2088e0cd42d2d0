"""Agents and runtimes (spec 06 §10 and §17, 02 §8.2)."""

from __future__ import annotations

from typing import Any

import pytest

from server.consequences import TaskAvailable
from shared import codec
from tests.support.api import Api, open_api
from tests.support.rows import insert, make_agent, make_issue, make_runtime, make_task

pytestmark = pytest.mark.postgres

SECRET = "s3cr3t-value"


async def make(api: Api, **body: Any) -> Any:
    given = {"name": "Robin", "runtime_id": api.world.runtime_id}
    return await api.owner.ok(201, "POST", "/api/agents", given | body)


@pytest.mark.spec("06 §10.2", "GET /api/agents")
@pytest.mark.spec("06 §10.2", "POST /api/agents")
@pytest.mark.spec("06 §10.2", "GET /api/agents/{id}")
async def test_an_agent_is_shown_whole() -> None:
    async with open_api() as api:
        made = await make(
            api,
            description="Writes code",
            custom_env={"API_KEY": SECRET},
            custom_args=["--fast"],
            mcp_config={"servers": {"x": {"token": SECRET}}},
            runtime_config={"gateway": {"token": SECRET, "url": "u"}, "n": 1.5},
            thinking_level="high",
        )
        expected = {
            "id": made["id"],
            "workspace_id": api.world.workspace_id,
            "runtime_id": api.world.runtime_id,
            "name": "Robin",
            "description": "Writes code",
            "instructions": "",
            "avatar_url": None,
            "runtime_mode": "local",
            "runtime_config": {"gateway": {"token": "***", "url": "u"}, "n": 1.5},
            "custom_args": ["--fast"],
            "mcp_config": {"servers": {"x": {"token": SECRET}}},
            "mcp_config_redacted": False,
            "has_custom_env": True,
            "custom_env_key_count": 1,
            "visibility": "private",
            "permission_mode": "private",
            "invocation_targets": [],
            "status": "idle",
            "max_concurrent_tasks": 6,
            "model": "",
            "thinking_level": "high",
            "owner_id": api.world.user_id,
            "skills": [],
            "created_at": made["created_at"],
            "updated_at": made["updated_at"],
            "archived_at": None,
            "archived_by": None,
        }
        assert made == expected
        assert await api.owner.get(f"/api/agents/{made['id']}") == expected
        assert (await api.owner.get("/api/agents"))[-1] == expected
        (told,) = api.events("agent:created")
        how = {"instructions", "runtime_config", "custom_args", "mcp_config", "mcp_config_redacted"}
        how |= {"has_custom_env", "custom_env_key_count"}
        assert told.payload == {
            "agent": {key: value for key, value in expected.items() if key not in how}
        }
        assert SECRET not in codec.encode(told.payload).decode()
        minimal = await make(api, name="Min")
        assert (minimal["visibility"], minimal["mcp_config"]) == ("private", None)
        assert (minimal["has_custom_env"], minimal["custom_env_key_count"]) == (False, 0)


async def test_who_sees_the_mcp_configuration() -> None:
    async with open_api() as api:
        made = await make(api, mcp_config={"a": SECRET}, visibility="workspace")
        path = f"/api/agents/{made['id']}"
        seen = await api.member.get(path)
        assert (seen["mcp_config"], seen["mcp_config_redacted"]) == (None, True)
        agent = await api.agent()
        assert (await agent.get(path))["mcp_config"] is None
        assert all(entry["mcp_config"] is None for entry in await agent.get("/api/agents"))
        assert (await api.owner.get(path))["mcp_config"] == {"a": SECRET}
        here = f"/api/workspaces/{api.world.workspace_id}"
        await api.owner.ok(200, "PATCH", here, {"settings": {"always_redact_env": True}})
        assert (await api.owner.get(path))["mcp_config"] is None
        changed = await api.owner.ok(200, "PUT", path, {"name": "New"})
        assert (changed["mcp_config"], changed["mcp_config_redacted"]) == (None, True)


@pytest.mark.spec("06 §10.2", "PUT /api/agents/{id}")
async def test_updates_change_what_is_sent_and_keep_masked_secrets() -> None:
    async with open_api() as api:
        made = await make(
            api,
            instructions="Be kind",
            mcp_config=[1],
            runtime_config={"gateway": {"token": SECRET}},
        )
        path = f"/api/agents/{made['id']}"
        changed = await api.owner.ok(
            200,
            "PUT",
            path,
            {"description": "d", "runtime_config": {"gateway": {"token": "***"}, "x": 1}},
        )
        assert (changed["description"], changed["instructions"]) == ("d", "Be kind")
        assert changed["mcp_config"] == [1]
        (row,) = await api.fetch("select runtime_config from agent where id = $1", made["id"])
        assert row["runtime_config"] == {"gateway": {"token": SECRET}, "x": 1}
        cleared = await api.owner.ok(
            200, "PUT", path, {"mcp_config": None, "runtime_config": {"gateway": {"token": "***"}}}
        )
        assert cleared["mcp_config"] is None
        none_left = await api.owner.ok(200, "PUT", path, {"runtime_config": {}})
        assert none_left["runtime_config"] == {}
        dropped = await api.owner.ok(
            200, "PUT", path, {"runtime_config": {"gateway": {"token": "***", "u": 1}}}
        )
        assert dropped["runtime_config"] == {"gateway": {"u": 1}}
        assert len(api.events("agent:status")) == 4
        assert SECRET not in codec.encode([e.payload for e in api.events()]).decode()
        await api.owner.refused(400, "PUT", path, {"custom_env": {}})
        await api.owner.refused(400, "PUT", path, {"custom_env": None})


async def test_names_are_unique() -> None:
    async with open_api() as api:
        first, second = await make(api, name="A"), await make(api, name="B")
        body = {"name": "A", "runtime_id": api.world.runtime_id}
        assert "'A'" in await api.owner.refused(409, "POST", "/api/agents", body)
        await api.owner.refused(409, "PUT", f"/api/agents/{second['id']}", {"name": "A"})
        same = await api.owner.ok(200, "PUT", f"/api/agents/{first['id']}", {"name": "A"})
        assert same["name"] == "A"


async def test_bad_agents_are_refused() -> None:
    async with open_api() as api:
        good = {"name": "R", "runtime_id": api.world.runtime_id}
        for bad in (
            {"name": ""},
            {"name": "x" * 256},
            {"name": None},
            {"description": "x" * 256},
            {"runtime_id": None},
            {"runtime_id": "nope"},
            {"runtime_id": api.elsewhere.runtime_id},
            {"runtime_config": []},
            {"runtime_config": "x"},
            {"custom_env": {"A": 1}},
            {"custom_env": {"A=B": "x"}},
            {"custom_env": []},
            {"custom_args": "x"},
            {"custom_args": [1]},
            {"visibility": "secret"},
            {"max_concurrent_tasks": -1},
            {"max_concurrent_tasks": 10**30},
            {"max_concurrent_tasks": True},
            {"max_concurrent_tasks": 1.5},
            {"thinking_level": "extreme"},
            {"instructions": 5},
        ):
            await api.owner.refused(400, "POST", "/api/agents", good | bad)
        zero = await api.owner.ok(201, "POST", "/api/agents", good | {"max_concurrent_tasks": 0})
        assert zero["max_concurrent_tasks"] == 6


async def test_private_agents_are_for_their_owner_and_administrators() -> None:
    async with open_api() as api:
        made = await make(api)
        path = f"/api/agents/{made['id']}"
        await api.member.refused(403, "GET", path)
        await api.member.refused(403, "GET", f"{path}/tasks")
        assert made["id"] not in {a["id"] for a in await api.member.get("/api/agents")}
        agent = await api.agent()
        await agent.refused(403, "GET", path)  # an agent that all may use reaches no more than all
        await api.run(
            lambda conn: conn.execute(
                "update agent set visibility = 'private' where id = $1", api.world.agent_id
            )
        )
        assert (await agent.get(path))["id"] == made["id"]  # but a private one its owner's others
        for method, tail in (
            ("PUT", ""),
            ("POST", "/archive"),
            ("POST", "/restore"),
            ("POST", "/cancel-tasks"),
        ):
            await api.member.refused(403, method, path + tail, {})
        assert await api.stranger.refused(404, "GET", path) == "agent not found"


async def test_private_runtimes_are_for_their_owner_and_administrators() -> None:
    async with open_api() as api:
        body = {"name": "M", "runtime_id": api.world.runtime_id}
        await api.member.refused(403, "POST", "/api/agents", body)
        path = f"/api/runtimes/{api.world.runtime_id}"
        await api.member.refused(403, "PATCH", path, {"visibility": "public"})
        agent = await api.agent()
        await agent.refused(403, "PATCH", path, {"visibility": "public"})
        opened = await api.owner.ok(200, "PATCH", path, {"visibility": "public"})
        assert opened["visibility"] == "public"
        assert api.events("daemon:register")[-1].payload == {"action": "update"}
        mine = await api.member.ok(201, "POST", "/api/agents", body)
        assert mine["owner_id"] == api.member.user_id
        await api.member.ok(200, "PUT", f"/api/agents/{mine['id']}", {"name": "M2"})


async def test_moving_to_another_provider_checks_level_and_clears_a_foreign_model() -> None:
    async with open_api() as api:
        codex = await api.run(
            lambda conn: make_runtime(
                conn, api.world.workspace_id, api.world.user_id, provider="codex", status="offline"
            )
        )
        made = await make(api, model="claude-opus-4-5", thinking_level="max")
        path = f"/api/agents/{made['id']}"
        await api.owner.refused(400, "PUT", path, {"runtime_id": codex})
        moved = await api.owner.ok(200, "PUT", path, {"runtime_id": codex, "thinking_level": ""})
        assert (moved["runtime_id"], moved["model"], moved["thinking_level"]) == (codex, "", "")
        offline = await make(api, name="Off", runtime_id=codex)
        assert offline["status"] == "offline"


@pytest.mark.spec("06 §10.2", "POST /api/agents/{id}/archive")
@pytest.mark.spec("06 §10.2", "POST /api/agents/{id}/restore")
async def test_archiving_cancels_what_is_active_and_can_be_undone() -> None:
    async with open_api() as api:
        world = api.world

        async def unit(conn: Any) -> str:
            issue = await make_issue(conn, world)
            return await make_task(conn, world, issue_id=issue.id, status="running")

        task_id = await api.run(unit)
        path = f"/api/agents/{world.agent_id}"
        (task,) = await api.owner.get(f"{path}/tasks")
        assert (task["id"], task["status"], task["kind"]) == (task_id, "running", "direct")
        snapshot = await api.owner.get("/api/agent-task-snapshot")
        assert [entry["id"] for entry in snapshot] == [task_id]
        archived = await api.owner.ok(200, "POST", f"{path}/archive", None)
        assert archived["archived_by"] == world.user_id
        (row,) = await api.fetch("select status from agent_task_queue where id = $1", task_id)
        assert row["status"] == "cancelled"
        assert [e.payload["task_id"] for e in api.events("task:cancelled")] == [task_id]
        assert api.events("agent:archived")[0].payload["agent"]["id"] == world.agent_id
        await api.owner.refused(409, "POST", f"{path}/archive", None)
        assert await api.owner.get("/api/agents") == []
        assert len(await api.owner.get("/api/agents", include_archived="true")) == 1
        restored = await api.owner.ok(200, "POST", f"{path}/restore", None)
        assert restored["archived_at"] is None
        await api.owner.refused(409, "POST", f"{path}/restore", None)


async def test_an_agent_that_moves_or_grows_has_its_waiting_work_announced() -> None:
    async with open_api() as api:
        path = f"/api/agents/{api.world.agent_id}"
        other = await api.run(
            lambda conn: make_runtime(conn, api.world.workspace_id, api.world.user_id)
        )
        task_id = await api.run(lambda conn: make_task(conn, api.world))
        await api.owner.ok(200, "PUT", path, {"description": "x"})
        assert not [told for told in api.told if isinstance(told, TaskAvailable)]
        await api.owner.ok(200, "PUT", path, {"max_concurrent_tasks": 9})
        await api.owner.ok(200, "PUT", path, {"runtime_id": other})
        assert [told for told in api.told if isinstance(told, TaskAvailable)] == [
            TaskAvailable(api.world.runtime_id, task_id),
            TaskAvailable(other, task_id),
        ]


@pytest.mark.spec("06 §10.2", "POST /api/agents/{id}/cancel-tasks")
async def test_cancel_tasks_counts() -> None:
    async with open_api() as api:
        world = api.world

        async def unit(conn: Any) -> None:
            for status in ("queued", "running", "completed"):
                issue = await make_issue(conn, world)
                await make_task(conn, world, issue_id=issue.id, status=status)

        await api.run(unit)
        path = f"/api/agents/{world.agent_id}/cancel-tasks"
        assert await api.owner.ok(200, "POST", path, {}) == {"cancelled": 2}
        assert await api.owner.ok(200, "POST", path) == {"cancelled": 0}


@pytest.mark.spec("06 §17", "GET /api/runtimes")
@pytest.mark.spec("06 §17", "PATCH /api/runtimes/{id}")
async def test_runtimes_are_listed_whole() -> None:
    async with open_api() as api:
        (runtime,) = await api.member.get("/api/runtimes")
        assert runtime == {
            "id": api.world.runtime_id,
            "workspace_id": api.world.workspace_id,
            "daemon_id": runtime["daemon_id"],
            "name": "Claude",
            "runtime_mode": "local",
            "provider": "claude",
            "launch_header": "claude (stream-json)",
            "status": "online",
            "device_info": "",
            "metadata": {},
            "owner_id": api.world.user_id,
            "visibility": "private",
            "profile_id": None,
            "last_seen_at": runtime["last_seen_at"],
            "created_at": runtime["created_at"],
            "updated_at": runtime["updated_at"],
        }
        assert await api.member.get("/api/runtimes", owner="me") == []


@pytest.mark.spec("06 §17", "DELETE /api/runtimes/{id}")
async def test_a_runtime_goes_only_when_nobody_works_on_it() -> None:
    async with open_api() as api:
        world = api.world
        path = f"/api/runtimes/{world.runtime_id}"
        await api.run(
            lambda conn: conn.execute(
                'update agent set mcp_config = \'{"k": "s3cr3t-value"}\' where id = $1',
                world.agent_id,
            )
        )
        await api.member.refused(403, "DELETE", path)
        response = await api.owner.call("DELETE", path)
        assert response.status_code == 409
        answer = response.json()
        assert answer["code"] == "runtime_has_active_agents"
        assert [a["id"] for a in answer["active_agents"]] == [world.agent_id]
        assert SECRET not in response.text
        await api.owner.ok(200, "POST", f"/api/agents/{world.agent_id}/archive")
        assert await api.owner.ok(200, "DELETE", path) == {"status": "ok"}
        assert await api.owner.get("/api/runtimes") == []
        assert await api.owner.get("/api/agents", include_archived="true") == []
        assert await api.owner.refused(404, "DELETE", path) == "runtime not found"

        async def profile(conn: Any) -> str:
            profile_id = await insert(
                conn,
                "runtime_profile",
                workspace_id=world.workspace_id,
                display_name="Mine",
                protocol_family="claude",
                command_name="mine",
            )
            return await make_runtime(
                conn, world.workspace_id, world.user_id, profile_id=profile_id
            )

        custom = await api.run(profile)
        response = await api.owner.call("DELETE", f"/api/runtimes/{custom}")
        assert response.json()["code"] == "runtime_profile_instance_delete_unsupported"


@pytest.mark.spec("06 §17", "POST /api/runtimes/{id}/archive-agents-and-delete")
async def test_a_runtime_goes_with_the_agents_that_were_seen() -> None:
    async with open_api() as api:
        world = api.world
        path = f"/api/runtimes/{world.runtime_id}/archive-agents-and-delete"

        async def unit(conn: Any) -> str:
            issue = await make_issue(conn, world)
            elsewhere = await make_runtime(conn, world.workspace_id, world.user_id)
            moved = await make_agent(conn, world.workspace_id, elsewhere, owner_id=world.user_id)
            await make_task(conn, world, issue_id=issue.id, status="running")
            await make_task(conn, world, issue_id=issue.id, agent_id=moved, status="running")
            return moved

        moved = await api.run(unit)
        for seen in ([], [moved], [world.agent_id, moved]):
            body = {"expected_active_agent_ids": seen}
            response = await api.owner.call("POST", path, body)
            assert response.status_code == 409
            assert response.json()["code"] == "runtime_delete_plan_changed"
            assert [a["id"] for a in response.json()["active_agents"]] == [world.agent_id]
        body = {"expected_active_agent_ids": [world.agent_id]}
        await api.member.refused(403, "POST", path, body)
        answer = await api.owner.ok(200, "POST", path, body)
        assert answer == {"status": "ok", "agents_archived": 1, "tasks_cancelled": 2}
        assert len(api.events("task:cancelled")) == 2
        assert len(api.events("agent:archived")) == 1
        assert [a["id"] for a in await api.owner.get("/api/agents")] == [moved]
        await api.owner.refused(404, "POST", path, body)


async def test_a_runtime_whose_agents_lead_squads_stays_until_they_do_not() -> None:
    async with open_api() as api:
        world = api.world
        body = {"name": "S", "leader_id": world.agent_id}
        squad = await api.owner.ok(201, "POST", "/api/squads", body)
        body = {"title": "A", "assignee_id": world.agent_id, "execution_mode": "run_only"}
        pilot = await api.owner.ok(201, "POST", "/api/autopilots", body)
        path = f"/api/runtimes/{world.runtime_id}/archive-agents-and-delete"
        body = {"expected_active_agent_ids": [world.agent_id]}
        answer = await api.owner.call("POST", path, body)
        assert (answer.status_code, answer.json()["code"]) == (409, "runtime_leads_squads")
        await api.owner.ok(204, "DELETE", f"/api/squads/{squad['id']}")
        await api.owner.ok(200, "POST", path, body)
        shown = await api.owner.get(f"/api/autopilots/{pilot['id']}")
        assert shown["autopilot"]["status"] == "paused"


async def test_naming_an_agent_in_headers_opens_nothing() -> None:
    async with open_api() as api:
        made = await make(api, mcp_config=[SECRET])
        task_id = await api.run(lambda conn: make_task(conn, api.world, status="running"))
        headers = {"x-agent-id": api.world.agent_id, "x-task-id": task_id}
        path = f"/api/agents/{made['id']}"
        response = await api.member.call("GET", path, headers=headers)
        assert response.status_code == 403
        issue = await api.member.ok(201, "POST", "/api/issues", {"title": "T"}, headers=headers)
        assert (issue["creator_type"], issue["creator_id"]) == ("member", api.member.user_id)
