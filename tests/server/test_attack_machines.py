"""Attacks on machines: other members, tokens of other machines, and registrations under a known id.

What is tried here worked in the reference and in Bullpen before: each of these calls was answered
with somebody's secrets or changed somebody's machine.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from starlette.routing import Route, WebSocketRoute

from server.consequences import TokensRevoked
from server.store.queries import Connection
from server.web.routes import make_app
from shared.ids import TASK_TOKEN, hash_token, mint_token, new_id
from tests.support.api import Api, Caller, open_api
from tests.support.rows import (
    insert,
    make_agent,
    make_issue,
    make_runtime,
    make_task,
    make_token,
    make_user,
)

pytestmark = pytest.mark.postgres

SECRET = "sk-of-the-owner"


@attrs.frozen(kw_only=True)
class Scene:
    """The owner's machine at work: a private agent with secrets, a running and a queued task."""

    daemon_id: str
    runtime_id: str
    agent_id: str
    running: str
    queued: str
    issue_id: str
    chat_id: str
    run_id: str


async def set_up(api: Api) -> Scene:
    world = api.world

    async def unit(conn: Connection) -> Scene:
        daemon_id = await conn.fetchval(
            "select daemon_id from agent_runtime where id = $1", world.runtime_id
        )
        agent_id = await make_agent(
            conn,
            world.workspace_id,
            world.runtime_id,
            owner_id=world.user_id,
            visibility="private",
            custom_env={"KEY": SECRET},
            mcp_config={"key": SECRET},
        )
        issue = await make_issue(conn, world)
        there = {"agent_id": agent_id, "runtime_id": world.runtime_id}
        running = await make_task(conn, world, status="running", issue_id=issue.id, **there)
        await conn.execute(
            "insert into task_message (task_id, seq, type, content) values ($1, 1, 'text', $2)",
            running,
            SECRET,
        )
        chat_id, run_id = new_id(), new_id()
        await make_task(conn, world, status="running", chat_session_id=chat_id, **there)
        await make_task(conn, world, status="running", autopilot_run_id=run_id, **there)
        issue2 = await make_issue(conn, world)
        queued = await make_task(conn, world, issue_id=issue2.id, **there)
        return Scene(
            daemon_id=daemon_id,
            runtime_id=world.runtime_id,
            agent_id=agent_id,
            running=running,
            queued=queued,
            issue_id=issue.id,
            chat_id=chat_id,
            run_id=run_id,
        )

    return await api.run(unit)


async def machine_caller(api: Api, daemon_id: str) -> Caller:
    """A machine's token, made by the owner for that daemon id."""
    path = f"/api/workspaces/{api.world.workspace_id}/daemon-tokens"
    made = await api.owner.ok(201, "POST", path, {"daemon_id": daemon_id})
    return await api.caller("", made["token"], api.world.workspace_id)


async def admin_caller(api: Api) -> Caller:
    async def unit(conn: Connection) -> tuple[str, str]:
        user_id = await make_user(conn, "Ada")
        await insert(
            conn, "member", workspace_id=api.world.workspace_id, user_id=user_id, role="admin"
        )
        return user_id, await make_token(conn, user_id)

    user_id, token = await api.run(unit)
    return await api.caller(user_id, token, api.world.workspace_id)


BODIES: dict[str, Any] = {
    "/messages": {"messages": [{"seq": 9, "type": "text", "content": "forged"}]},
    "/session": {"session_id": "forged"},
    "{runtime_id}/usage": {"entries": []},
    "/usage": {"usage": [{"model": "m", "input_tokens": 10**9}]},
    "/progress": {"summary": "forged"},
    "/fail": {"error": "forged"},
    "/complete": {"output": "forged"},
    "/skill-bundles/resolve": {"skills": []},
    "/result": {"status": "completed"},
}

SPOKEN = {
    "/api/daemon/register",
    "/api/daemon/deregister",
    "/api/daemon/heartbeat",
    "/api/daemon/claims",
    "/api/daemon/workspaces/{workspace_id}/repos",
    "/api/daemon/workspaces/{workspace_id}/runtime-profiles",
    "/api/daemon/issues/{issue_id}/gc-check",
    "/api/daemon/ws",
}
"""Routes that name no machine's row in their path; each has a test of its own."""


