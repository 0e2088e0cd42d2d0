"""Autopilots: what starts by itself, and how its runs end (spec 06 §15, 02 §3.9, §3.10)."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest

from server.dispatch import scheduler
from server.store.queries import Connection
from tests.support.api import Api, open_api
from tests.support.rows import make_agent

pytestmark = pytest.mark.postgres

NOBODY = "00000000-0000-4000-8000-000000000000"


async def make(api: Api, **body: Any) -> Any:
    given = {
        "title": "Nightly",
        "assignee_id": api.world.agent_id,
        "execution_mode": "create_issue",
    }
    return await api.member.ok(201, "POST", "/api/autopilots", given | body)


async def fire(api: Api, autopilot: Any) -> Any:
    return await api.member.ok(200, "POST", f"/api/autopilots/{autopilot['id']}/trigger")


async def claim(api: Api) -> Any:
    path = f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/claim"
    return (await api.owner.ok(200, "POST", path, {}))["task"]


async def run_of(api: Api, run: Any) -> Any:
    return await api.member.get(f"/api/autopilots/{run['autopilot_id']}/runs/{run['id']}")


@pytest.mark.spec("06 §15", "POST /api/autopilots")
@pytest.mark.spec("06 §15", "GET /api/autopilots")
@pytest.mark.spec("06 §15", "GET /api/autopilots/{id}")
async def test_an_autopilot_is_shown_whole() -> None:
    async with open_api() as api:
        listening = [{"user_type": "member", "user_id": api.member.user_id}]
        made = await make(api, description="Look around", subscribers=listening, priority="x")
        assert made == {
            "id": made["id"],
            "workspace_id": api.world.workspace_id,
            "title": "Nightly",
            "description": "Look around",
            "project_id": None,
            "assignee_type": "agent",
            "assignee_id": api.world.agent_id,
            "status": "active",
            "execution_mode": "create_issue",
            "issue_title_template": None,
            "created_by_type": "member",
            "created_by_id": api.member.user_id,
            "last_run_at": None,
            "created_at": made["created_at"],
            "updated_at": made["updated_at"],
            "subscribers": [listening[0] | {"created_at": made["created_at"]}],
        }
        shown = await api.owner.get(f"/api/autopilots/{made['id']}")
        assert shown == {"autopilot": made, "triggers": []}
        listed = await api.owner.get("/api/autopilots")
        assert listed == {"autopilots": [made | {"subscribers": []}], "total": 1}
        assert (await api.owner.get("/api/autopilots", status="paused"))["total"] == 0
        assert api.events("autopilot:created")[0].payload == {"autopilot": made}
        assert await api.stranger.refused(404, "GET", f"/api/autopilots/{made['id']}")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"title": " "}, 400),
        ({"assignee_id": None}, 400),
        ({"assignee_id": NOBODY}, 400),
        ({"assignee_type": "squad"}, 400),
        ({"execution_mode": ""}, 400),
        ({"execution_mode": "sometimes"}, 400),
        ({"issue_title_template": "{{week}}"}, 400),
        ({"project_id": NOBODY}, 400),
        ({"subscribers": [{"user_type": "member", "user_id": NOBODY}]}, 400),
        ({"subscribers": [{"user_type": "agent", "user_id": NOBODY}]}, 400),
    ],
)
async def test_autopilots_that_are_refused(change: dict[str, Any], status: int) -> None:
    async with open_api() as api:
        given = {"title": "N", "assignee_id": api.world.agent_id, "execution_mode": "run_only"}
        assert await api.member.refused(status, "POST", "/api/autopilots", given | change)


@pytest.mark.spec("06 §15", "PATCH /api/autopilots/{id}")
@pytest.mark.spec("06 §15", "DELETE /api/autopilots/{id}")
async def test_changing_and_deleting_an_autopilot() -> None:
    async with open_api() as api:
        made = await make(api, description="x")
        path = f"/api/autopilots/{made['id']}"
        listening = [{"user_type": "member", "user_id": api.world.user_id}]
        changed = await api.member.ok(
            200, "PATCH", path, {"description": None, "status": "paused", "subscribers": listening}
        )
        assert (changed["description"], changed["status"]) == (None, "paused")
        assert [one["user_id"] for one in changed["subscribers"]] == [api.world.user_id]
        assert await api.member.refused(400, "PATCH", path, {"status": "broken"})
        assert await api.member.refused(400, "PATCH", path, {"assignee_type": "squad"})
        refused = await api.member.refused(400, "POST", f"{path}/trigger")
        assert refused == "autopilot is not active"
        await api.member.ok(204, "DELETE", path)
        assert await api.member.refused(404, "DELETE", path)


@pytest.mark.spec("06 §15", "POST /api/autopilots/{id}/trigger")
@pytest.mark.spec("06 §15", "GET /api/autopilots/{id}/runs")
@pytest.mark.spec("06 §15", "GET /api/autopilots/{id}/runs/{run_id}")
async def test_a_run_makes_an_issue_and_goes_as_that_goes() -> None:
    async with open_api() as api:
        listening = [{"user_type": "member", "user_id": api.member.user_id}]
        pilot = await make(
            api, issue_title_template="Look {{ date }}", description="All.", subscribers=listening
        )
        run = await fire(api, pilot)
        assert run == {
            "id": run["id"],
            "autopilot_id": pilot["id"],
            "trigger_id": None,
            "source": "manual",
            "status": "issue_created",
            "issue_id": run["issue_id"],
            "task_id": None,
            "triggered_at": run["triggered_at"],
            "completed_at": None,
            "failure_reason": None,
            "trigger_payload": None,
            "result": None,
            "created_at": run["created_at"],
        }
        issue = await api.member.get(f"/api/issues/{run['issue_id']}")
        assert issue["title"] == f"Look {run['triggered_at'][:10]}"
        assert issue["description"].startswith("All.")
        assert (issue["creator_type"], issue["assignee_id"]) == ("agent", api.world.agent_id)
        assert api.events("autopilot:run_start")[0].payload == {
            "run_id": run["id"],
            "autopilot_id": pilot["id"],
            "source": "manual",
            "status": "issue_created",
        }
        assert [e.users for e in api.events("inbox:new")] == [(api.member.user_id,)]
        assert (await claim(api))["issue_id"] == issue["id"]
        await api.member.ok(200, "PUT", f"/api/issues/{issue['id']}", {"status": "in_review"})
        ended = await run_of(api, run)
        assert (ended["status"], bool(ended["completed_at"])) == ("completed", True)
        assert api.events("autopilot:run_done")[0].payload["status"] == "completed"
        assert (await api.member.get(f"/api/autopilots/{pilot['id']}"))["autopilot"]["last_run_at"]
        listed = await api.member.get(f"/api/autopilots/{pilot['id']}/runs")
        assert listed == {"runs": [ended], "total": 1}


@pytest.mark.parametrize(
    ("move", "reason"), [("cancelled", "issue cancelled"), ("blocked", "issue blocked")]
)
async def test_a_run_fails_with_its_issue(move: str, reason: str) -> None:
    async with open_api() as api:
        run = await fire(api, await make(api))
        await api.member.ok(200, "PUT", f"/api/issues/{run['issue_id']}", {"status": move})
        ended = await run_of(api, run)
        assert (ended["status"], ended["failure_reason"]) == ("failed", reason)


async def test_a_run_fails_when_its_issue_is_deleted_or_its_task_fails_for_good() -> None:
    async with open_api() as api:
        pilot = await make(api)
        run = await fire(api, pilot)
        await api.member.ok(204, "DELETE", f"/api/issues/{run['issue_id']}")
        assert (await run_of(api, run))["failure_reason"] == "issue deleted"
        run = await fire(api, pilot)
        task = await claim(api)
        base = f"/api/daemon/tasks/{task['id']}"
        await api.owner.ok(200, "POST", f"{base}/start", {})
        failure = {"error": "no", "failure_reason": "agent_error.unknown"}
        await api.owner.ok(200, "POST", f"{base}/fail", failure)
        assert (await run_of(api, run))["status"] == "failed"


async def test_a_bare_run_goes_as_its_task_goes() -> None:
    async with open_api() as api:
        pilot = await make(api, execution_mode="run_only")
        for end, status in (("complete", "completed"), ("fail", "failed")):
            run = await fire(api, pilot)
            assert (run["status"], run["issue_id"]) == ("running", None)
            task = await claim(api)
            assert (task["id"], task["autopilot_run_id"]) == (run["task_id"], run["id"])
            base = f"/api/daemon/tasks/{task['id']}"
            await api.owner.ok(200, "POST", f"{base}/start", {})
            body = {"output": "all well", "error": "no", "failure_reason": "agent_error.unknown"}
            await api.owner.ok(200, "POST", f"{base}/{end}", body)
            ended = await run_of(api, run)
            assert ended["status"] == status
        assert ended["failure_reason"] == "no"


@pytest.mark.parametrize("why", ["offline", "archived"])
async def test_a_run_that_cannot_start_is_skipped_with_the_reason(why: str) -> None:
    async with open_api() as api:
        pilot = await make(api)
        if why == "offline":
            await api.run(lambda conn: conn.execute("update agent_runtime set status = 'offline'"))
        else:
            await api.owner.ok(200, "POST", f"/api/agents/{api.world.agent_id}/archive")
        run = await fire(api, pilot)
        assert (run["status"], why in run["failure_reason"]) == ("skipped", True)
        assert await api.fetch("select from issue") == []


@pytest.mark.spec("06 §15", "POST /api/autopilots/{id}/triggers")
@pytest.mark.spec("06 §15", "PATCH /api/autopilots/{id}/triggers/{tid}")
@pytest.mark.spec("06 §15", "DELETE /api/autopilots/{id}/triggers/{tid}")
async def test_schedules_start_once_however_many_servers_look() -> None:
    async with open_api() as api:
        pilot = await make(api, execution_mode="run_only")
        path = f"/api/autopilots/{pilot['id']}/triggers"
        body = {"kind": "schedule", "cron_expression": "* * * * *", "timezone": "Europe/Paris"}
        trigger = await api.member.ok(201, "POST", path, body)
        assert trigger == {
            "id": trigger["id"],
            "autopilot_id": pilot["id"],
            "kind": "schedule",
            "enabled": True,
            "cron_expression": "* * * * *",
            "timezone": "Europe/Paris",
            "next_run_at": trigger["next_run_at"],
            "webhook_token": None,
            "webhook_path": None,
            "webhook_url": None,
            "provider": None,
            "has_signing_secret": False,
            "signing_secret_hint": None,
            "label": None,
            "last_fired_at": None,
            "created_at": trigger["created_at"],
            "updated_at": trigger["updated_at"],
        }
        await scheduler.tick(api.database, api.hub)
        assert await api.fetch("select from autopilot_run") == [], "nothing is due yet"

        async def overdue(conn: Connection) -> None:
            await conn.execute(
                "update autopilot_trigger set next_run_at = now() - interval '10 minutes',"
                " created_at = now() - interval '10 minutes', last_fired_at = null"
            )

        await api.run(overdue)
        await scheduler.tick(api.database, api.hub)
        await scheduler.tick(api.database, api.hub)
        rows = await api.fetch("select source, status, planned_at from autopilot_run")
        assert [(row["source"], row["status"]) for row in rows] == [("schedule", "running")]
        await api.run(overdue)  # as if another server had seen the same plan
        await api.run(
            lambda conn: conn.execute(
                "update autopilot_run set planned_at = date_trunc('minute', now())"
            )
        )
        await scheduler.tick(api.database, api.hub)
        assert len(await api.fetch("select from autopilot_run")) == 1
        one = f"{path}/{trigger['id']}"
        changed = await api.member.ok(200, "PATCH", one, {"enabled": False, "label": "x"})
        assert (changed["enabled"], changed["label"]) == (False, "x")
        await api.run(overdue)
        await api.run(lambda conn: conn.execute("delete from autopilot_run"))
        await scheduler.tick(api.database, api.hub)
        assert await api.fetch("select from autopilot_run") == []
        for bad in ({"cron_expression": "x"}, {"timezone": "Mars"}):
            assert await api.member.refused(400, "PATCH", one, bad)
            assert await api.member.refused(400, "POST", path, body | bad)
        await api.member.ok(204, "DELETE", one)
        assert await api.member.refused(404, "DELETE", one)


async def test_an_autopilot_that_fails_nearly_always_is_paused() -> None:
    async with open_api() as api:
        pilot = await make(api)
        await api.run(
            lambda conn: conn.execute(
                "insert into autopilot_run (autopilot_id, source, status, completed_at)"
                " select $1, 'manual', case when n <= 46 then 'failed' else 'completed' end, now()"
                " from generate_series(1, 50) n",
                pilot["id"],
            )
        )
        _, told = await api.run(scheduler.pause_failing)
        shown = (await api.member.get(f"/api/autopilots/{pilot['id']}"))["autopilot"]
        assert shown["status"] == "paused"
        (item,) = await api.fetch("select recipient_id, type, severity from inbox_item")
        assert tuple(item) == (api.member.user_id, "autopilot_paused", "attention")
        assert [event.type for event in told] == ["autopilot:updated", "inbox:new"]


# --- webhooks -------------------------------------------------------------------------------------


async def hook(api: Api, **body: Any) -> tuple[Any, Any]:
    pilot = await make(api)
    path = f"/api/autopilots/{pilot['id']}/triggers"
    trigger = await api.member.ok(201, "POST", path, {"kind": "webhook"} | body)
    assert trigger["webhook_path"] == f"/api/webhooks/autopilots/{trigger['webhook_token']}"
    return pilot, trigger


async def call(api: Api, trigger: Any, body: Any, status: int = 200, **headers: str) -> Any:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    client = api.stranger.client
    del client.headers["authorization"]  # whoever knows the address may call
    answer = await client.post(trigger["webhook_path"], content=json.dumps(body), headers=sent)
    assert answer.status_code == status, answer.text
    client.headers["authorization"] = f"Bearer {api.stranger.token}"
    return answer.json()


@pytest.mark.spec("06 §15", "POST /api/webhooks/autopilots/{token}")
@pytest.mark.spec("06 §15", "GET /api/autopilots/{id}/deliveries")
@pytest.mark.spec("06 §15", "GET /api/autopilots/{id}/deliveries/{did}")
async def test_a_webhook_starts_a_run_once_per_delivery() -> None:
    async with open_api() as api:
        pilot, trigger = await hook(api, provider="github")
        body = {"action": "opened", "number": 7}
        who = {"X_GitHub_Event": "pull_request", "X_GitHub_Delivery": "d-1"}
        said = await call(api, trigger, body, **who)
        assert said == {
            "status": "accepted",
            "delivery_id": said["delivery_id"],
            "run_id": said["run_id"],
            "autopilot_id": pilot["id"],
            "trigger_id": trigger["id"],
        }
        run = await api.member.get(f"/api/autopilots/{pilot['id']}/runs/{said['run_id']}")
        assert run["trigger_payload"]["event"] == "github.pull_request.opened"
        assert run["trigger_payload"]["eventPayload"] == body
        issue = await api.member.get(f"/api/issues/{run['issue_id']}")
        assert '"number": 7' in issue["description"]
        again = await call(api, trigger, body, **who)
        assert again == {
            "status": "duplicate",
            "delivery_id": said["delivery_id"],
            "run_id": said["run_id"],
        }
        listed = await api.member.get(f"/api/autopilots/{pilot['id']}/deliveries")
        assert [one["status"] for one in listed["deliveries"]] == ["dispatched"]
        path = f"/api/autopilots/{pilot['id']}/deliveries/{said['delivery_id']}"
        assert json.loads((await api.member.get(path))["raw_body"]) == body


@pytest.mark.spec("06 §15", "POST /api/autopilots/{id}/triggers/{tid}/rotate-webhook-token")
@pytest.mark.spec("06 §15", "PUT /api/autopilots/{id}/triggers/{tid}/signing-secret")
async def test_signed_webhooks_and_rotated_addresses() -> None:
    async with open_api() as api:
        pilot, trigger = await hook(api)
        path = f"/api/autopilots/{pilot['id']}/triggers/{trigger['id']}"
        secret = "s" * 15 + "1234"
        assert await api.member.refused(
            400, "PUT", f"{path}/signing-secret", {"signing_secret": "x"}
        )
        shown = await api.member.ok(
            200, "PUT", f"{path}/signing-secret", {"signing_secret": secret}
        )
        assert (shown["has_signing_secret"], shown["signing_secret_hint"]) == (True, "1234")
        assert secret not in str(shown)
        missing = await call(api, trigger, {}, 401)
        assert (missing["status"], missing["reason"]) == ("rejected", "missing")
        wrong = await call(api, trigger, {}, 401, X_Hub_Signature_256="sha256=00")
        assert wrong["reason"] == "invalid"
        signed = "sha256=" + hmac.new(secret.encode(), b"{}", hashlib.sha256).hexdigest()
        assert (await call(api, trigger, {}, X_Hub_Signature_256=signed))["status"] == "accepted"
        rotated = await api.member.ok(200, "POST", f"{path}/rotate-webhook-token")
        assert rotated["webhook_token"] != trigger["webhook_token"]
        await call(api, trigger, {}, 404)
        for told in api.events("autopilot:updated"):
            assert trigger["webhook_token"] not in str(told.payload)
            assert secret not in str(told.payload)


async def test_webhooks_that_start_nothing() -> None:
    async with open_api() as api:
        filters = [{"event": "push"}, {"event": "issues", "actions": ["opened"]}]
        pilot, trigger = await hook(api, event_filters=filters)

        async def says(body: Any, **headers: str) -> str:
            said = await call(api, trigger, body, **headers)
            return str(said.get("reason") or said["status"])

        assert await says({}, X_GitHub_Event="push") == "accepted"
        assert await says({"action": "opened"}, X_GitHub_Event="issues") == "accepted"
        assert await says({"action": "closed"}, X_GitHub_Event="issues") == "event_filtered"
        assert await says({"event": "other"}) == "event_filtered"
        await call(api, trigger, "text", 400)
        await call(api, trigger, ["x" * (256 * 1024)], 413)
        await call(api, {"webhook_path": "/api/webhooks/autopilots/awt_x"}, {}, 404)
        path = f"/api/autopilots/{pilot['id']}"
        await api.member.ok(200, "PATCH", f"{path}/triggers/{trigger['id']}", {"enabled": False})
        assert await says({}, X_GitHub_Event="push") == "trigger_disabled"
        await api.member.ok(
            200, "PATCH", f"{path}/triggers/{trigger['id']}", {"enabled": True, "event_filters": []}
        )
        await api.member.ok(200, "PATCH", path, {"status": "paused"})
        assert await says({}) == "autopilot_paused"
        await api.run(
            lambda conn: conn.execute(
                "insert into webhook_delivery (workspace_id, autopilot_id, trigger_id, provider,"
                " status) select workspace_id, autopilot_id, trigger_id, provider, 'ignored'"
                " from webhook_delivery, generate_series(1, 60) limit 60"
            )
        )
        await call(api, trigger, {}, 429)


async def test_a_private_agent_is_not_for_everybodys_autopilot() -> None:
    async with open_api() as api:
        world = api.world
        hidden = await api.run(
            lambda conn: make_agent(
                conn,
                world.workspace_id,
                world.runtime_id,
                visibility="private",
                owner_id=world.user_id,
            )
        )
        body = {"title": "x", "assignee_id": hidden, "execution_mode": "run_only"}
        assert await api.member.refused(403, "POST", "/api/autopilots", body)
        await api.owner.ok(200, "POST", f"/api/agents/{hidden}/archive")
        assert await api.owner.refused(422, "POST", "/api/autopilots", body)


@pytest.mark.spec("06 §15", "POST /api/autopilots/{id}/deliveries/{did}/replay")
async def test_a_delivery_can_be_replayed() -> None:
    async with open_api() as api:
        pilot, trigger = await hook(api)
        said = await call(api, trigger, {"event": "x", "eventPayload": {"n": 7}})
        path = f"/api/autopilots/{pilot['id']}/deliveries"
        again = await api.member.ok(200, "POST", f"{path}/{said['delivery_id']}/replay")
        assert again["status"] == "accepted"
        assert again["run_id"] != said["run_id"]
        run = await api.member.get(f"/api/autopilots/{pilot['id']}/runs/{again['run_id']}")
        assert run["trigger_payload"]["event"] == "x"
        assert run["trigger_payload"]["eventPayload"] == {"n": 7}
        listed = (await api.member.get(path))["deliveries"]
        assert [one["replayed_from_id"] for one in listed] == [said["delivery_id"], None]
        await api.member.ok(200, "PATCH", f"/api/autopilots/{pilot['id']}", {"status": "paused"})
        idle = await api.member.ok(200, "POST", f"{path}/{said['delivery_id']}/replay")
        assert (idle["status"], idle["reason"]) == ("ignored", "autopilot_paused")
        assert await api.member.refused(404, "POST", f"{path}/{NOBODY}/replay")
        assert await api.stranger.refused(404, "POST", f"{path}/{said['delivery_id']}/replay")


async def test_a_call_without_its_signature_is_not_replayed() -> None:
    async with open_api() as api:
        pilot, trigger = await hook(api)
        path = f"/api/autopilots/{pilot['id']}"
        secret = {"signing_secret": "s" * 16}
        await api.member.ok(200, "PUT", f"{path}/triggers/{trigger['id']}/signing-secret", secret)
        said = await call(api, trigger, {}, 401)
        replay = f"{path}/deliveries/{said['delivery_id']}/replay"
        assert await api.member.refused(409, "POST", replay)


async def test_one_peer_may_call_thirty_times_a_minute() -> None:
    async with open_api() as api:
        _, trigger = await hook(api)
        for number in range(30):
            await call(api, trigger, {}, **{"Idempotency-Key": "same", "X-N": str(number)})
        await call(api, trigger, {}, 429)
