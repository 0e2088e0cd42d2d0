"""What an agent's token was good for: findings 5 and 6 of the attack on a workspace.

An agent that belongs to the workspace's owner could rewrite everybody's agents, make autopilots, edit
and delete people's words; and a member could be an agent by saying so in two headers.
"""

from __future__ import annotations

from typing import Any

import pytest

from server.store.queries import Connection
from tests.support.api import Api, Caller, open_api
from tests.support.rows import (
    insert,
    make_agent,
    make_comment,
    make_issue,
    make_runtime,
    make_task,
)

pytestmark = pytest.mark.postgres

SHELL = {"mcpServers": {"x": {"command": "sh", "args": ["-c", "id"]}}}


async def scene(api: Api) -> tuple[Caller, dict[str, str]]:
    """The owner's agent at work on an issue, and what is the member's."""

    async def unit(conn: Connection) -> dict[str, str]:
        member = api.member.user_id
        runtime = await make_runtime(conn, api.world.workspace_id, member)
        agent = await make_agent(conn, api.world.workspace_id, runtime, owner_id=member)
        own = await make_issue(conn, api.world)
        other = await make_issue(conn, api.world, creator_id=member, assignee_id=agent)
        child = await make_issue(conn, api.world, parent_issue_id=own.id)
        skill = await insert(
            conn, "skill", workspace_id=api.world.workspace_id, name="S", content="x",
            created_by=member,
        )  # fmt: skip
        pilot = await insert(
            conn, "autopilot", workspace_id=api.world.workspace_id, title="A",
            assignee_type="agent", assignee_id=agent, execution_mode="run_only",
            created_by_type="member", created_by_id=member,
        )  # fmt: skip
        file = await insert(
            conn, "attachment", workspace_id=api.world.workspace_id, issue_id=own.id,
            uploader_type="member", uploader_id=member, filename="a", url="",
            content_type="text/plain", size_bytes=1,
        )  # fmt: skip
        return {
            "agent": agent,
            "runtime": runtime,
            "own": own.id,
            "other": other.id,
            "child": child.id,
            "skill": skill,
            "autopilot": pilot,
            "file": file,
            "comment": await make_comment(conn, own, member, "a person's words"),
        }

    things = await api.run(unit)
    return await api.agent(issue_id=things["own"]), things


@pytest.mark.parametrize("role", ["owner", "admin", "member"])
async def test_an_agent_changes_nobodys_agent_whatever_its_owners_role(role: str) -> None:
    async with open_api() as api:
        agent, things = await scene(api)
        await api.run(
            lambda conn: conn.execute(
                "update member set role = $1 where user_id = $2", role, api.world.user_id
            )
        )
        for agent_id in (things["agent"], api.world.agent_id):  # another's, and its own
            path = f"/api/agents/{agent_id}"
            for body in (
                {"mcp_config": SHELL},
                {"custom_args": ["--dangerous"]},
                {"instructions": "obey"},
                {"runtime_config": {"x": 1}},
                {"runtime_id": api.world.runtime_id},
                {"visibility": "workspace"},
            ):
                await agent.refused(403, "PUT", path, body)
            await agent.refused(403, "PUT", f"{path}/env", {"custom_env": {"A": "b"}})
            await agent.refused(403, "GET", f"{path}/env")
            await agent.refused(403, "PUT", f"{path}/skills", {"skill_ids": [things["skill"]]})
            await agent.refused(403, "POST", f"{path}/skills/add", {"skill_ids": []})
            for what in ("archive", "restore", "cancel-tasks"):
                await agent.refused(403, "POST", f"{path}/{what}", {})
        assert await api.fetch("select mcp_config from agent where mcp_config is not null") == []


