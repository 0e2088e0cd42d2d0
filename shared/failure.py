"""Why tasks fail: the reasons of the protocol, the text classifier, and what follows from a reason.

The classifier reads error texts of agent programs; its table is spec 02 §7.2 and the first row that
matches wins. Unlike the reference, a bare status code counts only where it stands alone as a
number, so a port or a line number is not taken for an HTTP status; and a limit that is said to come
back is a quota, whatever the provider calls it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

QUEUED_EXPIRED: Final = "queued_expired"
RUNTIME_OFFLINE: Final = "runtime_offline"
RUNTIME_RECOVERY: Final = "runtime_recovery"
TIMEOUT: Final = "timeout"
ITERATION_LIMIT: Final = "iteration_limit"
AGENT_BLOCKED: Final = "agent_blocked"
API_INVALID_REQUEST: Final = "api_invalid_request"
AGENT_FALLBACK_MESSAGE: Final = "agent_fallback_message"
CODEX_SEMANTIC_INACTIVITY: Final = "codex_semantic_inactivity"
IDLE_WATCHDOG: Final = "idle_watchdog"
LOCAL_DIRECTORY_ERROR: Final = "local_directory_error"
CANCELLED: Final = "cancelled"
AGENT_ERROR: Final = "agent_error"

AUTH: Final = "agent_error.provider_auth_or_access"
QUOTA: Final = "agent_error.provider_quota_limit"
CAPACITY: Final = "agent_error.provider_capacity_or_rate_limit"
SERVER_ERROR: Final = "agent_error.provider_server_error"
NETWORK: Final = "agent_error.provider_network"
PROCESS_FAILURE: Final = "agent_error.process_failure"
EMPTY_OUTPUT: Final = "agent_error.empty_or_unparseable_output"
AGENT_TIMEOUT: Final = "agent_error.agent_timeout"
CONTEXT_OVERFLOW: Final = "agent_error.context_overflow"
MISSING_CONFIG: Final = "agent_error.missing_config"
MODEL_NOT_FOUND: Final = "agent_error.model_not_found_or_unavailable"
VERSION_UNSUPPORTED: Final = "agent_error.runtime_version_unsupported"
MISSING_EXECUTABLE: Final = "agent_error.runtime_missing_executable"
UNKNOWN: Final = "agent_error.unknown"

REASONS: Final = frozenset(
    {
        QUEUED_EXPIRED,
        RUNTIME_OFFLINE,
        RUNTIME_RECOVERY,
        TIMEOUT,
        ITERATION_LIMIT,
        AGENT_BLOCKED,
        API_INVALID_REQUEST,
        AGENT_FALLBACK_MESSAGE,
        CODEX_SEMANTIC_INACTIVITY,
        IDLE_WATCHDOG,
        LOCAL_DIRECTORY_ERROR,
        CANCELLED,
        AGENT_ERROR,
        AUTH,
        QUOTA,
        CAPACITY,
        SERVER_ERROR,
        NETWORK,
        PROCESS_FAILURE,
        EMPTY_OUTPUT,
        AGENT_TIMEOUT,
        CONTEXT_OVERFLOW,
        MISSING_CONFIG,
        MODEL_NOT_FOUND,
        VERSION_UNSUPPORTED,
        MISSING_EXECUTABLE,
        UNKNOWN,
    }
)
"""All that this version knows."""

RETRYABLE: Final = frozenset(
    {RUNTIME_OFFLINE, RUNTIME_RECOVERY, TIMEOUT, CODEX_SEMANTIC_INACTIVITY}
)
"""Infrastructure failed, not the work: the server queues a new attempt (spec 02 §6)."""

RESUME_UNSAFE: Final = frozenset(
    {
        ITERATION_LIMIT,
        AGENT_FALLBACK_MESSAGE,
        API_INVALID_REQUEST,
        CODEX_SEMANTIC_INACTIVITY,
        CONTEXT_OVERFLOW,
    }
)
"""The agent's session is spoilt: it is never resumed (spec 02 §6). A history that is too long for
the model stays too long, which the reference does not see."""

_VAGUE: Final = frozenset({AGENT_ERROR, UNKNOWN, CAPACITY})
"""Reasons that say less than the words of a provider whose quota is used up."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{2,39}(?:\.[a-z][a-z0-9_]{2,39})?")

_POISON_LIMIT: Final = 320
"""Bytes. A longer output that contains a poison phrase is a real answer quoting it."""

_Signal = Callable[[str], bool]


def _any(*signals: str | tuple[str, ...] | re.Pattern[str]) -> _Signal:
    """A string: contained. A tuple: all contained. A pattern: found."""

    def one(signal: str | tuple[str, ...] | re.Pattern[str], text: str) -> bool:
        if isinstance(signal, str):
            return signal in text
        if isinstance(signal, tuple):
            return all(part in text for part in signal)
        return signal.search(text) is not None

    return lambda text: any(one(signal, text) for signal in signals)


def _code(*codes: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.:]){'(?:' + '|'.join(codes) + ')'}(?![\w.])")


_RESETS: Final = re.compile(
    r"\blimits?\b[^\n]{0,160}?\bresets?\b(?:\s?(?:at|on|in|after|:))?\s?"
    r"(?:\d|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
    r"|mon|tue|wed|thu|fri|sat|sun|tomorrow|midnight|noon)"
    r"|\blimit(?:s|ed)?\b[^\n]{0,160}?\b(?:try again|retry|wait|available)\b(?: again)?"
    r"(?: in| after)?(?: about)? \d+ ?(?:m(?:in)?\b|minutes?|h(?:rs?|ours?)?\b|d(?:ays?)?\b)"
)
"""A limit that comes back at some time, or after some minutes at least: what all providers call the
end of a quota. Seconds the programs wait themselves."""

