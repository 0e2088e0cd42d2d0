"""What a claim hands over, by kind of task (spec 01 §3.5, 02 §4.7), and skill bundles (01 §3.7)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from server.dispatch import builtin_skills
from server.store.queries import Connection
from server.store.skills import bundle_of
from shared import codec
from shared.skillbundle import check
from shared.times import now
from shared.wire.task import SkillBundle, SkillRef
from tests.support.api import Api, open_api
from tests.support.rows import (
    insert,
    make_agent,
    make_autopilot_run,
    make_issue,
    make_runtime,
    make_task,
)

pytestmark = pytest.mark.postgres

BY_REF = {"X-Client-Capabilities": "other, skill-bundles-v1"}


async def claim(api: Api, headers: dict[str, str] | None = None) -> Any:
    path = f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/claim"
    answer = await api.owner.ok(200, "POST", path, {}, headers=headers or {})
    return answer["task"]


async def teach(api: Api) -> Any:
    """Give the world's agent two skills."""
    made = [
        await api.owner.ok(
            201,
            "POST",
            "/api/skills",
            {
                "name": "deploy",
                "description": "Deploy safely",
                "content": "main content",
                "files": [{"path": "rules.md", "content": "rules"}],
            },
        ),
        await api.owner.ok(201, "POST", "/api/skills", {"name": "audit", "content": "look"}),
    ]
    ids = [skill["id"] for skill in made]
    path = f"/api/agents/{api.world.agent_id}/skills"
    await api.owner.ok(200, "PUT", path, {"skill_ids": ids})
    return made


@pytest.mark.spec("01 §3.5", "POST /api/daemon/runtimes/{id}/tasks/claim")
async def test_skills_go_whole_to_those_who_do_not_keep_them() -> None:
    async with open_api() as api:
        deploy, audit = await teach(api)
        await api.run(lambda conn: make_task(conn, api.world))
        agent = (await claim(api))["agent"]
        assert "skill_refs" not in agent
        given, builtin = agent["skills"][:2], agent["skills"][2:]
        assert [skill["id"] for skill in builtin] == [""] * len(builtin_skills.BUNDLES)
        assert "hash" not in builtin[0]
        assert "source" not in builtin[0]
        assert given == [
            {"id": audit["id"], "name": "audit", "content": "look"},
            {
                "id": deploy["id"],
                "name": "deploy",
                "description": "Deploy safely",
                "content": "main content",
                "files": [{"path": "rules.md", "content": "rules"}],
            },
        ]


@pytest.mark.spec("01 §3.7", "POST /api/daemon/runtimes/{id}/tasks/{task_id}/skill-bundles/resolve")
async def test_skills_go_by_reference_to_those_who_do_and_are_fetched_by_it() -> None:
    async with open_api() as api:
        deploy, audit = await teach(api)
        await api.run(lambda conn: make_task(conn, api.world))
        task = await claim(api, BY_REF)
        assert "skills" not in task["agent"]
        refs = task["agent"]["skill_refs"][:2]
        assert refs[0] == {
            "id": audit["id"],
            "source": "workspace",
            "name": "audit",
            "hash": refs[0]["hash"],
            "size_bytes": 4,
            "file_count": 0,
        }
        assert refs[1]["files"] == [
            {
                "path": "rules.md",
                "sha256": "sha256:6c621d1a05138a7888d37d9269a9da8e2e11e4aced2f6cfd24b05ab1b9e61bb0",
                "size_bytes": 5,
            }
        ]
        assert (refs[1]["size_bytes"], refs[1]["file_count"]) == (17, 1)

        path = (
            f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/{task['id']}/skill-bundles/resolve"
        )
        answer = await api.owner.ok(200, "POST", path, {"skills": list(reversed(refs))})
        assert [bundle["id"] for bundle in answer["bundles"]] == [deploy["id"], audit["id"]]
        assert answer["bundles"][0] == {
            "id": deploy["id"],
            "source": "workspace",
            "name": "deploy",
            "description": "Deploy safely",
            "hash": refs[1]["hash"],
            "size_bytes": 17,
            "content": "main content",
            "files": [refs[1]["files"][0] | {"content": "rules"}],
        }
        assert (await api.owner.ok(200, "POST", path, {}))["bundles"] == []
        # One that changed since the claim comes as it is now, with the hash it has now.
        await api.owner.ok(200, "PUT", f"/api/skills/{audit['id']}", {"content": "look well"})
        (now,) = (await api.owner.ok(200, "POST", path, {"skills": refs[:1]}))["bundles"]
        assert (now["content"], now["hash"] != refs[0]["hash"]) == ("look well", True)

        for bad in ({"id": " "}, {"source": ""}, {"hash": ""}):
            said = await api.owner.refused(400, "POST", path, {"skills": [refs[0] | bad]})
            assert said == "invalid skill ref"
        await api.owner.ok(204, "DELETE", f"/api/skills/{audit['id']}")
        gone = await api.owner.refused(404, "POST", path, {"skills": refs})
        assert gone == "skill bundle not found"
        await api.owner.ok(200, "POST", f"/api/daemon/tasks/{task['id']}/start", {})
        late = await api.owner.refused(409, "POST", path, {"skills": refs})
        assert late == "task is not preparing"
        assert await api.stranger.refused(404, "POST", path, {"skills": refs}) == "not found"


