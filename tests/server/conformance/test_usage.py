"""What runs used, counted at once and exactly (spec 02 §11.4)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Api, open_api
from tests.support.rows import insert, make_issue, make_task

pytestmark = pytest.mark.postgres


async def used(api: Api, task_id: str, **counts: int) -> None:
    entry = {
        "provider": "Anthropic",
        "model": "opus",
        "input_tokens": 0,
        "output_tokens": 0,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
    }
    path = f"/api/daemon/tasks/{task_id}/usage"
    await api.owner.ok(200, "POST", path, {"usage": [entry | counts]})


def tokens(count: int) -> dict[str, Any]:
    return {
        "provider": "anthropic",
        "model": "opus",
        "input_tokens": count,
        "output_tokens": 2 * count,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
    }


@pytest.mark.spec("06 §17", "GET /api/runtimes/{id}/usage")
@pytest.mark.spec("06 §17", "GET /api/runtimes/{id}/usage/by-agent")
@pytest.mark.spec("06 §17", "GET /api/runtimes/{id}/usage/by-hour")
@pytest.mark.spec("06 §18", "GET /api/dashboard/usage/daily")
@pytest.mark.spec("06 §18", "GET /api/dashboard/usage/by-agent")
async def test_totals_replace_what_was_reported_and_outlive_their_tasks() -> None:
    async with open_api() as api:
        world = api.world

        async def fill(conn: Any) -> tuple[str, str, str]:
            project_id = await insert(conn, "project", workspace_id=world.workspace_id, title="Web")
            issue = await make_issue(conn, world, project_id=project_id)
            first = await make_task(conn, world, status="running", issue_id=issue.id)
            return project_id, first, await make_task(conn, world, status="running")

        project_id, first, second = await api.run(fill)
        await used(api, first, input_tokens=1, output_tokens=2)
        await used(api, first, input_tokens=10, output_tokens=20)
        await used(api, second, input_tokens=5, output_tokens=10)
        runtime = f"/api/runtimes/{world.runtime_id}"
        (day,) = await api.member.get(f"{runtime}/usage")
        today = day.pop("date")
        assert day == {"runtime_id": world.runtime_id} | tokens(15)
        (hour,) = await api.member.get(f"{runtime}/usage/by-hour", tz="UTC")
        assert (hour.pop("hour") in range(24), hour) == (True, tokens(15) | {"task_count": 2})
        by_agent = {"agent_id": world.agent_id} | tokens(15) | {"task_count": 2}
        assert await api.member.get(f"{runtime}/usage/by-agent") == [by_agent]
        assert await api.member.get("/api/dashboard/usage/by-agent") == [by_agent]
        daily = await api.member.get("/api/dashboard/usage/daily", project_id=project_id)
        assert daily == [{"date": today} | tokens(10) | {"task_count": 1}]
        await api.run(lambda conn: conn.execute("delete from agent_task_queue"))
        (day,) = await api.member.get(f"{runtime}/usage")
        assert day["input_tokens"] == 15
        assert await api.stranger.refused(404, "GET", f"{runtime}/usage")
        assert await api.stranger.get("/api/dashboard/usage/daily") == []


async def test_days_are_those_of_the_zone_asked_for() -> None:
    async with open_api() as api:
        task_id = await api.run(lambda conn: make_task(conn, api.world, status="running"))
        await used(api, task_id, input_tokens=1, output_tokens=2)
        await api.run(
            lambda conn: conn.execute(
                "update task_usage_hourly set bucket_hour ="
                " date_trunc('day', now() at time zone 'UTC') at time zone 'UTC'"
                " - interval '1 hour'"  # 23:00 yesterday in Greenwich
            )
        )
        path = f"/api/runtimes/{api.world.runtime_id}/usage"
        (utc,) = await api.member.get(path, tz="UTC")
        (tokyo,) = await api.member.get(path, tz="Asia/Tokyo")
        assert tokyo["date"] > utc["date"]
        await api.run(lambda conn: conn.execute("update app_user set timezone = 'Asia/Tokyo'"))
        assert await api.member.get(path) == [tokyo]
        assert await api.member.get(path, tz="Mars/Base") == [tokyo]
        assert await api.member.get(path, tz="UTC", days="0") == [utc], "nonsense is the default"
        await api.run(
            lambda conn: conn.execute(
                "update task_usage_hourly set bucket_hour = bucket_hour - interval '10 days'"
            )
        )
        assert await api.member.get(path, days="5") == []
        assert len(await api.member.get(path, days="20")) == 1


@pytest.mark.spec("06 §17", "GET /api/runtimes/{id}/activity")
@pytest.mark.spec("06 §18", "GET /api/dashboard/agent-runtime")
@pytest.mark.spec("06 §18", "GET /api/dashboard/runtime/daily")
@pytest.mark.spec("06 §10.2", "GET /api/agent-run-counts")
@pytest.mark.spec("06 §10.2", "GET /api/agent-activity-30d")
async def test_how_long_runs_took() -> None:
    async with open_api() as api:
        world = api.world

        async def fill(conn: Any) -> None:
            for status in ("completed", "completed", "failed", "cancelled"):
                task_id = await make_task(conn, world, status=status)
                await conn.execute(
                    "update agent_task_queue set started_at = now() - interval '1 minute',"
                    " completed_at = now() where id = $1",
                    task_id,
                )

        await api.run(fill)
        (agent,) = await api.member.get("/api/dashboard/agent-runtime")
        counted = {"total_seconds": 180, "task_count": 3, "failed_count": 1}
        assert agent == {"agent_id": world.agent_id} | counted
        (day,) = await api.member.get("/api/dashboard/runtime/daily")
        assert (day.pop("date").count("-"), day) == (2, counted)
        (hour,) = await api.member.get(f"/api/runtimes/{world.runtime_id}/activity")
        assert hour["count"] == 4
        runs = await api.member.get("/api/agent-run-counts")
        assert runs == [{"agent_id": world.agent_id, "run_count": 4}]
        (days,) = await api.member.get("/api/agent-activity-30d")
        assert (days["task_count"], days["failed_count"]) == (3, 1)
        assert days["bucket_at"].endswith("Z")
        await api.run(lambda conn: conn.execute("update agent set visibility = 'private'"))
        assert await api.member.get("/api/agent-run-counts") == []
        assert len(await api.owner.get("/api/agent-run-counts")) == 1
