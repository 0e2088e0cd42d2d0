"""One websocket for all runtimes: beats out, wake-ups in.

It reconnects whenever the set of runtimes changes and, with back-off, whenever the connection ends.
It owns the connection; what arrives is handed over at once, to pollers, freshness marks, actions
and reconcilers, so that the reader never waits. It is only an accelerator: polling and HTTP beats
carry on without it. It ends by being cancelled.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

import attrs
import structlog
import trio
import trio_websocket

from daemon import answers
from daemon.client import identity_headers
from shared import codec
from shared.mailbox import Nudge
from shared.supervise import Backoff
from shared.wire import frame
from shared.wire.runtime import BEAT_MANY, Beat

if TYPE_CHECKING:
    from daemon.services import Services

log = structlog.get_logger(__name__)

HANDSHAKE: Final = 10.0
"""Seconds to connect and upgrade (spec 03 §11). Ours, round the whole of it: the library's own leaves
its reader waiting for a peer that took the connection and says nothing."""

ANOTHER: Final = 3.0
"""Seconds after which a second handshake is begun beside one that stalls. The first to succeed counts:
a server that is slow may take its time, one that came back is not waited for."""

WRITE: Final = 10.0
"""Seconds a beat may wait for a peer that does not read."""

CLOSE: Final = 1.0
"""Seconds for the closing handshake; the peer learns the rest from TCP."""

LONGEST_FRAME: Final = 64 * 1024

NO_RUNTIMES: Final = 5.0
"""Seconds between looks while there is nothing to connect for."""

MISSED_BEATS: Final = 3
"""Beats without anything from the server after which the connection counts as dead: every beat is
acknowledged, and a half-open connection would hold up wake-ups for minutes."""

HEALTHY: Final = 60.0
"""Seconds after which a connection that ends was a good one, and the back-off starts afresh."""

BACKOFF: Final = Backoff(first=1.0, limit=4.0, jitter=0.2)
"""Up to 5 s: who waits for a server to come back waits no longer than that once it is back."""

SHORTEST: Final = 0.1
"""Seconds between any two connections."""

REFUSED: Final = Backoff(first=1.0, limit=30.0, jitter=0.2)
"""After a refusal, which is the answer of a server that is there."""

_ENDS = (
    trio_websocket.HandshakeError,
    trio_websocket.ConnectionClosed,
    trio.TooSlowError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    OSError,
)
"""How a connection ends that is nobody's bug."""


class Socket(Protocol):
    """The part of a websocket connection used here."""

    async def get_message(self) -> str | bytes: ...

    async def send_message(self, message: str) -> None: ...


Headers = list[tuple[bytes, bytes]]
Connect = Callable[[str, Headers], AbstractAsyncContextManager[Socket]]


@asynccontextmanager
async def connect(url: str, headers: Headers) -> AsyncIterator[Socket]:
    """Open a websocket over the network, every limit set. Raises TooSlowError, or a group.

    The streams and the library's readers are ours, so that nothing of them outlives the block, or a
    handshake that takes too long.
    """
    async with trio.open_nursery() as handshakes:
        race = _Race()
        handshakes.start_soon(_begin_handshakes, race, url, headers)
        with trio.fail_after(HANDSHAKE):
            await race.over.wait()
        assert race.won is not None
        try:
            yield race.won
        finally:
            with trio.move_on_after(CLOSE, shield=True):
                await race.won.aclose()
            handshakes.cancel_scope.cancel(reason="websocket closed")


@attrs.define
class _Race:
    """Handshakes with one server; the first to end well cancels the others."""

    won: trio_websocket.WebSocketConnection | None = None
    over: trio.Event = attrs.field(factory=trio.Event)
    scopes: list[trio.CancelScope] = attrs.field(factory=list)

    def win(self, socket: trio_websocket.WebSocketConnection, own: trio.CancelScope) -> None:
        self.won = socket
        self.over.set()
        for scope in self.scopes:
            if scope is not own:
                scope.cancel(reason="another handshake was faster")


