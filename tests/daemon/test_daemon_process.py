"""The daemon as a real process, and the commands that start, ask and stop it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon.test_service import fake_systemd

pytestmark = pytest.mark.together

BULLPEN = Path(sys.executable).with_name("bullpen")


class Server(ThreadingHTTPServer):
    """A server with no workspaces, which is enough for a daemon to be content; `status` is how
    it answers everything."""

    daemon_threads = True
    status = 200

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization", ""))
        body = b"[]" if self.server.status == 200 else b'{"error":"invalid token"}'
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), _Answer) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


class Machine:
    """A home directory and the commands run in it."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        kept = {key: value for key, value in os.environ.items() if "BULLPEN" not in key}
        self.env = {
            **kept,
            "BULLPEN_HOME": str(home),
            "BULLPEN_DAEMON_PORT": "0",
            "BULLPEN_AGENTS": "demo",
        }
        settings = {"server_url": url, "token": "mul_" + "0" * 40}
        (home / "config.json").write_text(json.dumps(settings))

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BULLPEN, *args],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @contextmanager
    def daemon(self, **env: str) -> Iterator[subprocess.Popen[str]]:
        """A daemon in the foreground, killed if the block leaves it running."""
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "daemon"],
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def health(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.run("daemon", "status", "--output", "json").stdout)
        return told

    def told(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.home / "secrets" / "daemon.json").read_text())
        return value


def _wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def _is_reading(pid: int, path: Path) -> bool:
    """Whether the process has the file open, at its end."""
    return any(
        file.path == str(path) and file.position == path.stat().st_size
        for file in psutil.Process(pid).open_files()
    )


@pytest.fixture
def machine(tmp_path: Path, server: Server) -> Iterator[Machine]:
    made = Machine(tmp_path, server.url)
    yield made
    made.run("daemon", "stop")
    assert made.health() == {"status": "stopped"}


def test_start_status_stop(machine: Machine) -> None:
    started = machine.run("daemon", "start")
    assert started.returncode == 0, started.stderr
    pid = machine.told()["pid"]
    assert f"pid {pid}" in started.stderr
    assert str(machine.home / "logs" / "daemon.log") in started.stderr
    assert (machine.home / "secrets" / "daemon.json").stat().st_mode & 0o777 == 0o600

    health = machine.health()
    assert (health["status"], health["pid"], health["workspaces"]) == ("running", pid, [])
    table = machine.run("daemon", "status").stdout
    assert table.startswith(f"Daemon:      running (pid {pid}, up ")
    assert "Agents:      demo" in table

    again = machine.run("daemon", "start")
    assert again.returncode == 1
    assert f"already running (pid {pid})" in again.stderr
    with machine.daemon() as second:
        output, _ = second.communicate(timeout=30)
        assert second.returncode == 1
    assert "already running" in output
    assert machine.told()["pid"] == pid, "the first one's file is untouched"

    stopped = machine.run("daemon", "stop")
    assert stopped.returncode == 0
    assert "has stopped" in stopped.stderr
    assert not (machine.home / "secrets" / "daemon.json").exists()
    assert machine.health() == {"status": "stopped"}
    assert "not running" in machine.run("daemon", "stop").stderr


def test_restart_replaces_the_process(machine: Machine) -> None:
    assert machine.run("daemon", "restart").returncode == 0, "also when none runs"
    first = machine.told()["pid"]
    assert machine.run("daemon", "restart", "--poll-interval", "7s").returncode == 0
    assert machine.told()["pid"] != first
    assert machine.health()["status"] == "running"


def test_a_restart_that_could_not_start_leaves_the_old_daemon_alone(machine: Machine) -> None:
    assert machine.run("daemon", "start").returncode == 0
    pid = machine.told()["pid"]
    failed = machine.run("daemon", "restart", "--agent-timeout", "soon")
    assert failed.returncode == 1
    assert "BULLPEN_AGENT_TIMEOUT" in failed.stderr
    assert "nothing was changed" in failed.stderr
    assert (machine.told()["pid"], machine.health()["status"]) == (pid, "running")


def test_a_check_says_what_a_start_would_find(machine: Machine, server: Server) -> None:
    checked = machine.run("daemon", "start", "--check")
    assert checked.returncode == 0, checked.stderr
    assert f"server: {server.url}\n" in checked.stdout
    assert "agents: demo" in checked.stdout
    assert not (machine.home / "secrets" / "daemon.json").exists()
    server.status = 503
    away = machine.run("daemon", "start", "--check")
    assert (away.returncode, "no answer" in away.stdout) == (0, True)
    server.status = 401
    refused = machine.run("daemon", "start", "--check")
    assert (refused.returncode, "bullpen login" in refused.stderr) == (1, True)


def test_a_new_sign_in_is_taken_over_by_the_running_daemon(
    machine: Machine, server: Server
) -> None:
    assert machine.run("daemon", "start").returncode == 0
    settings = json.loads((machine.home / "secrets" / "config.json").read_text())
    settings["token"] = "mul_" + "7" * 40
    (machine.home / "secrets" / "config.json").write_text(json.dumps(settings))
    _wait_for(lambda: f"Bearer {settings['token']}" in server.tokens)


def test_the_foreground_is_the_daemon_itself(machine: Machine) -> None:
    """A wrapper that dies of Ctrl-C would take the daemon's grace with it."""
    with subprocess.Popen(
        [BULLPEN, "daemon", "start", "--foreground"],
        env=machine.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            _wait_for(lambda: machine.health()["status"] == "running")
            assert machine.told()["pid"] == process.pid
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=10)
            assert process.returncode == 0
        finally:
            process.kill()


