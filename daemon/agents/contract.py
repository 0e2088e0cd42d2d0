"""What every agent driver takes and gives. ◇

The task pipeline knows agents only through these values: it fills an `AgentRun`, consumes
`AgentMessage`s in order and reads one `AgentResult`. Nothing here touches a process, so the
parsers that produce these values and the code that judges them can both be tested on plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import attrs
import trio

MessageKind = Literal["text", "thinking", "tool_use", "tool_result", "status", "error", "log"]
ResultStatus = Literal["completed", "failed", "aborted", "timeout"]


class AgentError(Exception):
    """The agent could not be started; the text is meant for the task's error field.

    `passing`: the reason may be gone in a moment, as while its program is being replaced.
    """

    def __init__(self, text: str, *, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing


@attrs.frozen(kw_only=True)
class Program:
    """An agent program found on this machine (spec 03 §3.5).

    `args` go directly after the executable, before the protocol's own arguments.
    """

    provider: str
    path: str
    version: str = ""
    args: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class AgentMessage:
    """One thing the agent said or did, in order (spec 04 §1.2).

    Every `tool_use` is followed by exactly one `tool_result` with the same `call_id`, even when
    the process ends in between. A `status` message carries the session id as soon as it is known.
    """

    kind: MessageKind
    content: str = ""
    tool: str = ""
    call_id: str = ""
    input: Mapping[str, Any] = attrs.field(factory=dict)
    output: str = ""
    session_id: str = ""
    level: str = ""


@attrs.frozen(kw_only=True)
class Tokens:
    """Token counts of one model; the four buckets exclude each other (spec 04 §1.3)."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0

    def __bool__(self) -> bool:
        return bool(self.input or self.output or self.cache_read or self.cache_write)


@attrs.frozen(kw_only=True)
class Quota:
    """A provider's quota that has run out; `resets_at` is in seconds since 1970, 0 for unknown."""

    resets_at: int = 0


@attrs.frozen(kw_only=True)
class AgentResult:
    """How the run ended, as the agent and its process told it (spec 04 §1.3).

    `output` is empty unless `status` is "completed". An empty `session_id` means "do not pin";
    `resume_rejected` is positive evidence that the requested session was refused. `usage` is keyed
    by model. `quota` says that the run failed because one is used up, in the provider's own fields.
    `unfinished`: it has answered, and was ended while it had work open in the background.
    `exit_code` is negative for a signal, None when nothing was started.
    """

    status: ResultStatus
    output: str = ""
    error: str = ""
    session_id: str = ""
    usage: Mapping[str, Tokens] = attrs.field(factory=dict)
    resume_rejected: bool = False
    quota: Quota | None = None
    unfinished: bool = False
    exit_code: int | None = None


@attrs.frozen(kw_only=True)
class AgentRun:
    """All an agent needs for one run (spec 04 §1.1).

    `cwd` is absolute. `env` is the complete environment of the process; nothing is inherited
    besides. `mcp_config` None inherits the program's own configuration, any object, even an empty
    one, replaces it. `max_turns` 0 means no limit.
    """

    program: Program
    cwd: Path
    env: Mapping[str, str] = attrs.field(repr=False)
    prompt: str = attrs.field(repr=False)
    model: str = ""
    thinking_level: str = ""
    resume_session_id: str = ""
    system_prompt: str = attrs.field(default="", repr=False)
    max_turns: int = 0
    extra_args: tuple[str, ...] = ()
    custom_args: tuple[str, ...] = ()
    mcp_config: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    thread_name: str = ""


class Agent(Protocol):
    """A running agent, valid inside its `open_agent` block; `result` also after it.

    `messages` ends when the process is gone and everything was delivered; `result` is set before.
    The consumer should receive until the end: a full channel makes the agent wait, nothing is
    dropped.
    """

    @property
    def messages(self) -> trio.MemoryReceiveChannel[AgentMessage]: ...

    @property
    def result(self) -> AgentResult | None: ...

    def stop(self, reason: str) -> None:
        """Begin the stop ladder: protocol stop, SIGTERM to the group, SIGKILL to all (≤ 12 s).

        Synchronous and idempotent. `reason` becomes the error of the `aborted` result, unless the
        agent had already ended by itself. Messages go on until the process is gone.
        """
        ...