async def test_every_agent_has_the_skills_that_come_with_the_server() -> None:
    async with open_api() as api:
        await api.run(lambda conn: make_task(conn, api.world))
        task = await claim(api, BY_REF)
        refs = task["agent"]["skill_refs"]
        assert {ref["source"] for ref in refs} == {"builtin"}
        assert refs[0]["id"] == f"builtin:{refs[0]['name']}"
        assert "description" not in refs[0]
        path = (
            f"/api/daemon/runtimes/{api.world.runtime_id}/tasks/{task['id']}/skill-bundles/resolve"
        )
        answer = await api.owner.ok(200, "POST", path, {"skills": refs})
        for ref, bundle in zip(refs, answer["bundles"], strict=True):
            check(codec.structure(bundle, SkillBundle), codec.structure(ref, SkillRef))
        other = {"skills": [refs[0] | {"source": "workspace"}]}
        assert await api.owner.refused(404, "POST", path, other) == "skill bundle not found"
        other = {"skills": [refs[0] | {"source": "elsewhere"}]}
        assert await api.owner.refused(404, "POST", path, other) == "skill bundle not found"


async def test_the_hash_that_is_kept_is_the_one_that_is_checked() -> None:
    async with open_api() as api:
        files = [
            {"path": path, "content": f"{path} ✓\n"} for path in ("b.md", "a/é.md", "a.md", "B")
        ]
        body = {"name": "Größe", "description": "ä\n", "content": "x\r\ny", "files": files}
        skill = await api.owner.ok(201, "POST", "/api/skills", body)
        path = f"/api/skills/{skill['id']}"

        async def agrees() -> str:
            unit = partial(bundles_of, skill_id=skill["id"])
            bundle, kept = await api.run(unit)
            assert kept == (bundle.hash, bundle.size_bytes)
            return str(bundle.hash)

        hashes = [await agrees()]
        for method, where, change in (
            ("PUT", path, {"description": "z"}),
            ("PUT", path, {"name": "Z"}),
            ("PUT", f"{path}/files", {"path": "c.md", "content": "new"}),
            ("PUT", f"{path}/files", {"path": "c.md", "content": "newer"}),
            ("PUT", path, {"content": "c", "files": files[:1]}),
            ("PUT", path, {"files": []}),
        ):
            await api.owner.ok(200, method, where, change)
            hashes.append(await agrees())
        (row,) = await api.fetch(
            "insert into skill_file (skill_id, path, content) values ($1, 'x', 'y') returning id",
            skill["id"],
        )
        hashes.append(await agrees())
        await api.owner.ok(204, "DELETE", f"{path}/files/{row['id']}")
        assert await agrees() == hashes[-2]
        assert len(set(hashes)) == len(hashes)


async def bundles_of(conn: Connection, skill_id: str) -> tuple[SkillBundle, tuple[str, int]]:
    """A skill's bundle, hashed here, and the hash and size kept beside it."""
    row = await conn.fetchrow(
        "select s.*, (select coalesce(jsonb_object_agg(path, content), '{}') from skill_file"
        " where skill_id = s.id) as files from skill s where id = $1",
        skill_id,
    )
    assert row is not None
    return bundle_of(row), (row["hash"], row["size_bytes"])


