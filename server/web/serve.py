"""Serves an ASGI application over TCP: the only module that knows hypercorn.

Woken by connections; ended by the `stop` event, after which nothing new is accepted, idle
connections close at once and busy ones within the drain time. hypercorn's protocol classes are used
one connection at a time, inside a child that contains whatever a peer or a defect raises. Three
nested nurseries: the one that cuts what is left at the end, the one of connections, the one that
accepts. Where hypercorn 0.18 is known to hang, spin or fall (design/trio-notes.md 2.10), the
subclasses here differ; tests/server/test_serve.py has a test per row of that table.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import attrs
import h11
import structlog
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Data, Request, StreamClosed
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol, H11WSConnection
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from wsproto.connection import ConnectionState as SocketState
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.utilities import LocalProtocolError

from server.push.peer import EXTENSION

log = structlog.get_logger(__name__)

_RECEIVE: Final = 64 * 1024
_SOCKET_MESSAGE: Final = 64 * 1024
"""Bytes of one websocket message, unless the application sets another limit: nothing that browsers
or daemons say to us is long."""

_REST: Final = 256 * 1024
"""Bytes of an unread body that are taken to keep a connection; of more, the connection is closed."""

_INBOX: Final = 10
"""Messages (pieces of at most `_RECEIVE`) an application may leave unread before its peer waits."""


class BindError(Exception):
    """The address cannot be listened on; the text says what to do."""


class ClientGone(OSError):
    """The peer has left; whoever still sends to it stops."""


@attrs.frozen(kw_only=True)
class Limits:
    """Patience with peers, in seconds."""

    send: float = 10.0
    """For one write: a peer that does not read for so long is cut."""
    head: float = 15.0
    """From the first byte of a request to the end of its head."""
    body_gap: float = 30.0
    """Between two pieces of a body."""
    body: float = 300.0
    """For a whole body: ten megabytes over a slow line."""
    idle: float = 75.0
    """Between requests. Clients of ours let go of a connection sooner, so no request meets a close."""
    rest: float = 1.0
    """For the rest of a body that nobody reads, before the answer to its request."""
    linger: float = 2.0
    """After our last byte, for the peer to read it and close."""


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on an address; port 0 means any free one. Raises BindError."""
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise BindError(_advice(host, port, error)) from error
    if port == 0:  # each address got a port of its own: keep to one
        for surplus in listeners[1:]:
            surplus.socket.close()
        return listeners[:1]
    return listeners


def _advice(host: str, port: int, error: OSError) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    codes = {error.errno, cause.errno}
    codes |= {
        inner.errno for inner in getattr(cause, "exceptions", ()) if isinstance(inner, OSError)
    }
    if errno.EADDRINUSE in codes:
        return (
            f"port {port} on {host} is in use. Stop the program that uses it, or choose another"
            " port with --port (0 means any free one)."
        )
    if errno.EACCES in codes:
        return f"port {port} needs special rights. Choose one above 1023 with --port."
    if errno.EADDRNOTAVAIL in codes or isinstance(error, socket.gaierror):
        return f"{host!r} is not an address of this machine. Choose one with --host."
    return f"cannot listen on {host} port {port}: {error}"


def url_of(listeners: list[trio.SocketListener], host: str) -> str:
    """The address people can open."""
    port = listeners[0].socket.getsockname()[1]
    name = "127.0.0.1" if host in {"", "0.0.0.0", "::"} else host  # noqa: S104
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


