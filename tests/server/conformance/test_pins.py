"""Pinned issues and projects (spec 06 §22)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Api, open_api
from tests.support.rows import insert, make_issue

pytestmark = pytest.mark.postgres

NOBODY = "00000000-0000-4000-8000-000000000000"


async def things(api: Api) -> tuple[str, str]:
    """An issue and a project."""

    async def unit(conn: Any) -> tuple[str, str]:
        issue = await make_issue(conn, api.world, title="Fix it")
        project = await insert(
            conn, "project", workspace_id=api.world.workspace_id, title="Big", icon="*"
        )
        return issue.id, project

    made: tuple[str, str] = await api.run(unit)
    return made


async def pin(api: Api, kind: str, item_id: str, status: int = 201) -> Any:
    body = {"item_type": kind, "item_id": item_id}
    return await api.member.ok(status, "POST", "/api/pins", body)


@pytest.mark.spec("06 §22", "GET /api/pins")
@pytest.mark.spec("06 §22", "POST /api/pins")
async def test_pins_are_shown_with_what_they_point_at() -> None:
    async with open_api() as api:
        issue_id, project_id = await things(api)
        first, second = await pin(api, "issue", issue_id), await pin(api, "project", project_id)
        identifier = (await api.member.get(f"/api/issues/{issue_id}"))["identifier"]
        assert first == {
            "id": first["id"],
            "workspace_id": api.world.workspace_id,
            "user_id": api.member.user_id,
            "item_type": "issue",
            "item_id": issue_id,
            "position": 1.0,
            "title": "Fix it",
            "status": "todo",
            "identifier": identifier,
            "icon": None,
            "created_at": first["created_at"],
        }
        assert (second["title"], second["icon"], second["identifier"]) == ("Big", "*", None)
        assert await pin(api, "issue", issue_id) == first
        assert await api.member.get("/api/pins") == [first, second]
        assert await api.owner.get("/api/pins") == []
        told = api.events("pin:created")
        assert [event.payload for event in told] == [{"pin": first}, {"pin": second}]
        assert {event.users for event in told} == {(api.member.user_id,)}
        await api.member.ok(204, "DELETE", f"/api/issues/{issue_id}")
        assert await api.member.get("/api/pins") == [second]


@pytest.mark.spec("06 §22", "DELETE /api/pins/{item_type}/{item_id}")
async def test_order_and_unpinning() -> None:
    async with open_api() as api:
        issue_id, project_id = await things(api)
        first, second = await pin(api, "issue", issue_id), await pin(api, "project", project_id)
        order = {"pin_ids": [second["id"], first["id"], NOBODY]}
        shown = await api.member.ok(200, "PUT", "/api/pins/reorder", order)
        assert [one["id"] for one in shown] == [second["id"], first["id"]]
        assert await api.member.get("/api/pins") == shown
        await api.member.ok(204, "DELETE", f"/api/pins/issue/{issue_id}")
        assert await api.member.refused(404, "DELETE", f"/api/pins/issue/{issue_id}")
        assert await api.member.refused(404, "DELETE", f"/api/pins/x/{project_id}")
        assert [one["id"] for one in await api.member.get("/api/pins")] == [second["id"]]
        assert api.events("pin:deleted")[0].payload == {"item_type": "issue", "item_id": issue_id}


async def test_pins_that_are_refused() -> None:
    async with open_api() as api:
        issue_id, _ = await things(api)
        await pin(api, "agent", issue_id, 400)
        await pin(api, "project", issue_id, 404)
        await pin(api, "issue", NOBODY, 404)
        assert await api.member.refused(400, "POST", "/api/pins", {"item_type": "issue"})
        body = {"item_type": "issue", "item_id": issue_id}
        assert await api.stranger.refused(404, "POST", "/api/pins", body)
        agent = await api.agent()
        assert await agent.refused(403, "GET", "/api/pins")
        assert await agent.refused(403, "POST", "/api/pins", body)