def test_a_service_from_install_to_uninstall(
    machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("systemd")
    fake_systemd(folder)
    machine.env |= {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}
    machine.env.pop("XDG_CONFIG_HOME", None)

    server_says = machine.run("daemon", "install", "--poll-interval", "soon")
    assert "BULLPEN_DAEMON_POLL_INTERVAL" in server_says.stderr, (
        "what cannot start is not installed"
    )
    assert not (folder / ".config").exists()

    assert machine.run("daemon", "start").returncode == 0
    detached = machine.told()["pid"]
    installed = machine.run("daemon", "install", "--poll-interval", "7s")
    assert installed.returncode == 0, installed.stderr
    pid = machine.told()["pid"]
    assert pid == int((folder / "pid").read_text()) != detached, "the detached one has made room"
    assert "BULLPEN_DAEMON_POLL_INTERVAL" in installed.stderr
    assert machine.health()["service"] == "systemd"

    assert "already running" in machine.run("daemon", "start").stderr
    assert "takes no flags" in machine.run("daemon", "restart", "--poll-interval", "8s").stderr
    assert machine.run("daemon", "restart").returncode == 0
    assert machine.told()["pid"] == int((folder / "pid").read_text()) != pid
    assert machine.run("daemon", "stop").returncode == 0
    assert machine.run("daemon", "start").returncode == 0
    assert machine.health()["service"] == "systemd"

    removed = machine.run("daemon", "uninstall")
    assert removed.returncode == 0, removed.stderr
    assert machine.health() == {"status": "stopped"}
    assert list((folder / ".config/systemd/user").iterdir()) == []
    assert "not installed" in machine.run("daemon", "uninstall").stderr


def test_a_kill_leaves_nothing_in_the_way(machine: Machine) -> None:
    assert machine.run("daemon", "start").returncode == 0
    pid = machine.told()["pid"]
    os.kill(pid, signal.SIGKILL)
    _wait_for(lambda: machine.health() == {"status": "stopped"})
    assert machine.run("daemon", "start").returncode == 0
    assert machine.told()["pid"] != pid


def test_a_start_that_fails_says_why_at_once(machine: Machine, server: Server) -> None:
    began = time.monotonic()
    for args, env, why in (
        (("--poll-interval", "5days"), {}, "BULLPEN_DAEMON_POLL_INTERVAL"),
        ((), {"BULLPEN_HOME": str(machine.home / "empty")}, "bullpen login"),
    ):
        failed = machine.run("daemon", "start", *args, **env)
        assert failed.returncode != 0
        assert why in failed.stderr
    server.status = 401
    failed = machine.run("daemon", "start")
    assert failed.returncode != 0
    assert "run `bullpen login` again" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert time.monotonic() - began < 20


def test_a_server_that_is_away_is_said_and_waited_for(machine: Machine, server: Server) -> None:
    server.status = 503
    started = machine.run("daemon", "start")
    assert started.returncode == 0
    assert "not ready: no workspaces from" in started.stderr
    assert machine.health()["status"] == "starting"
    server.status = 200
    _wait_for(lambda: machine.health()["status"] == "running")


def test_logs(machine: Machine) -> None:
    assert machine.run("daemon", "logs").returncode != 0, "no log yet"
    assert machine.run("daemon", "start").returncode == 0
    lines = machine.run("daemon", "logs", "-n", "1").stdout.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["event"]
    with subprocess.Popen(
        [BULLPEN, "daemon", "logs", "-f", "-n", "0"],
        env=machine.env,
        stdout=subprocess.PIPE,
        text=True,
    ) as follower:
        try:
            assert follower.stdout is not None
            _wait_for(lambda: _is_reading(follower.pid, machine.home / "logs" / "daemon.log"))
            machine.run("daemon", "stop")
            assert "stopping" in follower.stdout.readline()
        finally:
            follower.kill()


def test_a_stranger_cannot_stop_it(machine: Machine) -> None:
    assert machine.run("daemon", "start").returncode == 0
    url = f"http://127.0.0.1:{machine.told()['port']}/shutdown"
    for headers in ({}, {"Origin": "http://evil.example"}, {"Authorization": "Bearer guess"}):
        request = urllib.request.Request(url, data=b"", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        assert refused.value.code in (401, 403)
        refused.value.close()
    assert machine.health()["status"] == "running"


def test_a_taken_port_is_a_running_daemon(machine: Machine, server: Server) -> None:
    with machine.daemon(BULLPEN_DAEMON_PORT=str(server.server_port)) as second:
        output, _ = second.communicate(timeout=30)
        assert second.returncode == 1
    assert f"port {server.server_port} of this machine is taken" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_in_order(machine: Machine, number: signal.Signals) -> None:
    with machine.daemon() as foreground:
        _wait_for(lambda: machine.health()["status"] == "running")
        foreground.send_signal(number)
        output, _ = foreground.communicate(timeout=10)
    assert foreground.returncode == 0
    assert number.name in output
    assert "Traceback" not in output


def test_it_ends_with_its_parent(machine: Machine) -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as parent,
        machine.daemon(BULLPEN_PARENT_PID=str(parent.pid)) as orphan,
    ):
        _wait_for(lambda: machine.health()["status"] == "running")
        parent.kill()
        parent.wait()
        orphan.communicate(timeout=10)
        assert orphan.returncode == 0
