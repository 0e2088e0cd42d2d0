"""Attacks on the way in: ended sessions, strangers at the sign-in code, forged addresses, repeats."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from structlog.testing import capture_logs

from server.store.queries import Connection
from shared.ids import PERSONAL_TOKEN, hash_token, mint_token, new_id
from shared.wire import frame
from tests.support.api import Api, open_api
from tests.support.postgres import open_test_database
from tests.support.rows import World, make_session, make_world
from tests.support.server import RunningServer, open_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.postgres


# --- sessions -------------------------------------------------------------------------------------


@asynccontextmanager
async def two_servers() -> AsyncIterator[tuple[RunningServer, RunningServer, World]]:
    async with (
        open_test_database() as (database, _),
        open_server(database) as one,
        open_server(database) as two,
    ):
        yield one, two, await make_world(database)


async def me(server: RunningServer, token: str) -> int:
    async with server.client(token) as client:
        return (await client.get("/api/me")).status_code


@asynccontextmanager
async def signed_in(server: RunningServer, token: str) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that was signed in by a link of the token's owner."""
    async with server.client(token) as owner:
        made = (await owner.post("/auth/link")).json()
    async with server.client() as browser:
        assert (await browser.get(made["url"])).status_code == 303
        browser.headers["x-csrf-token"] = browser.cookies["multica_csrf"]
        yield browser


async def test_a_cookie_copied_before_the_sign_out_is_dead_in_every_process() -> None:
    async with two_servers() as (one, two, world), signed_in(one, world.token) as browser:
        stolen = browser.cookies["multica_auth"]
        assert [await me(one, stolen), await me(two, stolen)] == [200, 200]
        path = f"/ws?workspace_id={world.workspace_id}"
        async with two.socket(path, headers=[("cookie", f"multica_auth={stolen}")]) as page:
            assert (await browser.post("/auth/logout")).status_code == 200
            assert await me(one, stolen) == 401
            await eventually(lambda: page.closed is not None, seconds=5)

        async def dead() -> bool:
            return await me(two, stolen) == 401

        await eventually(dead, seconds=3)


async def test_a_session_ends_with_the_personal_token_it_was_made_with() -> None:
    async with two_servers() as (one, two, world):
        async with one.client(world.token) as owner:
            made = (await owner.post("/api/tokens", json={"name": "lent"})).json()
        async with signed_in(one, made["token"]) as browser, one.client() as other:
            handed = (await browser.post("/api/cli-token")).json()["token"]  # by a session
            direct = await session_by(one, made["token"])
            unused = await link_by(one, direct)
            for token in (browser.cookies["multica_auth"], handed, direct):
                assert [await me(one, token), await me(two, token)] == [200, 200]
            async with one.client(world.token) as owner:
                await owner.delete(f"/api/tokens/{made['id']}")
            for token in (browser.cookies["multica_auth"], handed, direct):
                assert await me(one, token) == 401
            assert (await other.get(unused)).headers["location"] == "/login?spent=1"
            assert await me(one, world.token) == 200


async def session_by(server: RunningServer, token: str) -> str:
    async with server.client(token) as client:
        return str((await client.post("/api/cli-token")).json()["token"])


async def link_by(server: RunningServer, token: str) -> str:
    async with server.client(token) as client:
        return str((await client.post("/auth/link")).json()["url"])


async def test_a_session_made_while_its_token_was_being_revoked_is_dead_too() -> None:
    async with two_servers() as (one, _, world):
        token = mint_token(PERSONAL_TOKEN)

        async def lend(conn: Connection) -> None:
            await conn.execute(
                "insert into personal_access_token (user_id, token_hash, token_prefix, name)"
                " values ($1, $2, 'mul_', 't')",
                world.user_id,
                hash_token(token),
            )

        await one.services.database.write(lend)
        session = await session_by(one, token)
        # As if the revocation had not seen the session: its row is still there.
        await one.services.database.write(
            lambda conn: conn.execute(
                "update personal_access_token set revoked = true where token_hash = $1",
                hash_token(token),
            )
        )
        assert await me(one, session) == 401
        async with one.client(token) as thief:  # whom this process still remembers
            for path in ("/api/cli-token", "/auth/link"):
                answer = await thief.post(path)
                assert answer.status_code == 401, path


