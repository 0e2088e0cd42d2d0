"""An agent's environment values: who reads them, and that each time is on record (06 §10.2)."""

from __future__ import annotations

import pytest

from shared import codec
from tests.support.api import Api, open_api

pytestmark = pytest.mark.postgres


async def stored(api: Api, **values: str) -> str:
    await api.run(
        lambda conn: conn.execute(
            "update agent set custom_env = $1 where id = $2", values, api.world.agent_id
        )
    )
    return f"/api/agents/{api.world.agent_id}/env"


@pytest.mark.spec("06 §10.2", "GET /api/agents/{id}/env")
async def test_reading_is_for_admins_and_goes_on_record() -> None:
    async with open_api() as api:
        path = await stored(api, KEY="s3cret", B="2")
        assert await api.owner.get(path) == {
            "agent_id": api.world.agent_id,
            "custom_env": {"KEY": "s3cret", "B": "2"},
        }
        (row,) = await api.fetch("select action, actor_id, details from activity_log")
        assert (row["action"], row["actor_id"]) == ("agent_env_revealed", api.world.user_id)
        assert row["details"] == {"agent_id": api.world.agent_id, "keys": ["B", "KEY"]}
        for caller in (api.member, await api.agent()):
            assert await caller.refused(403, "GET", path)
            assert await caller.refused(403, "PUT", path, {"custom_env": {}})
        assert len(await api.fetch("select from activity_log")) == 1


@pytest.mark.spec("06 §10.2", "PUT /api/agents/{id}/env")
async def test_writing_keeps_what_is_masked_and_tells_nobody_a_value() -> None:
    async with open_api() as api:
        path = await stored(api, KEEP="old", CHANGE="old", DROP="old")
        sent = {"KEEP": "****", "CHANGE": "new", "ADD": "new", "UNKNOWN": "****"}
        answer = await api.owner.ok(200, "PUT", path, {"custom_env": sent})
        assert answer["custom_env"] == {"KEEP": "old", "CHANGE": "new", "ADD": "new"}
        (row,) = await api.fetch("select action, details from activity_log")
        assert row["action"] == "agent_env_updated"
        assert row["details"] == {
            "agent_id": api.world.agent_id,
            "added": ["ADD"],
            "removed": ["DROP"],
            "changed": ["CHANGE"],
            "preserved": ["KEEP"],
        }
        (told,) = api.events("agent:status")
        assert "custom_env_key_count" not in told.payload["agent"]
        assert "new" not in codec.encode(told.payload["agent"]).decode()
        assert await api.owner.refused(400, "PUT", path, {"custom_env": {"A=B": "x"}})
        assert await api.owner.refused(400, "PUT", path, {"custom_env": {"A": 1}})
        assert (await api.owner.ok(200, "PUT", path, {}))["custom_env"] == {}
