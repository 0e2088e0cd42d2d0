"""Do a thing once for everybody who asks for it at the same time, and one at a time for a key.

`Flights` is for work that many want and one does: whoever asks while it is under way shares its end.
The work belongs to the nursery it was given, not to who asked first: an agent whose tool gave up
asks again and finds a long clone further on instead of at its beginning. Everything given here must
therefore have a deadline of its own. `KeyLocks` are ordinary locks that exist while they are used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import attrs
import trio

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Stopped(Exception):
    """The work was cut short because its owner ends."""

    def __init__(self) -> None:
        super().__init__("the daemon is stopping")


@attrs.define(eq=False)
class _Flight:
    """Work under way; its own task sets `value` or `error` and then `landed`."""

    landed: trio.Event = attrs.field(factory=trio.Event)
    value: Any = None
    error: Exception | None = attrs.field(factory=Stopped)


class Flights(Generic[K, T]):
    """At most one piece of work per key at a time."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._under_way: dict[K, _Flight] = {}

    async def share(self, key: K, work: Callable[[], Awaitable[T]]) -> T:
        """Return what `work`, or the call under way for the key, returns; raises as it, or Stopped.

        `work` is an ordinary call of the nursery's: it is not cancelled when this one is.
        """
        flight = self._under_way.get(key)
        if flight is None:
            flight = self._under_way[key] = _Flight()
            try:
                self._nursery.start_soon(self._fly, key, flight, work)
            except RuntimeError as error:  # the nursery has ended
                del self._under_way[key]
                raise Stopped from error
        await flight.landed.wait()
        if flight.error is not None:
            raise flight.error
        value: T = flight.value
        return value

    async def _fly(self, key: K, flight: _Flight, work: Callable[[], Awaitable[T]]) -> None:
        try:
            flight.value = await work()
            flight.error = None
        except Exception as error:  # noqa: BLE001 - raised again where it was asked for
            flight.error = error
        finally:
            del self._under_way[key]
            flight.landed.set()


class KeyLocks(Generic[K]):
    """One lock per key, forgotten when nobody holds or wants it."""

    def __init__(self) -> None:
        self._locks: dict[K, tuple[trio.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def hold(self, key: K) -> AsyncIterator[None]:
        """Hold the key's lock for the block; in the order of asking."""
        lock, users = self._locks.get(key, (trio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = lock, users - 1
