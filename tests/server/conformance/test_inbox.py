"""The inbox, followers, reactions and the timeline (spec 06 §16, §7.3-§7.6)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Api, open_api
from tests.support.rows import insert, make_comment, make_issue

pytestmark = pytest.mark.postgres

NOBODY = "00000000-0000-4000-8000-000000000000"


async def deliver(api: Api, **columns: Any) -> str:
    row = {
        "workspace_id": api.world.workspace_id,
        "recipient_type": "member",
        "recipient_id": api.member.user_id,
        "type": "mentioned",
        "title": "Look",
    } | columns
    made: str = await api.run(lambda conn: insert(conn, "inbox_item", **row))
    return made


@pytest.mark.spec("06 §16", "GET /api/inbox")
@pytest.mark.spec("06 §16", "GET /api/inbox/unread-count")
@pytest.mark.spec("06 §16", "POST /api/inbox/{id}/read")
@pytest.mark.spec("06 §16", "POST /api/inbox/{id}/archive")
async def test_items_are_shown_read_and_archived_with_their_issue() -> None:
    async with open_api() as api:
        issue = await api.run(lambda conn: make_issue(conn, api.world))
        first = await deliver(api, issue_id=issue.id, body="b", details={"n": 1})
        second = await deliver(api, issue_id=issue.id)
        await deliver(api)
        await deliver(api, recipient_id=api.world.user_id)
        shown = (await api.member.get("/api/inbox"))[-1]
        assert shown == {
            "id": first,
            "workspace_id": api.world.workspace_id,
            "recipient_type": "member",
            "recipient_id": api.member.user_id,
            "type": "mentioned",
            "severity": "info",
            "issue_id": issue.id,
            "title": "Look",
            "body": "b",
            "read": False,
            "archived": False,
            "created_at": shown["created_at"],
            "issue_status": "todo",
            "actor_type": None,
            "actor_id": None,
            "details": {"n": 1},
        }
        assert await api.member.get("/api/inbox/unread-count") == {"count": 3}
        read = await api.member.ok(200, "POST", f"/api/inbox/{first}/read")
        assert read == shown | {"read": True}
        assert await api.member.get("/api/inbox/unread-count") == {"count": 2}
        gone = await api.member.ok(200, "POST", f"/api/inbox/{second}/archive")
        assert (gone["id"], gone["archived"]) == (second, True)
        assert len(await api.member.get("/api/inbox")) == 1
        for event in api.events():
            assert event.users == (api.member.user_id,)
        assert await api.owner.refused(404, "POST", f"/api/inbox/{first}/read")
        agent = await api.agent()
        assert await agent.refused(403, "GET", "/api/inbox"), "not its owner's inbox"
        assert await agent.refused(403, "GET", "/api/notification-preferences")


@pytest.mark.spec("06 §16", "POST /api/inbox/mark-all-read")
@pytest.mark.spec("06 §16", "POST /api/inbox/archive-all")
@pytest.mark.spec("06 §16", "POST /api/inbox/archive-all-read")
@pytest.mark.spec("06 §16", "POST /api/inbox/archive-completed")
async def test_many_at_once() -> None:
    async with open_api() as api:
        issue = await api.run(lambda conn: make_issue(conn, api.world, status="done"))
        await deliver(api, issue_id=issue.id)
        await deliver(api, read=True)
        await deliver(api)
        for path, count in (
            ("archive-completed", 1),
            ("archive-all-read", 1),
            ("mark-all-read", 1),
            ("archive-all", 1),
            ("archive-all", 0),
        ):
            said = await api.member.ok(200, "POST", f"/api/inbox/{path}")
            assert said == {"count": count}, path


@pytest.mark.spec("06 §16", "GET /api/notification-preferences")
@pytest.mark.spec("06 §16", "PUT /api/notification-preferences")
async def test_preferences() -> None:
    async with open_api() as api:
        path = "/api/notification-preferences"
        none = {"workspace_id": api.world.workspace_id, "preferences": {}}
        assert await api.member.get(path) == none
        wanted = {"comments": "muted", "updates": "all"}
        stored = await api.member.ok(200, "PUT", path, {"preferences": wanted})
        assert stored == none | {"preferences": wanted} == await api.member.get(path)
        assert await api.owner.get(path) == none
        for bad in ({"weather": "muted"}, {"comments": "loud"}):
            assert await api.member.refused(400, "PUT", path, {"preferences": bad})


@pytest.mark.spec("06 §7.5", "GET /api/issues/{id}/subscribers")
@pytest.mark.spec("06 §7.5", "POST /api/issues/{id}/subscribe")
@pytest.mark.spec("06 §7.5", "POST /api/issues/{id}/unsubscribe")
async def test_following_an_issue() -> None:
    async with open_api() as api:
        issue = await api.run(lambda conn: make_issue(conn, api.world))
        path = f"/api/issues/{issue.id}"
        for _ in range(2):
            said = await api.member.ok(200, "POST", f"{path}/subscribe")
            assert said == {"subscribed": True}
        other = {"user_type": "agent", "user_id": api.world.agent_id}
        await api.member.ok(200, "POST", f"{path}/subscribe", other)
        rows = await api.owner.get(f"{path}/subscribers")
        assert rows[0] == {
            "issue_id": issue.id,
            "user_type": "member",
            "user_id": api.member.user_id,
            "reason": "manual",
            "created_at": rows[0]["created_at"],
        }
        assert len(rows) == 2
        assert len(api.events("subscriber:added")) == 2
        said = await api.member.ok(200, "POST", f"{path}/unsubscribe")
        assert said == {"subscribed": False}
        assert len(await api.owner.get(f"{path}/subscribers")) == 1
        stranger = {"user_id": api.stranger.user_id}
        assert await api.member.refused(403, "POST", f"{path}/subscribe", stranger)
        assert await api.stranger.refused(404, "GET", f"{path}/subscribers")


@pytest.mark.spec("06 §6.2", "POST /api/issues/{id}/reactions")
@pytest.mark.spec("06 §6.2", "DELETE /api/issues/{id}/reactions")
@pytest.mark.spec("06 §7.3", "POST /api/comments/{id}/reactions")
@pytest.mark.spec("06 §7.3", "DELETE /api/comments/{id}/reactions")
@pytest.mark.parametrize("kind", ["issue", "comment"])
async def test_reactions(kind: str) -> None:
    async with open_api() as api:
        issue = await api.run(lambda conn: make_issue(conn, api.world))
        target = issue.id
        if kind == "comment":
            target = await api.run(lambda conn: make_comment(conn, issue, api.member.user_id, "hi"))
        path = f"/api/{kind}s/{target}/reactions"
        event = "issue_reaction" if kind == "issue" else "reaction"
        made = await api.member.ok(201, "POST", path, {"emoji": "👍"})
        assert made == {
            "id": made["id"],
            f"{kind}_id": target,
            "actor_type": "member",
            "actor_id": api.member.user_id,
            "emoji": "👍",
            "created_at": made["created_at"],
        }
        assert await api.member.ok(201, "POST", path, {"emoji": "👍"}) == made
        assert [e.payload for e in api.events(f"{event}:added")] == [{"reaction": made}]
        await api.member.ok(204, "DELETE", path, {"emoji": "👍"})
        await api.member.ok(204, "DELETE", path, {"emoji": "👍"})
        assert len(api.events(f"{event}:removed")) == 1
        assert await api.member.refused(400, "POST", path, {"emoji": " "})
        assert await api.stranger.refused(404, "POST", path, {"emoji": "x"})
        missing = f"/api/{kind}s/{NOBODY}/reactions"
        assert await api.member.refused(404, "POST", missing, {"emoji": "x"})


@pytest.mark.spec("06 §7.6", "GET /api/issues/{id}/timeline")
async def test_the_timeline_has_comments_and_what_was_done() -> None:
    async with open_api() as api:
        issue = await api.run(lambda conn: make_issue(conn, api.world))
        path = f"/api/issues/{issue.id}"
        said = await api.member.ok(201, "POST", f"{path}/comments", {"content": "hello"})
        await api.run(
            lambda conn: insert(
                conn,
                "activity_log",
                workspace_id=api.world.workspace_id,
                issue_id=issue.id,
                actor_type="member",
                actor_id=api.member.user_id,
                action="status_changed",
                details={"from": "todo", "to": "done"},
            )
        )
        comment, activity = await api.member.get(f"{path}/timeline")
        assert comment == {
            "type": "comment",
            "id": said["id"],
            "actor_type": "member",
            "actor_id": api.member.user_id,
            "created_at": said["created_at"],
            "updated_at": said["updated_at"],
            "content": "hello",
            "comment_type": "comment",
        }
        assert (activity["action"], activity["details"]) == (
            "status_changed",
            {"from": "todo", "to": "done"},
        )
        old = await api.member.get(f"{path}/timeline", limit="10")
        assert [entry["type"] for entry in old.pop("entries")] == ["activity", "comment"]
        assert old == {
            "next_cursor": None,
            "prev_cursor": None,
            "has_more_before": False,
            "has_more_after": False,
        }
