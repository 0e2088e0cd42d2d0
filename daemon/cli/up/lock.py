"""One `bullpen up` for each home, and what an earlier one that was killed has left running.

The lock is the operating system's, so it goes with the process however that ends. The locked file
also holds who the children are (pid and time of creation, so that a recycled pid is never taken
for one); the next `up` stops those before it starts its own.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, Final

import psutil
import trio

from daemon.cli.errors import CliError
from shared.home import Home

_PATIENCE: Final = 8.0
"""Seconds a leftover gets to stop by itself before it is killed."""

_SAME: Final = 0.5
"""Seconds two readings of one process's time of creation may differ (clock steps, rounding)."""


class HomeLock:
    """The held lock of a home; `children` is changed by `record` only."""

    def __init__(self, file: IO[str], earlier: Mapping[str, Any]) -> None:
        self._file = file
        self._children: dict[str, dict[str, float]] = {}
        found = earlier.get("children")
        self.earlier: dict[str, Any] = dict(found) if isinstance(found, dict) else {}
        self._write()

    def record(self, name: str, pid: int) -> None:
        """Note that the child of this name is now this process."""
        with suppress(psutil.Error):
            self._children[name] = {"pid": pid, "created": psutil.Process(pid).create_time()}
            self._write()

    def forget_earlier(self) -> None:
        """Note that nothing of an earlier run is left."""
        self.earlier = {}
        self._write()

    def _write(self) -> None:
        told = {"pid": os.getpid(), "children": {**self.earlier, **self._children}}
        self._file.seek(0)
        self._file.truncate()
        json.dump(told, self._file)
        self._file.flush()


@contextmanager
def hold_home(home: Home) -> Iterator[HomeLock]:
    """Lock the home. Raises CliError when it is in use or cannot be written."""
    path = home.root / "up.lock"
    try:
        home.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CliError(
            f"cannot use {home.root}: {error.strerror}; choose another --home"
        ) from error
    with os.fdopen(handle, "r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CliError(_already(home, _read(file))) from error
        except OSError as error:
            raise CliError(f"cannot lock {path}: {error.strerror}") from error
        yield HomeLock(file, _read(file))
        with suppress(OSError):
            file.seek(0)
            file.truncate()


def _read(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        told = json.loads(file.read() or "{}")
    except ValueError:  # cut off by a crash
        return {}
    return told if isinstance(told, dict) else {}


def _already(home: Home, told: Mapping[str, Any]) -> str:
    text = f"Bullpen is already running here (pid {told.get('pid', 'unknown')}"
    with suppress(OSError, ValueError, KeyError, TypeError):
        text += f", {json.loads(home.up_file.read_text(encoding='utf-8'))['url']}"
    return f"{text}); its home is {home.root}"


async def stop_leftovers(lock: HomeLock) -> list[str]:
    """Stop what an earlier run left, the daemon before its server; returns what was stopped."""
    stopped = []
    for name in ("daemon", "server"):
        process = _find(lock.earlier.get(name))
        if process is None:
            continue
        stopped.append(f"{name} (pid {process.pid})")
        with suppress(psutil.Error):
            process.terminate()
            if not await has_ended(process, _PATIENCE):
                process.kill()
                await has_ended(process, 2.0)
    lock.forget_earlier()
    return stopped


async def has_ended(process: psutil.Process, seconds: float) -> bool:
    """Wait for the end of a process that is not our child, which only looking can tell."""
    deadline = trio.current_time() + seconds
    while is_alive(process):
        if trio.current_time() > deadline:
            return False
        await trio.sleep(0.05)
    return True


def _find(told: Any) -> psutil.Process | None:
    try:
        process = psutil.Process(int(told["pid"]))
        same = abs(process.create_time() - float(told["created"])) < _SAME
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        return None
    return process if same and is_alive(process) else None


def is_alive(process: psutil.Process) -> bool:
    """Whether the process still runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
