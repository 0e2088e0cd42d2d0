"""The daemon's door on this machine: who is running, and an orderly stop.

Holding the port is what makes this the only daemon of its profile; a lock on a file in the home
does so where the port is chosen freely. It is opened first and closed last, so that a successor
can never meet a predecessor that still works. Requests come from the command line over loopback.
Changing anything takes the secret from the daemon's file, and requests that a browser made for some
web page are refused altogether (spec 03 §6, hazard). Other parts of the daemon answer paths of
their own (`routes`) and check for themselves who asks.
"""

from __future__ import annotations

import hmac
import http.client
import json
import math
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import h11
import structlog
import trio

from daemon import threads
from shared import codec
from shared.home import OURS, Home, write_private

if sys.platform == "win32":  # the port alone is the lock there
    fcntl = None
else:
    import fcntl

log = structlog.get_logger(__name__)

EXCHANGE: Final = 10.0
"""Seconds for one connection's answer."""

ASKING: Final = 10.0
"""Seconds for the whole request, from the connection on."""

WAITING: Final = 64
"""Connections whose request has not come yet. One more, and the oldest of them is closed: silence
keeps nobody out."""

LONG_ANSWERS: Final = 256
"""Answers of `routes` under way at a time."""

LONGEST_HEAD: Final = 16 * 1024
LONGEST_BODY: Final = 64 * 1024

_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})

Status = Callable[[], dict[str, Any]]


class AlreadyRunning(Exception):
    """Another daemon holds the port or the home; the text says which."""


@attrs.frozen(kw_only=True)
class Answer:
    """`text` is sent as it is; `value`, if given, as JSON instead."""

    status: int
    text: str = ""
    value: dict[str, Any] | None = None


