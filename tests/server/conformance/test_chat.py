"""Chats: one person, one agent, and nobody else (spec 06 §13, 02 §2.3-§2.6, §3.7)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Api, open_api
from tests.support.rows import insert

pytestmark = pytest.mark.postgres

SESSIONS = "/api/chat/sessions"


async def begin(api: Api, title: str = "Plans") -> str:
    body = {"agent_id": api.world.agent_id, "title": title}
    made = await api.member.ok(201, "POST", SESSIONS, body)
    return f"{SESSIONS}/{made['id']}"


async def say(api: Api, session: str, content: str) -> Any:
    return await api.member.ok(201, "POST", f"{session}/messages", {"content": content})


async def claim(api: Api) -> Any:
    path = f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/claim"
    return (await api.owner.ok(200, "POST", path, {}))["task"]


async def report(api: Api, task: Any, how: str, **body: Any) -> None:
    base = f"/api/daemon/tasks/{task['id']}"
    await api.owner.ok(200, "POST", f"{base}/start", {})
    await api.owner.ok(200, "POST", f"{base}/{how}", body)


@pytest.mark.spec("06 §13", "POST /api/chat/sessions")
@pytest.mark.spec("06 §13", "GET /api/chat/sessions")
@pytest.mark.spec("06 §13", "GET /api/chat/sessions/{id}")
@pytest.mark.spec("06 §13", "PATCH /api/chat/sessions/{id}")
async def test_a_session_is_its_creators_alone() -> None:
    async with open_api() as api:
        session = await begin(api)
        shown = await api.member.get(session)
        assert shown == {
            "id": shown["id"],
            "workspace_id": api.world.workspace_id,
            "agent_id": api.world.agent_id,
            "creator_id": api.member.user_id,
            "title": "Plans",
            "status": "active",
            "has_unread": False,
            "created_at": shown["created_at"],
            "updated_at": shown["updated_at"],
        }
        assert await api.member.get(SESSIONS) == [shown]
        assert await api.owner.get(SESSIONS) == []
        renamed = await api.member.ok(200, "PATCH", session, {"title": " New "})
        assert renamed["title"] == "New"
        assert await api.member.refused(400, "PATCH", session, {"title": "x" * 201})
        (told,) = api.events("chat:session_updated")
        assert told.users == (api.member.user_id,)
        agent = await api.agent()
        for method, path in (
            ("GET", session),
            ("PATCH", session),
            ("DELETE", session),
            ("GET", f"{session}/messages"),
            ("POST", f"{session}/messages"),
            ("GET", f"{session}/messages/page"),
            ("GET", f"{session}/pending-task"),
            ("POST", f"{session}/read"),
        ):
            body = {"title": "x", "content": "x"}
            assert await api.owner.refused(403, method, path, body), path
            assert await api.stranger.refused(404, method, path, body), path
            assert await agent.refused(403, method, path, body), path
        for path in (SESSIONS, "/api/chat/pending-tasks"):
            assert await agent.refused(403, "GET", path)
        await api.owner.ok(200, "POST", f"/api/agents/{api.world.agent_id}/archive")
        refused = {"agent_id": api.world.agent_id}
        assert await api.member.refused(400, "POST", SESSIONS, refused) == "agent is archived"
        assert await api.member.refused(400, "POST", f"{session}/messages", {"content": "x"})


@pytest.mark.spec("06 §13", "POST /api/chat/sessions/{id}/messages")
@pytest.mark.spec("06 §13", "GET /api/chat/sessions/{id}/messages")
@pytest.mark.spec("06 §13", "GET /api/chat/sessions/{id}/pending-task")
@pytest.mark.spec("06 §13", "GET /api/chat/pending-tasks")
@pytest.mark.spec("06 §13", "POST /api/chat/sessions/{id}/read")
async def test_what_is_said_is_answered_once_and_only_the_two_hear_it() -> None:
    async with open_api() as api:
        session = await begin(api)
        session_id = session.rsplit("/", 1)[1]
        first = await say(api, session, "hello")
        assert first == {
            "message_id": first["message_id"],
            "task_id": first["task_id"],
            "attachment_ids": None,
            "created_at": first["created_at"],
        }
        second = await say(api, session, "and another thing")
        assert second["task_id"] == first["task_id"], "one answer for what waits together"
        pending = await api.member.get(f"{session}/pending-task")
        assert (pending["task_id"], pending["status"]) == (first["task_id"], "queued")
        assert await api.member.get("/api/chat/pending-tasks") == {
            "tasks": [
                {"task_id": first["task_id"], "status": "queued", "chat_session_id": session_id}
            ]
        }
        task = await claim(api)
        assert task["chat_message"] == "hello\n\nand another thing"
        third = await say(api, session, "one more")
        assert third["task_id"] != first["task_id"]
        assert await claim(api) is None, "one at a time in a session"
        await report(api, task, "complete", output="Hi\\nthere", session_id="s1", work_dir="/w")
        rows = await api.member.get(f"{session}/messages")
        assert [(row["role"], row["content"]) for row in rows] == [
            ("user", "hello"),
            ("user", "and another thing"),
            ("user", "one more"),
            ("assistant", "Hi\nthere"),
        ]
        assert rows[3]["task_id"] == first["task_id"]
        assert isinstance(rows[3]["elapsed_ms"], int)
        (done,) = api.events("chat:done")
        assert done.payload == {
            "chat_session_id": session_id,
            "task_id": first["task_id"],
            "message_id": rows[3]["id"],
            "content": "Hi\nthere",
            "elapsed_ms": rows[3]["elapsed_ms"],
            "created_at": rows[3]["created_at"],
        }
        assert (await api.member.get(session))["has_unread"] is True
        await api.member.ok(204, "POST", f"{session}/read")
        assert (await api.member.get(session))["has_unread"] is False
        task = await claim(api)
        assert (task["chat_message"], task["prior_session_id"], task["prior_work_dir"]) == (
            "one more",
            "s1",
            "/w",
        )
        mine = (api.member.user_id,)
        for event in api.events():
            if "chat" in event.type or event.payload.get("chat_session_id"):
                assert event.users == mine, event
        assert await api.member.refused(400, "POST", f"{session}/messages", {"content": " "})


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("api_invalid_request", "x"),
        ("agent_error.context_overflow", "x"),
        ("agent_error.unknown", "API Error: 400 invalid_request_error"),
    ],
)
async def test_a_session_that_is_spoilt_is_not_handed_out_again(reason: str, error: str) -> None:
    async with open_api() as api:
        session = await begin(api)
        await say(api, session, "hello")
        await report(api, await claim(api), "complete", output="Hi", session_id="s1", work_dir="/w")
        await say(api, session, "more")
        task = await claim(api)
        assert task["prior_session_id"] == "s1"
        failure = {"error": error, "failure_reason": reason, "work_dir": "/w"}
        await report(api, task, "fail", **failure, session_id="s1")
        await say(api, session, "again")
        task = await claim(api)
        assert "prior_session_id" not in task
        # a good one of before is found, where the spoilt one was another
        await report(api, task, "complete", output="Hi", session_id="s2", work_dir="/w")
        await say(api, session, "and on")
        await report(api, await claim(api), "fail", **failure, session_id="s3")
        await say(api, session, "and on")
        assert (await claim(api))["prior_session_id"] == "s2"


async def test_transcripts_of_chats_are_as_private() -> None:
    async with open_api() as api:
        session = await begin(api)
        await say(api, session, "secret plan")
        task = await claim(api)
        base = f"/api/daemon/tasks/{task['id']}"
        await api.owner.ok(200, "POST", f"{base}/start", {})
        row = {"seq": 1, "type": "text", "content": "the secret"}
        await api.owner.ok(200, "POST", f"{base}/messages", {"messages": [row]})
        await api.owner.ok(200, "POST", f"{base}/progress", {"summary": "secret"})
        for kind in ("task:message", "task:progress", "task:running", "task:dispatch"):
            (told,) = api.events(kind)
            assert told.users == (api.member.user_id,), kind
        path = f"/api/tasks/{task['id']}"
        assert len(await api.member.get(f"{path}/messages")) == 1
        assert await api.owner.refused(403, "GET", f"{path}/messages")
        assert await api.owner.refused(403, "POST", f"{path}/cancel")
        for listed in (f"/api/agents/{api.world.agent_id}/tasks", "/api/agent-task-snapshot"):
            assert [one["id"] for one in await api.member.get(listed)] == [task["id"]]
            assert await api.owner.get(listed) == []


async def test_a_failure_is_said_and_a_retry_answers_in_its_place() -> None:
    async with open_api() as api:
        session = await begin(api)
        await say(api, session, "hello")
        task = await claim(api)
        path = f"/api/daemon/runtimes/{api.world.runtime_id}/recover-orphans"
        await api.owner.ok(200, "POST", f"/api/daemon/tasks/{task['id']}/start", {})
        await api.owner.ok(200, "POST", path, {})
        assert len(await api.member.get(f"{session}/messages")) == 1, "the retry will answer"
        retry = await claim(api)
        assert (retry["parent_task_id"], retry["chat_message"]) == (task["id"], "hello")
        failure = {"error": "no idea", "failure_reason": "agent_error.unknown"}
        await report(api, retry, "fail", **failure)
        (_, said) = await api.member.get(f"{session}/messages")
        assert (said["role"], said["content"], said["failure_reason"]) == (
            "assistant",
            "no idea",
            "agent_error.unknown",
        )
        assert api.events("chat:done") == []


@pytest.mark.parametrize("spoke", [False, True])
async def test_stopping_gives_the_message_back_or_says_that_it_stopped(spoke: bool) -> None:
    async with open_api() as api:
        session = await begin(api)
        said = await say(api, session, "hello")
        file_id = await api.run(
            lambda conn: insert(
                conn,
                "attachment",
                workspace_id=api.world.workspace_id,
                chat_message_id=said["message_id"],
                uploader_type="member",
                uploader_id=api.member.user_id,
                filename="a",
                url="/a",
                content_type="text/plain",
                size_bytes=1,
            )
        )
        task = await claim(api)
        base = f"/api/daemon/tasks/{task['id']}"
        await api.owner.ok(200, "POST", f"{base}/start", {})
        if spoke:
            row = {"seq": 1, "type": "text", "content": "well"}
            await api.owner.ok(200, "POST", f"{base}/messages", {"messages": [row]})
        answer = await api.member.ok(200, "POST", f"/api/tasks/{task['id']}/cancel")
        rows = await api.member.get(f"{session}/messages")
        if spoke:
            assert "cancelled_chat_message" not in answer
            assert [row["content"] for row in rows] == ["hello", "Stopped."]
        else:
            assert answer["cancelled_chat_message"] == {
                "chat_session_id": session.rsplit("/", 1)[1],
                "message_id": said["message_id"],
                "content": "hello",
                "restore_to_input": True,
                "attachments": [{"id": file_id}],
            }
            assert rows == []
            assert len(await api.fetch("select from attachment")) == 1


@pytest.mark.spec("06 §13", "DELETE /api/chat/sessions/{id}")
async def test_deleting_a_session_stops_what_runs() -> None:
    async with open_api() as api:
        session = await begin(api)
        await say(api, session, "hello")
        task = await claim(api)
        await api.member.ok(204, "DELETE", session)
        (row,) = await api.fetch("select status, error, result from agent_task_queue")
        assert tuple(row) == ("cancelled", None, None)
        assert {"task:cancelled", "chat:session_deleted"} <= {e.type for e in api.events()}
        assert task["id"] == api.events("task:cancelled")[0].payload["task_id"]
        assert await api.member.refused(404, "GET", session)
        assert await api.fetch("select from chat_message") == []


@pytest.mark.spec("06 §13", "GET /api/chat/sessions/{id}/messages/page")
async def test_pages_go_back_from_the_end() -> None:
    async with open_api() as api:
        session = await begin(api)
        for number in range(5):
            await say(api, session, f"{number}")
        page = await api.member.get(f"{session}/messages/page", limit="2")
        assert [row["content"] for row in page["messages"]] == ["3", "4"]
        assert (page["limit"], page["has_more"]) == (2, True)
        seen = ["3", "4"]
        while "next_cursor" in page:
            cursor = page["next_cursor"]
            page = await api.member.get(
                f"{session}/messages/page",
                limit="2",
                before_created_at=cursor["created_at"],
                before_id=cursor["id"],
            )
            seen = [row["content"] for row in page["messages"]] + seen
        assert seen == ["0", "1", "2", "3", "4"]
        assert await api.member.refused(
            400, "GET", f"{session}/messages/page?before_id={session[-36:]}"
        )


async def test_what_an_agent_still_says_of_a_deleted_chat_is_nobody_elses() -> None:
    async with open_api() as api:
        session = await begin(api)
        await say(api, session, "between us")
        task = await claim(api)
        base = f"/api/daemon/tasks/{task['id']}"
        await api.owner.ok(200, "POST", f"{base}/start", {})
        await api.member.ok(204, "DELETE", session)
        rows = [{"seq": 1, "type": "text", "content": "secret"}]  # it does not know yet
        await api.owner.ok(200, "POST", f"{base}/messages", {"messages": rows})
        await api.owner.refused(403, "GET", f"/api/tasks/{task['id']}/messages")
        assert len(await api.member.get(f"/api/tasks/{task['id']}/messages")) == 1
        await api.owner.ok(200, "POST", f"{base}/complete", {"output": "more of it"})
        shown = await api.owner.get(f"/api/agents/{api.world.agent_id}/tasks")
        assert task["id"] not in [each["id"] for each in shown]
        [row] = await api.fetch("select late from agent_task_queue where id = $1", task["id"])
        assert "result" not in row["late"]
