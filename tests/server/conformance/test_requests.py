"""What people ask of machines between tasks (spec 01 §3.16-§3.19, 02 §9.2)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Api, open_api

pytestmark = pytest.mark.postgres

NOWHERE = "0" * 32


async def ask(api: Api, path: str, body: Any = None, status: int = 200) -> Any:
    url = f"/api/runtimes/{api.world.runtime_id}/{path}"
    return await api.owner.ok(status, "POST", url, {} if body is None else body)


async def poll(api: Api, path: str, request_id: str) -> Any:
    return await api.owner.get(f"/api/runtimes/{api.world.runtime_id}/{path}/{request_id}")


async def beat(api: Api, *, batch: bool = True) -> Any:
    body = {"runtime_id": api.world.runtime_id, "supports_batch_import": batch}
    found = await api.owner.ok(200, "POST", "/api/daemon/heartbeat", body)
    assert found.pop("status") == "ok"
    assert found.pop("feature_flags") == {"flags": {"runtime_brief_slim": "off"}, "version": 1}
    return found


async def report(api: Api, path: str, request_id: str, body: Any) -> None:
    url = f"/api/daemon/runtimes/{api.world.runtime_id}/{path}/{request_id}/result"
    assert await api.owner.ok(200, "POST", url, body) == {"status": "ok"}


async def later(api: Api, seconds: float) -> None:
    """Move the stored times back."""
    await api.run(
        lambda conn: conn.execute(
            "update runtime_request set expires_at = expires_at - $1 * interval '1 second',"
            " handed_at = handed_at - $1 * interval '1 second'",
            seconds,
        )
    )


@pytest.mark.spec("01 §3.17", "POST /api/runtimes/{id}/models")
@pytest.mark.spec("01 §3.17", "GET /api/runtimes/{id}/models/{request_id}")
@pytest.mark.spec("01 §3.17", "POST /api/daemon/runtimes/{id}/models/{request_id}/result")
@pytest.mark.spec("01 §3.3", "POST /api/daemon/heartbeat")
async def test_a_list_of_models() -> None:
    async with open_api() as api:
        asked = await ask(api, "models")
        assert asked == {
            "id": asked["id"],
            "runtime_id": api.world.runtime_id,
            "status": "pending",
            "supported": True,
            "created_at": asked["created_at"],
            "updated_at": asked["updated_at"],
        }
        assert len(asked["id"]) == 32
        assert await beat(api) == {"pending_model_list": {"id": asked["id"]}}
        assert await beat(api) == {}, "handed out once"
        assert (await poll(api, "models", asked["id"]))["status"] == "running"
        models = [{"id": "opus", "label": "Opus", "default": True}]
        await report(api, "models", asked["id"], {"status": "completed", "models": models})
        done = await poll(api, "models", asked["id"])
        assert (done["status"], done["models"], done["supported"]) == ("completed", models, True)
        await report(api, "models", asked["id"], {"status": "failed", "error": "late"})
        assert (await poll(api, "models", asked["id"]))["status"] == "completed"


async def test_a_lost_answer_is_given_again_and_time_runs_out() -> None:
    async with open_api() as api:
        asked = await ask(api, "models")
        assert await beat(api)
        await later(api, 21)
        assert await beat(api) == {"pending_model_list": {"id": asked["id"]}}
        await later(api, 40)
        shown = await poll(api, "models", asked["id"])
        assert (shown["status"], "did not answer" in shown["error"]) == ("timeout", True)
        assert await beat(api) == {}
        await report(api, "models", asked["id"], {"status": "completed", "models": []})
        assert (await poll(api, "models", asked["id"]))["status"] == "timeout"
        await later(api, 121)
        path = f"/api/runtimes/{api.world.runtime_id}/models/{asked['id']}"
        assert await api.owner.refused(404, "GET", path) == "request not found"
        await ask(api, "models")
        assert len(await api.fetch("select from runtime_request")) == 1, "old ones are forgotten"


@pytest.mark.spec("01 §3.16", "POST /api/runtimes/{id}/update")
@pytest.mark.spec("01 §3.16", "GET /api/runtimes/{id}/update/{update_id}")
@pytest.mark.spec("01 §3.16", "POST /api/daemon/runtimes/{id}/update/{update_id}/result")
async def test_an_update_is_one_at_a_time_and_handed_out_until_it_begins() -> None:
    async with open_api() as api:
        await api.run(lambda conn: conn.execute("update agent_runtime set status = 'offline'"))
        asked = await ask(api, "update", {"target_version": "v0.3.29"})
        assert asked == {
            "id": asked["id"],
            "runtime_id": api.world.runtime_id,
            "status": "pending",
            "target_version": "v0.3.29",
            "created_at": asked["created_at"],
            "updated_at": asked["updated_at"],
        }
        url = f"/api/runtimes/{api.world.runtime_id}/update"
        refused = await api.owner.refused(409, "POST", url, {"target_version": "v1"})
        assert refused == "an update is already in progress for this runtime"
        assert await api.owner.refused(400, "POST", url, {})
        given = {"pending_update": {"id": asked["id"], "target_version": "v0.3.29"}}
        assert await beat(api) == given
        await report(api, "update", asked["id"], {"status": "running"})
        await later(api, 30)
        assert await beat(api) == {}, "it has begun"
        there = f"/api/daemon/runtimes/{api.world.runtime_id}/update"
        bad = await api.owner.refused(400, "POST", f"{there}/{asked['id']}/result", {"status": "x"})
        assert bad == "invalid status: x"
        gone = await api.owner.refused(
            404, "POST", f"{there}/{NOWHERE}/result", {"status": "running"}
        )
        assert gone == "update not found"
        done = {"status": "completed", "output": "Updated to v0.3.29"}
        await report(api, "update", asked["id"], done)
        shown = await poll(api, "update", asked["id"])
        assert (shown["status"], shown["output"]) == ("completed", "Updated to v0.3.29")
        await ask(api, "update", {"target_version": "v2"})


@pytest.mark.spec("01 §3.18", "POST /api/runtimes/{id}/local-skills")
@pytest.mark.spec("01 §3.18", "GET /api/runtimes/{id}/local-skills/{request_id}")
@pytest.mark.spec("01 §3.18", "POST /api/daemon/runtimes/{id}/local-skills/{request_id}/result")
async def test_local_skills_are_for_the_runtimes_owner() -> None:
    async with open_api() as api:
        url = f"/api/runtimes/{api.world.runtime_id}/local-skills"
        refused = await api.member.refused(403, "POST", url, {})
        assert refused.startswith("you do not have access")
        asked = await ask(api, "local-skills")
        assert await api.member.refused(403, "GET", f"{url}/{asked['id']}")
        assert await beat(api) == {"pending_local_skills": {"id": asked["id"]}}
        listed = [{"key": "a/b", "name": "b", "source_path": "~/x", "provider": "claude"}]
        body = {"status": "completed", "skills": listed, "supported": False}
        await report(api, "local-skills", asked["id"], body)
        shown = await poll(api, "local-skills", asked["id"])
        assert (shown["skills"], shown["supported"]) == (listed, False)


@pytest.mark.spec("01 §3.19", "POST /api/runtimes/{id}/local-skills/import")
@pytest.mark.spec("01 §3.19", "GET /api/runtimes/{id}/local-skills/import/{request_id}")
@pytest.mark.spec(
    "01 §3.19", "POST /api/daemon/runtimes/{id}/local-skills/import/{request_id}/result"
)
async def test_importing_skills() -> None:
    async with open_api() as api:
        first = await ask(api, "local-skills/import", {"skill_key": "a"})
        second = await ask(api, "local-skills/import", {"skill_key": "b"})
        pending = [{"id": first["id"], "skill_key": "a"}, {"id": second["id"], "skill_key": "b"}]
        assert await beat(api, batch=False) == {"pending_local_skill_import": pending[0]}
        await later(api, 21)
        assert await beat(api) == {
            "pending_local_skill_import": pending[0],
            "pending_local_skill_imports": pending,
        }
        skill = {
            "name": "reporter",
            "description": "Release notes",
            "content": "body",
            "source_path": "~/skills/reporter",
            "provider": "claude",
            "files": [{"path": "t.md", "content": "t"}, {"path": "../../etc/passwd"}],
        }
        body = {"status": "completed", "skill": skill}
        await report(api, "local-skills/import", first["id"], body)
        shown = await poll(api, "local-skills/import", first["id"])
        assert shown["status"] == "completed"
        made = await api.owner.get(f"/api/skills/{shown['skill']['id']}")
        assert made == shown["skill"]
        assert [file["path"] for file in made["files"]] == ["t.md"]
        assert made["config"]["origin"] == {
            "type": "runtime_local",
            "runtime_id": api.world.runtime_id,
            "provider": "claude",
            "source_path": "~/skills/reporter",
        }
        assert len(api.events("skill:created")) == 1
        # The name is taken now: said to clients that know of it, a failure to the others.
        await report(api, "local-skills/import", second["id"], body)
        shown = await poll(api, "local-skills/import", second["id"])
        assert (shown["status"], "already exists" in shown["error"]) == ("failed", True)
        third = await ask(api, "local-skills/import", {"skill_key": "a", "supports_conflict": True})
        await report(api, "local-skills/import", third["id"], body)
        shown = await poll(api, "local-skills/import", third["id"])
        assert (shown["status"], shown["conflict"]) == (
            "conflict",
            {
                "existing_skill_id": made["id"],
                "existing_created_by": api.world.user_id,
                "can_overwrite": True,
            },
        )
        over = {"skill_key": "a", "action": "overwrite", "target_skill_id": made["id"]}
        fourth = await ask(api, "local-skills/import", over)
        new = {"status": "completed", "skill": skill | {"content": "new"}}
        await report(api, "local-skills/import", fourth["id"], new)
        assert (await api.owner.get(f"/api/skills/{made['id']}"))["content"] == "new"
        # What no other machine could write is refused here, not at every task.
        fifth = await ask(api, "local-skills/import", {"skill_key": "c", "name": "long"})
        body = {"status": "completed", "skill": skill | {"files": [{"path": "x" * 300}]}}
        await report(api, "local-skills/import", fifth["id"], body)
        shown = await poll(api, "local-skills/import", fifth["id"])
        assert (shown["status"], "file name too long" in shown["error"]) == ("failed", True)


async def test_a_sign_of_life_and_who_may_not_ask() -> None:
    async with open_api() as api:
        asked = await ask(api, "ping")
        assert await beat(api) == {"pending_ping": {"id": asked["id"]}}
        body = {"status": "completed", "output": "pong", "duration_ms": 1234}
        await report(api, "ping", asked["id"], body)
        shown = await poll(api, "ping", asked["id"])
        assert (shown["output"], shown["duration_ms"]) == ("pong", 1234)
        await api.run(lambda conn: conn.execute("update agent_runtime set status = 'offline'"))
        url = f"/api/runtimes/{api.world.runtime_id}/models"
        assert await api.owner.refused(503, "POST", url, {}) == "runtime is offline"
        agent = await api.agent()
        assert await agent.refused(403, "POST", url, {})
        assert await api.stranger.refused(404, "POST", url, {}) == "runtime not found"
        there = f"/api/daemon/runtimes/{api.world.runtime_id}/ping/{asked['id']}/result"
        assert await api.stranger.refused(404, "POST", there, body) == "not found"
