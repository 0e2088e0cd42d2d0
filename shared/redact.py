"""Take secrets out of text that people will read: transcripts, comments, logs.

One pass over the text with one alternation (the reference makes twelve). It covers the common
credential shapes (spec 02 §8.1), Bullpen's own tokens, and, through `Redactor`, secrets known by
value such as an agent's custom environment. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

_RULES: Final[tuple[tuple[str, str, str], ...]] = (
    # group name, pattern, replacement
    (
        "private_key",
        r"-----BEGIN[A-Z\s]*PRIVATE KEY-----[\s\S]*?-----END[A-Z\s]*PRIVATE KEY-----",
        "[REDACTED PRIVATE KEY]",
    ),
    ("own_token", r"\b(?:mul|mdt|mat|mcn|awt)_[A-Za-z0-9_-]{20,}", "[REDACTED TOKEN]"),
    ("aws_key", r"\bAKIA[0-9A-Z]{16}\b", "[REDACTED AWS KEY]"),
    (
        "aws_secret",
        r"(?i:aws_secret_access_key|secret_?access_?key)\s*[=:]\s*[\"']?[A-Za-z0-9/+=]{40}",
        "[REDACTED AWS SECRET]",
    ),
    (
        "github",
        r"\b(?:gh[pousr]_[A-Za-z0-9_]{36,255}|github_pat_[A-Za-z0-9_]{22,255})\b",
        "[REDACTED GITHUB TOKEN]",
    ),
    ("google", r"\bAIza[A-Za-z0-9_-]{35}", "[REDACTED API KEY]"),
    ("api_key", r"\bsk-[A-Za-z0-9_-]{20,}", "[REDACTED API KEY]"),
    ("slack", r"\bxox[bporas]-[A-Za-z0-9-]{10,}", "[REDACTED SLACK TOKEN]"),
    ("gitlab", r"\bglpat-[A-Za-z0-9_-]{20,}", "[REDACTED GITLAB TOKEN]"),
    (
        "jwt",
        r"\bey[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
        "[REDACTED JWT]",
    ),
    ("bearer", r"(?i:\bBearer)\s+[A-Za-z0-9._~+/-]{8,}=*", "Bearer [REDACTED]"),
    (
        "connection",
        r"(?i:postgres|mysql|mongodb|redis|amqp)(?:ql)?://[^:\s/]+:[^@\s]+@",
        "[REDACTED CONNECTION STRING]@",
    ),
    (
        "assignment",
        (
            r"(?i:\b[A-Z0-9_]*(?:API_KEY|API_SECRET|SECRET_KEY|SECRET|ACCESS_TOKEN|AUTH_TOKEN|"
            r"PRIVATE_KEY|DATABASE_URL|DB_PASSWORD|DB_URL|REDIS_URL|PASSWORD|TOKEN))"
            r"\s*[=:]\s*(?!\[REDACTED)[^\s,;]+"
        ),
        "[REDACTED CREDENTIAL]",
    ),
)

_PATTERN: Final = re.compile("|".join(f"(?P<{name}>{rule})" for name, rule, _ in _RULES))
_REPLACEMENTS: Final = {name: replacement for name, _, replacement in _RULES}

_SHORTEST_VALUE: Final = 6
"""Shorter known values would black out ordinary words."""


def _replace(match: re.Match[str]) -> str:
    return _REPLACEMENTS[match.lastgroup or ""]


def redact(text: str) -> str:
    """Return the text with everything that looks like a credential replaced."""
    return _PATTERN.sub(_replace, text)


def redact_value(value: Any) -> Any:
    """Redact every string inside a JSON value, at any depth."""
    return Redactor().value(value)


class Redactor:
    """Redacts by shape and, in addition, the given secret values wherever they stand."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({s for s in secrets if len(s) >= _SHORTEST_VALUE}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def text(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub("[REDACTED]", text)
        return redact(text)

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(member) for key, member in value.items()}
        if isinstance(value, list):
            return [self.value(member) for member in value]
        return value