def routes_of_a_machine(api: Api) -> list[tuple[str, str]]:
    """Every daemon route that the server has, but for those with a test of their own."""
    app = make_app(api.app.state.services)
    found = []
    for route in app._app.routes:  # type: ignore[attr-defined]
        path = getattr(route, "path", "")
        if not path.startswith("/api/daemon/") or path in SPOKEN:
            continue
        assert not isinstance(route, WebSocketRoute), path
        assert isinstance(route, Route)
        found += [(method, path) for method in (route.methods or ()) - {"HEAD"}]
    assert len(found) >= 24
    return found


async def state(api: Api) -> Any:
    """All that a call to a machine's route could have changed."""
    tables = ("agent_task_queue", "task_message", "task_usage", "task_token", "agent", "machine")
    found = {table: await api.fetch(f"select * from {table} order by 1, 2") for table in tables}
    return {name: [dict(row) for row in rows] for name, rows in found.items()}


async def test_every_route_of_a_machine_is_absent_for_everybody_else() -> None:
    async with open_api() as api:
        scene = await set_up(api)
        others = {
            "member": api.member,
            "admin": await admin_caller(api),
            "stranger": api.stranger,
            "other machine": await machine_caller(api, "another"),
        }
        before = await state(api)
        walked = 0
        for method, path in routes_of_a_machine(api):
            names = {
                "runtime_id": scene.runtime_id,
                "task_id": scene.running,
                "session_id": scene.chat_id,
                "run_id": scene.run_id,
                "request_id": new_id().replace("-", ""),
            }
            body = next((b for end, b in BODIES.items() if path.endswith(end)), {})
            sent = () if method == "GET" else (body,)
            for who, caller in others.items():
                answer = await caller.call(method, path.format(**names), *sent)
                text = answer.json().get("error", "")
                where = f"{who}: {method} {path}"
                assert answer.status_code == 404, f"{where}: {answer.status_code} {answer.text}"
                assert SECRET not in answer.text, where
                absent = await caller.call(
                    method, path.format(**{name: new_id() for name in names}), *sent
                )
                if who != "stranger":
                    assert text == absent.json()["error"], f"{where} tells that it is there"
                else:
                    assert text == "not found", where
                walked += 1
        assert await state(api) == before
        print(f"{walked} calls")


async def test_a_member_gets_nothing_of_somebody_elses_machine() -> None:
    async with open_api() as api:
        scene = await set_up(api)
        # claims for many at once
        own = await api.run(
            lambda conn: make_runtime(conn, api.world.workspace_id, api.member.user_id)
        )
        wanted = {"runtimes": [{"runtime_id": scene.runtime_id}, {"runtime_id": own}], "slots": 5}
        told = await api.member.ok(200, "POST", "/api/daemon/claims", wanted)
        assert told["claims"][0]["error"] == "runtime not found"
        assert told["claims"][0].get("tasks") in (None, [])
        assert "error" not in told["claims"][1]
        # signing off, and signs of life
        for caller in (api.member, api.stranger, await machine_caller(api, "another")):
            body = {"runtime_ids": [scene.runtime_id]}
            assert await caller.ok(200, "POST", "/api/daemon/deregister", body)
            beat = {"runtime_id": scene.runtime_id}
            error = await caller.refused(404, "POST", "/api/daemon/heartbeat", beat)
            assert error == ("not found" if caller is api.stranger else "runtime not found")
        rows = await api.fetch("select status from agent_runtime where id = $1", scene.runtime_id)
        assert rows[0]["status"] == "online"
        # the owner's own daemon does all of it
        claim = f"/api/daemon/runtimes/{scene.runtime_id}/tasks/claim"
        task = (await api.owner.ok(200, "POST", claim, {}))["task"]
        assert task["id"] == scene.queued
        assert task["agent"]["custom_env"] == {"KEY": SECRET}
        rows = await api.owner.get(f"/api/daemon/tasks/{scene.running}/messages")
        assert rows[0]["content"] == SECRET


async def test_a_workspaces_absence_and_foreignness_are_one() -> None:
    async with open_api() as api:
        for name in ("repos", "runtime-profiles"):
            for workspace_id in (new_id(), api.elsewhere.workspace_id):
                path = f"/api/daemon/workspaces/{workspace_id}/{name}"
                assert await api.member.refused(404, "GET", path) == "not found"


# --- registering ----------------------------------------------------------------------------------


def registration(api: Api, daemon_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "workspace_id": api.world.workspace_id,
        "daemon_id": daemon_id,
        "device_name": "box",
        "runtimes": [{"name": "C", "type": "claude"}],
    } | changes


async def register(caller: Caller, body: dict[str, Any], status: int = 200) -> Any:
    return await caller.ok(status, "POST", "/api/daemon/register", body)


