"""The stream-JSON protocol of claude and its kin, as a pure state machine. ◇

One JSON object a line in both directions (spec 04 §2.1; real-agents §4, `shapes.md`). The last
`result` event decides, never the exit code alone: background work makes the program speak again
after a first result, and until it is done (`open_work.py`) the conversation stays open. Events of
kinds not known here are counted and passed on as signs of life.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import structlog

from daemon.agents.contract import AgentMessage, AgentResult, Quota, Tokens
from daemon.agents.dialogue import Ending, Step
from daemon.agents.loose import TOO_DEEP, blocks, flat, frame, mapping, number, parse, string
from daemon.agents.open_work import OpenWork
from shared import failure
from shared.redact import redact

log = structlog.get_logger(__name__)

_EXIT_LINGER: Final = 10.0
"""Silence after the last result, with nothing in the background, before the program is ended. While
background work or a tool is open the watchdogs alone decide."""
_REJECTIONS: Final = (
    "no conversation found",
    "no saved session found",
    "--resume requires a valid session id",
    "bound to another account",
    "bound to a different account",
)
_QUOTA_REASONS: Final = (failure.QUOTA, failure.CAPACITY, failure.UNKNOWN)
_UNFINISHED: Final = "ended while work was still going on in the background"
_CUT_SHORT: Final = "(the agent ended before this tool did)"
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_INTERRUPT_ID: Final = "bullpen-interrupt"


class StreamJson:
    """One run's conversation; implements `dialogue.Dialogue`."""

    def __init__(
        self, *, label: str, prompt: str, model: str = "", resume_session_id: str = ""
    ) -> None:
        self._label = label
        self._prompt = prompt
        self._model = model
        self._resume = resume_session_id
        self._session_id = ""
        self._tools: dict[str, str] = {}  # open calls: id -> tool
        self._work = OpenWork()
        self._turn_over = False  # the last word so far was a result
        self._interrupted = False
        self._result: dict[str, Any] | None = None  # the last result event that counts
        self._silent = True  # nothing was said since the last result
        self._afterthought = False  # an error came behind the answer, for no work
        self._used_tool = False
        self._limit: Mapping[str, Any] = {}  # the provider's last word on the quota
        self._calls: dict[str, tuple[str, Tokens]] = {}  # API message id -> (model, usage)
        self._counted: Mapping[str, Tokens] = {}  # what the last result that counted has counted
        self._answer = _Answer()
        self._unknown = 0

    def opening(self) -> Sequence[bytes]:
        content = [{"type": "text", "text": self._prompt}]
        return (frame({"type": "user", "message": {"role": "user", "content": content}}),)

    def interrupt(self) -> Sequence[bytes]:
        if self._turn_over:
            return ()  # there is nothing to interrupt
        self._interrupted = True
        request = {"subtype": "interrupt"}
        return (
            frame({"type": "control_request", "request_id": _INTERRUPT_ID, "request": request}),
        )

    def line(self, line: bytes) -> Step:
        event = parse(line)
        if event is None:
            if line.strip():
                self._unknown += 1
            return self._step()
        match event.get("type"):
            case "system":
                return self._system(event)
            case "assistant":
                return self._assistant(event)
            case "user":
                return self._step(self._tool_results(event))
            case "result":
                return self._take_result(event)
            case "control_request":
                return self._step(frames=(_control_reply(event),))
            case "log":
                entry = mapping(event.get("log"))
                level, content = string(entry.get("level")), string(entry.get("message"))
                return self._step([AgentMessage(kind="log", level=level, content=content)])
            case "rate_limit_event":
                self._limit = mapping(event.get("rate_limit_info"))
                return self._step([_alive("rate_limit_event")])
            case kind if kind == TOO_DEEP:
                self._unknown += 1
                note = f"[a line of {len(line)} bytes was left out: {TOO_DEEP}]"
                return self._step([AgentMessage(kind="error", content=note)])
            case "control_response" | "stream_event" as kind:
                return self._step([_alive(kind)])
            case kind:
                self._unknown += 1
                return self._step([_alive(string(kind))])

    def close(self, ending: Ending) -> tuple[Sequence[AgentMessage], AgentResult]:
        if self._unknown:
            log.debug("events not understood", provider=self._label, count=self._unknown)
        owed = [
            AgentMessage(kind="tool_result", call_id=call, tool=tool, output=_CUT_SHORT)
            for call, tool in self._tools.items()
        ]
        self._tools.clear()
        result = self._resolve(ending)
        if result.unfinished:
            names = "; ".join(self._work.names)
            owed.append(AgentMessage(kind="error", content=f"{_UNFINISHED}: {names}"))
        return owed, result

    def _step(self, messages: Sequence[AgentMessage] = (), *, frames: Sequence[bytes] = ()) -> Step:
        # Background work is killed with the end of input, and what comes of it begins a new turn.
        over = self._turn_over and not self._work.names
        linger = _EXIT_LINGER if over and not self._tools else None
        close = over and not self._work.unsettled
        return Step(messages=messages, frames=frames, close_stdin=close, linger=linger)

    def _system(self, event: Mapping[str, Any]) -> Step:
        subtype = string(event.get("subtype"))
        match subtype:
            case "init":
                self._turn_over = False
                self._work.turn_began()
                self._model = self._model or string(event.get("model"))
                session = string(event.get("session_id"))
                if session and session != self._session_id:
                    self._session_id = session
                    return self._step([AgentMessage(kind="status", session_id=session)])
            case "api_retry":
                return self._step([AgentMessage(kind="error", content=_retry_text(event))])
            case "task_started":
                self._work.started(event)
            case "task_updated":
                self._work.updated(event)
            case "task_notification":
                self._work.told(event)
        return self._step([_alive(subtype)])

    def _assistant(self, event: Mapping[str, Any]) -> Step:
        message = mapping(event.get("message"))
        inner = bool(event.get("parent_tool_use_id"))
        identity = string(message.get("id"))
        messages: list[AgentMessage] = []
        for block in blocks(message.get("content")):
            match block.get("type"):
                case "text" if inner:
                    # What a sub-agent says is work on the way, not the agent's answer.
                    messages += _said("thinking", block.get("text"))
                case "text":
                    messages += _said("text", block.get("text"))
                    self._answer.add_text(identity, string(block.get("text")))
                case "thinking":
                    messages += _said("thinking", block.get("thinking"))
                case "tool_use":
                    messages += self._tool_use(block)
                    if not inner:
                        self._answer.spoil(identity)
                case _:
                    messages.append(_alive(string(block.get("type"))))
                    if not inner:
                        self._answer.spoil(identity)
        self._count(identity, message)
        if not inner:
            self._turn_over = self._silent = False
        return self._step(messages)

    def _tool_use(self, block: Mapping[str, Any]) -> list[AgentMessage]:
        call, tool = string(block.get("id")), string(block.get("name"))
        if not call or call in self._tools:
            return []
        self._tools[call] = tool
        self._used_tool = True
        arguments = dict(mapping(block.get("input")))
        return [AgentMessage(kind="tool_use", tool=tool, call_id=call, input=arguments)]

    def _tool_results(self, event: Mapping[str, Any]) -> list[AgentMessage]:
        messages = []
        for block in blocks(mapping(event.get("message")).get("content")):
            call = string(block.get("tool_use_id"))
            if call:
                self._work.answered(call, mapping(event.get("tool_use_result")))
            if block.get("type") == "tool_result" and call in self._tools:
                tool = self._tools.pop(call)
                output = flat(block.get("content"))
                messages.append(
                    AgentMessage(kind="tool_result", tool=tool, call_id=call, output=output)
                )
        return messages or [_alive("user")]

    def _take_result(self, event: dict[str, Any]) -> Step:
        self._turn_over = True
        if self._result is not None and not _is_error(self._result) and self._is_empty(event):
            self._afterthought = True
            said = f"after the answer: {self._error_text(event)}"
            return self._step([AgentMessage(kind="error", content=said)])
        self._keep_usage(event)
        self._result = event
        self._silent = True
        messages: list[AgentMessage] = []
        session = string(event.get("session_id"))
        if session and session != self._session_id and not self._rejected(event, ""):
            self._session_id = session
            messages.append(AgentMessage(kind="status", session_id=session))
        if _is_error(event) and not self._interrupted:
            messages.append(AgentMessage(kind="error", content=self._error_text(event)))
        return self._step(messages)

    def _is_empty(self, event: Mapping[str, Any]) -> bool:
        """Whether a result is the failure of nothing: no turn, no tokens, not a word before it.

        The program prints one when something reaches it that it does not expect; the answer stands.
        """
        spent = _model_usage(event) or _tokens(mapping(event.get("usage")))
        return self._silent and _is_error(event) and not event.get("num_turns") and not spent

    def _keep_usage(self, event: Mapping[str, Any]) -> None:
        """Remember the conversation's usage so far; a result that counts nothing takes none away."""
        if usage := _model_usage(event):
            self._counted = usage
        elif tokens := _tokens(mapping(event.get("usage"))):
            self._counted = {self._model or self._label: tokens}

    def _count(self, identity: str, message: Mapping[str, Any]) -> None:
        """Remember one API call's usage; its blocks come as events that repeat it."""
        model = string(message.get("model"))
        tokens = _tokens(mapping(message.get("usage")))
        if identity and model != "<synthetic>" and tokens:
            self._calls[identity] = (model, tokens)

    def _usage(self) -> Mapping[str, Tokens]:
        if self._counted:
            return self._counted
        # No result: a lower bound, since output is counted at the start of each message.
        usage: dict[str, Tokens] = {}
        for model, tokens in self._calls.values():
            sofar = usage.get(model, Tokens())
            usage[model] = Tokens(
                input=sofar.input + tokens.input,
                output=sofar.output + tokens.output,
                cache_read=sofar.cache_read + tokens.cache_read,
                cache_write=sofar.cache_write + tokens.cache_write,
            )
        return usage

    def _resolve(self, ending: Ending) -> AgentResult:
        """Judge by the precedence of spec 04 §1.3; the first that applies wins."""
        final = self._result
        failed = final is not None and _is_error(final)
        rejected = (failed or final is None) and self._rejected(final or {}, ending.stderr_tail)
        spoilt = final is not None and failed and self._is_spoilt(final)
        session = "" if rejected or spoilt else self._session_id
        usage = self._usage()

        def end(status: Any, error: str = "", output: str = "") -> AgentResult:
            return AgentResult(
                status=status,
                error=error,
                output=output,
                session_id=session,
                usage=usage,
                resume_rejected=rejected and status == "failed",
                quota=self._quota(error) if status == "failed" else None,
                unfinished=status == "completed" and bool(self._work.names),
                exit_code=ending.exit_code,
            )

        def fail(error: str) -> AgentResult:
            return end("failed", self._with_stderr(error, ending.stderr_tail))

        if ending.stopped and (final is None or failed):
            return end("aborted", ending.stopped)
        if final is not None and failed:
            return fail(self._error_text(final))
        if ending.read_error:
            return fail(f"{self._label} stdout read error: {ending.read_error}")
        if final is None and ending.write_error and not self._session_id:
            return fail(f"write {self._label} input: {ending.write_error}")
        excused = ending.ended_by_us or ending.stopped or self._afterthought
        if ending.exit_code and not (final is not None and excused):
            return fail(f"{self._label} exited with error: {_exit_text(ending.exit_code)}")
        if final is None:
            return fail(f"{self._label} stream ended without terminal result")
        return end("completed", output=string(final.get("result")) or self._answer.text)

    def _rejected(self, event: Mapping[str, Any], stderr: str) -> bool:
        if not self._resume:
            return False
        said = " ".join((*_errors(event), string(event.get("result")), stderr)).lower()
        other = string(event.get("session_id")) not in {"", self._resume}
        # A program that failed before its first turn under another id did not find ours.
        unborn = other and _is_error(event) and not event.get("num_turns")
        return unborn or any(phrase in said for phrase in _REJECTIONS)

    def _is_spoilt(self, event: Mapping[str, Any]) -> bool:
        """Whether the session's history is what the model refuses: no run can go on with it."""
        text = self._error_text(event)
        if failure.classify(text) == failure.CONTEXT_OVERFLOW:
            return True
        return bool(self._resume) and not self._used_tool and bool(failure.poisoned_error(text))

    def _quota(self, error: str) -> Quota | None:
        """What the provider says of a quota that has run out, if that is what the run failed of."""
        if self._limit.get("status") != "rejected":
            return None
        final = self._result or {}
        reason = failure.classify(error)
        if final.get("api_error_status") != 429 and reason not in _QUOTA_REASONS:
            return None
        times = (number(self._limit.get(name)) for name in ("resetsAt", "overageResetsAt"))
        return Quota(resets_at=min(filter(None, times), default=0))

    def _error_text(self, event: Mapping[str, Any]) -> str:
        subtype = string(event.get("subtype"))
        said = "; ".join(_errors(event)) or string(event.get("result"))
        if event.get("terminal_reason") == "prompt_too_long" and "too long" not in said.lower():
            said = f"prompt is too long: {said}" if said else "prompt is too long"
        status = event.get("api_error_status")
        if isinstance(status, int) and str(status) not in said:
            said = f"API error {status}: {said}"
        return said or f"{self._label} ended with {subtype or 'an error'}"

    def _with_stderr(self, error: str, tail: str) -> str:
        tail = redact(_CONTROL.sub("", tail)).strip()
        if not tail or tail in error:
            return error
        return f"{error}; {self._label} stderr: {tail}"


