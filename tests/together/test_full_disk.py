"""A disk without a byte left under a daemon's log, home and journals: work goes on, and it says why.

Real processes on a small file system of its own, which only root can make.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.bullpen import CLI, clean_environment, start_up, wait_for
from tests.support.second_machine import Machine, check_run, second_machine

pytestmark = [
    pytest.mark.together,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0, reason="only root makes a file system here"
    ),
]


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own for as long as the block lasts."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "bullpen-test", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no file system can be made here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path) -> None:
    """Append empty lines to a file until there is no room, not for one byte."""
    with file.open("ab", buffering=0) as opened:
        for size in (1024 * 1024, 4096, 1):
            try:
                while opened.write(b"\n" * size):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017 - what ends the loop


def status(machine: Machine, port: int) -> str:
    env = clean_environment(BULLPEN_HOME=str(machine.home), BULLPEN_DAEMON_PORT=str(port))
    words = [*CLI, "daemon", "status"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_a_daemon_goes_on_with_a_full_disk_and_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        start_up(tmp_path / "home") as bullpen,
        small_disk(tmp_path / "disk", 16) as disk,
        second_machine(
            bullpen,
            disk / "second",
            bullpen.told["url"],
            items=300,
            pause=0.05,
            env={"BULLPEN_DAEMON_PORT": str(port), "BULLPEN_MIN_FREE_DISK": "2MB"},
            program=tmp_path / "agent",
        ) as (machine, agent),
    ):
        issue = bullpen.create_issue("Fill it", assignee=agent)
        task = bullpen.wait_for_task(issue["id"], "running")
        wait_for("the first messages", lambda: len(bullpen.messages(task["id"])) > 20 or None)
        ballast = disk / "ballast"
        fill(ballast)
        fill(machine.home / "daemon.log")  # which has room in its last block

        def told(machine: Machine = machine) -> Any:
            return "disk full" in status(machine, port)

        wait_for("the status to say it", told)
        assert bullpen.tasks(issue["id"])[0]["status"] == "running", "it ended before the disk"
        later = bullpen.create_issue("Wait for room", assignee=agent)
        done = bullpen.wait_for_task(issue["id"], "completed", seconds=60)
        assert done["id"] == task["id"], "it was run again"
        check_run(machine.chatty, done, bullpen.messages(task["id"]), 0.0)
        assert bullpen.tasks(later["id"])[0]["status"] == "queued"
        assert machine.process is not None
        assert machine.process.poll() is None, "the daemon has ended"
        assert told(), "it is still full"

        ballast.unlink()
        bullpen.wait_for_task(later["id"], "completed", seconds=60)
        machine.wait_until_told()
        assert not told()
        assert "log lines are missing" in (machine.home / "daemon.log").read_text()
