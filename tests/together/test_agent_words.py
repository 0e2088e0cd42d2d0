"""What an agent program writes, through a real daemon and a real server to what people see.

The program is a script that takes the place of claude; the daemon stands in another time zone than
the server.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import pytest

from shared.times import parse_stamp
from tests.support.bullpen import (
    Bullpen,
    clean_environment,
    processes_of,
    start_up,
    wait_for,
)
from tests.support.scripted_agent import install

pytestmark = pytest.mark.together

KEY = '{"account": {"secret": "hunter2-hunter2-hunter2"}}'

HERE = ZoneInfo("America/Los_Angeles")


@attrs.define
class Stage:
    """A server, and a machine whose claude takes the steps it is given."""

    bullpen: Bullpen
    steps: Path
    folder: Path
    issues: int = 0

    def run(self, *steps: dict[str, Any], seconds: float = 60) -> tuple[Any, list[Any], list[Any]]:
        """Let the agent work on a new issue; return its run, the transcript and the comments."""
        self.steps.write_text(json.dumps(steps))
        self.issues += 1
        issue = self.bullpen.create_issue(f"Number {self.issues}", assignee="Script")

        def ended() -> Any:
            rows = self.bullpen.tasks(issue["id"])
            return next((row for row in rows if row["status"] in {"completed", "failed"}), None)

        task = wait_for("the run's end", ended, seconds=seconds)
        return task, self.bullpen.messages(task["id"]), self.bullpen.comments(issue["id"])

    def runs(self) -> list[Any]:
        """The runs of the last issue."""
        with self.bullpen.api() as api:
            rows = api.get("/api/issues").raise_for_status().json()["issues"]
        last = next(row for row in rows if row["title"] == f"Number {self.issues}")
        return self.bullpen.tasks(last["id"])


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("words")
    program, steps = install(root / "bin")
    home = root / "machine"
    home.mkdir()
    with start_up(root / "home", env={"TZ": "UTC"}) as bullpen:
        settings = {"server_url": bullpen.told["url"], "token": bullpen.told["token"]}
        (home / "config.json").write_text(json.dumps(settings))
        env = clean_environment(
            BULLPEN_HOME=str(home),
            BULLPEN_DAEMON_PORT="0",
            BULLPEN_AGENTS="claude",
            BULLPEN_DAEMON_DEVICE_NAME="script",
            BULLPEN_CLAUDE_PATH=str(program),
            IS_SANDBOX="1",
            TZ="America/Los_Angeles",
        )
        with (home / "daemon.log").open("ab") as log:
            words = [sys.executable, "-P", "-m", "daemon"]
            process = subprocess.Popen(words, env=env, stdout=log, stderr=log)
        try:
            with bullpen.api() as api:

                def registered() -> Any:
                    rows = api.get("/api/runtimes").raise_for_status().json()
                    return next((row for row in rows if "script" in row["name"]), None)

                runtime = wait_for("the machine", registered)
                made = {"name": "Script", "runtime_id": runtime["id"], "custom_env": {"KEY": KEY}}
                api.post("/api/agents", json=made).raise_for_status()
            yield Stage(bullpen, steps, root)
        finally:
            process.kill()
            process.wait(10)
            for left in processes_of(home):
                left.kill()


def test_half_an_emoji_and_broken_bytes_cost_nobody_the_work(stage: Stage) -> None:
    broken = {"type": "assistant", "message": {"id": "m", "content": "caf@"}}
    line = json.dumps(broken).replace("@", "\udce9") + "\n"
    task, messages, comments = stage.run(
        {"raw": line}, {"say": "half \ud83d here"}, {"done": "half \ud83d end"}
    )
    assert (task["status"], task.get("failure_reason", "")) == (
        "completed",
        "",
    )
    assert "".join(row["content"] for row in messages) == "caf\ufffdhalf \ufffd here"
    assert [row["content"] for row in comments] == ["half \ufffd end"]


def test_the_answer_stands_when_an_empty_error_comes_behind_it(stage: Stage) -> None:
    usage = {"m": {"inputTokens": 100, "outputTokens": 2000}}
    answer = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 2}
    late = {"type": "result", "subtype": "error_during_execution", "is_error": True}
    task, _, comments = stage.run(
        {"event": answer | {"result": "All done: 42", "modelUsage": usage}},
        {"event": late | {"num_turns": 0, "errors": ["only prompts can be sent"]}},
        {"exit": 1},
    )
    assert task["status"] == "completed"
    assert [row["content"] for row in comments] == ["All done: 42"]
    with stage.bullpen.api() as api:
        counted = api.get(f"/api/issues/{task['issue_id']}/usage").raise_for_status().json()
    assert (counted["total_input_tokens"], counted["total_output_tokens"]) == (100, 2000)


def test_work_in_the_background_is_waited_for(stage: Stage) -> None:
    call = {"type": "tool_use", "id": "c", "name": "Bash", "input": {"command": "make"}}
    begun = {"type": "tool_result", "tool_use_id": "c", "content": "running in background"}
    task, messages, comments = stage.run(
        {"event": {"type": "assistant", "message": {"id": "m", "content": [call]}}},
        {
            "event": {
                "type": "system",
                "subtype": "task_started",
                "task_id": "b",
                "tool_use_id": "c",
            }
        },
        {
            "event": {
                "type": "user",
                "message": {"content": [begun]},
                "tool_use_result": {"backgroundTaskId": "b"},
            }
        },
        {"done": "I'll report"},
        {"open_for": 3},
        {"tool": "echo late > late.txt"},
        {"event": {"type": "system", "subtype": "task_notification", "task_id": "b"}},
        {"event": {"type": "system", "subtype": "init"}},
        {"done": "It is built."},
        {"open_for": 30},
    )
    assert task["status"] == "completed"
    assert (Path(task["work_dir"]) / "late.txt").read_text() == "late\n"
    assert [row["content"] for row in comments] == ["It is built."]
    assert messages


def test_the_machines_log_holds_none_of_the_agents_secrets(stage: Stage) -> None:
    words = "starting with hunter2-hunter2-hunter2 and more"
    cut = "x" * 990 + "hunter2-hunter2-hunter2"  # a line of the log ends within it
    stage.run({"stderr": f"{words}\n"}, {"stderr": f"{KEY}\n{cut}\n"}, {"done": "quiet"})

    def logged() -> str | None:
        text = (stage.folder / "machine" / "daemon.log").read_text()
        return text if "starting with" in text else None

    text = wait_for("the agent's words in the log", logged)
    assert "starting with [REDACTED] and more" in text
    assert "hunter2-h" not in text


def test_the_end_of_standard_error_holds_no_piece_of_a_secret(stage: Stage) -> None:
    task, _, _ = stage.run({"stderr": "hunter2-hunter2-hunter2" + "y" * 2040}, {"exit": 3})
    assert "yyy" in task["error"]
    assert "hunter2" not in task["error"]


def parked(stage: Stage) -> datetime:
    """When the new attempt of the last issue's run may begin."""
    waiting = next(row for row in stage.runs() if row["status"] == "queued")
    assert waiting["attempt"] < waiting["max_attempts"], "waiting uses no attempt up"
    return parse_stamp(waiting["not_before"])