class _Answer:
    """The text of the last turn that used no tools: the output if the result has none."""

    def __init__(self) -> None:
        self._message = ""
        self._spoilt = False
        self.text = ""

    def _turn(self, message: str) -> None:
        if message != self._message:
            self._message, self._spoilt, self.text = message, False, ""

    def add_text(self, message: str, text: str) -> None:
        self._turn(message)
        if not self._spoilt:
            self.text += text

    def spoil(self, message: str) -> None:
        self._turn(message)
        self._spoilt, self.text = True, ""


def _control_reply(event: Mapping[str, Any]) -> bytes:
    """Allow any tool, in the foreground: nobody would come back for its result."""
    request = mapping(event.get("request"))
    response: dict[str, Any] = {"request_id": event.get("request_id")}
    if request.get("subtype") == "can_use_tool":
        arguments = dict(mapping(request.get("input")))
        if arguments.get("run_in_background") is True:
            arguments["run_in_background"] = False
        verdict = {"behavior": "allow", "updatedInput": arguments}
        response |= {"subtype": "success", "response": verdict}
    else:
        response |= {"subtype": "error", "error": "not supported here"}
    return frame({"type": "control_response", "response": response})


def _is_error(event: Mapping[str, Any]) -> bool:
    """`is_error` counts: API failures come with the subtype "success"."""
    flag = event.get("is_error")
    return flag if isinstance(flag, bool) else event.get("subtype") != "success"


