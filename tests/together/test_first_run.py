"""What a new user does: start Bullpen, hand the demo agent an issue, read what it did."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.bullpen import Bullpen, start_up

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def bullpen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bullpen]:
    with start_up(tmp_path_factory.mktemp("home")) as running:
        yield running


def test_an_issue_assigned_to_the_demo_agent_is_in_review_within_ten_seconds(
    bullpen: Bullpen,
) -> None:
    started = time.monotonic()
    issue = bullpen.create_issue("Try the loop", "Say what you see.")
    bullpen.wait_for_issue(issue["id"], "in_review", seconds=10)
    assert time.monotonic() - started < 10

    task = bullpen.wait_for_task(issue["id"], "completed")
    messages = bullpen.messages(task["id"])
    assert [message["seq"] for message in messages] == list(range(1, len(messages) + 1))
    kinds = {message["type"] for message in messages}
    assert {"tool_use", "tool_result", "text"} <= kinds
    comments = bullpen.comments(issue["id"])
    assert [comment["author_type"] for comment in comments] == ["agent"]
    assert "demo" in comments[0]["content"].lower()
    work = next((bullpen.home / "workspaces").rglob("workdir"))
    assert any(path.is_file() for path in work.iterdir()), "the demo wrote no file"


def test_a_comment_wakes_the_agent_and_it_answers_in_the_thread(bullpen: Bullpen) -> None:
    issue = bullpen.create_issue("Answer me")
    bullpen.wait_for_task(issue["id"], "completed")
    before = len(bullpen.comments(issue["id"]))
    bullpen.cli("issue", "comment", "add", issue["identifier"], "--content", "One more thing")

    def second_run_done() -> bool:
        rows = bullpen.tasks(issue["id"])
        return len(rows) == 2 and rows[0]["status"] == "completed"

    deadline = time.monotonic() + 20
    while not second_run_done():
        assert time.monotonic() < deadline, bullpen.tasks(issue["id"])
        time.sleep(0.05)
    thread = bullpen.comments(issue["id"])[before:]
    assert thread[0]["content"] == "One more thing"
    assert thread[1]["author_type"] == "agent"
    assert thread[1]["parent_id"] == thread[0]["id"]
    assert bullpen.tasks(issue["id"])[0]["trigger_comment_id"] == thread[0]["id"]


def test_a_running_task_can_be_cancelled_and_its_agent_is_gone(bullpen: Bullpen) -> None:
    issue = bullpen.create_issue("Stop me", "demo:sleep 60")
    task = bullpen.wait_for_task(issue["id"], "running")
    bullpen.cli("issue", "cancel-task", task["id"])
    assert bullpen.wait_for_task(issue["id"], "cancelled")["id"] == task["id"]

    deadline = time.monotonic() + 15
    while any(
        process.info["environ"] and process.info["environ"].get("MULTICA_TASK_ID") == task["id"]
        for process in psutil.process_iter(["environ"])
    ):
        assert time.monotonic() < deadline, "the agent outlived its task"
        time.sleep(0.1)


def test_what_up_writes_is_private_and_the_pages_need_a_sign_in(bullpen: Bullpen) -> None:
    for name in ("up.json", "config.json"):
        path: Path = bullpen.home / "secrets" / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, name
    with httpx.Client(base_url=bullpen.told["url"], trust_env=False) as stranger:
        assert stranger.get("/health").json() == {"status": "ok"}
        assert stranger.get("/api/issues").status_code == 401
        page = stranger.get("/", follow_redirects=True)
        assert "Try the loop" not in page.text


def test_no_secret_is_written_to_a_log(bullpen: Bullpen) -> None:
    assert bullpen.told["token"] not in bullpen.logs()
    assert "mat_" not in bullpen.logs()
