"""Skills (spec 06 §12): what people teach their agents."""

from __future__ import annotations

from typing import Any

import pytest

from server import code_hosts
from tests.support.api import Api, open_api
from tests.support.rows import make_agent

pytestmark = pytest.mark.postgres

NOBODY = "00000000-0000-4000-8000-000000000000"


async def make(api: Api, **body: Any) -> Any:
    return await api.owner.ok(201, "POST", "/api/skills", {"name": "deploy"} | body)


@pytest.mark.spec("06 §12", "POST /api/skills")
@pytest.mark.spec("06 §12", "GET /api/skills/{id}")
@pytest.mark.spec("06 §12", "GET /api/skills")
async def test_a_skill_is_shown_whole_and_in_lists_without_its_text() -> None:
    async with open_api() as api:
        made = await make(
            api,
            description="Deploy safely",
            content="main\0 content",
            config={"origin": {"type": "x"}},
            files=[
                {"path": "rules.md", "content": "rules"},
                {"path": "Skill.MD", "content": "ignored"},
                {"path": "a/b.md"},
            ],
        )
        summary = {
            "id": made["id"],
            "workspace_id": api.world.workspace_id,
            "name": "deploy",
            "description": "Deploy safely",
            "config": {"origin": {"type": "x"}},
            "created_by": api.world.user_id,
            "created_at": made["created_at"],
            "updated_at": made["updated_at"],
        }
        files = [
            {
                "id": file["id"],
                "skill_id": made["id"],
                "path": path,
                "content": content,
                "created_at": made["created_at"],
                "updated_at": made["created_at"],
            }
            for file, (path, content) in zip(
                made["files"], [("a/b.md", ""), ("rules.md", "rules")], strict=True
            )
        ]
        assert made == summary | {"content": "main content", "files": files}
        assert await api.member.get(f"/api/skills/{made['id']}") == made
        await make(api, name="audit")
        listed = await api.member.get("/api/skills")
        assert [skill["name"] for skill in listed] == ["audit", "deploy"]
        assert listed[1] == summary
        assert api.events("skill:created")[0].payload == {"skill": made}
        assert await api.stranger.refused(404, "GET", f"/api/skills/{made['id']}")
        assert await api.stranger.get("/api/skills") == []


@pytest.mark.spec("06 §12", "PUT /api/skills/{id}")
async def test_changing_a_skill() -> None:
    async with open_api() as api:
        made = await make(api, content="old", files=[{"path": "a.md", "content": "a"}])
        path = f"/api/skills/{made['id']}"
        changed = await api.owner.ok(200, "PUT", path, {"content": "new", "files": None})
        assert (changed["content"], changed["name"]) == ("new", "deploy")
        assert [file["path"] for file in changed["files"]] == ["a.md"], "null keeps the files"
        changed = await api.owner.ok(
            200, "PUT", path, {"files": [{"path": "b.md", "content": "b"}, {"path": "a.md"}]}
        )
        assert [(f["path"], f["content"]) for f in changed["files"]] == [
            ("a.md", ""),
            ("b.md", "b"),
        ]
        assert changed["content"] == "new"
        changed = await api.owner.ok(200, "PUT", path, {"files": []})
        assert changed["files"] == []
        assert (await api.member.get(path))["files"] == []
        await make(api, name="other")
        assert await api.owner.refused(409, "PUT", path, {"name": "other"})
        assert await api.member.refused(403, "PUT", path, {"name": "mine"})
        assert await api.owner.refused(404, "PUT", f"/api/skills/{NOBODY}", {})


@pytest.mark.spec("06 §12", "DELETE /api/skills/{id}")
async def test_deleting_a_skill() -> None:
    async with open_api() as api:
        made = await make(api)
        path = f"/api/skills/{made['id']}"
        assert await api.member.refused(403, "DELETE", path)
        await api.owner.ok(204, "DELETE", path)
        assert [e.payload for e in api.events("skill:deleted")] == [{"skill_id": made["id"]}]
        assert await api.owner.refused(404, "DELETE", path)


@pytest.mark.spec("06 §12", "GET /api/skills/{id}/files")
@pytest.mark.spec("06 §12", "PUT /api/skills/{id}/files")
@pytest.mark.spec("06 §12", "DELETE /api/skills/{id}/files/{file_id}")
async def test_files_of_a_skill() -> None:
    async with open_api() as api:
        made = await make(api)
        path = f"/api/skills/{made['id']}/files"
        first = await api.owner.ok(200, "PUT", path, {"path": "a.md", "content": "1"})
        again = await api.owner.ok(200, "PUT", path, {"path": "a.md", "content": "2"})
        assert (first["id"], again["content"]) == (again["id"], "2")
        assert await api.member.get(path) == [again]
        assert await api.owner.refused(400, "PUT", path, {"path": "skill.md", "content": ""})
        long = await api.owner.refused(400, "PUT", path, {"path": "x" * 300, "content": ""})
        assert "file name too long" in str(long)
        both = await api.owner.refused(400, "PUT", path, {"path": "a.md/b", "content": ""})
        assert "'a.md' is a file, and a directory of 'a.md/b'" in str(both)
        assert await api.member.refused(403, "PUT", path, {"path": "b.md", "content": ""})
        await api.owner.ok(204, "DELETE", f"{path}/{first['id']}")
        assert await api.owner.refused(404, "DELETE", f"{path}/{first['id']}")
        assert await api.member.get(path) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "  "},
        {"name": "x" * 256},
        {"name": "x", "files": {}},
        {"name": "x", "files": [1]},
        {"name": "x", "files": [{"path": 1}]},
        {"name": "x", "files": [{"path": "/etc/passwd"}]},
        {"name": "x", "files": [{"path": "y" * 300}]},
        {"name": "x", "files": [{"path": "a"}, {"path": "a/b"}]},
        {"name": "x", "files": [{"path": "../x"}]},
        {"name": "x", "files": [{"path": f"{n}.md"} for n in range(129)]},
        {"name": "x", "content": "x" * (1024 * 1024 + 1)},
        {"name": "x", "config": []},
    ],
)
async def test_skills_that_are_refused(body: dict[str, Any]) -> None:
    async with open_api() as api:
        assert await api.owner.refused(400, "POST", "/api/skills", body)


