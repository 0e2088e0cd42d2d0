"""What a daemon says of its tasks, and what people do to them."""

from __future__ import annotations

from typing import Any

import pytest

from server.store.queries import Connection
from shared.ids import new_id
from tests.support.api import Api, open_api
from tests.support.rows import make_issue, make_task

pytestmark = pytest.mark.postgres

BASE = {
    *("id", "agent_id", "runtime_id", "issue_id", "workspace_id", "status", "priority"),
    *("dispatched_at", "started_at", "completed_at", "result", "error", "attempt"),
    *("max_attempts", "created_at", "kind"),
}
"""The keys every task object has; all others are left out when they are empty."""

TASK = "/api/daemon/tasks/{}"


async def task_on_issue(api: Api, status: str = "running", **columns: Any) -> str:
    async def unit(conn: Connection) -> str:
        issue = await make_issue(conn, api.world)
        task_id = await make_task(conn, api.world, issue_id=issue.id, status=status, **columns)
        await conn.execute(
            "update agent_task_queue set started_at = now() where id = $1 and status = 'running'",
            task_id,
        )
        return task_id

    made: str = await api.run(unit)
    return made


async def post(api: Api, task_id: str, what: str, body: Any = ..., status: int = 200) -> Any:
    return await api.owner.ok(status, "POST", f"{TASK.format(task_id)}/{what}", body)


async def refused(api: Api, task_id: str, what: str, body: Any = ..., status: int = 400) -> str:
    return await api.owner.refused(status, "POST", f"{TASK.format(task_id)}/{what}", body)


async def status_of(api: Api, task_id: str) -> str:
    answer = await api.owner.get(f"{TASK.format(task_id)}/status")
    assert set(answer) == {"status"}
    return str(answer["status"])


# --- preparing and running ------------------------------------------------------------------------


@pytest.mark.spec("01 §3.6", "POST /api/daemon/runtimes/{rid}/tasks/{tid}/prepare-lease")
async def test_a_lease_is_extended_while_preparing() -> None:
    async with open_api() as api:
        runtime = api.world.runtime_id
        for status in ("dispatched", "waiting_local_directory"):
            task_id = await task_on_issue(api, status)
            path = f"/api/daemon/runtimes/{runtime}/tasks/{task_id}/prepare-lease"
            assert set(await api.owner.ok(200, "POST", path)) == BASE
        running = await task_on_issue(api)
        path = f"/api/daemon/runtimes/{runtime}/tasks/{running}/prepare-lease"
        assert await api.owner.refused(400, "POST", path) == (
            "extend task prepare lease: no rows in result set"
        )
        path = f"/api/daemon/runtimes/{runtime}/tasks/{new_id()}/prepare-lease"
        assert await api.owner.refused(404, "POST", path) == "task not found"
        path = f"/api/daemon/runtimes/{new_id()}/tasks/{running}/prepare-lease"
        assert await api.owner.refused(404, "POST", path) == "runtime not found"


@pytest.mark.spec("01 §3.9", "GET /api/daemon/tasks/{id}/status")
async def test_the_status_of_a_task() -> None:
    async with open_api() as api:
        assert await status_of(api, await task_on_issue(api, "queued")) == "queued"
        path = f"{TASK.format(new_id())}/status"
        assert await api.owner.refused(404, "GET", path) == "task not found"
        # Somebody else's is not there, in words that no daemon acts on.
        foreign = f"{TASK.format(await task_on_issue(api))}/status"
        assert "task not found" not in await api.stranger.refused(404, "GET", foreign)


@pytest.mark.spec(
    "01 §3.10",
    "POST /api/daemon/tasks/{id}/start",
    differs="A start that is repeated while the task runs is answered with the task.",
)
async def test_starting() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api, "dispatched")
        started = await post(api, task_id, "start", {})
        assert set(started) == BASE
        assert (started["status"], started["completed_at"]) == ("running", None)
        assert started["started_at"].endswith("Z")
        assert await post(api, task_id, "start") == started
        assert [e.payload["task_id"] for e in api.events("task:running")] == [task_id]
        for status in ("queued", "completed", "failed", "cancelled"):
            other = await task_on_issue(api, status)
            assert await refused(api, other, "start") == "start task: no rows in result set"


