"""The daemon's door: who may ask what, and what a bad peer can do (nothing)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from daemon.control import CONNECTIONS, Answer, Asked, Control

pytestmark = pytest.mark.fast

SECRET = "s3cret"
ALLOWED = "Host: 127.0.0.1:19514"
SIGNED = f"Authorization: Bearer {SECRET}"


class Door:
    """A control door without a port; `stops` are the reasons it was told to stop."""

    def __init__(self) -> None:
        self.stops: list[str] = []
        self.control = Control(
            port=19514,
            secret=SECRET,
            status=lambda: {"status": "running", "pid": 7},
            stop=self.stops.append,
        )

    async def ask(self, text: str, *, end: bool = False) -> tuple[int, str]:
        """Send bytes as they are; return the answer's status (0: none) and body."""
        ours, theirs = memory_stream_pair()
        received = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.control.serve, theirs)
            await ours.send_all(text.replace("\n", "\r\n").encode("latin-1"))
            if end:
                await ours.send_eof()
            try:
                async for part in ours:
                    received += part
            except trio.BrokenResourceError:
                pass
        head, _, body = received.decode().partition("\r\n\r\n")
        return (int(head.split()[1]), body) if head else (0, "")

    async def request(self, line: str, *headers: str) -> tuple[int, str]:
        return await self.ask("\n".join([f"{line} HTTP/1.1", *headers, "", ""]))


async def test_health(autojump_clock: MockClock) -> None:
    door = Door()
    for line in ("GET /health", "POST /health", "GET /health?x=1", "DELETE /health"):
        status, body = await door.request(line, ALLOWED, "X-Bullpen: 1")
        told = {"status": "running", "pid": 7, "product": "bullpen"}
        assert (status, json.loads(body)) == (200, told)
    assert await door.request("HEAD /health", ALLOWED) == (200, "")


async def test_the_commands_of_another_product_take_us_for_none_of_theirs(
    autojump_clock: MockClock,
) -> None:
    """They act on a daemon that says `running` or `starting`, and on no other."""
    _, body = await Door().request("GET /health", ALLOWED)
    assert json.loads(body)["status"] == "bullpen running"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:19514", "[::1]:19514", "127.0.0.1:1"])
async def test_names_of_this_machine(autojump_clock: MockClock, host: str) -> None:
    status, _ = await Door().request("GET /health", f"Host: {host}")
    assert status == 200


@pytest.mark.parametrize(
    "headers",
    [
        ["Host: evil.example"],
        ["Host: evil.example:19514"],
        ["Host: 127.0.0.1.evil.example:19514"],
        [ALLOWED, "Origin: http://evil.example"],
        [ALLOWED, "Origin: null"],
        [ALLOWED, "Origin: http://127.0.0.1:19514"],
    ],
)
@pytest.mark.parametrize("line", ["GET /health", "POST /shutdown"])
async def test_web_pages_get_nothing(
    autojump_clock: MockClock, headers: list[str], line: str
) -> None:
    door = Door()
    status, body = await door.request(line, *headers, SIGNED)
    assert (status, body) == (403, "forbidden\n")
    assert door.stops == []


async def test_shutdown_takes_the_secret(autojump_clock: MockClock) -> None:
    door = Door()
    assert await door.request("POST /shutdown", ALLOWED, SIGNED) == (
        200,
        '{"status":"shutting down"}\n',
    )
    assert len(door.stops) == 1


@pytest.mark.parametrize(
    "header",
    [
        "X: y",
        "Authorization: Bearer wrong",
        f"Authorization: {SECRET}",
        "Authorization: Bearer \xfc",
    ],
)
async def test_shutdown_without_the_secret(autojump_clock: MockClock, header: str) -> None:
    door = Door()
    status, _ = await door.request("POST /shutdown", ALLOWED, header)
    assert status == 401
    assert door.stops == []


async def test_other_methods_and_paths(autojump_clock: MockClock) -> None:
    door = Door()
    assert await door.request("GET /shutdown", ALLOWED, SIGNED) == (405, "method not allowed\n")
    assert await door.request("GET /", ALLOWED) == (404, "404 page not found\n")
    assert door.stops == []


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("nonsense\n\n", 400),
        ("GET /health HTTP/1.1\n\n", 400),  # no Host
        ("GET /health HTTP/1.1\nHost: a\nHost: b\n\n", 400),
        ("GET /health HTTP/1.1\n" + ALLOWED + "\nX: " + "y" * 40_000 + "\n\n", 431),
        (f"POST /shutdown HTTP/1.1\n{ALLOWED}\nContent-Length: 99999\n\n" + "x" * 99_999, 413),
        (f"POST /shutdown HTTP/1.1\n{ALLOWED}\nContent-Length: x\n\n", 400),
    ],
)
async def test_bad_requests(autojump_clock: MockClock, text: str, status: int) -> None:
    door = Door()
    assert (await door.ask(text))[0] == status
    assert door.stops == []


