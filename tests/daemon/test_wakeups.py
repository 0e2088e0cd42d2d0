"""The daemon's websocket: handshake, frames, liveness, reconnecting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
import trio
import trio_websocket
from trio.testing import MockClock

from daemon.client import Transient, identity_headers
from daemon.wakeups import connect, socket_url
from shared.wire import frame
from shared.wire.runtime import BEAT_MANY
from tests.support.daemon_rig import CLAUDE, CODEX, open_rig
from tests.support.fake_server import open_fake_server, uid
from tests.support.network import answer

pytestmark = pytest.mark.fast

CLAIM = "POST /api/daemon/runtimes/.*/tasks/claim"


@pytest.mark.parametrize(
    ("server", "url"),
    [
        ("http://h:8080", "ws://h:8080/api/daemon/ws?runtime_ids=a%2Cb"),
        ("https://h/base", "wss://h/base/api/daemon/ws?runtime_ids=a%2Cb"),
    ],
)
def test_the_address(server: str, url: str) -> None:
    assert socket_url(server, ("b", "a")) == url


async def test_one_connection_lists_every_runtime_and_tells_who_calls(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.workspaces[uid("other")] = "Other"
        async with open_rig(server, tmp_path, programs=(CLAUDE, CODEX)) as rig:
            await rig.until_running()
            await rig.until(lambda: server.sockets)
            await trio.sleep(60)
            [socket] = server.sockets
            assert socket.ids == tuple(sorted(server.runtimes))
            assert len(socket.ids) == 4
            expected = {"authorization": "Bearer " + rig.config.token} | {
                name.lower(): value for name, value in identity_headers().items()
            }
            assert {name: socket.headers.get(name) for name in expected} == expected
            assert "x-client-capabilities" not in socket.headers


async def test_beats_go_out_at_once_and_at_every_interval(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, programs=(CLAUDE, CODEX)) as rig,
    ):
        await rig.until(lambda: server.sockets)
        opened, _ = server.handshakes[-1]
        await trio.sleep(46)
        for runtime_id in server.runtimes:
            times = [at - opened for at, key, _ in server.beats if key == runtime_id]
            assert times == pytest.approx([0, 15, 30, 45])


async def test_one_frame_beats_for_all_where_the_server_offers_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.capabilities = [BEAT_MANY]
        async with open_rig(server, tmp_path, programs=(CLAUDE, CODEX)) as rig:
            await rig.until(lambda: server.sockets)
            opened, ids = server.handshakes[-1]
            await trio.sleep(46)
            together = {"runtime_ids": list(ids), "supports_batch_import": True}
            assert server.frames == [together] * 4
            for runtime_id in ids:
                times = [at - opened for at, key, _ in server.beats if key == runtime_id]
                assert times == pytest.approx([0, 15, 30, 45])
            assert server.count("POST /api/daemon/heartbeat") == 0


async def test_a_server_that_ignores_the_one_frame_gets_one_for_each(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """It was replaced by an older one: the line is kept, and HTTP beats fill the gap."""
    async with open_fake_server() as server:
        server.capabilities = [BEAT_MANY]
        async with open_rig(server, tmp_path, programs=(CLAUDE, CODEX)) as rig:
            await rig.until(lambda: server.sockets)
            opened, ids = server.handshakes[-1]
            await trio.sleep(20)
            server.capabilities = []
            await trio.sleep(60)
            kinds = ["runtime_ids" in payload for payload in server.frames]
            assert kinds[:3] == [True, True, True]
            assert not any(kinds[3:])
            assert len(server.handshakes) == 1
            for runtime_id in ids:
                at = [
                    at - opened for at, key, way in server.beats if (key, way) == (runtime_id, "ws")
                ]
                assert at == pytest.approx([0, 15, 45, 60, 75])


def test_frames_for_many_stay_below_the_servers_limit() -> None:
    ids = [uid(str(number)) for number in range(200)]
    frames = frame.heartbeats(ids)
    assert all(len(text) <= 4096 for text in frames)
    named = [frame.read(text).payload["runtime_ids"] for text in frames]
    assert [len(some) for some in named] == [90, 90, 20]
    assert [key for some in named for key in some] == ids


async def test_connecting_wakes_every_poller(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Work queued while the line was down is claimed on reconnecting, not at the next poll."""
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(100)
        server.drop_sockets()
        task = server.add_task(server.runtime_id("claude"))
        lost = trio.current_time()
        await rig.until(lambda: task.status == "completed", within=5)
        [_, (reconnected, _)] = server.handshakes
        claimed = server.times(CLAIM)[-2]
        assert claimed == reconnected
        assert 0.8 <= reconnected - lost <= 1.2