async def test_signing_out_everywhere_leaves_nothing_but_personal_tokens() -> None:
    async with two_servers() as (one, two, world), signed_in(one, world.token) as browser:
        other = await make_session(one.services.database, one.services.config, world.user_id)
        link = await link_by(one, other)
        stranger = await make_world(one.services.database)
        theirs = await session_by(one, stranger.token)
        listed = (await browser.get("/api/sessions")).json()["sessions"]
        assert [row["current"] for row in listed].count(True) == 1
        assert {row["kind"] for row in listed} == {"link", "code"}
        mine = browser.cookies["multica_auth"]
        no_proof = await browser.delete("/api/sessions", headers={"x-csrf-token": ""})
        assert no_proof.status_code == 403
        assert (await browser.delete("/api/sessions")).json() == {"ended": 2}
        for token in (mine, other):
            assert await me(one, token) == 401
        assert (await one.http.get(link)).headers["location"] == "/login?spent=1"
        assert [await me(one, theirs), await me(two, world.token)] == [200, 200]


async def test_one_session_is_ended_by_its_person_alone() -> None:
    async with two_servers() as (one, _, world):
        stranger = await make_world(one.services.database)
        theirs = await session_by(one, stranger.token)
        async with one.client(stranger.token) as client:
            row = (await client.get("/api/sessions")).json()["sessions"][0]
        async with one.client(world.token) as client:
            refused = await client.delete(f"/api/sessions/{row['id']}")
            assert (refused.status_code, refused.json()["error"]) == (404, "session not found")
        assert await me(one, theirs) == 200
        async with one.client(stranger.token) as client:
            assert (await client.delete(f"/api/sessions/{row['id']}")).status_code == 204
        assert await me(one, theirs) == 401


# --- sign-in codes --------------------------------------------------------------------------------

ANN = "ann@example.org"


