"""A second machine beside a Bullpen: a home of its own and a real daemon, which tests start and kill.

Its agent keeps a log of its own (`chatty.py`), with which `check_run` compares what arrived.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from tests.support.bullpen import Bullpen, clean_environment, processes_of, wait_for
from tests.support.chatty import Chatty, arrived, install, stream

IN_FLIGHT = 1.0
"""Seconds what was said may take to the journal: the daemon merges text for 0.2."""


@attrs.define
class Machine:
    """A second machine: a home of its own, and a daemon that tests start and kill."""

    home: Path
    chatty: Chatty
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = clean_environment(
            BULLPEN_HOME=str(self.home),
            BULLPEN_DAEMON_PORT="0",
            BULLPEN_AGENTS="claude",
            BULLPEN_AGENT_ISOLATION="off",  # the agent's log lies where an isolated one sees nothing
            BULLPEN_DAEMON_DEVICE_NAME="second",
            BULLPEN_DAEMON_HEARTBEAT_INTERVAL="1s",
        )
        env |= self.env
        env["PATH"] = f"{self.chatty.bin}:{env['PATH']}"
        with (self.home / "daemon.log").open("ab") as log:
            words = [sys.executable, "-P", "-m", "daemon"]
            self.process = subprocess.Popen(words, env=env, stdout=log, stderr=log)

    def wait_until_told(self) -> None:
        """Wait until the server has confirmed every journal."""
        journals = self.home / "journals"
        wait_for("the journals to be told", lambda: not list(journals.glob("*")), seconds=60)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)


@contextmanager
def second_machine(
    bullpen: Bullpen,
    home: Path,
    url: str,
    *,
    items: int,
    pause: float,
    env: Mapping[str, str] | None = None,
    program: Path | None = None,
) -> Iterator[tuple[Machine, str]]:
    """A machine with a running daemon, and an agent on it by the name that is yielded.

    `program` is the folder of the agent's program and its log, if it is not to be the home.
    """
    home.mkdir()
    settings = {"server_url": url, "token": bullpen.told["token"]}
    (home / "config.json").write_text(json.dumps(settings))
    machine = Machine(home, install(program or home, items=items, pause=pause), env or {})
    machine.start()
    try:
        with bullpen.api() as api:

            def registered() -> Any:
                rows = api.get("/api/runtimes").raise_for_status().json()
                return next((row for row in rows if "second" in row["name"]), None)

            runtime = wait_for("the second machine", registered)
            made = {"name": "Chatty", "runtime_id": runtime["id"]}
            api.post("/api/agents", json=made).raise_for_status()
        yield machine, "Chatty"
    finally:
        machine.kill()
        for left in processes_of(home):
            left.kill()


def check_run(chatty: Chatty, task: Any, messages: list[Any], killed_at: float) -> None:
    """Compare one run's transcript with its agent's log."""
    said = chatty.said(task["id"])
    assert [row["seq"] for row in messages] == list(range(1, len(messages) + 1))
    there = arrived(messages)
    if task["status"] == "completed":
        assert there == stream([(kind, text) for _, kind, text in said])
        return
    assert task["failure_reason"] == "runtime_recovery", task
    flat = "".join(f"{kind[5:]}{text}" for kind, text in there)
    log = "".join(f"{kind[5:]}{text}" for _, kind, text in said)
    assert log.startswith(flat), "not the beginning of what was said"
    old = "".join(f"{kind[5:]}{text}" for at, kind, text in said if at < killed_at - IN_FLIGHT)
    assert len(flat) >= len(old), f"lost: {old[len(flat) :]!r}"
