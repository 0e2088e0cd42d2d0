"""See to it that tests of processes leave none behind."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import attrs
import psutil


@attrs.frozen
class Watch:
    """A word that every process of one test carries in its environment or its command line."""

    word: str

    def alive(self) -> list[psutil.Process]:
        """Return the processes that carry the word; zombies do not count."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                carried = self.word in " ".join(process.cmdline()) or self.word in str(
                    process.environ()
                )
                if carried and process.pid != os.getpid():
                    found.append(process)
        return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def wait_alive(self, count: int, limit: float = 10.0) -> list[psutil.Process]:
        """Wait until at least `count` processes carry the word."""
        deadline = time.monotonic() + limit
        while len(found := self.alive()) < count:
            assert time.monotonic() < deadline, f"only {found}, wanted {count}"
            time.sleep(0.02)
        return found

    def wait_gone(self, limit: float = 10.0) -> None:
        """Wait until no process carries the word any more."""
        deadline = time.monotonic() + limit
        while found := self.alive():
            assert time.monotonic() < deadline, f"still there: {found}"
            time.sleep(0.02)


@contextmanager
def no_survivors() -> Iterator[Watch]:
    """Give a word for the environment of what a test starts, and fail if any of it is left."""
    watch = Watch(f"bullpen-test-{uuid.uuid4().hex[:12]}")
    before = {child.pid for child in psutil.Process().children()}
    yield watch
    # A process that was killed takes its moment to die, when the processor is busy.
    deadline = time.monotonic() + 1.0
    while (left := watch.alive()) and time.monotonic() < deadline:
        time.sleep(0.02)
    described = [f"{p.pid} {p.cmdline()}" for p in left]
    for process in left:
        process.kill()  # they carry this test's own word
    zombies = [
        child.pid
        for child in psutil.Process().children()
        if child.pid not in before and child.status() == psutil.STATUS_ZOMBIE
    ]
    assert not left, f"left behind: {described}"
    assert not zombies, f"not reaped: {zombies}"
