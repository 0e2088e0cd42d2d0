"""Whatever is sent, every endpoint answers with a status of its own and an error text (06 §1)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.api import Api, open_api
from tests.support.rows import make_comment, make_issue, make_task

pytestmark = pytest.mark.postgres

BODIES = (
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"7",
    b"\xff\xfe",
    b"{" + b'"a":{' * 5000 + b"}" * 5001,
    b'{"title": [1], "name": {}, "content": 1, "value": {}, "runtime_id": 1, "visibility": 1}',
)


def targets(ids: dict[str, str]) -> list[tuple[str, str]]:
    """Every endpoint that reads a body it cannot do without."""
    return [
        ("PATCH", "/api/me"),
        ("POST", "/api/tokens"),
        ("POST", "/api/workspaces"),
        ("PATCH", f"/api/workspaces/{ids['workspace']}"),
        ("POST", "/api/agents"),
        ("PUT", f"/api/agents/{ids['agent']}"),
        ("PATCH", f"/api/runtimes/{ids['runtime']}"),
        ("POST", "/api/issues"),
        ("PUT", f"/api/issues/{ids['issue']}"),
        ("POST", "/api/issues/batch-update"),
        ("POST", "/api/issues/batch-delete"),
        ("PUT", f"/api/issues/{ids['issue']}/metadata/key"),
        ("POST", f"/api/issues/{ids['issue']}/comments"),
        ("PUT", f"/api/comments/{ids['comment']}"),
    ]


async def make_ids(api: Api) -> dict[str, str]:
    async def unit(conn: Any) -> dict[str, str]:
        issue = await make_issue(conn, api.world)
        # Its number did not come from the counter.
        await conn.execute("update workspace set issue_counter = 1000000")
        return {
            "workspace": api.world.workspace_id,
            "agent": api.world.agent_id,
            "runtime": api.world.runtime_id,
            "issue": issue.id,
            "comment": await make_comment(conn, issue, api.world.user_id, "x"),
            "task": await make_task(conn, api.world, issue_id=issue.id),
        }

    made: dict[str, str] = await api.run(unit)
    return made


async def test_malformed_bodies() -> None:
    async with open_api() as api:
        for method, path in targets(await make_ids(api)):
            for body in BODIES:
                wrong_types = body == BODIES[-1]
                harmless = wrong_types and path.endswith(("/me", "batch-update", "batch-delete"))
                response = await api.owner.client.request(method, path, content=body)
                if harmless and response.status_code == 200:
                    continue
                assert response.status_code == 400, (method, path, body[:40], response.text)
                assert list(response.json()) == ["error"]


async def test_a_body_over_the_limit() -> None:
    async with open_api() as api:
        for method, path in targets(await make_ids(api))[:3]:
            body = b'{"name": "' + b"x" * (10 * 1024 * 1024) + b'"}'
            response = await api.owner.client.request(method, path, content=body)
            assert response.status_code == 413
            assert response.json()["error"]


HOSTILE: tuple[Any, ...] = (
    "a\0b",
    "\0",
    "\ud800",
    "\U0010ffff",
    "x" * 20_000,
    "",
    " ",
    "'; drop table issue; --",
    "%s $1 {x} \\",
    10**400,
    2**63,
    -1,
    0,
    1.5,
    True,
    None,
    [],
    {},
    ["\0"],
    {"\0": "\ud800"},
    "0001-01-01",
    "9999-12-31",
    "2026-02-30",
    "10000-01-01",
    "0001-01-01T00:00:00+10:00",
    "2026-01-01T00:00:01Z",
    "00000000-0000-4000-8000-000000000000",
    "{00000000-0000-4000-8000-000000000000}",
)

NEEDED: dict[str, dict[str, Any]] = {
    "/api/tokens": {"name": "t"},
    "/api/workspaces": {"name": "w", "slug": "w-1"},
    "/api/agents": {"name": "a"},
    "/api/issues": {"title": "t", "allow_duplicate": True},
    "/comments": {"content": "c"},
}

_AGENT = (
    "name description instructions avatar_url runtime_id runtime_config custom_env custom_args"
    " mcp_config model thinking_level visibility max_concurrent_tasks"
)
_ISSUE = (
    "title description status priority assignee_type assignee_id parent_issue_id project_id stage"
    " start_date due_date attachment_ids"
)
_WORKSPACE = "name description context issue_prefix"
FIELDS = {
    "/api/me": "name avatar_url language timezone profile_description",
    "/api/tokens": "name expires_in_days",
    "/api/workspaces": f"{_WORKSPACE} slug",
    "/api/workspaces/": f"{_WORKSPACE} settings repos avatar_url",
    "/api/agents": _AGENT,
    "/api/agents/": f"{_AGENT} status",
    "/api/runtimes/": "visibility custom_name",
    "/api/issues": f"{_ISSUE} origin_type origin_id allow_duplicate",
    "/api/issues/": f"{_ISSUE} position suppress_run handoff_note",
    "/batch-update": "issue_ids updates",
    "/batch-delete": "issue_ids",
    "/key": "value",
    "/comments": "content type parent_id attachment_ids suppress_agent_ids",
    "/api/comments/": "content suppress_agent_ids",
    "/rerun": "task_id",
}
"""What each endpoint reads, by the end of its path, or by its beginning up to an id."""


def fields_of(path: str) -> list[str]:
    ending = next((k for k in FIELDS if path.endswith(k)), None)
    return FIELDS[ending or path.rpartition("/")[0] + "/"].split()


async def test_hostile_values_in_every_field() -> None:
    """No value in any field makes a 500; what is refused says why; what is taken can be read."""
    async with open_api() as api:
        ids = await make_ids(api)
        rerun = ("POST", f"/api/issues/{ids['issue']}/rerun")
        for method, path in [*targets(ids), rerun]:
            needed = dict(NEEDED.get(path, NEEDED["/comments"] if "comments" in path else {}))
            if path == "/api/agents":
                needed["runtime_id"] = ids["runtime"]
            for key in fields_of(path):
                for value in HOSTILE:
                    response = await api.owner.call(method, path, {**needed, key: value})
                    if response.status_code >= 400:
                        assert response.json()["error"], (method, path, key, value)
        for path in ("/api/issues", "/api/agents", "/api/workspaces", "/api/tokens", "/api/me"):
            await api.owner.get(path)
        assert "\0" not in json.dumps(await api.owner.get(f"/api/issues/{ids['issue']}"))


async def test_hostile_ids_in_every_path() -> None:
    async with open_api() as api:
        ids = await make_ids(api)
        paths = [
            ("DELETE", "/api/tokens/{}"),
            ("GET", "/api/workspaces/{}"),
            ("PUT", "/api/workspaces/{}"),
            ("GET", "/api/workspaces/{}/members"),
            ("GET", "/api/agents/{}"),
            ("PUT", "/api/agents/{}"),
            ("POST", "/api/agents/{}/archive"),
            ("POST", "/api/agents/{}/restore"),
            ("POST", "/api/agents/{}/cancel-tasks"),
            ("GET", "/api/agents/{}/tasks"),
            ("PATCH", "/api/runtimes/{}"),
            ("DELETE", "/api/runtimes/{}"),
            ("PUT", "/api/comments/{}"),
            ("DELETE", "/api/comments/{}"),
            ("POST", "/api/comments/{}/resolve"),
            ("DELETE", "/api/comments/{}/resolve"),
            ("GET", "/api/tasks/{}/messages"),
            ("POST", "/api/tasks/{}/cancel"),
            ("POST", f"/api/issues/{ids['issue']}/tasks/{{}}/cancel"),
        ]
        body = {"content": "x", "visibility": "public"}
        for method, path in paths:
            for bad in ("x", "BUL-1", "%00", "%F0%9F%98%80", "1" * 400, "'"):
                await api.owner.refused(400, method, path.format(bad), body)
        issue_paths = (
            ("GET", ""),
            ("PUT", ""),
            ("DELETE", ""),
            ("GET", "/comments"),
            ("POST", "/comments"),
            ("GET", "/task-runs"),
            ("GET", "/active-task"),
            ("GET", "/usage"),
            ("POST", "/rerun"),
            ("GET", "/metadata"),
            ("DELETE", "/metadata/key"),
            ("GET", "/children"),
        )
        for method, tail in issue_paths:
            for bad in ("x", "BUL-0", "%00", "%ED%A0%80", "1" * 400, "BUL-" + "9" * 30):
                text = await api.owner.refused(404, method, f"/api/issues/{bad}{tail}", body)
                assert text == "issue not found"


async def test_hostile_query_values() -> None:
    async with open_api() as api:
        ids = await make_ids(api)
        comments = f"/api/issues/{ids['issue']}/comments"
        keys = {
            "/api/issues": "status priority assignee_id assignee_ids creator_id project_id metadata"
            " involves_user_id date_field date_start date_end scheduled sort direction limit offset"
            " open_only",
            "/api/issues/search": "q limit offset include_closed",
            "/api/issues/children": "parent_ids",
            comments: "since thread tail recent before before_id roots_only summary fold",
            f"/api/tasks/{ids['task']}/messages": "since",
            "/api/agents": "include_archived",
            "/api/runtimes": "owner",
        }
        for path, names in keys.items():
            needed = {"q": "x"} if path.endswith("search") else {}
            for name in names.split():
                for value in HOSTILE:
                    if not isinstance(value, str) or "\ud800" in value:
                        continue
                    params = {**needed, name: value}
                    response = await api.owner.call("GET", path, params=params)
                    assert response.status_code in {200, 400, 404}, (path, name, value)


async def test_nobody_gets_in_without_a_workspace() -> None:
    async with open_api() as api:
        for path in ("/api/issues", "/api/agents", "/api/runtimes", "/api/squads"):
            foreign = {"x-workspace-id": api.elsewhere.workspace_id}
            response = await api.owner.call("GET", path, headers=foreign)
            assert response.status_code == 404
            assert response.json() == {"error": "workspace not found"}
            response = await api.owner.call("GET", path, headers={"x-workspace-id": "x"})
            assert response.status_code == 400
            response = await api.owner.call("GET", path, headers={"x-workspace-id": ""})
            assert response.status_code == 400
            response = await api.owner.call("GET", path, headers={"authorization": ""})
            assert response.status_code == 401
            agent = await api.agent()
            response = await agent.call("GET", path, headers=foreign)
            assert response.status_code == 200  # a task token is always in its own workspace
