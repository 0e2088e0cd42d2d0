"""Tells people: topics to outboxes, without ever waiting.

Woken by `announce`, called after a transaction has committed, and by the relay for what other
server processes announced. It owns the table of topics; each websocket owns its peer and takes from
its outbox. A peer whose outbox is full is closed: it reconnects and fetches what it missed.

Topics: `workspace:<id>`, `owners:<id>`, `admins:<id>` and `member:<workspace id>:<user id>` carry what
those may read, by the table of rights; `user:<id>` what is theirs wherever their page is open;
`runtime:<id>` and `profiles:<workspace id>` frames for daemons. `task:<id>` and `chat:<id>` exist for
the protocol and carry nothing (spec 01 §5.2). `token:<hash>` and `member:…` mark sockets that close
when that right is withdrawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import attrs
import structlog
import trio

from server.consequences import (
    Consequence,
    Counted,
    ProfilesChanged,
    TaskAvailable,
    TokensRevoked,
)
from server.rights import GROUPS, Thing
from server.rights_map import audience_of
from shared.mailbox import Outbox, OutboxFull
from shared.wire import event, frame
from shared.wire.event import Event

log = structlog.get_logger(__name__)

GOING_AWAY: Final = 1001
POLICY: Final = 1008
RESTART: Final = 1012
TRY_AGAIN: Final = 1013

RELAY_QUEUE: Final = 4096
"""Consequences waiting to be told to other processes; more than a burst of a busy second."""

Observer = Callable[[Consequence], None]


class Peer:
    """One websocket as the hub sees it. `closing` is set once, by whoever closes it first."""

    def __init__(self, hub: Hub, capacity: int) -> None:
        self.outbox = Outbox(capacity)
        self.closing = trio.Event()
        self.code = 1000
        self.reason = ""
        self.topics: set[str] = set()
        self.tally = hub.tally
        self._hub = hub

    def subscribe(self, topic: str) -> None:
        self.topics.add(topic)
        self._hub.topics.setdefault(topic, set()).add(self)

    def unsubscribe(self, topic: str) -> None:
        self.topics.discard(topic)
        members = self._hub.topics.get(topic)
        if members is not None:
            members.discard(self)
            if not members:
                del self._hub.topics[topic]

    def rank(self, workspace_id: str, role: str) -> None:
        """Hear what is for the workspace's owners or admins, or no longer."""
        for group, roles in GROUPS.items():
            change = self.subscribe if role in roles else self.unsubscribe
            change(f"{group}:{workspace_id}")

    def close(self, code: int, reason: str) -> None:
        """Have the socket closed; frames still in the outbox are dropped."""
        if not self.closing.is_set():
            self.code, self.reason = code, reason
            self.closing.set()


@attrs.define
class Tally:
    """Numbers for whoever measures; changed by the sockets, the relay and the hub as they go."""

    opened: Counter[str] = attrs.field(factory=Counter)
    closed: Counter[str] = attrs.field(factory=Counter)
    frames: Counter[str] = attrs.field(factory=Counter)
    """Received, by kind of socket, as the two above."""
    beats: Counter[str] = attrs.field(factory=Counter)
    """Heartbeats that came over sockets: taken, failed."""
    wakeups: Counter[str] = attrs.field(factory=Counter)
    """Tasks that were told to a runtime: hit when its daemon listened here, miss otherwise."""
    relayed: Counter[str] = attrs.field(factory=Counter)
    """Consequences: in, out."""
    resyncs: int = 0

    @property
    def open(self) -> dict[str, int]:
        """Sockets that are open now, by kind."""
        return {name: count - self.closed[name] for name, count in self.opened.items()}


