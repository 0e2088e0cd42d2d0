"""A Trio loop in a thread of its own, for tests that must not be async (state machines)."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Generic, TypeVar

import attrs
import outcome
import trio

T = TypeVar("T")
R = TypeVar("R")


@attrs.frozen
class Portal(Generic[R]):
    """Runs async functions where `resource` lives."""

    resource: R
    _token: trio.lowlevel.TrioToken

    def __call__(self, work: Callable[..., Awaitable[T]], *args: Any) -> T:
        return trio.from_thread.run(work, *args, trio_token=self._token)


@contextmanager
def open_portal(make: Callable[[], AbstractAsyncContextManager[R]]) -> Iterator[Portal[R]]:
    """Open a resource in a new Trio loop; yields the way to call into it."""
    ready: list[Any] = []
    listening = threading.Event()
    stop: list[trio.Event] = []

    async def main() -> None:
        async with make() as resource:
            stop.append(trio.Event())
            ready.append(Portal(resource, trio.lowlevel.current_trio_token()))
            listening.set()
            await stop[0].wait()

    ended: list[outcome.Outcome[None]] = []

    def run() -> None:
        ended.append(outcome.capture(trio.run, main))
        listening.set()

    thread = threading.Thread(target=run, name="portal")
    thread.start()
    listening.wait(60)
    if not ready:
        thread.join(10)
        ended[0].unwrap()
    portal: Portal[R] = ready[0]
    try:
        yield portal
    finally:
        trio.from_thread.run_sync(stop[0].set, trio_token=portal._token)
        thread.join(30)
        ended[0].unwrap()
