"""What both websockets share: one reader, one writer, a keep-alive, one scope round them.

The reader always reads and never works: it hands each text on, synchronously. The writer alone
sends. A peer that does not answer a ping within the pong limit is dead, whatever data it sends
(spec 01 §12). The block ends when the peer leaves, is closed by the hub, or is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import attrs
import structlog
import trio
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from server.push.hub import Peer

log = structlog.get_logger(__name__)

EXTENSION: Final = "bullpen.socket"
"""Where in the connection's scope the server puts its Control."""

PING_EVERY: Final = 54.0
PONG_WITHIN: Final = 6.0
"""54 + 6: the peer is gone 60 s after its last pong (spec 01 §4.5)."""

CLOSE_LIMIT: Final = 2.0
"""How long the peer may take to answer our close frame."""


class Control(Protocol):
    """What the server lets a websocket do that ASGI has no words for."""

    max_message: int
    """Bytes; a longer message closes the connection with 1009."""
    last_pong: float
    """Trio time of the last pong, or of the handshake."""

    async def ping(self) -> None: ...

    def abort(self) -> None: ...


@attrs.define(eq=False)
class _NoControl:
    """For servers without the extension (tests): nothing can be asked, nothing is dead."""

    max_message: int = 0
    last_pong: float = float("inf")

    async def ping(self) -> None:
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        pass


def control_of(websocket: WebSocket) -> Control:
    """The server's Control of this connection."""
    found: Control | None = websocket.scope.get("extensions", {}).get(EXTENSION)
    return _NoControl() if found is None else found


async def receive_text(websocket: WebSocket) -> str | None:
    """The next message; None for a binary one. Raises WebSocketDisconnect."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005), message.get("reason"))
    text: str | None = message.get("text")
    return text


async def run_peer(
    websocket: WebSocket,
    peer: Peer,
    *,
    name: str,
    take: Callable[[str], None],
    work: Callable[[], object] | None = None,
) -> None:
    """Serve an accepted websocket until it ends. Does not raise for a peer that left.

    `take` gets each text frame, must not wait; `work` is an async function run beside, for what
    `take` has put aside.
    """
    control = control_of(websocket)
    left = False

    async def read() -> None:
        nonlocal left
        while True:
            try:
                text = await receive_text(websocket)
            except WebSocketDisconnect:
                break
            if text is None:
                continue  # a binary message: nothing of ours
            peer.tally.frames[name] += 1
            take(text)
        left = True
        scope.cancel(reason="peer left")

    async def write() -> None:
        while True:
            text = await peer.outbox.take()
            try:
                await websocket.send_text(text)
            except WebSocketDisconnect:
                return  # the reader notices too

    async def keep_alive() -> None:
        await trio.sleep(PING_EVERY)
        while True:
            asked = trio.current_time()
            await control.ping()
            await trio.sleep(PONG_WITHIN)
            if control.last_pong < asked:
                log.info("websocket peer is dead", socket=name)
                control.abort()
                scope.cancel(reason="peer is dead")
            await trio.sleep(PING_EVERY - PONG_WITHIN)

    async def watch_closing() -> None:
        await peer.closing.wait()
        scope.cancel(reason=peer.reason)

    peer.tally.opened[name] += 1
    try:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as parts:
                parts.start_soon(read)
                parts.start_soon(write)
                parts.start_soon(keep_alive)
                parts.start_soon(watch_closing)
                if work is not None:
                    parts.start_soon(work)  # type: ignore[arg-type]
    finally:
        peer.tally.closed[name] += 1
    if not left:
        await close(websocket, peer.code, peer.reason)


async def close(websocket: WebSocket, code: int, reason: str) -> None:
    """Close from our side; a peer that does not answer is not waited for."""
    if websocket.application_state is not WebSocketState.CONNECTED:
        return
    with trio.move_on_after(CLOSE_LIMIT):
        try:
            await websocket.close(code, reason)
            while True:
                await websocket.receive()
        except (WebSocketDisconnect, RuntimeError):
            return