@pytest.mark.parametrize(
    ("status", "said", "plain_waits"),
    [
        (503, b"", [1, 2, 4, 4, 4, 4, 4, 4]),
        (404, b'{"error":"runtime not found"}', [1, 2, 4, 8, 16, 30, 30, 30]),
        (404, b"404 page not found", [1, 2, 4, 4, 4, 4, 4, 4]),
    ],
)
async def test_back_off_is_short_for_a_server_that_is_away_and_starts_afresh_after_a_healthy_one(
    autojump_clock: MockClock, tmp_path: Path, status: int, said: bytes, plain_waits: list[int]
) -> None:
    async with open_fake_server() as server:
        server.refuse_sockets, server.refusal = status, said
        async with open_rig(server, tmp_path) as rig:
            await rig.until_running()
            await trio.sleep(200)
            waits = [b - a for (a, _), (b, _) in pairwise(server.handshakes)]
            for wait, plain in zip(waits, plain_waits, strict=False):
                assert plain * 0.8 <= wait <= plain * 1.2
            assert len(waits) >= 8
            server.refuse_sockets = None
            await rig.until(lambda: server.sockets, within=37 if b"error" in said else 5)
            await trio.sleep(61)
            lost = trio.current_time()
            server.drop_sockets()
            await rig.until(lambda: server.handshakes[-1][0] > lost, within=2)
            assert server.handshakes[-1][0] - lost <= 1.2