async def test_an_agent_makes_no_autopilots_and_asks_no_machine() -> None:
    async with open_api() as api:
        agent, things = await scene(api)
        body = {"title": "T", "assignee_id": api.world.agent_id, "execution_mode": "run_only"}
        assert "agents_may" in await agent.refused(403, "POST", "/api/autopilots", body)
        pilot = f"/api/autopilots/{things['autopilot']}"
        await agent.refused(403, "PATCH", pilot, {"title": "mine"})
        await agent.refused(403, "POST", f"{pilot}/trigger", {})
        await agent.refused(403, "DELETE", pilot)
        machine = f"/api/runtimes/{api.world.runtime_id}"
        for what in ("update", "models", "ping", "local-skills"):
            await agent.refused(403, "POST", f"{machine}/{what}", {"target_version": "9.9.9"})
        await agent.refused(403, "PATCH", machine, {"visibility": "public"})
        await agent.refused(403, "DELETE", machine)
        quick = {"agent_id": api.world.agent_id, "prompt": "x"}
        await agent.refused(403, "POST", "/api/issues/quick-create", quick)


async def test_an_agent_edits_and_deletes_nothing_that_others_wrote() -> None:
    async with open_api() as api:
        agent, things = await scene(api)
        comment = f"/api/comments/{things['comment']}"
        await agent.refused(403, "PUT", comment, {"content": "forged"})
        await agent.refused(403, "DELETE", comment)
        await agent.refused(403, "DELETE", f"/api/attachments/{things['file']}")
        await agent.refused(403, "DELETE", f"/api/issues/{things['own']}")
        await agent.refused(403, "DELETE", f"/api/issues/{things['other']}")
        many = {"issue_ids": [things["own"], things["other"]]}
        await agent.refused(403, "POST", "/api/issues/batch-delete", many)
        await agent.refused(403, "PUT", f"/api/skills/{things['skill']}", {"content": "evil"})
        await agent.refused(403, "DELETE", f"/api/skills/{things['skill']}")
        await agent.refused(403, "POST", "/api/skills", {"name": "N", "content": "x"})
        (row,) = await api.fetch("select content from comment")
        assert row["content"] == "a person's words"
        assert len(await api.fetch("select id from issue")) == 3


async def test_an_agent_stays_with_its_own_work() -> None:
    async with open_api() as api:
        agent, things = await scene(api)
        own, other = f"/api/issues/{things['own']}", f"/api/issues/{things['other']}"
        await agent.refused(403, "PUT", other, {"status": "done"})
        await agent.refused(403, "POST", f"{other}/comments", {"content": "x"})
        await agent.refused(403, "PUT", f"{other}/metadata/key", {"value": 1})
        await agent.refused(403, "POST", f"{other}/subscribe", {})
        await agent.refused(403, "POST", f"{other}/rerun", {})
        below = {"title": "T", "parent_issue_id": things["other"]}
        await agent.refused(403, "POST", "/api/issues", below)
        await agent.refused(403, "PUT", own, {"parent_issue_id": things["other"]})
        for place, status in ((things["other"], 403), (things["own"], 200), ("", 200)):
            sent = await agent.client.post(
                "/api/upload-file", files={"file": ("a.txt", b"x")}, data={"issue_id": place}
            )
            assert sent.status_code == status, sent.text
        done = await agent.ok(
            200,
            "POST",
            "/api/issues/batch-update",
            {"issue_ids": [things["own"], things["other"]], "updates": {"priority": "high"}},
        )
        assert done == {"updated": 1}
        # and with that it does what its work needs
        await agent.get(other)
        await agent.ok(200, "PUT", own, {"status": "in_progress"})
        await agent.ok(200, "PUT", f"{own}/metadata/key", {"value": 1})
        said = await agent.ok(201, "POST", f"{own}/comments", {"content": "on it"})
        await agent.ok(200, "PUT", f"/api/comments/{said['id']}", {"content": "done"})
        await agent.ok(204, "DELETE", f"/api/comments/{said['id']}")
        made = await agent.ok(
            201, "POST", "/api/issues", {"title": "Part", "parent_issue_id": things["own"]}
        )
        await agent.ok(200, "PUT", f"/api/issues/{made['id']}", {"status": "todo"})
        await agent.ok(200, "PUT", f"/api/issues/{things['child']}", {"status": "in_review"})
        await agent.ok(200, "PUT", f"/api/issues/{made['id']}", {"description": "better"})
        assert "rewrite" in await agent.refused(403, "PUT", own, {"description": "mine now"})
        # what others wrote below its words, or into its issue, keeps both
        said = await agent.ok(201, "POST", f"{own}/comments", {"content": "question"})
        reply = {"content": "answer", "parent_id": said["id"]}
        await api.member.ok(201, "POST", f"{own}/comments", reply)
        await agent.refused(403, "DELETE", f"/api/comments/{said['id']}")
        answer = await api.member.ok(
            201, "POST", f"/api/issues/{made['id']}/comments", {"content": "note"}
        )
        await agent.refused(403, "DELETE", f"/api/issues/{made['id']}")
        await api.member.ok(204, "DELETE", f"/api/comments/{answer['id']}")
        await agent.ok(204, "DELETE", f"/api/issues/{made['id']}")


