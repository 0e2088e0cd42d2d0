"""One child process of `bullpen up`: started, waited for until it is useful, kept running, stopped.

Woken by the child's end. Owns the process and its log file; whichever way its block is left, the
process is gone afterwards: asked first, killed when its time is up or the person is in a hurry.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from daemon.cli.errors import CliError
from daemon.cli.up.voice import log_tail
from shared.supervise import Backoff, CrashLoop, Intensity, supervise

BACKOFF: Final = Backoff(first=0.3, limit=4.0)
INTENSITY: Final = Intensity(failures=4, period=60.0)
"""With that back-off a child that cannot start is given up after some ten seconds."""

_LOG_LIMIT: Final = 16 * 1024 * 1024
_KILLED: Final = 2.0


class ChildEnded(Exception):
    """The child has ended although nobody asked it to; the text says how."""


@attrs.define(eq=False)
class Stopping:
    """How much patience is left for children that were asked to stop.

    `deadline` is set when stopping begins; `hurry` is called at a second signal.
    """

    budget: float
    deadline: float | None = None
    in_a_hurry: bool = False
    killed: set[str] = attrs.field(factory=set)
    """Names of children that did not stop by themselves."""
    _waits: set[trio.CancelScope] = attrs.field(factory=set)

    def begin(self) -> None:
        if self.deadline is None:
            self.deadline = trio.current_time() + self.budget

    def hurry(self) -> None:
        """End every wait for a child now: what still runs is killed."""
        self.in_a_hurry = True
        for scope in self._waits:
            scope.cancel(reason="the person is in a hurry")

    async def wait(self, process: trio.Process, reserve: float) -> None:
        """Wait for a process's end, leaving `reserve` seconds to those that stop after it."""
        self.begin()
        assert self.deadline is not None
        with trio.CancelScope(shield=True, deadline=self.deadline - reserve) as scope:
            if self.in_a_hurry:
                return
            self._waits.add(scope)
            try:
                await process.wait()
            finally:
                self._waits.discard(scope)


@attrs.frozen(kw_only=True)
class ChildSpec:
    """How a child is run. `probe(pid)` tells what it said once it is useful, or None until then."""

    name: str
    command: Callable[[], Sequence[str]]
    env: Mapping[str, str] = attrs.field(repr=False)
    log_file: Path
    probe: Callable[[int], Awaitable[Any]]
    patience: float
    """Seconds until it must be useful."""
    reserve: float = 0.0
    """Seconds of the stopping budget that belong to the children stopped after it."""


@attrs.define(eq=False)
class Child:
    """A running child: `log_start` is where in its log this run begins."""

    spec: ChildSpec
    process: trio.Process
    log_start: int

    async def wait_until_useful(self) -> Any:
        """Wait for what the child tells. Raises ChildEnded when it ends or takes too long."""
        with trio.move_on_after(self.spec.patience):
            while True:
                if self.process.poll() is not None:
                    raise ChildEnded(self.how_it_ended())
                told = await self.spec.probe(self.process.pid)
                if told is not None:
                    return told
                await trio.sleep(0.05)
        raise ChildEnded(f"the {self.spec.name} was not ready within {self.spec.patience:.0f} s")

    def how_it_ended(self) -> str:
        code = self.process.returncode
        if code is None or code >= 0:
            return f"the {self.spec.name} ended with code {code}"
        with suppress(ValueError):
            return f"the {self.spec.name} was ended by {signal.Signals(-code).name}"
        return f"the {self.spec.name} was ended by signal {-code}"


@asynccontextmanager
async def open_child(
    spec: ChildSpec, stopping: Stopping, started: Callable[[str, int], None]
) -> AsyncIterator[Child]:
    """Start a child; when the block is left it is stopped. Raises CliError if it cannot start."""
    try:
        log_start = _open_log(spec.log_file)
        with spec.log_file.open("ab") as log:
            process = await trio.lowlevel.open_process(
                list(spec.command()),
                stdin=subprocess.DEVNULL,
                stdout=log.fileno(),
                stderr=subprocess.STDOUT,
                env=dict(spec.env),
                start_new_session=True,  # Ctrl-C is for us: we stop children in order
            )
    except OSError as error:
        raise CliError(f"cannot start the {spec.name}: {error.strerror or error}") from error
    try:
        started(spec.name, process.pid)
        yield Child(spec, process, log_start)
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                process.terminate()
            await stopping.wait(process, spec.reserve)  # noqa: ASYNC102 - bounded and shielded there
        if process.poll() is None:
            stopping.killed.add(spec.name)
            with suppress(ProcessLookupError):
                process.kill()
            with trio.move_on_after(_KILLED, shield=True):
                await process.wait()


def _open_log(path: Path) -> int:
    """Make place for a log; one that has grown too long becomes `.1`. Returns its size in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_LIMIT:
            path.replace(path.with_name(f"{path.name}.1"))
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    return path.stat().st_size


async def keep_child(
    spec: ChildSpec,
    stopping: Stopping,
    started: Callable[[str, int], None],
    useful: Callable[[Any], None],
    trouble: Callable[[str], None],
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep a child running for ever: restarted with back-off when it dies.

    One that ended with code 0 was asked to: it is started again at once, and that is no failure.
    Raises CliError, with the end of its log, when the first start fails or it dies too often.
    `useful` hears what it tells at each later start, `trouble` how it ended.
    """
    first = True
    log_start = 0

    async def once() -> None:
        nonlocal first, log_start
        async with open_child(spec, stopping, started) as child:
            log_start = child.log_start
            told = await child.wait_until_useful()
            if first:
                first = False
                task_status.started(told)
            else:
                useful(told)
            await child.process.wait()
            ended = child.how_it_ended()
        if child.process.returncode == 0:  # somebody asked it to: no failure, however often
            return
        trouble(ended)
        raise ChildEnded(ended)

    async def first_or_next() -> None:
        try:
            while True:
                await once()
        except ChildEnded as error:
            if first:  # what cannot start now will not in a second: say why at once
                raise CliError(f"{error}\n{_why(spec, log_start)}") from error
            raise

    try:
        await supervise(
            spec.name,
            first_or_next,
            retryable=(ChildEnded,),
            backoff=BACKOFF,
            intensity=INTENSITY,
        )
    except CrashLoop as error:
        raise CliError(
            f"the {spec.name} keeps dying; giving up\n{_why(spec, log_start)}"
        ) from error


def _why(spec: ChildSpec, log_start: int) -> str:
    tail = log_tail(spec.log_file, log_start)
    return f"{tail}\n(log: {spec.log_file})" if tail else f"(its log is empty: {spec.log_file})"
