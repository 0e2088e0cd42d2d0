"""A whole Bullpen in processes of its own, as a user starts it: `bullpen up` on a temporary home.

Tests talk to it as users and daemons do, over loopback, and may kill any of its processes.
Everything started here is gone when the block is left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import httpx
import psutil

T = TypeVar("T")

START_DEADLINE = 60.0
"""Seconds for `up` on a fresh home: initdb, migrations, first registration."""

_MAIN = ("-c", "from daemon.cli import main; main()")
CLI = (sys.executable, *_MAIN)


def wait_for(what: str, probe: Callable[[], T | None], *, seconds: float = 30.0) -> T:
    """Poll until `probe` returns something; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)


def clean_environment(**extra: str) -> dict[str, str]:
    """The test's environment without settings of a Bullpen or an agent it may itself run under."""
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("BULLPEN_", "MULTICA_", "CLAUDE"))
    }
    return env | {"PYTHONUNBUFFERED": "1"} | extra


def _cli(python: Sequence[str] | None) -> tuple[str, ...]:
    return CLI if python is None else (*python, *_MAIN)


@attrs.define
class Bullpen:
    """A running `bullpen up`; `told` is what its up.json says now."""

    home: Path
    process: subprocess.Popen[bytes]
    env: dict[str, str]
    python: Sequence[str] | None = None
    """The command that runs Python as the user this Bullpen belongs to, if that is not us."""

    @property
    def told(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.home / "secrets" / "up.json").read_text())
        return value

    def api(self, timeout: float = 15.0) -> httpx.Client:
        """An HTTP client signed in as the first user, in the first workspace."""
        told = self.told
        return httpx.Client(
            base_url=told["url"],
            headers={
                "Authorization": f"Bearer {told['token']}",
                "X-Workspace-ID": told["workspace_id"],
            },
            timeout=timeout,
            trust_env=False,
        )

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line as the home's owner."""
        done = subprocess.run(
            [*_cli(self.python), *words],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done

    def create_issue(self, title: str, description: str = "", assignee: str = "demo") -> Any:
        """Create and assign an issue on the command line; returns it as the server tells it."""
        words = ["issue", "create", "--title", title, "--output", "json", "--assignee", assignee]
        if description:
            words += ["--description", description]
        return json.loads(self.cli(*words).stdout)

    def issue(self, issue_id: str) -> Any:
        with self.api() as api:
            return api.get(f"/api/issues/{issue_id}").raise_for_status().json()

    def tasks(self, issue_id: str) -> list[Any]:
        """The issue's runs, newest first."""
        with self.api() as api:
            rows: list[Any] = api.get(f"/api/issues/{issue_id}/task-runs").raise_for_status().json()
        return rows

    def messages(self, task_id: str, since: int = 0) -> list[Any]:
        with self.api() as api:
            answer = api.get(f"/api/tasks/{task_id}/messages", params={"since": since})
            rows: list[Any] = answer.raise_for_status().json()
        return rows

    def comments(self, issue_id: str) -> list[Any]:
        with self.api() as api:
            rows: list[Any] = api.get(f"/api/issues/{issue_id}/comments").raise_for_status().json()
        return rows

    def wait_for_issue(self, issue_id: str, status: str, *, seconds: float = 30.0) -> Any:
        def probe() -> Any:
            issue = self.issue(issue_id)
            return issue if issue["status"] == status else None

        return wait_for(f"issue {status}", probe, seconds=seconds)

    def wait_for_task(self, issue_id: str, *statuses: str, seconds: float = 30.0) -> Any:
        """Wait until the issue's newest run has one of the statuses."""

        def probe() -> Any:
            rows = self.tasks(issue_id)
            return rows[0] if rows and rows[0]["status"] in statuses else None

        return wait_for(f"a run {statuses}", probe, seconds=seconds)

    def logs(self) -> str:
        """The tails of all logs, for a failing test's message."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted((self.home / "logs").glob("*.log"))
        )


@contextmanager
def start_up(
    home: Path,
    *flags: str,
    env: Mapping[str, str] | None = None,
    agents: str = "demo",
    python: Sequence[str] | None = None,
) -> Iterator[Bullpen]:
    """Run `bullpen up` on `home` until the block is left; then it must stop within 15 s.

    `python` runs it, if not this one.
    """
    environment = clean_environment(BULLPEN_HOME=str(home), **(env or {}))
    home.mkdir(parents=True, exist_ok=True)
    (home / "secrets" / "up.json").unlink(missing_ok=True)
    with (home / "up.out").open("ab") as out:
        process = subprocess.Popen(
            [*_cli(python), "up", "--no-browser", "--port", "0", "--agents", agents, *flags],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    bullpen = Bullpen(home, process, environment, python)

    def ready() -> bool | None:
        assert process.poll() is None, f"up ended early:\n{(home / 'up.out').read_text()}"
        return (home / "secrets" / "up.json").exists() or None

    try:
        wait_for("up.json", ready, seconds=START_DEADLINE)
        yield bullpen
    finally:
        stop_tree(process, home)


def stop_tree(process: subprocess.Popen[bytes], home: Path) -> None:
    """End `up` as a user does; then end whatever of this home is still there, by its pid."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
    for left in processes_of(home):
        left.kill()


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process whose command line or environment names this home."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            named = any(str(home) in word for word in words)
            if not named:
                named = process.environ().get("BULLPEN_HOME") == str(home)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if named and process.pid != os.getpid():
            found.append(process)
    return found