@pytest.mark.spec("01 §3.10", "POST /api/daemon/tasks/{id}/wait-local-directory")
async def test_waiting_for_a_directory() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api, "dispatched")
        parked = await post(api, task_id, "wait-local-directory", {"reason": "  held  "})
        assert (parked["status"], set(parked)) == ("waiting_local_directory", BASE)
        assert await refused(api, task_id, "wait-local-directory") == (
            "mark task waiting_local_directory: no rows in result set"
        )
        assert (await post(api, task_id, "start"))["status"] == "running"


@pytest.mark.spec("01 §3.10", "POST /api/daemon/tasks/{id}/progress")
async def test_progress_is_told() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api)
        body = {"summary": "Launching claude", "step": 1, "total": 2}
        assert await post(api, task_id, "progress", body) == {"status": "ok"}
        (event,) = api.events("task:progress")
        assert event.payload == {"task_id": task_id, **body}


# --- the transcript -------------------------------------------------------------------------------


def text(seq: int, content: str) -> dict[str, Any]:
    return {"seq": seq, "type": "text", "content": content}


async def transcript(api: Api, task_id: str, since: int | None = None) -> list[tuple[int, str]]:
    params = {} if since is None else {"since": since}
    rows = await api.owner.get(f"{TASK.format(task_id)}/messages", **params)
    return [(row["seq"], row["content"]) for row in rows]


@pytest.mark.spec(
    "01 §3.11",
    "POST /api/daemon/tasks/{id}/messages",
    differs="A batch that is sent twice is stored and shown once.",
)
async def test_a_repeated_batch_is_stored_once() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api)
        batch = {"messages": [text(1, "one"), text(2, "two")]}
        for _ in range(2):
            assert await post(api, task_id, "messages", batch) == {"status": "ok"}
        # A batch may also be cut differently.
        await post(api, task_id, "messages", {"messages": [text(2, "two"), text(3, "three")]})
        assert await transcript(api, task_id) == [(1, "one"), (2, "two"), (3, "three")]
        assert await transcript(api, task_id, 2) == [(3, "three")]
        assert len(api.events("task:message")) == 3
        assert await post(api, new_id(), "messages", {"messages": []}) == {"status": "ok"}
        path = f"{TASK.format(task_id)}/messages?since=x"
        assert await api.owner.refused(400, "GET", path) == "invalid since parameter"


@pytest.mark.spec(
    "01 §3.11",
    "POST /api/daemon/tasks/{id}/messages",
    differs="A run that is started anew within a task goes on behind the first, with new numbers.",
)
async def test_a_run_that_counts_from_one_again_is_kept() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api)
        await post(api, task_id, "messages", {"messages": [text(1, "a"), text(2, "b")]})
        again = {"messages": [text(1, "c"), text(2, "b")]}
        for _ in range(2):
            await post(api, task_id, "messages", again)
        await post(api, task_id, "messages", {"messages": [text(3, "d")]})
        assert await transcript(api, task_id) == [(1, "a"), (2, "b"), (3, "c"), (4, "b"), (5, "d")]
        # A third one that begins as the second did, and then goes another way.
        await post(api, task_id, "messages", {"messages": [text(1, "c")]})
        await post(api, task_id, "messages", {"messages": [text(2, "e")]})
        assert (await transcript(api, task_id, 5)) == [(6, "e")]
        assert [e.payload["seq"] for e in api.events("task:message")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.spec("01 §3.11", "GET /api/daemon/tasks/{id}/messages")
async def test_what_a_transcript_row_is() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api)
        sent = [
            {"seq": 1, "type": "tool_use", "tool": "Bash", "input": {"command": "ls"}},
            {"seq": 2, "type": "tool_result", "tool": "Bash", "output": "x"},
        ]
        await post(api, task_id, "messages", {"messages": sent})
        rows = await api.owner.get(f"{TASK.format(task_id)}/messages")
        for row in rows:
            assert row.pop("task_id") == task_id
            assert row.pop("issue_id")
            assert row.pop("created_at").endswith("Z")
        assert rows == sent


