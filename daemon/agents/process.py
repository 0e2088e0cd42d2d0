"""Run one agent program: bytes in, lines out, and no process left behind.

Opened by an agent's session. It owns the program's standard streams and its warden
(`daemon.agents.warden`), a small process that keeps the program's whole family together. Standard
input is written while output is read, because programs print banners before they read. Leaving
the block kills what is left and waits for it, bounded.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import psutil
import structlog
import trio

from daemon import threads
from daemon.agents import isolation, warden
from daemon.agents.contract import AgentError
from daemon.agents.isolation import Isolation, Unsafe, View
from shared.log import redacted
from shared.system import EXHAUSTED, REPLACED

log = structlog.get_logger(__name__)

LINE_LIMIT: Final = 32 * 1024 * 1024
"""Bytes in one line of output; resumed conversations make the largest (spec 04 §1.4)."""
STDERR_TAIL: Final = 2048
_STDERR_KEPT: Final = 2 * STDERR_TAIL
"""More than is shown: a secret at the cut must be whole to be recognised."""
PROTOCOL_GRACE: Final = 4.0
"""Claude answers an interrupt in 0.1 s, with a tool to kill in 1.4 s (real-agents §2)."""
TERM_GRACE: Final = 2.5
KILL_GRACE: Final = 2.0
"""The three graces and the last wait below make the 12 s that callers may count on."""
_LAST_WAIT: Final = 1.0
_START_LIMIT: Final = 30.0
_CHUNK: Final = 64 * 1024
_LOG_CLIP: Final = 1000
_LOG_READ: Final = 4 * _LOG_CLIP
TASK_MARKER: Final = "MULTICA_TASK_ID"

_LOADER: Final = ("LD_", "DYLD_")
"""Of the daemon's own environment, what its interpreter may need to start."""


class LineTooLong(Exception):
    """A line of output exceeded the limit; the rest of the stream means nothing."""


