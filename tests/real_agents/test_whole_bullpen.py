"""The real claude inside a whole Bullpen: what a user with Claude Code installed gets.

Server, daemon and command line run as `bullpen up` starts them; only the model is a stub. What is
asserted is what the server tells: transcript, session, usage, comment, failure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import agent_programs
from tests.support.bullpen import Bullpen, start_up, wait_for
from tests.support.stub_messages_api import claude_environment

pytestmark = pytest.mark.real_agents


@contextmanager
def stub_process() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.stub_messages_api"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def claude_settings(url: str, home: Path, key: str = "key-ok") -> dict[str, str]:
    """The daemon's environment: claude found, pointed at the stub and at a home of its own."""
    program = agent_programs.find("claude")
    assert program is not None, "run `python -m tests.support.agent_programs` first"
    node = shutil.which("node")
    assert node is not None
    path = os.pathsep.join([str(Path(node).parent), os.environ["PATH"]])
    home.mkdir(parents=True, exist_ok=True)
    settings = claude_environment(url, home=str(home), path=path, key=key)
    # as a user would have it: the daemon itself must make claude run as root
    del settings["IS_SANDBOX"]
    return settings | {"BULLPEN_CLAUDE_PATH": str(program)}


@pytest.fixture(scope="module")
def bullpen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bullpen]:
    root = tmp_path_factory.mktemp("claude")
    with stub_process() as url:
        env = claude_settings(url, root / "agent-home")
        with start_up(root / "home", env=env, agents="claude") as running:
            yield running


def test_a_turn_with_a_tool_call_that_really_runs(bullpen: Bullpen) -> None:
    script = (
        "[[sh: echo made by claude > made.txt && cat made.txt]]"
        "[[sh: bullpen issue comment add $ISSUE --content 'Done: wrote made.txt']]"
        "[[sh: bullpen issue status $ISSUE in_review]]"
        "[[say: All done, the file says {out}]]"
    )
    issue = bullpen.create_issue("Make a file", script, assignee="claude")
    task = bullpen.wait_for_task(issue["id"], "completed", "failed", seconds=90)
    messages = bullpen.messages(task["id"])
    assert task["status"] == "completed", (task, messages)

    assert [message["seq"] for message in messages] == list(range(1, len(messages) + 1))
    uses = [message for message in messages if message["type"] == "tool_use"]
    results = [message for message in messages if message["type"] == "tool_result"]
    assert len(uses) == len(results) >= 3
    assert any("made by claude" in message["output"] for message in results)
    made = list((bullpen.home / "workspaces").rglob("workdir/made.txt"))
    assert [path.read_text() for path in made] == ["made by claude\n"]
    assert bullpen.issue(issue["id"])["status"] == "in_review"
    comments = bullpen.comments(issue["id"])
    assert [(c["author_type"], c["content"]) for c in comments] == [
        ("agent", "Done: wrote made.txt")
    ]
    assert task["result"]["session_id"]
    with bullpen.api() as api:
        usage = api.get(f"/api/issues/{issue['id']}/usage").raise_for_status().json()
    assert usage["task_count"] == 1
    assert usage["total_output_tokens"] > 0


def test_work_in_the_background_is_part_of_the_run(bullpen: Bullpen) -> None:
    script = "[[sh-bg: sleep 8; echo late > late.txt]] [[say: I'll report]]"
    issue = bullpen.create_issue("Build for long", script, assignee="claude")
    task = bullpen.wait_for_task(issue["id"], "completed", "failed", seconds=90)
    assert task["status"] == "completed", bullpen.messages(task["id"])
    made = list((bullpen.home / "workspaces").rglob("workdir/late.txt"))
    assert [path.read_text() for path in made] == ["late\n"]
    (comment,) = bullpen.comments(issue["id"])
    assert comment["content"].startswith("stub answer, turn"), "the second result, not the first"