_YOUR_LIMIT: Final = re.compile(
    r"\b(?:hit|reached|exceeded|used up) your (?!rate|context|token|turn|iteration|time)"
    r"[^.\n]{0,40}?(?<!rate )\blimit\b"
    r"|\b(?:\d+-hour|hourly|daily|weekly|monthly|session|spend|spending|opus|sonnet|haiku|plan)"
    r"(?: \w+)? limit (?:was |has been |is )?(?:reached|hit|exceeded|exhausted)"
    r"|\bout of (?:\w+ )?(?:usage|credits|quota)\b"
)

_TABLE: Final[tuple[tuple[str, _Signal], ...]] = (
    (QUOTA, _any(_RESETS)),
    (
        CONTEXT_OVERFLOW,
        _any(
            "context length",
            "context_length_exceeded",
            "maximum context",
            "prompt is too long",
            "context size has been exceeded",
            re.compile(r"token limit|limit of \d+ tokens|tokens? (?:exceed|over)"),
        ),
    ),
    (
        MISSING_CONFIG,
        _any(
            "missing environment variable",
            ("missing", "api_key"),
            ("api key", "required"),
            "no llm provider configured",
            "no provider configured",
        ),
    ),
    (
        AUTH,
        _any(
            _code("401", "403"),
            "unauthorized",
            "login required",
            "not logged in",
            "please login again",
            "refresh token",
            "invalid api key",
            "invalid x-api-key",
            "incorrect api key",
            "access token",
            "subscription access",
            "does not have access",
            "you may not have access",
            "authentication_error",
        ),
    ),
    (
        QUOTA,
        _any(
            _code("402"),
            "insufficient_balance",
            "balance is too low",
            "monthly usage limit",
            "usage limit",
            "you've hit your limit",
            "you\u2019ve hit your limit",
            "credits",
            "credit balance",
            "quota",
            _YOUR_LIMIT,
        ),
    ),
    (
        CAPACITY,
        _any(
            _code("429", "529"),
            re.compile("rate[ _-]limit"),
            "resource_exhausted",
            "overloaded",
            "no capacity available",
        ),
    ),
    (
        SERVER_ERROR,
        _any(
            "server had an error",
            "provider returned error",
            "internal error",
            "internal server error",
            "service unavailable",
            "bad gateway",
            _code(r"5\d\d"),
        ),
    ),
    (
        NETWORK,
        _any(
            "stream disconnected",
            "error sending request",
            "unable to connect",
            "dial tcp",
            "connection refused",
            "connectionrefused",
            "connection reset",
            "econnreset",
            "connection error",
            "connection to the api was lost",
            "api error: terminated",
            "other side closed",
            re.compile(r"\bdns\b"),
            "i/o timeout",
        ),
    ),
    (
        MODEL_NOT_FOUND,
        _any(
            ("model", "not found"),
            "unknown model",
            "selected model",
            "http 404",
            "404 page not found",
        ),
    ),
    (
        EMPTY_OUTPUT,
        _any(
            "returned empty output",
            "returned no parseable output",
            "stream ended without terminal result",
            "ended without a finish reason",
        ),
    ),
    (AGENT_TIMEOUT, _any("timed out after")),
    (MISSING_EXECUTABLE, _any("executable not found")),
    (VERSION_UNSUPPORTED, _any("below the minimum supported version", "requires a newer version")),
    (
        PROCESS_FAILURE,
        _any(
            "exit status",
            "signal",
            "panic",
            "sigsegv",
            "process exited",
            "pipe has been ended",
            "file already closed",
            "initialize failed",
        ),
    ),
)


def classify(text: str) -> str:
    """Name the reason an error text stands for; `agent_error.unknown` when none fits."""
    lowered = text.strip().lower()
    for reason, matches in _TABLE:
        if matches(lowered):
            return reason
    return UNKNOWN


def reason_of(given: str, error: str) -> str:
    """Name the reason of a failure that a daemon reports.

    It is the daemon's if that is the name of one, which a newer daemon may know more of; else, and
    where the error's words say more, it is what they stand for.
    """
    given = given.strip()
    if _NAME.fullmatch(given) is None:
        return classify(error)
    if given in _VAGUE and classify(error) == QUOTA:
        return QUOTA
    return given


def poisoned_output(output: str) -> str | None:
    """Name the reason a seemingly successful output is none, or None (spec 02 §7.3)."""
    trimmed = output.strip()
    if not trimmed or len(trimmed.encode()) > _POISON_LIMIT:
        return None
    lowered = trimmed.lower()
    if "i reached the iteration limit" in lowered:
        return ITERATION_LIMIT
    if "put your final update inside the content string" in lowered:
        return AGENT_FALLBACK_MESSAGE
    return None


def poisoned_error(error: str) -> str | None:
    """Name the reason an error spoils the session it came from, or None (spec 02 §7.3)."""
    lowered = error.lower()
    if "invalid_request_error" in lowered and "400" in lowered:
        return API_INVALID_REQUEST
    return None


def spoils_session(reason: str | None, error: str | None) -> bool:
    """Tell whether a failure leaves a session that must not be resumed."""
    return reason in RESUME_UNSAFE or (bool(error) and poisoned_error(error or "") is not None)
