"""A running server inside the test: the real application behind the real `serve`.

`open_server` listens on a loopback port, on a real Postgres and the real clock. `MemoryServer` feeds
`serve`'s connections from memory, so that tests of connections can run on virtual time.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio
import trio.testing
from starlette.types import ASGIApp
from trio_websocket import WebSocketConnection, wrap_client_stream

from server.app import open_services
from server.config import Config
from server.database import Database
from server.web.context import Services
from server.web.routes import make_app
from server.web.serve import Limits, Server, open_listeners, serve, url_of
from shared.home import Home

SECRET = "a secret that is long enough for the tests"


def make_config(**settings: Any) -> Config:
    """Settings for tests; nothing is written to the home directory."""
    given: dict[str, Any] = {
        "home": Home(Path(tempfile.gettempdir()) / "bullpen-no-home"),
        "port": 0,
        "jwt_secret": SECRET,
        "drain": 1.0,
        "sweep_interval": 3600.0,
    }
    return Config(**(given | settings))


@attrs.frozen(kw_only=True)
class RunningServer:
    """A server that listens. `stop` ends it; `http` has no credentials."""

    url: str
    services: Services
    http: httpx.AsyncClient
    stop: trio.Event

    def client(self, token: str = "", **headers: str) -> httpx.AsyncClient:
        """A client that sends a token; to be used as a context manager or closed."""
        if token:
            headers["authorization"] = f"Bearer {token}"
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=10)

    @asynccontextmanager
    async def socket(
        self, path: str, token: str = "", headers: list[tuple[str, str]] | None = None
    ) -> AsyncIterator[WebSocketConnection]:
        """An open websocket, its token in the header."""
        extra = [(name.encode(), value.encode()) for name, value in headers or ()]
        if token:
            extra.append((b"authorization", f"Bearer {token}".encode()))
        host, port = self.url.removeprefix("http://").split(":")
        stream = await trio.open_tcp_stream(host, int(port))
        try:
            async with trio.open_nursery() as reading:
                with trio.fail_after(5):
                    opened = await wrap_client_stream(
                        reading,
                        stream,
                        f"{host}:{port}",
                        path,
                        extra_headers=extra,
                        message_queue_size=64,
                    )
                yield opened
                with trio.move_on_after(1):
                    await opened.aclose()
                reading.cancel_scope.cancel()
        finally:
            stream.socket.close()


@asynccontextmanager
async def open_server(database: Database, **settings: Any) -> AsyncIterator[RunningServer]:
    """Run the whole server on a database, in this process. Settings are those of Config."""
    config = make_config(**settings)
    listeners = await open_listeners(config.host, config.port)
    url = url_of(listeners, config.host)
    stop = trio.Event()
    async with open_services(config, database) as parts, trio.open_nursery() as web:
        await web.start(
            partial(
                serve,
                make_app(parts),
                listeners,
                stop=stop,
                drain=config.drain,
                go_away=partial(parts.hub.close_all, 1012, "the server restarts"),
            )
        )
        async with httpx.AsyncClient(base_url=url, timeout=10) as http:
            yield RunningServer(url=url, services=parts, http=http, stop=stop)
        stop.set()


class _FakeSocket:
    """As much of a socket as `serve` asks for, over a memory stream."""

    family = socket.AF_INET

    def __init__(self, stream: trio.StapledStream[Any, Any]) -> None:
        self._stream = stream

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 4242)

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 80)

    def shutdown(self, _how: int) -> None:
        self._close(self._stream.send_stream)

    def close(self) -> None:
        self._close(self._stream.send_stream)
        self._close(self._stream.receive_stream)

    def _close(self, half: Any) -> None:
        if hasattr(half, "close"):
            half.close()


@attrs.define(eq=False)
class FakeStream:
    """The server's end of a connection in memory.

    `stuck` makes the peer stop reading: sends then wait until the stream is closed.
    """

    inner: trio.StapledStream[Any, Any]
    socket: _FakeSocket = attrs.field(init=False)
    stuck: bool = False
    sent: int = 0
    closed: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.socket = _FakeSocket(self.inner)
        close = self.socket.close

        def note_close() -> None:
            close()
            self.closed.set()

        self.socket.close = note_close  # type: ignore[method-assign]

    async def send_all(self, data: bytes) -> None:
        if self.stuck:
            await self.closed.wait()
            raise trio.ClosedResourceError
        self.sent += len(data)
        await self.inner.send_all(data)

    async def receive_some(self, limit: int) -> bytes:
        return bytes(await self.inner.receive_some(limit))

    async def aclose(self) -> None:
        self.socket.close()
        await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class MemoryServer:
    """`serve`'s connections without a listener. Open with `open_memory_server`."""

    server: Server
    connections: trio.Nursery
    streams: list[FakeStream] = attrs.field(factory=list)

    def connect(self) -> trio.StapledStream[Any, Any]:
        """Open a connection; returns the client's end."""
        mine, theirs = trio.testing.memory_stream_pair()
        stream = FakeStream(theirs)
        self.streams.append(stream)
        self.connections.start_soon(self.server.handle, stream)
        return mine

    @asynccontextmanager
    async def websocket(self, path: str = "/ws") -> AsyncIterator[WebSocketConnection]:
        """Open a websocket over a new connection."""
        async with trio.open_nursery() as reading:
            opened = await wrap_client_stream(
                reading, self.connect(), "bullpen.test", path, message_queue_size=64
            )
            yield opened
            reading.cancel_scope.cancel()

    async def stop(self, drain: float) -> None:
        """Begin the drain; leaving `open_memory_server` waits for its end."""
        await self.server.begin_drain(drain, self.connections.cancel_scope)


@asynccontextmanager
async def open_memory_server(
    app: ASGIApp, limits: Limits = Limits()
) -> AsyncIterator[MemoryServer]:
    """Serve an application from memory, in the same nurseries as `serve` has."""
    server = Server(app, limits)
    async with trio.open_nursery() as cutting:
        cutting.start_soon(server.cut_at_the_end)
        async with trio.open_nursery() as connections:
            memory = MemoryServer(server, connections)
            yield memory
            if not server.draining:
                await server.begin_drain(0, connections.cancel_scope)
        cutting.cancel_scope.cancel()


async def exchange(
    stream: trio.StapledStream[Any, Any], request: bytes, *, wait: float = 60
) -> bytes:
    """Send bytes and read until the server closes or `wait` seconds pass."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(request)
    return await read_all(stream, wait=wait)


async def read_all(stream: trio.StapledStream[Any, Any], *, wait: float = 60) -> bytes:
    """What comes until the end of the stream, or for `wait` seconds."""
    got = b""
    with trio.move_on_after(wait), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await stream.receive_some(65536):
            got += data
    return got
