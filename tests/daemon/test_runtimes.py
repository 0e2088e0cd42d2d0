"""Heartbeats, polls and registrations of a whole daemon, with exact times."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.support.daemon_rig import CLAUDE, CODEX, DEMO, open_rig
from tests.support.fake_server import open_fake_server

pytestmark = pytest.mark.fast


async def test_a_daemon_registers_and_works_off_the_queue(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        task = server.add_task(server.runtime_id("claude"))
        server.wake(task.runtime_id)
        await rig.until(lambda: task.status == "completed")
        print(trio.current_time(), [str(c) for c in server.calls])
