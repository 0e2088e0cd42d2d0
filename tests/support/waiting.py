"""Waiting for something to become true on the real clock, with a deadline."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

import trio

_LOOK_EVERY = 0.02


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], *, seconds: float = 5.0
) -> None:
    """Return once the condition holds. Raises AssertionError after `seconds`."""
    with trio.move_on_after(seconds):
        while True:
            found = condition()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return
            await trio.sleep(_LOOK_EVERY)
    raise AssertionError(f"not within {seconds} s: {condition}")