class LineSplitter:
    """Cuts a byte stream into lines of bounded length. ◇"""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._parts: list[bytes] = []  # the pieces of the line under way
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, without line ends. Raises LineTooLong."""
        first, *rest = data.split(b"\n")
        self._parts.append(first)
        self._size += len(first)
        if self._size > self._limit or any(len(line) > self._limit for line in rest):
            raise LineTooLong(f"a line of output is longer than {self._limit} bytes")
        if not rest:
            return []
        lines = [b"".join(self._parts), *rest[:-1]]
        self._parts = [rest[-1]]
        self._size = len(rest[-1])
        return [line.removesuffix(b"\r") for line in lines]

    def finish(self) -> bytes:
        """Return what came after the last line feed."""
        line = b"".join(self._parts)
        self._parts, self._size = [], 0
        return line


@attrs.frozen(kw_only=True)
class Launch:
    """What to start. `label` names the provider in texts; `env` is the whole environment.

    `view` is what it may see of what is hidden from agents, where this machine isolates them.
    """

    label: str
    argv: Sequence[str] = attrs.field(repr=False)
    cwd: Path
    env: Mapping[str, str] = attrs.field(repr=False)
    view: View = attrs.field(factory=View)


class AgentProcess:
    """A running program. One task reads lines; the other methods may be called by any task."""

    def __init__(
        self,
        launch: Launch,
        process: trio.Process,
        control: trio.SocketStream,
        stdin: trio.abc.SendStream,
        stdout: trio.abc.ReceiveStream,
        *,
        isolated: bool,
    ) -> None:
        self._label = launch.label
        self._path = launch.argv[0]
        self._marker = launch.env.get(TASK_MARKER, "")
        self._process = process
        self._control = control
        self._stdin = stdin
        self._stdout = stdout
        self._isolated = isolated
        self._report = b""  # the warden's last word; only _learn_end
        self._ended = trio.Event()  # set by _learn_end
        self._stop_asked = trio.Event()
        self._first_rung = 0  # where the stop ladder begins; set with _stop_asked
        self._splitter = LineSplitter()
        self._lines: list[bytes] = []  # read but not yet taken, the next one last
        self._reading = trio.CancelScope()  # the read under way, or the last one
        self._tail = bytearray()  # only _drain_stderr
        self._stderr_done = trio.Event()
        # The driver's frames are a handful a run; a program that leaves so many unread is lost.
        self._frames, self._outgoing = trio.open_memory_channel[bytes](10_000)
        self.pid = 0
        self.exit_code: int | None = None
        self.write_error = ""

    @property
    def ended(self) -> bool:
        """No process of the program is left."""
        return self._ended.is_set()

    def send(self, data: bytes) -> None:
        """Queue bytes for standard input; dropped once it is closed or nobody reads them."""
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError, trio.WouldBlock):
            self._frames.send_nowait(data)

    def close_stdin(self) -> None:
        """Close standard input behind what is queued."""
        self._frames.close()

    def stop(self) -> None:
        """Begin the whole stop ladder; returns at once."""
        self._stop_asked.set()

    def terminate(self) -> None:
        """Begin the stop ladder with SIGTERM, for a program that has nothing more to say."""
        if not self._stop_asked.is_set():
            self._first_rung = 1
        self.stop()

    def kill(self) -> None:
        """Begin the stop ladder with SIGKILL, for a program that talks nonsense."""
        if not self._stop_asked.is_set():
            self._first_rung = 2
        self.stop()

    async def receive_line(self) -> bytes | None:
        """Return the next line of standard output, None at its end. Raises LineTooLong."""
        while not self._lines:
            data = await self._receive()
            if not data:
                return self._splitter.finish() or None
            self._lines = self._splitter.feed(data)[::-1]
        return self._lines.pop()

    async def wait(self) -> None:
        """Wait until no process is left and standard error was read."""
        await self._ended.wait()
        with trio.move_on_after(_LAST_WAIT):
            await self._stderr_done.wait()

    def stderr_tail(self) -> str:
        """Return the end of standard error, at most 2048 characters, secrets taken out."""
        text = redacted(self._tail.decode("utf-8", "replace").strip())
        return text[-STDERR_TAIL:].strip()

    @asynccontextmanager
    async def running(self, ask_politely: Callable[[], bool]) -> AsyncIterator[None]:
        """Attend to the process while the block runs, bury it after; see `open_process`."""
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as streams:
                streams.start_soon(self._drain_stderr)
                try:
                    await self._wait_started()
                    streams.start_soon(self._write_stdin)
                    streams.start_soon(self._learn_end)
                    streams.start_soon(self._climb, ask_politely)
                    yield
                except Exception as error:  # noqa: BLE001 - the nursery would put it in a group
                    failure = error
                streams.cancel_scope.cancel()
        finally:
            with trio.move_on_after(KILL_GRACE + _LAST_WAIT, shield=True):
                await self._bury()
        if failure is not None:
            raise failure

    async def _receive(self) -> bytes:
        with trio.CancelScope() as self._reading:
            if self.ended:
                self._reading.deadline = trio.current_time() + _LAST_WAIT
            return await _read(self._stdout, _CHUNK)
        return b""  # everybody is dead, so whoever still holds the pipe is no part of the program

    async def _wait_started(self) -> None:
        """Wait for the warden to say that the program runs. Raises AgentError."""
        with trio.move_on_after(_START_LIMIT):
            word = await _read(self._control, 512)
            if word[:1] == b"N":
                raise AgentError(
                    f"{self._label} was not started: this machine did not isolate it ("
                    f"{word[1:].decode(errors='replace').strip()}); see BULLPEN_AGENT_ISOLATION"
                )
            if word[:1] == b"S":
                # A program that ends at once leaves both words in one read.
                started, _, self._report = word.partition(b"\n")
                self.pid = int(started[1:])
                if self._isolated:  # its number means something inside only
                    self.pid = self._process.pid
                return
            if word[:1] == b"X":
                raise _could_not_start(self._label, self._path, int(word[1:]))
        raise AgentError(f"{self._label} could not be started: {self.stderr_tail() or 'no answer'}")

    async def _write_stdin(self) -> None:
        async for data in self._outgoing:
            try:
                await self._stdin.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self.write_error = str(error.__cause__ or error)
                self._outgoing.close()
                break
        await self._stdin.aclose()

    async def _drain_stderr(self) -> None:
        assert self._process.stderr is not None
        splitter = LineSplitter()
        while data := await _read(self._process.stderr, _CHUNK):
            self._tail += data
            del self._tail[:-_STDERR_KEPT]
            try:
                lines = splitter.feed(data)
            except LineTooLong:
                splitter = LineSplitter()
                continue
            for line in lines:
                text = redacted(line[:_LOG_READ].decode("utf-8", "replace"))[:_LOG_CLIP]
                log.info("agent stderr", provider=self._label, pid=self.pid, line=text)
        self._stderr_done.set()

    async def _learn_end(self) -> None:
        """Learn the end from the warden; if it died itself, finish its work by other means."""
        if not self._report:
            self._report = await _read(self._control, 64) or b"?"
        told = self._report[:1] == b"E"
        if told:
            self.exit_code = int(self._report[1:])
        with trio.move_on_after(_LAST_WAIT) as patience:
            await self._process.wait()
        if patience.cancelled_caught:
            self._process.kill()
        if not told and self.pid:
            log.warning("the agent's warden died", provider=self._label, pid=self.pid)
            self.exit_code = -signal.SIGKILL
        if self.pid and self._marker and (not told or sys.platform != "linux"):
            await trio.to_thread.run_sync(kill_marked, self._marker, abandon_on_cancel=True)
        self._reading.deadline = trio.current_time() + _LAST_WAIT
        self._ended.set()

    async def _climb(self, ask_politely: Callable[[], bool]) -> None:
        """The stop ladder: the protocol's own word, SIGTERM to the group, SIGKILL to everybody."""
        await self._stop_asked.wait()
        if self._first_rung == 0 and not self.ended and ask_politely():
            with trio.move_on_after(PROTOCOL_GRACE):
                await self._ended.wait()
        if self._first_rung <= 1 and not self.ended:
            log.info("terminating the agent", provider=self._label, pid=self.pid)
            with trio.move_on_after(TERM_GRACE):
                await self._command(b"T")
                await self._ended.wait()
        if not self.ended:
            log.warning("killing the agent", provider=self._label, pid=self.pid)
            with trio.move_on_after(KILL_GRACE):
                await self._command(b"K")
                await self._ended.wait()
        if not self.ended:
            self._process.kill()  # the warden's death is the program's, see _learn_end

    async def _bury(self) -> None:
        """Kill what is left and release the streams; called when no other task is left."""
        try:
            if not self.ended:
                await self._command(b"K")
                with trio.move_on_after(KILL_GRACE) as patience:
                    await self._learn_end()
                if patience.cancelled_caught:
                    self._process.kill()
        finally:
            if self._process.returncode is None:
                self._process.kill()
            # No await: past the deadline the first one would leave the other streams open.
            self._frames.close()
            self._outgoing.close()
            for stream in (self._stdin, self._stdout, self._process.stderr):
                if isinstance(stream, trio.lowlevel.FdStream):
                    stream.close()
            self._control.socket.close()

    async def _command(self, command: bytes) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._control.send_all(command)