def test_a_second_task_on_the_same_issue_resumes_the_session(bullpen: Bullpen) -> None:
    issue = bullpen.create_issue("Remember", "[[say: first answer, turn {turn}]]", "claude")
    first = bullpen.wait_for_task(issue["id"], "completed", "failed", seconds=90)
    assert first["status"] == "completed", first
    content = "[[say: second answer, turn {turn}]]"
    bullpen.cli("issue", "comment", "add", issue["identifier"], "--content", content)

    def second() -> Any:
        rows = bullpen.tasks(issue["id"])
        done = len(rows) == 2 and rows[0]["status"] in {"completed", "failed"}
        return rows[0] if done else None

    task = wait_for("the second run", second, seconds=90)
    assert task["status"] == "completed", task
    assert task["result"]["session_id"] == first["result"]["session_id"]
    assert task["result"]["work_dir"] == first["result"]["work_dir"]
    assert "second answer" in task["result"]["output"]
    answers = [c["content"] for c in bullpen.comments(issue["id"]) if c["author_type"] == "agent"]
    assert len(answers) == 2


def test_a_hang_is_cancelled_and_nothing_of_it_survives(bullpen: Bullpen) -> None:
    issue = bullpen.create_issue("Hang", "[[sh: sleep 300 & sleep 300]][[hang]]", "claude")
    task = bullpen.wait_for_task(issue["id"], "running", seconds=60)
    wait_for("a tool call", lambda: bullpen.messages(task["id"]) or None)
    bullpen.cli("issue", "cancel-task", task["id"])

    def gone() -> bool | None:
        for process in psutil.process_iter(["environ"]):
            if (process.info["environ"] or {}).get("MULTICA_TASK_ID") == task["id"]:
                return None
        return True

    wait_for("the agent's whole family to be gone", gone, seconds=25)
    assert bullpen.tasks(issue["id"])[0]["status"] == "cancelled"


def test_a_silent_agent_is_failed_by_the_idle_watchdog(tmp_path: Path) -> None:
    with stub_process() as url:
        env = claude_settings(url, tmp_path / "agent-home")
        env["BULLPEN_AGENT_IDLE_WATCHDOG"] = "5s"
        with start_up(tmp_path / "home", env=env, agents="claude") as bullpen:
            issue = bullpen.create_issue("Say nothing", "[[hang]]", assignee="claude")
            task = bullpen.wait_for_task(issue["id"], "failed", "completed", seconds=60)
    assert task["status"] == "failed"
    assert task["failure_reason"] == "idle_watchdog"


def test_a_refused_key_is_reported_as_what_it_is(tmp_path: Path) -> None:
    with stub_process() as url:
        env = claude_settings(url, tmp_path / "agent-home", key="key-401")
        with start_up(tmp_path / "home", env=env, agents="claude") as bullpen:
            issue = bullpen.create_issue("Try", "anything", assignee="claude")
            task = bullpen.wait_for_task(issue["id"], "failed", "completed", seconds=60)
            comments = bullpen.comments(issue["id"])
    assert task["status"] == "failed"
    assert task["failure_reason"] == "agent_error.provider_auth_or_access"
    assert "401" in task["error"]
    assert [comment["type"] for comment in comments] == ["system"]


def test_its_home_and_programs_work_behind_the_isolation(bullpen: Bullpen) -> None:
    isolation = json.loads(bullpen.cli("daemon", "status", "--output", "json").stdout)
    if "isolation_problem" in isolation:
        pytest.skip(isolation["isolation_problem"])
    package = '{"name":"t","version":"1.0.0","bin":{"made":"t.sh"}}'
    script = (
        "[[sh: touch ~/.claude/kept && echo kept]]"
        f"[[sh: mkdir p && cd p && echo '{package}' > package.json"
        " && printf '#!/bin/sh\\necho ran' > t.sh && chmod +x t.sh"
        " && npm config set prefix ~/.global && npm install -g --offline . && ~/.global/bin/made]]"
        f"[[sh: cat {bullpen.home}/secrets/up.json; env | grep -c ^BULLPEN_]]"
        "[[say: done]]"
    )
    issue = bullpen.create_issue("Look round", script, assignee="claude")
    task = bullpen.wait_for_task(issue["id"], "completed", "failed", seconds=90)
    messages = bullpen.messages(task["id"])
    assert task["status"] == "completed", (task, messages)
    outputs = [m["output"] for m in messages if m["type"] == "tool_result"]
    kept, made, hidden = outputs[-3:]
    assert "kept" in kept
    assert (bullpen.home.parent / "agent-home" / ".claude" / "kept").exists()
    assert made.rstrip().endswith("ran"), made
    assert "No such file" in hidden, hidden
    assert bullpen.told["token"] not in hidden
