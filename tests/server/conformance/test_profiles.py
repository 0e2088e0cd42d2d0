"""A workspace's own agent commands (spec 02 §10.2), and its machines' tokens (ours)."""

from __future__ import annotations

from typing import Any

import pytest

from server.consequences import ProfilesChanged
from tests.support.api import Api, open_api
from tests.support.rows import insert, make_agent, make_runtime, make_task

pytestmark = pytest.mark.postgres

CODEX = {
    "display_name": "In-house Codex",
    "protocol_family": "codex",
    "command_name": "acme-codex",
    "fixed_args": ["--profile", "acme"],
}


def where(api: Api, name: str = "runtime-profiles") -> str:
    return f"/api/workspaces/{api.world.workspace_id}/{name}"


@pytest.mark.spec("06 §17", "POST /api/workspaces/{id}/runtime-profiles")
@pytest.mark.spec("06 §17", "GET /api/workspaces/{id}/runtime-profiles")
@pytest.mark.spec("06 §17", "GET /api/workspaces/{id}/runtime-profiles/{pid}")
@pytest.mark.spec("01 §3.4", "GET /api/daemon/workspaces/{id}/runtime-profiles")
async def test_a_profile_is_shown_whole_and_machines_hear_of_it() -> None:
    async with open_api() as api:
        made = await api.owner.ok(201, "POST", where(api), CODEX)
        assert made == CODEX | {
            "id": made["id"],
            "workspace_id": api.world.workspace_id,
            "description": None,
            "visibility": "workspace",
            "created_by": api.world.user_id,
            "enabled": True,
            "created_at": made["created_at"],
            "updated_at": made["updated_at"],
        }
        off = await api.owner.ok(
            201, "POST", where(api), CODEX | {"display_name": "Off", "enabled": False}
        )
        assert await api.member.get(where(api)) == {"runtime_profiles": [made, off]}
        assert await api.member.get(f"{where(api)}/{made['id']}") == made
        daemon = f"/api/daemon/workspaces/{api.world.workspace_id}/runtime-profiles"
        assert (await api.member.get(daemon))["runtime_profiles"] == [made]
        assert ProfilesChanged(api.world.workspace_id, made["id"]) in api.told
        assert api.events("daemon:register")[0].payload == {"runtime_profile_id": made["id"]}
        assert await api.stranger.refused(404, "GET", where(api))


@pytest.mark.spec("06 §17", "PATCH /api/workspaces/{id}/runtime-profiles/{pid}")
@pytest.mark.spec("06 §17", "PUT /api/workspaces/{id}/runtime-profiles/{pid}")
async def test_changing_a_profile() -> None:
    async with open_api() as api:
        made = await api.owner.ok(201, "POST", where(api), CODEX)
        path = f"{where(api)}/{made['id']}"
        changed = await api.owner.ok(
            200, "PATCH", path, {"enabled": False, "fixed_args": [], "description": None}
        )
        assert (changed["enabled"], changed["fixed_args"]) == (False, [])
        assert (await api.owner.ok(200, "PUT", path, {"enabled": True}))["enabled"] is True
        assert await api.owner.refused(400, "PATCH", path, {"protocol_family": "claude"})
        await api.owner.ok(201, "POST", where(api), CODEX | {"display_name": "Other"})
        assert await api.owner.refused(409, "PATCH", path, {"display_name": "Other"})
        assert await api.member.refused(403, "PATCH", path, {"enabled": False})


@pytest.mark.parametrize(
    "change",
    [
        {"display_name": " "},
        {"protocol_family": "gemini"},
        {"protocol_family": ""},
        {"command_name": ""},
        {"command_name": "rm -rf"},
        {"fixed_args": [" "]},
        {"fixed_args": "x"},
    ],
)
async def test_profiles_that_are_refused(change: dict[str, Any]) -> None:
    async with open_api() as api:
        assert await api.owner.refused(400, "POST", where(api), CODEX | change)


@pytest.mark.spec("06 §17", "DELETE /api/workspaces/{id}/runtime-profiles/{pid}")
async def test_a_profile_in_use_stays_and_takes_everything_along_when_it_goes() -> None:
    async with open_api() as api:
        world = api.world
        made = await api.owner.ok(201, "POST", where(api), CODEX)
        path = f"{where(api)}/{made['id']}"

        async def bind(conn: Any) -> tuple[str, str, str]:
            runtime_id = await make_runtime(
                conn, world.workspace_id, world.user_id, provider="codex", profile_id=made["id"]
            )
            agent_id = await make_agent(conn, world.workspace_id, runtime_id, name="Cody")
            squad_id = await insert(
                conn, "squad", workspace_id=world.workspace_id, name="S", leader_id=agent_id
            )
            await make_task(conn, world, agent_id=agent_id, runtime_id=runtime_id)
            return runtime_id, agent_id, squad_id

        runtime_id, agent_id, squad_id = await api.run(bind)
        assert "Cody" in await api.owner.refused(409, "DELETE", path)
        await api.owner.ok(200, "POST", f"/api/agents/{agent_id}/archive")
        assert "squads" in await api.owner.refused(409, "DELETE", path)
        await api.run(
            lambda conn: conn.execute(
                "update squad set archived_at = now() where id = $1", squad_id
            )
        )
        await api.owner.ok(204, "DELETE", path)
        left = await api.fetch("select id from agent_runtime where id = $1", runtime_id)
        assert left == []
        assert await api.owner.refused(404, "DELETE", path)


async def test_a_machine_with_a_token_of_its_own_registers_and_works() -> None:
    async with open_api() as api:
        world = api.world
        path = where(api, "daemon-tokens")
        minted = await api.owner.ok(201, "POST", path, {"daemon_id": "box", "name": "CI box"})
        assert minted["token"].startswith("mdt_")
        listed = (await api.owner.get(path))["daemon_tokens"]
        assert listed == [{key: value for key, value in minted.items() if key != "token"}]
        stored = await api.fetch("select token_hash from daemon_token")
        assert minted["token"] not in stored[0]["token_hash"]
        box = await api.caller(world.user_id, minted["token"], world.workspace_id)
        body = {
            "workspace_id": world.workspace_id,
            "daemon_id": "box",
            "runtimes": [{"name": "C", "type": "claude"}],
        }
        (runtime,) = (await box.ok(200, "POST", "/api/daemon/register", body))["runtimes"]
        assert runtime["owner_id"] == world.user_id, "or its claims would fail"

        async def queue(conn: Any) -> str:
            agent_id = await make_agent(conn, world.workspace_id, runtime["id"])
            return await make_task(conn, world, agent_id=agent_id, runtime_id=runtime["id"])

        task_id = await api.run(queue)
        claim = f"/api/daemon/runtimes/{runtime['id']}/tasks/claim"
        assert (await box.ok(200, "POST", claim, {}))["task"]["id"] == task_id
        assert await box.refused(401, "GET", "/api/me") == "invalid token"
        foreign = f"/api/daemon/runtimes/{api.elsewhere.runtime_id}/tasks/claim"
        assert await box.refused(404, "POST", foreign, {}) == "not found"
        await api.owner.ok(204, "DELETE", f"{path}/{minted['id']}")
        assert await box.refused(401, "POST", claim, {}) == "invalid daemon token"
        for caller in (api.member, await api.agent()):
            assert await caller.refused(403, "POST", path, {"daemon_id": "x"})
        assert await api.owner.refused(400, "POST", path, {})
