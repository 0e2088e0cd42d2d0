"""What the server counts of itself: a task's life, the database's state, sockets and requests."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from server import metrics
from server.push.hub import Hub
from shared.wire.event import Event
from tests.support.api import Api, open_api
from tests.support.server import open_server

pytestmark = pytest.mark.postgres

TOKEN = "for the scraper alone"
SCRAPER = {"authorization": f"Bearer {TOKEN}"}

WHERE = 'provider="claude",runtime_mode="local",source="issue"'


async def figures(api: Api) -> dict[str, float]:
    """All figures by name and labels, labels in alphabetical order."""
    answer = await api.owner.call("GET", "/metrics", headers=SCRAPER)
    assert answer.status_code == 200, answer.text
    return parsed(answer.text)


def parsed(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, value = line.rsplit(" ", 1)
        if "{" in name:
            head, labels = name.rstrip("}").split("{")
            pairs = ",".join(sorted(re.findall(r'[a-z_]+="[^"]*"', labels)))
            name = f"{head}{{{pairs}}}"
        found[name] = float(value)
    return found


async def run_a_task(api: Api, *, fail: str = "") -> str:
    """Have the world's agent do an issue; returns the task's id."""
    body = {"title": "x", "assignee_type": "agent", "assignee_id": api.world.agent_id}
    await api.member.ok(201, "POST", "/api/issues", body | {"allow_duplicate": True})
    path = f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/claim"
    task = (await api.owner.ok(200, "POST", path, {}))["task"]
    at = f"/api/daemon/tasks/{task['id']}"
    await api.owner.ok(200, "POST", f"{at}/start", {})
    if fail:
        await api.owner.ok(200, "POST", f"{at}/fail", {"error": "x", "failure_reason": fail})
    else:
        await api.owner.ok(200, "POST", f"{at}/complete", {"output": "done"})
    return str(task["id"])


async def test_a_tasks_life_is_counted_once() -> None:
    async with open_api(BULLPEN_METRICS_TOKEN=TOKEN) as api:
        await run_a_task(api)
        await run_a_task(api, fail="agent_blocked")
        for _ in range(2):
            seen = await figures(api)
            for move in ("enqueued", "dispatched", "started"):
                assert seen[f"bullpen_agent_task_{move}_total{{{WHERE}}}"] == 2, move
            for status in ("completed", "failed"):
                where = f'{WHERE},status="{status}"'
                assert seen[f"bullpen_agent_task_terminal_total{{{where}}}"] == 1
                assert seen[f"bullpen_agent_task_run_seconds_count{{{where}}}"] == 1
            reason = f'provider="claude",reason="agent_blocked",{WHERE.split(",", 1)[1]}'
            assert seen[f"bullpen_agent_task_failed_total{{{reason}}}"] == 1
            assert seen[f"bullpen_agent_task_queue_wait_seconds_count{{{WHERE}}}"] == 2
            assert seen["bullpen_issue_executed_total"] == 1
            assert seen["bullpen_issue_created_total"] == 2


async def test_two_applications_count_apart() -> None:
    async with (
        open_api(BULLPEN_METRICS_TOKEN=TOKEN) as one,
        open_api(BULLPEN_METRICS_TOKEN=TOKEN) as other,
    ):
        await run_a_task(one)
        await one.owner.get("/api/issues")
        assert not [name for name in await figures(other) if "agent_task_enqueued_total{" in name]
        assert (await figures(other))["bullpen_issue_created_total"] == 0


async def test_hot_paths_pay_no_statement_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_api(BULLPEN_METRICS_TOKEN=TOKEN) as api:
        read = api.database.read
        asked: list[Any] = []

        async def counting(unit: Any, **how: Any) -> Any:
            asked.append(unit)
            return await read(unit, **how)

        await figures(api)
        monkeypatch.setattr(api.database, "read", counting)
        await run_a_task(api)
        before = len(asked)
        await figures(api)
        assert len(asked) == before + 1  # the tasks; the sample is not old enough
        assert not [unit for unit in asked[:before] if "limited" in repr(unit)]


async def test_without_an_answer_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_api(BULLPEN_METRICS_TOKEN=TOKEN) as api:
        await run_a_task(api)
        read = api.database.read

        async def broken(*_: Any, **__: Any) -> Any:
            raise OSError("no database")

        monkeypatch.setattr(api.database, "read", broken)
        assert not [name for name in await figures(api) if "agent_task_enqueued_total{" in name]
        monkeypatch.setattr(api.database, "read", read)
        assert (await figures(api))[f"bullpen_agent_task_enqueued_total{{{WHERE}}}"] == 1


async def test_what_nobody_asks_for_is_forgotten_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "MOST_PENDING", 3)
    async with open_api(BULLPEN_METRICS_TOKEN=TOKEN) as api:
        await run_a_task(api)  # queued, dispatch, running, completed
        seen = await figures(api)
        assert seen["bullpen_task_moves_forgotten_total"] == 1
        assert seen[f"bullpen_agent_task_started_total{{{WHERE}}}"] == 1
        assert f"bullpen_agent_task_enqueued_total{{{WHERE}}}" not in seen


async def test_the_databases_state_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_api(BULLPEN_METRICS_TOKEN=TOKEN) as api:
        body = {"assignee_type": "agent", "assignee_id": api.world.agent_id}
        issue = await api.owner.ok(201, "POST", "/api/issues", {"title": "x"} | body)
        await api.run(
            lambda conn: conn.execute(
                "update agent_runtime set last_seen_at = now() - case when id = $1 then"
                " interval '20 seconds' else interval '2 hours' end",
                api.world.runtime_id,
            )
        )
        where = '{provider="claude",runtime_mode="local"}'
        seen = await figures(api)
        assert seen[f"bullpen_agent_task_queued{where}"] == 1
        assert seen[f"bullpen_agent_task_running{where}"] == 0
        assert seen[f"bullpen_runtime_online{where}"] == 1
        ages = [
            seen[f'bullpen_runtime_heartbeat_age_seconds_bucket{{le="{le}",{where[1:]}']
            for le in ("15.0", "30.0", "600.0", "+Inf")
        ]
        assert ages == [0, 1, 1, 2]
        assert seen["bullpen_workspace_total"] == 2
        assert (seen["bullpen_active_users"], seen["bullpen_active_workspaces"]) == (1, 1)
        assert seen["bullpen_db_pool_max_connections"] == 10
        await api.owner.ok(200, "PUT", f"/api/issues/{issue['id']}", {"status": "cancelled"})
        assert (await figures(api))[f"bullpen_agent_task_queued{where}"] == 1  # a moment old
        monkeypatch.setattr(metrics, "SAMPLED_FOR", 0.0)
        assert f"bullpen_agent_task_queued{where}" not in await figures(api)


async def test_tokens_count_by_how_much_they_grew() -> None:
    async with open_api(BULLPEN_METRICS_TOKEN=TOKEN) as api:
        task_id = await run_a_task(api)
        for tokens in (5, 12, 12):
            used = {"model": "m", "input_tokens": tokens, "output_tokens": 1}
            body = {"usage": [used | {"provider": "Claude"}]}
            await api.owner.ok(200, "POST", f"/api/daemon/tasks/{task_id}/usage", body)
        seen = await figures(api)
        name = "bullpen_llm_tokens_total"
        assert seen[f'{name}{{kind="input",model="m",provider="claude"}}'] == 12
        assert seen[f'{name}{{kind="output",model="m",provider="claude"}}'] == 1


async def test_requests_are_counted_by_area() -> None:
    async with open_api(BULLPEN_METRICS_TOKEN=TOKEN) as api:
        await api.owner.get("/api/issues")
        await api.owner.call("GET", "/nowhere/at/all")
        seen = await figures(api)
        assert seen['bullpen_http_request_duration_seconds_count{area="work_api"}'] == 1
        assert seen['bullpen_http_requests_total{method="GET",status="4xx"}'] == 1
        assert seen["bullpen_http_requests_in_flight"] == 1  # this one
        assert seen['bullpen_http_request_stage_seconds_total{stage="statements"}'] > 0


@pytest.mark.spec("02 §11.6", "GET /health/realtime")
async def test_the_numbers_of_sockets_are_for_who_may_know_them() -> None:
    async with open_api(BULLPEN_METRICS_TOKEN=TOKEN) as api:
        async with open_server(api.database, metrics_token=TOKEN) as server:
            path = f"/ws?workspace_id={api.world.workspace_id}"
            async with server.socket(path) as socket:
                auth = {"type": "auth", "payload": {"token": api.world.token}}
                for sent in (auth, {"type": "ping"}):
                    await socket.send_message(json.dumps(sent))
                    await socket.get_message()  # auth_ack, then pong: it is served now
                answer = await server.http.get("/health/realtime", headers=SCRAPER)
                said = answer.json()
                assert (said["open"], said["evictions"]) == ({"browser": 1}, 0)
        async with open_server(api.database) as server:
            answer = await server.http.get("/health/realtime")
            assert answer.status_code == 404
        async with open_server(api.database, metrics_token="t") as server:
            answer = await server.http.get("/health/realtime")
            assert (answer.status_code, answer.text) == (401, "unauthorized")
            token = {"authorization": "Bearer t"}
            assert (await server.http.get("/health/realtime", headers=token)).status_code == 200


def test_what_other_servers_announce_they_count_themselves() -> None:
    hub = Hub()
    seen: list[object] = []
    hub.observe_own(seen.append)
    event = Event(type="issue:created", payload={}, workspace_id="w")
    hub.deliver(event)
    assert seen == []
    hub.announce([event])
    assert seen == [event]
