"""What is done to many at once costs a number of statements that does not grow with them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from server.store.queries import Connection
from tests.support.api import Api, open_api
from tests.support.rows import insert, make_agent, make_issue
from tests.support.statements import watched

pytestmark = pytest.mark.postgres

MANY = 300
UPDATE = "/api/issues/batch-update"


async def issues_of(api: Api, count: int, **columns: Any) -> list[str]:
    async def unit(conn: Connection) -> list[str]:
        return [(await make_issue(conn, api.world, **columns)).id for _ in range(count)]

    made: list[str] = await api.run(unit)
    return made


async def update(api: Api, ids: list[str], **updates: Any) -> list[str]:
    """Change them; return the statements that took."""
    with watched(api.database) as sent:
        body = {"issue_ids": ids, "updates": updates}
        answer = await api.member.ok(200, "POST", UPDATE, body)
    assert answer == {"updated": len(ids)}
    return sent


async def test_a_change_of_many_issues_costs_what_one_costs_and_has_all_that_follows() -> None:
    async with open_api() as api:
        agent_id = await api.run(
            lambda conn: make_agent(conn, api.world.workspace_id, api.world.runtime_id)
        )
        given = {"assignee_type": "agent", "assignee_id": api.world.agent_id}
        ids = await issues_of(api, MANY, status="backlog", **given)
        for user in (api.owner, api.member):
            await api.run(
                lambda conn, user=user: conn.execute(
                    "insert into issue_subscriber (issue_id, user_type, user_id, reason)"
                    " select id, 'member', $1, 'manual' from issue on conflict do nothing",
                    user.user_id,
                )
            )
        # They leave the backlog: their assignee begins.
        sent = await update(api, ids, status="todo", priority="high")
        assert len(sent) <= 12, sent
        rows = await api.fetch("select issue_id, priority, initiator_id from agent_task_queue")
        assert {row["issue_id"] for row in rows} == set(ids)
        assert {(row["priority"], row["initiator_id"]) for row in rows} == {(3, api.member.user_id)}
        kinds = Counter(event.type for event in api.events())
        assert kinds["issue:updated"] == MANY
        assert kinds["task:queued"] == MANY
        told = await api.fetch(
            "select recipient_id, type, count(*) as n from inbox_item group by 1, 2"
        )
        assert {(row["recipient_id"], row["type"]): row["n"] for row in told} == {
            (api.owner.user_id, "status_changed"): MANY,
            (api.owner.user_id, "priority_changed"): MANY,
        }
        done = await api.fetch("select action, count(*) as n from activity_log group by 1")
        assert {row["action"]: row["n"] for row in done} == {
            "status_changed": MANY,
            "priority_changed": MANY,
        }
        # They get another assignee: what runs ends, the new one begins.
        sent = await update(api, ids, assignee_type="agent", assignee_id=agent_id)
        assert len(sent) <= 16, sent
        rows = await api.fetch(
            "select agent_id, status, count(*) as n from agent_task_queue group by 1, 2"
        )
        assert {(row["agent_id"], row["status"]): row["n"] for row in rows} == {
            (api.world.agent_id, "cancelled"): MANY,
            (agent_id, "queued"): MANY,
        }
        # They are called off.
        sent = await update(api, ids, status="cancelled")
        assert len(sent) <= 16, sent
        left = await api.fetch("select from agent_task_queue where status = 'queued'")
        assert left == []


async def test_parents_are_told_once_when_their_last_children_are_closed_together() -> None:
    async with open_api() as api:
        given = {"assignee_type": "agent", "assignee_id": api.world.agent_id}
        parents = await issues_of(api, 20, status="in_progress", **given)
        ids = [one for parent in parents for one in await issues_of(api, 3, parent_issue_id=parent)]
        sent = await update(api, ids, status="done")
        assert len(sent) <= 14, sent
        said = await api.fetch("select issue_id from comment where type = 'system'")
        assert sorted(row["issue_id"] for row in said) == sorted(parents)
        rows = await api.fetch("select issue_id, trigger_comment_id from agent_task_queue")
        assert sorted(row["issue_id"] for row in rows) == sorted(parents)
        assert all(row["trigger_comment_id"] for row in rows)


async def test_what_does_not_fit_is_left_out_one_by_one() -> None:
    async with open_api() as api:
        nobody = {"assignee_type": None, "assignee_id": None}
        top, middle, low, free = await issues_of(api, 4, **nobody)
        await update(api, [middle], parent_issue_id=top)
        await update(api, [low], parent_issue_id=middle)
        body = {"issue_ids": [top, middle, low, free], "updates": {"parent_issue_id": low}}
        assert await api.member.ok(200, "POST", UPDATE, body) == {"updated": 1}
        rows = await api.fetch("select id, parent_issue_id from issue")
        assert {row["id"]: row["parent_issue_id"] for row in rows} == {
            top: None,
            middle: top,
            low: middle,
            free: low,
        }
        # An assignee's kind alone fits those that have none by now only when there is nobody named.
        given = {"assignee_type": "member", "assignee_id": api.member.user_id}
        await update(api, [top], **given)
        body = {"issue_ids": [top, free], "updates": {"assignee_type": "agent"}}
        assert await api.member.ok(200, "POST", UPDATE, body) == {"updated": 0}
        body = {"issue_ids": [top, free], "updates": {"assignee_id": api.owner.user_id}}
        assert await api.member.ok(200, "POST", UPDATE, body) == {"updated": 1}


async def test_an_agent_may_not_set_others_to_work_without_end_by_a_batch() -> None:
    async with open_api() as api:
        agent_id = await api.run(
            lambda conn: make_agent(conn, api.world.workspace_id, api.world.runtime_id)
        )
        own = {"creator_type": "agent", "creator_id": api.world.agent_id}
        ids = await issues_of(api, 100, **own)
        agent = await api.agent(issue_id=ids[0])
        with watched(api.database) as sent:
            body = {
                "issue_ids": ids,
                "updates": {"assignee_type": "agent", "assignee_id": agent_id},
            }
            await agent.ok(200, "POST", UPDATE, body)
        assert len(sent) <= 16, sent
        rows = await api.fetch("select from agent_task_queue where agent_id = $1", agent_id)
        assert len(rows) == 60
        paused = await api.fetch("select from issue where runs_paused_at is not null")
        assert len(paused) == 40


async def test_deleting_many_issues_costs_what_one_costs() -> None:
    async with open_api() as api:
        ids = await issues_of(api, MANY, creator_id=api.member.user_id)
        with watched(api.database) as sent:
            body = {"issue_ids": ids}
            answer = await api.member.ok(200, "POST", "/api/issues/batch-delete", body)
        assert answer == {"deleted": MANY}
        assert len(sent) <= 8, sent
        assert len(api.events("issue:deleted")) == MANY


async def test_an_inbox_is_read_at_once() -> None:
    async with open_api() as api:

        async def fill(conn: Connection) -> None:
            for number in range(50):
                await insert(
                    conn,
                    "inbox_item",
                    workspace_id=api.world.workspace_id,
                    recipient_type="member",
                    recipient_id=api.member.user_id,
                    type="new_comment",
                    title=str(number),
                )

        await api.run(fill)
        for path in ("mark-all-read", "archive-all"):
            with watched(api.database) as sent:
                await api.member.ok(200, "POST", f"/api/inbox/{path}", {})
            assert len(sent) <= 2, sent