async def test_two_skills_cannot_have_one_name() -> None:
    async with open_api() as api:
        await make(api)
        assert "deploy" in await api.owner.refused(409, "POST", "/api/skills", {"name": "deploy"})


@pytest.mark.spec("06 §10.2", "GET /api/agents/{id}/skills")
@pytest.mark.spec("06 §10.2", "PUT /api/agents/{id}/skills")
@pytest.mark.spec("06 §10.2", "POST /api/agents/{id}/skills/add")
async def test_an_agents_skills() -> None:
    async with open_api() as api:
        one, two = await make(api, name="one"), await make(api, name="two")
        agent_id = api.world.agent_id
        path = f"/api/agents/{agent_id}/skills"
        assert await api.member.get(path) == []
        given = await api.owner.ok(200, "PUT", path, {"skill_ids": [two["id"], one["id"]]})
        assert [skill["name"] for skill in given] == ["one", "two"]
        assert "content" not in given[0]
        assert (await api.member.get(f"/api/agents/{agent_id}"))["skills"] == [
            {"id": one["id"], "name": "one", "description": ""},
            {"id": two["id"], "name": "two", "description": ""},
        ]
        given = await api.owner.ok(200, "PUT", path, {"skill_ids": [one["id"]]})
        assert [skill["name"] for skill in given] == ["one"]
        for _ in range(2):
            given = await api.owner.ok(200, "POST", f"{path}/add", {"skill_ids": [two["id"]]})
            assert [skill["name"] for skill in given] == ["one", "two"]
        assert api.events("agent:status")[-1].payload == {"agent_id": agent_id, "skills": given}
        assert await api.owner.refused(404, "PUT", path, {"skill_ids": [NOBODY]})
        assert await api.owner.refused(400, "POST", f"{path}/add", {})
        assert await api.member.refused(403, "PUT", path, {"skill_ids": []})
        assert await api.owner.ok(200, "PUT", path, {}) == []


async def test_skills_of_a_private_agent_are_as_private() -> None:
    async with open_api() as api:
        world = api.world
        hidden = await api.run(
            lambda conn: make_agent(
                conn,
                world.workspace_id,
                world.runtime_id,
                visibility="private",
                owner_id=world.user_id,
            )
        )
        assert await api.member.refused(403, "GET", f"/api/agents/{hidden}/skills")


@pytest.mark.spec("06 §12", "POST /api/skills/import")
async def test_a_skill_is_imported_and_meets_another_of_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [code_hosts.Found(name="tidy", description="d", content="one", files={"a.md": "x"})]

    async def fetch(_: code_hosts.Source) -> code_hosts.Found:
        return found[0]

    monkeypatch.setattr(code_hosts, "fetch_skill", fetch)
    async with open_api() as api:
        body = {"url": "https://github.com/o/r"}
        made = await api.member.ok(201, "POST", "/api/skills/import", body)
        assert (made["name"], made["content"]) == ("tidy", "one")
        assert [file["path"] for file in made["files"]] == ["a.md"]
        assert made["config"]["origin"]["url"] == "https://github.com/o/r"
        answer = await api.member.call("POST", "/api/skills/import", body)
        assert (answer.status_code, answer.json()["existing_skill"]["id"]) == (409, made["id"])
        found[0] = code_hosts.Found(name="tidy", description="d", content="two", files={})
        for way, status, says in (
            ("fail", 409, "conflict"),
            ("skip", 200, "skipped"),
            ("overwrite", 200, "updated"),
            ("rename", 201, "created"),
        ):
            sent = body | {"on_conflict": way}
            done = await api.member.ok(status, "POST", "/api/skills/import", sent)
            assert done["status"] == says
            assert done["existing_skill"]["id"] == made["id"]
        assert done["skill"]["name"] == "tidy-2"
        assert (await api.member.get(f"/api/skills/{made['id']}"))["content"] == "two"
        for bad in ({"url": "https://gitlab.com/o/r"}, {"url": ""}, body | {"on_conflict": "x"}):
            await api.member.refused(400, "POST", "/api/skills/import", bad)


@pytest.mark.spec("06 §12", "GET /api/skills/search")
async def test_searching_a_catalogue_says_that_there_is_none() -> None:
    async with open_api() as api:
        answer = await api.member.call("GET", "/api/skills/search", params={"q": "x"})
        assert answer.status_code == 502
        assert answer.json()["code"] == "upstream_unavailable"
        assert "bullpen skill import" in answer.json()["error"]
