"""How often one peer may call what is open to everybody: guesses at codes, webhooks.

Counted in this process, before anything costs a statement; where servers must count together, rows
do (`store/webhooks.sql`, `store/codes.sql`). Old entries go when new ones come.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque
from typing import Final

import attrs
import trio
from starlette.requests import HTTPConnection

from server.config import Config, Network
from server.errors import TooMany

MOST_PEERS: Final = 10_000
"""Keys that are remembered; the one silent for longest goes first."""


@attrs.define
class Rate:
    """At most `most` calls per key within any `within` seconds. Changed by `spend`."""

    most: int
    within: float = 60.0
    _calls: OrderedDict[str, deque[float]] = attrs.field(factory=OrderedDict)

    def spend(self, key: str) -> None:
        """Count one call; one too many is not counted. Raises TooMany."""
        now = trio.current_time()
        calls = self._calls.setdefault(key, deque())
        self._calls.move_to_end(key)
        while calls and calls[0] <= now - self.within:
            calls.popleft()
        if len(calls) >= self.most:
            wait = calls[0] + self.within - now
            raise TooMany("too many requests; try again later", after=wait)
        calls.append(now)
        while len(self._calls) > MOST_PEERS:
            self._calls.popitem(last=False)


@attrs.frozen
class Limits:
    """The rates of one server process, per peer and minute (spec 02 §3.9, 06 §2.3)."""

    send_code: Rate = attrs.field(factory=lambda: Rate(5))
    verify_code: Rate = attrs.field(factory=lambda: Rate(20))
    webhook: Rate = attrs.field(factory=lambda: Rate(30))


def peer_of(connection: HTTPConnection, config: Config) -> str:
    """The address of who calls: the peer, or who a trusted proxy says it speaks for.

    Each proxy appends whom it heard: the last address that is no trusted proxy is the caller, and
    what stands before it is only what the caller claims.
    """
    peer = connection.client.host if connection.client else ""
    said = connection.headers.getlist("x-forwarded-for")
    hops = [hop.strip() for line in said for hop in line.split(",")]
    while hops and _is_trusted(peer, config.trusted_proxies):
        peer = hops.pop()
    return peer


def is_trusted_peer(connection: HTTPConnection, config: Config) -> bool:
    """Whether the connection comes from a trusted proxy, whose X-Forwarded-* headers are believed."""
    peer = connection.client.host if connection.client else ""
    return _is_trusted(peer, config.trusted_proxies)


def _is_trusted(host: str, networks: tuple[Network, ...]) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in networks)
