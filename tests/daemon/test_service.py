"""The daemon as a service: what the unit says, and what the system's own command is asked."""

from __future__ import annotations

import contextlib
import json
import os
import plistlib
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import service
from daemon.cli.root import run
from daemon.cli.service import (
    Launchd,
    ServiceError,
    Systemd,
    find_manager,
    launchd_plist,
    service_environment,
    systemd_unit,
)
from daemon.cli.settings import Settings

pytestmark = pytest.mark.fast

COMMAND = ["/opt/py thon", "-m", "daemon", "--home", '/h/100% "$HOME"\\x']


def test_the_environment_is_what_a_service_needs() -> None:
    env = {
        "PATH": "/bin",
        "HTTPS_PROXY": "http://p",
        "no_proxy": "x",
        "BULLPEN_CLAUDE_PATH": "/c",
        "BULLPEN_HOME": "/h",
        "BULLPEN_TOKEN": "mul_x",
        "BULLPEN_DATABASE_URL": "postgres://u:p@h/d",
        "BULLPEN_AGENT_TIMEOUT": "",
        "BULLPEN_DAEMON_DEVICE_NAME": "two\nlines",
        "SSH_AUTH_SOCK": "/tmp/x",
        "MULTICA_TOKEN": "mat_x",
    }
    assert service_environment(env) == {
        "BULLPEN_CLAUDE_PATH": "/c",
        "HTTPS_PROXY": "http://p",
        "PATH": "/bin",
        "no_proxy": "x",
    }


def test_the_unit() -> None:
    text = systemd_unit(
        COMMAND, {"PATH": '/b:/50%/"x'}, log_file=Path("/l/d%.log"), described="Bullpen 100%"
    )
    lines = text.splitlines()
    assert "Description=Bullpen 100%%" in lines
    assert 'ExecStart="/opt/py thon" "-m" "daemon" "--home" "/h/100%% \\"$$HOME\\"\\\\x"' in lines
    assert 'Environment="PATH=/b:/50%%/\\"x"' in lines
    assert "StandardOutput=append:/l/d%%.log" in lines
    for needed in (
        "Type=notify",
        "Restart=on-failure",
        "WatchdogSec=180",
        "KillMode=mixed",
        "Environment=BULLPEN_SERVICE=systemd",
        "WantedBy=default.target",
    ):
        assert needed in lines
    assert lines.index("StartLimitIntervalSec=0") < lines.index("[Service]")


def test_the_launch_agent() -> None:
    told = plistlib.loads(launchd_plist("l", COMMAND, {"PATH": "/b"}, log_file=Path("/l/d.log")))
    assert told["ProgramArguments"] == COMMAND
    assert told["EnvironmentVariables"] == {"PATH": "/b", "BULLPEN_SERVICE": "launchd"}
    assert told["KeepAlive"] == {"SuccessfulExit": False}
    assert told["RunAtLoad"] is True
    assert told["StandardErrorPath"] == "/l/d.log"