async def test_a_project_and_its_repositories() -> None:
    async with open_api() as api:
        world = api.world

        async def fill(conn: Connection) -> str:
            await conn.execute(
                "update workspace set repos = $1", [{"url": "https://example.test/all.git"}]
            )
            project_id = await insert(
                conn, "project", workspace_id=world.workspace_id, title="Web", description="Site"
            )
            refs: tuple[tuple[str, dict[str, str]], ...] = (
                ("local_directory", {"local_path": "/src", "daemon_id": "d"}),
                ("github_repo", {"url": "https://example.test/web.git"}),
            )
            for position, (kind, ref) in enumerate(refs):
                await insert(
                    conn,
                    "project_resource",
                    project_id=project_id,
                    workspace_id=world.workspace_id,
                    resource_type=kind,
                    resource_ref=ref,
                    position=position,
                )
            issue = await make_issue(conn, world, project_id=project_id)
            await make_task(conn, world, issue_id=issue.id)
            return project_id

        project_id = await api.run(fill)
        task = await claim(api)
        assert task["repos"] == [{"url": "https://example.test/web.git"}]
        assert (task["project_id"], task["project_title"], task["project_description"]) == (
            project_id,
            "Web",
            "Site",
        )
        assert [
            (one["resource_type"], one["resource_ref"], "label" in one)
            for one in task["project_resources"]
        ] == [
            ("local_directory", {"local_path": "/src", "daemon_id": "d"}, False),
            ("github_repo", {"url": "https://example.test/web.git"}, False),
        ]


async def test_a_squads_leader_is_briefed_and_nobody_else() -> None:
    async with open_api() as api:
        world = api.world
        await api.run(
            lambda conn: conn.execute("update agent set instructions = 'Be brief.', name = 'Lea'")
        )
        squad = await api.owner.ok(
            201, "POST", "/api/squads", {"name": "Crew", "leader_id": world.agent_id}
        )
        await api.owner.ok(
            200, "PUT", f"/api/squads/{squad['id']}", {"instructions": "Ship on Friday."}
        )
        person = {"member_type": "member", "member_id": api.member.user_id, "role": "reviewer"}
        await api.owner.ok(201, "POST", f"/api/squads/{squad['id']}/members", person)

        async def fill(conn: Connection) -> None:
            for kind, who in (("squad", squad["id"]), ("agent", world.agent_id)):
                issue = await make_issue(conn, world, assignee_type=kind, assignee_id=who)
                await make_task(
                    conn, world, issue_id=issue.id, priority=4 if kind == "squad" else 0
                )

        await api.run(fill)
        told = (await claim(api))["agent"]["instructions"]
        assert told.startswith("Be brief.\n\n## You lead a squad")
        assert f"[@Lea](mention://agent/{world.agent_id})" in told
        assert f"[@Mo](mention://member/{api.member.user_id})" in told
        assert '"reviewer"' in told
        assert told.endswith("Ship on Friday.")
        assert (await claim(api))["agent"]["instructions"] == "Be brief."


async def test_a_chat_gives_all_that_was_said_for_this_task() -> None:
    async with open_api() as api:
        world = api.world

        async def fill(conn: Connection) -> str:
            session_id = await insert(
                conn,
                "chat_session",
                workspace_id=world.workspace_id,
                agent_id=world.agent_id,
                creator_id=world.user_id,
                title="Plans",
                session_id="s1",
                work_dir="/w",
                runtime_id=world.runtime_id,
            )
            task_id = await make_task(conn, world, chat_session_id=session_id)
            for text in ("one", " ", "two"):
                message_id = await insert(
                    conn,
                    "chat_message",
                    chat_session_id=session_id,
                    role="user",
                    content=text,
                    task_id=task_id,
                    created_at=now(),  # one transaction has one time of its own
                )
            await insert(
                conn,
                "attachment",
                workspace_id=world.workspace_id,
                chat_message_id=message_id,
                uploader_type="member",
                uploader_id=world.user_id,
                filename="a.png",
                url="/uploads/a",
                content_type="image/png",
                size_bytes=1,
            )
            return session_id

        session_id = await api.run(fill)
        task = await claim(api)
        assert (task["kind"], task["chat_session_id"]) == ("chat", session_id)
        assert task["chat_message"] == "one\n\ntwo"
        assert task["thread_name"] == "Plans"
        assert (task["prior_session_id"], task["prior_work_dir"]) == ("s1", "/w")
        (file,) = task["chat_message_attachments"]
        assert file == {"id": file["id"], "filename": "a.png", "content_type": "image/png"}


