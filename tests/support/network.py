"""A network without the kernel, for tests on virtual time.

`MemoryTransport` carries httpx requests to a handler that runs in a nursery of its own, so that a
client which goes away does not take the server's work with it, as on a real network. What goes
wrong on the way is data: a `Fault`. `memory_sockets` carries real websocket bytes over Trio's
memory streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import httpx
import trio
import trio_websocket
from trio.testing import memory_stream_pair


@attrs.frozen
class Fault:
    """One thing that goes wrong with a request.

    `delay` seconds pass first. Then `kind` happens:
    "answer": the server answers `status` and `body` and does nothing;
    "refuse": nobody listens; "lose_request": the connection breaks before the server reads;
    "lose_response": the server does its work and the answer is lost; "hang": nothing, ever;
    "none": only the delay.
    """

    kind: str
    status: int = 0
    body: str = ""
    delay: float = 0.0


REFUSE = Fault("refuse")
LOSE_REQUEST = Fault("lose_request")
LOSE_RESPONSE = Fault("lose_response")
HANG = Fault("hang")


def answer(status: int, body: str = "") -> Fault:
    return Fault("answer", status, body)


def delay(seconds: float) -> Fault:
    return Fault("none", delay=seconds)


@attrs.frozen
class Reply:
    status: int
    body: bytes


Handle = Callable[[httpx.Request], Awaitable[Reply]]
NextFault = Callable[[httpx.Request], Fault | None]


class MemoryTransport(httpx.AsyncBaseTransport):
    """Requests to `handle`, each in `nursery`; `next_fault` says what goes wrong with it."""

    def __init__(self, nursery: trio.Nursery, handle: Handle, next_fault: NextFault) -> None:
        self._nursery = nursery
        self._handle = handle
        self._next_fault = next_fault

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        fault = self._next_fault(request)
        if fault is not None:
            await trio.sleep(fault.delay)
            if fault.kind == "refuse":
                raise httpx.ConnectError("connection refused", request=request)
            if fault.kind == "lose_request":
                raise httpx.ReadError("connection reset", request=request)
            if fault.kind == "hang":
                await trio.sleep_forever()
            if fault.kind == "answer":
                return httpx.Response(fault.status, content=fault.body.encode(), request=request)
        answered = trio.Event()
        replies: list[Reply] = []

        async def serve() -> None:
            replies.append(await self._handle(request))
            answered.set()

        self._nursery.start_soon(serve)
        await answered.wait()
        if fault is not None and fault.kind == "lose_response":
            raise httpx.RemoteProtocolError("server disconnected", request=request)
        [reply] = replies
        return httpx.Response(reply.status, content=reply.body, request=request)


ServeSocket = Callable[[trio_websocket.WebSocketConnection], Awaitable[None]]


@asynccontextmanager
async def memory_websocket(
    serve: ServeSocket,
    nursery: trio.Nursery,
    path: str,
    headers: list[tuple[bytes, bytes]],
) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """Connect to `serve`, which runs in `nursery`, by a websocket over memory streams."""
    ours, theirs = memory_stream_pair()

    async def server_side() -> None:
        async with trio.open_nursery() as connection:
            request = await trio_websocket.wrap_server_stream(connection, theirs)
            socket = await request.accept()
            with suppress(trio_websocket.ConnectionClosed):
                await serve(socket)
            connection.cancel_scope.cancel()
        await trio.aclose_forcefully(theirs)

    nursery.start_soon(server_side)
    async with trio.open_nursery() as client:
        socket = await trio_websocket.wrap_client_stream(
            client,
            ours,  # type: ignore[arg-type]  # any stream will do, memory streams included
            "server",
            path,
            extra_headers=headers,
            max_message_size=64 * 1024,
        )
        try:
            yield socket
        finally:
            # synchronous: an await here would be cancelled and hide the error on its way out
            ours.send_stream.close()
            ours.receive_stream.close()
            client.cancel_scope.cancel()


def json_reply(value: Any, status: int = 200) -> Reply:
    from shared import codec

    return Reply(status, codec.encode(value) + b"\n")