@asynccontextmanager
async def open_process(
    launch: Launch, *, ask_politely: Callable[[], bool] = lambda: False
) -> AsyncIterator[AgentProcess]:
    """Start a program; yields when it runs. Raises AgentError when it cannot be started.

    `ask_politely` is the first rung of the stop ladder: it writes the protocol's own stop and says
    whether there is one. Leaving the block kills everything that is left, within 5 s.
    """
    process = await _start(launch)
    async with process.running(ask_politely):
        yield process


async def _start(launch: Launch) -> AgentProcess:
    path = launch.argv[0]
    await threads.in_thread(partial(_look_first, launch))
    machine = isolation.machine.get()
    if not machine.is_on and machine.setting == "required":
        raise AgentError(f"{launch.label} was not started: {machine.problem}")
    with ExitStack() as ends:  # those of the program's, and everything if it is not started
        ours, theirs = socket.socketpair()
        ends.enter_context(theirs)
        kept = ends.enter_context(ExitStack())
        kept.enter_context(ours)
        ours.setblocking(False)
        stdin, stdin_ours = _pipe(ends, kept)
        stdout_ours, stdout = _pipe(kept, ends)
        command, plan = await _command_for(machine, launch, theirs.fileno(), stdin, stdout)
        if plan and ours.send(plan) < len(plan):
            raise AgentError(f"{launch.label} was not started: its isolation has too many parts")
        is_isolated = machine.is_on
        try:
            raw = await trio.lowlevel.open_process(
                command,
                # Bubblewrap holds what it has as its own streams; the warden takes over the others.
                stdin=subprocess.DEVNULL if is_isolated else stdin,
                stdout=subprocess.DEVNULL if is_isolated else stdout,
                stderr=subprocess.PIPE,
                cwd=launch.cwd,
                env=handed_over(launch.env),
                start_new_session=True,
                pass_fds=(theirs.fileno(), stdin, stdout) if is_isolated else (theirs.fileno(),),
            )
        except OSError as error:
            raise _could_not_start(launch.label, path, error.errno or 0) from error
        kept.pop_all()
    return AgentProcess(
        launch,
        raw,
        trio.SocketStream(trio.socket.from_stdlib_socket(ours)),
        trio.lowlevel.FdStream(stdin_ours),
        trio.lowlevel.FdStream(stdout_ours),
        isolated=is_isolated,
    )