async def serve(
    app: ASGIApp,
    listeners: list[trio.SocketListener],
    *,
    stop: trio.Event,
    drain: float = 5.0,
    go_away: Callable[[], None] = lambda: None,
    limits: Limits = Limits(),
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop`, then let connections end for at most `drain` seconds.

    `go_away` is called at the beginning of the drain, to send long-lived peers off.
    """
    server = Server(app, limits)
    async with trio.open_nursery() as cutting:
        cutting.start_soon(server.cut_at_the_end)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(
                        trio.serve_listeners,
                        server.handle,
                        listeners,
                        handler_nursery=connections,
                    )
                )
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel(reason="the server stops")
            await server.begin_drain(drain, connections.cancel_scope)
            go_away()
        cutting.cancel_scope.cancel(reason="all connections have ended")


class Server:
    """The connections of one server. Tests feed it streams that are no sockets."""

    def __init__(self, app: ASGIApp, limits: Limits = Limits()) -> None:
        self._app = _ReadOut(app, limits)
        self._limits = limits
        self._context = WorkerContext(None)
        self._open: set[_Connection] = set()
        self._draining = trio.Event()
        self._deadline = math.inf
        self._connections: trio.CancelScope | None = None
        self._config = HypercornConfig()
        self._config.errorlog = None
        self._config.accesslog = None
        self._config.include_server_header = False
        self._config.websocket_max_message_size = _SOCKET_MESSAGE

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    async def handle(self, stream: Any) -> None:
        """Serve one connection; nothing but cancellation comes out."""
        connection = _Connection(self._app, self._config, self._context, self._limits, stream)
        self._open.add(connection)
        try:
            await connection.run()
        except* Exception as group:
            log.warning("connection failed", exc_info=group)
        finally:
            self._open.discard(connection)
            connection.abort()

    async def begin_drain(self, drain: float, connections: trio.CancelScope) -> None:
        """No more keep-alive; everything is to be over in `drain` seconds."""
        self._connections = connections
        self._deadline = trio.current_time() + drain
        self._draining.set()
        await self._context.terminated.set()

    async def cut_at_the_end(self) -> None:
        """When the drain is over, or all of it is cancelled, close what is still open.

        Closing the socket also ends sends, which are shielded.
        """
        try:
            await self._draining.wait()
            await trio.sleep_until(self._deadline)
            if self._connections is not None:
                self._connections.cancel(reason="the drain is over")
        finally:
            for connection in tuple(self._open):
                connection.abort()


class _ReadOut:
    """Answers a request when all of it has come, also when the application did not ask for it.

    An answer that overtakes the body costs the connection, which the peer would learn only by a lost
    next request. Where the rest is too much, the answer says that the connection closes.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope["headers"]} if scope["type"] == "http" else set()
        if names.isdisjoint({b"content-length", b"transfer-encoding"}):
            await self._app(scope, receive, send)
            return
        whole = trio.Event()

        async def take() -> Message:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                whole.set()
            return message

        async def send_behind(message: Message) -> None:
            if message["type"] == "http.response.start" and not whole.is_set():
                left = _REST
                with trio.move_on_after(self._limits.rest):
                    while left > 0 and not whole.is_set():
                        left -= len((await take()).get("body", b""))
                if not whole.is_set():
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, take, send_behind)


class _Connection(TCPServer):
    """One connection: a reader, and the application's tasks. Closed by `abort`, synchronously."""

    def __init__(
        self,
        app: ASGIApp,
        config: HypercornConfig,
        context: WorkerContext,
        limits: Limits,
        stream: Any,
    ) -> None:
        super().__init__(app, config, context, ConnectionState({}), stream)  # type: ignore[arg-type]
        self._tasks = _Tasks()
        self._limits = limits
        self._reading = True
        self._closing = False
        self._since = math.inf

    async def run(self) -> None:
        sock = self.stream.socket
        try:
            client = parse_socket_addr(sock.family, sock.getpeername())
            here = parse_socket_addr(sock.family, sock.getsockname())
        except OSError:
            return  # gone before we looked
        async with self._tasks as tasks:
            self._task_group = tasks
            self.protocol = _Http(  # type: ignore[assignment]
                self.app,
                self.config,
                self.context,
                tasks,
                ConnectionState(self.state),
                False,  # no TLS
                client,
                here,
                self.protocol_send,
                self.abort,
            )
            await self.idle_task.restart(tasks, self._idle_timeout)
            await self._read_data()

    def abort(self) -> None:
        """Close the socket now; whoever waits for it is woken."""
        self.stream.socket.close()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._send(event.data)
        elif isinstance(event, Closed):
            self._hang_up()
            await self.protocol.handle(Closed())
        elif isinstance(event, Updated):
            if event.idle and self._reading and not self._closing:
                await self.idle_task.restart(self._task_group, self._idle_timeout)
            else:
                await self.idle_task.stop()

    async def _send(self, data: bytes) -> None:
        """Write, shielded so that no frame is torn, but only as long as the peer reads."""
        sent = False
        async with self.send_lock:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                with trio.move_on_after(self._limits.send, shield=True):
                    await self.stream.send_all(data)
                    sent = True
        if not sent:
            self.abort()
            await self.protocol.handle(Closed())

    def _hang_up(self) -> None:
        """Say that no more comes. The rest of what the peer sends is read and thrown away for a
        moment, because a close with unread data destroys what the peer has not read yet.
        """
        if self._closing:
            return
        self._closing = True
        try:
            self.stream.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()
        else:
            self._tasks.spawn(self._linger)

    async def _linger(self) -> None:
        with self._tasks.while_reading:
            await trio.sleep(self._limits.linger)
            self.abort()

    async def _read_data(self) -> None:
        try:
            while True:
                data = b""
                with (
                    suppress(trio.ClosedResourceError, trio.BrokenResourceError),
                    trio.move_on_at(self._patience()),
                ):
                    data = bytes(await self.stream.receive_some(_RECEIVE))
                if not self._closing:
                    await self.protocol.handle(RawData(data))
                if not data:
                    break
        finally:
            self._reading = False
            self._tasks.while_reading.cancel(reason="nothing more is read")
        await self.idle_task.stop()
        await self.protocol.handle(Closed())

    def _patience(self) -> float:
        """Until when the next bytes are waited for: a request that has begun must go on."""
        connection: Any = self.protocol.connection  # type: ignore[attr-defined]
        now = trio.current_time()
        if isinstance(connection, h11.Connection):
            if connection.their_state is h11.SEND_BODY:
                self._since = min(self._since, now)
                return min(now + self._limits.body_gap, self._since + self._limits.body)
            if connection.their_state is h11.IDLE and connection.trailing_data[0]:
                self._since = min(self._since, now)
                return self._since + self._limits.head
        self._since = math.inf
        return math.inf

    async def _idle_timeout(self) -> None:
        with trio.move_on_after(self._limits.idle):
            await self.context.terminated.wait()
        self.abort()


class _Tasks(TaskGroup):
    """The tasks of one connection. `while_reading` ends with the reader."""

    def __init__(self) -> None:
        super().__init__()
        self.while_reading = trio.CancelScope()

    async def spawn_app(
        self,
        app: Any,
        _config: HypercornConfig,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        inbox = _Inbox("websocket" if scope["type"] == "websocket" else "http")
        run = _run_read if scope.get("method") in {"GET", "HEAD"} else _run_app
        self.spawn(run, app, scope, inbox, send)
        await trio.lowlevel.checkpoint()
        return inbox.put


async def _run_app(
    app: ASGIApp, scope: Scope, inbox: _Inbox, send: Callable[[Any], Awaitable[None]]
) -> None:
    try:
        await app(scope, inbox.receive, send)
    except* ClientGone:
        pass
    except* Exception as group:
        log.exception("application failed", exc_info=group)
    finally:
        inbox.abandon()
    await send(None)


async def _run_read(
    app: ASGIApp, scope: Scope, inbox: _Inbox, send: Callable[[Any], Awaitable[None]]
) -> None:
    """As `_run_app`, for what changes nothing: nobody waits for its answer once the peer has gone."""
    with trio.CancelScope() as reading:
        inbox.gone = partial(reading.cancel, reason="the client has gone")

        async def send_and_note(message: Any) -> None:
            if message is None or message["type"] == "http.response.body":
                inbox.gone = _ignore  # it ends by itself now
            await send(message)

        await _run_app(app, scope, inbox, send_and_note)


def _ignore() -> None:
    pass


class _Inbox:
    """What the peer says, on its way to the application.

    hypercorn's own queue blocks for ever once the application has stopped reading; this one ends
    with the application, and a disconnect gets through when it is full.
    """

    def __init__(self, kind: str) -> None:
        self._send, self._receive = trio.open_memory_channel[Message](_INBOX)
        self._end: Message = {"type": f"{kind}.disconnect"}
        self.gone: Callable[[], object] = _ignore
        """Called when the peer has left; whoever runs the application sets it."""
        if kind == "websocket":
            self._end["code"] = 1006

    async def put(self, message: Message) -> None:
        if message["type"] == self._end["type"]:
            self._end = message
            self._send.close()
            self.gone()
            return
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._send.send(message)

    async def receive(self) -> Message:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            return self._end

    def abandon(self) -> None:
        self._send.close()
        self._receive.close()


class _Http(H11Protocol):
    """HTTP/1.1 and the websocket upgrade, nothing else: no upgrade to HTTP/2."""

    def __init__(self, *args: Any) -> None:
        *rest, self._abort = args
        super().__init__(*rest)

    async def _check_protocol(self, _event: h11.Request) -> None:
        return

    async def _create_stream(self, request: h11.Request) -> None:
        headers = list(request.headers)
        values = {name.lower(): value.lower() for name, value in headers}
        if b"transfer-encoding" in values and (
            b"content-length" in values or request.http_version < b"1.1"
        ):  # a proxy before us may see its end elsewhere (RFC 9112 6.1)
            await self._send_error_response(400)
            await self.send(Closed())
            return
        tokens = {token.strip() for token in values.get(b"connection", b"").split(b",")}
        upgrade = values.get(b"upgrade", b"").strip() == b"websocket" and b"upgrade" in tokens
        shared = (self.app, self.config, self.context, self.task_group, self.ssl)
        ends = (self.client, self.server, self.stream_send, STREAM_ID)
        if upgrade and request.method == b"GET":
            assert isinstance(self.connection, h11.Connection)
            self.stream = _Socket(*shared, *ends, abort=self._abort)
            self.connection = H11WSConnection(self.connection)
        else:
            self.stream = HTTPStream(*shared, *ends)
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1


class _Socket(WSStream):
    """A websocket. It is also the Control that the application finds in its scope."""

    def __init__(self, *args: Any, abort: Callable[[], None]) -> None:
        super().__init__(*args)
        self.max_message = self.config.websocket_max_message_size
        self.last_pong = trio.current_time()
        self.abort = abort
        self._size = 0
        self._plain_app: Any = self.app
        self.app = self._controlled_app  # type: ignore[assignment]

    async def _controlled_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][EXTENSION] = self
        self.handshake.extensions = None  # no compression (spec 01 §4.1)
        await self._plain_app(scope, receive, send)

    async def ping(self) -> None:
        if not self.closed:
            await self._send_wsproto_event(Ping())

    async def handle(self, event: Any) -> None:
        if self.closed:
            return
        if isinstance(event, (Body, Data)) and not self.handshake.accepted:
            await self._leave(1002)  # nothing may come before the handshake is answered
            return
        with suppress(LocalProtocolError):  # data behind a close frame
            await super().handle(event)

    async def app_send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()  # a loop that only sends must not hold up everybody
        if self.closed and message is not None and message["type"] != "websocket.close":
            raise ClientGone
        await super().app_send(message)

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            if isinstance(event, (TextMessage, BytesMessage)):
                if not await self._take(event):
                    return
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, Pong):
                self.last_pong = trio.current_time()
            elif isinstance(event, CloseConnection):
                if self.connection.state is SocketState.REMOTE_CLOSING:
                    await self._send_wsproto_event(event.response())
                elif self.connection.state is SocketState.OPEN:  # not a websocket frame
                    await self._send_wsproto_event(CloseConnection(code=event.code))
                await self._leave(int(event.code))
                return

    async def _take(self, event: TextMessage | BytesMessage) -> bool:
        """Collect a message; False when it is too long and the connection was closed for it."""
        data = event.data
        self._size += len(data.encode()) if isinstance(data, str) else len(data)
        if self._size > self.max_message:
            await self._send_wsproto_event(CloseConnection(code=1009))
            await self._leave(1009)
            return False
        self.buffer.extend(event)
        if event.message_finished:
            assert self.app_put is not None
            await self.app_put(self.buffer.to_message())
            self.buffer.clear()
            self._size = 0
        return True

    async def _leave(self, code: int) -> None:
        """The connection is over: tell the application, then hang up."""
        assert self.app_put is not None
        await self.app_put({"type": "websocket.disconnect", "code": code})
        self.closed = True
        await self.send(StreamClosed(stream_id=self.stream_id))
