"""Comments: reading modes, writing, agents' rules, resolving (spec 06 §7)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.store.queries import Connection
from shared.times import fine_stamp
from tests.support.api import Api, open_api
from tests.support.rows import IssueFacts, make_comment, make_issue, make_task

pytestmark = pytest.mark.postgres

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOBODY = "00000000-0000-4000-8000-000000000000"


async def make_threads(api: Api) -> tuple[IssueFacts, dict[str, str]]:
    """Make three threads, a minute between comments: a(a1(a2)), b(b1, b2), c; then a3 under a."""

    async def unit(conn: Connection) -> tuple[IssueFacts, dict[str, str]]:
        issue = await make_issue(conn, api.world, assignee_type=None, assignee_id=None)
        ids: dict[str, str] = {}
        order = ("a", "b", "c", "a1", "b1", "a2", "b2", "a3")
        parents = {"a1": "a", "a2": "a1", "b1": "b", "b2": "b", "a3": "a"}
        for minute, name in enumerate(order):
            parent = parents.get(name)
            ids[name] = await make_comment(
                conn,
                issue,
                api.world.user_id,
                name,
                parent_id=None if parent is None else ids[parent],
                created_at=START + timedelta(minutes=minute),
            )
        return issue, ids

    made: tuple[IssueFacts, dict[str, str]] = await api.run(unit)
    return made


def names(comments: list[Any]) -> list[str]:
    return [comment["content"] for comment in comments]


async def test_a_mention_that_is_only_shown_starts_nobody() -> None:
    async with open_api() as api:
        issue = await api.owner.ok(201, "POST", "/api/issues", {"title": "T"})
        call = f"[@A](mention://agent/{api.world.agent_id})"
        shown = [
            f"The syntax is:\n\n```markdown\n{call} do it\n```",
            f"write `{call}` to mention",
            f"~~~~\n{call}\n~~~~",
            f"```\n{call}",
            f"para\n\n    {call}\n\nafter",
            f"<!-- {call} -->",
        ]
        path = f"/api/issues/{issue['id']}/comments"
        runs = f"/api/issues/{issue['id']}/task-runs"
        for content in shown:
            await api.member.ok(201, "POST", path, {"content": content})
        assert await api.member.get(runs) == []
        content = f"```\ncode\n```\n{call} now you"
        await api.member.ok(201, "POST", path, {"content": content})
        assert len(await api.member.get(runs)) == 1


@pytest.mark.spec("06 §7.2", "POST /api/issues/{id}/comments")
async def test_a_comment_is_shown_whole() -> None:
    async with open_api() as api:
        issue = await api.owner.ok(201, "POST", "/api/issues", {"title": "T"})
        path = f"/api/issues/{issue['identifier']}/comments"
        made = await api.member.ok(201, "POST", path, {"content": " Hello\n"})
        assert made == {
            "id": made["id"],
            "issue_id": issue["id"],
            "author_type": "member",
            "author_id": api.member.user_id,
            "content": " Hello\n",
            "type": "comment",
            "parent_id": None,
            "created_at": made["created_at"],
            "updated_at": made["updated_at"],
            "resolved_at": None,
            "resolved_by_type": None,
            "resolved_by_id": None,
            "reactions": [],
            "attachments": [],
        }
        assert await api.owner.get(path) == [made]
        (told,) = api.events("comment:created")
        assert told.payload == {
            "comment": made,
            "issue_title": "T",
            "issue_assignee_type": None,
            "issue_assignee_id": None,
            "issue_status": "todo",
        }
        reply = await api.owner.ok(
            201, "POST", path, {"content": "x", "parent_id": made["id"], "type": "progress_update"}
        )
        assert (reply["parent_id"], reply["type"]) == (made["id"], "progress_update")


async def test_bad_comments_are_refused() -> None:
    async with open_api() as api:
        first = await api.owner.ok(201, "POST", "/api/issues", {"title": "One"})
        second = await api.owner.ok(201, "POST", "/api/issues", {"title": "Two"})
        path = f"/api/issues/{first['id']}/comments"
        elsewhere = await api.owner.ok(
            201, "POST", f"/api/issues/{second['id']}/comments", {"content": "x"}
        )
        for bad in (
            {},
            {"content": ""},
            {"content": " \n"},
            {"content": None},
            {"content": 5},
            {"content": "x", "type": "system"},
            {"content": "x", "type": "odd"},
            {"content": "x", "parent_id": "nope"},
            {"content": "x", "parent_id": NOBODY},
            {"content": "x", "parent_id": elsewhere["id"]},
            {"content": "x", "suppress_agent_ids": "x"},
            {"content": "x", "suppress_agent_ids": ["x"]},
        ):
            await api.owner.refused(400, "POST", path, bad)
        assert await api.owner.get(path) == []
        odd = await api.owner.ok(201, "POST", path, {"content": "nul \0 and \ud800 end"})
        assert odd["content"] == "nul  and \ufffd end"


async def test_plain_and_since() -> None:
    async with open_api() as api:
        issue, _ = await make_threads(api)
        path = f"/api/issues/{issue.id}/comments"
        assert names(await api.owner.get(path)) == ["a", "b", "c", "a1", "b1", "a2", "b2", "a3"]
        since = fine_stamp(START + timedelta(minutes=5))
        assert names(await api.owner.get(path, since=since)) == ["b2", "a3"]
        local = "2026-03-01T14:05:00+02:00"
        assert names(await api.owner.get(path, since=local)) == ["b2", "a3"]


@pytest.mark.spec("06 §7.1", "GET /api/issues/{id}/comments")
async def test_threads_and_tails_page_backwards() -> None:
    async with open_api() as api:
        issue, ids = await make_threads(api)
        path = f"/api/issues/{issue.id}/comments"
        for any_of in ("a", "a2", "a3"):
            assert names(await api.owner.get(path, thread=ids[any_of])) == ["a", "a1", "a2", "a3"]
        response = await api.owner.call("GET", path, params={"thread": ids["a"], "tail": 2})
        assert names(response.json()) == ["a", "a2", "a3"]
        at, before_id = (
            response.headers["x-multica-next-before"],
            response.headers["x-multica-next-before-id"],
        )
        assert (at, before_id) == (fine_stamp(START + timedelta(minutes=5)), ids["a2"])
        response = await api.owner.call(
            "GET",
            path,
            params={"thread": ids["a"], "tail": 2, "before": at, "before_id": before_id},
        )
        assert names(response.json()) == ["a", "a1"]
        assert "x-multica-next-before" not in response.headers
        response = await api.owner.call("GET", path, params={"thread": ids["a"], "tail": 0})
        assert names(response.json()) == ["a"]
        since = fine_stamp(START + timedelta(minutes=5))
        response = await api.owner.call(
            "GET", path, params={"thread": ids["a"], "tail": 1, "since": since}
        )
        assert names(response.json()) == ["a3"]
        assert "x-multica-next-before" not in response.headers


@pytest.mark.spec("06 §7.1", "GET /api/issues/{id}/comments")
async def test_recent_threads_page_backwards() -> None:
    async with open_api() as api:
        issue, ids = await make_threads(api)
        path = f"/api/issues/{issue.id}/comments"
        response = await api.owner.call("GET", path, params={"recent": 2})
        assert names(response.json()) == ["b", "b1", "b2", "a", "a1", "a2", "a3"]
        at, before_id = (
            response.headers["x-multica-next-before"],
            response.headers["x-multica-next-before-id"],
        )
        assert (at, before_id) == (fine_stamp(START + timedelta(minutes=6)), ids["b"])
        response = await api.owner.call(
            "GET", path, params={"recent": 2, "before": at, "before-id": before_id}
        )
        assert names(response.json()) == ["c"]
        assert "x-multica-next-before" not in response.headers


async def test_roots_and_summaries() -> None:
    async with open_api() as api:
        issue, _ = await make_threads(api)
        path = f"/api/issues/{issue.id}/comments"
        roots = await api.owner.get(path, **{"roots-only": "true"})
        assert [(r["content"], r["reply_count"], r["last_activity_at"]) for r in roots] == [
            ("a", 3, "2026-03-01T12:07:00Z"),
            ("b", 2, "2026-03-01T12:06:00Z"),
            ("c", 0, "2026-03-01T12:02:00Z"),
        ]
        await api.owner.ok(201, "POST", path, {"content": "é" * 201})
        await api.owner.ok(201, "POST", path, {"content": "é" * 200})
        cut = await api.owner.get(path, summary="true")
        assert (cut[-2]["content"], cut[-2]["content_truncated"]) == ("é" * 200 + "…", True)
        assert (cut[-1]["content"], cut[-1]["content_truncated"]) == ("é" * 200, False)
        assert "content_truncated" not in (await api.owner.get(path))[0]


async def test_folding_leaves_the_conclusion() -> None:
    async with open_api() as api:
        issue, ids = await make_threads(api)
        path = f"/api/issues/{issue.id}/comments"
        assert len(await api.owner.get(path, fold="true")) == 8
        await api.owner.ok(200, "POST", f"/api/comments/{ids['a2']}/resolve", None)
        await api.owner.ok(200, "POST", f"/api/comments/{ids['b']}/resolve", None)
        folded = await api.owner.get(path, fold="true")
        assert names(folded) == ["a", "b", "c", "a2"]
        a, b, c, a2 = folded
        assert (a["thread_resolved"], a["folded_count"]) == (True, 2)
        assert (b["thread_resolved"], b["folded_count"]) == (True, 2)
        assert "thread_resolved" not in c
        assert "folded_count" not in a2
        assert names(await api.owner.get(path, fold="true", thread=ids["b1"])) == ["b"]
        assert names(await api.owner.get(path, fold="true", recent=1)) == ["a", "a2"]
        assert len(await api.owner.get(path)) == 8


@pytest.mark.parametrize(
    "params",
    [
        {"fold": "true", "since": "2026-01-01T00:00:00Z"},
        {"fold": "true", "thread": NOBODY, "tail": "1"},
        {"fold": "true", "roots_only": "true"},
        {"roots_only": "true", "thread": NOBODY},
        {"roots_only": "true", "recent": "1"},
        {"thread": NOBODY, "recent": "1"},
        {"tail": "1"},
        {"before": "2026-01-01T00:00:00Z", "recent": "1"},
        {"before_id": NOBODY, "recent": "1"},
        {"before": "2026-01-01T00:00:00Z", "before_id": NOBODY},
        {"before": "2026-01-01T00:00:00Z", "before_id": NOBODY, "thread": NOBODY},
        {"before": "then", "before_id": NOBODY, "recent": "1"},
        {"before": "2026-01-01T00:00:00Z", "before_id": "x", "recent": "1"},
        {"fold": "yes"},
        {"summary": "1"},
        {"roots_only": "TRUE"},
        {"thread": "x"},
        {"thread": NOBODY, "tail": "-1"},
        {"thread": NOBODY, "tail": "x"},
        {"recent": "0"},
        {"recent": "1.5"},
        {"since": "yesterday"},
        {"since": "2026-13-01T00:00:00Z"},
    ],
)
async def test_contradictions_are_refused(params: dict[str, str]) -> None:
    async with open_api() as api:
        issue = await api.owner.ok(201, "POST", "/api/issues", {"title": "T"})
        path = f"/api/issues/{issue['id']}/comments"
        response = await api.owner.call("GET", path, params=params)
        assert response.status_code == 400, response.text
        assert response.json()["error"]


async def test_an_unknown_thread_is_not_found() -> None:
    async with open_api() as api:
        issue, ids = await make_threads(api)
        other = await api.owner.ok(201, "POST", "/api/issues", {"title": "T", "status": "done"})
        for ref, thread in ((issue.id, NOBODY), (other["id"], ids["a"])):
            response = await api.owner.call(
                "GET", f"/api/issues/{ref}/comments", params={"thread": thread}
            )
            assert response.status_code == 404
        huge = await api.owner.get(
            f"/api/issues/{issue.id}/comments", thread=ids["a"], tail="99999999999999999999"
        )
        assert len(huge) == 4


@pytest.mark.spec("06 §7.2", "POST /api/issues/{id}/comments")
async def test_an_agent_answers_where_it_was_asked() -> None:
    async with open_api() as api:
        issue, ids = await make_threads(api)
        other = await api.owner.ok(201, "POST", "/api/issues", {"title": "Other"})
        agent = await api.agent(issue_id=issue.id, trigger_comment_id=ids["a"])
        path = f"/api/issues/{issue.id}/comments"
        for parent in (None, ids["b"], ids["a1"]):
            await agent.refused(409, "POST", path, {"content": "Done", "parent_id": parent})
        reply = await agent.ok(201, "POST", path, {"content": "Done", "parent_id": ids["a"]})
        assert (reply["author_type"], reply["author_id"]) == ("agent", api.world.agent_id)
        assert api.events("comment:created")[0].actor_type == "agent"
        there = f"/api/issues/{other['id']}/comments"
        assert "own work" in await agent.refused(403, "POST", there, {"content": "See"})
        # Once the question is gone there is nothing to answer.
        await api.run(
            lambda conn: conn.execute("update agent_task_queue set trigger_comment_id = null")
        )
        await agent.ok(201, "POST", path, {"content": "Anyway"})


async def test_a_members_comment_starts_the_assigned_agent() -> None:
    async with open_api() as api:
        issue = await api.run(lambda conn: make_issue(conn, api.world))
        path = f"/api/issues/{issue.id}/comments"
        made = await api.member.ok(201, "POST", path, {"content": "Please look"})
        rows = await api.fetch("select trigger_comment_id, status from agent_task_queue")
        assert [(r["trigger_comment_id"], r["status"]) for r in rows] == [(made["id"], "queued")]
        kinds = [e.type for e in api.events()]
        assert kinds.index("comment:created") < kinds.index("task:queued")

        # A new text cancels what the old one started and starts anew.
        body = {"content": "Please look closely"}
        edited = await api.member.ok(200, "PUT", f"/api/comments/{made['id']}", body)
        assert edited["content"] == "Please look closely"
        assert api.events("comment:updated")[0].payload == {"comment": edited}
        rows = await api.fetch("select status from agent_task_queue order by created_at")
        assert [r["status"] for r in rows] == ["cancelled", "queued"]
        await api.member.ok(200, "PUT", f"/api/comments/{made['id']}", body)
        assert len(await api.fetch("select id from agent_task_queue")) == 2

        await api.member.ok(204, "DELETE", f"/api/comments/{made['id']}")
        assert api.events("comment:deleted")[0].payload == {
            "comment_id": made["id"],
            "issue_id": issue.id,
        }
        rows = await api.fetch("select status from agent_task_queue")
        assert {r["status"] for r in rows} == {"cancelled"}
        suppressed = {"content": "quietly", "suppress_agent_ids": [api.world.agent_id.upper()]}
        await api.member.ok(201, "POST", path, suppressed)
        assert len(await api.fetch("select id from agent_task_queue")) == 2


@pytest.mark.spec("06 §7.3", "PUT /api/comments/{id}")
@pytest.mark.spec("06 §7.3", "DELETE /api/comments/{id}")
async def test_only_authors_and_administrators_change_comments() -> None:
    async with open_api() as api:
        issue, ids = await make_threads(api)
        await api.member.refused(403, "PUT", f"/api/comments/{ids['a']}", {"content": "x"})
        await api.member.refused(403, "DELETE", f"/api/comments/{ids['a']}")
        path = f"/api/issues/{issue.id}/comments"
        mine = await api.member.ok(201, "POST", path, {"content": "mine"})
        await api.owner.ok(200, "PUT", f"/api/comments/{mine['id']}", {"content": "theirs"})
        await api.member.ok(204, "DELETE", f"/api/comments/{mine['id']}")
        for method, tail in (("PUT", ""), ("DELETE", ""), ("POST", "/resolve")):
            for comment_id in (mine["id"], NOBODY):
                body = {"content": "x"}
                text = await api.owner.refused(
                    404, method, f"/api/comments/{comment_id}{tail}", body
                )
                assert text == "comment not found"
            await api.stranger.refused(404, method, f"/api/comments/{ids['a']}{tail}", body)
            await api.owner.refused(400, method, f"/api/comments/nope{tail}", body)
        await api.owner.ok(204, "DELETE", f"/api/comments/{ids['a']}")
        assert names(await api.owner.get(path)) == ["b", "c", "b1", "b2"]


@pytest.mark.spec("06 §7.3", "POST /api/comments/{id}/resolve")
@pytest.mark.spec("06 §7.3", "DELETE /api/comments/{id}/resolve")
async def test_one_comment_of_a_thread_is_resolved_and_a_reply_reopens() -> None:
    async with open_api() as api:
        issue, ids = await make_threads(api)
        first = await api.member.ok(200, "POST", f"/api/comments/{ids['a']}/resolve", None)
        assert (first["resolved_by_type"], first["resolved_by_id"]) == (
            "member",
            api.member.user_id,
        )
        again = await api.owner.ok(200, "POST", f"/api/comments/{ids['a']}/resolve", None)
        assert again == first
        moved = await api.owner.ok(200, "POST", f"/api/comments/{ids['a1']}/resolve", None)
        assert moved["resolved_at"] is not None
        (cleared,) = api.events("comment:unresolved")
        assert cleared.payload["comment"]["id"] == ids["a"]
        assert len(api.events("comment:resolved")) == 3
        back = await api.owner.ok(200, "DELETE", f"/api/comments/{ids['a1']}/resolve")
        assert back["resolved_at"] is None
        same = await api.owner.ok(200, "DELETE", f"/api/comments/{ids['a1']}/resolve")
        assert same == back

        await api.owner.ok(200, "POST", f"/api/comments/{ids['b']}/resolve", None)
        told = len(api.events("comment:unresolved"))
        path = f"/api/issues/{issue.id}/comments"
        await api.owner.ok(201, "POST", path, {"content": "No", "parent_id": ids["b1"]})
        reopened = api.events("comment:unresolved")[told:]
        assert [e.payload["comment"]["id"] for e in reopened] == [ids["b"]]


async def test_a_long_issue_is_bounded() -> None:
    async with open_api() as api:

        async def unit(conn: Connection) -> str:
            issue = await make_issue(conn, api.world)
            root = await make_comment(conn, issue, api.world.user_id, "root", created_at=START)
            await conn.execute(
                "insert into comment (issue_id, workspace_id, author_type, author_id, content,"
                " parent_id, created_at) select $1, $2, 'member', $3, 'x', $4,"
                " $5::timestamptz + n * interval '1 second' from generate_series(1, 2500) n",
                issue.id,
                api.world.workspace_id,
                api.world.user_id,
                root,
                START,
            )
            await make_task(conn, api.world, issue_id=issue.id)
            return issue.id

        path = f"/api/issues/{await api.run(unit)}/comments"
        everything = await api.owner.get(path)
        assert len(everything) == 2000
        for params in ({"recent": 1}, {"thread": everything[0]["id"]}, {"fold": "true"}):
            assert len(await api.owner.get(path, **params)) == 2000
