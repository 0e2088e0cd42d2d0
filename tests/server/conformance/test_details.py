"""Details of the protocol that real use has found wanting, each with what readers rely on."""

from __future__ import annotations

from typing import Any

import pytest

from server.dispatch import schedule
from server.errors import Invalid
from server.store.queries import Connection
from shared import times
from tests.server.test_metrics import TOKEN, figures
from tests.support.api import Api, open_api
from tests.support.rows import make_issue, make_task

pytestmark = pytest.mark.postgres


async def register(api: Api, *kinds: str, **more: Any) -> Any:
    body = {
        "workspace_id": api.world.workspace_id,
        "daemon_id": "box",
        "runtimes": [{"type": kind, "name": kind, "profile_id": "  "} for kind in kinds],
    }
    return await api.owner.ok(200, "POST", "/api/daemon/register", body | more)


async def test_a_completed_run_stands_in_the_timeline() -> None:
    async with open_api() as api:
        issue = await api.run(lambda conn: make_issue(conn, api.world))
        task_id = await api.run(
            lambda conn: make_task(conn, api.world, issue_id=issue.id, status="running")
        )
        body = {"output": "Done."}
        await api.owner.ok(200, "POST", f"/api/daemon/tasks/{task_id}/complete", body)
        timeline = await api.member.get(f"/api/issues/{issue.id}/timeline")
        (done,) = [one for one in timeline if one.get("action") == "task_completed"]
        assert (done["actor_type"], done["actor_id"]) == ("agent", api.world.agent_id)
        told = [event.payload["entry"]["action"] for event in api.events("activity:created")]
        assert told == ["task_completed"]
        # Told twice, it stands there once.
        await api.owner.ok(200, "POST", f"/api/daemon/tasks/{task_id}/complete", body)
        assert len(await api.member.get(f"/api/issues/{issue.id}/timeline")) == len(timeline)


async def test_machines_are_counted_by_what_becomes_of_them() -> None:
    async with open_api(BULLPEN_METRICS_TOKEN=TOKEN) as api:

        async def counts() -> dict[str, float]:
            known = await figures(api)
            names = ("registered", "ready", "failed", "offline")
            return {name: known[f"bullpen_runtime_{name}_total"] for name in names}

        made = await register(api, "claude", "codex")
        assert (await counts()) == {"registered": 2, "ready": 2, "failed": 0, "offline": 0}
        await register(api, "claude", "codex")
        assert (await counts()) == {"registered": 2, "ready": 2, "failed": 0, "offline": 0}
        ids = [runtime["id"] for runtime in made["runtimes"]]
        await api.owner.ok(200, "POST", "/api/daemon/deregister", {"runtime_ids": ids})
        assert (await counts())["offline"] == 2
        beat = {"runtime_id": ids[0]}
        await api.owner.ok(200, "POST", "/api/daemon/heartbeat", beat)
        assert (await counts()) == {"registered": 2, "ready": 3, "failed": 0, "offline": 2}


async def test_empty_settings_are_empty_and_a_blank_profile_is_none() -> None:
    async with open_api() as api:
        made = await register(api, "claude")
        assert made["settings"] == {}
        assert [runtime["profile_id"] for runtime in made["runtimes"]] == [None]
        repos = await api.owner.get(f"/api/daemon/workspaces/{api.world.workspace_id}/repos")
        assert repos["settings"] == {}


async def test_a_transcript_begins_with_its_first_line() -> None:
    async with open_api() as api:
        issue = await api.run(lambda conn: make_issue(conn, api.world))

        async def fill(conn: Connection) -> str:
            task_id = await make_task(conn, api.world, issue_id=issue.id, status="running")
            for seq in (0, 1):
                await conn.execute(
                    "insert into task_message (task_id, seq, type) values ($1, $2, 'text')",
                    task_id,
                    seq,
                )
            return task_id

        path = f"/api/tasks/{await api.run(fill)}/messages"
        for query, seqs in (({}, [0, 1]), ({"since": -1}, [0, 1]), ({"since": 0}, [1])):
            assert [row["seq"] for row in await api.member.get(path, **query)] == seqs


async def test_runs_on_a_silent_machine_say_so_where_any_table_shows_it() -> None:
    async with open_api() as api:
        issue = await api.run(lambda conn: make_issue(conn, api.world))
        task_id = await api.run(
            lambda conn: make_task(conn, api.world, issue_id=issue.id, status="running")
        )
        await api.run(
            lambda conn: conn.execute(
                "update agent_task_queue set unreachable_since = now() where id = $1", task_id
            )
        )
        for path in (
            f"/api/issues/{issue.id}/task-runs",
            f"/api/agents/{api.world.agent_id}/tasks",
        ):
            (run,) = await api.member.get(path)
            assert run["unreachable_since"]
            assert run["error"] == f"its machine cannot be reached since {run['unreachable_since']}"
        await api.run(
            lambda conn: conn.execute("update agent_task_queue set unreachable_since = null")
        )
        (run,) = await api.member.get(f"/api/issues/{issue.id}/task-runs")
        assert run["error"] is None


