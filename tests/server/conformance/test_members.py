"""Members, invitations and the end of a workspace (spec 06 §4, 02 §10.3)."""

from __future__ import annotations

from typing import Any

import pytest

from server.consequences import TokensRevoked
from tests.support.api import Api, Caller, open_api
from tests.support.rows import insert, make_agent, make_issue, make_runtime, make_task

pytestmark = pytest.mark.postgres

NOBODY = "00000000-0000-4000-8000-000000000000"


def where(api: Api, path: str = "members") -> str:
    return f"/api/workspaces/{api.world.workspace_id}/{path}"


async def membership(api: Api, caller: Caller) -> str:
    members = await api.owner.get(where(api))
    return str(next(one["id"] for one in members if one["user_id"] == caller.user_id))


async def email_of(api: Api, user_id: str) -> str:
    (row,) = await api.fetch("select email from app_user where id = $1", user_id)
    return str(row["email"])


@pytest.mark.spec("06 §4", "POST /api/workspaces/{id}/members")
@pytest.mark.spec("06 §4", "GET /api/workspaces/{id}/invitations")
@pytest.mark.spec("06 §4", "GET /api/invitations")
@pytest.mark.spec("06 §4", "GET /api/invitations/{id}")
@pytest.mark.spec("06 §4", "POST /api/invitations/{id}/accept")
async def test_an_invitation_is_taken() -> None:
    async with open_api() as api:
        email = await email_of(api, api.stranger.user_id)
        made = await api.owner.ok(201, "POST", where(api), {"email": email.upper()})
        assert made == {
            "id": made["id"],
            "workspace_id": api.world.workspace_id,
            "inviter_id": api.world.user_id,
            "invitee_email": email,
            "invitee_user_id": api.stranger.user_id,
            "role": "member",
            "status": "pending",
            "created_at": made["created_at"],
            "updated_at": made["updated_at"],
            "expires_at": made["expires_at"],
            "inviter_name": "Dana",
            "inviter_email": await email_of(api, api.world.user_id),
            "workspace_name": "Bullpen",
        }
        (told,) = api.events("invitation:created")
        assert told.users == (api.stranger.user_id,)
        assert await api.owner.get(where(api, "invitations")) == [made]
        assert await api.stranger.get("/api/invitations") == [made]
        path = f"/api/invitations/{made['id']}"
        assert await api.stranger.get(path) == made
        assert await api.member.refused(404, "GET", path)
        assert await api.member.refused(403, "POST", f"{path}/accept")
        assert await api.owner.refused(409, "POST", where(api), {"email": email})
        joined = await api.stranger.ok(200, "POST", f"{path}/accept")
        assert (joined["user_id"], joined["role"]) == (api.stranger.user_id, "member")
        assert len(await api.owner.get(where(api))) == 3
        assert {e.type for e in api.events()} >= {"member:added", "invitation:accepted"}
        assert await api.stranger.refused(400, "POST", f"{path}/accept")
        assert await api.owner.refused(409, "POST", where(api), {"email": email})


@pytest.mark.spec("06 §4", "POST /api/invitations/{id}/decline")
@pytest.mark.spec("06 §4", "DELETE /api/workspaces/{id}/invitations/{invId}")
async def test_an_invitation_is_declined_withdrawn_or_too_late() -> None:
    async with open_api() as api:
        body = {"email": await email_of(api, api.stranger.user_id), "role": "admin"}
        first = await api.owner.ok(201, "POST", where(api), body)
        await api.stranger.ok(204, "POST", f"/api/invitations/{first['id']}/decline")
        assert await api.owner.get(where(api, "invitations")) == []
        second = await api.owner.ok(201, "POST", where(api), body)
        await api.owner.ok(204, "DELETE", where(api, f"invitations/{second['id']}"))
        assert await api.stranger.get("/api/invitations") == []
        third = await api.owner.ok(201, "POST", where(api), body)
        await api.run(
            lambda conn: conn.execute(
                "update workspace_invitation set expires_at = now() - interval '1 second'"
            )
        )
        assert await api.stranger.refused(410, "POST", f"/api/invitations/{third['id']}/accept")
        await api.owner.ok(201, "POST", where(api), body)


@pytest.mark.parametrize("body", [{}, {"email": "x"}, {"email": "a@b", "role": "owner"}])
async def test_invitations_that_are_refused(body: dict[str, str]) -> None:
    async with open_api() as api:
        assert await api.owner.refused(400, "POST", where(api), body)
        assert await api.member.refused(403, "POST", where(api), {"email": "a@b.c"})
        agent = await api.agent()
        assert await agent.refused(403, "POST", where(api), {"email": "a@b.c"})
        assert await agent.refused(403, "GET", "/api/invitations")