async def test_naming_a_machine_does_not_make_it_mine() -> None:
    async with open_api() as api:
        scene = await set_up(api)
        shown = next(
            r for r in await api.member.get("/api/runtimes") if r["id"] == scene.runtime_id
        )
        before = await state(api)
        for changes in (
            {},
            {"runtimes": [{"name": "X", "type": "codex"}]},
            {"machine_key": "guessed", "take_over": True},
            {"machine_key": "", "take_over": True},
        ):
            told = await register(api.member, registration(api, shown["daemon_id"], **changes), 403)
            assert "Dana" in told["error"], "it names whom to ask"
            assert "hand" in told["error"]
        assert await state(api) == before
        # nor does an id that only looks like it
        told = await register(api.member, registration(api, shown["daemon_id"].upper()), 403)
        assert "Dana" in told["error"]
        # the owner registers as ever, and a machine of one's own is no matter
        await register(api.owner, registration(api, shown["daemon_id"]))
        [mine] = (await register(api.member, registration(api, "mine")))["runtimes"]
        assert mine["owner_id"] == api.member.user_id


async def test_what_a_machine_was_called_before_brings_nobody_elses_agents() -> None:
    async with open_api() as api:
        scene = await set_up(api)
        body = registration(api, "mine", legacy_daemon_ids=[scene.daemon_id])
        [mine] = (await register(api.member, body))["runtimes"]
        claim = f"/api/daemon/runtimes/{mine['id']}/tasks/claim"
        assert (await api.member.ok(200, "POST", claim, {}))["task"] is None
        rows = await api.fetch("select runtime_id from agent where id = $1", scene.agent_id)
        assert rows[0]["runtime_id"] == scene.runtime_id
        # nor does a machine's token bring another machine's of the same owner
        box = await machine_caller(api, "box")
        await register(box, registration(api, "box", legacy_daemon_ids=[scene.daemon_id]))
        rows = await api.fetch("select runtime_id from agent where id = $1", scene.agent_id)
        assert rows[0]["runtime_id"] == scene.runtime_id
        # its owner's daemon does
        body = registration(api, "new", legacy_daemon_ids=[scene.daemon_id])
        [new] = (await register(api.owner, body))["runtimes"]
        rows = await api.fetch("select runtime_id from agent where id = $1", scene.agent_id)
        assert rows[0]["runtime_id"] == new["id"]


async def test_a_machines_token_is_for_that_machine_alone() -> None:
    async with open_api() as api:
        scene = await set_up(api)
        box = await machine_caller(api, "box")
        [runtime] = (await register(box, registration(api, "box")))["runtimes"]
        assert await box.ok(200, "POST", f"/api/daemon/runtimes/{runtime['id']}/tasks/claim", {})
        for other in ("elsewhere", scene.daemon_id):
            told = await register(box, registration(api, other), 403)
            assert "made for the machine box" in told["error"]
        claim = f"/api/daemon/runtimes/{scene.runtime_id}/tasks/claim"
        assert await box.refused(404, "POST", claim, {}) == "runtime not found"
        # an admin cannot make a token that would act as the owner's machine
        admin = await admin_caller(api)
        path = f"/api/workspaces/{api.world.workspace_id}/daemon-tokens"
        assert "Dana" in await admin.refused(403, "POST", path, {"daemon_id": scene.daemon_id})


# --- changing hands -------------------------------------------------------------------------------


async def test_a_machine_that_proves_itself_moves_and_brings_nobodys_agents() -> None:
    async with open_api() as api:
        scene = await set_up(api)
        proven = registration(api, scene.daemon_id, machine_key="k1")
        await register(api.owner, proven)
        assert "k1" not in str(await api.fetch("select * from machine"))
        assert "k1" not in (await api.member.call("GET", "/api/runtimes")).text
        # the proof alone moves nothing: a daemon that only lost its runtimes does not take over
        await register(api.member, proven, 403)
        await register(api.member, proven | {"machine_key": "k2", "take_over": True}, 403)
        [runtime] = (await register(api.member, proven | {"take_over": True}))["runtimes"]
        assert runtime["id"] == scene.runtime_id
        assert runtime["owner_id"] == api.member.user_id
        assert runtime["visibility"] == "private"
        # what ran there has ended for its owner, and its token with it; what waits is not given out
        rows = await api.fetch("select status from agent_task_queue where id = $1", scene.running)
        assert rows[0]["status"] == "failed"
        claim = f"/api/daemon/runtimes/{scene.runtime_id}/tasks/claim"
        assert (await api.member.ok(200, "POST", claim, {}))["task"] is None
        assert await api.owner.refused(404, "POST", claim, {}) == "runtime not found"
        # its owner puts the agent on a machine of theirs, and its task follows
        there = (await register(api.owner, registration(api, "other")))["runtimes"][0]["id"]
        body = {"runtime_id": there}
        await api.owner.ok(200, "PUT", f"/api/agents/{scene.agent_id}", body)
        claim = f"/api/daemon/runtimes/{there}/tasks/claim"
        assert (await api.owner.ok(200, "POST", claim, {}))["task"] is not None
        # and cannot put it back where it is not wanted
        body = {"runtime_id": scene.runtime_id}
        assert await api.owner.refused(403, "PUT", f"/api/agents/{scene.agent_id}", body)


