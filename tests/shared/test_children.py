from __future__ import annotations

import pytest
import trio
import trio.testing

from shared.children import Children

pytestmark = pytest.mark.fast


class Log:
    def __init__(self, cleanup: float = 0.0) -> None:
        self.running: set[str] = set()
        self.started: list[str] = []
        self.cleanup = cleanup

    async def run(self, key: str) -> None:
        assert key not in self.running, "two children of one key overlap"
        self.running.add(key)
        self.started.append(key)
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(self.cleanup + 1, shield=True):
                await trio.sleep(self.cleanup)
            self.running.discard(key)


async def test_the_set_becomes_what_is_wanted(autojump_clock: object) -> None:
    log = Log()
    async with trio.open_nursery() as nursery:
        children = Children(nursery, log.run)
        await children.reconcile({"a", "b"})
        await trio.testing.wait_all_tasks_blocked()
        assert log.running == {"a", "b"}
        await children.reconcile({"b", "c"})
        await trio.testing.wait_all_tasks_blocked()
        assert log.running == {"b", "c"}
        assert log.started.count("b") == 1
        nursery.cancel_scope.cancel()


async def test_a_key_wanted_again_waits_for_its_old_child(autojump_clock: object) -> None:
    log = Log(cleanup=5)
    async with trio.open_nursery() as nursery:
        children = Children(nursery, log.run)
        await children.reconcile({"a"})
        await trio.testing.wait_all_tasks_blocked()
        await children.reconcile(set())
        before = trio.current_time()
        await children.reconcile({"a"})
        assert trio.current_time() - before == pytest.approx(5)
        await trio.testing.wait_all_tasks_blocked()
        assert log.started == ["a", "a"]
        nursery.cancel_scope.cancel()


async def test_a_child_that_ends_leaves_the_set_and_can_be_wanted_again() -> None:
    runs = []

    async def short(key: str) -> None:
        runs.append(key)

    async with trio.open_nursery() as nursery:
        children = Children(nursery, short)
        for expected in (1, 2):
            await children.reconcile({"a"})
            await trio.testing.wait_all_tasks_blocked()
            assert "a" not in children
            assert len(runs) == expected