class Hub:
    """Who wants to hear what. Everything here is synchronous: no lock is needed."""

    def __init__(self) -> None:
        self.topics: dict[str, set[Peer]] = {}
        self.peers: set[Peer] = set()
        self.evictions = 0
        self.tally = Tally()
        self._own_observers: list[Observer] = []
        self._observers: list[Observer] = []
        self._outgoing: tuple[
            trio.MemorySendChannel[Consequence], trio.MemoryReceiveChannel[Consequence]
        ] = trio.open_memory_channel(RELAY_QUEUE)
        self._relaying = False
        self._missed = 0
        self._missed_observers: list[Callable[[], None]] = []

    def observe(self, observer: Observer, missed: Callable[[], None] = lambda: None) -> None:
        """Have every consequence shown to `observer` too, local and relayed.

        `missed` is called when some may not have come through.
        """
        self._observers.append(observer)
        self._missed_observers.append(missed)

    def observe_own(self, observer: Observer) -> None:
        """Have what this process announces, and nothing else, shown to `observer`."""
        self._own_observers.append(observer)

    def missed_news(self) -> None:
        """Other processes announced something we did not hear."""
        for missed in self._missed_observers:
            missed()

    def take_missed(self) -> int:
        """How many consequences the relay queue had no room for, since last asked."""
        missed, self._missed = self._missed, 0
        return missed

    def announce(self, consequences: Iterable[Consequence]) -> None:
        """Tell this process's peers now, and other processes soon."""
        for consequence in consequences:
            for observer in self._own_observers:
                observer(consequence)
            if isinstance(consequence, Counted):
                continue
            self.deliver(consequence)
            if self._relaying:
                try:
                    self._outgoing[0].send_nowait(consequence)
                except trio.WouldBlock:
                    self._missed += 1

    @property
    def is_relaying(self) -> bool:
        """Whether announcements reach other processes now."""
        return self._relaying

    @contextmanager
    def relaying(self) -> Iterator[trio.MemoryReceiveChannel[Consequence]]:
        """While open, announcements are also queued for other processes."""
        self._relaying = True
        try:
            yield self._outgoing[1]
        finally:
            self._relaying = False

    def deliver(self, consequence: Consequence) -> None:
        """Tell this process's peers."""
        for observer in self._observers:
            observer(consequence)
        if isinstance(consequence, Event):
            self._deliver_event(consequence)
        elif isinstance(consequence, TaskAvailable):
            topic = f"runtime:{consequence.runtime_id}"
            self.tally.wakeups["hit" if topic in self.topics else "miss"] += 1
            self._send(
                {topic}, lambda: frame.task_available(consequence.runtime_id, consequence.task_id)
            )
        elif isinstance(consequence, ProfilesChanged):
            topic = f"profiles:{consequence.workspace_id}"
            self._send(
                {topic},
                lambda: frame.profiles_changed(consequence.workspace_id, consequence.profile_id),
            )
        elif isinstance(consequence, TokensRevoked):
            for token_hash in consequence.hashes:
                self.close_topic(f"token:{token_hash}", POLICY, "token revoked")

    def _deliver_event(self, happened: Event) -> None:
        topics = self._topics(happened)
        member = happened.payload.get("member")
        if happened.type == "member:added" and isinstance(member, dict):
            # The new member's pages are open in other workspaces (spec 01 §5.3).
            topics.add(f"user:{member.get('user_id', '')}")
        self._send(topics, lambda: event.write(happened))
        if happened.type == "member:updated" and isinstance(member, dict):
            ranked = f"member:{happened.workspace_id}:{member.get('user_id', '')}"
            for peer in self.topics.get(ranked, ()):
                peer.rank(happened.workspace_id, str(member.get("role", "")))
        if happened.type == "member:removed":
            gone = happened.payload.get("user_id", "")
            self.close_topic(f"member:{happened.workspace_id}:{gone}", POLICY, "no longer a member")

    def _topics(self, happened: Event) -> set[str]:
        """Where those listen who may read what an event is about, by the table of rights."""
        thing = Thing(kind=happened.kind, people=happened.users or ())
        audience = audience_of(happened.type, thing)
        if audience is None:
            log.error("an event without an entry in rights_map goes to nobody", type=happened.type)
            return set()
        here = happened.workspace_id
        if audience.members:
            return {f"workspace:{here}"}
        topics = {f"owners:{here}"} if audience.owners else set()
        if audience.admins:
            topics.add(f"admins:{here}")
        place = "user:" if audience.anywhere else f"member:{here}:"
        return topics | {f"{place}{user_id}" for user_id in audience.users}

    def _send(self, topics: set[str], write: Callable[[], str]) -> None:
        audience: set[Peer] = set()
        for topic in topics:
            audience |= self.topics.get(topic, set())
        if not audience:
            return
        text = write()
        for peer in audience:
            if peer.closing.is_set():
                continue
            try:
                peer.outbox.put(text)
            except OutboxFull:
                self.evictions += 1
                peer.close(TRY_AGAIN, "too slow")

    def close_topic(self, topic: str, code: int, reason: str) -> None:
        """Close every peer subscribed to a topic."""
        for peer in tuple(self.topics.get(topic, ())):
            peer.close(code, reason)

    def close_all(self, code: int, reason: str) -> None:
        """Close every peer: they reconnect and catch up, or the server stops."""
        for peer in tuple(self.peers):
            peer.close(code, reason)

    @contextmanager
    def open_peer(self, capacity: int) -> Iterator[Peer]:
        """A place in the hub for one websocket, for as long as the block lasts."""
        peer = Peer(self, capacity)
        self.peers.add(peer)
        try:
            yield peer
        finally:
            self.peers.discard(peer)
            for topic in tuple(peer.topics):
                peer.unsubscribe(topic)
