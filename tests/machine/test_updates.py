"""Updating real packages by the real installers: pip, pipx and uv, from an index in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from shared.home import OURS, Home
from tests.support.bullpen import Bullpen, clean_environment, start_up, wait_for
from tests.support.packages import Index, clean_path, make_index

pytestmark = pytest.mark.machine


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_index(tmp_path_factory.mktemp("wheels") / "index")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bullpen]:
    with start_up(tmp_path_factory.mktemp("server") / "home") as started:
        yield started


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the installers in it."""
    folder = tmp_path_factory.mktemp("tools")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "pip", "-q", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "pipx", "uv"], check=True)
    return folder / "bin"


@attrs.frozen
class Machine:
    """Bullpen as an installer put it there, with a home of its own."""

    program: Path
    env: dict[str, str]

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *words],
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def told(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def version(self) -> str:
        return self.told("--version").split()[1]

    def health(self) -> dict[str, Any]:
        """What the daemon says of itself; nothing while it makes room for another version."""
        try:
            said = Home(Path(self.env["BULLPEN_HOME"])).daemon_file.read_text()
            port = json.loads(said)["port"]
            answer = httpx.get(
                f"http://127.0.0.1:{port}/health", headers={OURS: "1"}, trust_env=False
            )
        except (OSError, ValueError, httpx.TransportError):
            return {}
        told: dict[str, Any] = answer.json()
        return told

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.told("daemon", "status", "--output", "json"))
        return told


@pytest.fixture(params=["pip", "pipx", "uv"])
def machine(
    request: pytest.FixtureRequest, index: Index, server: Bullpen, tools: Path, tmp_path: Path
) -> Iterator[Machine]:
    path = os.pathsep.join([str(tools), clean_path()])
    env = clean_environment(
        **index.env,
        PATH=path,
        HOME=str(tmp_path),
        BULLPEN_HOME=str(tmp_path / "home"),
        BULLPEN_SERVER_URL=server.told["url"],
        BULLPEN_DAEMON_PORT="0",
        BULLPEN_AGENTS="demo",
        PIPX_HOME=str(tmp_path / "pipx"),
        PIPX_BIN_DIR=str(tmp_path / "bin"),
        PIPX_DEFAULT_PYTHON=sys.executable,
        UV_TOOL_DIR=str(tmp_path / "uv"),
        UV_TOOL_BIN_DIR=str(tmp_path / "bin"),
        UV_CACHE_DIR=str(tmp_path / "cache"),
        UV_PYTHON=sys.executable,
    )
    commands = {
        "pip": [
            [sys.executable, "-m", "venv", str(tmp_path / "venv")],
            [str(tmp_path / "venv" / "bin" / "pip"), "-q", "install", "bullpen"],
        ],
        "pipx": [["pipx", "install", "bullpen"]],
        "uv": [["uv", "tool", "install", "-q", "bullpen"]],
    }
    for command in commands[request.param]:
        program = command[0] if "/" in command[0] else str(tools / command[0])
        subprocess.run([program, *command[1:]], env=env, check=True, timeout=300)
    folder = "venv/bin" if request.param == "pip" else "bin"
    made = Machine(tmp_path / folder / "bullpen", env)
    made.told("login", "--token", server.told["token"])
    yield made
    made.run("daemon", "stop")
    index.withdraw()


def test_a_person_updates_and_goes_back(machine: Machine, index: Index) -> None:
    assert machine.version() == index.old
    assert "is the newest version" in machine.told("update", "--check")
    machine.told("daemon", "start")
    index.publish()
    assert f"{index.new} is there" in machine.told("update", "--check")
    machine.told("update")
    assert machine.version() == index.new
    status = machine.status()
    assert (status["status"], status["cli_version"]) == ("running", index.new)
    machine.told("update", "--back")
    assert machine.version() == index.old
    assert machine.status()["cli_version"] == index.old


def test_the_daemon_updates_itself(machine: Machine, index: Index) -> None:
    done = machine.run(
        *("daemon", "start"),
        BULLPEN_DAEMON_AUTO_UPDATE="on",
        BULLPEN_DAEMON_AUTO_UPDATE_INTERVAL="5s",
    )
    assert done.returncode == 0, done.stderr
    pid = machine.health()["pid"]
    index.publish()
    # Not asked by the command: an installer replaces its files while the new version comes in.
    wait_for("it", lambda: machine.health().get("cli_version") == index.new, seconds=240)
    wait_for("it is ready", lambda: machine.health().get("status") == "running", seconds=60)
    assert machine.status()["pid"] == pid, "whoever started it watches the right process"
    assert machine.version() == index.new
