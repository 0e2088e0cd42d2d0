"""What this server offers beyond the protocol everybody speaks. Runs nothing.

It says so in the answer to a registration; a server that says nothing offers nothing. What turns out
not to be there after all is withdrawn for a while, because it may only have been something in the
server's place that did not know it, and believed again when a registration repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

WITHDRAWN_FOR: Final = 300.0
"""Seconds after which what did not work is tried again."""


class Offers:
    """Registrations tell, calls withdraw."""

    def __init__(self) -> None:
        self._names: frozenset[str] = frozenset()
        self._withdrawn: dict[str, float] = {}  # until when, on Trio's clock

    def __contains__(self, name: str) -> bool:
        return name in self._names and self._withdrawn.get(name, 0.0) <= trio.current_time()

    def learn(self, names: Iterable[str]) -> None:
        """Replace what is known by what the server just said."""
        self._names = frozenset(names)
        self._withdrawn.clear()

    def withdraw(self, name: str) -> None:
        self._withdrawn[name] = trio.current_time() + WITHDRAWN_FOR
