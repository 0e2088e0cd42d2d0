"""Account, tokens, workspaces, members (spec 06 §2.4, §2.5, §4; 01 §2.6)."""

from __future__ import annotations

import re

import pytest

from server.consequences import TokensRevoked
from shared.ids import hash_token
from tests.support.api import open_api

pytestmark = pytest.mark.postgres

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.mark.spec("06 §2.4", "GET /api/me")
@pytest.mark.spec("06 §2.4", "PATCH /api/me")
async def test_me_is_whole_and_changes_only_what_is_sent() -> None:
    async with open_api() as api:
        me = await api.owner.get("/api/me")
        assert STAMP.fullmatch(me.pop("created_at"))
        assert STAMP.fullmatch(me.pop("updated_at"))
        assert me == {
            "id": api.world.user_id,
            "name": "Dana",
            "email": me["email"],
            "avatar_url": None,
            "language": None,
            "timezone": None,
            "onboarded_at": None,
            "onboarding_questionnaire": {},
            "starter_content_state": None,
            "profile_description": "Writes tests.",
        }
        body = {"timezone": "Europe/Vienna", "language": "ja", "unknown": 1, "name": None}
        changed = await api.owner.ok(200, "PATCH", "/api/me", body)
        assert (changed["timezone"], changed["language"]) == ("Europe/Vienna", "ja")
        assert (changed["name"], changed["profile_description"]) == ("Dana", "Writes tests.")
        cleared = await api.owner.ok(200, "PATCH", "/api/me", {"timezone": ""})
        assert cleared["timezone"] is None
        assert cleared["language"] == "ja"


@pytest.mark.parametrize(
    "body",
    [
        {"name": "  "},
        {"name": 7},
        {"language": "xx"},
        {"timezone": "Mars/Olympus"},
        {"timezone": "../../etc/passwd"},
        {"timezone": "Europe"},
        {"profile_description": "x" * 2001},
    ],
)
async def test_me_refuses(body: object) -> None:
    async with open_api() as api:
        await api.owner.refused(400, "PATCH", "/api/me", body)


@pytest.mark.spec("06 §2.5", "POST /api/tokens")
@pytest.mark.spec("06 §2.5", "GET /api/tokens")
@pytest.mark.spec("06 §2.5", "DELETE /api/tokens/{id}")
async def test_tokens_live_from_minting_to_revoking() -> None:
    async with open_api() as api:
        made = await api.owner.ok(
            201, "POST", "/api/tokens", {"name": " laptop ", "expires_in_days": 30}
        )
        token = made.pop("token")
        assert re.fullmatch(r"mul_[0-9a-f]{40}", token)
        assert made == {
            "id": made["id"],
            "name": "laptop",
            "token_prefix": token[:12],
            "expires_at": made["expires_at"],
            "last_used_at": None,
            "created_at": made["created_at"],
        }
        endless = await api.owner.ok(201, "POST", "/api/tokens", {"name": "ci"})
        assert endless["expires_at"] is None
        listed = await api.owner.get("/api/tokens")
        assert [entry["name"] for entry in listed] == ["ci", "laptop", "test"]
        assert "token" not in listed[0]

        minted = await api.caller(api.world.user_id, token, api.world.workspace_id)
        assert (await minted.get("/api/me"))["id"] == api.world.user_id
        for _ in range(2):  # idempotent
            await api.owner.ok(204, "DELETE", f"/api/tokens/{made['id']}")
        assert TokensRevoked((hash_token(token),)) in api.told
        await minted.refused(401, "GET", "/api/me")
        assert len(await api.owner.get("/api/tokens")) == 2


async def test_a_token_of_somebody_else_cannot_be_revoked() -> None:
    async with open_api() as api:
        made = await api.owner.ok(201, "POST", "/api/tokens", {"name": "mine"})
        await api.stranger.ok(204, "DELETE", f"/api/tokens/{made['id']}")
        assert made["id"] in {entry["id"] for entry in await api.owner.get("/api/tokens")}


@pytest.mark.spec("01 §2.6", "POST /api/tokens/current/renew")
async def test_renewing_extends_only_in_the_last_week() -> None:
    async with open_api() as api:
        renew = ("POST", "/api/tokens/current/renew", {})
        assert await api.owner.ok(200, *renew) == {"expires_at": "", "renewed": False}

        made = await api.owner.ok(201, "POST", "/api/tokens", {"name": "t", "expires_in_days": 30})
        caller = await api.caller(api.world.user_id, made["token"], api.world.workspace_id)
        assert await caller.ok(200, *renew) == {
            "expires_at": made["expires_at"],
            "renewed": False,
        }
        await api.run(
            lambda conn: conn.execute(
                "update personal_access_token set expires_at = now() + interval '6 days'"
                " where id = $1",
                made["id"],
            )
        )
        renewed = await caller.ok(200, *renew)
        assert renewed["renewed"] is True
        assert renewed["expires_at"] > made["expires_at"]
        again = await caller.ok(200, *renew)
        assert again == {"expires_at": renewed["expires_at"], "renewed": False}


