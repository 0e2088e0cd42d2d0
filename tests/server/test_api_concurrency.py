"""What several callers at once must not break (02 §3.3 [trap])."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.support.api import Api, open_api

pytestmark = pytest.mark.postgres


async def at_once(*calls: Any) -> list[Any]:
    """Run the calls side by side; return their results in order."""
    results: list[Any] = [None] * len(calls)

    async def run(place: int, call: Any) -> None:
        results[place] = await call()

    async with trio.open_nursery() as nursery:
        for place, call in enumerate(calls):
            nursery.start_soon(run, place, call)
    return results


def put(api: Api, issue: str, body: dict[str, Any]) -> Any:
    return lambda: api.owner.ok(200, "PUT", f"/api/issues/{issue}", body)


async def test_different_fields_of_one_issue_are_all_kept() -> None:
    async with open_api() as api:
        made = await api.owner.ok(201, "POST", "/api/issues", {"title": "T"})
        for round_ in range(5):
            day = f"2026-01-0{round_ + 1}"
            fields = {
                "title": f"T{round_}",
                "description": f"D{round_}",
                "priority": ("low", "high")[round_ % 2],
                "status": ("todo", "blocked")[round_ % 2],
                "start_date": day,
                "due_date": day,
                "stage": round_ + 1,
                "position": float(round_),
            }
            await at_once(*(put(api, made["id"], {key: value}) for key, value in fields.items()))
            after = await api.owner.get(f"/api/issues/{made['id']}")
            assert {key: after[key] for key in fields} == fields


async def test_metadata_keys_written_at_once_are_all_kept() -> None:
    async with open_api() as api:
        made = await api.owner.ok(201, "POST", "/api/issues", {"title": "T"})
        path = f"/api/issues/{made['id']}/metadata"

        def write(number: int) -> Any:
            return lambda: api.owner.call("PUT", f"{path}/k{number}", {"value": number})

        answers = await at_once(*(write(number) for number in range(60)))
        taken = [answer.status_code for answer in answers]
        assert (taken.count(200), taken.count(400)) == (50, 10)
        assert len((await api.owner.get(path))["metadata"]) == 50


async def test_fifty_creates_get_fifty_numbers() -> None:
    async with open_api() as api:

        def create(number: int) -> Any:
            body = {"title": f"Issue {number}"}
            return lambda: api.owner.ok(201, "POST", "/api/issues", body)

        made = await at_once(*(create(number) for number in range(50)))
        assert sorted(issue["number"] for issue in made) == list(range(1, 51))


async def test_of_equal_titles_at_once_one_wins() -> None:
    async with open_api() as api:
        titles = ("Same", " same ", "SAME", "same")
        answers = await at_once(
            *(lambda t=t: api.owner.call("POST", "/api/issues", {"title": t}) for t in titles)
        )
        assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
        (winner,) = [a.json() for a in answers if a.status_code == 201]
        losers = [a.json() for a in answers if a.status_code == 409]
        assert {loser["issue"]["id"] for loser in losers} == {winner["id"]}
        assert (await api.owner.get("/api/issues"))["total"] == 1


async def test_parents_set_at_once_make_no_circle() -> None:
    async with open_api() as api:
        ids = [
            (await api.owner.ok(201, "POST", "/api/issues", {"title": f"T{n}"}))["id"]
            for n in range(2)
        ]
        answers = await at_once(
            *(
                lambda a=a, b=b: api.owner.call("PUT", f"/api/issues/{a}", {"parent_issue_id": b})
                for a, b in (ids, ids[::-1])
            )
        )
        assert sorted(answer.status_code for answer in answers) == [200, 400]


async def test_assigning_at_once_leaves_one_run() -> None:
    async with open_api() as api:
        made = await api.owner.ok(201, "POST", "/api/issues", {"title": "T"})
        body = {"assignee_type": "agent", "assignee_id": api.world.agent_id}
        await at_once(*(put(api, made["id"], body) for _ in range(6)))
        active = await api.owner.get(f"/api/issues/{made['id']}/active-task")
        assert len(active["tasks"]) == 1


async def test_names_and_slugs_taken_at_once_are_taken_once() -> None:
    async with open_api() as api:
        agent = {"name": "Robin", "runtime_id": api.world.runtime_id}
        answers = await at_once(
            *(lambda: api.owner.call("POST", "/api/agents", agent) for _ in range(4))
        )
        assert sorted(a.status_code for a in answers) == [201, 409, 409, 409]
        space = {"name": "Sea", "slug": "sea"}
        answers = await at_once(
            *(lambda: api.owner.call("POST", "/api/workspaces", space) for _ in range(4))
        )
        assert sorted(a.status_code for a in answers) == [201, 409, 409, 409]


async def test_a_runtime_deleted_while_agents_are_bound_to_it() -> None:
    async with open_api() as api:
        world = api.world
        await api.owner.ok(200, "POST", f"/api/agents/{world.agent_id}/archive")
        body = {"name": "Late", "runtime_id": world.runtime_id}
        created, deleted = await at_once(
            lambda: api.owner.call("POST", "/api/agents", body),
            lambda: api.owner.call("DELETE", f"/api/runtimes/{world.runtime_id}"),
        )
        assert (created.status_code, deleted.status_code) in {(201, 409), (400, 200)}


async def test_commenting_while_the_issue_is_deleted() -> None:
    async with open_api() as api:
        for _ in range(10):
            made = await api.owner.ok(201, "POST", "/api/issues", {"title": "T"})
            path = f"/api/issues/{made['id']}"
            answers = await at_once(
                lambda path=path: api.owner.call("POST", f"{path}/comments", {"content": "x"}),
                lambda path=path: api.owner.call("DELETE", path),
                lambda path=path: api.owner.call("PUT", f"{path}/metadata/k", {"value": 1}),
                lambda path=path: api.owner.call("PUT", path, {"status": "blocked"}),
            )
            comment, delete, metadata, update = (answer.status_code for answer in answers)
            assert comment in {201, 404}
            assert delete == 204
            assert metadata in {200, 404}
            assert update in {200, 404}


async def test_a_parent_deleted_while_a_child_is_made() -> None:
    async with open_api() as api:
        for number in range(10):
            parent = await api.owner.ok(201, "POST", "/api/issues", {"title": f"P{number}"})
            body = {"title": f"C{number}", "parent_issue_id": parent["id"]}
            child, delete = await at_once(
                lambda body=body: api.owner.call("POST", "/api/issues", body),
                lambda parent=parent: api.owner.call("DELETE", f"/api/issues/{parent['id']}"),
            )
            assert child.status_code in {201, 400}
            assert delete.status_code == 204


async def test_replying_while_the_thread_is_deleted() -> None:
    async with open_api() as api:
        made = await api.owner.ok(201, "POST", "/api/issues", {"title": "T"})
        path = f"/api/issues/{made['id']}/comments"
        for _ in range(10):
            root = await api.owner.ok(201, "POST", path, {"content": "root"})
            body = {"content": "reply", "parent_id": root["id"]}
            reply, delete, resolve = await at_once(
                lambda body=body: api.owner.call("POST", path, body),
                lambda root=root: api.owner.call("DELETE", f"/api/comments/{root['id']}"),
                lambda root=root: api.owner.call("POST", f"/api/comments/{root['id']}/resolve"),
            )
            assert reply.status_code in {201, 400}
            assert delete.status_code == 204
            assert resolve.status_code in {200, 404}
