"""Carries announcements to the other server processes on the same database, and theirs to us.

One connection of its own listens on a Postgres channel and speaks there, so that no load of requests
holds it up; a queue in the hub feeds it, outside the transactions that caused the announcements. What one process publishes arrives complete and in
order, so a gap in a sender's numbers means something was missed: every socket is then sent off to
reconnect and catch up, as after a lost listener. Ends only by cancellation; its supervisor restarts
it for ever, because a database that is away comes back.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, Final

import structlog
import trio

from server.consequences import Consequence, ProfilesChanged, TaskAvailable, TokensRevoked
from server.database import Database, Line, NotSaid
from server.push.hub import RESTART, Hub
from shared import codec
from shared.supervise import Backoff, supervise
from shared.wire.event import Event

log = structlog.get_logger(__name__)

CHANNEL: Final = "bullpen_push"

_PART: Final = 7800
"""Characters of one notification; Postgres takes less than 8,000 bytes, our head included."""

_BATCH: Final = 200
_GATHER: Final = 0.005
"""Seconds to wait for more after the first of a batch: a commit per batch, not per event."""

_AGAIN: Final = Backoff(first=0.1, limit=2.0)

_KINDS: Final[dict[str, type[Any]]] = {
    "event": Event,
    "task": TaskAvailable,
    "profiles": ProfilesChanged,
    "revoked": TokensRevoked,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


class ListenerLost(Exception):
    """The listening connection died: what was announced since is unknown."""


def write(consequences: list[Consequence]) -> str:
    """A batch as ASCII text, so that characters are bytes and parts can be cut anywhere."""
    items = [[_NAMES[type(item)], codec.unstructure(item)] for item in consequences]
    return json.dumps(items, separators=(",", ":"))


def read(text: str) -> list[Consequence]:
    """The batch written by `write`. Raises codec.DecodeError."""
    items = codec.loads(text)
    return [codec.structure(value, _KINDS[name]) for name, value in items if name in _KINDS]


def split(sender: str, number: int, text: str) -> list[str]:
    """A batch as notifications: `sender:number:index:count:text`."""
    pieces = [text[at : at + _PART] for at in range(0, len(text), _PART)] or [""]
    return [
        f"{sender}:{number}:{index}:{len(pieces)}:{piece}" for index, piece in enumerate(pieces)
    ]


class Inbox:
    """Puts the notifications of other processes together again. Changed by `take` only."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._parts: dict[str, list[str]] = {}
        self._last: dict[str, int] = {}

    def take(self, payload: str) -> tuple[str, bool] | None:
        """A batch's text once complete, and whether something before it is missing.

        None for our own notifications and for parts of a batch that is not complete yet.
        """
        sender, number_text, index_text, count_text, piece = payload.split(":", 4)
        if sender == self._me:
            return None
        number, index, count = int(number_text), int(index_text), int(count_text)
        if index == 0:
            self._parts[sender] = []
        parts = self._parts.setdefault(sender, [])
        if len(parts) != index:  # the listener began in the middle of a batch
            self._parts.pop(sender)
            return None
        parts.append(piece)
        if index + 1 < count:
            return None
        text, last = "".join(self._parts.pop(sender)), self._last.get(sender)
        if last is not None and number <= last:
            return None  # said again, since its sender was not sure
        self._last[sender] = number
        return text, last is not None and number != last + 1


async def run_relay(  # noqa: ASYNC128 - the relay's first listener calls it
    database: Database, hub: Hub, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Relay for as long as the server runs; `started()` when the first listener listens."""
    relay = _Relay(database, hub, task_status)
    await supervise(
        "relay", relay.run, backoff=Backoff(first=0.2, limit=5.0), intensity=None, healthy_after=10
    )


class _Relay:
    def __init__(self, database: Database, hub: Hub, task_status: trio.TaskStatus[None]) -> None:
        self._database = database
        self._hub = hub
        self._task_status = task_status
        self._me = secrets.token_hex(6)
        self._number = 0
        self._ran_before = False

    async def run(self) -> None:
        """One life of the listener. Raises ListenerLost, or what the database raises."""
        async with self._database.listen(CHANNEL) as line:
            again, self._ran_before = self._ran_before, True
            if again:
                self._catch_up("the listener was lost")
            else:
                self._task_status.started()
            with self._hub.relaying() as outgoing:
                async with trio.open_nursery() as directions:
                    directions.start_soon(self._publish, outgoing, line, again)
                    await self._receive(line.heard)
                    raise ListenerLost

    def _catch_up(self, why: str) -> None:
        log.warning("sending every socket off to catch up", why=why)
        self._hub.tally.resyncs += 1
        self._hub.missed_news()
        self._hub.close_all(RESTART, "catch up")

    async def _receive(self, notifications: trio.MemoryReceiveChannel[str]) -> None:
        inbox = Inbox(self._me)
        async for payload in notifications:
            try:
                complete = inbox.take(payload)
                if complete is None:
                    continue
                text, gap = complete
                batch = read(text)
            except ValueError as error:  # DecodeError is one
                log.warning("a notification makes no sense", error=str(error)[:200])
                continue
            if gap:
                self._catch_up("another server's announcements were lost")
            self._hub.tally.relayed["in"] += len(batch)
            for consequence in batch:
                self._hub.deliver(consequence)

    async def _publish(
        self, outgoing: trio.MemoryReceiveChannel[Consequence], line: Line, again: bool
    ) -> None:
        if again:  # what the last line did not get out is a gap: others are to notice it now
            self._number += 1
            await self._notify(line, split(self._me, self._number, write([])))
        while True:
            batch = [await outgoing.receive()]
            await trio.sleep(_GATHER)
            while len(batch) < _BATCH:
                try:
                    batch.append(outgoing.receive_nowait())
                except trio.WouldBlock:
                    break
            # The number is used up before sending: others notice what does not arrive.
            self._number += 1 + self._hub.take_missed()
            await self._notify(line, split(self._me, self._number, write(batch)))
            self._hub.tally.relayed["out"] += len(batch)

    async def _notify(self, line: Line, parts: list[str]) -> None:
        """Say it, however often that takes: what one database does not take now it takes later.

        Meanwhile the queue fills; what it has no room for is a gap that others notice. A connection
        that is lost ends the whole line, not this.
        """
        failures = 0
        while True:
            try:
                return await line.notify(parts)
            except NotSaid as error:
                failures += 1
                log.warning(
                    "announcements cannot be told to other servers; trying again",
                    error=str(error),
                    failures=failures,
                )
            await trio.sleep(_AGAIN.wait(failures))