@pytest.mark.spec("06 §4", "PATCH /api/workspaces/{id}/members/{memberId}")
async def test_roles_and_the_last_owner() -> None:
    async with open_api() as api:
        mine, theirs = await membership(api, api.owner), await membership(api, api.member)
        one = await api.owner.refused(
            400, "PATCH", where(api, f"members/{mine}"), {"role": "admin"}
        )
        assert one == "a workspace must keep at least one owner"
        raised = await api.owner.ok(
            200, "PATCH", where(api, f"members/{theirs}"), {"role": "admin"}
        )
        assert (raised["role"], raised["name"]) == ("admin", "Mo")
        admin = api.member
        path = where(api, f"members/{mine}")
        assert await admin.refused(403, "PATCH", path, {"role": "member"})
        assert await admin.refused(403, "PATCH", where(api, f"members/{theirs}"), {"role": "owner"})
        assert await api.owner.refused(400, "PATCH", path, {"role": "king"})
        missing = where(api, f"members/{NOBODY}")
        assert await api.owner.refused(404, "PATCH", missing, {"role": "member"})
        await api.owner.ok(200, "PATCH", where(api, f"members/{theirs}"), {"role": "owner"})
        await api.member.ok(200, "PATCH", path, {"role": "member"})


@pytest.mark.spec("06 §4", "DELETE /api/workspaces/{id}/members/{memberId}")
@pytest.mark.spec("06 §4", "POST /api/workspaces/{id}/leave")
@pytest.mark.parametrize("how", ["removed", "leaves"])
async def test_who_goes_takes_their_machines_along(how: str) -> None:
    async with open_api() as api:
        world = api.world

        async def fill(conn: Any) -> tuple[str, str, str]:
            runtime_id = await make_runtime(
                conn, world.workspace_id, api.member.user_id, daemon_id="laptop"
            )
            agent_id = await make_agent(conn, world.workspace_id, runtime_id)
            issue = await make_issue(conn, world)
            task_id = await make_task(
                conn, world, agent_id=agent_id, runtime_id=runtime_id, issue_id=issue.id
            )
            await conn.execute(
                "insert into daemon_token (workspace_id, daemon_id, token_hash, expires_at)"
                " values ($1, 'laptop', 'hash', now() + interval '1 day')",
                world.workspace_id,
            )
            return runtime_id, agent_id, task_id

        runtime_id, agent_id, task_id = await api.run(fill)
        if how == "removed":
            member_id = await membership(api, api.member)
            await api.owner.ok(204, "DELETE", where(api, f"members/{member_id}"))
        else:
            await api.member.ok(204, "POST", where(api, "leave"))
        (task,) = await api.fetch("select status from agent_task_queue where id = $1", task_id)
        (agent,) = await api.fetch("select archived_at from agent where id = $1", agent_id)
        (runtime,) = await api.fetch("select status from agent_runtime where id = $1", runtime_id)
        assert (task["status"], runtime["status"]) == ("cancelled", "offline")
        assert agent["archived_at"] is not None
        assert TokensRevoked(("hash",)) in api.told
        assert await api.fetch("select from daemon_token") == []
        assert await api.member.refused(404, "GET", where(api))
        assert await api.owner.refused(400, "POST", where(api, "leave"))


@pytest.mark.spec("06 §4", "DELETE /api/workspaces/{id}")
async def test_a_workspace_ends_with_everything_in_it() -> None:
    async with open_api() as api:
        world = api.world

        async def fill(conn: Any) -> None:
            issue = await make_issue(conn, world)
            await make_task(conn, world, issue_id=issue.id, status="running")
            await insert(
                conn, "squad", workspace_id=world.workspace_id, name="S", leader_id=world.agent_id
            )

        await api.run(fill)
        path = f"/api/workspaces/{world.workspace_id}"
        assert await api.member.refused(403, "DELETE", path)
        assert await (await api.agent()).refused(403, "DELETE", path)
        await api.owner.ok(204, "DELETE", path)
        assert api.events("workspace:deleted")[0].payload == {"workspace_id": world.workspace_id}
        for table in ("agent", "agent_runtime", "issue", "agent_task_queue", "squad", "member"):
            left = await api.fetch(
                f"select from {table} where workspace_id = $1", world.workspace_id
            )
            assert left == [], table
        assert await api.owner.refused(404, "GET", path)
        assert len(await api.stranger.get("/api/agents")) == 1
