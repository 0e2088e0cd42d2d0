"""How many connections of the pool the daemons, and the people, may hold at a time.

Each lane has a share of its own, so that neither keeps the other waiting, and within it the writes
have a part: a row somebody has locked holds up writes, and the reads beside them go on. What belongs
to no lane, the services of the server, is not counted and finds a connection free. Who would wait for
longer than makes sense is sent away at once. Owned by the database; used on Trio's side.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Final, Literal

import attrs
import trio

from server.errors import Unavailable
from server.stages import stage

Name = Literal["daemons", "people"]

_lane: ContextVar[Name | None] = ContextVar("lane", default=None)

PATIENCE: Final = 5.0
"""Seconds in a queue. A client that is told to come again soon is better off than one that waits."""

QUEUE: Final = 50
"""Units that may wait for each connection of a lane: half a second's work of it."""


class Overloaded(Unavailable):
    """There is more to do than can be done in time; the caller should come again."""

    def __init__(self) -> None:
        super().__init__("the server is overloaded; try again")


@contextmanager
def lane(name: Name) -> Iterator[None]:
    """Have what runs in the block use the connections of a lane."""
    token = _lane.set(name)
    try:
        yield
    finally:
        _lane.reset(token)


@attrs.define(eq=False)
class Gate:
    """Lets so many in at a time, in the order they came. Changed by `enter` alone."""

    seats: int
    _free: trio.Semaphore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._free = trio.Semaphore(self.seats)

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Hold a seat for the block. Raises Overloaded."""
        try:
            self._free.acquire_nowait()  # the usual case costs no step
        except trio.WouldBlock:
            await self._queue()
        try:
            yield
        finally:
            self._free.release()

    async def _queue(self) -> None:
        if self._free.statistics().tasks_waiting >= QUEUE * self.seats:
            raise Overloaded from None
        with stage("waiting for a connection"), trio.move_on_after(PATIENCE):
            await self._free.acquire()
            return
        raise Overloaded from None


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


@attrs.define(eq=False)
class Lanes:
    """The gates of a pool: for each lane one for all units, and a narrower one for writes."""

    whole: dict[Name, Gate]
    writes: dict[Name, Gate]

    @classmethod
    def of(cls, pool_size: int) -> Lanes:
        """Nine twentieths to each lane, of which two thirds to writes; the rest to the services."""
        share = max(1, pool_size * 9 // 20)
        return cls(
            {name: Gate(share) for name in ("daemons", "people")},
            {name: Gate(max(1, share * 2 // 3)) for name in ("daemons", "people")},
        )

    def reading(self) -> AbstractAsyncContextManager[None]:
        """Hold a place for a read of the lane at hand."""
        name = _lane.get()
        return _nothing() if name is None else self.whole[name].enter()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Hold a place for a write of the lane at hand."""
        name = _lane.get()
        if name is None:
            yield
            return
        async with self.writes[name].enter(), self.whole[name].enter():
            yield
