"""`up` says that the disk is full, once, and is not stopped by its own words."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest
from rich.console import Console

from daemon.cli.up import stack
from daemon.cli.up.lock import hold_home
from daemon.cli.up.plan import Plan
from daemon.cli.up.voice import Voice
from shared.home import Home

pytestmark = pytest.mark.fast


async def test_a_full_disk_is_told_once_and_its_end_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(work: object) -> object:
        return work()  # type: ignore[operator]

    free = [1 << 40]
    monkeypatch.setattr(stack, "in_thread", at_once)
    monkeypatch.setattr(stack, "free_bytes", lambda _: free[0])
    home, out = Home(tmp_path), io.StringIO()
    plan = Plan(home=home, host="", port=None, agents=None, browser=False, env={})
    with hold_home(home) as lock:
        up = stack._Up(plan, lock, Voice(Console(file=out, width=300)))
        for left in (1 << 40, 5 << 20, 4 << 20, 1 << 30):
            free[0] = left
            await up._look_at_disk()
    first, last = out.getvalue().splitlines()
    assert "disk full" in first
    assert "5 MiB" in first
    assert "room again" in last


def test_what_cannot_be_printed_stops_nothing() -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    voice = Voice(Console(file=Full()))
    voice.warn("disk full")
    with voice.stage("Starting"):
        voice.say("on")