class Fake:
    """A directory that is the whole PATH, with commands that record how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.record = folder / "calls"

    def command(self, name: str, body: str = "") -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{self.record}"\n{body}\n')
        path.chmod(0o755)

    def calls(self) -> list[str]:
        calls = self.record.read_text().splitlines() if self.record.exists() else []
        self.record.unlink(missing_ok=True)
        return calls


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path / "bin")


def _settings(tmp_path: Path, fake: Fake, **more: Any) -> Settings:
    env = {"HOME": str(tmp_path), "PATH": str(fake.folder), "USER": "me"}
    return Settings(env={"BULLPEN_HOME": str(tmp_path / "home"), **env}, **more)


def test_systemd_is_told_in_order(tmp_path: Path, fake: Fake) -> None:
    fake.command("systemctl")
    fake.command("loginctl", "echo Linger=no")
    manager = find_manager(_settings(tmp_path, fake), "linux")
    assert isinstance(manager, Systemd)
    assert not manager.is_installed
    told = manager.install(["/p"], {"BULLPEN_AGENTS": "demo", "PATH": "/b"})
    assert told == ["It keeps these settings: BULLPEN_AGENTS"]
    assert manager.file.parent == tmp_path / ".config" / "systemd" / "user"
    assert manager.file.stat().st_mode & 0o777 == 0o600
    assert 'ExecStart="/p"' in manager.file.read_text()
    manager.enable()
    unit = manager.unit
    assert fake.calls() == [
        "systemctl --user show --property=Version",
        "systemctl --user daemon-reload",
        f"systemctl --user enable {unit}",
        f"systemctl --user restart {unit}",
    ]
    assert "enable-linger" in manager.hints()[0]
    fake.command("loginctl", "echo Linger=yes")
    assert manager.hints() == []
    fake.calls()
    manager.uninstall()
    assert not manager.file.exists()
    assert fake.calls() == [
        f"systemctl --user disable --now {unit}",
        "systemctl --user daemon-reload",
    ]


def test_every_home_and_profile_has_its_own_service(tmp_path: Path, fake: Fake) -> None:
    plain = find_manager(_settings(tmp_path, fake), "linux")
    work = find_manager(_settings(tmp_path, fake, profile="work"), "linux")
    other = find_manager(_settings(tmp_path, fake, flag_home="/elsewhere"), "linux")
    assert len({plain.file, work.file, other.file}) == 3
    assert "work" in work.file.name


def test_without_systemd_one_line_says_so(tmp_path: Path, fake: Fake) -> None:
    manager = find_manager(_settings(tmp_path, fake), "linux")
    with pytest.raises(ServiceError, match="no systemd here") as absent:
        manager.install(["/p"], {})
    assert "\n" not in str(absent.value)
    fake.command("systemctl", "echo 'Failed to connect to bus: No medium found' >&2; exit 1")
    with pytest.raises(ServiceError, match="Failed to connect to bus"):
        manager.install(["/p"], {})
    assert not manager.is_installed, "nothing was written"
    assert manager.hints() == []


def test_a_manager_that_refuses_is_quoted(tmp_path: Path, fake: Fake) -> None:
    fake.command("systemctl", "echo 'Job failed.' >&2; echo more >&2; exit 1")
    manager = find_manager(_settings(tmp_path, fake), "linux")
    with pytest.raises(ServiceError, match=r"^systemctl --user daemon-reload: Job failed\.$"):
        manager.enable()


NO_BUS = """\
if [ "$2" = is-system-running ]; then echo offline; exit 1; fi
echo 'Failed to connect to bus: No medium found' >&2
exit 1
"""


def test_without_a_bus_nothing_is_written_and_what_was_written_goes(
    tmp_path: Path, fake: Fake
) -> None:
    fake.command("systemctl")
    manager = find_manager(_settings(tmp_path, fake), "linux")
    manager.install(["/p"], {})
    link = manager.file.parent / "default.target.wants" / manager.file.name
    link.parent.mkdir()
    link.symlink_to(manager.file)
    fake.command("systemctl", NO_BUS)
    with pytest.raises(ServiceError, match=r"Failed to connect to bus.*removed nevertheless"):
        manager.uninstall()
    assert not manager.is_installed
    assert not link.is_symlink()
    for act in (manager.check, lambda: manager.install(["/p"], {})):
        with pytest.raises(ServiceError, match="Failed to connect to bus"):
            act()
    assert not manager.is_installed


def test_help_and_settings_are_found_by_the_words_people_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str) -> tuple[int, str]:
        code = run(words, Settings(env={"BULLPEN_HOME": str(tmp_path)}))
        told = capsys.readouterr()
        return code, told.out + told.err

    assert "Commands:" in call("help")[1]
    assert "Usage: bullpen daemon logs" in call("help", "daemon", "logs")[1]
    assert call("config", "get", "BULLPEN_AGENT_TIMEOUT")[0] == 1
    call("config", "set", "BULLPEN_AGENT_TIMEOUT", "2h")
    assert call("config", "get", "BULLPEN_AGENT_TIMEOUT") == (0, "2h\n")
    assert "BULLPEN_AGENT_TIMEOUT:  2h" in call("config", "show")[1]
    code, told = call("config", "get", "token")
    assert code == 1
    assert "is not a setting" in told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_output_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = Settings(env={"BULLPEN_HOME": str(tmp_path)})
    with monkeypatch.context() as patch:
        full = open("/dev/full", "w", buffering=1)  # noqa: SIM115, PTH123
        patch.setattr("sys.stdout", full)
        assert run(["version"], settings) == 1
        with contextlib.suppress(OSError):
            full.close()
        patch.setattr("sys.stdout", None)
        assert run(["version"], settings) == 0
    told = capsys.readouterr().err
    assert told == "error: cannot use what the command prints: No space left on device\n"


def test_a_home_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings(env={"BULLPEN_HOME": str(tmp_path / "file"), "HOME": str(tmp_path)})
    assert run(["daemon", "start"], settings) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: cannot write ")
    assert told.count("\n") == 1


def test_a_manager_that_hangs_is_given_up(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "CALL", 0.2)
    fake.command("systemctl", "exec /bin/sleep 30")
    with pytest.raises(ServiceError, match="timed out"):
        find_manager(_settings(tmp_path, fake), "linux").install(["/p"], {})


def test_launchd_is_told_in_order(tmp_path: Path, fake: Fake) -> None:
    fake.command("launchctl")
    manager = find_manager(_settings(tmp_path, fake), "darwin")
    assert isinstance(manager, Launchd)
    manager.install(["/p"], {})
    manager.enable()
    domain = f"gui/{os.getuid()}"
    assert fake.calls() == [
        "launchctl managername",
        f"launchctl enable {domain}/{manager.label}",
        f"launchctl bootstrap {domain} {manager.file}",
    ]
    assert plistlib.loads(manager.file.read_bytes())["Label"] == manager.label
    manager.install(["/p2"], {})
    manager.restart()
    assert fake.calls()[1:] == [
        f"launchctl bootout {domain}/{manager.label}",
        f"launchctl kickstart -k {domain}/{manager.label}",
    ]
    manager.uninstall()
    assert not manager.file.exists()
    assert fake.calls() == [f"launchctl bootout {domain}/{manager.label}"]


def test_other_systems_have_no_services(tmp_path: Path, fake: Fake) -> None:
    with pytest.raises(ServiceError, match="systemd"):
        find_manager(_settings(tmp_path, fake), "win32")


SYSTEMCTL = '''#!{python}
"""A systemd with one unit: starts what its file says and waits until it says it is ready."""
import os, shlex, signal, socket, subprocess, sys, time
from pathlib import Path

folder = Path(__file__).parent
_, _, verb, *rest = sys.argv
with (folder / "calls").open("a") as calls:
    print(verb, *rest, file=calls)
pids = folder / "pid"

def stop():
    if pids.exists():
        pid = int(pids.read_text())
        try:
            os.kill(pid, signal.SIGTERM)
            while True:
                os.kill(pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            pass
        pids.unlink()

def start():
    unit = Path(os.environ["HOME"]) / ".config/systemd/user" / rest[-1]
    env = {{k: os.environ[k] for k in ("HOME", "PYTHONPATH") if k in os.environ}}
    for line in unit.read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "ExecStart":
            command = shlex.split(value)
        elif key == "Environment":
            name, _, text = shlex.split(value)[0].partition("=")
            env[name] = text
        elif key == "StandardOutput":
            log = open(value.removeprefix("append:"), "ab")
    env["NOTIFY_SOCKET"] = str(folder / "notify")
    Path(env["NOTIFY_SOCKET"]).unlink(missing_ok=True)
    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    line.bind(env["NOTIFY_SOCKET"])
    line.settimeout(0.1)
    child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                             start_new_session=True)
    pids.write_text(str(child.pid))
    while child.poll() is None:
        try:
            if b"READY=1" in line.recv(4096):
                return
        except TimeoutError:
            pass
    sys.exit("Job for the unit failed.")

if verb in ("start", "restart"):
    if verb == "restart":
        stop()
    start()
elif verb == "disable":
    stop()
'''


def fake_systemd(folder: Path) -> None:
    """Write a `systemctl` that starts and stops what a unit says."""
    path = folder / "systemctl"
    path.write_text(SYSTEMCTL.format(python=shlex.quote(sys.executable)))
    path.chmod(0o755)


def test_settings_of_the_daemon_are_set_in_the_file(tmp_path: Path) -> None:
    made = Settings(env={"BULLPEN_HOME": str(tmp_path)})
    assert run(["config", "set", "BULLPEN_AGENT_TIMEOUT", "2h"], made) == 0
    file = tmp_path / "secrets" / "config.json"
    assert json.loads(file.read_text()) == {"settings": {"BULLPEN_AGENT_TIMEOUT": "2h"}}
    for words in (["BULLPEN_AGENT_TIMEOUT", "2"], ["BULLPEN_AGENT_TIMEOT", "2h"]):
        again = Settings(env={"BULLPEN_HOME": str(tmp_path)})
        assert run(["config", "set", *words], again) == 1
    assert json.loads(file.read_text()) == {"settings": {"BULLPEN_AGENT_TIMEOUT": "2h"}}
    last = Settings(env={"BULLPEN_HOME": str(tmp_path)})
    assert run(["config", "set", "BULLPEN_AGENT_TIMEOUT", ""], last) == 0
    assert json.loads(file.read_text()) == {}
    assert not (tmp_path / "daemon.id").exists(), "a look mints nothing"
