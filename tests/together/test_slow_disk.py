"""A user's disk that takes its time: the daemon's own thread never waits for it.

On the real clock. Every file operation below a folder takes `SLOW` seconds and is noted if it happens
on Trio's thread; beside it something beats as heartbeats do.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from daemon.agents.process import Launch, open_process
from daemon.allowed import allow_directory
from shared.home import Home
from shared.wire.task import COMPLETED
from tests.daemon.tasks_support import Script, open_bench, text
from tests.support.fake_server import uid

pytestmark = pytest.mark.together

SLOW = 0.2
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
        if self.folder and args and event.split(".")[0] in ("open", "os", "shutil"):
            self.touch(event, args[0])

    def touch(self, what: str, place: object) -> None:
        if not self.folder or not isinstance(place, str | bytes | os.PathLike):
            return
        if not os.fsdecode(place).startswith(self.folder):
            return
        if threading.get_ident() == self.thread:
            self.on_loop.append(f"{what} {os.fsdecode(place)}")
        self.slowed += 1
        time.sleep(SLOW)

    @contextmanager
    def slow(self, folder: Path) -> Iterator[None]:
        """Make a folder slow for what this process does in it."""
        self.on_loop.clear()
        self.slowed = 0
        self.thread, self.folder = threading.get_ident(), str(folder)
        try:
            yield
        finally:
            self.folder = ""


DISK = SlowDisk()
sys.addaudithook(
    DISK.hook
)  # for good: hooks cannot be taken out, so it is switched off by `folder`


@pytest.fixture(autouse=True)
def looks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have looks at a file be told too; the interpreter has no audit event for them."""
    for name in ("stat", "lstat", "access", "readlink", "utime"):
        real = getattr(os, name)

        def look(place: Any, *args: Any, real: Any = real, name: str = name, **how: Any) -> Any:
            DISK.touch(name, place)
            return real(place, *args, **how)

        monkeypatch.setattr(os, name, look)


@asynccontextmanager
async def beating() -> AsyncIterator[list[float]]:
    """Beat as heartbeats do; yields the seconds between beats."""
    gaps: list[float] = []

    async def beat() -> None:
        last = time.monotonic()
        while True:
            await trio.sleep(BEAT)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    async with trio.open_nursery() as beats:
        beats.start_soon(beat)
        yield gaps
        beats.cancel_scope.cancel()


def check(gaps: list[float], touched: int) -> None:
    assert DISK.on_loop == []
    assert DISK.slowed >= touched, "the disk was not slow at all"
    assert max(gaps) < BEAT + SLOW, "something waited on the daemon's own thread"


async def test_beats_go_on_while_a_task_is_prepared_on_a_slow_disk(tmp_path: Path) -> None:
    async with open_bench(tmp_path, Script(steps=(text("a"),))) as bench:
        with DISK.slow(bench.config.workspaces_root):
            async with beating() as gaps:
                task = await bench.run(bench.add(), within=60)
        assert task.status == COMPLETED
    check(gaps, 5)


async def test_beats_go_on_while_a_task_works_in_a_users_directory_on_a_slow_disk(
    tmp_path: Path,
) -> None:
    """Checked, borrowed and given back there, all of it in threads."""
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    (project / "CLAUDE.md").write_bytes(b"rules")
    async with open_bench(home, Script(steps=(text("a"),))) as bench:
        ref = {"local_path": str(project), "daemon_id": bench.config.daemon_id}
        resource = {"id": uid("r"), "resource_type": "local_directory", "resource_ref": ref}
        allow_directory(Home(home), project)
        added = bench.add(project_id=uid("p"), project_resources=[resource])
        with DISK.slow(project):
            async with beating() as gaps:
                task = await bench.run(added, within=120)
        assert task.status == COMPLETED
    assert (project / "CLAUDE.md").read_bytes() == b"rules"
    check(gaps, 20)


async def test_beats_go_on_while_a_program_is_started_in_a_slow_directory(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    launch = Launch(label="slow", argv=[str(program)], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"})
    with DISK.slow(tmp_path):
        async with beating() as gaps, open_process(launch) as process:
            await process.wait()
    check(gaps, 2)
