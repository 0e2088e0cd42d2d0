"""Both websockets, the hub behind them, and the relay between server processes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import pytest
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection

from server.consequences import ProfilesChanged, TaskAvailable, TokensRevoked
from server.database import Database, open_database
from server.push import relay
from server.store.queries import Connection
from server.web import auth
from shared.ids import hash_token, mint_token, new_id
from shared.wire import frame
from shared.wire.event import Event
from tests.support.postgres import open_test_database
from tests.support.rows import (
    World,
    insert,
    make_issue,
    make_runtime,
    make_task,
    make_token,
    make_user,
    make_world,
)
from tests.support.server import RunningServer, open_server

pytestmark = pytest.mark.postgres

LIMIT = 5.0


@attrs.frozen(kw_only=True)
class Rig:
    server: RunningServer
    database: Database
    url: str
    world: World

    def news(self, kind: str = "issue:created", **payload: Any) -> Event:
        return Event(
            type=kind,
            payload=payload,
            workspace_id=self.world.workspace_id,
            actor_type="member",
            actor_id=self.world.user_id,
        )

    def cookie(self) -> list[tuple[str, str]]:
        session = auth.mint_session(self.server.services.config, self.world.user_id, "e", "n")
        return [("cookie", f"{auth.AUTH_COOKIE}={session}")]


@asynccontextmanager
async def open_rig(**settings: Any) -> AsyncIterator[Rig]:
    async with (
        open_test_database() as (database, url),
        open_server(database, **settings) as server,
    ):
        yield Rig(server=server, database=database, url=url, world=await make_world(database))


async def take(socket: WebSocketConnection) -> Any:
    with trio.fail_after(LIMIT):
        return json.loads(await socket.get_message())


async def close_code(socket: WebSocketConnection) -> int:
    """With what the server closes the socket; what it says before is skipped."""
    with trio.fail_after(LIMIT):
        while True:
            try:
                await socket.get_message()
            except ConnectionClosed as closed:
                return closed.reason.code if closed.reason else 0


async def rejected(rig: Rig, path: str, token: str = "", headers: Any = None) -> tuple[int, str]:
    """Status and error of a websocket that must not open."""
    with pytest.RaisesGroup(ConnectionRejected, flatten_subgroups=True) as group:
        async with rig.server.socket(path, token, headers):
            pass
    error = group.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ConnectionRejected)
    return error.status_code, json.loads(error.body or b"{}").get("error", "")


async def sign_in(socket: WebSocketConnection, token: str) -> Any:
    await socket.send_message(json.dumps({"type": "auth", "payload": {"token": token}}))
    return await take(socket)


# --- browsers -------------------------------------------------------------------------------------


async def test_a_page_with_a_cookie_is_live_at_once() -> None:
    async with open_rig() as rig:
        path = f"/ws?workspace_slug={rig.world.slug}"
        async with rig.server.socket(path, headers=rig.cookie()) as page:
            await page.send_message('{"type":"ping"}')
            assert await take(page) == {"type": "pong"}, "no auth_ack comes before"
            rig.server.services.hub.announce([rig.news(issue={"id": "i"})])
            assert await take(page) == {
                "type": "issue:created",
                "payload": {"issue": {"id": "i"}},
                "actor_type": "member",
                "actor_id": rig.world.user_id,
            }


@pytest.mark.spec("01 §5.1", "WS /ws")
async def test_a_client_without_a_cookie_says_who_it_is_in_the_first_frame() -> None:
    async with open_rig() as rig:
        path = f"/ws?workspace_id={rig.world.workspace_id}"
        async with rig.server.socket(path) as client:
            assert await sign_in(client, rig.world.token) == {"type": "auth_ack"}
            rig.server.services.hub.announce([rig.news(a=1)])
            assert (await take(client))["payload"] == {"a": 1}


async def test_what_a_first_frame_can_do_wrong() -> None:
    async with open_rig() as rig:
        stranger = await rig.database.write(_stranger)
        path = f"/ws?workspace_id={rig.world.workspace_id}"
        cases = {
            '{"type":"ping"}': "expected auth message as first frame",
            "nonsense": "expected auth message as first frame",
            '{"type":"auth","payload":{"token":"mul_no"}}': "invalid token",
            '{"type":"auth","payload":{"token":7}}': "invalid token",
            '{"type":"auth"}': "invalid token",
            json.dumps(
                {"type": "auth", "payload": {"token": stranger}}
            ): "not a member of this workspace",
            json.dumps({"type": "auth", "payload": {"token": mint_token("mat_")}}): "invalid token",
        }
        for sent, error in cases.items():
            async with rig.server.socket(path) as client:
                await client.send_message(sent)
                assert await take(client) == {"error": error}, sent
                await close_code(client)


@pytest.mark.spec("01 §5.1", "WS /ws")
async def test_what_is_refused_before_the_upgrade() -> None:
    async with open_rig() as rig:
        slug, cookie = rig.world.slug, rig.cookie()
        assert await rejected(rig, "/ws") == (400, "workspace_id or workspace_slug required")
        assert await rejected(rig, "/ws?workspace_slug=nope") == (404, "workspace not found")
        wrong = [("cookie", f"{auth.AUTH_COOKIE}=nonsense")]
        assert await rejected(rig, f"/ws?workspace_slug={slug}", headers=wrong) == (
            401,
            "invalid token",
        )
        other = await make_world(rig.database)
        assert await rejected(rig, f"/ws?workspace_slug={other.slug}", headers=cookie) == (
            403,
            "not a member of this workspace",
        )
        for origin in (
            "http://evil.test",
            "null",
            "http://127.0.0.1",
            "http://evil.test@127.0.0.1",
        ):
            headers = [*cookie, ("origin", origin)]
            status, _ = await rejected(rig, f"/ws?workspace_slug={slug}", headers=headers)
            assert status == 403, origin
        forwarded = [*cookie, ("origin", "http://evil.test"), ("x-forwarded-host", "evil.test")]
        assert (await rejected(rig, f"/ws?workspace_slug={slug}", headers=forwarded))[0] == 403
        same = [*cookie, ("origin", rig.server.url)]
        async with rig.server.socket(f"/ws?workspace_slug={slug}", headers=same):
            pass


async def _stranger(conn: Connection) -> str:
    return await make_token(conn, await make_user(conn))


@pytest.mark.spec("01 §5.2", "WS /ws")
async def test_subscriptions_are_authorised() -> None:
    async with open_rig() as rig:
        world, other = rig.world, await make_world(rig.database)

        async def unit(conn: Connection) -> list[str]:
            issue = await make_issue(conn, world)
            foreign = await make_issue(conn, other)
            return [
                await make_task(conn, world, issue_id=issue.id),
                await make_task(conn, world, status="completed"),
                await make_task(conn, other, issue_id=foreign.id),
            ]

        mine, without_issue, foreign = await rig.database.write(unit)
        wanted = [
            ("workspace", world.workspace_id, None),
            ("workspace", other.workspace_id, "forbidden"),
            ("user", world.user_id, None),
            ("user", other.user_id, "forbidden"),
            ("task", mine, None),
            ("task", without_issue, "forbidden"),
            ("task", foreign, "forbidden"),
            ("task", new_id(), "forbidden"),
            ("task", "x", "forbidden"),
            ("chat", new_id(), "forbidden"),
            ("token", "x", "unknown_scope"),
            ("member", "x", "unknown_scope"),
            ("", "x", "invalid payload"),
            ("task", 7, "invalid payload"),
        ]
        path = f"/ws?workspace_id={world.workspace_id}"
        async with rig.server.socket(path, headers=rig.cookie()) as page:
            for scope, key, error in wanted:
                await page.send_message(frame.write("subscribe", {"scope": scope, "id": key}))
                reply = await take(page)
                assert reply["payload"].get("error") == error, (scope, key)
                assert reply["type"] == ("subscribe_error" if error else "subscribe_ack")
            await page.send_message(
                frame.write("unsubscribe", {"scope": "workspace", "id": world.workspace_id})
            )
            assert (await take(page))["type"] == "unsubscribe_ack"
            rig.server.services.hub.announce([rig.news(heard=False)])
            await page.send_message('{"type":"ping"}')
            assert await take(page) == {"type": "pong"}


async def test_a_page_cannot_unsubscribe_from_being_thrown_out() -> None:
    async with open_rig() as rig:
        world = rig.world
        path = f"/ws?workspace_id={world.workspace_id}"
        async with rig.server.socket(path) as client:
            await sign_in(client, world.token)
            marks = [
                ("token", hash_token(world.token)),
                ("member", f"{world.workspace_id}:{world.user_id}"),
            ]
            for scope, key in marks:
                await client.send_message(frame.write("unsubscribe", {"scope": scope, "id": key}))
                await take(client)
            rig.server.services.hub.announce([TokensRevoked((hash_token(world.token),))])
            assert await close_code(client) == 1008


async def test_personal_events_reach_only_the_person() -> None:
    async with open_rig() as rig:
        world = rig.world
        path = f"/ws?workspace_id={world.workspace_id}"
        async with rig.server.socket(path, headers=rig.cookie()) as page:
            await page.send_message('{"type":"ping"}')
            await take(page)
            hub = rig.server.services.hub
            hub.announce([attrs.evolve(rig.news("inbox:new", n=1), users=(new_id(),))])
            hub.announce([attrs.evolve(rig.news("inbox:new", n=2), users=(world.user_id,))])
            assert (await take(page))["payload"] == {"n": 2}


async def test_a_lost_membership_closes_the_members_sockets() -> None:
    async with open_rig() as rig:
        world = rig.world
        async with rig.server.socket(
            f"/ws?workspace_id={world.workspace_id}", headers=rig.cookie()
        ) as page:
            await page.send_message('{"type":"ping"}')
            await take(page)
            rig.server.services.hub.announce([rig.news("member:removed", user_id=world.user_id)])
            assert await close_code(page) == 1008


async def test_a_page_that_sends_too_many_commands_is_closed() -> None:
    async with open_rig() as rig:
        path = f"/ws?workspace_id={rig.world.workspace_id}"
        async with rig.server.socket(path, headers=rig.cookie()) as page:
            lock = frame.write("subscribe", {"scope": "task", "id": new_id()})
            with trio.fail_after(LIMIT), suppress(ConnectionClosed):
                while True:
                    await page.send_message(lock)
            assert await close_code(page) == 1013


# --- daemons --------------------------------------------------------------------------------------


def daemon_path(*runtime_ids: str) -> str:
    return "/api/daemon/ws?runtime_ids=" + "%2C".join(runtime_ids)


@pytest.mark.spec("01 §4.4", "WS /api/daemon/ws")
async def test_heartbeats_are_acknowledged_in_the_shape_of_the_spec() -> None:
    async with open_rig() as rig:
        world = rig.world
        async with rig.server.socket(daemon_path(world.runtime_id), world.token) as daemon:
            await daemon.send_message(frame.heartbeat(world.runtime_id))
            assert await take(daemon) == {
                "type": "daemon:heartbeat_ack",
                "payload": {
                    "runtime_id": world.runtime_id,
                    "status": "ok",
                    "feature_flags": {"version": 1, "flags": {"runtime_brief_slim": "off"}},
                },
            }


async def test_a_daemon_with_many_runtimes_is_answered_for_each() -> None:
    async with open_rig() as rig:
        world = rig.world

        async def unit(conn: Connection) -> list[str]:
            return [await make_runtime(conn, world.workspace_id, world.user_id) for _ in range(30)]

        runtimes = await rig.database.write(unit)
        async with rig.server.socket(daemon_path(*runtimes), world.token) as daemon:
            for runtime_id in runtimes:
                await daemon.send_message(frame.heartbeat(runtime_id))
            acks = [await take(daemon) for _ in runtimes]
            assert {ack["payload"]["runtime_id"] for ack in acks} == set(runtimes)
            # Ours: all of them in one frame.
            await daemon.send_message(frame.write(frame.HEARTBEAT, {"runtime_ids": runtimes}))
            acks = [await take(daemon) for _ in runtimes]
            assert {ack["payload"]["runtime_id"] for ack in acks} == set(runtimes)


async def test_a_runtime_that_vanished_is_gone_and_others_are_silence() -> None:
    async with open_rig() as rig:
        world = rig.world
        second = await rig.database.write(
            lambda conn: make_runtime(conn, world.workspace_id, world.user_id)
        )
        foreign = await make_world(rig.database)
        async with rig.server.socket(daemon_path(world.runtime_id, second), world.token) as daemon:
            await rig.database.write(
                lambda conn: conn.execute("delete from agent_runtime where id = $1", second)
            )
            ignored = [
                "nonsense",
                "[]",
                frame.write("daemon:dance", {}),
                frame.heartbeat(""),
                frame.heartbeat("7"),
                frame.heartbeat(foreign.runtime_id),
                '{"type":"daemon:heartbeat","payload":null}',
            ]
            for text in ignored:
                await daemon.send_message(text)
            await daemon.send_message(frame.heartbeat(second))
            assert await take(daemon) == {
                "type": "daemon:heartbeat_ack",
                "payload": {"runtime_id": second, "status": "runtime_gone", "runtime_gone": True},
            }
            await daemon.send_message(frame.heartbeat(world.runtime_id))
            assert (await take(daemon))["payload"]["status"] == "ok"


@pytest.mark.spec("01 §4.3", "WS /api/daemon/ws")
async def test_hints_reach_the_daemons_they_are_for() -> None:
    async with open_rig() as rig:
        world, hub = rig.world, rig.server.services.hub
        async with rig.server.socket(daemon_path(world.runtime_id), world.token) as daemon:
            await daemon.send_message(frame.heartbeat(world.runtime_id))
            await take(daemon)
            hub.announce(
                [
                    TaskAvailable(new_id(), "not yours"),
                    TaskAvailable(world.runtime_id, "t"),
                    ProfilesChanged(world.workspace_id, "p"),
                    ProfilesChanged(new_id()),
                ]
            )
            assert await take(daemon) == {
                "type": "daemon:task_available",
                "payload": {"runtime_id": world.runtime_id, "task_id": "t"},
            }
            assert await take(daemon) == {
                "type": "daemon:runtime_profiles_changed",
                "payload": {"workspace_id": world.workspace_id, "runtime_profile_id": "p"},
            }


@pytest.mark.spec("01 §4.1", "WS /api/daemon/ws")
async def test_what_a_daemon_handshake_can_do_wrong() -> None:
    async with open_rig() as rig:
        world, other = rig.world, await make_world(rig.database)
        cases = [
            (daemon_path(), world.token, (400, "runtime_ids required")),
            ("/api/daemon/ws", world.token, (400, "runtime_ids required")),
            (daemon_path("x"), world.token, (400, "invalid runtime_id")),
            (daemon_path(world.runtime_id, new_id()), world.token, (404, "runtime not found")),
            (daemon_path(other.runtime_id), world.token, (404, "not found")),
            (daemon_path(world.runtime_id), "", (401, "missing authorization header")),
            (daemon_path(world.runtime_id), mint_token("mat_"), (401, "invalid token")),
            (daemon_path(world.runtime_id), mint_token("mdt_"), (401, "invalid daemon token")),
        ]
        for path, token, wanted in cases:
            assert await rejected(rig, path, token) == wanted, path
        cookie = rig.cookie()
        assert (await rejected(rig, daemon_path(world.runtime_id), headers=cookie))[0] == 401


async def test_a_daemon_token_is_pinned_to_its_daemon() -> None:
    async with open_rig() as rig:
        world = rig.world

        async def unit(conn: Connection) -> tuple[str, str, str]:
            token = mint_token("mdt_")
            await insert(
                conn, "daemon_token", workspace_id=world.workspace_id, daemon_id="mine",
                token_hash=hash_token(token),
                expires_at=await conn.fetchval("select now() + interval '1 hour'"),
            )  # fmt: skip
            mine = await make_runtime(conn, world.workspace_id, None, daemon_id="mine")
            theirs = await make_runtime(conn, world.workspace_id, None, daemon_id="theirs")
            return token, mine, theirs

        token, mine, theirs = await rig.database.write(unit)
        async with rig.server.socket(daemon_path(mine), token) as daemon:
            await daemon.send_message(frame.heartbeat(mine))
            assert (await take(daemon))["payload"]["status"] == "ok"
        assert await rejected(rig, daemon_path(theirs), token) == (404, "runtime not found")


async def test_a_message_over_4096_bytes_closes_a_daemons_socket() -> None:
    async with open_rig() as rig:
        world = rig.world
        async with rig.server.socket(daemon_path(world.runtime_id), world.token) as daemon:
            await daemon.send_message("x" * 4097)
            assert await close_code(daemon) == 1009


# --- stopping -------------------------------------------------------------------------------------


async def test_the_server_stops_in_time_with_peers_that_do_not_answer() -> None:
    """Stuck: a page that never reads, one that never answers a close, a request half sent."""
    async with open_test_database() as (database, _):
        world = await make_world(database)
        with trio.fail_after(10):
            async with open_server(database, drain=1.0) as server:
                host, port = server.url.removeprefix("http://").split(":")
                half = await trio.open_tcp_stream(host, int(port))
                await half.send_all(b"POST /api/tokens HTTP/1.1\r\ncontent-length: 5\r\n")
                deaf = await trio.open_tcp_stream(host, int(port))
                session = auth.mint_session(server.services.config, world.user_id, "e", "n")
                await deaf.send_all(
                    f"GET /ws?workspace_slug={world.slug} HTTP/1.1\r\nhost: {host}:{port}\r\n"
                    "upgrade: websocket\r\nconnection: upgrade\r\n"
                    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
                    f"cookie: multica_auth={session}\r\n\r\n".encode()
                )
                assert b" 101 " in await deaf.receive_some(1000)
                big = Event(
                    type="issue:created",
                    payload={"text": "x" * 500_000},
                    workspace_id=world.workspace_id,
                )
                for _ in range(40):
                    server.services.hub.announce([big])
                server.stop.set()
        await half.aclose()
        await deaf.aclose()


async def test_pages_are_told_that_the_server_restarts() -> None:
    async with open_rig() as rig:
        path = f"/ws?workspace_slug={rig.world.slug}"
        async with rig.server.socket(path, headers=rig.cookie()) as page:
            await page.send_message('{"type":"ping"}')
            await take(page)
            rig.server.stop.set()
            assert await close_code(page) == 1012


# --- the relay ------------------------------------------------------------------------------------


@asynccontextmanager
async def open_second(rig: Rig) -> AsyncIterator[RunningServer]:
    """Another server process on the same database, as far as the database can tell."""
    async with open_database(rig.url, pool_size=3) as database, open_server(database) as second:
        yield second


async def test_what_one_server_announces_is_heard_at_the_other_once() -> None:
    async with open_rig() as rig, open_second(rig) as second:
        path = f"/ws?workspace_slug={rig.world.slug}"
        async with (
            second.socket(path, headers=rig.cookie()) as far,
            rig.server.socket(path, headers=rig.cookie()) as near,
        ):
            for page in (far, near):
                await page.send_message('{"type":"ping"}')
                await take(page)
            texts = ['ä€😀\\ "quoted"', "x" * 30_000, "\x00", "é" * 9_000]
            for number, text in enumerate(texts):
                rig.server.services.hub.announce([rig.news(n=number, text=text)])
            for page in (far, near):
                for number, text in enumerate(texts):
                    assert (await take(page))["payload"] == {"n": number, "text": text}
            second.services.hub.announce([rig.news(n="last")])
            for page in (far, near):
                assert (await take(page))["payload"] == {"n": "last"}, "nothing came twice"


async def test_a_claimable_task_wakes_a_daemon_at_the_other_server() -> None:
    async with open_rig() as rig, open_second(rig) as second:
        world = rig.world
        async with second.socket(daemon_path(world.runtime_id), world.token) as daemon:
            await daemon.send_message(frame.heartbeat(world.runtime_id))
            await take(daemon)
            rig.server.services.hub.announce([TaskAvailable(world.runtime_id, "t")])
            assert (await take(daemon))["type"] == "daemon:task_available"


async def test_a_revoked_token_is_dead_at_the_other_server_too() -> None:
    async with open_rig() as rig, open_second(rig) as second:
        world = rig.world
        path = f"/ws?workspace_slug={world.slug}"
        async with second.client(world.token) as client, second.socket(path) as page:
            assert await sign_in(page, world.token) == {"type": "auth_ack"}
            assert (await client.get("/api/me")).status_code == 200
            await rig.database.write(
                lambda conn: conn.execute("update personal_access_token set revoked = true")
            )
            rig.server.services.hub.announce([TokensRevoked((hash_token(world.token),))])
            assert await close_code(page) == 1008, "which also says that the relay has delivered"
            assert (await client.get("/api/me")).status_code == 401


async def test_a_lost_listener_comes_back_and_sends_everybody_to_catch_up() -> None:
    async with open_rig() as rig, open_second(rig) as second:
        path = f"/ws?workspace_slug={rig.world.slug}"
        async with second.socket(path, headers=rig.cookie()) as page:
            await page.send_message('{"type":"ping"}')
            await take(page)
            await rig.database.write(
                lambda conn: conn.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where query ilike 'listen%' and datname = current_database()"
                )
            )
            assert await close_code(page) == 1012
        async with second.socket(path, headers=rig.cookie()) as page:
            await page.send_message('{"type":"ping"}')
            await take(page)
            with trio.fail_after(LIMIT):
                while not rig.server.services.hub.is_relaying:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            rig.server.services.hub.announce([rig.news(n=1)])
            assert (await take(page))["payload"] == {"n": 1}


@pytest.mark.fast
async def test_batches_are_put_together_again_and_gaps_are_noticed() -> None:
    inbox = relay.Inbox("me")

    def feed(parts: list[str]) -> Any:
        results = [inbox.take(part) for part in parts]
        assert results[:-1] == [None] * (len(results) - 1)
        return results[-1]

    long = "x" * 20_000 + ":y"
    assert feed(relay.split("you", 1, long)) == (long, False)
    assert feed(relay.split("me", 1, long)) is None
    assert feed(relay.split("you", 2, "")) == ("", False)
    assert feed(relay.split("you", 4, "a")) == ("a", True)
    assert feed(relay.split("you", 5, long)[1:]) is None, "began in the middle"
    assert all(len(part.encode()) < 8000 for part in relay.split("s" * 12, 10**9, long))


@pytest.mark.fast
async def test_every_consequence_travels() -> None:
    sent = [
        Event(type="a", payload={"x": None, "ä": ["\x00"]}, workspace_id="w", users=("u", "v")),
        Event(type="b", payload={}, workspace_id="w"),
        TaskAvailable("r", "t"),
        ProfilesChanged("w"),
        TokensRevoked(("h", "i")),
    ]
    assert relay.read(relay.write(list(sent))) == sent
