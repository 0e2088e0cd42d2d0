"""Who may come in where: the table of spec 01 §2.1 and the rules of §2.3 and §2.4."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import attrs
import httpx
import jwt
import pytest

from server.consequences import TokensRevoked
from server.database import Database
from server.store.queries import Connection
from server.web import auth
from shared import times
from shared.ids import hash_token, mint_token, new_id
from shared.wire.event import Event
from tests.support.postgres import open_test_database
from tests.support.rows import (
    World,
    insert,
    make_session,
    make_task,
    make_token,
    make_user,
    make_world,
)
from tests.support.server import SECRET, RunningServer, open_server

pytestmark = pytest.mark.postgres

USER_ROUTE = "/api/me"
WORKSPACE_ROUTE = "/api/issues"
DAEMON_ROUTE = "/api/daemon/workspaces/{workspace}/repos"


@attrs.frozen(kw_only=True)
class Rig:
    server: RunningServer
    database: Database
    world: World

    async def token(self, kind: str, *, life: float = 3600.0) -> str:
        """A token of a kind for the world's user, valid for `life` seconds."""
        ends = times.now() + timedelta(seconds=life)
        world, token = self.world, mint_token(kind if kind.endswith("_") else "xxx_")

        async def unit(conn: Connection) -> None:
            if kind == "mul_":
                await conn.execute(
                    "insert into personal_access_token (user_id, token_hash, token_prefix, name,"
                    " expires_at) values ($1, $2, 'mul_', 'test', $3)",
                    world.user_id, hash_token(token), ends,
                )  # fmt: skip
            if kind == "mdt_":
                await insert(
                    conn, "daemon_token", workspace_id=world.workspace_id, daemon_id="d1",
                    token_hash=hash_token(token), expires_at=ends,
                )  # fmt: skip
            if kind == "mat_":
                task_id = await make_task(conn, world)
                await conn.execute(
                    "insert into task_token (token_hash, task_id, agent_id, workspace_id, user_id,"
                    " expires_at) values ($1, $2, $3, $4, $5, $6)",
                    hash_token(token), task_id, world.agent_id, world.workspace_id, world.user_id,
                    ends,
                )  # fmt: skip

        await self.database.write(unit)
        if kind == "jwt":
            config = attrs.evolve(self.server.services.config, session_ttl=life)
            return await make_session(self.database, config, world.user_id)
        return token

    async def get(self, path: str, token: str = "", **headers: str) -> httpx.Response:
        async with self.server.client(token, **headers) as client:
            return await client.get(path.format(workspace=self.world.workspace_id))


def session(user_id: Any, *, life: float = 3600.0, secret: str = SECRET, **claims: Any) -> str:
    body = {"sub": user_id, "email": "e", "name": "n", "exp": time.time() + life, "iat": 0}
    return jwt.encode(body | claims, secret, algorithm="HS256")


@asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    async with open_test_database() as (database, _), open_server(database) as server:
        yield Rig(server=server, database=database, world=await make_world(database))


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]


async def test_each_kind_of_token_opens_the_doors_of_the_table() -> None:
    refused = (401, "invalid token")
    table: dict[str, tuple[Any, Any]] = {  # kind: user routes, daemon routes
        "mul_": (200, 200),
        "mdt_": (refused, 200),
        "mat_": (200, refused),
        "mcn_": (refused, refused),
        "jwt": (200, 200),
    }
    async with open_rig() as rig:
        for kind, (on_user, on_daemon) in table.items():
            token = await rig.token(kind)
            for path, wanted in ((USER_ROUTE, on_user), (DAEMON_ROUTE, on_daemon)):
                got = await rig.get(path, token)
                found: Any = got.status_code if wanted == 200 else error_of(got)
                assert found == wanted, f"{kind} on {path}: {got.text}"


async def test_expired_tokens_are_refused() -> None:
    async with open_rig() as rig:
        for kind in ("mul_", "mat_", "jwt"):
            response = await rig.get(USER_ROUTE, await rig.token(kind, life=-1))
            assert error_of(response) == (401, "invalid token"), kind
        response = await rig.get(DAEMON_ROUTE, await rig.token("mdt_", life=-1))
        assert error_of(response) == (401, "invalid daemon token")


