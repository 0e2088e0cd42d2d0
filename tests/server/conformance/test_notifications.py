"""Who is told of what (spec 02 §11.3)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Api, open_api

pytestmark = pytest.mark.postgres


async def issue(api: Api, **body: Any) -> str:
    made = await api.owner.ok(201, "POST", "/api/issues", {"title": "Login"} | body)
    return f"/api/issues/{made['id']}"


def member(user_id: str) -> str:
    return f"[@X](mention://member/{user_id})"


async def types(api: Api, user_id: str) -> list[str]:
    rows = await api.fetch(
        "select type from inbox_item where recipient_id = $1 order by created_at, type", user_id
    )
    return [row["type"] for row in rows]


async def test_who_is_assigned_is_told_and_follows() -> None:
    async with open_api() as api:
        mo = api.member.user_id
        path = await issue(api, assignee_type="member", assignee_id=mo)
        assert await types(api, mo) == ["issue_assigned"]
        rows = await api.owner.get(f"{path}/subscribers")
        assert {(row["user_id"], row["reason"]) for row in rows} == {
            (api.world.user_id, "creator"),
            (mo, "assignee"),
        }
        agent = {"assignee_type": "agent", "assignee_id": api.world.agent_id}
        await api.owner.ok(200, "PUT", path, agent)
        assert await types(api, mo) == ["issue_assigned", "unassigned"]
        assert await types(api, api.world.user_id) == [], "nobody hears of what they did"
        for event in api.events("inbox:new"):
            assert event.users == (mo,)
        actions = [entry["action"] for entry in await api.owner.get(f"{path}/timeline")]
        assert actions == ["created", "assignee_changed"]


async def test_changes_are_told_to_followers_and_go_into_the_timeline() -> None:
    async with open_api() as api:
        mo = api.member.user_id
        path = await issue(api)
        await api.member.ok(200, "POST", f"{path}/subscribe")
        change = {
            "status": "in_progress",
            "priority": "high",
            "title": "Log in",
            "description": "x",
        }
        await api.owner.ok(200, "PUT", path, change)
        assert await types(api, mo) == ["priority_changed", "status_changed"]
        timeline = await api.owner.get(f"{path}/timeline")
        assert {entry["action"]: entry["details"] for entry in timeline} == {
            "created": {},
            "status_changed": {"from": "todo", "to": "in_progress"},
            "priority_changed": {"from": "none", "to": "high"},
            "title_changed": {"from": "Login", "to": "Log in"},
            "description_updated": {},
        }
        await api.owner.ok(200, "PUT", path, {"status": "in_progress"})
        assert len(await types(api, mo)) == 2, "nothing changed, nobody is told"
        muted = {"preferences": {"status_changes": "muted"}}
        await api.member.ok(200, "PUT", "/api/notification-preferences", muted)
        await api.owner.ok(200, "PUT", path, {"status": "done", "due_date": "2026-12-01"})
        assert (await types(api, mo))[2:] == ["due_date_changed"]


async def test_a_comment_is_told_once_and_a_mention_instead_of_it() -> None:
    async with open_api() as api:
        mo, dana = api.member.user_id, api.world.user_id
        path = await issue(api)
        await api.member.ok(201, "POST", f"{path}/comments", {"content": "hello"})
        assert await types(api, dana) == ["new_comment"]
        await api.owner.ok(201, "POST", f"{path}/comments", {"content": f"hi {member(mo)}"})
        assert await types(api, mo) == ["mentioned"], "a commenter follows; a mention is said once"
        squad = await api.owner.ok(
            201, "POST", "/api/squads", {"name": "Crew", "leader_id": api.world.agent_id}
        )
        person = {"member_type": "member", "member_id": mo}
        await api.owner.ok(201, "POST", f"/api/squads/{squad['id']}/members", person)
        other = await issue(api, title="Other")
        body = {"content": f"[@Crew](mention://squad/{squad['id']})"}
        await api.owner.ok(201, "POST", f"{other}/comments", body)
        assert await types(api, mo) == ["mentioned", "mentioned"]
        await api.owner.ok(
            201, "POST", f"{other}/comments", {"content": "[@all](mention://all/all)"}
        )
        assert await types(api, mo) == ["mentioned"] * 3
        stranger = member(api.stranger.user_id)
        await api.owner.ok(201, "POST", f"{other}/comments", {"content": stranger})
        assert await types(api, api.stranger.user_id) == []


async def test_only_a_failure_that_nobody_takes_over_is_told() -> None:
    async with open_api() as api:
        dana = api.world.user_id
        agent = {"assignee_type": "agent", "assignee_id": api.world.agent_id}
        await issue(api, **agent)
        path = f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/claim"
        for reason, told in (("timeout", []), ("agent_error.unknown", ["task_failed"])):
            task = (await api.owner.ok(200, "POST", path, {}))["task"]
            base = f"/api/daemon/tasks/{task['id']}"
            await api.owner.ok(200, "POST", f"{base}/start", {})
            failure = {"error": "it broke", "failure_reason": reason}
            await api.owner.ok(200, "POST", f"{base}/fail", failure)
            assert await types(api, dana) == told, reason
        (item,) = await api.fetch("select * from inbox_item")
        assert (item["severity"], item["body"], item["actor_type"]) == (
            "action_required",
            "it broke",
            "agent",
        )