def _errors(event: Mapping[str, Any]) -> list[str]:
    errors = event.get("errors")
    return [text for text in map(string, errors) if text] if isinstance(errors, list) else []


def _retry_text(event: Mapping[str, Any]) -> str:
    status = event.get("error_status")
    cause = string(event.get("error")) or "error"
    told = f"{cause} (HTTP {status})" if status else cause
    attempt, limit = number(event.get("attempt")), number(event.get("max_retries"))
    wait = number(event.get("retry_delay_ms")) / 1000
    return f"API {told}: retry {attempt} of {limit} in {wait:.1f} s"


def _exit_text(code: int) -> str:
    return f"exit status {code}" if code > 0 else f"signal {-code}"


def _said(kind: Literal["text", "thinking"], content: Any) -> list[AgentMessage]:
    said = string(content)
    return [AgentMessage(kind=kind, content=said)] if said else []


def _alive(what: str) -> AgentMessage:
    """Build a sign of life: not for people, but it keeps the idle watchdog quiet."""
    return AgentMessage(kind="log", level="debug", content=what)


def _model_usage(event: Mapping[str, Any]) -> dict[str, Tokens]:
    """Return what a result counts, by model; models without a token are left out."""
    usage = {
        model: Tokens(
            input=number(counts.get("inputTokens")),
            output=number(counts.get("outputTokens")),
            cache_read=number(counts.get("cacheReadInputTokens")),
            cache_write=number(counts.get("cacheCreationInputTokens")),
        )
        for model, counts in mapping(event.get("modelUsage")).items()
        if isinstance(counts, Mapping)
    }
    return {model: tokens for model, tokens in usage.items() if tokens}


def _tokens(usage: Mapping[str, Any]) -> Tokens:
    return Tokens(
        input=number(usage.get("input_tokens")),
        output=number(usage.get("output_tokens")),
        cache_read=number(usage.get("cache_read_input_tokens")),
        cache_write=number(usage.get("cache_creation_input_tokens")),
    )
