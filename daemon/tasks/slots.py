"""The numbers tasks run under, 0 to n-1: who has one may work.

A number is out from before the claim until the task's very end. A task that waits for something
else lends its number meanwhile and gets one back before anything new is claimed, in the order of
asking. Everything but that wait is synchronous, so that giving back needs no shield. Runs nothing.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

import attrs
import trio


@attrs.define(eq=False)
class Slot:
    """One task's number; None while it does without. Only `Slots` and these methods change it."""

    number: int | None
    _slots: Slots

    def lend(self) -> None:
        """Do without for a while. Idempotent; at the task's end this gives the number back."""
        if self.number is not None:
            number, self.number = self.number, None
            self._slots.give_back(number)

    async def regain(self) -> None:
        """Wait for a number to go on with; cancelled, the task is without one as before."""
        await trio.lowlevel.checkpoint()
        if self.number is None:
            await self._slots.wait_in_line(self)


class Slots:
    """`capacity` is how many may be out. `changed` is called whenever one may have become free."""

    def __init__(self, capacity: int, changed: Callable[[], None]) -> None:
        self.capacity = capacity
        self._changed = changed
        self._free = list(range(capacity))
        self._out: set[int] = set()
        self._line: deque[tuple[Slot, trio.Event]] = deque()  # those who want theirs back

    @property
    def out(self) -> int:
        """How many are out, lent ones not counted."""
        return len(self._out)

    @property
    def has_room(self) -> bool:
        """Whether there is one to take. Never while somebody wants his back: he gets it at once."""
        return bool(self._free) and len(self._out) < self.capacity

    def try_take(self) -> int | None:
        """Take the lowest that is free; None when there is no room."""
        if not self.has_room:
            return None
        number = heapq.heappop(self._free)
        self._out.add(number)
        return number

    def give_back(self, number: int) -> None:
        self._out.remove(number)
        if number < self.capacity:
            heapq.heappush(self._free, number)
        self._serve()

    def resize(self, capacity: int) -> None:
        """Have another capacity from now on. Those that are out stay so until they come back."""
        self.capacity = capacity
        self._free = [number for number in range(capacity) if number not in self._out]
        self._serve()

    async def wait_in_line(self, slot: Slot) -> None:
        """Wait until it is a lent slot's turn; see `Slot.regain`."""
        turn = slot, trio.Event()
        self._line.append(turn)
        self._serve()
        try:
            await turn[1].wait()
        finally:
            if turn in self._line:
                self._line.remove(turn)

    def _serve(self) -> None:
        while self._line and (number := self.try_take()) is not None:
            slot, turn = self._line.popleft()
            slot.number = number
            turn.set()
        self._changed()