async def test_an_autopilots_run() -> None:
    async with open_api() as api:

        async def fill(conn: Connection) -> None:
            run_id = await make_autopilot_run(conn, api.world)
            await conn.execute(
                "update autopilot_run set source = 'webhook', trigger_payload = $1", {"event": "x"}
            )
            await conn.execute("update autopilot set description = 'Every night'")
            await make_task(conn, api.world, autopilot_run_id=run_id)

        await api.run(fill)
        task = await claim(api)
        assert (task["kind"], task["issue_id"]) == ("autopilot", "")
        assert (task["autopilot_title"], task["thread_name"]) == ("Nightly", "Nightly")
        assert task["autopilot_description"] == "Every night"
        assert task["autopilot_source"] == "webhook"
        assert task["autopilot_trigger_payload"] == {"event": "x"}
        assert {"autopilot_id", "autopilot_run_id"} <= set(task)


async def test_a_quick_create_with_project_parent_and_squad() -> None:
    async with open_api() as api:
        world = api.world
        squad = await api.owner.ok(
            201, "POST", "/api/squads", {"name": "Crew", "leader_id": world.agent_id}
        )

        async def fill(conn: Connection) -> tuple[str, str]:
            project_id = await insert(conn, "project", workspace_id=world.workspace_id, title="Web")
            parent = await make_issue(conn, world)
            context = {
                "type": "quick_create",
                "prompt": "make a plan",
                "requester_id": world.user_id,
                "workspace_id": world.workspace_id,
                "project_id": project_id,
                "squad_id": squad["id"],
                "parent_issue_id": parent.id,
                "attachment_ids": [world.user_id],
            }
            await make_task(conn, world, context=context)
            return project_id, parent.id

        project_id, parent_id = await api.run(fill)
        task = await claim(api)
        number = (await api.fetch("select number from issue"))[0]["number"]
        assert task["kind"] == "quick_create"
        assert (task["quick_create_prompt"], task["thread_name"]) == ("make a plan", "make a plan")
        assert task["quick_create_attachment_ids"] == [world.user_id]
        assert (task["project_id"], task["parent_issue_id"]) == (project_id, parent_id)
        assert task["parent_issue_identifier"] == f"BUL-{number}"
        assert (task["squad_id"], task["squad_name"]) == (squad["id"], "Crew")
        assert "## You lead a squad" in task["agent"]["instructions"]


async def test_many_claims_in_one_call_are_shared_out_evenly() -> None:
    async with open_api() as api:
        world = api.world

        async def fill(conn: Connection) -> str:
            other = await make_runtime(conn, world.workspace_id, world.user_id)
            agent_id = await make_agent(conn, world.workspace_id, other)
            for _ in range(3):
                issue = await make_issue(conn, world)
                await make_task(conn, world, issue_id=issue.id)
                await make_task(conn, world, issue_id=issue.id, agent_id=agent_id, runtime_id=other)
            return other

        other = await api.run(fill)
        asked = [{"runtime_id": world.runtime_id, "slots": 5}, {"runtime_id": other, "slots": 5}]
        foreign = {"runtime_id": api.elsewhere.runtime_id}
        gone = {"runtime_id": "00000000-0000-4000-8000-000000000000"}
        path = "/api/daemon/claims"
        body = {"runtimes": [*asked, foreign, gone], "slots": 4}
        answer = await api.owner.ok(200, "POST", path, body)
        assert [len(one["tasks"]) for one in answer["claims"]] == [2, 2, 0, 0]
        assert [one.get("error") for one in answer["claims"]] == [
            None,
            None,
            "not found",
            "runtime not found",
        ]
        tokens = {task["auth_token"] for one in answer["claims"] for task in one["tasks"]}
        assert len(tokens) == 4
        answer = await api.owner.ok(200, "POST", path, {"runtimes": asked, "slots": 4})
        assert [len(one["tasks"]) for one in answer["claims"]] == [1, 1]
        answer = await api.owner.ok(200, "POST", path, {"runtimes": asked})
        assert [one["tasks"] for one in answer["claims"]] == [[], []]
        for bad in ({}, {"runtimes": asked, "slots": 0}, {"runtimes": [{"runtime_id": "x"}]}):
            assert await api.owner.refused(400, "POST", path, bad)
