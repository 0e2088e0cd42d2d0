"""Squads (spec 06 §11): a leader with members, to whom issues can be assigned."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Api, open_api
from tests.support.rows import make_agent, make_issue, make_task

pytestmark = pytest.mark.postgres

NOBODY = "00000000-0000-4000-8000-000000000000"


async def make(api: Api, **body: Any) -> Any:
    given = {"name": "Crew", "leader_id": api.world.agent_id}
    return await api.owner.ok(201, "POST", "/api/squads", given | body)


async def another_agent(api: Api, **columns: Any) -> str:
    world = api.world
    made: str = await api.run(
        lambda conn: make_agent(conn, world.workspace_id, world.runtime_id, **columns)
    )
    return made


@pytest.mark.spec("06 §11", "POST /api/squads")
@pytest.mark.spec("06 §11", "GET /api/squads")
@pytest.mark.spec("06 §11", "GET /api/squads/{id}")
async def test_a_squad_is_shown_whole() -> None:
    async with open_api() as api:
        made = await make(api, description="Ships", avatar_url="a.png")
        assert made == {
            "id": made["id"],
            "workspace_id": api.world.workspace_id,
            "name": "Crew",
            "description": "Ships",
            "instructions": "",
            "avatar_url": "a.png",
            "leader_id": api.world.agent_id,
            "creator_id": api.world.user_id,
            "created_at": made["created_at"],
            "updated_at": made["updated_at"],
            "archived_at": None,
            "archived_by": None,
            "member_count": 1,
            "member_preview": [
                {"member_type": "agent", "member_id": api.world.agent_id, "role": "leader"}
            ],
        }
        assert await api.member.get("/api/squads") == [made]
        assert await api.member.get(f"/api/squads/{made['id']}") == made
        assert [event.payload for event in api.events("squad:created")] == [{"squad": made}]
        assert await api.stranger.refused(404, "GET", f"/api/squads/{made['id']}")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"name": "x"}, 400),
        ({"name": "x", "leader_id": "?"}, 400),
        ({"name": "x", "leader_id": NOBODY}, 400),
        ({"name": " ", "leader_id": NOBODY}, 400),
    ],
)
async def test_squads_that_are_refused(body: dict[str, Any], status: int) -> None:
    async with open_api() as api:
        assert await api.owner.refused(status, "POST", "/api/squads", body)


@pytest.mark.spec("06 §11", "PUT /api/squads/{id}")
async def test_changing_a_squad_takes_rights_and_a_free_name() -> None:
    async with open_api() as api:
        made = await make(api)
        path = f"/api/squads/{made['id']}"
        new = await another_agent(api)
        changed = await api.owner.ok(
            200, "PUT", path, {"instructions": "Be kind.", "leader_id": new, "name": "crew"}
        )
        assert (changed["instructions"], changed["leader_id"]) == ("Be kind.", new)
        assert changed["member_count"] == 2, "a new leader becomes a member"
        await make(api, name="Other")
        taken = await api.owner.refused(409, "PUT", path, {"name": "OTHER"})
        assert "already exists" in taken
        assert await api.owner.refused(409, "POST", "/api/squads", made)
        for method, url in (("POST", "/api/squads"), ("PUT", path), ("DELETE", path)):
            assert await api.member.refused(403, method, url, {"name": "x"})
        agent = await api.agent()
        assert await agent.refused(403, "PUT", path, {"name": "x"})


@pytest.mark.spec("06 §11", "DELETE /api/squads/{id}")
async def test_an_archived_squad_leaves_its_work_to_its_leader() -> None:
    async with open_api() as api:
        made = await make(api)
        world = api.world
        issue = await api.run(
            lambda conn: make_issue(conn, world, assignee_type="squad", assignee_id=made["id"])
        )
        await api.run(
            lambda conn: conn.execute(
                "insert into autopilot (workspace_id, title, assignee_type, assignee_id,"
                " execution_mode, created_by_type, created_by_id)"
                " values ($1, 'P', 'squad', $2, 'run_only', 'member', $3)",
                world.workspace_id,
                made["id"],
                world.user_id,
            )
        )
        await api.owner.ok(204, "DELETE", f"/api/squads/{made['id']}")
        shown = await api.member.get(f"/api/issues/{issue.id}")
        assert (shown["assignee_type"], shown["assignee_id"]) == ("agent", world.agent_id)
        (pilot,) = await api.fetch("select assignee_type, assignee_id from autopilot")
        assert tuple(pilot) == ("agent", world.agent_id)
        assert api.events("squad:deleted")[0].payload == {
            "squad_id": made["id"],
            "leader_id": world.agent_id,
        }
        assert [e.payload["issue"]["id"] for e in api.events("issue:updated")] == [issue.id]
        assert await api.member.get("/api/squads") == []
        assert await api.owner.refused(400, "DELETE", f"/api/squads/{made['id']}")
        await make(api)  # its name is free again


@pytest.mark.spec("06 §11", "GET /api/squads/{id}/members")
@pytest.mark.spec("06 §11", "POST /api/squads/{id}/members")
@pytest.mark.spec("06 §11", "DELETE /api/squads/{id}/members")
@pytest.mark.spec("06 §11", "PATCH /api/squads/{id}/members/role")
async def test_members_of_a_squad() -> None:
    async with open_api() as api:
        made = await make(api)
        path = f"/api/squads/{made['id']}/members"
        person = {"member_type": "member", "member_id": api.member.user_id}
        added = await api.owner.ok(201, "POST", path, person | {"role": "reviewer"})
        assert added == {
            "id": added["id"],
            "squad_id": made["id"],
            **person,
            "role": "reviewer",
            "created_at": added["created_at"],
        }
        assert await api.owner.refused(409, "POST", path, person)
        assert await api.owner.refused(400, "POST", path, person | {"member_id": NOBODY})
        assert await api.owner.refused(400, "POST", path, person | {"member_type": "robot"})
        assert (await api.member.get(path))[1] == added
        changed = await api.owner.ok(200, "PATCH", f"{path}/role", person | {"role": "boss"})
        assert changed["role"] == "boss"
        leader = {"member_type": "agent", "member_id": api.world.agent_id}
        assert await api.owner.refused(400, "DELETE", path, leader)
        await api.owner.ok(204, "DELETE", path, person)
        assert await api.owner.refused(404, "DELETE", path, person)
        assert await api.owner.refused(404, "PATCH", f"{path}/role", person)
        assert await api.member.refused(403, "POST", path, person)


@pytest.mark.spec("06 §11", "GET /api/squads/{id}/members/status")
async def test_what_the_members_are_doing() -> None:
    async with open_api() as api:
        made = await make(api)
        path = f"/api/squads/{made['id']}/members"
        person = {"member_type": "member", "member_id": api.member.user_id}
        await api.owner.ok(201, "POST", path, person)
        gone = await another_agent(api)
        await api.owner.ok(201, "POST", path, {"member_type": "agent", "member_id": gone})
        await api.owner.ok(200, "POST", f"/api/agents/{gone}/archive")
        issue = await api.run(lambda conn: make_issue(conn, api.world, title="Login"))
        await api.run(lambda conn: make_task(conn, api.world, issue_id=issue.id, status="running"))
        leader, human, archived = (await api.member.get(f"{path}/status"))["members"]
        number = (await api.fetch("select number from issue"))[0]["number"]
        assert leader["status"] == "working"
        assert leader["active_issues"] == [
            {
                "issue_id": issue.id,
                "identifier": f"BUL-{number}",
                "title": "Login",
                "issue_status": "todo",
            }
        ]
        assert leader["last_active_at"].endswith("Z")
        assert (human["status"], human["active_issues"], human["last_active_at"]) == (
            None,
            [],
            None,
        )
        assert archived["status"] == "archived"
