"""What this server offers beyond the protocol everybody speaks. Runs nothing.

It says so in the answer to a registration; a server that says nothing offers nothing. What turns out
not to be there after all is withdrawn, and believed again when a registration repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable


class Offers:
    """Registrations tell, claims withdraw."""

    def __init__(self) -> None:
        self._names: frozenset[str] = frozenset()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def learn(self, names: Iterable[str]) -> None:
        """Replace what is known by what the server just said."""
        self._names = frozenset(names)

    def withdraw(self, name: str) -> None:
        self._names -= {name}