def _look_first(launch: Launch) -> None:
    """Say in words what the system would say in a number. Raises AgentError."""
    if not launch.cwd.is_dir():
        raise AgentError(f'{launch.label} work directory "{launch.cwd}" does not exist')
    if shutil.which(launch.argv[0], path=launch.env.get("PATH", os.defpath)) is None:
        raise _could_not_start(launch.label, launch.argv[0], errno.ENOENT)


def _pipe(of_reader: ExitStack, of_writer: ExitStack) -> tuple[int, int]:
    """Make a pipe whose ends are closed with the stacks."""
    reader, writer = os.pipe()
    of_reader.callback(os.close, reader)
    of_writer.callback(os.close, writer)
    return reader, writer


def handed_over(env: Mapping[str, str], own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of the warden and of bubblewrap, which run outside of what isolates.

    The agent's variables are in it under names that mean nothing to anybody; the warden gives them
    their names back for the agent alone. Plain ones, such as LD_PRELOAD, would let whoever writes an
    agent's environment run code outside. `own` is the daemon's environment.
    """
    outside = {name: value for name, value in own.items() if name.startswith(_LOADER)}
    outside |= {warden.HANDED_OVER + name: value for name, value in env.items()}
    if marker := env.get(TASK_MARKER):
        outside[TASK_MARKER] = marker  # by it the last sweep finds them, too
    return outside


async def _command_for(
    machine: Isolation, launch: Launch, keeper: int, stdin: int, stdout: int
) -> tuple[list[str], bytes]:
    """The warden's command for a launch, and what it is to be sent first. Raises AgentError."""
    if not machine.is_on:
        return [sys.executable, "-I", "-S", warden.__file__, str(keeper), *launch.argv], b""
    make = partial(
        isolation.command,
        machine,
        launch.view,
        argv=launch.argv,
        cwd=launch.cwd,
        env=launch.env,
        keeper=keeper,
        stdin=stdin,
        stdout=stdout,
    )
    try:
        return await threads.in_thread(make)
    except (Unsafe, OSError) as error:
        raise AgentError(f"{launch.label} was not started: {error}") from error


async def _read(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """Read from a stream whose other end may vanish at any time."""
    try:
        return bytes(await stream.receive_some(size))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return b""


def _could_not_start(label: str, path: str, number: int) -> AgentError:
    passing = number in EXHAUSTED | REPLACED
    if number == errno.ENOENT:
        return AgentError(f'{label} executable not found at "{path}"', passing=passing)
    if number == errno.ENOEXEC:
        return AgentError(
            f'{label} executable at "{path}" is not a program this machine can run'
            " (exec format error); its installation is probably incomplete: install it again",
            passing=passing,
        )
    text = f'{label} executable at "{path}" cannot be run: {os.strerror(number)}'
    return AgentError(text, passing=passing)


def kill_marked(task_id: str) -> int:
    """Kill every process whose environment names the task; return how many. Blocks ≤ 1 s.

    The last resort where no warden can answer for the family: after its own violent death, on
    systems without subreapers, and for what a killed daemon may have left there.
    """
    killed = 0
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(TASK_MARKER) == task_id:
                ours = process.ppid() == os.getpid()  # then somebody here waits for it already
                process.kill()  # psutil checks the create time: a reused pid is not touched
                killed += 1
                found += [] if ours else [process]
    psutil.wait_procs(found, timeout=1.0)
    return killed
