"""What we decide about a run, from what the agent said and why it was ended. ◇

The table of spec 03 §16 as one function. Every outcome that is not a completion is a failure with
a reason; nothing is reported as a success that is not one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, Literal

import attrs

from daemon.agents.contract import AgentResult, Tokens
from shared import failure, quota, times
from shared.wire.task import CompleteRequest, FailRequest, ModelUsage

End = Literal["agent", "idle", "cap", "shutdown"]
"""What ended the run: the agent itself, its silence, the wall clock, or this daemon's stop."""

CODEX_INACTIVITY: Final = (
    "codex semantic inactivity timeout",
    "codex app-server no progress timeout",
)

INTERRUPTED_ERROR: Final = "the daemon died while the agent was working"

SHUTDOWN_ERROR: Final = "the daemon stopped while the agent was working"

RESULT_LIMIT: Final = 1024 * 1024
"""Bytes of a result that are reported: far above what anybody reads, below every server's limit."""

_NOTE_ROOM: Final = 1024
"""Bytes of it that are left for the note on what was cut."""

_LAST_SECOND: Final = 2**32
"""Far beyond any quota, and within what a date can hold."""

_NOTHING: Final = AgentResult(status="failed", error="the agent's process left no result")


@attrs.frozen(kw_only=True)
class Outcome:
    """What is reported of a task: `reason` is empty for a completion. `text` is output or error.

    `resets_at` is when the provider's quota is back that the task failed of, if that is known.
    """

    completed: bool
    text: str = ""
    reason: str = ""
    session_id: str = ""
    work_dir: str = ""
    resets_at: str = ""

    def complete_request(self) -> CompleteRequest:
        return CompleteRequest(output=self.text, session_id=self.session_id, work_dir=self.work_dir)

    def fail_request(self) -> FailRequest:
        return FailRequest(
            error=self.text,
            session_id=self.session_id,
            work_dir=self.work_dir,
            failure_reason=self.reason,
            resets_at=self.resets_at,
        )


def is_long(text: str) -> bool:
    """Whether a result is too long to be reported whole."""
    return len(text) > RESULT_LIMIT // 4 and len(text.encode("utf-8", "replace")) > RESULT_LIMIT


def shortened(text: str, kept_in: str = "", *, limit: int = RESULT_LIMIT) -> str:
    """Return the beginning of a result, and a note that says so and where the whole is."""
    size = len(text.encode("utf-8", "replace"))
    where = f"; the whole is in {kept_in} on the machine that ran it" if kept_in else ""
    head = clip(text, max(limit - _NOTE_ROOM, 0)).rstrip()
    return f"{head}\n\n[Cut here: this is the beginning of {size} bytes{where}.]"


def clip(text: str, limit: int) -> str:
    """Return the longest beginning of `text` that is at most `limit` bytes of UTF-8."""
    if len(text) * 4 <= limit:
        return text
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit else data[:limit].decode("utf-8", "ignore")


def decide(
    result: AgentResult | None,
    end: End,
    *,
    provider: str,
    work_dir: str = "",
    silence: str = "",
    cap: float = 0.0,
    now: datetime | None = None,
) -> Outcome:
    """Map an agent's result to an outcome (spec 03 §16).

    `end` says which scope ended the run. A result that completed before the stop reached the agent
    counts: the work is done, unless our own stop has cut off what goes on in the background, which
    another attempt may wait for. `silence` is the watchdog's explanation, `cap` the wall clock in
    seconds, `now` the time by which a quota's words are read.
    """
    told = _NOTHING if result is None else result

    def failed(text: str, reason: str) -> Outcome:
        return Outcome(
            completed=False,
            text=text,
            reason=reason,
            session_id=told.session_id,
            work_dir=work_dir,
            resets_at=_resets_at(told, text, now) if reason == failure.QUOTA else "",
        )

    if told.status == "completed" and not (told.unfinished and end == "shutdown"):
        poisoned = failure.poisoned_output(told.output)
        if poisoned is not None:
            return failed(told.output, poisoned)
        return Outcome(
            completed=True, text=told.output, session_id=told.session_id, work_dir=work_dir
        )
    if end == "shutdown":
        return failed(SHUTDOWN_ERROR, failure.RUNTIME_RECOVERY)
    if end == "idle":
        return failed(silence or told.error, failure.IDLE_WATCHDOG)
    if end == "cap" or told.status == "timeout":
        text = told.error if end == "agent" and told.error else _timed_out(provider, cap)
        codex = provider == "codex" and any(mark in text.lower() for mark in CODEX_INACTIVITY)
        return failed(text, failure.CODEX_SEMANTIC_INACTIVITY if codex else failure.TIMEOUT)
    text = told.error.strip() or f"{provider} execution {told.status}"
    if told.quota is not None:
        return failed(text, failure.QUOTA)
    return failed(text, failure.poisoned_error(text) or failure.classify(text))


def _resets_at(told: AgentResult, text: str, now: datetime | None) -> str:
    """When the quota is back: by the provider's own field, else by what is said of it."""
    now = now or times.now()
    found = None
    if told.quota is not None and told.quota.resets_at:
        back = min(told.quota.resets_at, _LAST_SECOND)
        found = quota.plausible(datetime.fromtimestamp(back, UTC), now)
    found = found or quota.reset_time(text, now)
    return "" if found is None else times.fine_stamp(found)


def broken(error: str, *, reason: str = "", work_dir: str = "") -> Outcome:
    """The outcome of a task that failed before or beside its agent (spec 03 §13.8)."""
    return Outcome(
        completed=False, text=error, reason=reason or failure.classify(error), work_dir=work_dir
    )


def interrupted(session_id: str = "", work_dir: str = "") -> Outcome:
    """The outcome of a run whose daemon died: another one may resume its session."""
    return Outcome(
        completed=False,
        text=INTERRUPTED_ERROR,
        reason=failure.RUNTIME_RECOVERY,
        session_id=session_id,
        work_dir=work_dir,
    )


def may_run_afresh(result: AgentResult | None, *, resumed: bool) -> bool:
    """Whether a failed resumed run deserves one more without resuming (spec 03 §14.20)."""
    if not resumed or result is None or result.status != "failed":
        return False
    return result.resume_rejected or not result.session_id


def merge_usage(runs: Iterable[AgentResult | None]) -> dict[str, Tokens]:
    """Add up the tokens of all runs of one task, per model."""
    total: dict[str, Tokens] = {}
    for run in runs:
        for model, tokens in (run.usage if run is not None else {}).items():
            before = total.get(model, Tokens())
            total[model] = Tokens(
                input=before.input + tokens.input,
                output=before.output + tokens.output,
                cache_read=before.cache_read + tokens.cache_read,
                cache_write=before.cache_write + tokens.cache_write,
            )
    return total


def usage_entries(provider: str, usage: Mapping[str, Tokens]) -> list[ModelUsage]:
    """One entry a model, those without any token left out."""
    return [
        ModelUsage(
            provider=provider,
            model=model,
            input_tokens=tokens.input,
            output_tokens=tokens.output,
            cache_read_tokens=tokens.cache_read,
            cache_write_tokens=tokens.cache_write,
        )
        for model, tokens in usage.items()
        if tokens
    ]


def _timed_out(provider: str, cap: float) -> str:
    return f"{provider} timed out after {cap:g} seconds" if cap > 0 else f"{provider} timed out"
