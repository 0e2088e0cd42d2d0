"""Labels, and those of an issue (spec 06 §8)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Api, open_api
from tests.support.rows import make_issue

pytestmark = pytest.mark.postgres

NOBODY = "00000000-0000-4000-8000-000000000000"


async def make(api: Api, name: str = "Bug", color: str = "EF4444") -> Any:
    return await api.member.ok(201, "POST", "/api/labels", {"name": name, "color": color})


@pytest.mark.spec("06 §8", "POST /api/labels")
@pytest.mark.spec("06 §8", "GET /api/labels")
@pytest.mark.spec("06 §8", "GET /api/labels/{id}")
async def test_a_label_is_shown_whole() -> None:
    async with open_api() as api:
        bug = await make(api, " Bug ")
        assert bug == {
            "id": bug["id"],
            "workspace_id": api.world.workspace_id,
            "name": "Bug",
            "color": "#ef4444",
            "created_at": bug["created_at"],
            "updated_at": bug["updated_at"],
        }
        art = await make(api, "art", "#00FF00")
        assert await api.owner.get("/api/labels") == {"labels": [art, bug], "total": 2}
        assert await api.owner.get(f"/api/labels/{bug['id']}") == bug
        assert [e.payload for e in api.events("label:created")] == [{"label": bug}, {"label": art}]
        assert await api.stranger.refused(404, "GET", f"/api/labels/{bug['id']}")


@pytest.mark.spec("06 §8", "PUT /api/labels/{id}")
@pytest.mark.spec("06 §8", "DELETE /api/labels/{id}")
async def test_changing_and_deleting_a_label() -> None:
    async with open_api() as api:
        bug = await make(api)
        path = f"/api/labels/{bug['id']}"
        changed = await api.member.ok(200, "PUT", path, {"color": "000000"})
        assert (changed["name"], changed["color"]) == ("Bug", "#000000")
        assert (await api.member.ok(200, "PUT", path, {"name": "BUG"}))["name"] == "BUG"
        await make(api, "art")
        assert await api.member.refused(409, "PUT", path, {"name": "ART"})
        assert await api.stranger.refused(404, "PUT", path, {"name": "x"})
        await api.member.ok(204, "DELETE", path)
        assert api.events("label:deleted")[0].payload == {"label_id": bug["id"]}
        assert await api.member.refused(404, "DELETE", path)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "x"},
        {"name": "", "color": "ffffff"},
        {"name": "é" * 17, "color": "ffffff"},
        {"name": "x", "color": "red"},
        {"name": "x", "color": "#fffff"},
    ],
)
async def test_labels_that_are_refused(body: dict[str, str]) -> None:
    async with open_api() as api:
        assert await api.member.refused(400, "POST", "/api/labels", body)


async def test_names_are_unique_whatever_their_case() -> None:
    async with open_api() as api:
        await make(api)
        assert await api.member.refused(
            409, "POST", "/api/labels", {"name": "bug", "color": "0" * 6}
        )


@pytest.mark.spec("06 §8", "GET /api/issues/{id}/labels")
@pytest.mark.spec("06 §8", "POST /api/issues/{id}/labels")
@pytest.mark.spec("06 §8", "DELETE /api/issues/{id}/labels/{label_id}")
async def test_labels_of_an_issue() -> None:
    async with open_api() as api:
        bug, art = await make(api), await make(api, "art")
        issue = await api.run(lambda conn: make_issue(conn, api.world))
        path = f"/api/issues/{issue.id}/labels"
        assert await api.member.get(path) == {"labels": []}
        for _ in range(2):
            given = await api.member.ok(200, "POST", path, {"label_id": bug["id"]})
            assert given == {"labels": [bug]}
        given = await api.member.ok(200, "POST", path, {"label_id": art["id"]})
        assert given == {"labels": [art, bug]}
        assert api.events("issue_labels:changed")[-1].payload == {"issue_id": issue.id} | given
        assert (await api.member.get(f"/api/issues/{issue.id}"))["labels"] == [art, bug]
        listed = (await api.member.get("/api/issues"))["issues"]
        assert [one["labels"] for one in listed] == [[art, bug]]
        for _ in range(2):
            given = await api.member.ok(200, "DELETE", f"{path}/{bug['id']}")
            assert given == {"labels": [art]}
        assert await api.member.refused(404, "POST", path, {"label_id": NOBODY})
        assert await api.member.refused(400, "POST", path, {})
        assert await api.stranger.refused(404, "POST", path, {"label_id": bug["id"]})