async def _begin_handshakes(race: _Race, url: str, headers: Headers) -> None:
    """Begin a handshake, and another beside it for as long as none has ended well."""
    async with trio.open_nursery() as handshakes:
        while race.won is None:
            handshakes.start_soon(_shake_hands, race, url, headers)
            with trio.move_on_after(ANOTHER):
                await race.over.wait()


async def _shake_hands(race: _Race, url: str, headers: Headers) -> None:
    """Do one handshake; if it is the first that ends well, keep its connection until cancelled."""
    parts = urlsplit(url)
    with trio.CancelScope() as own:
        race.scopes.append(own)
        stream = await _open_stream(url)
        try:
            async with trio.open_nursery() as reader:
                socket = await trio_websocket.wrap_client_stream(
                    reader,
                    stream,
                    parts.netloc.rpartition("@")[2],
                    f"{parts.path}?{parts.query}",
                    extra_headers=headers,
                    max_message_size=LONGEST_FRAME,
                )
                if race.won is None:
                    race.win(socket, own)
                    await trio.sleep_forever()
                reader.cancel_scope.cancel(reason="another handshake was faster")
        finally:
            await trio.aclose_forcefully(stream)


async def _open_stream(url: str) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "ws":
        return await trio.open_tcp_stream(host, parts.port or 80)
    context = ssl.create_default_context()
    return await trio.open_ssl_over_tcp_stream(
        host, parts.port or 443, ssl_context=context, https_compatible=True
    )


def socket_url(server_url: str, runtime_ids: tuple[str, ...]) -> str:
    """Return the address of spec 01 §4.1 for these runtimes."""
    parts = urlsplit(server_url)
    scheme = {"http": "ws", "https": "wss"}[parts.scheme]
    query = f"runtime_ids={quote(','.join(sorted(runtime_ids)), safe='')}"
    return urlunsplit((scheme, parts.netloc, f"{parts.path}/api/daemon/ws", query, ""))


async def run_wakeups(services: Services, *, connect: Connect = connect) -> None:
    """Keep one connection for the runtimes there are, until cancelled."""
    changed = services.directory.changed
    failures = 0
    while True:
        changed.take()  # a change before this line is part of the set read on the next
        ids = services.directory.ids()
        if not ids:
            await changed.wait(NO_RUNTIMES)
            continue
        connection = _Connection(services, ids)
        began = trio.current_time()
        try:
            await connection.run(connect)
        except* _ENDS as group:
            connection.explain(group)
        finally:
            services.freshness.clear()
        if connection.outdated:
            failures = 0
            continue
        failures = 1 if connection.age() >= HEALTHY else failures + 1
        backoff = REFUSED if connection.refused else BACKOFF
        now = trio.current_time()
        since = now if connection.opened else began  # a handshake that stalled has waited already
        if await _next_turn(services, max(since + backoff.wait(failures), now + SHORTEST)):
            failures = 0


async def _next_turn(services: Services, due: float) -> bool:
    """Wait until `due`; less if the runtimes changed or calls are answered again, which is returned."""
    cut_short = False

    async def watch(sign: Nudge) -> None:
        nonlocal cut_short
        await sign.wait()
        cut_short = True
        turn.cancel_scope.cancel(reason="the server may be back")

    async with trio.open_nursery() as turn:
        turn.start_soon(watch, services.directory.changed)
        turn.start_soon(watch, services.client.back)
        await trio.sleep_until(due)
        turn.cancel_scope.cancel(reason="it is time")
    return cut_short


