"""Take secrets out of text that people will read: transcripts, comments, logs.

It covers the common credential shapes (spec 02 §8.1), Bullpen's own tokens and, through `Redactor`,
secrets known by value such as an agent's custom environment. Every line an agent writes passes
here, so a rule's pattern runs only if one of its hints, plain substrings, stands in the text. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs


@attrs.frozen
class _Rule:
    """`hints` are lower-case; without any of them in the lower-cased text nothing can match."""

    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    replacement: str


def _rule(hints: str, pattern: str, replacement: str) -> _Rule:
    return _Rule(tuple(hints.split()), re.compile(pattern), replacement)


_RULES: Final = (
    _rule(
        "-----begin",
        r"-----BEGIN[A-Z\s]*PRIVATE KEY-----[\s\S]*?(?:-----END[A-Z\s]*PRIVATE KEY-----|\Z)",
        "[REDACTED PRIVATE KEY]",
    ),
    _rule(
        "mul_ mdt_ mat_ mcn_ awt_",
        r"\b(?:mul|mdt|mat|mcn|awt)_[A-Za-z0-9_-]{20,}",
        "[REDACTED TOKEN]",
    ),
    _rule("akia", r"\bAKIA[0-9A-Z]{16}\b", "[REDACTED AWS KEY]"),
    _rule(
        "secret",
        r"(?i:aws_secret_access_key|secret_?access_?key)\s*[=:]\s*[\"']?[A-Za-z0-9/+=]{40}",
        "[REDACTED AWS SECRET]",
    ),
    _rule(
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        r"\b(?:gh[pousr]_[A-Za-z0-9_]{36,255}|github_pat_[A-Za-z0-9_]{22,255})\b",
        "[REDACTED GITHUB TOKEN]",
    ),
    _rule("aiza", r"\bAIza[A-Za-z0-9_-]{35}", "[REDACTED API KEY]"),
    _rule("sk-", r"\bsk-[A-Za-z0-9_-]{20,}", "[REDACTED API KEY]"),
    _rule("xox", r"\bxox[bporas]-[A-Za-z0-9-]{10,}", "[REDACTED SLACK TOKEN]"),
    _rule("glpat-", r"\bglpat-[A-Za-z0-9_-]{20,}", "[REDACTED GITLAB TOKEN]"),
    _rule(
        "ey",
        r"\bey[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
        "[REDACTED JWT]",
    ),
    _rule("bearer", r"(?i:\bBearer)\s+[A-Za-z0-9._~+/-]{8,}=*", "Bearer [REDACTED]"),
    _rule(
        "://",
        r"(?i:postgres|mysql|mongodb|redis|amqp)(?:ql)?://[^:\s/]*:[^@\s]+@",
        "[REDACTED CONNECTION STRING]@",
    ),
    _rule(
        "_key _secret secret_ secret token password _url",
        r"(?i:API_KEY|API_SECRET|SECRET_KEY|SECRET|ACCESS_TOKEN|AUTH_TOKEN|PRIVATE_KEY|"
        r"DATABASE_URL|DB_PASSWORD|DB_URL|REDIS_URL|PASSWORD|TOKEN)"
        r"\s*[=:]\s*(?!\[REDACTED)[^\s,;]+",
        "[REDACTED CREDENTIAL]",
    ),
)

_SHORTEST_VALUE: Final = 6
"""Shorter known values would black out ordinary words."""


def redact(text: str) -> str:
    """Return the text with everything that looks like a credential replaced."""
    lowered = text.lower()
    for rule in _RULES:
        if any(hint in lowered for hint in rule.hints):
            text = rule.pattern.sub(rule.replacement, text)
    return text


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
