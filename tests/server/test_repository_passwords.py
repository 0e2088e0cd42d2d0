"""Passwords in repositories' addresses: apart from them, never shown, there for machines."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from server.rights import WIDER
from server.store import queries
from server.store.queries import Connection
from server.web import routes
from tests.server.test_every_route import flat
from tests.support.api import Api, open_api
from tests.support.furnished import Things, furnish, path_of
from tests.support.rows import make_issue, make_task

pytestmark = pytest.mark.postgres

APART = {"X-Client-Capabilities": "skill-bundles-v1,repository-access-v1"}
SHOWN = "https://git.example.test/org/app.git"
GIVEN = "https://bob:s3cr%40t@git.example.test/org/app.git"


async def _set(api: Api, *urls: str, **more: str) -> Any:
    path = f"/api/workspaces/{api.world.workspace_id}"
    repos = [{"url": url, **more} for url in urls]
    return await api.owner.ok(200, "PATCH", path, {"repos": repos})


async def _stored(api: Api) -> dict[str, str]:
    rows = await api.fetch("select url, userinfo from repository_credential")
    return {row["url"]: row["userinfo"] for row in rows}


async def _claim(api: Api, headers: dict[str, str]) -> Any:
    async def queue(conn: Connection) -> None:
        issue = await make_issue(conn, api.world)
        await make_task(conn, api.world, issue_id=issue.id)

    await api.run(queue)
    path = f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/claim"
    return (await api.owner.ok(200, "POST", path, {}, headers=headers))["task"]


async def test_a_password_is_taken_out_of_the_address_and_shown_to_nobody() -> None:
    async with open_api() as api:
        changed = await _set(api, GIVEN)
        assert changed["repos"] == [{"url": SHOWN}]
        assert await _stored(api) == {SHOWN: "bob:s3cr%40t"}
        path = f"/api/workspaces/{api.world.workspace_id}"
        for answer in (await api.owner.get(path), await api.owner.get("/api/workspaces")):
            assert "s3cr" not in str(answer)
        assert "s3cr" not in str(api.events())
        # what is shown comes back, and the password stays; another one takes its place
        await _set(api, SHOWN, description="The app")
        assert await _stored(api) == {SHOWN: "bob:s3cr%40t"}
        await _set(api, GIVEN.replace("s3cr%40t", "new"))
        assert await _stored(api) == {SHOWN: "bob:new"}
        # and goes with its repository
        await _set(api, "git@example.test:org/app.git")
        assert await _stored(api) == {}


async def test_errors_tell_no_password() -> None:
    async with open_api() as api:
        path = f"/api/workspaces/{api.world.workspace_id}"
        for url in ("ftp://bob:s3cret@host/x", "ssh://git:s3cret@host/x", "https://b:s3cret@"):
            told = await api.owner.refused(400, "PATCH", path, {"repos": [{"url": url}]})
            assert "s3cret" not in told
        assert await _stored(api) == {}


async def test_our_daemon_is_told_apart_and_a_stock_one_in_the_address() -> None:
    async with open_api() as api:
        await _set(api, GIVEN)
        path = f"/api/daemon/workspaces/{api.world.workspace_id}/repos"
        ours = await api.owner.ok(200, "GET", path, headers=APART)
        assert [repo["url"] for repo in ours["repos"]] == [SHOWN]
        assert ours["credentials"] == {SHOWN: "bob:s3cr%40t"}
        stock = await api.owner.ok(200, "GET", path)
        assert [repo["url"] for repo in stock["repos"]] == [GIVEN]
        assert "credentials" not in stock
        assert (await _claim(api, APART))["repos"] == [{"url": SHOWN}]
        await api.fetch("update agent_task_queue set status = 'cancelled' returning id")
        assert (await _claim(api, {}))["repos"] == [{"url": GIVEN}]


async def test_who_has_no_machine_is_told_no_password() -> None:
    async with open_api() as api:
        await _set(api, GIVEN)
        path = f"/api/daemon/workspaces/{api.world.workspace_id}/repos"
        for headers in (APART, {}):
            told = await api.member.ok(200, "GET", path, headers=headers)
            assert "s3cr" not in str(told)
            assert [repo["url"] for repo in told["repos"]] == [SHOWN]


async def test_an_agents_token_is_told_no_password_by_any_route() -> None:
    async with open_api() as api:
        await _set(api, GIVEN)
        project = await api.owner.ok(201, "POST", "/api/projects", {"title": "Web"})
        resources = f"/api/projects/{project['id']}/resources"
        attached = {"resource_type": "github_repo", "resource_ref": {"url": GIVEN}}
        await api.owner.ok(201, "POST", resources, attached)
        issue = await api.run(partial(make_issue, world=api.world, project_id=project["id"]))
        await api.run(partial(make_task, world=api.world, issue_id=issue.id))
        await api.owner.ok(
            200, "PATCH", f"/api/workspaces/{api.world.workspace_id}",
            {"settings": {"agents_may": sorted(WIDER)}},
        )  # fmt: skip
        agent = await api.agent(issue_id=issue.id)
        things = dict(await api.run(partial(_furnish, api=api)))
        things |= {
            "workspaces": api.world.workspace_id, "workspace_id": api.world.workspace_id,
            "runtimes": api.world.runtime_id, "runtime_id": api.world.runtime_id,
            "projects": project["id"], "issues": issue.id,
        }  # fmt: skip
        seen = 0
        for method, path in sorted(flat(list(routes._table()))):
            if method != "GET" and not path.startswith("/api/daemon/"):
                continue
            url = path_of(path, things)
            for headers in (APART, {}):
                sent = {} if method != "GET" else ...
                answer = await agent.call(method, url, sent, headers=headers)
                assert "s3cr" not in answer.text, f"{method} {path}"
                assert not path.startswith("/api/daemon/") or answer.status_code in {401, 403, 404}
                seen += answer.status_code == 200
        assert seen > 40
        # nor does it set one, or try one out
        eve = {"url": SHOWN.replace("://", "://eve:x@")}
        for ref in (eve, {"url": "https://eve:x@new.example.test/a"}):
            body = {"resource_type": "github_repo", "resource_ref": ref}
            await agent.refused(403, "POST", resources, body)
        assert await _stored(api) == {SHOWN: "bob:s3cr%40t"}


async def _furnish(conn: Connection, api: Api) -> Things:
    return await furnish(conn, api.world, api.world.user_id, "MARK")


async def test_projects_take_passwords_and_refs_too() -> None:
    async with open_api() as api:
        ref = {"url": GIVEN, "ref": "release/1"}
        project = await api.owner.ok(
            201, "POST", "/api/projects",
            {"title": "Web", "resources": [{"resource_type": "github_repo", "resource_ref": ref}]},
        )  # fmt: skip
        [made] = project["resources"]
        assert made["resource_ref"] == {"url": SHOWN, "ref": "release/1"}
        assert "s3cr" not in str(api.events())
        assert await _stored(api) == {SHOWN: "bob:s3cr%40t"}

        # a member may not put another password in the place of one that is there
        path = f"/api/projects/{project['id']}/resources"
        mine = {"url": SHOWN.replace("://", "://eve:x@"), "ref": "main"}
        wanted = {"resource_type": "github_repo", "resource_ref": mine}
        told = await api.member.refused(403, "POST", path, wanted)
        assert "eve" not in told
        assert await _stored(api) == {SHOWN: "bob:s3cr%40t"}

        for wrong in ("-x", "a..b", "a:b", "a b"):
            bad = {"resource_type": "github_repo", "resource_ref": {"url": SHOWN, "ref": wrong}}
            assert "ref must be" in await api.owner.refused(400, "POST", path, bad)

        async def queue(conn: Connection) -> None:
            issue = await make_issue(conn, api.world, project_id=project["id"])
            await make_task(conn, api.world, issue_id=issue.id)

        await api.run(queue)
        claim = f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/claim"
        task = (await api.owner.ok(200, "POST", claim, {}, headers=APART))["task"]
        assert task["repos"] == [{"url": SHOWN, "ref": "release/1"}]
        await api.owner.ok(204, "DELETE", f"{path}/{made['id']}")
        assert await _stored(api) == {}


async def test_a_workspaces_repository_keeps_its_ref() -> None:
    async with open_api() as api:
        changed = await _set(api, SHOWN, ref="develop")
        assert changed["repos"] == [{"url": SHOWN, "ref": "develop"}]
        path = f"/api/daemon/workspaces/{api.world.workspace_id}/repos"
        assert (await api.owner.get(path))["repos"] == [{"url": SHOWN, "ref": "develop"}]


MIGRATION = Path(queries.__file__).parent / "migrations/0019_repository_credentials.sql"
SCRIPT = MIGRATION.read_text()


async def test_what_stood_in_addresses_before_is_taken_out() -> None:
    """The migration, on what an older version has stored."""
    async with open_api() as api:
        project = await api.owner.ok(201, "POST", "/api/projects", {"title": "Web"})

        async def before(conn: Connection) -> None:
            await conn.execute("drop table repository_credential")
            repos = [{"url": GIVEN, "description": "d"}, {"url": "git@host:x/y"}, {"url": SHOWN}]
            await conn.execute("update workspace set repos = $1", repos)
            for url in (GIVEN, SHOWN, "http://tok@h/x"):
                await conn.execute(
                    "insert into project_resource (project_id, workspace_id, created_by,"
                    " resource_type, resource_ref) select $1, $2, $3, 'github_repo',"
                    " jsonb_build_object('url', $4::text)",
                    project["id"], api.world.workspace_id, api.world.user_id, url,
                )  # fmt: skip
            await conn.execute(SCRIPT)

        await api.run(before)
        assert await _stored(api) == {SHOWN: "bob:s3cr%40t", "http://h/x": "tok"}
        [workspace] = await api.fetch(
            "select repos from workspace where id = $1", api.world.workspace_id
        )
        assert [repo["url"] for repo in workspace["repos"]] == [SHOWN, "git@host:x/y", SHOWN]
        rows = await api.fetch("select resource_ref ->> 'url' as url from project_resource")
        assert sorted(row["url"] for row in rows) == ["http://h/x", SHOWN]
