"""An issue from one sentence (spec 06 §6.4, 02 §2.3 and §3.8)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Api, open_api
from tests.support.rows import insert, make_issue

pytestmark = pytest.mark.postgres

PATH = "/api/issues/quick-create"
NOBODY = "00000000-0000-4000-8000-000000000000"


async def ready(api: Api, version: str = "0.3.0") -> None:
    await api.run(
        lambda conn: conn.execute(
            "update agent_runtime set metadata = jsonb_build_object('cli_version', $1::text)",
            version,
        )
    )


async def begin(api: Api, **body: Any) -> Any:
    """Ask, and let the agent claim and start it; returns the claim."""
    given = {"agent_id": api.world.agent_id, "prompt": "make a plan"}
    asked = await api.member.ok(202, "POST", PATH, given | body)
    path = f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/claim"
    task = (await api.owner.ok(200, "POST", path, {}))["task"]
    assert task["id"] == asked["task_id"]
    await api.owner.ok(200, "POST", f"/api/daemon/tasks/{task['id']}/start", {})
    return task


@pytest.mark.spec("06 §6.4", "POST /api/issues/quick-create")
async def test_the_agent_makes_the_issue_and_who_asked_is_told() -> None:
    async with open_api() as api:
        await ready(api)
        project = await api.run(
            lambda conn: insert(conn, "project", workspace_id=api.world.workspace_id, title="Web")
        )
        parent = await api.run(lambda conn: make_issue(conn, api.world))
        task = await begin(api, project_id=project, parent_issue_id=parent.id)
        assert (task["kind"], task["quick_create_prompt"]) == ("quick_create", "make a plan")
        assert (task["project_id"], task["parent_issue_id"]) == (project, parent.id)
        agent = await api.caller(api.world.user_id, task["auth_token"], api.world.workspace_id)
        made = await agent.ok(
            201,
            "POST",
            "/api/issues",
            {"title": "The plan", "origin_type": "quick_create", "origin_id": task["id"]},
        )
        done = f"/api/daemon/tasks/{task['id']}/complete"
        await api.owner.ok(200, "POST", done, {"output": "made it"})
        (item,) = await api.fetch("select * from inbox_item")
        assert (item["recipient_id"], item["type"], item["severity"], item["title"]) == (
            api.member.user_id,
            "quick_create_done",
            "info",
            "The plan",
        )
        assert item["details"] == {
            "task_id": task["id"],
            "agent_id": api.world.agent_id,
            "issue_id": made["id"],
            "identifier": made["identifier"],
            "original_prompt": "make a plan",
        }
        (row,) = await api.fetch("select issue_id from agent_task_queue")
        assert row["issue_id"] == made["id"]
        (follows,) = await api.fetch(
            "select user_id, reason from issue_subscriber where user_type = 'member'"
        )
        assert tuple(follows) == (api.member.user_id, "creator")
        assert [event.users for event in api.events("inbox:new")] == [(api.member.user_id,)]
        for told in api.events():
            if not told.users:
                assert "make a plan" not in str(told.payload), "the prompt is the asker's"


@pytest.mark.parametrize("end", ["complete", "fail"])
async def test_no_issue_is_a_failure_that_is_told(end: str) -> None:
    async with open_api() as api:
        await ready(api)
        task = await begin(api)
        body = {"output": "nothing", "error": "no idea", "failure_reason": "agent_error.unknown"}
        await api.owner.ok(200, "POST", f"/api/daemon/tasks/{task['id']}/{end}", body)
        (item,) = await api.fetch("select * from inbox_item")
        assert (item["type"], item["severity"]) == ("quick_create_failed", "action_required")
        assert item["title"] == "Quick create failed"
        assert item["body"] == (
            "no idea" if end == "fail" else "The agent ended without making an issue."
        )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": " "}, 400),
        ({"agent_id": None}, 400),
        ({"squad_id": NOBODY}, 400),
        ({"agent_id": NOBODY}, 404),
        ({"project_id": NOBODY}, 400),
        ({"parent_issue_id": NOBODY}, 400),
    ],
)
async def test_what_is_refused(body: dict[str, Any], status: int) -> None:
    async with open_api() as api:
        await ready(api)
        given = {"agent_id": api.world.agent_id, "prompt": "x"}
        assert await api.member.refused(status, "POST", PATH, given | body)


async def test_machines_that_cannot() -> None:
    async with open_api() as api:
        given = {"agent_id": api.world.agent_id, "prompt": "x"}
        await ready(api, "0.2.20")
        old = (await api.member.call("POST", PATH, given)).json()
        assert {key: old[key] for key in ("code", "current_version", "min_version")} == {
            "code": "daemon_version_unsupported",
            "current_version": "0.2.20",
            "min_version": "0.2.21",
        }
        assert old["runtime_id"] == api.world.runtime_id
        await api.run(lambda conn: conn.execute("update agent_runtime set status = 'offline'"))
        away = await api.member.call("POST", PATH, given)
        assert (away.status_code, away.json()["code"]) == (422, "agent_unavailable")
