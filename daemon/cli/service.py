"""The daemon as a service of its user: what systemd and launchd are told, and telling them.

What a unit says is made by pure functions. A manager writes the file, calls the system's own
command, and passes on in one line why that failed. The service's environment is fixed when it is
installed, because no shell starts it: the search path, proxies, and the settings given.
"""

from __future__ import annotations

import hashlib
import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import attrs
import platformdirs

from daemon.cli.settings import Settings
from shared.home import write_private

NAME: Final = "bullpen-daemon"
LABEL: Final = "dev.bullpen.daemon"

CALL: Final = 120.0
"""Seconds a manager may take: starting waits until the daemon is ready, or says why it is not."""

_KEPT: Final = frozenset(
    {
        "PATH",
        "SHELL",
        "LANG",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "CODEX_HOME",
        "OPENCLAW_STATE_DIR",
        "OPENCLAW_INCLUDE_ROOTS",
    }
)
_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy"})
_NOT_OURS: Final = frozenset(
    {
        "BULLPEN_DAEMON_TRIAL",
        "BULLPEN_DATABASE_URL",
        "BULLPEN_HOME",
        "BULLPEN_PARENT_PID",
        "BULLPEN_SERVICE",
        "BULLPEN_TOKEN",
        "BULLPEN_WORKSPACE_ID",
    }
)
"""Named in the command, of one start only, or not the daemon's."""


class ServiceError(Exception):
    """There is no service manager, or it refused; the text is its own reason in one line."""


class Manager(Protocol):
    """Installs, starts and removes this profile's service. Everything raises ServiceError."""

    @property
    def file(self) -> Path: ...

    @property
    def is_installed(self) -> bool: ...

    def check(self) -> None:
        """Make sure that there is somebody to ask, before anything is changed."""

    def install(self, command: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """Write the service down, to be enabled; returns what to tell the person."""

    def enable(self) -> None:
        """Start it now and at every sign-in."""

    def start(self) -> None: ...

    def restart(self) -> None: ...

    def uninstall(self) -> None:
        """Stop it and remove its file, which goes even if nobody can be asked to stop it."""

    def hints(self) -> list[str]: ...


def service_environment(env: Mapping[str, str]) -> dict[str, str]:
    """What the service needs of the environment it is installed from, sorted. ◇"""
    return {
        name: value
        for name, value in sorted(env.items())
        if value
        and "\n" not in value
        and (
            name in _KEPT
            or name.lower() in _PROXIES
            or (name.startswith("BULLPEN_") and name not in _NOT_OURS)
        )
    }


def systemd_unit(
    command: Sequence[str], env: Mapping[str, str], *, log_file: Path, described: str
) -> str:
    """Write the user unit. ◇

    Killing is left to the daemon first (its wardens clean up), and then hits everything. It is
    started again whatever ended it but an orderly stop, for as long as it takes: a sign-in that was
    refused may be renewed.
    """
    lines = [
        "[Unit]",
        f"Description={described.replace('%', '%%')}",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={' '.join(_quoted(word, in_command=True) for word in command)}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in env.items()),
        "Environment=BULLPEN_SERVICE=systemd",
        "Restart=on-failure",
        "RestartSec=10",
        "TimeoutStartSec=90",
        "TimeoutStopSec=90",
        "WatchdogSec=180",
        "KillMode=mixed",
        f"StandardOutput=append:{str(log_file).replace('%', '%%')}",
        "StandardError=inherit",
        "",
        "[Install]",
        "WantedBy=default.target",
        "",
    ]
    return "\n".join(lines)


