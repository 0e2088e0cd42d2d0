"""A machine that has booted: systemd as its first process, on a throw-away copy of this one.

A container over an overlay of the root directory, so that it has all that is installed here, keeps
what it changes to itself, and shares only the network with the test, for loopback. Needs root and
Debian's `systemd-container`, which is installed if it is missing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import psutil

USER = "tester"
PACKAGES = ("systemd-container", "libpam-systemd", "dbus-user-session")
_ENTER = ("-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")
"""The namespaces to enter, and the root and working directory there."""

START = 60.0
"""Seconds until systemd says that all is started."""


def can_boot() -> bool:
    """Whether this machine can have such containers; installs what is needed."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    if shutil.which("systemd-nspawn") is None:
        apt = ["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0"]
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "--no-install-recommends", *PACKAGES]):
            if subprocess.run([*apt, *words], env=quiet, check=False).returncode:
                return False
    return shutil.which("systemd-nspawn") is not None


@attrs.define
class Booted:
    """A running container; `boot` may be called again after `power_off`."""

    root: Path
    leader: int = 0
    uid: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        self._process = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--boot"),
                *("--console=pipe", f"--directory={self.root}"),
                # Not whatever servers this machine has: they would want the same ports.
                "systemd.unit=basic.target",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START
        while not self._is_running():
            assert self._process.poll() is None, "systemd-nspawn ended"
            assert time.monotonic() < deadline, "the machine did not boot"
            time.sleep(0.2)
        # It starts what its users have that lingers.
        self.run("systemctl", "start", "systemd-logind")
        if self.uid:
            self._await_manager()

    def _await_manager(self) -> None:
        bus = f"/run/user/{self.uid}/bus"
        deadline = time.monotonic() + START
        while self.run("test", "-S", bus, check=False).returncode:
            assert time.monotonic() < deadline, "the user has no manager"
            time.sleep(0.2)

    def _is_running(self) -> bool:
        assert self._process is not None
        children = psutil.Process(self._process.pid).children()
        if not children:
            return False
        self.leader = children[0].pid
        try:
            said = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        except subprocess.TimeoutExpired:
            return False
        return said in {"running", "degraded"}

    def power_off(self) -> None:
        """End it as a machine ends: all services are stopped."""
        if self._process is not None:
            self.run("systemctl", "poweroff", check=False)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                # All that runs inside ends with its first process.
                with suppress(ProcessLookupError):
                    os.kill(self.leader, signal.SIGKILL)
                self._process.kill()
                self._process.wait(10)
            self._process = None

    def run(
        self, *words: str, check: bool = True, limit: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader), *_ENTER, *words],
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def as_user(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        limit: float = 150.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, with the bus of their own manager, as a sign-in gives it."""
        given = {"XDG_RUNTIME_DIR": f"/run/user/{self.uid}", **(env or {})}
        path = "/usr/local/bin:/usr/bin:/bin"
        settings = [f"{name}={value}" for name, value in ({"PATH": path} | given).items()]
        return self.run(
            *("runuser", "-u", USER, "--", "env", "-i", f"HOME=/home/{USER}", f"USER={USER}"),
            *(*settings, *words),
            check=check,
            limit=limit,
        )


@contextmanager
def booted() -> Iterator[Booted]:
    """Boot a machine with a user who may keep services running; it is gone when the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="bullpen-machine-"))
    root = folder / "root"
    for name in ("root", "upper", "work"):
        (folder / name).mkdir()
    layers = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, root], check=True)
    machine = Booted(root)
    try:
        (root / "etc" / "machine-id").write_text("")
        machine.boot()
        machine.run("useradd", "-m", "-s", "/bin/sh", USER)
        machine.run("loginctl", "enable-linger", USER)
        machine.uid = int(machine.run("id", "-u", USER).stdout)
        machine._await_manager()
        yield machine
    finally:
        machine.power_off()
        subprocess.run(["umount", "-l", root], check=False)
        shutil.rmtree(folder, ignore_errors=True)