async def test_agents_get_no_credentials_and_change_no_settings() -> None:
    async with open_api() as api:
        agent = await api.agent()
        here = f"/api/workspaces/{api.world.workspace_id}"
        assert (await agent.get("/api/me"))["id"] == api.world.user_id
        await agent.refused(403, "POST", "/api/tokens", {"name": "mine"})
        await agent.refused(403, "GET", "/api/tokens")
        await agent.refused(403, "DELETE", f"/api/tokens/{api.world.user_id}")
        await agent.refused(403, "PATCH", "/api/me", {"name": "x"})
        await agent.refused(403, "POST", "/api/workspaces", {"name": "x", "slug": "x-y"})
        await agent.refused(403, "PUT", here, {"name": "x"})
        text = await agent.refused(400, "POST", "/api/tokens/current/renew", {})
        assert text == "only personal access tokens can be renewed"
        assert [w["id"] for w in await agent.get("/api/workspaces")] == [api.world.workspace_id]
        await agent.refused(403, "GET", f"/api/workspaces/{api.elsewhere.workspace_id}")
        assert len(await agent.get(f"{here}/members")) == 2


@pytest.mark.spec("06 §4", "GET /api/workspaces")
@pytest.mark.spec("06 §4", "POST /api/workspaces")
@pytest.mark.spec("06 §4", "GET /api/workspaces/{id}")
@pytest.mark.spec("06 §4", "GET /api/workspaces/{id}/members")
async def test_workspaces_are_made_and_read_whole() -> None:
    async with open_api() as api:
        made = await api.owner.ok(
            201, "POST", "/api/workspaces", {"name": "Ünder 9 the Sea", "slug": "Under-Sea"}
        )
        assert made == {
            "id": made["id"],
            "name": "Ünder 9 the Sea",
            "slug": "under-sea",
            "description": None,
            "context": None,
            "settings": {},
            "repos": [],
            "issue_prefix": "NDE",
            "avatar_url": None,
            "created_at": made["created_at"],
            "updated_at": made["updated_at"],
        }
        assert await api.owner.get(f"/api/workspaces/{made['id']}") == made
        assert await api.owner.get(f"/api/workspaces/{made['id']}/") == made
        listed = await api.owner.get("/api/workspaces")
        assert [w["id"] for w in listed] == [api.world.workspace_id, made["id"]]
        members = await api.owner.get(f"/api/workspaces/{made['id']}/members")
        (me,) = members
        assert me == {
            "id": me["id"],
            "workspace_id": made["id"],
            "user_id": api.world.user_id,
            "role": "owner",
            "created_at": me["created_at"],
            "name": "Dana",
            "email": me["email"],
            "avatar_url": None,
        }
        await api.owner.refused(409, "POST", "/api/workspaces", {"name": "x", "slug": "under-sea"})
        digits = {"name": "42", "slug": "no-letters"}
        assert (await api.owner.ok(201, "POST", "/api/workspaces", digits))["issue_prefix"] == "WS"


@pytest.mark.parametrize("slug", ["", "a b", "-a", "a--b", "a_b", "settings", "ü", "a" * 300, None])
async def test_slugs_are_checked(slug: str | None) -> None:
    async with open_api() as api:
        await api.owner.refused(400, "POST", "/api/workspaces", {"name": "x", "slug": slug})


@pytest.mark.spec("06 §4", "PUT /api/workspaces/{id}")
@pytest.mark.spec("06 §4", "PATCH /api/workspaces/{id}")
async def test_workspace_settings_change_what_is_sent() -> None:
    async with open_api() as api:
        here = f"/api/workspaces/{api.world.workspace_id}"
        repos = [
            {"url": " https://example.test/a.git ", "description": "A", "token": "secret"},
            {"url": "git@example.test:team/b.git"},
            {"url": "https://example.test/a.git"},
        ]
        changed = await api.owner.ok(
            200, "PATCH", here, {"repos": repos, "settings": {"k": [1]}, "issue_prefix": "abc"}
        )
        assert changed["repos"] == [
            {"url": "https://example.test/a.git", "description": "A"},
            {"url": "git@example.test:team/b.git"},
        ]
        assert (changed["settings"], changed["issue_prefix"]) == ({"k": [1]}, "ABC")
        assert changed["name"] == "Bullpen"
        again = await api.owner.ok(200, "PUT", here, {"context": "Be kind", "slug": "other"})
        assert again["slug"] == api.world.slug
        assert again["repos"] == changed["repos"]
        (first, second) = api.events("workspace:updated")
        assert first.payload == {"workspace": changed}
        assert (second.actor_type, second.actor_id) == ("member", api.world.user_id)
        for repo in ({"url": "ftp://x/y"}, {"url": ""}, {"url": "http://["}, {}, "x"):
            await api.owner.refused(400, "PUT", here, {"repos": [repo]})
        await api.owner.refused(400, "PUT", here, {"name": ""})
        await api.member.refused(403, "PUT", here, {"name": "Mine"})


async def test_foreign_workspaces_do_not_exist() -> None:
    async with open_api() as api:
        foreign = f"/api/workspaces/{api.elsewhere.workspace_id}"
        for method, path in (("GET", foreign), ("PUT", foreign), ("GET", f"{foreign}/members")):
            assert await api.owner.refused(404, method, path, {}) == "workspace not found"
        await api.owner.refused(400, "GET", "/api/workspaces/bullpen")