def test_a_quota_is_waited_for_until_the_moment_the_provider_names(stage: Stage) -> None:
    back = int(time.time()) + 7200
    info = {"status": "rejected", "resetsAt": back, "rateLimitType": "five_hour"}
    said = {"type": "result", "subtype": "success", "is_error": True, "api_error_status": 429}
    task, _, _ = stage.run(
        {"event": {"type": "rate_limit_event", "rate_limit_info": info}},
        {"event": said | {"num_turns": 1, "result": "You've hit your session limit"}},
        {"exit": 1},
    )
    assert task["failure_reason"] == "agent_error.provider_quota_limit"
    wait = parked(stage) - datetime.fromtimestamp(back, UTC)
    assert timedelta() <= wait <= timedelta(minutes=1)


def test_a_time_without_a_zone_is_the_machines(stage: Stage) -> None:
    then = datetime.now(HERE) + timedelta(hours=3)
    task, _, _ = stage.run(
        {
            "event": {
                "type": "result",
                "is_error": True,
                "result": f"You've hit your usage limit. Try again at {then:%I:%M %p}.",
            }
        },
        {"exit": 1},
    )
    assert task["failure_reason"] == "agent_error.provider_quota_limit"
    wait = parked(stage) - then.replace(second=0, microsecond=0)
    assert timedelta() <= wait <= timedelta(minutes=1)