async def test_an_opened_machine_works_for_those_who_were_there_before() -> None:
    async with open_api() as api:
        scene = await set_up(api)
        proven = registration(api, scene.daemon_id, machine_key="k")
        await register(api.owner, proven)
        await register(api.member, proven | {"take_over": True})
        path = f"/api/runtimes/{scene.runtime_id}"
        await api.member.ok(200, "PATCH", path, {"visibility": "public"})
        claim = f"/api/daemon/runtimes/{scene.runtime_id}/tasks/claim"
        assert (await api.member.ok(200, "POST", claim, {}))["task"] is not None


async def test_handing_a_machine_over() -> None:
    async with open_api() as api:
        scene = await set_up(api)
        token = await machine_caller(api, scene.daemon_id)
        await api.run(
            lambda conn: conn.execute(
                "insert into task_token (token_hash, task_id, agent_id, workspace_id, user_id,"
                " expires_at) values ($1, $2, $3, $4, $5, now() + interval '1 day')",
                hash_token(mint_token(TASK_TOKEN)),
                scene.running,
                scene.agent_id,
                api.world.workspace_id,
                api.world.user_id,
            )
        )
        await register(api.owner, registration(api, scene.daemon_id, machine_key="k"))
        path = f"/api/runtimes/{scene.runtime_id}/hand-over"
        mine = {"user_id": api.member.user_id}
        assert await api.member.refused(403, "POST", path, mine)
        assert await (await api.agent()).refused(403, "POST", path, mine)
        assert await api.stranger.refused(404, "POST", path, mine) == "runtime not found"
        outsider = {"user_id": api.elsewhere.user_id}
        assert "member" in await api.owner.refused(400, "POST", path, outsider)
        assert await api.owner.refused(400, "POST", path, {})
        admin = await admin_caller(api)
        along = mine | {"include_agents": True}
        assert await admin.refused(403, "POST", path, along)

        moved = await admin.ok(200, "POST", path, mine)
        assert [r["owner_id"] for r in moved["runtimes"]] == [api.member.user_id]
        assert scene.agent_id in {agent["id"] for agent in moved["agents_waiting"]}
        assert moved["tasks_stopped"] >= 3
        assert any(isinstance(told, TokensRevoked) for told in api.told)
        # neither the former owner's daemon nor the machine's token comes back in
        claim = f"/api/daemon/runtimes/{scene.runtime_id}/tasks/claim"
        assert await api.owner.refused(404, "POST", claim, {}) == "runtime not found"
        assert await token.refused(401, "POST", claim, {}) == "invalid daemon token"
        again = registration(api, scene.daemon_id, machine_key="k", take_over=True)
        assert "Mo" in (await register(api.owner, again, 403))["error"]
        assert (await api.member.ok(200, "POST", claim, {}))["task"] is None
        assert await api.member.refused(409, "POST", path, mine)

        # back by its new owner: who was there before is welcome again
        moved = await api.member.ok(200, "POST", path, {"user_id": api.world.user_id})
        assert (await api.owner.ok(200, "POST", claim, {}))["task"] is not None


async def test_handing_over_with_agents_and_directories() -> None:
    async with open_api() as api:
        scene = await set_up(api)
        project = await api.owner.ok(201, "POST", "/api/projects", {"title": "P"})
        ref = {"local_path": "/home/dana/p", "daemon_id": scene.daemon_id}
        resource = {"resource_type": "local_directory", "resource_ref": ref}
        resources = f"/api/projects/{project['id']}/resources"
        await api.owner.ok(201, "POST", resources, resource)
        path = f"/api/runtimes/{scene.runtime_id}/hand-over"
        body = {"user_id": api.member.user_id, "include_agents": True, "include_directories": True}
        moved = await api.owner.ok(200, "POST", path, body)
        assert scene.agent_id in {agent["id"] for agent in moved["agents_given"]}
        assert (await api.owner.get(resources))["total"] == 1
        claim = f"/api/daemon/runtimes/{scene.runtime_id}/tasks/claim"
        assert (await api.member.ok(200, "POST", claim, {}))["task"] is not None
        # without the owner's word they do not go along
        back = await api.member.ok(200, "POST", path, {"user_id": api.world.user_id})
        assert [row["local_path"] for row in back["directories_removed"]] == ["/home/dana/p"]
        assert (await api.owner.get(resources))["total"] == 0


