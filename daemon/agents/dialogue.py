"""What a provider's driver must answer while its program runs. ◇

A driver is a pure state machine: bytes that the program wrote go in, messages for people and bytes
to write back come out. `session.py` alone owns the process, so every driver can be tested by
replaying captured output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from daemon.agents.contract import AgentMessage, AgentResult


@attrs.frozen(kw_only=True)
class Step:
    """What follows from one line of output.

    `linger` is how long the program may stay silent from now on (seconds; None for as long as it
    likes) before its input is closed or, if that is done already, it is ended: set once nothing
    more is owed by it.
    """

    messages: Sequence[AgentMessage] = ()
    frames: Sequence[bytes] = ()
    close_stdin: bool = False
    linger: float | None = None


@attrs.frozen(kw_only=True)
class Ending:
    """How the process ended, for the driver to judge.

    `stopped` is the reason somebody asked it to stop, if so. `ended_by_us` says that the program
    was done but did not go by itself, so that its exit code means nothing.
    """

    exit_code: int | None = None
    stopped: str = ""
    ended_by_us: bool = False
    read_error: str = ""
    write_error: str = ""
    stderr_tail: str = ""


class Dialogue(Protocol):
    """One run's conversation with a program; only the session calls it."""

    def opening(self) -> Sequence[bytes]:
        """What to write first."""
        ...

    def line(self, line: bytes) -> Step:
        """Take one line of standard output, without its line feed."""
        ...

    def interrupt(self) -> Sequence[bytes]:
        """What to write to make the program end its turn; empty when the protocol has no word."""
        ...

    def close(self, ending: Ending) -> tuple[Sequence[AgentMessage], AgentResult]:
        """Judge the run: the last messages (results owed to open tools) and the result."""
        ...
