"""What a daemon asks before it deletes a work directory (spec 01 §3.14)."""

from __future__ import annotations

import pytest

from server.store.queries import Connection
from tests.support.api import Api, open_api
from tests.support.rows import insert, make_autopilot_run, make_issue, make_task

pytestmark = pytest.mark.postgres

NOBODY = "00000000-0000-4000-8000-000000000000"


async def rows(api: Api) -> dict[str, str]:
    async def fill(conn: Connection) -> dict[str, str]:
        session = await insert(
            conn,
            "chat_session",
            workspace_id=api.world.workspace_id,
            agent_id=api.world.agent_id,
            creator_id=api.member.user_id,
        )
        run = await make_autopilot_run(conn, api.world)
        # the owner's machine worked for both, so it may ask
        await make_task(conn, api.world, chat_session_id=session)
        await make_task(conn, api.world, autopilot_run_id=run)
        return {
            "issues": (await make_issue(conn, api.world)).id,
            "chat-sessions": session,
            "autopilot-runs": run,
            "tasks": await make_task(conn, api.world),
        }

    made: dict[str, str] = await api.run(fill)
    return made


@pytest.mark.spec("01 §3.14", "GET /api/daemon/issues/{id}/gc-check")
@pytest.mark.spec("01 §3.14", "GET /api/daemon/chat-sessions/{id}/gc-check")
@pytest.mark.spec("01 §3.14", "GET /api/daemon/autopilot-runs/{id}/gc-check")
@pytest.mark.spec("01 §3.14", "GET /api/daemon/tasks/{id}/gc-check")
async def test_what_is_there_gone_and_foreign() -> None:
    async with open_api() as api:
        missing = {
            "issues": "issue not found",
            "chat-sessions": "chat session not found",
            "autopilot-runs": "autopilot run not found",
            "tasks": "task not found",
        }
        shown = {
            "issues": "todo",
            "chat-sessions": "active",
            "autopilot-runs": "running",
            "tasks": "queued",
        }
        for kind, row_id in (await rows(api)).items():
            path = f"/api/daemon/{kind}/{row_id}/gc-check"
            answer = await api.owner.get(path)
            assert answer.pop("status") == shown[kind]
            if kind in {"issues", "chat-sessions"}:
                assert set(answer) == {"updated_at"}
            else:
                assert answer == {"completed_at": "0001-01-01T00:00:00Z"}, "year 1 is none"
            gone = await api.owner.refused(404, "GET", f"/api/daemon/{kind}/{NOBODY}/gc-check")
            assert gone == missing[kind]
            assert await api.stranger.refused(404, "GET", path) == "not found"
            assert await api.owner.refused(400, "GET", f"/api/daemon/{kind}/x/gc-check")
