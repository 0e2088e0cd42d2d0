"""Where work that may take its time on disk leaves the loop, so that no beat is late for it. Runs nothing.

One name for all of it, because tests on virtual time put in their own: the clock runs on while a
thread works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Do `work` in a thread. A cancel waits for it: nothing is left half done, or done by nobody."""
    return await trio.to_thread.run_sync(work)
