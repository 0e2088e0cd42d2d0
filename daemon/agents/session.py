"""One agent at work: a program, its driver, and the channel its messages go out by.

Opened by `launch.open_agent`. One task reads the program's lines, asks the driver what they mean,
writes its answers back and delivers its messages in order, waiting for the consumer. That task is
shielded from the caller's cancellation, because a cancelled agent must still be stopped in order
and tell its session and usage; leaving the block sets the deadline of that shield.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from daemon.agents.contract import AgentError, AgentMessage, AgentResult
from daemon.agents.dialogue import Dialogue, Ending
from daemon.agents.process import (
    KILL_GRACE,
    PROTOCOL_GRACE,
    TERM_GRACE,
    AgentProcess,
    Launch,
    LineTooLong,
    open_process,
)

_BUFFER: Final = 256
"""Messages a slow consumer may be behind before the agent waits for it (spec 04 §1.2)."""
_LEAVE_LIMIT: Final = PROTOCOL_GRACE + TERM_GRACE + KILL_GRACE
"""The whole stop ladder; burying what resists it takes 3 s more, in all less than 12 s."""
_EXIT_GRACE: Final = 10.0
"""For a program that closed its output to go by itself."""


class Session:
    """A running agent; implements `contract.Agent`."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self._outbox, self._inbox = trio.open_memory_channel[AgentMessage](_BUFFER)
        self._guard = trio.CancelScope(shield=True)  # leave() sets its deadline
        self._process: AgentProcess | None = None  # set once by run
        self._started = trio.Event()  # set by run
        self._start_error: AgentError | None = None  # only run
        self._stopped = ""  # the first reason given to stop()
        self._ended_by_us = False  # only _converse
        self._read_error = ""  # only _converse
        self._result: AgentResult | None = None  # only run

    @property
    def messages(self) -> trio.MemoryReceiveChannel[AgentMessage]:
        return self._inbox

    @property
    def result(self) -> AgentResult | None:
        return self._result

    def stop(self, reason: str) -> None:
        """See `contract.Agent.stop`."""
        if self._result is None and not self._stopped:
            self._stopped = reason or "execution cancelled"
            if self._process is not None:
                self._process.stop()

    def leave(self) -> None:
        """Stop, and allow the running task no more than the stop ladder's time."""
        self._inbox.close()
        self.stop("execution cancelled")
        self._guard.deadline = trio.current_time() + _LEAVE_LIMIT

    async def started(self) -> None:
        """Wait until the program runs. Raises AgentError if it cannot be started."""
        await self._started.wait()
        if self._start_error is not None:
            raise self._start_error

    async def run(self, launch: Launch) -> None:
        """Run the program to its end, or tell `started` why it cannot be started."""
        try:
            with self._guard:
                async with open_process(launch, ask_politely=self._ask_politely) as process:
                    self._process = process
                    self._started.set()
                    if self._stopped:  # left before there was anything to stop
                        process.terminate()
                    try:
                        for frame in self._dialogue.opening():
                            process.send(frame)
                        await self._converse(process)
                        for message in self._judge(process):
                            await self._deliver(message)
                    finally:
                        if self._result is None:
                            self._judge(process)
        except AgentError as error:
            self._start_error = error
        finally:
            self._started.set()
            self._outbox.close()

    async def _converse(self, process: AgentProcess) -> None:
        linger = math.inf
        closed = False
        while True:
            with trio.move_on_after(linger) as patience:
                try:
                    line = await process.receive_line()
                except LineTooLong as error:
                    self._read_error = str(error)
                    process.kill()
                    break
            if patience.cancelled_caught and not closed:
                closed = True  # a word to go, before force
                process.close_stdin()
                linger = _EXIT_GRACE
                continue
            if patience.cancelled_caught:
                self._ended_by_us = True
                process.terminate()
                linger = math.inf
                continue
            if line is None:
                break
            step = self._dialogue.line(line)
            for frame in step.frames:
                process.send(frame)
            if step.close_stdin:
                closed = True
                process.close_stdin()
            linger = math.inf if step.linger is None or self._ended_by_us else step.linger
            for message in step.messages:
                await self._deliver(message)
        process.close_stdin()
        with trio.move_on_after(_EXIT_GRACE):
            await process.wait()
            return
        self._ended_by_us = True
        process.terminate()
        await process.wait()

    def _judge(self, process: AgentProcess) -> tuple[AgentMessage, ...]:
        messages, self._result = self._dialogue.close(
            Ending(
                exit_code=process.exit_code,
                stopped=self._stopped,
                ended_by_us=self._ended_by_us,
                read_error=self._read_error,
                write_error=process.write_error,
                stderr_tail=process.stderr_tail(),
            )
        )
        return tuple(messages)

    async def _deliver(self, message: AgentMessage) -> None:
        with suppress(trio.BrokenResourceError):  # the consumer left; the result still matters
            await self._outbox.send(message)

    def _ask_politely(self) -> bool:
        frames = self._dialogue.interrupt()
        if self._process is not None:
            for frame in frames:
                self._process.send(frame)
        return bool(frames)


@asynccontextmanager
async def open_session(launch: Launch, dialogue: Dialogue) -> AsyncIterator[Session]:
    """Run an agent; see `contract.Agent` for what may be done with it inside the block.

    Raises AgentError when the program cannot be started. Leaving the block in any way ends the
    program and every process it started, within 12 s.
    """
    session = Session(dialogue)
    failure: Exception | None = None
    async with trio.open_nursery() as background:
        try:
            # Not `start`: cancelled, it would wait for a task that is shielded until `leave`.
            background.start_soon(session.run, launch)
            await session.started()
            yield session
        except Exception as error:  # noqa: BLE001 - the nursery would put it in a group
            failure = error
        finally:
            session.leave()
    if failure is not None:
        raise failure