# --- what is asked of machines --------------------------------------------------------------------


async def test_only_its_owner_asks_a_machine() -> None:
    async with open_api() as api:
        scene = await set_up(api)
        admin = await admin_caller(api)
        path = f"/api/runtimes/{scene.runtime_id}"
        asked: list[tuple[str, Any]] = [
            ("update", {"target_version": "9.9.9"}),
            ("models", {}),
            ("ping", {}),
            ("local-skills", {}),
            ("local-skills/import", {"skill_key": "k"}),
        ]
        for kind, body in asked:
            for caller in (api.member, admin, await api.agent()):
                assert await caller.refused(403, "POST", f"{path}/{kind}", body)
        assert not await api.fetch("select * from runtime_request")
        await api.owner.ok(200, "PATCH", path, {"visibility": "public"})
        for kind, body in asked:
            if kind in {"models", "ping"}:
                await api.member.ok(200, "POST", f"{path}/{kind}", body)
            else:
                assert await api.member.refused(403, "POST", f"{path}/{kind}", body)
            assert await api.owner.ok(200, "POST", f"{path}/{kind}", body)


async def test_only_its_owner_names_a_machines_directories() -> None:
    async with open_api() as api:
        scene = await set_up(api)
        project = await api.owner.ok(201, "POST", "/api/projects", {"title": "P"})
        resources = f"/api/projects/{project['id']}/resources"
        admin, agent = await admin_caller(api), await api.agent()

        def naming(daemon_id: str) -> dict[str, Any]:
            ref = {"local_path": "/home/dana/.ssh", "daemon_id": daemon_id}
            return {"resource_type": "local_directory", "resource_ref": ref}

        for caller in (api.member, admin, agent):
            for daemon_id in (scene.daemon_id, f" {scene.daemon_id.upper()} "):
                body = naming(daemon_id)
                assert await caller.refused(403, "POST", resources, body)
                made = {"title": "Q", "resources": [body]}
                assert await caller.refused(403, "POST", "/api/projects", made)
        assert "no machine" in await api.member.refused(400, "POST", resources, naming("unknown"))
        added = await api.owner.ok(201, "POST", resources, naming(scene.daemon_id))
        # nor is one that its owner has named changed into another
        ref = {"local_path": "/home/dana", "daemon_id": scene.daemon_id}
        path = f"{resources}/{added['id']}"
        for caller in (api.member, admin):
            assert await caller.refused(403, "PUT", path, {"resource_ref": ref})


async def test_a_private_machine_takes_no_agent_of_an_admin() -> None:
    async with open_api() as api:
        own = await api.run(
            lambda conn: make_runtime(conn, api.world.workspace_id, api.member.user_id)
        )
        body = {"name": "Spy", "runtime_id": own}
        assert await api.owner.refused(403, "POST", "/api/agents", body)
        path = f"/api/agents/{api.world.agent_id}"
        assert await api.owner.refused(403, "PUT", path, {"runtime_id": own})
        opened = {"visibility": "public"}
        assert await api.owner.refused(403, "PATCH", f"/api/runtimes/{own}", opened)
        await api.member.ok(200, "PATCH", f"/api/runtimes/{own}", opened)
        made = await api.owner.ok(201, "POST", "/api/agents", body)

        async def queue(conn: Connection) -> None:
            there = {"agent_id": made["id"], "runtime_id": own}
            await make_task(
                conn, api.world, issue_id=(await make_issue(conn, api.world)).id, **there
            )

        await api.run(queue)
        # on somebody else's machine it is still its owner's agent
        claim = f"/api/daemon/runtimes/{own}/tasks/claim"
        token = (await api.member.ok(200, "POST", claim, {}))["task"]["auth_token"]
        rows = await api.fetch(
            "select user_id from task_token where token_hash = $1", hash_token(token)
        )
        assert [row["user_id"] for row in rows] == [api.owner.user_id]
