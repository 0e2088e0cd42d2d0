"""Projects and their resources (spec 06 §14)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Api, open_api
from tests.support.rows import make_runtime

pytestmark = pytest.mark.postgres

NOBODY = "00000000-0000-4000-8000-000000000000"
WEB = {"resource_type": "github_repo", "resource_ref": {"url": "https://example.test/web.git"}}


async def have_machines(api: Api) -> None:
    """Give the member the machines whose directories are named here: nobody else may name them."""
    for daemon_id in ("d1", "d2"):
        where = (api.world.workspace_id, api.member.user_id)
        await api.run(
            lambda conn, where=where, name=daemon_id: make_runtime(conn, *where, daemon_id=name)
        )


def directory(daemon_id: str = "d1", path: str = "/src") -> dict[str, Any]:
    ref = {"local_path": path, "daemon_id": daemon_id}
    return {"resource_type": "local_directory", "resource_ref": ref}


async def make(api: Api, **body: Any) -> Any:
    return await api.member.ok(201, "POST", "/api/projects", {"title": "Web"} | body)


@pytest.mark.spec("06 §14", "POST /api/projects")
@pytest.mark.spec("06 §14", "GET /api/projects/{id}")
@pytest.mark.spec("06 §14", "GET /api/projects")
async def test_a_project_is_shown_whole() -> None:
    async with open_api() as api:
        made = await make(api)
        assert made == {
            "id": made["id"],
            "workspace_id": api.world.workspace_id,
            "title": "Web",
            "description": None,
            "icon": None,
            "status": "planned",
            "priority": "none",
            "lead_type": None,
            "lead_id": None,
            "start_date": None,
            "due_date": None,
            "created_at": made["created_at"],
            "updated_at": made["updated_at"],
            "issue_count": 0,
            "done_count": 0,
            "resource_count": 0,
        }
        assert await api.owner.get(f"/api/projects/{made['id']}") == made
        for status in ("todo", "done", "cancelled"):
            issue = {"title": status, "status": status, "project_id": made["id"]}
            shown = await api.member.ok(201, "POST", "/api/issues", issue)
            assert shown["project_id"] == made["id"]
        counted = await api.member.get(f"/api/projects/{made['id']}")
        assert (counted["issue_count"], counted["done_count"]) == (3, 2)
        lead = {"lead_type": "agent", "lead_id": api.world.agent_id}
        other = await make(api, title="App", status="paused", priority="high", **lead)
        assert other["lead_id"] == api.world.agent_id
        listed = await api.member.get("/api/projects")
        assert [one["title"] for one in listed["projects"]] == ["App", "Web"]
        assert listed["total"] == 2
        assert (await api.member.get("/api/projects", status="paused"))["total"] == 1
        assert (await api.member.get("/api/projects", priority="low"))["total"] == 0
        assert await api.stranger.refused(404, "GET", f"/api/projects/{made['id']}")
        assert api.events("project:created")[0].payload == {"project": made}
        of_project = await api.member.get("/api/issues", project_id=made["id"])
        assert of_project["total"] == 3


async def test_resources_come_with_their_project_or_not_at_all() -> None:
    async with open_api() as api:
        await have_machines(api)
        made = await make(api, resources=[WEB, directory() | {"label": "mine"}])
        assert made["resource_count"] == 2
        assert [one["label"] for one in made["resources"]] == [None, "mine"]
        assert [one["position"] for one in made["resources"]] == [0, 1]
        refused = {"title": "X", "resources": [WEB, WEB]}
        assert await api.member.refused(409, "POST", "/api/projects", refused)
        refused = {"title": "X", "resources": [directory(), directory(path="/b")]}
        assert await api.member.refused(409, "POST", "/api/projects", refused)
        assert (await api.member.get("/api/projects"))["total"] == 1
        assert (await make(api, title="Y", resources=[]))["resources"] == []


@pytest.mark.spec("06 §14", "PUT /api/projects/{id}")
@pytest.mark.spec("06 §14", "DELETE /api/projects/{id}")
async def test_changing_and_deleting_a_project() -> None:
    async with open_api() as api:
        lead = {"lead_type": "member", "lead_id": api.member.user_id}
        made = await make(api, description="Site", **lead)
        path = f"/api/projects/{made['id']}"
        changed = await api.member.ok(
            200, "PUT", path, {"description": None, "status": "in_progress", "title": None}
        )
        assert (changed["description"], changed["status"], changed["title"]) == (
            None,
            "in_progress",
            "Web",
        )
        assert changed["lead_id"] == api.member.user_id
        assert await api.member.refused(400, "PUT", path, {"lead_id": None})
        cleared = await api.member.ok(200, "PUT", path, {"lead_id": None, "lead_type": None})
        assert (cleared["lead_type"], cleared["lead_id"]) == (None, None)
        issue = await api.member.ok(
            201, "POST", "/api/issues", {"title": "x", "project_id": made["id"]}
        )
        assert await api.member.refused(403, "DELETE", path)
        await api.owner.ok(204, "DELETE", path)
        assert (await api.member.get(f"/api/issues/{issue['id']}"))["project_id"] is None
        assert await api.owner.refused(404, "DELETE", path)
        missing = {"project_id": made["id"]}
        assert await api.member.refused(400, "PUT", f"/api/issues/{issue['id']}", missing)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"title": " "},
        {"title": "x", "status": "open"},
        {"title": "x", "priority": "first"},
        {"title": "x", "lead_type": "agent"},
        {"title": "x", "lead_type": "squad", "lead_id": NOBODY},
        {"title": "x", "lead_type": "agent", "lead_id": NOBODY},
        {"title": "x", "resources": {}},
        {"title": "x", "resources": [{"resource_type": "ftp", "resource_ref": {}}]},
        {"title": "x", "resources": [WEB | {"resource_ref": {"url": "example.test"}}]},
        {"title": "x", "resources": [WEB | {"resource_ref": {"url": 7}}]},
        {"title": "x", "resources": [WEB | {"resource_ref": []}]},
        {"title": "x", "resources": [WEB | {"position": -1}]},
        {"title": "x", "resources": [directory(path="src")]},
        {"title": "x", "resources": [directory(daemon_id=" ")]},
    ],
)
async def test_projects_that_are_refused(body: dict[str, Any]) -> None:
    async with open_api() as api:
        assert await api.member.refused(400, "POST", "/api/projects", body)


@pytest.mark.spec("06 §14", "GET /api/projects/{id}/resources")
@pytest.mark.spec("06 §14", "POST /api/projects/{id}/resources")
@pytest.mark.spec("06 §14", "PUT /api/projects/{id}/resources/{resource_id}")
@pytest.mark.spec("06 §14", "DELETE /api/projects/{id}/resources/{resource_id}")
async def test_resources_of_a_project() -> None:
    async with open_api() as api:
        project = await make(api)
        path = f"/api/projects/{project['id']}/resources"
        added = await api.member.ok(201, "POST", path, WEB | {"label": "front"})
        assert added == {
            "id": added["id"],
            "project_id": project["id"],
            "workspace_id": api.world.workspace_id,
            **WEB,
            "label": "front",
            "position": 0,
            "created_at": added["created_at"],
            "created_by": api.member.user_id,
        }
        assert await api.member.refused(409, "POST", path, WEB)
        await have_machines(api)
        here = await api.member.ok(201, "POST", path, directory())
        assert here["position"] == 1
        assert await api.member.refused(409, "POST", path, directory(path="/other"))
        there = await api.member.ok(201, "POST", path, directory("d2", "C:\\work"))
        assert await api.member.get(path) == {"resources": [added, here, there], "total": 3}
        one = f"{path}/{there['id']}"
        changed = await api.member.ok(
            200,
            "PUT",
            one,
            {"label": "x", "position": 7, "resource_ref": {"local_path": "/a", "daemon_id": "d2"}},
        )
        assert (changed["label"], changed["position"]) == ("x", 7)
        assert changed["resource_ref"] == {"local_path": "/a", "daemon_id": "d2"}
        assert (await api.member.ok(200, "PUT", one, {"label": None}))["label"] is None
        taken = {"resource_ref": {"local_path": "/a", "daemon_id": "d1"}}
        assert await api.member.refused(409, "PUT", one, taken)
        assert await api.member.refused(400, "PUT", one, {"resource_ref": {"url": "https://a.b/c"}})
        await api.member.ok(204, "DELETE", one)
        assert await api.member.refused(404, "DELETE", one)
        assert await api.stranger.refused(404, "GET", path)


@pytest.mark.spec("06 §14", "GET /api/projects/search")
async def test_searching_projects() -> None:
    async with open_api() as api:
        await make(api, title="100% done", status="completed")
        web = await make(api, title="Website", description="All about the shop")
        found = await api.member.get("/api/projects/search", q="webS")
        assert found == {"projects": [web | {"match_source": "title"}], "total": 1}
        found = await api.member.get("/api/projects/search", q="shop")
        assert found["projects"][0]["match_source"] == "description"
        assert "shop" in found["projects"][0]["matched_snippet"]
        assert (await api.member.get("/api/projects/search", q="100%"))["total"] == 0
        closed = await api.member.get("/api/projects/search", q="100%", include_closed="true")
        assert closed["total"] == 1
        assert await api.member.refused(400, "GET", "/api/projects/search")
