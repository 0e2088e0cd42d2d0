"""Connections: one test per row of the table in design/trio-notes.md 2.10, and patience with peers.

On virtual time, over streams in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from trio.testing import MockClock
from trio_websocket import ConnectionClosed

from server.push.hub import Hub, Peer
from server.push.peer import EXTENSION, run_peer
from server.web.serve import BindError, Limits, open_listeners
from shared.wire.event import Event
from tests.conftest import ExpectedErrors
from tests.support.server import exchange, open_memory_server, read_all

pytestmark = pytest.mark.fast

GET = b"GET / HTTP/1.1\r\nhost: bullpen.test\r\n\r\n"
CLOSING_GET = b"GET / HTTP/1.1\r\nhost: bullpen.test\r\nconnection: close\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nhost: bullpen.test\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers every request, accepts every websocket and echoes on it."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        return
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"hi"})


async def still_serves(memory: Any) -> None:
    assert (await exchange(memory.connect(), CLOSING_GET)).endswith(b"\r\n\r\nhi")


@pytest.mark.parametrize("rest", [b"x", b"\x00", b"GET / HTTP/1.1\r\n\r\n", b"\x81\x85junk!"])
async def test_row_1_a_byte_after_the_upgrade_request_ends_only_that_connection(
    autojump_clock: MockClock, rest: bytes
) -> None:
    async with open_memory_server(hello) as memory:
        other = memory.connect()
        await exchange(other, GET, wait=1)
        await exchange(memory.connect(), UPGRADE + rest)
        await still_serves(memory)
        assert (await exchange(other, GET, wait=1)).endswith(b"hi"), "other connections live on"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\r\n\r\n\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
        UPGRADE.replace(b"version: 13", b"version: 12"),
        UPGRADE.replace(b"sec-websocket-key", b"x-nothing"),
    ],
)
async def test_row_1_other_garbage_is_contained(autojump_clock: MockClock, garbage: bytes) -> None:
    async with open_memory_server(hello) as memory:
        await exchange(memory.connect(), garbage, wait=200)
        await still_serves(memory)


async def send_for_ever(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        await trio.sleep(0.1)


async def test_row_2_a_peer_that_stops_reading_is_cut_after_the_send_limit(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_server(send_for_ever, Limits(send=10)) as memory:
        stream = memory.connect()
        await stream.send_all(GET)
        await trio.sleep(1)
        start = trio.current_time()
        memory.streams[0].stuck = True
        await memory.streams[0].closed.wait()
        assert 9.5 <= trio.current_time() - start <= 11


async def test_row_2_a_peer_that_stops_reading_does_not_hold_up_the_stop(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_server(send_for_ever, Limits(send=1000)) as memory:
        await memory.connect().send_all(GET)
        await trio.sleep(1)
        memory.streams[0].stuck = True
        await trio.sleep(1)
        start = trio.current_time()
        await memory.stop(drain=3)
    assert trio.current_time() - start == pytest.approx(3, abs=0.2)


async def test_row_2_cancelling_everything_ends_a_stuck_send_at_once(
    autojump_clock: MockClock,
) -> None:
    with trio.CancelScope() as outer:
        async with open_memory_server(send_for_ever, Limits(send=1000)) as memory:
            await memory.connect().send_all(GET)
            await trio.sleep(1)
            memory.streams[0].stuck = True
            await trio.sleep(1)
            start = trio.current_time()
            outer.cancel()
    assert outer.cancelled_caught
    assert trio.current_time() - start < 1


async def test_row_3_a_loop_that_only_sends_learns_that_the_peer_is_gone(
    autojump_clock: MockClock,
) -> None:
    ended = trio.Event()
    sent = 0

    async def chatter(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "news"})
                sent += 1
        finally:
            ended.set()

    async with open_memory_server(chatter) as memory:
        stream = memory.connect()
        await stream.send_all(UPGRADE)
        await stream.receive_some(100)
        await stream.aclose()
        with trio.fail_after(5):
            await ended.wait()
    assert sent > 0


async def test_row_3_a_loop_that_only_sends_lets_others_run(autojump_clock: MockClock) -> None:
    async def chatter(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await hello(scope, receive, send)
            return
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "text": "news"})

    async with open_memory_server(chatter) as memory:
        stream = memory.connect()
        await stream.send_all(UPGRADE)
        await still_serves(memory)
        await stream.aclose()


def peer_app(
    *,
    take: Callable[[str], None] = lambda _: None,
    work: Any = None,
    opened: list[Peer] | None = None,
    hub: Hub | None = None,
) -> Any:
    hub = Hub() if hub is None else hub

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        with hub.open_peer(4) as peer:
            peer.subscribe("workspace:w")
            if opened is not None:
                opened.append(peer)
            await run_peer(websocket, peer, name="browser", take=take, work=work)

    return app


async def test_row_4_pings_are_answered_while_the_application_is_busy(
    autojump_clock: MockClock,
) -> None:
    taken: list[str] = []

    async def busy() -> None:
        await trio.sleep_forever()

    async with (
        open_memory_server(peer_app(take=taken.append, work=busy)) as memory,
        memory.websocket() as client,
    ):
        for number in range(50):
            await client.send_message(str(number))
        with trio.fail_after(1):
            await client.ping()
        assert len(taken) == 50


async def test_row_5_a_peer_that_answers_pings_stays(autojump_clock: MockClock) -> None:
    async with open_memory_server(peer_app()) as memory, memory.websocket() as client:
        await trio.sleep(600)
        with trio.fail_after(1):
            await client.ping()


async def test_row_5_a_peer_without_pongs_is_dropped_60_s_after_the_last_although_it_talks(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_server(peer_app()) as memory:
        stream = memory.connect()
        await stream.send_all(UPGRADE)
        await stream.receive_some(1000)
        start = trio.current_time()
        frame = b"\x81\x82\x00\x00\x00\x00hi"  # a masked text frame
        async with trio.open_nursery() as talking:

            async def talk() -> None:
                while True:
                    await stream.send_all(frame)
                    await trio.sleep(1)

            talking.start_soon(talk)
            await memory.streams[0].closed.wait()
            talking.cancel_scope.cancel()
        assert trio.current_time() - start == pytest.approx(60, abs=1)


async def test_row_6_a_handler_runs_to_its_end_after_the_client_has_left(
    autojump_clock: MockClock,
) -> None:
    done = trio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(5)
        await hello(scope, receive, send)
        done.set()

    async with open_memory_server(slow) as memory:
        stream = memory.connect()
        await stream.send_all(GET)
        await trio.sleep(1)
        await stream.aclose()
        with trio.fail_after(10):
            await done.wait()


async def test_row_6_a_handler_may_finish_during_the_drain_and_is_cut_after_it(
    autojump_clock: MockClock,
) -> None:
    ended: list[str] = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await trio.sleep(2 if scope["path"] == "/short" else 100)
            await hello(scope, receive, send)
            ended.append("finished")
        except trio.Cancelled:
            ended.append("cut")
            raise

    async with open_memory_server(slow) as memory:
        short, long = memory.connect(), memory.connect()
        await short.send_all(GET.replace(b"GET /", b"GET /short"))
        await long.send_all(GET)
        await trio.sleep(1)
        start = trio.current_time()
        await memory.stop(drain=4)
        assert (await read_all(short)).endswith(b"hi")
    assert ended == ["finished", "cut"]
    assert trio.current_time() - start == pytest.approx(4, abs=0.1)


async def test_row_7_idle_connections_close_at_once_when_the_server_stops(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_server(hello) as memory:
        stream = memory.connect()
        await exchange(stream, GET, wait=1)
        start = trio.current_time()
        await memory.stop(drain=60)
    assert trio.current_time() - start < 1


async def test_row_7_an_uncaught_error_is_a_500_and_closes_a_websocket_with_1011(
    autojump_clock: MockClock, error_log: ExpectedErrors
) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
        raise ZeroDivisionError

    async with open_memory_server(broken) as memory:
        assert (await exchange(memory.connect(), GET, wait=1)).startswith(b"HTTP/1.1 500")
        async with memory.websocket() as client:
            with pytest.raises(ConnectionClosed) as closed:
                await client.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1011
    error_log.expect("application failed")


async def test_row_8_there_is_no_lifespan(autojump_clock: MockClock) -> None:
    seen: set[str] = set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.add(scope["type"])
        await hello(scope, receive, send)

    async with open_memory_server(app) as memory:
        await still_serves(memory)
    assert seen == {"http"}


# --- patience with peers --------------------------------------------------------------------------


async def seconds_until_closed(memory: Any, *pieces: bytes, gap: float) -> float:
    start = trio.current_time()
    stream = memory.connect()
    await trio.testing.wait_all_tasks_blocked()
    fake = memory.streams[-1]
    for piece in pieces:
        if fake.closed.is_set():
            break
        await stream.send_all(piece)
        with trio.move_on_after(gap):
            await fake.closed.wait()
    with trio.fail_after(1000):
        await fake.closed.wait()
    return trio.current_time() - start


async def test_a_connection_that_says_nothing_is_closed(autojump_clock: MockClock) -> None:
    async with open_memory_server(hello, Limits(idle=75)) as memory:
        assert await seconds_until_closed(memory, gap=1) == pytest.approx(75, abs=1)


async def test_a_head_that_drips_is_cut(autojump_clock: MockClock) -> None:
    drips = [GET[at : at + 1] for at in range(len(GET) - 1)]
    async with open_memory_server(hello, Limits(head=15)) as memory:
        assert await seconds_until_closed(memory, *drips, gap=1) == pytest.approx(15, abs=1.5)


async def test_a_body_that_stops_is_cut(autojump_clock: MockClock) -> None:
    head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n"
    async with open_memory_server(hello, Limits(body_gap=30)) as memory:
        took = await seconds_until_closed(memory, head, b"x", b"x", gap=5)
        assert took == pytest.approx(35, abs=5.5)


async def test_a_body_that_drips_is_cut(autojump_clock: MockClock) -> None:
    head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n"
    async with open_memory_server(hello, Limits(body_gap=30, body=100)) as memory:
        took = await seconds_until_closed(memory, head, *[b"x"] * 500, gap=5)
        assert took == pytest.approx(100, abs=5)


async def test_an_application_that_does_not_read_the_body_can_answer(
    autojump_clock: MockClock,
) -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"too large"})

    body = b"x" * (40 * 65536)
    head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with open_memory_server(refuse) as memory:
        told = await exchange(memory.connect(), head + body)
        assert b"413" in told
        assert b"connection: close" in told
        with trio.fail_after(5):
            await memory.streams[0].closed.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert not memory.connections.child_tasks


async def test_an_answer_that_does_not_wait_for_the_body_keeps_the_connection(
    autojump_clock: MockClock,
) -> None:
    async def hasty(scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
        )
        await send({"type": "http.response.body", "body": b"hi"})

    async with open_memory_server(hasty) as memory:
        stream = memory.connect()
        for _ in range(3):
            await stream.send_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n")
            await trio.sleep(0.1)
            assert (await exchange(stream, b"{}", wait=0.5)).endswith(b"hi")
        # A body that does not come: the answer does, and says that this was the last.
        await stream.send_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n")
        told = await read_all(stream, wait=5)
        assert told.endswith(b"hi")
        assert b"connection: close" in told


async def test_a_message_over_the_limit_closes_the_socket_with_1009(
    autojump_clock: MockClock,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][EXTENSION].max_message = 4096
        await hello(scope, receive, send)

    async with open_memory_server(app) as memory, memory.websocket() as client:
        await client.send_message("x" * 4096)
        assert len(await client.get_message()) == 4096
        await client.send_message("ä" * 2049)
        with pytest.raises(ConnectionClosed) as closed:
            await client.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1009


async def test_a_refused_websocket_gets_its_answer(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        head = {"type": "websocket.http.response.start", "status": 404, "headers": []}
        await send(head)
        await send({"type": "websocket.http.response.body", "body": b"runtime not found"})

    async with open_memory_server(app) as memory:
        got = await exchange(memory.connect(), UPGRADE)
    assert got.startswith(b"HTTP/1.1 404")
    assert b"runtime not found" in got


async def test_a_peer_that_does_not_take_its_frames_is_closed_with_1013(
    autojump_clock: MockClock,
) -> None:
    opened: list[Peer] = []
    hub = Hub()
    async with (
        open_memory_server(peer_app(opened=opened, hub=hub), Limits(send=1000)) as memory,
        memory.websocket() as client,
    ):
        await client.send_message("hello")
        await trio.testing.wait_all_tasks_blocked()
        memory.streams[0].stuck = True
        for number in range(6):  # one is being sent, four fit into the outbox, one is too many
            hub.deliver(Event(type="issue:created", payload={"n": number}, workspace_id="w"))
            await trio.testing.wait_all_tasks_blocked()
        assert opened[0].closing.is_set()
        assert opened[0].code == 1013
        assert hub.evictions == 1


async def test_a_closed_peer_gets_the_code(autojump_clock: MockClock) -> None:
    opened: list[Peer] = []
    async with (
        open_memory_server(peer_app(opened=opened)) as memory,
        memory.websocket() as client,
    ):
        await client.send_message("hello")
        await trio.testing.wait_all_tasks_blocked()
        opened[0].close(1012, "the server restarts")
        with pytest.raises(ConnectionClosed) as closed:
            await client.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1012


async def test_an_address_in_use_says_what_to_do() -> None:
    listeners = await open_listeners("127.0.0.1", 0)
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(BindError, match=f"port {port} .* --port"):
        await open_listeners("127.0.0.1", port)
    with pytest.raises(BindError, match="--host"):
        await open_listeners("192.0.2.1", 0)
    listeners[0].socket.close()