async def test_usage_counts_the_runs_that_have_used_something() -> None:
    async with open_api() as api:
        issue = await api.run(lambda conn: make_issue(conn, api.world))

        async def fill(conn: Connection) -> None:
            used = await make_task(conn, api.world, issue_id=issue.id, status="completed")
            await make_task(conn, api.world, issue_id=issue.id, status="completed")
            for model in ("a", "b"):
                await conn.execute(
                    "insert into task_usage (task_id, provider, model, input_tokens)"
                    " values ($1, 'claude', $2, 1)",
                    used,
                    model,
                )

        await api.run(fill)
        usage = await api.member.get(f"/api/issues/{issue.id}/usage")
        assert (usage["task_count"], usage["total_input_tokens"]) == (1, 2)


async def test_a_trigger_has_the_words_of_its_kind() -> None:
    async with open_api() as api:
        pilot = await api.member.ok(
            201,
            "POST",
            "/api/autopilots",
            {"title": "N", "assignee_id": api.world.agent_id, "execution_mode": "run_only"},
        )
        path = f"/api/autopilots/{pilot['id']}/triggers"
        timed = {"kind": "schedule", "cron_expression": "0 9 ? * 1", "timezone": "Europe/Paris"}
        made = await api.member.ok(201, "POST", path, timed)
        assert (made["timezone"], made["provider"]) == ("Europe/Paris", None)
        assert made["cron_expression"] == "0 9 ? * 1"
        made = await api.member.ok(201, "POST", path, {"kind": "webhook"})
        assert (made["timezone"], made["provider"]) == (None, "generic")


def test_a_question_mark_is_any_day_and_nothing_else() -> None:
    now = times.now()
    for odd, plain in (("0 9 ? * 1", "0 9 * * 1"), ("0 9 1 * ?", "0 9 1 * *")):
        schedule.check(odd, "UTC")
        assert schedule.next_after(odd, "UTC", now) == schedule.next_after(plain, "UTC", now)
    for wrong in ("? 9 * * *", "0 ? * * *", "0 9 * ? *"):
        with pytest.raises(Invalid):
            schedule.check(wrong, "UTC")


async def test_what_a_machine_has_used_by_its_own_logs() -> None:
    async with open_api() as api:
        path = f"/api/daemon/runtimes/{api.world.runtime_id}/usage"
        assert await api.owner.refused(400, "POST", path, {}) == "invalid request body"
        today = times.now().date().isoformat()
        entry = {
            "date": today,
            "provider": "Claude",
            "model": "m",
            "input_tokens": 1,
            "output_tokens": 2,
            "cache_read_tokens": 3,
            "cache_write_tokens": 4,
        }
        for used in (1, 5):  # a later report of the same day replaces the first
            body = {"entries": [entry | {"input_tokens": used}]}
            assert await api.owner.ok(200, "POST", path, body) == {"status": "ok"}
        shown = await api.owner.get(
            f"/api/runtimes/{api.world.runtime_id}/usage", source="local", days=7
        )
        whole = entry | {"provider": "claude", "input_tokens": 5}
        assert shown == [whole | {"runtime_id": api.world.runtime_id}]
        assert await api.owner.get(f"/api/runtimes/{api.world.runtime_id}/usage") == []
        for bad in ({"date": "today"}, {"model": " "}, {"input_tokens": -1}, {"input_tokens": "x"}):
            await api.owner.refused(400, "POST", path, {"entries": [entry | bad]})
        await api.stranger.refused(404, "POST", path, {"entries": [entry]})


async def test_a_cancel_is_acknowledged_once() -> None:
    async with open_api() as api:
        task_id = await api.run(lambda conn: make_task(conn, api.world, status="running"))
        path = f"/api/daemon/tasks/{task_id}/cancel-ack"
        await api.owner.refused(400, "POST", path, {})
        await api.run(lambda conn: conn.execute("update agent_task_queue set status = 'cancelled'"))
        for _ in range(2):
            assert await api.owner.ok(200, "POST", path, {}) == {"status": "ok"}
        (row,) = await api.fetch("select cancel_acked_at from agent_task_queue")
        assert row["cancel_acked_at"] is not None
        await api.stranger.refused(404, "POST", path, {})


async def test_a_runtime_gets_a_name_from_people() -> None:
    async with open_api() as api:
        path = f"/api/runtimes/{api.world.runtime_id}"
        named = await api.owner.ok(200, "PATCH", path, {"custom_name": " Big box "})
        assert (named["custom_name"], named["visibility"]) == ("Big box", "private")
        both = await api.owner.ok(200, "PATCH", path, {"visibility": "public"})
        assert (both["custom_name"], both["visibility"]) == ("Big box", "public")
        cleared = await api.owner.ok(200, "PATCH", path, {"custom_name": None})
        assert "custom_name" not in cleared
        for bad in ({}, {"custom_name": "x" * 101}, {"custom_name": 1}):
            await api.owner.refused(400, "PATCH", path, bad)


async def test_the_pages_a_command_line_opens() -> None:
    async with open_api() as api:
        client = api.owner.client
        client.headers.pop("authorization")
        for path in ("/workspaces/new", "/invite/00000000-0000-4000-8000-000000000000"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, f"/login?next={path}")
        assert (await client.get("/onboarding")).headers["location"] == "/"