@asynccontextmanager
async def asker(
    api: Api, address: str, *, cookies: bool = True
) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody at an address; without cookies as a program has none."""
    jar: Any = {} if cookies else None
    transport = httpx.ASGITransport(api.app, client=(address, 1))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1", cookies=jar
    ) as client:
        yield client


async def ask(client: httpx.AsyncClient, status: int = 200) -> str:
    with capture_logs() as lines:
        answer = await client.post("/auth/send-code", json={"email": ANN})
    assert answer.status_code == status, answer.text
    return next((line["sign_in_code"] for line in lines if "sign_in_code" in line), "")


async def guess(client: httpx.AsyncClient, code: str) -> int:
    answer = await client.post("/auth/verify-code", json={"email": ANN, "code": code})
    return answer.status_code


def wrong(code: str, by: int = 1) -> str:
    return f"{(int(code) + by) % 10**6:06}"


@pytest.mark.parametrize(
    "stranger_at", ["192.0.2.66", "192.0.2.1"], ids=["elsewhere", "same address"]
)
async def test_a_stranger_does_not_use_up_somebodys_code(stranger_at: str) -> None:
    async with (
        open_api(BULLPEN_ALLOW_SIGNUP="true") as api,
        asker(api, "192.0.2.1") as ann,
        asker(api, stranger_at) as stranger,
    ):
        code = await ask(ann)
        for number in range(1, 20):
            assert await guess(stranger, wrong(code, number)) == 400
        assert await guess(ann, wrong(code)) == 400
        assert await guess(ann, code) == (200 if stranger_at != "192.0.2.1" else 429)
        api.app.state.services.limits.verify_code._calls.clear()  # a minute later
        if stranger_at == "192.0.2.1":
            assert await guess(ann, code) == 200


async def test_a_strangers_request_does_not_make_a_code_useless() -> None:
    async with (
        open_api(BULLPEN_ALLOW_SIGNUP="true") as api,
        asker(api, "192.0.2.1") as ann,
        asker(api, "192.0.2.66") as stranger,
    ):
        code = await ask(ann)
        await ask(stranger)
        assert await guess(ann, code) == 200


async def test_a_code_is_worth_nothing_to_who_did_not_ask_for_it() -> None:
    async with (
        open_api(BULLPEN_ALLOW_SIGNUP="true") as api,
        asker(api, "192.0.2.1", cookies=False) as ann,
        asker(api, "192.0.2.66") as stranger,
    ):
        code = await ask(ann)
        ann.cookies.clear()
        assert await guess(stranger, code) == 400
        assert await guess(ann, code) == 200  # without a cookie, from the same address


# --- addresses ------------------------------------------------------------------------------------


async def test_a_forged_host_gets_into_no_link() -> None:
    async with two_servers() as (one, _, world):
        for forged in ({"host": "evil.example"}, {"x-forwarded-host": "evil.example"}):
            async with one.client(world.token, **forged) as client:
                made = (await client.post("/auth/link")).json()
            assert made["url"].startswith(f"{one.url}/auth/link/"), forged
        port = one.url.rpartition(":")[2]
        async with one.client(world.token, host=f"localhost:{port}") as client:
            made = (await client.post("/auth/link")).json()
        assert made["url"].startswith(f"http://localhost:{port}/")  # another name of that address


async def test_behind_tls_links_and_cookies_say_so_if_the_proxy_is_trusted() -> None:
    said = {"x-forwarded-proto": "https", "x-forwarded-host": "pool.example.org"}
    for trusted in (True, False):
        settings = {"BULLPEN_TRUSTED_PROXIES": "192.0.2.0/24"} if trusted else {}
        async with open_api(**settings) as api, asker(api, "192.0.2.1") as proxy:
            proxy.headers.update(said | {"authorization": f"Bearer {api.owner.token}"})
            url = (await proxy.post("/auth/link")).json()["url"]
            assert url.startswith("https://pool.example.org/") is trusted
            opened = await proxy.get(url.replace("https://pool.example.org", ""))
            cookies = opened.headers.get_list("set-cookie")
            assert len(cookies) == 2
            assert all(("Secure" in cookie) is trusted for cookie in cookies)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "http://localhost:5173",
        "http://[::",
        "http://",
        "null",
        "http://[::1",
        "http://a b",
        "//",
        "http://\xff",
        "http://evil.example:99999999",
    ],
)
async def test_a_socket_of_another_page_is_refused_whatever_its_origin(origin: str) -> None:
    async with two_servers() as (one, _, world):
        parts = one.services
        session = await make_session(parts.database, parts.config, world.user_id)
        head = f"cookie: multica_auth={session}\r\norigin: {origin}\r\n"
        answer = await handshake(one, f"/ws?workspace_id={world.workspace_id}", head)
        assert answer.startswith(b"HTTP/1.1 403 "), answer[:200]


async def handshake(server: RunningServer, path: str, head: str) -> bytes:
    """What the server says to an upgrade; `head` are further lines."""
    host, port = server.url.removeprefix("http://").split(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(
            f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nupgrade: websocket\r\n"
            "connection: upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"sec-websocket-version: 13\r\n{head}\r\n".encode("latin-1")
        )
        with trio.fail_after(5):
            return bytes(await stream.receive_some(65536))


async def test_nonsense_in_headers_of_an_upgrade_is_answered(error_log: Any) -> None:
    rng = random.Random(20261130)
    names = (
        "origin", "host", "cookie", "sec-websocket-key", "sec-websocket-version",
        "sec-websocket-protocol", "sec-websocket-extensions", "x-forwarded-host",
        "x-forwarded-proto", "x-forwarded-for", "authorization", "connection", "content-length",
    )  # fmt: skip
    pieces = (
        "http://",
        "[",
        "]",
        "::",
        "%",
        "\xff",
        ";",
        "=",
        ",",
        "\x7f",
        "9" * 30,
        " ",
        "a",
        '"',
    )
    async with two_servers() as (one, _, world):
        for _ in range(150):
            name = rng.choice(names)
            value = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 8)))
            answer = await handshake(
                one, f"/ws?workspace_id={world.workspace_id}", f"{name}: {value}\r\n"
            )
            assert answer.startswith(b"HTTP/1.1 ") or not answer, (name, value, answer[:80])
            assert not answer.startswith(b"HTTP/1.1 5"), (name, value, answer[:80])
        assert (await one.http.get("/health")).status_code == 200


async def test_binary_frames_are_no_defect() -> None:
    async with two_servers() as (one, _, world):
        path = f"/ws?workspace_id={world.workspace_id}"
        async with one.socket(path) as page:  # before it says who it is
            await page.send_message(b"\x00\xff")
            assert "expected auth message" in str(await page.get_message())
        parts = one.services
        session = await make_session(parts.database, parts.config, world.user_id)
        async with one.socket(path, headers=[("cookie", f"multica_auth={session}")]) as page:
            await page.send_message(b"\x00\xff")
            await page.send_message('{"type":"ping"}')
            with trio.fail_after(5):
                assert await page.get_message() == '{"type":"pong"}'
        path = f"/api/daemon/ws?runtime_ids={world.runtime_id}"
        async with one.socket(path, world.token) as daemon:
            await daemon.send_message(b"\x00\xff")
            await daemon.send_message(
                frame.write(frame.HEARTBEAT, {"runtime_id": world.runtime_id})
            )
            with trio.fail_after(5):
                assert "heartbeat_ack" in str(await daemon.get_message())


@pytest.mark.parametrize(
    "head",
    [
        b"POST /auth/logout HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n",
        b"POST /auth/logout HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n",
        b"POST /auth/logout HTTP/1.0\r\ntransfer-encoding: chunked\r\n",
        b"POST /auth/logout HTTP/1.1\r\ncontent-length: 4\r\ncontent-length: 5\r\n",
    ],
)
async def test_a_body_with_two_ends_is_refused_and_the_connection_closed(head: bytes) -> None:
    async with two_servers() as (one, _, _world):
        host, port = one.url.removeprefix("http://").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            smuggled = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"
            await stream.send_all(head + b"host: a\r\n\r\n0\r\n\r\n" + smuggled)
            said = b""
            with trio.fail_after(5):
                while data := await stream.receive_some(65536):
                    said += data
        assert said.startswith(b"HTTP/1.1 400 ")
        assert said.count(b"HTTP/1.1 ") == 1


async def test_absent_and_foreign_workspaces_answer_the_same() -> None:
    async with open_api() as api:
        answers = [
            await api.stranger.refused(404, "GET", f"/api/daemon/workspaces/{where}/{what}")
            for where in (api.world.workspace_id, new_id())
            for what in ("repos", "runtime-profiles")
        ]
        assert set(answers) == {"not found"}


async def test_numbers_are_not_open_to_every_process_of_the_machine() -> None:
    async with open_api() as api:
        for path in ("/metrics", "/health/realtime"):
            assert (await api.owner.call("GET", path)).status_code == 404, path
    async with open_api(BULLPEN_METRICS_TOKEN="for the scraper") as api:
        scraper = await api.caller("", "for the scraper", "")
        for path in ("/metrics", "/health/realtime"):
            assert (await api.owner.call("GET", path)).status_code == 401, path
            assert (await scraper.call("GET", path)).status_code == 200, path


@pytest.mark.parametrize("days", [-1, 0, 1.5, 36_501, 1e300, True, "7", [7]])
async def test_a_life_that_makes_no_sense_makes_no_token(days: Any) -> None:
    async with open_api() as api:
        await api.owner.refused(
            400, "POST", "/api/tokens", {"name": "for ever", "expires_in_days": days}
        )
        await api.owner.refused(
            400,
            "POST",
            f"/api/workspaces/{api.world.workspace_id}/daemon-tokens",
            {"daemon_id": "d1", "expires_in_days": days},
        )
        assert len(await api.owner.get("/api/tokens")) == 1
