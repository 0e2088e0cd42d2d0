"""Runs end with what they hang from: an autopilot, a chat, an issue, a comment, a machine, a person.

The first test walks the task's columns that name something else, so that a new one has to be decided.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from server.config import Kept
from server.dispatch import sweeper
from server.store.queries import Connection
from tests.support.api import Api, open_api
from tests.support.rows import insert, make_agent, make_runtime, make_task

pytestmark = pytest.mark.postgres

DECIDED = {
    # deleted with it, after what is active was cancelled
    "agent_id": "cascade",
    "issue_id": "cascade",
    "workspace_id": "cascade",
    # cancelled with it, and what has ended remembers it
    "autopilot_run_id": "remembered",
    "chat_session_id": "remembered",
    "runtime_id": "remembered",
    # cancelled with it, and what has ended forgets it
    "trigger_comment_id": "set null",
    # goes with what both hang from
    "parent_task_id": "set null",
    # who set it going: a person's chats and quick-creates end when that person leaves
    "initiator_id": "remembered",
    "session_id": "the provider's",
    "agent_owner_id": "remembered",
}

_LINKS = """
select a.attname as name, case c.confdeltype when 'c' then 'cascade' when 'n' then 'set null' end as rule
from pg_attribute a
left join pg_constraint c
    on c.conrelid = a.attrelid and c.contype = 'f' and c.conkey = array[a.attnum]
where a.attrelid = 'agent_task_queue'::regclass and a.attnum > 0 and a.attname like '%\\_id'
"""


async def test_what_becomes_of_a_task_is_decided_for_everything_it_hangs_from() -> None:
    async with open_api() as api:
        found = {row["name"]: row["rule"] for row in await api.fetch(_LINKS)}
        assert found.keys() == DECIDED.keys()
        for name, rule in found.items():
            assert rule == DECIDED[name] or (rule is None and DECIDED[name] not in _RULES), name


_RULES = ("cascade", "set null")


async def _autopilot(api: Api) -> tuple[dict[str, Any], str]:
    pilot = await api.member.ok(
        201,
        "POST",
        "/api/autopilots",
        {"title": "N", "assignee_id": api.world.agent_id, "execution_mode": "run_only"},
    )
    run = await api.member.ok(200, "POST", f"/api/autopilots/{pilot['id']}/trigger")
    return {"autopilot_run_id": run["id"]}, f"/api/autopilots/{pilot['id']}"


async def _chat(api: Api) -> tuple[dict[str, Any], str]:
    session = await api.member.ok(
        201, "POST", "/api/chat/sessions", {"agent_id": api.world.agent_id}
    )
    return {"chat_session_id": session["id"]}, f"/api/chat/sessions/{session['id']}"


async def _issue(api: Api) -> tuple[dict[str, Any], str]:
    issue = await api.member.ok(201, "POST", "/api/issues", {"title": "X"})
    return {"issue_id": issue["id"]}, f"/api/issues/{issue['id']}"


async def _reply(api: Api) -> tuple[dict[str, Any], str]:
    """A comment with a reply; the reply has set the run going, the comment is deleted."""
    links, issue = await _issue(api)
    said = await api.member.ok(201, "POST", f"{issue}/comments", {"content": "well"})
    reply = {"content": "go", "parent_id": said["id"]}
    answered = await api.member.ok(201, "POST", f"{issue}/comments", reply)
    return links | {"trigger_comment_id": answered["id"]}, f"/api/comments/{said['id']}"


async def _member(api: Api) -> tuple[dict[str, Any], str]:
    """A quick-create of somebody who is removed."""
    links = {
        "initiator_type": "member",
        "initiator_id": api.member.user_id,
        "context": {"type": "quick_create", "prompt": "p"},
    }
    row = await api.fetch("select id from member where user_id = $1", api.member.user_id)
    return links, f"/api/workspaces/{api.world.workspace_id}/members/{row[0]['id']}"


@pytest.mark.parametrize("thing", [_autopilot, _chat, _issue, _reply, _member])
@pytest.mark.parametrize("status", ["queued", "dispatched", "running"])
async def test_a_run_ends_with_what_it_hangs_from(thing: Any, status: str) -> None:
    async with open_api() as api:
        links, path = await thing(api)
        await api.run(_without_tasks)
        task_id = await api.run(lambda conn: make_task(conn, api.world, status=status, **links))
        caller = api.owner if thing is _member else api.member
        await caller.ok(204, "DELETE", path)
        rows = await api.fetch("select status from agent_task_queue where id = $1", task_id)
        assert [row["status"] for row in rows] in ([], ["cancelled"])
        assert [e.payload["task_id"] for e in api.events("task:cancelled")] == [task_id]
        claimed = await api.owner.ok(
            200, "POST", f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/claim", {}
        )
        assert claimed["task"] is None


async def _without_tasks(conn: Connection) -> None:
    await conn.execute("delete from agent_task_queue")


async def test_what_an_autopilot_has_done_stays_its_own_when_it_is_deleted() -> None:
    async with open_api() as api:
        links, path = await _autopilot(api)
        await api.run(
            lambda conn: conn.execute(
                "update agent_task_queue set status = 'completed', completed_at = now()"
            )
        )
        await api.owner.ok(204, "DELETE", path)
        (task,) = await api.owner.get(f"/api/agents/{api.world.agent_id}/tasks")
        assert (task["kind"], task["autopilot_run_id"]) == ("autopilot", links["autopilot_run_id"])


async def test_an_agent_that_was_out_of_reach_does_not_go_on_for_a_deleted_autopilot() -> None:
    async with open_api() as api:
        links, path = await _autopilot(api)
        await api.run(
            lambda conn: conn.execute(
                "update agent_task_queue set status = 'failed', presumed = true,"
                " failure_reason = 'runtime_offline', started_at = now(), completed_at = now()"
            )
        )
        await api.owner.ok(204, "DELETE", path)
        (task,) = await api.fetch("select id from agent_task_queue")
        refused = await api.owner.call("POST", f"/api/daemon/tasks/{task['id']}/go-on", {})
        assert refused.status_code == 400, links


async def test_a_machine_that_is_gone_goes_and_its_history_stays() -> None:
    async with open_api() as api:
        world = api.world

        async def fill(conn: Connection) -> str:
            for name in ("gone", "busy", "bound"):
                runtime_id = await make_runtime(
                    conn, world.workspace_id, world.user_id, name=name, status="offline"
                )
                status = "running" if name == "busy" else "completed"
                await make_task(conn, world, runtime_id=runtime_id, status=status)
                if name == "bound":
                    await make_agent(conn, world.workspace_id, runtime_id)
            await conn.execute(
                "update agent_runtime set last_seen_at = now() - interval '8 days'"
                " where status = 'offline'"
            )
            return await insert(
                conn, "issue", workspace_id=world.workspace_id, number=1, title="X",
                creator_type="member", creator_id=world.user_id,
            )  # fmt: skip

        await api.run(fill)
        kept = Kept(machines=timedelta(days=7).total_seconds())
        told = await api.run(lambda conn: sweeper.forget(conn, kept=kept))
        left = {row["name"] for row in await api.fetch("select name from agent_runtime")}
        assert {"busy", "bound"} <= left
        assert "gone" not in left
        assert [event.payload for event in told] == [{"action": "runtime_gc"}]
        assert len(await api.fetch("select id from agent_task_queue")) == 3
        assert len(await api.owner.get(f"/api/agents/{world.agent_id}/tasks")) == 3