async def test_user_errors_are_json_called_plain_text_and_daemon_errors_json() -> None:
    async with open_rig() as rig:
        response = await rig.get(USER_ROUTE)
        assert error_of(response) == (401, "missing authorization")
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        response = await rig.get(DAEMON_ROUTE)
        assert error_of(response) == (401, "missing authorization header")
        assert response.headers["content-type"] == "application/json"
        response = await rig.get(DAEMON_ROUTE, authorization="Basic abc")
        assert error_of(response) == (401, "invalid authorization format")
        response = await rig.get(USER_ROUTE, authorization="Basic abc")
        assert error_of(response) == (401, "missing authorization"), "such a header is no header"


async def test_sessions_must_be_signed_by_us_unexpired_and_for_somebody() -> None:
    async with open_rig() as rig:
        me = rig.world.user_id
        other = session(me, secret="x" * 40)
        unsigned = jwt.encode({"sub": me, "exp": time.time() + 60}, "", algorithm="none")
        endless = jwt.encode({"sub": me}, SECRET, algorithm="HS256")
        forged = session(me)  # signed by us, but never opened
        for token in (other, unsigned, endless, forged, "nonsense", "a.b.c", session(new_id())):
            assert error_of(await rig.get(USER_ROUTE, token)) == (401, "invalid token"), token
        for subject in ("", " ", 7, None, "somebody"):
            token = jwt.encode({"sub": subject, "exp": time.time() + 60}, SECRET, algorithm="HS256")
            assert error_of(await rig.get(USER_ROUTE, token)) == (401, "invalid claims")
        strong = jwt.encode({"sub": me, "exp": time.time() + 60}, SECRET * 2, algorithm="HS512")
        assert (await rig.get(USER_ROUTE, strong)).status_code == 401


async def test_a_revoked_token_is_dead_at_once_although_it_is_cached() -> None:
    async with open_rig() as rig:
        token = await rig.token("mul_")
        assert (await rig.get(USER_ROUTE, token)).status_code == 200
        await rig.database.write(
            lambda conn: conn.execute("update personal_access_token set revoked = true")
        )
        rig.server.services.hub.announce([TokensRevoked((hash_token(token),))])
        assert (await rig.get(USER_ROUTE, token)).status_code == 401


async def test_a_token_is_looked_up_once_and_its_use_noted() -> None:
    async with open_rig() as rig:
        token = await rig.token("mul_")
        for _ in range(3):
            assert (await rig.get(USER_ROUTE, token)).status_code == 200
        hits = await rig.database.read(
            lambda conn: conn.fetchval(
                "select count(*) from personal_access_token where last_used_at is not null"
                " and token_hash = $1",
                hash_token(token),
            )
        )
        assert hits == 1


async def test_a_look_up_under_way_while_the_token_is_revoked_is_not_kept() -> None:
    async with open_rig() as rig:
        token_hash = hash_token(await rig.token("mul_"))
        cache = rig.server.services.access

        async def look_up() -> Any:
            cache.consequence(TokensRevoked((token_hash,)))
            return _identity()

        await cache.identity(token_hash, look_up)
        assert await cache.identity(token_hash, _nothing) is None


def _identity() -> Any:
    from server.web.access import Identity

    return Identity(user_id=new_id())


async def _nothing() -> None:
    return None


# --- workspaces -----------------------------------------------------------------------------------


async def test_the_workspace_is_chosen_by_slug_before_id_and_query_before_header() -> None:
    async with open_rig() as rig:
        world, token = rig.world, rig.world.token
        right = (f"?workspace_slug={world.slug}", f"?workspace_id={world.workspace_id}")
        for query in right:
            assert (await rig.get(WORKSPACE_ROUTE + query, token)).status_code == 200, query
        headers = ({"x-workspace-slug": world.slug}, {"x-workspace-id": world.workspace_id.upper()})
        for header in headers:
            assert (await rig.get(WORKSPACE_ROUTE, token, **header)).status_code == 200, header
        wins = await rig.get(WORKSPACE_ROUTE + right[0], token, **{"x-workspace-slug": "nope"})
        assert wins.status_code == 200
        loses = await rig.get(WORKSPACE_ROUTE + right[1], token, **{"x-workspace-slug": "nope"})
        assert error_of(loses) == (404, "workspace not found"), "a slug beats an id"

        nothing = await rig.get(WORKSPACE_ROUTE, token)
        assert error_of(nothing) == (400, "workspace_id or workspace_slug is required")
        malformed = await rig.get(WORKSPACE_ROUTE + "?workspace_id=7", token)
        assert malformed.status_code == 400
        unknown = await rig.get(WORKSPACE_ROUTE + f"?workspace_id={new_id()}", token)
        assert error_of(unknown) == (404, "workspace not found")