async def test_a_slow_peer_is_dropped_after_10_s(autojump_clock: MockClock) -> None:
    for text in ("", "GET /hea", f"POST /shutdown HTTP/1.1\n{ALLOWED}\nContent-Length: 5\n\nab"):
        began = trio.current_time()
        assert await Door().ask(text) == (0, "")
        assert trio.current_time() - began == 10


async def test_a_peer_that_leaves_is_forgotten(autojump_clock: MockClock) -> None:
    assert await Door().ask("GET /hea", end=True) == (400, "bad request\n")
    assert await Door().ask("", end=True) == (0, "")


async def test_a_body_is_read_and_not_minded(autojump_clock: MockClock) -> None:
    door = Door()
    text = f"POST /shutdown HTTP/1.1\n{ALLOWED}\n{SIGNED}\nContent-Length: 2\n\n{{}}"
    assert (await door.ask(text))[0] == 200
    assert len(door.stops) == 1


async def test_a_bug_in_the_status_does_not_end_the_daemon(
    autojump_clock: MockClock, error_log: Any
) -> None:
    def broken() -> dict[str, Any]:
        raise ZeroDivisionError

    door = Door()
    door.control = Control(port=1, secret=SECRET, status=broken, stop=door.stops.append)
    assert (await door.request("GET /health", ALLOWED))[0] == 500
    error_log.expect("control request failed")


# -- paths that others answer


class Slow:
    """A route that waits until `go`; `left` is set when it was cancelled."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.go = trio.Event()
        self.left = trio.Event()

    async def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.left.set()
            raise
        return Answer(status=200, value={"ok": True})


def _slow_door() -> tuple[Door, Slow]:
    door, slow = Door(), Slow()
    door.control.routes["/slow"] = slow.answer
    return door, slow


async def test_a_route_gets_the_body_and_may_take_its_time(autojump_clock: MockClock) -> None:
    door, slow = _slow_door()
    got: list[tuple[int, str]] = []
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            head = f"POST /slow?x=1 HTTP/1.1\n{ALLOWED}\n{SIGNED}\nContent-Length: 4\n\nbody"
            got.append(await door.ask(head))

        nursery.start_soon(ask)
        await trio.sleep(600)
        # the seat it left was never taken here: that is the listener's part
        assert (door.control.seats.busy, door.control.seats.long) == (-1, 1)
        slow.go.set()
    assert got == [(200, '{"ok":true}\n')]
    [asked] = slow.asked
    assert (asked.method, asked.path, asked.body) == ("POST", "/slow", b"body")
    assert SECRET not in repr(asked)
    assert (door.control.seats.busy, door.control.seats.long) == (0, 0)


async def test_a_route_is_cancelled_when_the_asker_leaves(autojump_clock: MockClock) -> None:
    door, slow = _slow_door()
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.control.serve, theirs)
        await ours.send_all(f"POST /slow HTTP/1.1\r\n{ALLOWED}\r\n\r\n".encode())
        await trio.sleep(1)
        await ours.aclose()
        await slow.left.wait()
    assert (door.control.seats.busy, door.control.seats.long) == (0, 0)


async def test_a_web_page_reaches_no_route(autojump_clock: MockClock) -> None:
    door, slow = _slow_door()
    assert (await door.request("POST /slow", ALLOWED, "Origin: http://x", SIGNED))[0] == 403
    assert (await door.request("POST /slow", "Host: x", SIGNED))[0] == 403
    assert slow.asked == []


async def test_a_bug_in_a_route_is_contained(autojump_clock: MockClock, error_log: Any) -> None:
    async def broken(_: Asked) -> Answer:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    door = Door()
    door.control.routes["/slow"] = broken
    assert (await door.request("POST /slow", ALLOWED))[0] == 500
    error_log.expect("control request failed")


def test_the_secret_is_not_shown() -> None:
    assert SECRET not in repr(Door().control)
    assert CONNECTIONS < 100
