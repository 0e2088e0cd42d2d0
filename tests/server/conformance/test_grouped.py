"""Issues by assignee, and favourite assignees (spec 06 §6.1)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Api, open_api
from tests.support.rows import insert

pytestmark = pytest.mark.postgres


async def issue(api: Api, title: str, assignee: tuple[str, str] | None = None, **body: Any) -> Any:
    if assignee is not None:
        body |= {"assignee_type": assignee[0], "assignee_id": assignee[1]}
    return await api.member.ok(201, "POST", "/api/issues", {"title": title} | body)


async def groups(api: Api, **asked: str) -> dict[str, list[str]]:
    answer = await api.member.get("/api/issues/grouped", group_by="assignee", **asked)
    return {group["id"]: [one["title"] for one in group["issues"]] for group in answer["groups"]}


@pytest.mark.spec("06 §6.1", "GET /api/issues/grouped")
async def test_groups_are_shown_whole_the_largest_first_the_unassigned_last() -> None:
    async with open_api() as api:
        agent, me = ("agent", api.world.agent_id), ("member", api.member.user_id)
        for number in range(3):
            await issue(api, f"a{number}", agent)
        await issue(api, "m", me, stage=2, start_date="2026-01-02")
        for number in range(4):
            await issue(api, f"n{number}")
        answer = await api.member.get("/api/issues/grouped", group_by="assignee", limit=2)
        shown = [(one["id"], len(one["issues"]), one["total"]) for one in answer["groups"]]
        assert shown == [
            (f"assignee:agent:{agent[1]}", 2, 3),
            (f"assignee:member:{me[1]}", 1, 1),
            ("assignee:unassigned", 2, 4),
        ]
        mine = answer["groups"][1]
        assert (mine["assignee_type"], mine["assignee_id"]) == me
        whole = await api.member.get(f"/api/issues/{mine['issues'][0]['id']}")
        assert mine["issues"][0] == whole
        assert (whole["stage"], whole["labels"]) == (2, [])
        newest = {"sort": "created_at", "direction": "desc"}
        assert (await groups(api, **newest))["assignee:unassigned"] == ["n3", "n2", "n1", "n0"]
        one = {"group_assignee_type": "agent", "group_assignee_id": agent[1], "offset": "2"}
        assert await groups(api, **newest, **one) == {f"assignee:agent:{agent[1]}": ["a0"]}
        assert list(await groups(api, group_assignee_type="none")) == ["assignee:unassigned"]


async def test_filters_of_groups() -> None:
    async with open_api() as api:
        agent, me = ("agent", api.world.agent_id), ("member", api.member.user_id)
        project = await api.run(
            lambda conn: insert(conn, "project", workspace_id=api.world.workspace_id, title="P")
        )
        label = await api.member.ok(201, "POST", "/api/labels", {"name": "x", "color": "000000"})
        a = await issue(api, "a", agent, priority="high", project_id=project)
        await issue(api, "m", me, status="backlog", due_date="2026-01-02")
        await issue(api, "n")
        await api.owner.ok(201, "POST", "/api/issues", {"title": "o"})
        path = f"/api/issues/{a['id']}"
        await api.member.ok(200, "POST", f"{path}/labels", {"label_id": label["id"]})
        await api.member.ok(200, "PUT", f"{path}/metadata/pr", {"value": 7})

        async def titles(**asked: str) -> set[str]:
            return {title for found in (await groups(api, **asked)).values() for title in found}

        mine = f"member:{me[1]}"
        expected: list[tuple[dict[str, str], set[str]]] = [
            ({}, {"a", "m", "n", "o"}),
            ({"statuses": "backlog,done"}, {"m"}),
            ({"priorities": "high,urgent"}, {"a"}),
            ({"assignee_types": "agent"}, {"a"}),
            ({"assignee_types": "agent", "include_no_assignee": "true"}, {"a", "n", "o"}),
            ({"assignee_ids": f"{agent[1]},{me[1]}"}, {"a", "m"}),
            ({"assignee_filters": mine}, {"m"}),
            ({"assignee_filters": f"agent:{me[1]}"}, set()),
            ({"include_no_assignee": "true"}, {"n", "o"}),
            ({"creator_filters": mine}, {"a", "m", "n"}),
            ({"project_ids": project}, {"a"}),
            ({"include_no_project": "true"}, {"m", "n", "o"}),
            ({"project_ids": project, "include_no_project": "true"}, {"a", "m", "n", "o"}),
            ({"label_ids": label["id"]}, {"a"}),
            ({"metadata": '{"pr": 7}'}, {"a"}),
            ({"scheduled": "true"}, {"m"}),
            (
                {
                    "date_field": "created_at",
                    "date_start": "2020-01-01T00:00:00Z",
                    "date_end": "2020-01-02T00:00:00Z",
                },
                set(),
            ),
        ]
        for asked, found in expected:
            assert await titles(**asked) == found, asked
        for asked in (
            {"group_by": "status"},
            {"assignee_filters": "squad"},
            {"creator_filters": f"squad:{me[1]}"},
            {"project_ids": "x"},
            {"group_assignee_type": "x"},
            {"group_assignee_id": me[1]},
            {"sort": "x"},
            {"date_field": "created_at"},
        ):
            query = {"group_by": "assignee"} | asked
            answer = await api.member.call("GET", "/api/issues/grouped", params=query)
            assert answer.status_code == 400, asked
        there = await api.stranger.get("/api/issues/grouped", group_by="assignee")
        assert there == {"groups": []}


@pytest.mark.spec("06 §6.1", "GET /api/assignee-frequency")
async def test_favourite_assignees_are_those_of_the_caller() -> None:
    async with open_api() as api:
        agent, me = ("agent", api.world.agent_id), ("member", api.member.user_id)
        await issue(api, "1", agent)
        second = await issue(api, "2", me)
        await issue(api, "3")
        given = {"assignee_type": agent[0], "assignee_id": agent[1]}
        for caller in (api.member, api.owner):
            await caller.ok(200, "PUT", f"/api/issues/{second['id']}", given)
            given = {"assignee_type": me[0], "assignee_id": me[1]}
        assert await api.member.get("/api/assignee-frequency") == [
            {"assignee_type": "agent", "assignee_id": agent[1], "frequency": 2},
            {"assignee_type": "member", "assignee_id": me[1], "frequency": 1},
        ]
        assert await api.owner.get("/api/assignee-frequency") == [
            {"assignee_type": "member", "assignee_id": me[1], "frequency": 1}
        ]
        assert await api.stranger.get("/api/assignee-frequency") == []
