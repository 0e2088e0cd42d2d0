"""A user's disk that takes its time: the daemon's own thread never waits for it.

On the real clock. Every file operation below the work directories takes `SLOW` seconds and is noted
if it happens on Trio's thread; beside it something beats as heartbeats do.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from shared.wire.task import COMPLETED
from tests.daemon.tasks_support import Script, open_bench, text

pytestmark = pytest.mark.together

SLOW = 0.3
"""Seconds an operation takes; a task has about ten of them."""

BEAT = 0.05


@attrs.define
class SlowDisk:
    """What the interpreter's audit hook tells of `folder`, while it is switched on."""

    folder: str = ""
    thread: int = 0
    on_loop: list[str] = attrs.field(factory=list)
    slowed: int = 0

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.folder or not args or event.split(".")[0] not in ("open", "os", "shutil"):
            return
        place = args[0]
        if not isinstance(place, str | bytes | os.PathLike):
            return
        if not os.fsdecode(place).startswith(self.folder):
            return
        if threading.get_ident() == self.thread:
            self.on_loop.append(f"{event} {os.fsdecode(place)}")
        self.slowed += 1
        time.sleep(SLOW)


DISK = SlowDisk()
sys.addaudithook(
    DISK.hook
)  # for good: hooks cannot be taken out, so it is switched off by `folder`


async def test_beats_go_on_while_a_task_is_prepared_on_a_slow_disk(tmp_path: Path) -> None:
    gaps: list[float] = []

    async def beat() -> None:
        last = time.monotonic()
        while True:
            await trio.sleep(BEAT)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    async with open_bench(tmp_path, Script(steps=(text("a"),))) as bench:
        DISK.on_loop.clear()
        DISK.thread, DISK.folder = threading.get_ident(), str(bench.config.workspaces_root)
        try:
            async with trio.open_nursery() as beats:
                beats.start_soon(beat)
                task = await bench.run(bench.add(), within=60)
                beats.cancel_scope.cancel()
        finally:
            DISK.folder = ""
        assert task.status == COMPLETED
    assert DISK.on_loop == []
    assert DISK.slowed >= 5, "the disk was not slow at all"
    assert max(gaps) < BEAT + SLOW, "something waited on the daemon's own thread"