async def test_strangers_are_told_that_the_workspace_does_not_exist() -> None:
    async with open_rig() as rig:

        async def unit(conn: Connection) -> str:
            return await make_token(conn, await make_user(conn))

        stranger = await rig.database.write(unit)
        query = f"?workspace_id={rig.world.workspace_id}"
        assert error_of(await rig.get(WORKSPACE_ROUTE + query, stranger)) == (
            404,
            "workspace not found",
        )
        assert (
            await rig.get(f"/api/workspaces/{rig.world.workspace_id}", stranger)
        ).status_code == 404
        assert error_of(await rig.get(DAEMON_ROUTE, stranger)) == (404, "not found")


async def test_a_task_token_acts_in_its_own_workspace_whatever_the_request_says() -> None:
    async with open_rig() as rig:
        other = await make_world(rig.database)
        token = await rig.token("mat_")
        response = await rig.get(
            WORKSPACE_ROUTE + f"?workspace_slug={other.slug}", token, **{"x-user-id": other.user_id}
        )
        assert response.status_code == 200
        response = await rig.get(f"/api/workspaces/{other.workspace_id}", token)
        assert error_of(response) == (403, "task token is bound to a different workspace")


async def test_agents_may_not_make_credentials() -> None:
    async with open_rig() as rig, rig.server.client(await rig.token("mat_")) as agent:
        for path in ("/api/cli-token", "/auth/link", "/api/tokens"):
            response = await agent.post(path, json={"name": "mine"})
            assert error_of(response) == (
                403,
                "this endpoint is only available to human actors",
            ), path


@pytest.mark.parametrize("named", ["both", "agent", "foreign"])
async def test_headers_make_no_agent(named: str) -> None:
    async with open_rig() as rig:
        world = rig.world
        task_id = await rig.database.write(lambda conn: make_task(conn, world))
        headers = {"x-agent-id": world.agent_id, "x-actor-source": "task_token"}
        if named == "both":
            headers["x-task-id"] = task_id
        if named == "foreign":
            headers |= {
                "x-task-id": task_id,
                "x-agent-id": (await make_world(rig.database)).agent_id,
            }
        headers["x-workspace-id"] = world.workspace_id
        async with rig.server.client(world.token, **headers) as client:
            made = await client.post("/api/issues", json={"title": "who"})
        assert made.status_code == 201, made.text
        assert made.json()["creator_type"] == "member"


async def test_a_change_of_members_is_seen_at_once() -> None:
    async with open_rig() as rig:
        world = rig.world
        query = f"?workspace_id={world.workspace_id}"
        assert (await rig.get(WORKSPACE_ROUTE + query, world.token)).status_code == 200
        await rig.database.write(lambda conn: conn.execute("delete from member"))
        payload = {"user_id": world.user_id, "workspace_id": world.workspace_id, "member_id": "m"}
        rig.server.services.hub.announce(
            [Event(type="member:removed", payload=payload, workspace_id=world.workspace_id)]
        )
        assert (await rig.get(WORKSPACE_ROUTE + query, world.token)).status_code == 404


# --- cookies, CSRF and links ----------------------------------------------------------------------


async def test_a_link_signs_a_browser_in_once() -> None:
    async with open_rig() as rig, rig.server.client(rig.world.token) as person:
        made = (await person.post("/auth/link")).json()
        async with rig.server.client() as browser:
            assert (await browser.head(made["url"])).status_code == 204, "a preview spends nothing"
            opened = await browser.get(made["url"])
            assert opened.status_code == 303
            assert opened.headers["location"] == "/"
            given = opened.headers.get_list("set-cookie")
            assert any("multica_auth=" in c and "HttpOnly" in c for c in given)
            assert all("samesite=strict" in c.lower() for c in given)
            assert (await browser.get(USER_ROUTE)).json()["id"] == rig.world.user_id

            refused = await browser.post("/api/cli-token")
            assert error_of(refused) == (403, "CSRF validation failed")
            proof = {"x-csrf-token": browser.cookies["multica_csrf"]}
            assert "token" in (await browser.post("/api/cli-token", headers=proof)).json()
            signed_out = await browser.post("/auth/logout", headers=proof)
            assert signed_out.status_code == 200
            assert "multica_auth" not in browser.cookies
        async with rig.server.client() as second:
            for path in (made["url"], "/auth/link/guess"):
                await assert_spent(second, path)