async def test_a_connection_that_never_lasts_does_not_reset_the_back_off(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        for plain in (1, 2, 4, 4):
            await rig.until(lambda: server.sockets)
            await trio.sleep(1)
            lost = trio.current_time()
            server.drop_sockets()
            await rig.until(lambda since=lost: server.handshakes[-1][0] > since)  # type: ignore[misc]
            assert plain * 0.8 <= server.handshakes[-1][0] - lost <= plain * 1.2


async def test_a_changed_set_reconnects_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until(lambda: server.sockets)
        await trio.sleep(10)
        server.workspaces[uid("other")] = "Other"
        await rig.until(lambda: len(server.runtimes) == 2, within=31)
        registered = server.times("POST /api/daemon/register")[-1]
        await trio.sleep(1)
        at, ids = server.handshakes[-1]
        assert at == registered
        assert ids == tuple(sorted(server.runtimes))
        assert len(server.sockets) == 1, "the old connection is gone"


async def test_a_changed_set_cuts_the_back_off_short(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.refuse_sockets = 503
        async with open_rig(server, tmp_path, sync_interval=301.0) as rig:
            await rig.until_running()
            await trio.sleep(295)
            before = server.handshakes[-1][0]
            server.workspaces[uid("other")] = "Other"
            await rig.until(lambda: len(server.runtimes) == 2)
            registered = server.times("POST /api/daemon/register")[-1]
            await trio.sleep(0.5)
            assert registered in [at for at, _ in server.handshakes]
            assert before <= registered
            await trio.sleep(1)
            after = [at - registered for at, _ in server.handshakes if at > registered]
            assert 0.8 <= after[0] <= 1.2, "and starts it afresh"


async def test_a_call_that_is_answered_again_cuts_the_back_off_short(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.refuse_sockets = 404  # the server's own word: half a minute between attempts
        async with open_rig(server, tmp_path) as rig:
            await rig.until_running()
            await trio.sleep(300)
            await rig.until(lambda: trio.current_time() - server.handshakes[-1][0] < 1)
            client = rig.health.client
            assert client is not None
            server.fail_next("GET /api/workspaces", answer(502))
            with pytest.raises(Transient):
                await client.workspaces()
            server.refuse_sockets = None
            assert not server.sockets
            await client.workspaces()
            await rig.until(lambda: server.sockets, within=0.3)


async def test_a_silent_connection_is_given_up_after_three_beats(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until(lambda: server.sockets)
        await trio.sleep(100)
        heard = max(at for at, _, _ in server.beats)
        server.answer_beats = False
        await rig.until(lambda: len(server.handshakes) == 2, within=100)
        assert heard + 45.8 <= server.handshakes[1][0] <= heard + 46.2


async def test_a_server_that_does_not_read_cannot_hold_the_daemon(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A beat that cannot be written within 10 s ends the connection."""

    class Stuck:
        async def get_message(self) -> str:
            await trio.sleep_forever()
            raise AssertionError

        async def send_message(self, message: str) -> None:
            await trio.sleep_forever()

    opened: list[float] = []

    @asynccontextmanager
    async def connect(url: str, headers: object) -> AsyncIterator[Stuck]:
        await trio.lowlevel.checkpoint()
        opened.append(trio.current_time())
        yield Stuck()

    async with open_fake_server() as server:
        server.connect = connect  # type: ignore[method-assign,assignment]
        async with open_rig(server, tmp_path) as rig:
            await rig.until(lambda: len(opened) == 3, within=60)
            for (first, second), plain in zip(pairwise(opened), (1, 2), strict=True):
                assert 10 + plain * 0.8 <= second - first <= 10 + plain * 1.2


async def test_a_handshake_that_stalls_does_not_hold_up_one_that_would_not(tmp_path: Path) -> None:
    """The peer is well again while the first handshake still waits for it."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    asked_for = 0
    first_is_gone = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal asked_for
        asked_for += 1
        if asked_for == 1:
            with suppress(trio.BrokenResourceError):
                while await stream.receive_some(4096):
                    pass
            first_is_gone.set()
            return
        async with trio.open_nursery() as connection:
            asked = await trio_websocket.wrap_server_stream(connection, stream)
            socket = await asked.accept()
            with suppress(trio_websocket.ConnectionClosed):
                await socket.get_message()

    async with trio.open_nursery() as server:
        server.start_soon(trio.serve_listeners, serve, listeners)
        with mock.patch("daemon.wakeups.ANOTHER", 0.1), trio.fail_after(5):
            async with connect(f"ws://127.0.0.1:{port}/api/daemon/ws", []) as socket:
                await socket.send_message("here")
                await first_is_gone.wait()
                await trio.sleep(0.3)
                assert asked_for == 2, "no handshake is begun beside a connection"
        server.cancel_scope.cancel()


async def test_a_handshake_that_stalls_is_given_up_and_leaves_nothing(tmp_path: Path) -> None:
    """The peer takes the connection and never answers the upgrade; the next attempt gets through."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    stalling = True
    left = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        if stalling:
            while await stream.receive_some(4096):
                pass
            left.set()
            return
        async with trio.open_nursery() as connection:
            asked = await trio_websocket.wrap_server_stream(connection, stream)
            socket = await asked.accept()
            with suppress(trio_websocket.ConnectionClosed):
                await socket.get_message()

    async with trio.open_nursery() as server:
        server.start_soon(trio.serve_listeners, serve, listeners)
        with mock.patch("daemon.wakeups.HANDSHAKE", 0.2):
            with trio.fail_after(5), pytest.RaisesGroup(trio.TooSlowError):
                async with connect(f"ws://127.0.0.1:{port}/api/daemon/ws", []):
                    raise AssertionError
            with trio.fail_after(5):
                await left.wait()
        stalling = False
        with trio.fail_after(5):
            async with connect(f"ws://127.0.0.1:{port}/api/daemon/ws", []) as socket:
                await socket.send_message("here")
        server.cancel_scope.cancel()


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"type":"daemon:unknown","payload":{}}',
        '{"type":"daemon:heartbeat_ack","payload":{"status":"ok"}}',
        '{"type":"daemon:heartbeat_ack","payload":{"runtime_id":5}}',
        '{"type":"daemon:heartbeat_ack","payload":null}',
        '{"type":"daemon:runtime_profiles_changed","payload":{"workspace_id":""}}',
        '{"type":"daemon:runtime_profiles_changed","payload":{"workspace_id":["x"]}}',
        '{"type":"daemon:runtime_profiles_changed","payload":null}',
        '{"type":"daemon:task_available","payload":[]}',
    ],
)
async def test_frames_that_mean_nothing_are_ignored(
    autojump_clock: MockClock, tmp_path: Path, text: str
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until(lambda: server.sockets)
        await trio.sleep(40)
        [socket] = server.sockets
        await socket.send(text)
        await trio.sleep(20)
        assert server.sockets == [socket]
        assert server.count("POST /api/daemon/register") == 1


async def test_a_frame_over_64_kib_ends_the_connection(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until(lambda: server.sockets)
        await trio.sleep(40)
        await server.push("daemon:unknown", {"x": "y" * 60_000})
        await trio.sleep(5)
        assert len(server.handshakes) == 1
        await server.push("daemon:unknown", {"x": "y" * 70_000})
        await rig.until(lambda: len(server.handshakes) == 2, within=5)


async def test_without_runtimes_there_is_no_connection(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path, programs=()) as rig:
        await rig.until_running()
        await trio.sleep(100)
        assert server.handshakes == []
        rig.programs.append(CLAUDE)
        await rig.until(lambda: server.handshakes, within=331)
        assert server.handshakes[0][0] == server.times("POST /api/daemon/register")[0]