def _quoted(word: str, *, in_command: bool = False) -> str:
    """A word as systemd reads it back: its own escapes, specifiers and variables taken literally."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text.replace("$", "$$") if in_command else text}"'


def launchd_plist(
    label: str, command: Sequence[str], env: Mapping[str, str], *, log_file: Path
) -> bytes:
    """Write the launch agent: started at sign-in and after every end that was no orderly stop. ◇"""
    return plistlib.dumps(
        {
            "Label": label,
            "ProgramArguments": list(command),
            "EnvironmentVariables": {**env, "BULLPEN_SERVICE": "launchd"},
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": 90,
            "ProcessType": "Background",
            "StandardOutPath": str(log_file),
            "StandardErrorPath": str(log_file),
        }
    )


def find_manager(settings: Settings, platform: str = sys.platform) -> Manager:
    """Return the system's manager, for the daemon of these settings' home. Raises ServiceError."""
    home = settings.home
    parts = [home.profile] if home.profile else []
    if home.base != platformdirs.user_data_path("bullpen").absolute():
        parts.append(hashlib.sha256(str(home.base).encode()).hexdigest()[:8])
    user = Path(settings.env.get("HOME") or Path.home())
    log_file = home.logs / "daemon.log"
    if platform == "darwin":
        label = ".".join([LABEL, *parts])
        return Launchd(
            label=label,
            file=user / "Library" / "LaunchAgents" / f"{label}.plist",
            log_file=log_file,
            env=settings.env,
        )
    if platform.startswith("linux"):
        unit = "-".join([NAME, *parts]) + ".service"
        base = settings.env.get("XDG_CONFIG_HOME") or user / ".config"
        return Systemd(
            unit=unit,
            file=Path(base) / "systemd" / "user" / unit,
            log_file=log_file,
            env=settings.env,
            profile=home.profile,
        )
    raise ServiceError("services are known for Linux (systemd) and macOS (launchd) only")


@attrs.frozen(kw_only=True)
class Systemd:
    """systemd's manager for one user."""

    unit: str
    file: Path
    log_file: Path
    env: Mapping[str, str] = attrs.field(repr=False)
    profile: str = ""

    @property
    def is_installed(self) -> bool:
        return self.file.is_file()

    def check(self) -> None:
        # `is-system-running` says "offline" without a bus, as if that were an answer
        self._call("show", "--property=Version")

    def install(self, command: Sequence[str], env: Mapping[str, str]) -> list[str]:
        self.check()
        kept = service_environment(env)
        described = f"Bullpen daemon ({self.profile})" if self.profile else "Bullpen daemon"
        text = systemd_unit(command, kept, log_file=self.log_file, described=described)
        _write(self.file, text, self.log_file)
        return _told(kept)

    def enable(self) -> None:
        self._call("daemon-reload")
        # A service that has been running would not see its changed unit by being enabled.
        self._call("enable", self.unit)
        self._call("restart", self.unit)

    def start(self) -> None:
        self._call("start", self.unit)

    def restart(self) -> None:
        self._call("restart", self.unit)

    def uninstall(self) -> None:
        try:
            self._call("disable", "--now", self.unit)
        except ServiceError as error:
            self._remove()
            raise ServiceError(f"{error}; its file is removed nevertheless") from error
        self._remove()
        self._call("daemon-reload")

    def _remove(self) -> None:
        for wanting in self.file.parent.glob("*.wants"):
            (wanting / self.unit).unlink(missing_ok=True)
        self.file.unlink(missing_ok=True)

    def hints(self) -> list[str]:
        """Where the user's services end with the last session, say how to change that."""
        loginctl = shutil.which("loginctl", path=self.env.get("PATH"))
        if loginctl is None:
            return []
        user = self.env.get("USER") or str(os.getuid())
        try:
            asked = _run([loginctl, "show-user", user, "--property=Linger"], self.env)
        except ServiceError:
            return []
        if asked.returncode != 0 or asked.stdout.strip() == "Linger=yes":
            return []
        return ["It ends when you sign out; to keep it running: loginctl enable-linger"]

    def _call(self, *words: str) -> None:
        systemctl = shutil.which("systemctl", path=self.env.get("PATH"))
        if systemctl is None:
            raise ServiceError(
                "there is no systemd here (systemctl is not in the PATH): use `bullpen daemon start`"
            )
        done = _run([systemctl, "--user", *words], self.env)
        if done.returncode != 0:
            raise ServiceError(f"systemctl --user {words[0]}: {_first_line(done)}")


@attrs.frozen(kw_only=True)
class Launchd:
    """launchd's domain of one user."""

    label: str
    file: Path
    log_file: Path
    env: Mapping[str, str] = attrs.field(repr=False)

    @property
    def is_installed(self) -> bool:
        return self.file.is_file()

    @property
    def _domain(self) -> str:
        return f"gui/{os.getuid()}"

    def check(self) -> None:
        self._call("managername", may_fail=True)

    def install(self, command: Sequence[str], env: Mapping[str, str]) -> list[str]:
        self.check()
        if self.is_installed:  # what is loaded does not see the changed file
            self._call("bootout", f"{self._domain}/{self.label}", may_fail=True)
        kept = service_environment(env)
        text = launchd_plist(self.label, command, kept, log_file=self.log_file)
        _write(self.file, text.decode(), self.log_file)
        return _told(kept)

    def enable(self) -> None:
        self._call("enable", f"{self._domain}/{self.label}")
        self._call("bootstrap", self._domain, str(self.file))

    def start(self) -> None:
        self._call("kickstart", f"{self._domain}/{self.label}")

    def restart(self) -> None:
        self._call("kickstart", "-k", f"{self._domain}/{self.label}")

    def uninstall(self) -> None:
        self._call("bootout", f"{self._domain}/{self.label}", may_fail=True)
        self.file.unlink(missing_ok=True)

    def hints(self) -> list[str]:
        return []

    def _call(self, *words: str, may_fail: bool = False) -> None:
        launchctl = shutil.which("launchctl", path=self.env.get("PATH"))
        if launchctl is None:
            raise ServiceError("there is no launchd here: launchctl is not in the PATH")
        done = _run([launchctl, *words], self.env)
        if done.returncode != 0 and not may_fail:
            raise ServiceError(f"launchctl {words[0]}: {_first_line(done)}")


def _run(argv: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CALL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(f"{Path(argv[0]).name}: {error}") from error


def _first_line(done: subprocess.CompletedProcess[str]) -> str:
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return said[0].strip() if said else f"exit {done.returncode}"


def _write(file: Path, text: str, log_file: Path) -> None:
    """Write the file so that only its owner reads it: a proxy's address may hold a password."""
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        write_private(file, text)
    except OSError as error:
        raise ServiceError(f"cannot write {file}: {error.strerror}") from error


def _told(kept: Mapping[str, str]) -> list[str]:
    ours = [name for name in kept if name.startswith("BULLPEN_")]
    return [f"It keeps these settings: {', '.join(ours)}"] if ours else []