@pytest.mark.spec("01 §3.12", "POST /api/daemon/tasks/{id}/session")
async def test_a_session_is_pinned() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api)
        assert await post(api, task_id, "session", {"session_id": "s"}, 204) is None
        await post(api, task_id, "session", {"work_dir": "/w"}, 204)
        (row,) = await api.fetch("select session_id, work_dir from agent_task_queue")
        assert (row["session_id"], row["work_dir"]) == ("s", "/w")
        assert await refused(api, task_id, "session", {}) == "session_id or work_dir required"
        ended = await task_on_issue(api, "completed")
        await post(api, ended, "session", {"session_id": "late"}, 204)


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.spec(
    "01 §3.13",
    "POST /api/daemon/tasks/{id}/complete",
    differs="A pinned session survives a report without one; a task that does not run keeps its token.",
)
async def test_completing() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api, session_id="pinned")
        body = {"output": "Did it.", "branch_name": "x"}
        done = await post(api, task_id, "complete", body)
        assert set(done) == BASE
        assert done["status"] == "completed"
        assert done["result"] == {
            "pr_url": "",
            "output": "Did it.",
            "session_id": "",
            "work_dir": "",
        }
        assert await post(api, task_id, "complete", {"output": "again"}) == done
        assert len(api.events("task:completed")) == 1
        (row,) = await api.fetch("select session_id from agent_task_queue")
        assert row["session_id"] == "pinned"
        for status in ("queued", "dispatched", "cancelled"):
            other = await task_on_issue(api, status)
            assert (await post(api, other, "complete", {"output": "x"}))["status"] == status
        assert await refused(api, new_id(), "complete", {"output": "x"}, 404) == "task not found"
        assert await refused(api, task_id, "complete", {"output": 1}) == "invalid request body"


@pytest.mark.spec("01 §3.13", "POST /api/daemon/tasks/{id}/fail")
async def test_failing() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api)
        failed = await post(api, task_id, "fail", {"error": "401 Unauthorized"})
        assert set(failed) == BASE | {"failure_reason"}
        assert (failed["status"], failed["error"], failed["failure_reason"]) == (
            "failed",
            "401 Unauthorized",
            "agent_error.provider_auth_or_access",
        )
        assert await post(api, task_id, "fail", {"error": "again"}) == failed
        (event,) = api.events("task:failed")
        assert event.payload["failure_reason"] == failed["failure_reason"]
        queued = await task_on_issue(api, "queued")
        assert (await post(api, queued, "fail", {"error": "x"}))["status"] == "queued"


@pytest.mark.spec("01 §3.13", "POST /api/daemon/tasks/{id}/fail")
async def test_a_failure_of_the_infrastructure_is_tried_again() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api)
        body = {"error": "x", "failure_reason": "timeout", "session_id": "s", "work_dir": "/w"}
        await post(api, task_id, "fail", body)
        pending = f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/pending"
        (again,) = await api.owner.get(pending)
        assert set(again) == BASE | {"parent_task_id", "work_dir", "relative_work_dir"}
        assert (again["parent_task_id"], again["attempt"]) == (task_id, 2)


@pytest.mark.spec(
    "01 §3.13",
    "POST /api/daemon/tasks/{id}/fail",
    differs="A quota that comes back at a known time queues a new attempt for then (`resume_at`).",
)
async def test_a_quota_parks_the_task() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api)
        error = "You've hit your usage limit. Try again in 3 hours."
        failed = await post(api, task_id, "fail", {"error": error})
        assert failed["status"] == "failed"
        pending = f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/pending"
        (again,) = await api.owner.get(pending)
        assert again["not_before"] == failed["resume_at"]
        claim = f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/claim"
        assert await api.owner.ok(200, "POST", claim) == {"task": None}


@pytest.mark.spec(
    "01 §3.13",
    "POST /api/daemon/tasks/{id}/complete",
    differs="A result the server no longer waited for is taken over, or kept as `late_result`.",
)
async def test_a_late_result_is_not_dropped() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api)
        recover = f"/api/daemon/runtimes/{api.world.runtime_id}/recover-orphans"
        assert await api.owner.ok(200, "POST", recover) == {"orphaned": 1, "retried": 1}
        assert await status_of(api, task_id) == "failed"
        done = await post(api, task_id, "complete", {"output": "Did it."})
        assert set(done) == BASE
        assert (done["status"], done["error"]) == ("completed", None)
        (retry,) = await api.fetch("select status from agent_task_queue where attempt = 2")
        assert retry["status"] == "cancelled"


