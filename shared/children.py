"""A keyed set of running children that can be made equal to a wanted set.

The set of runtimes, of workspaces, of sockets is a level, not a stream of changes: callers say
what should run now and `reconcile` starts and cancels what differs. A key that is wanted again
while its old child still cleans up waits for that child, so two children of one key never overlap.
A child that ends by itself leaves the set and is started again only when it is wanted anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Generic, TypeVar

import attrs
import trio

K = TypeVar("K")

RunChild = Callable[[K], Awaitable[None]]


@attrs.define(eq=False)
class _Child:
    """`scope` is cancelled by reconcile; `done` is set by the child's own task at its end."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    done: trio.Event = attrs.field(factory=trio.Event)


class Children(Generic[K]):
    """Children by key, all in the nursery the owner passes in. Only `reconcile` adds or cancels."""

    def __init__(self, nursery: trio.Nursery, run_child: RunChild[K]) -> None:
        self._nursery = nursery
        self._run_child = run_child
        self._children: dict[K, _Child] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._children

    def keys(self) -> frozenset[K]:
        """The keys that have a child now, cancelled ones that still clean up included."""
        return frozenset(self._children)

    async def reconcile(self, wanted: Collection[K]) -> None:
        """Cancel children that are not wanted, start missing ones. Not to be called concurrently.

        Returns when each wanted key has a fresh child; a surplus child may still be cleaning up.
        """
        for key, child in self._children.items():
            if key not in wanted:
                child.scope.cancel(reason="no longer wanted")
        for key in wanted:
            child_now = self._children.get(key)
            if child_now is not None and child_now.scope.cancel_called:
                await child_now.done.wait()
                child_now = self._children.get(key)
            if child_now is None:
                self._start(key)
        await trio.lowlevel.checkpoint()

    def _start(self, key: K) -> None:
        child = self._children[key] = _Child()
        self._nursery.start_soon(self._run, key, child, name=f"{self._run_child!r}({key})")

    async def _run(self, key: K, child: _Child) -> None:
        try:
            with child.scope:
                await self._run_child(key)
        finally:
            if self._children.get(key) is child:
                del self._children[key]
            child.done.set()