class _Connection:
    """One connection from handshake to end.

    `outdated` is set when the set of runtimes changed, `refused` when a server said no.
    """

    def __init__(self, services: Services, runtime_ids: tuple[str, ...]) -> None:
        self._services = services
        self._ids = runtime_ids
        self._opened: float | None = None
        self._acknowledgements = 0  # since the last beats; the reader counts, the writer clears
        self.outdated = False
        self.refused = False

    @property
    def opened(self) -> bool:
        """Whether the handshake ended well."""
        return self._opened is not None

    def age(self) -> float:
        """Seconds since the handshake; 0 if there was none."""
        return 0.0 if self._opened is None else trio.current_time() - self._opened

    def explain(self, group: BaseExceptionGroup[Any]) -> None:
        """Log why the connection ended, in one line for people."""
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        status = getattr(error, "status_code", None)
        self.refused = answers.is_refusal(status, getattr(error, "body", None))
        log.info(
            "no websocket to the server; polling meanwhile",
            reason=f"answered {status}" if status else (str(error) or type(error).__name__),
        )

    async def run(self, connect: Connect) -> None:
        """Connect, then beat and listen until the connection is lost or outdated."""
        config = self._services.config
        names = {"Authorization": f"Bearer {config.token}", **identity_headers()}
        headers = [(name.encode(), value.encode()) for name, value in names.items()]
        async with trio.open_nursery() as connection:
            connection.start_soon(self._watch_set, connection.cancel_scope)
            async with connect(socket_url(config.server_url, self._ids), headers) as socket:
                self._opened = trio.current_time()
                self._services.client.back.take()
                log.info("websocket open", runtimes=len(self._ids))
                self._services.directory.nudge_all()  # whatever was queued while we were away
                async with trio.open_nursery() as line:
                    line.start_soon(self._beat, socket)
                    line.start_soon(self._listen, socket)
            connection.cancel_scope.cancel(reason="websocket closed")

    async def _watch_set(self, connection: trio.CancelScope) -> None:
        await self._services.directory.changed.wait()
        self.outdated = True
        connection.cancel(reason="the set of runtimes changed")

    async def _beat(self, socket: Socket) -> None:
        """The connection's only writer: every runtime's beat at once and at every interval.

        In one frame where the server offers that; if nobody was acknowledged it does not after all.
        """
        interval = self._services.config.heartbeat_interval
        together = len(self._ids) > 1 and BEAT_MANY in self._services.offers
        while True:
            due = trio.current_time() + interval
            self._acknowledgements = 0
            frames = frame.heartbeats(self._ids) if together else [*map(frame.heartbeat, self._ids)]
            for message in frames:
                with trio.fail_after(WRITE):
                    await socket.send_message(message)
            await trio.sleep_until(due)
            together = together and self._acknowledgements > 0

    async def _listen(self, socket: Socket) -> None:
        patience = MISSED_BEATS * self._services.config.heartbeat_interval
        while True:
            with trio.fail_after(patience):
                message = await socket.get_message()
            self._take(message)

    def _take(self, message: str | bytes) -> None:
        """Pass one frame on. What cannot be read is ignored (spec 01 §4.2)."""
        try:
            received = frame.read(message)
            payload = received.payload
            if received.type == frame.HEARTBEAT_ACK:
                self._acknowledged(codec.structure(payload, Beat))
            elif received.type == frame.TASK_AVAILABLE:
                self._task_available(payload.get("runtime_id"))
            elif received.type == frame.PROFILES_CHANGED:
                workspace_id = payload.get("workspace_id")
                if isinstance(workspace_id, str) and workspace_id:
                    self._services.directory.recheck(workspace_id)
        except codec.DecodeError as error:
            log.debug("frame ignored", error=str(error))

    def _acknowledged(self, beat: Beat) -> None:
        if not beat.runtime_id:
            return
        self._acknowledgements += 1
        if beat.runtime_gone or beat.status == "runtime_gone":
            self._services.directory.report_gone(beat.runtime_id)
            return
        self._services.freshness.mark(beat.runtime_id)
        self._services.actions.submit(beat.runtime_id, beat)

    def _task_available(self, runtime_id: object) -> None:
        if isinstance(runtime_id, str) and runtime_id:
            self._services.directory.nudge(runtime_id)
        else:
            self._services.directory.nudge_all()
