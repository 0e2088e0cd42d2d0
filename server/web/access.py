"""Remembers for a moment who a token stands for and who belongs to which workspace.

A daemon polls and beats with one token all day; without this each request would begin with two
statements. Entries live for seconds, and are dropped at once when the hub hears of a revoked token
or of a change of members, in this process or, through the relay, in another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

import attrs
import trio

from server.consequences import Consequence, TokensRevoked
from server.store.access import Seat
from shared import times
from shared.wire.event import Event

V = TypeVar("V")

TTL: Final = 15.0
"""How stale an entry may be if the news of a change is lost."""

CAPACITY: Final = 10_000
"""Entries; the oldest goes first. Only valid tokens get in, so this is far above real numbers."""

_MEMBERSHIP_EVENTS: Final = ("member:", "workspace:", "invitation:accepted")


@attrs.frozen(kw_only=True)
class Identity:
    """What a token row or a session says about its bearer."""

    user_id: str = ""
    email: str = ""
    agent_id: str | None = None
    task_id: str | None = None
    workspace_id: str | None = None
    daemon_id: str | None = None
    owner_id: str | None = None
    issue_id: str | None = None
    parent_id: str | None = None
    chat_id: str | None = None
    expires_in: float | None = None
    """Seconds from the look-up on; None means no end."""


class _Table(Generic[V]):
    """Values by key with an age limit. `generation` changes at each drop: a look-up that was under
    way across a drop may have read the state before it, so its result is not kept.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[float, V]] = {}
        self.generation = 0

    def get(self, key: Hashable) -> V | None:
        entry = self._entries.get(key)
        if entry is None or entry[0] <= trio.current_time():
            return None
        return entry[1]

    def put(self, key: Hashable, value: V, ttl: float) -> None:
        while len(self._entries) >= CAPACITY:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (trio.current_time() + ttl, value)

    def drop(self, keys: tuple[Hashable, ...]) -> None:
        self.generation += 1
        for key in keys:
            self._entries.pop(key, None)

    def clear(self) -> None:
        self.generation += 1
        self._entries.clear()


class AccessCache:
    """Who is who and who belongs where; changed by look-ups and by `consequence`."""

    def __init__(self) -> None:
        self._identities: _Table[Identity] = _Table()
        self._memberships: _Table[Seat] = _Table()

    async def identity(
        self, key: str, look_up: Callable[[], Awaitable[Identity | None]]
    ) -> Identity | None:
        """The identity kept under a token hash (or `user:<id>` for sessions), or the looked-up."""
        kept = self._identities.get(key)
        if kept is not None:
            return kept
        generation = self._identities.generation
        found = await look_up()
        if found is not None and generation == self._identities.generation:
            ttl = TTL if found.expires_in is None else min(TTL, found.expires_in)
            self._identities.put(key, found, ttl)
        return found

    async def membership(
        self, user_id: str, ref: str, look_up: Callable[[], Awaitable[Seat | None]]
    ) -> Seat | None:
        """A user's place in the workspace named by `ref`, an id or `slug:<slug>`."""
        key = (user_id, ref)
        kept = self._memberships.get(key)
        if kept is not None:
            return kept
        generation = self._memberships.generation
        found = await look_up()
        if found is not None and generation == self._memberships.generation:
            self._memberships.put(key, found, TTL)
        return found

    def consequence(self, consequence: Consequence) -> None:
        """Forget what this change makes untrue."""
        if isinstance(consequence, TokensRevoked):
            self._identities.drop(consequence.hashes)
        elif isinstance(consequence, Event) and consequence.type.startswith(_MEMBERSHIP_EVENTS):
            # Members change rarely; forgetting all of them is simpler than finding the right ones.
            self._memberships.clear()

    def clear(self) -> None:
        """Forget everything: news may have been missed."""
        self._identities.clear()
        self._memberships.clear()


def seconds_left(expires_at: object) -> float | None:
    """Seconds until a stored expiry (a datetime or None)."""
    if expires_at is None:
        return None
    return float((expires_at - times.now()).total_seconds())  # type: ignore[operator]
