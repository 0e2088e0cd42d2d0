"""A task in a user's own repository: server, daemon and agent as processes, and `kill -9`."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.bullpen import Bullpen, start_up, wait_for
from tests.support.repositories import git, make_repository, picture

pytestmark = pytest.mark.together

RULES = b"\xef\xbb\xbf# Rules\r\nbe brief \xff, no newline"

THE_DEMOS_OWN = ("demo-notes.md", ".bullpen-demo")
"""What the agent's work itself leaves in the directory: that is the user's to keep."""


class Project:
    """A project whose issues are worked on in a repository, by an agent with a skill."""

    def __init__(self, bullpen: Bullpen, folder: Path, *, tracked: bool = True) -> None:
        self._bullpen = bullpen
        self.folder = make_repository(folder)
        (folder / "AGENTS.md").write_bytes(RULES)
        if tracked:
            git(folder, "add", "AGENTS.md")
            git(folder, "commit", "-q", "-m", "rules")
        self.before = self.seen()
        daemon_id = (bullpen.home / "daemon.id").read_text().strip()
        self.id = self._made("project", "create", "--title", "Local")["id"]
        where = ("--local-path", str(folder), "--daemon-id", daemon_id)
        self._made("project", "resource", "add", self.id, *where)
        skill = self._made("skill", "create", "--name", "Deploy", "--content", "how to deploy")
        bullpen.cli("agent", "skills", "set", "demo", "--skill-ids", skill["id"])

    def _made(self, *words: str) -> Any:
        return json.loads(self._bullpen.cli(*words, "--output", "json").stdout)

    def issue(self, title: str, script: str) -> str:
        words = ("issue", "create", "--title", title, "--assignee", "demo")
        made = self._made(*words, "--description", script, "--project", self.id)
        return str(made["id"])

    def seen(self) -> tuple[str, dict[str, Any]]:
        """Git's status and every file, without what is the agent's own work."""
        status = [
            line
            for line in git(self.folder, "status", "--porcelain").splitlines(keepends=True)
            if not any(name in line for name in THE_DEMOS_OWN)
        ]
        files = {
            name: what
            for name, what in picture(self.folder).items()
            if not name.startswith(THE_DEMOS_OWN)
        }
        return "".join(status), files


def test_two_tasks_one_after_the_other_and_nothing_is_left(tmp_path: Path) -> None:
    signals = tmp_path / "signals"
    signals.mkdir()
    with start_up(tmp_path / "home", env={"BULLPEN_AGENT_PATHS": str(signals)}) as bullpen:
        project = Project(bullpen, tmp_path / "project")
        go = signals / "go"
        look = (
            "demo:sh git status --porcelain\n"
            "demo:sh cat .agent_context/skills/deploy/SKILL.md AGENTS.md\n"
            f"demo:sh while [ ! -e {go} ]; do sleep 0.05; done\n"
        )
        first = project.issue("First", look)
        bullpen.wait_for_task(first, "running")
        second = project.issue("Second", look)
        held = bullpen.wait_for_task(second, "waiting_local_directory")
        assert bullpen.tasks(first)[0]["status"] == "running"
        go.touch()
        for issue in (first, second):
            task = bullpen.wait_for_task(issue, "completed", seconds=60)
            assert task["work_dir"] == str(project.folder)
            results = [m["output"] for m in bullpen.messages(task["id"]) if m.get("output")]
            status = next(text for text in results if "?? notes" in text)
            assert status.replace("?? demo-notes.md\n", "").replace("?? .bullpen-demo/\n", "") == (
                "?? notes\n"
            ), "what git tracks is as it was, and what is ours is hidden"
            assert any("how to deploy" in text and "be brief" in text for text in results)
        assert bullpen.tasks(second)[0]["id"] == held["id"], "the same run, after its wait"
        assert project.seen() == project.before
        assert list((bullpen.home / "borrowed").iterdir()) == []
        assert list((bullpen.home / "workspaces/.skill-cache").rglob("bundle.json"))


def test_a_killed_daemon_gives_the_directory_back_at_its_next_start(tmp_path: Path) -> None:
    with start_up(tmp_path / "home") as bullpen:
        project = Project(bullpen, tmp_path / "project", tracked=False)
        script = "demo:sh echo by-the-agent > made.txt; echo mine >> AGENTS.md\ndemo:sleep 60\n"
        issue = project.issue("Long", script)
        task = bullpen.wait_for_task(issue, "running")
        made = project.folder / "made.txt"
        wait_for("the agent's work", lambda: (made.exists() and _has(task, bullpen)) or None)
        assert b"MULTICA-RUNTIME" in (project.folder / "AGENTS.md").read_bytes()
        assert list((bullpen.home / "borrowed").iterdir())
        (project.folder / "main.py").write_text("edited by the user meanwhile\n")
        old = bullpen.told["daemon_pid"]
        process = psutil.Process(old)
        process.send_signal(signal.SIGKILL)
        wait_for("a new daemon", lambda: bullpen.told["daemon_pid"] != old or None, seconds=30)

        # the task is tried again, and its second run borrows the directory anew
        def second_run() -> Any:
            rows = bullpen.tasks(issue)
            return rows[0] if rows[0]["id"] != task["id"] else None

        again = wait_for("the task to be tried again", second_run, seconds=60)
        bullpen.cli("issue", "cancel-task", again["id"])
        borrowed = bullpen.home / "borrowed"
        wait_for("the directory to be given back", lambda: not list(borrowed.iterdir()) or None)
        status, files = project.seen()
        assert (project.folder / "AGENTS.md").read_bytes().startswith(RULES)
        assert b"MULTICA" not in (project.folder / "AGENTS.md").read_bytes()
        assert status == " M main.py\n?? AGENTS.md\n?? made.txt\n?? notes\n"
        theirs = {"AGENTS.md", "main.py", "made.txt"}
        _, before = project.before
        assert {k: v for k, v in files.items() if k not in theirs} == {
            k: v for k, v in before.items() if k not in theirs
        }


def test_after_everything_was_killed_the_sweep_alone_puts_it_right(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with start_up(home) as bullpen:
        project = Project(bullpen, tmp_path / "project", tracked=False)
        issue = project.issue("Long", "demo:say working\ndemo:sleep 60\n")
        task = bullpen.wait_for_task(issue, "running")
        wait_for("the agent at work", lambda: _has(task, bullpen) or None)
        assert project.seen() != project.before
        told = bullpen.told
        psutil.Process(told["daemon_pid"]).suspend()  # it is not to tidy up when it hears of this
        bullpen.cli("issue", "cancel-task", task["id"])
        for name in ("pid", "daemon_pid"):
            psutil.Process(told[name]).send_signal(signal.SIGKILL)
        bullpen.process.wait(10)
        assert project.seen() != project.before
    with start_up(home) as bullpen:
        wait_for("the sweep", lambda: not list((home / "borrowed").iterdir()) or None)
        assert project.seen() == project.before
        assert bullpen.tasks(issue)[0]["status"] == "cancelled"


def _has(task: Any, bullpen: Bullpen) -> bool:
    """Whether the agent has begun to act: then the brief is in its file."""
    return len(bullpen.messages(task["id"])) > 5
