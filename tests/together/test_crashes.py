"""Processes are killed in the middle of the work; nothing is lost, doubled or left running."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.bullpen import Bullpen, start_up, wait_for

pytestmark = pytest.mark.together

CHATTY = "demo:lines 200 every 0.03"


def start_chatty(bullpen: Bullpen) -> tuple[Any, Any]:
    issue = bullpen.create_issue("Talk a lot", CHATTY)
    task = bullpen.wait_for_task(issue["id"], "running")
    wait_for("the first messages", lambda: len(bullpen.messages(task["id"])) > 20 or None)
    return issue, task


def kill(pid: int) -> None:
    process = psutil.Process(pid)
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs([process], timeout=10)


def test_a_killed_server_comes_back_and_no_transcript_row_is_lost_or_doubled(
    tmp_path: Path,
) -> None:
    with start_up(tmp_path / "home") as bullpen:
        issue, task = start_chatty(bullpen)
        old = bullpen.told["server_pid"]
        kill(old)
        wait_for("a new server", lambda: bullpen.told["server_pid"] != old or None, seconds=30)

        def completed() -> Any:
            try:
                row = bullpen.tasks(issue["id"])[0]
            except OSError:
                return None
            return row if row["status"] == "completed" else None

        finished = wait_for("the task to complete", _tolerant(completed), seconds=60)
        assert finished["id"] == task["id"], "the task was run again"
        messages = bullpen.messages(task["id"])
        assert [message["seq"] for message in messages] == list(range(1, len(messages) + 1))
        lines = [m["content"] for m in messages if m["type"] == "text"]
        spoken = "".join(lines)
        for number in range(1, 201):
            assert spoken.count(f"line {number} ") + spoken.count(f"line {number}\n") == 1, number


def test_a_killed_daemon_leaves_no_task_running(tmp_path: Path) -> None:
    with start_up(tmp_path / "home") as bullpen:
        issue, task = start_chatty(bullpen)
        old = bullpen.told["daemon_pid"]
        kill(old)
        wait_for("a new daemon", lambda: bullpen.told["daemon_pid"] != old or None, seconds=30)

        def settled() -> Any:
            rows = bullpen.tasks(issue["id"])
            first = next(row for row in rows if row["id"] == task["id"])
            if first["status"] in {"running", "dispatched"}:
                return None
            return rows if rows[0]["status"] == "completed" else None

        rows = wait_for("the task to be settled", settled, seconds=60)
        first = rows[-1]
        assert first["id"] == task["id"]
        if first["status"] == "failed":
            assert first["failure_reason"] == "runtime_recovery"
            assert rows[0]["parent_task_id"] == task["id"]
        survivors = [
            process
            for process in psutil.process_iter(["environ"])
            if (process.info["environ"] or {}).get("MULTICA_TASK_ID") == task["id"]
        ]
        assert survivors == []


def test_after_everything_was_killed_the_next_up_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with start_up(home) as bullpen:
        issue, task = start_chatty(bullpen)
        told = bullpen.told
        pids = [told["pid"], told["daemon_pid"], told["server_pid"]]
        if told["postgres"].get("pid"):
            pids.append(told["postgres"]["pid"])
        for pid in pids:
            if psutil.pid_exists(pid):
                kill(pid)
        bullpen.process.wait(10)
    with start_up(home) as bullpen:
        assert bullpen.issue(issue["id"])["title"] == "Talk a lot"

        def settled() -> Any:
            rows = bullpen.tasks(issue["id"])
            return rows if rows[0]["status"] == "completed" else None

        rows = wait_for("the task to be settled", settled, seconds=60)
        assert all(row["status"] in {"completed", "failed"} for row in rows)
        assert rows[-1]["id"] == task["id"]


def _tolerant(probe: Any) -> Any:
    """A probe that takes a server on its way back for "not yet"."""
    import httpx

    def patient() -> Any:
        try:
            return probe()
        except (httpx.HTTPError, OSError):
            time.sleep(0.2)
            return None

    return patient