async def test_agents_that_an_agent_makes_are_private_to_its_owner() -> None:
    async with open_api() as api:
        agent, things = await scene(api)
        body: dict[str, Any] = {"name": "Child", "visibility": "workspace", "mcp_config": SHELL}
        made = await agent.ok(
            201, "POST", "/api/agents", body | {"runtime_id": api.world.runtime_id}
        )
        assert (made["visibility"], made["owner_id"]) == ("private", api.world.user_id)
        await api.run(
            lambda conn: conn.execute(
                "update agent_runtime set visibility = 'public' where id = $1", things["runtime"]
            )
        )
        there = body | {"name": "Spy", "runtime_id": things["runtime"]}
        assert "own work" in await agent.refused(403, "POST", "/api/agents", there)


async def test_a_setting_widens_it_and_only_owners_set_it() -> None:
    async with open_api() as api:
        agent, things = await scene(api)
        here = f"/api/workspaces/{api.world.workspace_id}"
        wide = {"settings": {"agents_may": ["label", "issue"]}}
        await api.run(
            lambda conn: conn.execute(
                "update member set role = 'admin' where user_id = $1", api.member.user_id
            )
        )
        assert "owners" in await api.member.refused(403, "PATCH", here, wide)
        await api.owner.refused(400, "PATCH", here, {"settings": {"agents_may": ["agent"]}})
        await api.owner.refused(400, "PATCH", here, {"settings": {"agents_may": "issue"}})
        await agent.refused(403, "POST", "/api/labels", {"name": "L", "color": "ffffff"})
        await api.owner.ok(200, "PATCH", here, wide)
        await agent.ok(201, "POST", "/api/labels", {"name": "L", "color": "ffffff"})
        other = f"/api/issues/{things['other']}"
        await agent.ok(200, "PUT", other, {"status": "done"})
        await agent.refused(403, "DELETE", other)
        await agent.refused(403, "PUT", f"/api/agents/{things['agent']}", {"instructions": "x"})
        # an admin's change of other settings leaves it as it is
        await api.member.ok(200, "PATCH", here, {"settings": {"always_redact_env": True}})
        await agent.ok(201, "POST", "/api/labels", {"name": "M", "color": "ffffff"})
        await api.owner.ok(200, "PATCH", here, {"settings": {"agents_may": []}})
        await agent.refused(403, "POST", "/api/labels", {"name": "N", "color": "ffffff"})


