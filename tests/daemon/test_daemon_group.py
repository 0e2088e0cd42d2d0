"""Waiting for a daemon to end by itself, as the command line sees it, against a scripted daemon."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import daemon_group
from daemon.cli.daemon_group import drain
from daemon.cli.errors import CliError
from daemon.cli.root import run
from daemon.cli.settings import Settings

pytestmark = pytest.mark.together


class ScriptedDaemon(ThreadingHTTPServer):
    """Answers `/health` from a list of task counts, the last for ever; None is an end."""

    daemon_threads = True

    def __init__(self, home: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.counts: list[int | None] = [0]
        self.knows_drain = True
        self.draining = False
        self.posts: list[str] = []
        told = {"pid": 7, "port": self.server_port, "secret": "s"}
        (home / "daemon.json").write_text(json.dumps(told))

    def health(self) -> dict[str, Any] | None:
        count = self.counts.pop(0) if self.draining and len(self.counts) > 1 else self.counts[0]
        if count is None:
            return None
        told = {"status": "running", "pid": 7, "active_task_count": count}
        return {**told, "draining": True} if self.draining else told


class _Answer(BaseHTTPRequestHandler):
    server: ScriptedDaemon

    def do_GET(self) -> None:
        self._say(self.server.health())

    def do_POST(self) -> None:
        self.server.posts.append(self.path)
        if not self.server.knows_drain:
            self._say(None)
            return
        self.server.draining = self.path == "/drain"
        self._say({})

    def _say(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(404 if value is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon(tmp_path) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(daemon_group, "LOOK", 0.01)
    return Settings(env={"BULLPEN_HOME": str(tmp_path)})


def test_tasks_are_waited_for(
    scripted: ScriptedDaemon, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.counts = [2, 2, 2, 1, 1, 0, None]
    drain(settings)
    assert scripted.posts == ["/drain"]
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" to end")[0] for line in told] == [
        "Waiting for 2 tasks",
        "Waiting for 1 task",
    ]


def test_an_interrupted_wait_is_as_if_nothing_had_been_asked(
    scripted: ScriptedDaemon, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.counts = [1]

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(daemon_group.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        drain(settings)
    assert scripted.posts == ["/drain", "/resume"]


def test_somebody_else_may_decide_otherwise(scripted: ScriptedDaemon, settings: Settings) -> None:
    scripted.counts = [1]
    threading.Timer(0.2, lambda: setattr(scripted, "draining", False)).start()
    with pytest.raises(CliError, match="go on"):
        drain(settings)


def test_a_daemon_that_cannot_wait_is_left_to_be_stopped(
    scripted: ScriptedDaemon, settings: Settings
) -> None:
    scripted.knows_drain = False
    drain(settings)
    assert scripted.posts == ["/drain"]


NO_BUS = "#!/bin/sh\necho 'Failed to connect to bus: No medium found' >&2\nexit 1\n"


@pytest.mark.parametrize("above", [False, True])
def test_what_cannot_be_installed_stops_no_daemon(
    scripted: ScriptedDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], above: bool
) -> None:
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(NO_BUS if not above else "#!/bin/sh\n")
    systemctl.chmod(0o755)
    if above:
        (tmp_path / "up.json").write_text(json.dumps({"pid": os.getppid()}))
    env = {"BULLPEN_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": str(systemctl.parent)}
    assert run(["daemon", "install"], Settings(env=env)) == 1
    told = capsys.readouterr().err
    assert ("`bullpen up` is running" if above else "Failed to connect to bus") in told
    assert scripted.posts == []
    assert not list(tmp_path.rglob("*.service"))


def test_without_a_daemon_there_is_nothing_to_wait_for(settings: Settings) -> None:
    drain(settings)
