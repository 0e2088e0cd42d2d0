"""Where work that may take its time on disk leaves the loop, so that no beat is late for it. Runs nothing.

One name for all of it, because tests on virtual time put in their own: the clock runs on while a
thread works.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import trio

T = TypeVar("T")

LEAVE_WITHIN: Final = 60.0
"""Seconds by which leaving a block must have begun; a thread is never left half way."""


async def in_thread(work: Callable[[], T]) -> T:
    """Do `work` in a thread. A cancel waits for it: nothing is left half done, or done by nobody."""
    return await trio.to_thread.run_sync(work)


@asynccontextmanager
async def in_threads(block: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave a block that works on disk, each in a thread; it is left even when cancelled.

    The block does not see the error it is left with.
    """
    value = await in_thread(block.__enter__)
    try:
        yield value
    finally:
        with trio.move_on_after(LEAVE_WITHIN, shield=True):
            await in_thread(partial(block.__exit__, None, None, None))