async def assert_spent(browser: httpx.AsyncClient, url: str) -> None:
    response = await browser.get(url)
    assert response.headers["location"] == "/login?spent=1"
    assert "set-cookie" not in response.headers


async def test_an_old_link_is_refused() -> None:
    async with open_rig() as rig, rig.server.client(rig.world.token) as person:
        made = (await person.post("/auth/link")).json()
        await rig.database.write(
            lambda conn: conn.execute("update sign_in_link set expires_at = now() - interval '1 s'")
        )
        await assert_spent(rig.server.http, made["url"])


async def test_the_bearer_header_wins_over_the_cookie_and_needs_no_csrf() -> None:
    async with open_rig() as rig, rig.server.client(rig.world.token) as client:
        client.cookies.set("multica_auth", "nonsense")
        assert (await client.post("/api/cli-token")).status_code == 200


@pytest.mark.fast
async def test_csrf_proofs_belong_to_one_session() -> None:
    proof = auth.mint_csrf("session")
    assert auth.csrf_valid("session", proof)
    assert not auth.csrf_valid("other", proof)
    for wrong in ("", ".", "zz.00", proof[:-1], proof.split(".")[0], "00" * 16 + ".é"):
        assert not auth.csrf_valid("session", wrong)


# --- the transport --------------------------------------------------------------------------------


async def test_unknown_routes_wrong_methods_and_trailing_slashes() -> None:
    async with open_rig() as rig, rig.server.client(rig.world.token) as client:
        unknown = await client.get("/api/nope")
        assert (unknown.status_code, unknown.text) == (404, "404 page not found\n")
        wrong = await client.delete("/api/me")
        assert (wrong.status_code, wrong.text) == (405, "")
        assert (await client.get("/api/workspaces/")).status_code == 200


async def test_bad_bodies_get_one_error() -> None:
    async with open_rig() as rig, rig.server.client(rig.world.token) as client:
        for body in (b"", b"{", b"[]", b"\xff", b'{"name": 7}', b"1"):
            response = await client.post("/api/tokens", content=body)
            assert error_of(response) == (400, "invalid request body"), body[:20]
        response = await client.post("/api/tokens", content=b"[" * 100000)
        deep = "invalid request body: nested deeper than 100 levels"
        assert error_of(response) == (400, deep)


async def test_a_body_over_the_limit_is_413_and_the_connection_serves_on() -> None:
    async with (
        open_test_database() as (database, _),
        open_server(database, max_body=100_000) as server,
    ):
        world = await make_world(database)
        async with server.client(world.token) as client:
            response = await client.post("/api/tokens", content=b" " * 3_000_000)
            assert error_of(response) == (413, "request body too large")

            async def endless() -> AsyncIterator[bytes]:  # noqa: ASYNC900 - httpx wants one
                for _ in range(50):
                    yield b" " * 65536

            response = await client.post("/api/tokens", content=endless())
            assert response.status_code == 413
            assert (await client.get("/api/me")).status_code == 200


async def test_every_answer_carries_the_security_headers() -> None:
    async with open_rig() as rig:
        for path in ("/health", "/api/me", "/nope", "/login"):
            headers = (await rig.server.http.get(path)).headers
            assert "default-src 'self'" in headers["content-security-policy"], path
            assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.spec("01 §3.21", "GET /health")
@pytest.mark.spec("01 §3.21", "GET /healthz")
@pytest.mark.spec("01 §3.21", "GET /readyz")
async def test_health_readiness_and_metrics() -> None:
    async with open_rig() as rig:
        http = rig.server.http
        assert (await http.get("/health")).json() == {"status": "ok"}
        for path in ("/readyz", "/healthz"):
            ready = await http.get(path)
            assert ready.json() == {"status": "ok", "checks": {"db": "ok", "migrations": "ok"}}
        assert (await http.get("/metrics")).status_code == 404  # nobody set a token
