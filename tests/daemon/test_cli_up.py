"""`bullpen up` as processes: what it writes, how it stops, and what a killed one leaves behind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from daemon.cli.up import introduce
from tests.support.bullpen import (
    CLI,
    Bullpen,
    clean_environment,
    processes_of,
    start_up,
    stop_tree,
    wait_for,
)

pytestmark = pytest.mark.together

STOP_DEADLINE = 10.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all tests: only its first start makes a database."""
    return tmp_path_factory.mktemp("up") / "home"


def run_up(home: Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    """An `up` that is expected to end by itself."""
    return subprocess.run(
        [*CLI, "up", "--no-browser", *flags],
        env=clean_environment(BULLPEN_HOME=str(home), **env),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def stop(bullpen: Bullpen, number: signal.Signals = signal.SIGTERM) -> float:
    """Ask `up` to stop; returns how long it took."""
    started = time.monotonic()
    bullpen.process.send_signal(number)
    bullpen.process.wait(30)
    return time.monotonic() - started


def kill(pid: int) -> None:
    process = psutil.Process(pid)
    process.kill()
    psutil.wait_procs([process], timeout=10)


def pids(bullpen: Bullpen) -> dict[str, int]:
    told = bullpen.told
    return {
        "up": told["pid"],
        "server": told["server_pid"],
        "daemon": told["daemon_pid"],
        "postgres": told["postgres"]["pid"],
    }


def is_gone(pid: int) -> bool:
    """Ended; an orphan may still wait for this machine's init to reap it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def log_of(home: Path) -> str:
    return (home / "up.out").read_text()


def test_it_says_how_things_are_stops_in_time_and_keeps_everything(home: Path) -> None:
    with start_up(home) as bullpen:
        told = bullpen.told
        assert told["pid"] == bullpen.process.pid
        assert all(psutil.pid_exists(pid) for pid in pids(bullpen).values())
        config = json.loads((home / "secrets" / "config.json").read_text())
        assert config == {
            "server_url": told["url"],
            "token": told["token"],
            "workspace_id": told["workspace_id"],
        }
        agents = json.loads(bullpen.cli("agent", "list", "--output", "json").stdout)
        assert [(agent["name"], agent["visibility"]) for agent in agents] == [("demo", "private")]
        issue = bullpen.create_issue("Kept")
        watched = bullpen.cli("watch", issue["identifier"])
        assert "Demo" in watched.stdout
        assert "completed" in watched.stderr
        link = bullpen.cli("link").stdout.strip()
        assert link.startswith(told["url"] + "/auth/link/")

        with bullpen.api() as api:  # as earlier versions made it
            old = {"visibility": "workspace", "description": introduce._OPEN_DEMO}
            api.put(f"/api/agents/{agents[0]['id']}", json=old).raise_for_status()
        assert stop(bullpen) < STOP_DEADLINE
        assert bullpen.process.returncode == 0
        assert not (home / "secrets" / "up.json").exists()
        assert processes_of(home) == []
        assert told["token"] not in log_of(home)

    with start_up(home) as bullpen:
        assert bullpen.told["token"] == told["token"], "a token that works is kept"
        assert bullpen.issue(issue["id"])["title"] == "Kept"
        agents = json.loads(bullpen.cli("agent", "list", "--output", "json").stdout)
        assert [agent["name"] for agent in agents] == ["demo"], "no second agent for a runtime"
        assert agents[0]["visibility"] == "private"
        assert log_of(home).count("the agent demo was open to the whole workspace") == 1
        assert stop(bullpen, signal.SIGINT) < STOP_DEADLINE
        assert bullpen.process.returncode == 0


def test_a_second_one_says_so(home: Path) -> None:
    with start_up(home) as bullpen:
        second = run_up(home)
        assert second.returncode == 1
        assert str(bullpen.told["pid"]) in second.stderr
        assert bullpen.told["url"] in second.stderr
        assert second.stderr.count("\n") == 1
        assert bullpen.cli("issue", "list").returncode == 0, "the first is not disturbed"


@pytest.mark.parametrize("victims", [["up"], ["up", "server"], ["postgres"]])
def test_after_a_kill_the_next_one_works(home: Path, victims: list[str]) -> None:
    with start_up(home) as bullpen:
        found = pids(bullpen)
        issue = bullpen.create_issue(f"Before {victims}")
        for victim in victims:
            kill(found[victim])
        if "up" in victims:
            bullpen.process.wait(10)
        else:
            wait_for("the server to work again", lambda: _answers(bullpen), seconds=40)
            stop(bullpen)
    # start_up's own clean-up may have ended orphans; the records they left are still there.
    with start_up(home) as bullpen:
        assert bullpen.issue(issue["id"])["title"] == issue["title"]


def _answers(bullpen: Bullpen) -> bool:
    return bullpen.cli("issue", "list", check=False).returncode == 0


def test_orphans_of_a_killed_one_are_stopped_by_the_next(home: Path) -> None:
    with start_up(home) as bullpen:
        found = pids(bullpen)
        for name in ("server", "daemon"):  # so that they cannot notice that they are orphans
            psutil.Process(found[name]).suspend()
        kill(found["up"])
        bullpen.process.wait(10)
        with start_up(home) as successor:
            assert is_gone(found["daemon"])
            assert is_gone(found["server"])
            assert "an earlier run" in log_of(home)
            assert _answers(successor)


def test_children_that_do_not_stop_are_killed_in_time(home: Path) -> None:
    with start_up(home) as bullpen:
        found = pids(bullpen)
        for name in ("server", "daemon"):
            psutil.Process(found[name]).suspend()
        took = stop(bullpen)
        assert took < STOP_DEADLINE + 0.5, took
        assert bullpen.process.returncode == 0
        assert is_gone(found["server"])
        assert is_gone(found["daemon"])


def test_the_second_signal_kills(home: Path) -> None:
    with start_up(home) as bullpen:
        daemon = pids(bullpen)["daemon"]
        psutil.Process(daemon).suspend()
        bullpen.process.send_signal(signal.SIGINT)
        wait_for("the stop to begin", lambda: "Stopping" in log_of(home)[-400:])
        assert stop(bullpen, signal.SIGINT) < STOP_DEADLINE - 3
        assert is_gone(daemon)


def test_a_child_that_keeps_dying_ends_everything_with_its_log(home: Path) -> None:
    with start_up(home) as bullpen:
        deadline = time.monotonic() + 60
        while bullpen.process.poll() is None:
            assert time.monotonic() < deadline
            for process in psutil.Process(bullpen.process.pid).children():
                if any("daemon" in word for word in process.cmdline()):
                    process.kill()
            time.sleep(0.1)
        assert bullpen.process.returncode == 1
        said = log_of(home)
        assert "the daemon keeps dying" in said
        assert str(home / "logs" / "daemon.log") in said
        assert "Traceback" not in said
        assert processes_of(home) == []


def test_a_daemon_that_is_stopped_again_and_again_is_started_again_and_again(home: Path) -> None:
    with start_up(home) as bullpen:
        before = len(log_of(home))
        for _ in range(6):  # more often in a minute than it may die
            bullpen.cli("daemon", "restart")
        assert bullpen.process.poll() is None, log_of(home)
        stop(bullpen)
    said = log_of(home)[before:]
    assert "ended with code" not in said, "what somebody asked for is no trouble"
    assert said.count("The daemon is back.") == 6


def test_a_token_that_no_longer_works_is_replaced(home: Path) -> None:
    config = home / "secrets" / "config.json"
    told = json.loads(config.read_text())
    dead = "mul_" + "0" * 40
    config.write_text(json.dumps({**told, "token": dead, "unknown": "kept"}))
    with start_up(home) as bullpen:
        token = bullpen.told["token"]
        assert token != dead
        assert json.loads(config.read_text()) == {
            "server_url": bullpen.told["url"],
            "token": token,
            "workspace_id": told["workspace_id"],
            "unknown": "kept",
        }
        assert _answers(bullpen)


def test_a_taken_port_is_told(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_up(home, "--port", str(port))
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr
    assert processes_of(home) == []


def test_a_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_up(tmp_path / "file" / "home")
    assert done.returncode == 1
    assert "--home" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [("BULLPEN_DAEMON_POLL_INTERVAL", "soon"), ("BULLPEN_MAX_BODY", "huge")],
)
def test_a_wrong_setting_is_told_at_once(home: Path, variable: str, value: str) -> None:
    done = run_up(home, "--port", "0", "--agents", "demo", **{variable: value})
    assert done.returncode == 1
    assert variable in done.stderr
    assert "Traceback" not in done.stderr
    assert processes_of(home) == []


def test_a_home_signed_in_elsewhere_is_left_alone(tmp_path: Path) -> None:
    config = tmp_path / "secrets" / "config.json"
    config.parent.mkdir()
    text = json.dumps({"server_url": "https://bullpen.example.org", "token": "mul_x"})
    config.write_text(text)
    done = run_up(tmp_path)
    assert done.returncode == 1
    assert "bullpen.example.org" in done.stderr
    assert config.read_text() == text


def test_a_terminal_s_end_stops_everything(home: Path) -> None:
    with start_up(home) as bullpen:
        assert stop(bullpen, signal.SIGHUP) < STOP_DEADLINE
        assert bullpen.process.returncode == 0


def test_signals_during_the_start_stop_it(home: Path) -> None:
    process: Any = subprocess.Popen(
        [*CLI, "up", "--no-browser", "--port", "0", "--agents", "demo"],
        env=clean_environment(BULLPEN_HOME=str(home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        assert b"Starting the server" in process.stdout.readline()
        wait_for("the server process", lambda: psutil.Process(process.pid).children())
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_DEADLINE + 1) == 0
        process.stdout.close()
        assert processes_of(home) == []
    finally:
        stop_tree(process, home)