@attrs.frozen(kw_only=True)
class Asked:
    """One request, as far as it matters here. Header names are lower case."""

    method: str
    path: str
    headers: dict[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(default=b"", repr=False)


Handler = Callable[[Asked], Awaitable[Answer]]
"""Answers one path and never raises. It may take its time: it is cancelled when the asker leaves."""


@attrs.define(eq=False)
class _Seats:
    """Who is at the door: connections that have not asked yet, oldest first, and long answers."""

    waiting: dict[int, trio.CancelScope] = attrs.field(factory=dict)
    long: int = 0

    @contextmanager
    def wait(self) -> Iterator[trio.CancelScope]:
        """A place among those who have not asked yet; the scope ends by time, or for a newcomer."""
        while len(self.waiting) >= WAITING:
            self.waiting.pop(next(iter(self.waiting))).cancel(reason="others wait too")
        with trio.move_on_after(ASKING) as asking:
            self.waiting[id(asking)] = asking
            try:
                yield asking
            finally:
                self.waiting.pop(id(asking), None)


@attrs.frozen(kw_only=True, eq=False)
class Control:
    """The open door. `secret` must accompany every request that changes something.

    `routes` are the paths others answer; who adds one takes it out again.
    """

    port: int
    secret: str = attrs.field(repr=False)
    status: Status
    stop: Callable[[str], None]
    commands: Mapping[str, Callable[[], dict[str, Any]]] = attrs.field(factory=dict)
    """Path -> what to do, at once, and the answer. They take the secret, as /shutdown does."""
    routes: dict[str, Handler] = attrs.field(factory=dict)
    seats: _Seats = attrs.field(factory=_Seats)

    def answer(self, asked: Asked) -> Answer:
        """Decide on a request (spec 01 §6)."""
        if _is_foreign(asked):
            return Answer(status=403, text="forbidden\n")
        if asked.path == "/health":
            return Answer(status=200, value=_told(self.status(), asked))
        if asked.path == "/shutdown":
            return self._signed(asked) or Answer(status=200, value={"status": "shutting down"})
        if asked.path in self.commands:
            return self._signed(asked) or Answer(status=200, value=self.commands[asked.path]())
        return Answer(status=404, text="404 page not found\n")

    def _signed(self, asked: Asked) -> Answer | None:
        """Refuse what changes something, unless it is a POST with the secret."""
        if asked.method != "POST":
            return Answer(status=405, text="method not allowed\n")
        given = asked.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.secret}".encode()):
            return Answer(status=401, text="unauthorized\n")
        return None

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer the one request of a connection and close it; never raises for the peer's sake."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        try:
            asked: Asked | Answer | None = None
            with self.seats.wait():
                asked = await _receive(stream, connection)
            if asked is not None:
                with trio.move_on_after(EXCHANGE) as limit:
                    await self._exchange(stream, connection, asked, limit)
        except (h11.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("control connection broken", error=str(error))
        finally:
            await trio.aclose_forcefully(stream)

    async def _exchange(
        self,
        stream: trio.abc.Stream,
        connection: h11.Connection,
        asked: Asked | Answer,
        limit: trio.CancelScope,
    ) -> None:
        if isinstance(asked, Answer):  # it was no request
            await _send(stream, connection, asked, head=False)
            return
        answer: Answer | None
        try:
            route = None if _is_foreign(asked) else self.routes.get(asked.path)
            if route is None:
                answer = self.answer(asked)
            else:
                answer = await self._answer_long(route, asked, stream, limit)
                if answer is None:
                    return
        except Exception:
            log.exception("control request failed", path=asked.path)
            answer = Answer(status=500, text="internal error\n")
        await _send(stream, connection, answer, head=asked.method == "HEAD")
        if asked.path == "/shutdown" and answer.status == 200:
            self.stop("asked to by /shutdown")

    async def _answer_long(
        self, route: Handler, asked: Asked, stream: trio.abc.Stream, limit: trio.CancelScope
    ) -> Answer | None:
        """Let a route answer, however long it takes; None when the asker left before."""
        if self.seats.long >= LONG_ANSWERS:
            return Answer(status=503, text="too many requests at a time\n")
        answer: Answer | None = None
        self.seats.long += 1
        limit.deadline = math.inf
        try:
            async with trio.open_nursery() as work:

                async def watch() -> None:
                    with suppress(trio.BrokenResourceError):
                        while await stream.receive_some(4096):
                            pass
                    work.cancel_scope.cancel(reason="the asker left")

                work.start_soon(watch)
                try:
                    answer = await route(asked)
                except Exception:
                    log.exception("control request failed", path=asked.path)
                    answer = Answer(status=500, text="internal error\n")
                work.cancel_scope.cancel(reason="answered")
        finally:
            self.seats.long -= 1
        limit.deadline = trio.current_time() + EXCHANGE
        return answer


PRODUCT: Final = "bullpen"


def _told(health: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """Name the product, for others in the very field the reference's commands look at.

    To them a daemon that says neither `running` nor `starting` is none of theirs: so their `stop`,
    `restart` and `setup` leave it alone.
    """
    told = {**health, "product": PRODUCT}
    if OURS not in asked.headers:
        told["status"] = f"{PRODUCT} {health.get('status', '')}".strip()
    return told


def _who_has(port: int) -> str:
    """Say in a sentence who holds a port of this machine. Blocks for at most two seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    told: Any = None
    try:
        connection.request("GET", "/health", headers={OURS: "1"})
        told = json.loads(connection.getresponse().read(1 << 20))
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        pass
    finally:
        connection.close()
    if not isinstance(told, dict) or "daemon_id" not in told:
        return "another program has it; set BULLPEN_DAEMON_PORT to a free one"
    if told.get("product") == PRODUCT:
        return f"another daemon of Bullpen has it (pid {told.get('pid')})"
    return (
        f"a daemon of another product has it (pid {told.get('pid')}), which Bullpen leaves alone:"
        " stop that one yourself, or set BULLPEN_DAEMON_PORT to a free one"
    )


async def _receive(stream: trio.abc.Stream, connection: h11.Connection) -> Asked | Answer | None:
    """The whole request, or what to answer to something that is none; None when the peer left."""
    request: h11.Request | None = None
    body = bytearray()
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            return Answer(status=error.error_status_hint, text="bad request\n")
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(4096)))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > LONGEST_BODY:
                return Answer(status=413, text="request too large\n")
        elif isinstance(event, h11.ConnectionClosed):
            return None
        else:
            assert request is not None
            return _asked(request, bytes(body))


def _is_foreign(asked: Asked) -> bool:
    """Whether a browser asks for some web page, or anybody by another name than this machine's."""
    host = asked.headers.get("host", "").rsplit(":", 1)[0]
    return host not in _NAMES or "origin" in asked.headers


def _asked(request: h11.Request, body: bytes) -> Asked:
    return Asked(
        method=request.method.decode("ascii"),
        path=request.target.decode("ascii").split("?", 1)[0],
        headers={name.decode(): value.decode("latin-1") for name, value in request.headers},
        body=body,
    )


async def _send(
    stream: trio.abc.Stream, connection: h11.Connection, answer: Answer, *, head: bool
) -> None:
    kind, body = "text/plain; charset=utf-8", answer.text.encode()
    if answer.value is not None:
        kind, body = "application/json", codec.encode(answer.value) + b"\n"
    response = h11.Response(
        status_code=answer.status,
        headers=[
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ],
    )
    sent = connection.send(response) or b""
    if not head:
        sent += connection.send(h11.Data(data=body)) or b""
    sent += connection.send(h11.EndOfMessage()) or b""
    await stream.send_all(sent)


@contextmanager
def hold_home(home: Home) -> Iterator[None]:
    """Hold the home's lock; the system drops it however the process ends. Raises AlreadyRunning."""
    path = home.daemon_lock
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise AlreadyRunning(
                    f"a daemon is already running for {home.root}; end it first: bullpen daemon stop"
                ) from error
        yield


async def _listen(port: int) -> list[trio.SocketListener]:
    """Listen on a port of loopback, 0 for any. Raises AlreadyRunning, naming who has it."""
    refused: OSError
    try:
        return await trio.open_tcp_listeners(port, host="127.0.0.1")
    except OSError as error:
        refused = error
    who = await threads.in_thread(partial(_who_has, port)) if port else str(refused)
    raise AlreadyRunning(f"port {port} of this machine is taken: {who}") from refused


@asynccontextmanager
async def open_control(
    home: Home,
    port: int,
    *,
    status: Status,
    stop: Callable[[str], None],
    commands: Mapping[str, Callable[[], dict[str, Any]]] | None = None,
) -> AsyncIterator[Control]:
    """Take the lock and the port, say so in the daemon's file, and serve until the block is left.

    `stop` is called, with the reason, after a stop was answered. Raises AlreadyRunning.
    """
    with hold_home(home):
        listeners = await _listen(port)
        bound: int = listeners[0].socket.getsockname()[1]
        control = Control(
            port=bound,
            secret=secrets.token_urlsafe(32),
            status=status,
            stop=stop,
            commands=commands or {},
        )
        told = {"pid": os.getpid(), "port": bound, "secret": control.secret}
        write_private(home.daemon_file, json.dumps(told, indent=2) + "\n")
        try:
            async with trio.open_nursery() as door:
                door.start_soon(_accept, control, listeners)
                yield control
                door.cancel_scope.cancel(reason="the daemon has stopped")
        finally:
            _forget(home.daemon_file, control.secret)


async def _accept(control: Control, listeners: list[trio.SocketListener]) -> None:
    await trio.serve_listeners(control.serve, listeners)


def _forget(path: Path, secret: str) -> None:
    """Remove the daemon's file, unless a successor has written its own."""
    with suppress(OSError, codec.DecodeError):
        told = codec.loads(path.read_bytes())
        if isinstance(told, dict) and told.get("secret") == secret:
            path.unlink()
