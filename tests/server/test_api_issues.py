"""Issues: reading, writing, searching, metadata (spec 06 §5 and §6)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.consequences import TaskAvailable
from tests.support.api import Api, Caller, open_api
from tests.support.rows import make_agent, make_issue

pytestmark = pytest.mark.postgres


async def make(caller: Caller, title: str = "Fix it", **body: Any) -> Any:
    return await caller.ok(201, "POST", "/api/issues", {"title": title} | body)


def assigned_to_agent(api: Api) -> dict[str, str]:
    return {"assignee_type": "agent", "assignee_id": api.world.agent_id}


async def queue(api: Api) -> list[tuple[str, str]]:
    rows = await api.fetch("select issue_id, status from agent_task_queue order by created_at")
    return [(row["issue_id"], row["status"]) for row in rows]


@pytest.mark.spec("06 §6.1", "GET /api/issues/{id}")
async def test_an_issue_is_shown_whole() -> None:
    async with open_api() as api:
        made = await make(
            api.owner,
            "  Fix the login ",
            description="It fails",
            priority="high",
            stage=2,
            start_date="2026-03-01",
            due_date="2026-03-02T00:00:00Z",
        )
        expected = {
            "id": made["id"],
            "workspace_id": api.world.workspace_id,
            "number": 1,
            "identifier": "BUL-1",
            "title": "Fix the login",
            "description": "It fails",
            "status": "todo",
            "priority": "high",
            "assignee_type": None,
            "assignee_id": None,
            "creator_type": "member",
            "creator_id": api.world.user_id,
            "parent_issue_id": None,
            "project_id": None,
            "position": -1.0,
            "stage": 2,
            "start_date": "2026-03-01",
            "due_date": "2026-03-02",
            "created_at": made["created_at"],
            "updated_at": made["updated_at"],
            "metadata": {},
        }
        assert made == expected
        with_labels = expected | {"labels": []}
        for ref in (made["id"], made["id"].upper(), "BUL-1", "OTHER-1", "a-b-1"):
            assert await api.member.get(f"/api/issues/{ref}") == with_labels
        assert await api.member.get("/api/issues") == {"issues": [with_labels], "total": 1}
        (told,) = api.events("issue:created")
        assert told.payload == {"issue": expected}
        assert (told.workspace_id, told.actor_id) == (api.world.workspace_id, api.world.user_id)
        second = await make(api.member, "Second")
        assert (second["number"], second["position"]) == (2, -2.0)
        assert second["description"] is None


@pytest.mark.parametrize(
    "ref", ["BUL-99", "BUL-", "-1", "1", "BUL-99999999999", "x", "BUL-٣", "%00", "BUL-1e3"]
)
async def test_what_names_no_issue_is_not_found(ref: str) -> None:
    async with open_api() as api:
        await make(api.owner)
        text = await api.owner.refused(404, "GET", f"/api/issues/{ref}")
        assert text == "issue not found"
        await api.owner.refused(404, "PUT", f"/api/issues/{ref}", {})
        await api.owner.refused(404, "DELETE", f"/api/issues/{ref}")


async def test_foreign_issues_do_not_exist() -> None:
    async with open_api() as api:
        made = await make(api.stranger)
        path = f"/api/issues/{made['id']}"
        for method, tail in (
            ("GET", ""),
            ("PUT", ""),
            ("DELETE", ""),
            ("GET", "/children"),
            ("GET", "/metadata"),
            ("PUT", "/metadata/k"),
            ("GET", "/comments"),
            ("POST", "/comments"),
            ("GET", "/task-runs"),
            ("GET", "/active-task"),
            ("GET", "/usage"),
            ("POST", "/rerun"),
        ):
            body = {"value": 1, "content": "x"}
            assert await api.owner.refused(404, method, path + tail, body) == "issue not found"


@pytest.mark.spec("06 §5.3", "POST /api/issues")
async def test_creating_assigned_starts_the_agent_unless_in_the_backlog() -> None:
    async with open_api() as api:
        made = await make(api.owner, **assigned_to_agent(api))
        assert await queue(api) == [(made["id"], "queued")]
        (available,) = [told for told in api.told if isinstance(told, TaskAvailable)]
        assert available.runtime_id == api.world.runtime_id
        await make(api.owner, "Later", status="backlog", **assigned_to_agent(api))
        assert len(await queue(api)) == 1


@pytest.mark.spec("06 §6.2", "PUT /api/issues/{id}")
async def test_updates_report_exactly_what_changed() -> None:
    async with open_api() as api:
        made = await make(api.owner, description="old", due_date="2026-01-01")
        path = f"/api/issues/{made['identifier']}"
        body = {"title": "New", "status": "in_progress", "due_date": None, "stage": None}
        after = await api.member.ok(200, "PUT", path, body)
        assert after == made | {
            "title": "New",
            "status": "in_progress",
            "due_date": None,
            "updated_at": after["updated_at"],
        }
        (told,) = api.events("issue:updated")
        assert told.payload == {
            "issue": after,
            "assignee_changed": False,
            "status_changed": True,
            "priority_changed": False,
            "start_date_changed": False,
            "due_date_changed": True,
            "description_changed": False,
            "title_changed": True,
            "prev_title": "Fix it",
            "prev_assignee_type": None,
            "prev_assignee_id": None,
            "prev_status": "todo",
            "prev_priority": "none",
            "prev_start_date": None,
            "prev_due_date": "2026-01-01",
            "prev_description": "old",
            "creator_type": "member",
            "creator_id": api.world.user_id,
        }
        assert told.actor_id == api.member.user_id


@pytest.mark.spec(
    "06 §6.2", "PUT /api/issues/{id}", differs="A column that was not sent is not written."
)
async def test_null_clears_what_is_nullable_and_is_ignored_elsewhere() -> None:
    async with open_api() as api:
        parent = await make(api.owner, "Parent")
        made = await make(
            api.owner,
            description="text",
            priority="low",
            stage=1,
            start_date="2026-01-01",
            due_date="2026-01-02",
            parent_issue_id=parent["id"],
            assignee_type="member",
            assignee_id=api.member.user_id,
        )
        path = f"/api/issues/{made['id']}"
        untouched = await api.owner.ok(
            200,
            "PUT",
            path,
            dict.fromkeys(("title", "description", "status", "priority", "position")),
        )
        assert untouched == made | {"updated_at": untouched["updated_at"]}
        nullable = (
            "assignee_type",
            "assignee_id",
            "start_date",
            "due_date",
            "parent_issue_id",
            "project_id",
            "stage",
        )
        cleared = await api.owner.ok(200, "PUT", path, dict.fromkeys(nullable))
        assert cleared == untouched | dict.fromkeys(nullable) | {
            "updated_at": cleared["updated_at"]
        }
        again = await api.owner.ok(200, "PUT", path, {"description": "", "start_date": ""})
        assert again["description"] == ""
        assert api.events("issue:updated")[-1].payload["description_changed"] is True


@pytest.mark.spec("06 §5.3", "PUT /api/issues/{id}")
async def test_reassigning_cancels_and_starts() -> None:
    async with open_api() as api:
        other = await api.run(
            lambda conn: make_agent(
                conn, api.world.workspace_id, api.world.runtime_id, owner_id=api.world.user_id
            )
        )
        made = await make(api.owner, **assigned_to_agent(api))
        path = f"/api/issues/{made['id']}"
        note = {"assignee_id": other, "handoff_note": "mind the gap"}
        await api.owner.ok(200, "PUT", path, note)
        assert [status for _, status in await queue(api)] == ["cancelled", "queued"]
        assert api.events("issue:updated")[-1].payload["assignee_changed"] is True
        (row,) = await api.fetch(
            "select handoff_note from agent_task_queue where agent_id = $1", other
        )
        assert row["handoff_note"] == "mind the gap"
        quiet = {"assignee_id": api.world.agent_id, "suppress_run": True}
        await api.owner.ok(200, "PUT", path, quiet)
        assert [status for _, status in await queue(api)] == ["cancelled", "cancelled"]
        # Taking the assignee away is not "changed" and leaves runs alone.
        await api.owner.ok(200, "PUT", path, {"assignee_id": other})
        nobody = {"assignee_type": None, "assignee_id": None}
        await api.owner.ok(200, "PUT", path, nobody)
        assert api.events("issue:updated")[-1].payload["assignee_changed"] is False
        assert [status for _, status in await queue(api)][-1] == "queued"


@pytest.mark.spec("06 §5.3", "PUT /api/issues/{id}")
async def test_status_starts_and_stops_runs() -> None:
    async with open_api() as api:
        made = await make(api.owner, status="backlog", **assigned_to_agent(api))
        path = f"/api/issues/{made['id']}"
        await api.owner.ok(200, "PUT", path, {"status": "todo"})
        assert await queue(api) == [(made["id"], "queued")]
        await api.owner.ok(200, "PUT", path, {"status": "done"})
        assert await queue(api) == [(made["id"], "queued")]
        await api.owner.ok(200, "PUT", path, {"status": "cancelled"})
        assert await queue(api) == [(made["id"], "cancelled")]
        both = {"status": "cancelled", "assignee_type": "member", "assignee_id": api.member.user_id}
        await api.owner.ok(200, "PUT", path, both)
        assert len(await queue(api)) == 1


@pytest.mark.spec("02 §3.3", "POST /api/issues")
async def test_who_may_be_assigned() -> None:
    async with open_api() as api:
        private = await api.run(
            lambda conn: make_agent(
                conn,
                api.world.workspace_id,
                api.world.runtime_id,
                owner_id=api.world.user_id,
                visibility="private",
            )
        )
        made = await make(api.owner)
        path = f"/api/issues/{made['id']}"
        nobody = "00000000-0000-4000-8000-000000000000"
        for kind, who in (
            ("agent", nobody),
            ("agent", api.elsewhere.agent_id),
            ("agent", api.member.user_id),
            ("member", api.stranger.user_id),
            ("member", api.world.agent_id),
            ("squad", nobody),
            ("robot", nobody),
            ("agent", None),
            (None, api.world.agent_id),
        ):
            body = {"assignee_type": kind, "assignee_id": who}
            await api.owner.refused(400, "PUT", path, body)
            await api.owner.refused(400, "POST", "/api/issues", {"title": "x"} | body)
        mine = {"assignee_type": "agent", "assignee_id": private}
        await api.member.refused(403, "PUT", path, mine)
        await api.member.refused(403, "POST", "/api/issues", {"title": "x"} | mine)
        await api.owner.ok(200, "PUT", path, mine)
        await api.owner.ok(200, "POST", f"/api/agents/{api.world.agent_id}/archive")
        await api.owner.refused(400, "PUT", path, assigned_to_agent(api))
        assert len(await api.fetch("select id from issue where title = 'x'")) == 0


async def test_parents_are_checked() -> None:
    async with open_api() as api:
        top = await make(api.owner, "Top")
        child = await make(api.owner, "Child", parent_issue_id=top["id"])
        leaf = await make(api.owner, "Leaf", parent_issue_id=child["id"])
        foreign = await make(api.stranger)
        path = f"/api/issues/{top['id']}"
        for parent in (top, child, leaf, foreign):
            await api.owner.refused(400, "PUT", path, {"parent_issue_id": parent["id"]})
        body = {"title": "x", "parent_issue_id": foreign["id"]}
        await api.owner.refused(400, "POST", "/api/issues", body)
        assert [i["number"] for i in (await api.owner.get(f"{path}/children"))["issues"]] == [2]
        several = await api.owner.get(
            "/api/issues/children", parent_ids=f"{top['id']},{child['id']}"
        )
        assert [issue["number"] for issue in several["issues"]] == [2, 3]
        await api.owner.ok(200, "PUT", f"/api/issues/{child['id']}", {"status": "done"})
        progress = (await api.owner.get("/api/issues/child-progress"))["progress"]
        assert sorted((p["parent_issue_id"], p["total"], p["done"]) for p in progress) == sorted(
            [(top["id"], 1, 1), (child["id"], 1, 0)]
        )


@pytest.mark.spec("06 §6.2", "POST /api/issues")
async def test_an_open_duplicate_is_refused_once() -> None:
    async with open_api() as api:
        made = await make(api.owner, "Fix  the Login")
        response = await api.member.call("POST", "/api/issues", {"title": " fix the\tLOGIN"})
        assert response.status_code == 409
        answer = response.json()
        assert answer["code"] == "active_duplicate_issue"
        assert answer["issue"] == made
        for part in ("BUL-1", "Fix  the Login", "todo", "--allow-duplicate"):
            assert part in answer["error"]
        twin = await make(api.member, "fix the login", allow_duplicate=True)
        child = await make(api.member, "fix the login", parent_issue_id=made["id"])
        for issue in (made, twin, child):
            await api.owner.ok(200, "PUT", f"/api/issues/{issue['id']}", {"status": "done"})
        await make(api.member, "fix the login")


@pytest.mark.spec("06 §6.2", "DELETE /api/issues/{id}")
async def test_deleting_cancels_runs_and_frees_children() -> None:
    async with open_api() as api:
        made = await make(api.owner, **assigned_to_agent(api))
        child = await make(api.owner, "Child", parent_issue_id=made["id"])
        await api.member.ok(204, "DELETE", f"/api/issues/{made['identifier']}")
        assert [e.payload for e in api.events("issue:deleted")] == [{"issue_id": made["id"]}]
        assert [e.payload["status"] for e in api.events("task:cancelled")] == ["cancelled"]
        left = await api.owner.get(f"/api/issues/{child['id']}")
        assert left["parent_issue_id"] is None
        await api.owner.refused(404, "GET", f"/api/issues/{made['id']}")


@pytest.mark.spec("06 §6.1", "GET /api/issues")
async def test_lists_filter_sort_and_page() -> None:
    async with open_api() as api:
        specs: list[dict[str, Any]] = [
            {"title": "b", "priority": "low", "due_date": "2026-02-01"},
            {"title": "A", "priority": "urgent", **assigned_to_agent(api)},
            {"title": "c", "status": "done", "start_date": "2026-01-01"},
        ]
        made = [await api.owner.ok(201, "POST", "/api/issues", spec) for spec in specs]
        mine = await make(api.member, "d", assignee_type="member", assignee_id=api.world.user_id)
        await api.owner.ok(
            200, "PUT", f"/api/issues/{made[0]['id']}/metadata/pr", {"value": "https://x"}
        )

        async def titles(**params: Any) -> list[str]:
            found = await api.member.get("/api/issues", **params)
            assert found["total"] == len(found["issues"]), params
            return [issue["title"] for issue in found["issues"]]

        assert await titles() == ["d", "A", "c", "b"]
        assert await titles(direction="desc") == ["d", "A", "c", "b"]
        assert await titles(sort="title") == ["A", "b", "c", "d"]
        assert await titles(sort="title", direction="desc") == ["d", "c", "b", "A"]
        assert await titles(sort="created_at") == ["b", "A", "c", "d"]
        assert (await titles(sort="priority"))[:2] == ["A", "b"]
        assert (await titles(sort="due_date", direction="desc"))[0] == "b"
        assert (await titles(sort="start_date"))[0] == "c"
        assert await titles(status="done") == ["c"]
        assert await titles(status="nonsense") == []
        assert await titles(priority="urgent") == ["A"]
        assert await titles(assignee_id=api.world.agent_id) == ["A"]
        both = f"{api.world.agent_id},{api.world.user_id}"
        assert await titles(assignee_ids=both) == ["d", "A"]
        assert await titles(creator_id=api.member.user_id) == ["d"]
        assert await titles(project_id=mine["id"]) == []
        assert await titles(involves_user_id=api.world.user_id) == ["A"]
        assert await titles(involves_user_id=api.member.user_id) == []
        assert await titles(metadata=json.dumps({"pr": "https://x"})) == ["b"]
        assert await titles(scheduled="true") == ["c", "b"]
        assert await titles(open_only="true", status="done") == ["d", "A", "b"]
        span = {"date_start": "2020-01-01T00:00:00Z", "date_end": "2999-01-01T00:00:00+02:00"}
        assert len(await titles(date_field="created_at", **span)) == 4
        past = {"date_start": "2020-01-01T00:00:00Z", "date_end": "2020-01-02T00:00:00Z"}
        assert await titles(date_field="updated_at", **past) == []
        page = await api.member.get("/api/issues", limit=2, offset=1)
        assert ([i["title"] for i in page["issues"]], page["total"]) == (["A", "c"], 4)
        beyond = await api.member.get("/api/issues", offset=10)
        assert beyond == {"issues": [], "total": 4}


@pytest.mark.parametrize(
    "params",
    [
        {"assignee_id": "x"},
        {"assignee_ids": "x,y"},
        {"creator_id": "1"},
        {"project_id": "-"},
        {"involves_user_id": "me"},
        {"sort": "number"},
        {"direction": "up"},
        {"date_field": "created_at"},
        {"date_start": "2026-01-01T00:00:00Z", "date_end": "2026-01-01T00:00:00Z"},
        {
            "date_field": "title",
            "date_start": "2026-01-01T00:00:00Z",
            "date_end": "2026-01-02T00:00:00Z",
        },
        {"date_field": "created_at", "date_start": "yesterday", "date_end": "today"},
        {
            "date_field": "created_at",
            "date_start": "0001-01-01T00:00:00+14:00",
            "date_end": "9999-12-31T23:59:59-14:00",
        },
        {"metadata": "[1]"},
        {"metadata": "{"},
        {"metadata": '{"a": {"b": 1}}'},
        {"metadata": '{"a": NaN}'},
    ],
)
async def test_bad_filters_are_refused(params: dict[str, str]) -> None:
    async with open_api() as api:
        response = await api.owner.call("GET", "/api/issues", params=params)
        assert response.status_code == 400
        assert response.json()["error"]


@pytest.mark.parametrize("limit", ["0", "-1", "x", "99999999999999999999999", "1e3", "%00"])
async def test_odd_paging_falls_back(limit: str) -> None:
    async with open_api() as api:
        await make(api.owner)
        for key in ("limit", "offset"):
            assert (await api.owner.get("/api/issues", **{key: limit}))["total"] == 1


@pytest.mark.spec("06 §6.1", "GET /api/issues/search")
async def test_search_ranks_and_cuts_snippets() -> None:
    async with open_api() as api:
        first = await make(api.owner, "Improve the parser", description="It is slow. " * 20)
        await make(api.owner, "Other", description=("x" * 60) + " parser " + ("y" * 100))
        third = await make(api.owner, "Third")
        await api.owner.ok(
            201, "POST", f"/api/issues/{third['id']}/comments", {"content": "see the PARSER code"}
        )
        await make(api.owner, "parser")
        closed = await make(api.owner, "Old parser", status="done")
        response = await api.owner.call("GET", "/api/issues/search", params={"q": "parser"})
        answer = response.json()
        assert [i["title"] for i in answer["issues"]] == [
            "parser",
            "Improve the parser",
            "Other",
            "Third",
        ]
        assert answer["total"] == 4
        assert response.headers["x-total-count"] == "4"
        exact, title, description, comment = answer["issues"]
        assert (exact["match_source"], "matched_snippet" in exact) == ("title", False)
        assert title["match_source"] == "title"
        assert description["match_source"] == "description"
        cut = description["matched_description_snippet"]
        assert cut.startswith("...xxx")
        assert cut.endswith("yyy...")
        assert len(cut) == 3 + 40 + 6 + 80 + 3
        assert comment["match_source"] == "comment"
        assert comment["matched_comment_snippet"] == "see the PARSER code"
        assert "labels" not in exact

        async def found(q: str, **params: Any) -> list[int]:
            answer = await api.owner.get("/api/issues/search", q=q, **params)
            return [issue["number"] for issue in answer["issues"]]

        assert closed["number"] in await found("parser", include_closed="true")
        assert (await found("BUL-2"))[0] == 2
        assert (await found("3"))[0] == 3
        assert await found("slow improve") == [first["number"]]
        assert await found("100%_") == []
        assert await found("\\") == []
        assert await found("parser", limit=1, offset=1) == [first["number"]]
        assert await found("parser", offset=99) == []
        for bad in ("", "  ", "x" * 501):
            response = await api.owner.call("GET", "/api/issues/search", params={"q": bad})
            assert response.status_code == 400


@pytest.mark.spec("06 §6.2", "GET /api/issues/{id}/metadata")
@pytest.mark.spec("06 §6.2", "PUT /api/issues/{id}/metadata/{key}")
@pytest.mark.spec("06 §6.2", "DELETE /api/issues/{id}/metadata/{key}")
async def test_metadata_is_a_small_flat_map() -> None:
    async with open_api() as api:
        made = await make(api.owner)
        path = f"/api/issues/{made['identifier']}/metadata"
        assert await api.member.get(path) == {"metadata": {}}
        for value in ("text", 1, 1.5, True, ""):
            answer = await api.member.ok(200, "PUT", f"{path}/key", {"value": value})
            assert answer == {"metadata": {"key": value}}
        told = api.events("issue_metadata:changed")[-1]
        assert told.payload == {"issue_id": made["id"], "metadata": {"key": ""}}
        for bad in (None, [1], {"a": 1}):
            await api.member.refused(400, "PUT", f"{path}/key", {"value": bad})
        await api.member.refused(400, "PUT", f"{path}/key", {})
        for key in ("1a", "a b", "a" * 65, "ä", "a%00"):
            await api.member.refused(400, "PUT", f"{path}/{key}", {"value": 1})
        await api.member.refused(400, "PUT", f"{path}/big", {"value": "x" * 8200})
        for number in range(49):
            await api.member.ok(200, "PUT", f"{path}/k{number}", {"value": number})
        await api.member.refused(400, "PUT", f"{path}/more", {"value": 1})
        await api.member.ok(200, "PUT", f"{path}/k1", {"value": "still"})
        answer = await api.member.ok(200, "DELETE", f"{path}/key")
        assert "key" not in answer["metadata"]
        assert len((await api.member.ok(200, "DELETE", f"{path}/absent"))["metadata"]) == 49
        assert (await api.owner.get("/api/issues/BUL-1"))["metadata"]["k1"] == "still"


@pytest.mark.spec("06 §6.2", "POST /api/issues/batch-update")
@pytest.mark.spec("06 §6.2", "POST /api/issues/batch-delete")
async def test_batches_skip_what_does_not_fit() -> None:
    async with open_api() as api:
        made = [await make(api.owner, f"Issue {n}") for n in range(3)]
        foreign = await make(api.stranger)
        ids = [issue["id"] for issue in made]
        path = "/api/issues/batch-update"
        body = {"issue_ids": [*ids, foreign["id"]], "updates": {"status": "blocked"}}
        assert await api.member.ok(200, "POST", path, body) == {"updated": 3}
        assert len(api.events("issue:updated")) == 3
        # One of them would be its own parent.
        body = {"issue_ids": ids, "updates": {"parent_issue_id": ids[0]}}
        assert await api.member.ok(200, "POST", path, body) == {"updated": 2}
        body = {"issue_ids": ids, "updates": {}}
        assert await api.member.ok(200, "POST", path, body) == {"updated": 0}
        for bad in (
            {"issue_ids": ids, "updates": {"status": "odd"}},
            {"issue_ids": ["BUL-1"], "updates": {"status": "todo"}},
            {"issue_ids": "x", "updates": {}},
            {"issue_ids": ids, "updates": []},
            {"issue_ids": [*ids * 200], "updates": {}},
        ):
            await api.member.refused(400, "POST", path, bad)
        delete = {"issue_ids": [*ids, foreign["id"]]}
        answer = await api.member.ok(200, "POST", "/api/issues/batch-delete", delete)
        assert answer == {"deleted": 3}
        assert (await api.owner.get("/api/issues"))["total"] == 0
        assert (await api.stranger.get("/api/issues"))["total"] == 1


async def test_an_agent_is_the_creator_and_does_not_restart_itself() -> None:
    async with open_api() as api:
        issue = await api.run(lambda conn: make_issue(conn, api.world, status="backlog"))
        agent = await api.agent(issue_id=issue.id)
        made = await make(agent, "Found a bug")
        assert (made["creator_type"], made["creator_id"]) == ("agent", api.world.agent_id)
        assert api.events("issue:created")[0].actor_type == "agent"
        await agent.ok(200, "PUT", f"/api/issues/{issue.id}", {"status": "in_progress"})
        assert [status for _, status in await queue(api)] == ["running"]


@pytest.mark.spec("06 §6.1", "GET /api/issues/{id}/pull-requests")
async def test_pull_requests_are_an_empty_list() -> None:
    async with open_api() as api:
        await make(api.owner)
        assert await api.owner.get("/api/issues/BUL-1/pull-requests") == {"pull_requests": []}
        await api.owner.refused(404, "GET", "/api/issues/BUL-2/pull-requests")