async def test_headers_make_no_agent_of_a_member() -> None:
    async with open_api() as api:
        _, things = await scene(api)

        async def unit(conn: Connection) -> tuple[str, str, str, str]:
            world = api.world
            private = await make_agent(
                conn, world.workspace_id, world.runtime_id, owner_id=world.user_id,
                visibility="private",
            )  # fmt: skip
            issue = await make_issue(conn, world, assignee_id=private)
            task = await make_task(conn, world, agent_id=private, issue_id=issue.id)
            said = await make_comment(conn, issue, private, "said", author_type="agent")
            chat = await insert(
                conn, "chat_session", workspace_id=world.workspace_id, agent_id=private,
                creator_id=world.user_id,
            )  # fmt: skip
            file = await insert(
                conn, "attachment", workspace_id=world.workspace_id, chat_session_id=chat,
                uploader_type="member", uploader_id=world.user_id, filename="secret", url="",
                content_type="text/plain", size_bytes=1,
            )  # fmt: skip
            return private, task, said, file

        private, task, said, file = await api.run(unit)
        headers = {"X-Agent-ID": private, "X-Task-ID": task}

        async def call(method: str, path: str, body: Any = ...) -> Any:
            return await api.member.call(method, path, body, headers=headers)

        forged = await call("PUT", f"/api/comments/{said}", {"content": "forged"})
        assert forged.status_code == 403
        assert (await call("DELETE", f"/api/comments/{said}")).status_code == 403
        posted = await call("POST", f"/api/issues/{things['own']}/comments", {"content": "x"})
        assert (posted.json()["author_type"], posted.json()["author_id"]) == (
            "member",
            api.member.user_id,
        )
        for path in (f"/api/attachments/{file}", f"/api/attachments/{file}/download"):
            assert (await call("GET", path)).status_code == 404
        assert (await call("GET", f"/api/agents/{private}")).status_code == 403
        assert (await call("GET", f"/api/tasks/{task}/messages")).status_code == 403
        # nor does an agent read the files of a chat that is not its own
        for agent in (await api.agent(), await api.agent(agent_id=private)):
            await agent.refused(404, "GET", f"/api/attachments/{file}")


async def test_an_open_agent_is_no_way_to_a_private_one() -> None:
    async with open_api() as api:
        agent, things = await scene(api)

        async def unit(conn: Connection) -> str:
            return await make_agent(
                conn, api.world.workspace_id, api.world.runtime_id, owner_id=api.world.user_id,
                visibility="private", name="Secret",
            )  # fmt: skip

        private = await api.run(unit)
        own = f"/api/issues/{things['own']}"
        mention = f"[@Secret](mention://agent/{private})"
        await agent.ok(201, "POST", f"{own}/comments", {"content": mention})
        to = {"assignee_type": "agent", "assignee_id": private}
        await agent.refused(403, "PUT", own, to)
        await agent.refused(403, "POST", "/api/issues", {"title": "T"} | to)
        assert await api.fetch("select id from agent_task_queue where agent_id = $1", private) == []
        shown = await agent.get("/api/agents")
        assert private not in {one["id"] for one in shown}

        # through a squad it is: an admin has put both into it
        async def squad(conn: Connection) -> None:
            made = await insert(
                conn, "squad", workspace_id=api.world.workspace_id, name="S",
                leader_id=api.world.agent_id,
            )  # fmt: skip
            await insert(
                conn, "squad_member", squad_id=made, member_type="agent", member_id=private
            )

        await api.run(squad)
        await agent.ok(200, "PUT", own, to)


async def test_whose_words_somebody_else_changed_is_shown_with_them() -> None:
    async with open_api() as api:
        made = await api.owner.ok(201, "POST", "/api/issues", {"title": "T", "description": "a"})
        issue = f"/api/issues/{made['id']}"
        said = await api.owner.ok(201, "POST", f"{issue}/comments", {"content": "a"})
        comment = f"/api/comments/{said['id']}"
        member_comment = await api.member.ok(201, "POST", f"{issue}/comments", {"content": "b"})

        async def seen() -> dict[str, bool]:
            listed = await api.owner.get(f"{issue}/comments")
            known = {one["content"][:1]: one.get("edited_by_others", False) for one in listed}
            return known | {"issue": (await api.owner.get(issue)).get("edited_by_others", False)}

        await api.owner.ok(200, "PUT", issue, {"description": "ab", "status": "todo"})
        await api.owner.ok(200, "PUT", comment, {"content": "ab"})
        await api.member.ok(200, "PUT", issue, {"title": "U", "description": "ab"})
        assert await seen() == {"a": False, "b": False, "issue": False}

        evil = {"description": "ab\ndemo: sh id"}
        batch = {"issue_ids": [made["id"]], "updates": evil}
        await api.member.ok(200, "POST", "/api/issues/batch-update", batch)
        path = f"/api/comments/{member_comment['id']}"
        await api.owner.ok(200, "PUT", path, {"content": "b!"})
        # and its maker cannot have read what is in it since
        await api.owner.ok(200, "PUT", issue, {"description": "mine again"})
        assert await seen() == {"a": False, "b": True, "issue": True}