@pytest.mark.spec(
    "01 §3.15",
    "POST /api/daemon/runtimes/{id}/recover-orphans",
    differs="Whoever fails a task, its issue, its chat and its tokens are treated alike.",
)
async def test_orphans_leave_word() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api, attempt=2)
        await api.run(lambda conn: conn.execute("update issue set status = 'in_progress'"))
        recover = f"/api/daemon/runtimes/{api.world.runtime_id}/recover-orphans"
        assert await api.owner.ok(200, "POST", recover) == {"orphaned": 1, "retried": 0}
        (comment,) = await api.fetch("select * from comment")
        assert (comment["type"], comment["content"], comment["source_task_id"]) == (
            "system",
            "daemon restarted while task was in flight",
            task_id,
        )
        (issue,) = await api.fetch("select status from issue")
        assert issue["status"] == "todo"
        missing = f"/api/daemon/runtimes/{new_id()}/recover-orphans"
        assert await api.owner.refused(404, "POST", missing) == "runtime not found"


# --- people ---------------------------------------------------------------------------------------


@pytest.mark.spec("02 §2.6", "POST /api/tasks/{id}/cancel")
async def test_cancelling_is_idempotent() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api)
        cancelled = await api.member.ok(200, "POST", f"/api/tasks/{task_id}/cancel", {})
        assert set(cancelled) == BASE
        assert cancelled["status"] == "cancelled"
        assert await api.member.ok(200, "POST", f"/api/tasks/{task_id}/cancel", {}) == cancelled
        assert len(api.events("task:cancelled")) == 1
        await api.member.refused(404, "POST", f"/api/tasks/{new_id()}/cancel")


@pytest.mark.spec("02 §2.6", "POST /api/issues/{id}/tasks/{task_id}/cancel")
async def test_a_run_is_cancelled_on_its_own_issue_only() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api)
        other = (await api.run(lambda conn: make_issue(conn, api.world))).id
        (row,) = await api.fetch("select issue_id from agent_task_queue")
        await api.member.refused(404, "POST", f"/api/issues/{other}/tasks/{task_id}/cancel")
        path = f"/api/issues/{row['issue_id']}/tasks/{task_id}/cancel"
        assert (await api.member.ok(200, "POST", path, {}))["status"] == "cancelled"


@pytest.mark.spec("01 §3.8", "GET /api/daemon/runtimes/{id}/tasks/pending")
async def test_what_is_pending() -> None:
    async with open_api() as api:
        low = await task_on_issue(api, "queued")
        high = await task_on_issue(api, "queued", priority=4)
        taken = await task_on_issue(api, "dispatched")
        for status in ("waiting_local_directory", "running", "completed"):
            await task_on_issue(api, status)
        path = f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/pending"
        rows = await api.owner.get(path)
        assert [row["id"] for row in rows] == [high, low, taken]
        assert all(set(row) == BASE for row in rows)
        missing = f"/api/daemon/runtimes/{new_id()}/tasks/pending"
        assert await api.owner.refused(404, "GET", missing) == "runtime not found"


@pytest.mark.spec("01 §3.12", "POST /api/daemon/tasks/{id}/usage")
async def test_usage_replaces_what_was_reported_before() -> None:
    async with open_api() as api:
        task_id = await task_on_issue(api)
        entry = {"provider": "Claude", "model": "m", "input_tokens": 1, "output_tokens": 2}
        for tokens in (1, 5):
            body = {"usage": [entry | {"input_tokens": tokens}]}
            assert await post(api, task_id, "usage", body) == {"status": "ok"}
        rows = await api.fetch("select provider, model, input_tokens from task_usage")
        assert [tuple(row.values()) for row in rows] == [("claude", "m", 5)]
        body = {"usage": [{"provider": " ", "model": "n"}]}
        await post(api, task_id, "usage", body)
        (row,) = await api.fetch("select provider from task_usage where model = 'n'")
        assert row["provider"] == "claude"
        # What was used is counted, also for a run that was cancelled.
        ended = await task_on_issue(api, "cancelled")
        await post(api, ended, "usage", {"usage": [entry]})


@pytest.mark.spec("06 §10.2", "GET /api/agents/{id}/tasks")
@pytest.mark.spec("06 §10.2", "GET /api/agent-task-snapshot")
async def test_what_an_agent_does() -> None:
    async with open_api() as api:
        old, running = await task_on_issue(api, "completed"), await task_on_issue(api)
        rows = await api.member.get(f"/api/agents/{api.world.agent_id}/tasks")
        assert [row["id"] for row in rows] == [running, old]
        rows = await api.member.get("/api/agent-task-snapshot")
        assert {row["id"] for row in rows} == {old, running}
