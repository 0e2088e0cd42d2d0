"""Two ways to leave something for another task without waiting for it.

A Nudge says "look again" and coalesces; an Outbox holds frames for one peer and has a stated
answer to being full. Both are filled synchronously, so the giver is never held up.
"""

from __future__ import annotations

import math
from contextlib import suppress

import trio


class Nudge:
    """A wake-up without content: any number of nudges before the next wait count as one.

    One task waits; any task nudges.
    """

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[None](1)

    def nudge(self) -> None:
        """Wake the waiter, now or at its next wait."""
        with suppress(trio.WouldBlock):
            self._send.send_nowait(None)

    def take(self) -> bool:
        """Consume a nudge if there is one, without waiting; tell whether there was."""
        try:
            self._receive.receive_nowait()
        except trio.WouldBlock:
            return False
        return True

    async def wait(self, timeout: float = math.inf) -> bool:
        """Wait for a nudge for at most `timeout` seconds; tell whether it came. A checkpoint."""
        if self.take():
            await trio.lowlevel.checkpoint()
            return True
        with trio.move_on_after(timeout):
            await self._receive.receive()
            return True
        return False


class OutboxFull(Exception):
    """The peer does not keep up: it is to be closed, so that it catches up after reconnecting."""


class Outbox:
    """Frames on their way to one websocket peer, bounded.

    The hub puts, the peer's writer takes. A full outbox raises OutboxFull for frames that must not
    be lost, and drops those that may be.
    """

    def __init__(self, capacity: int) -> None:
        self._send, self._receive = trio.open_memory_channel[str](capacity)

    def put(self, frame: str) -> None:
        """Add a frame. Raises OutboxFull."""
        try:
            self._send.send_nowait(frame)
        except trio.WouldBlock:
            raise OutboxFull from None

    def try_put(self, frame: str) -> bool:
        """Add a frame or drop it; tell whether it was added."""
        try:
            self._send.send_nowait(frame)
        except trio.WouldBlock:
            return False
        return True

    async def take(self) -> str:
        """Wait for the next frame. A checkpoint."""
        return await self._receive.receive()
