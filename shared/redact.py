"""Take secrets out of text that people will read: transcripts, comments, logs.

It covers the common credential shapes (spec 02 §8.1), Bullpen's own tokens and, through `Redactor`,
secrets known by value such as an agent's custom environment. What is assigned to a name like
PASSWORD is looked at first (`redact_code.py`): code that fetches a secret is none. Server and daemon
use the same table. Every line an agent writes passes here, so a rule's pattern runs only if one of
its hints, plain substrings, stands in the text, and takes time in proportion to the text. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import attrs

from shared.redact_code import is_code

Replacement = str | Callable[[re.Match[str]], str]


@attrs.frozen
class _Rule:
    """`hints` are lower-case; without any of them in the lower-cased text nothing can match."""

    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    replacement: Replacement


def _rule(hints: str, pattern: str, replacement: Replacement) -> _Rule:
    return _Rule(tuple(hints.split()), re.compile(pattern), replacement)


def _connection(found: re.Match[str]) -> str:
    """An address is taken up to its `@`, if it has one and a password before it."""
    credentials = found["credentials"]
    hidden = credentials.endswith("@") and ":" in credentials
    return "[REDACTED CONNECTION STRING]@" if hidden else found[0]


# Repetitions are possessive or bounded, and those that may run on begin where a word does or take
# what they have read: that keeps the time linear on any text.
_RULES: Final = (
    _rule(
        "-----begin",
        r"-----BEGIN[A-Z\s]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END[A-Z\s]{0,40}PRIVATE KEY-----|\Z)",
        "[REDACTED PRIVATE KEY]",
    ),
    _rule(
        "mul_ mdt_ mat_ mcn_ awt_",
        r"\b(?:mul|mdt|mat|mcn|awt)_[A-Za-z0-9_-]{20,}+",
        "[REDACTED TOKEN]",
    ),
    _rule("akia", r"\bAKIA[0-9A-Z]{16}\b", "[REDACTED AWS KEY]"),
    _rule(
        "secret",
        r"(?i:aws_secret_access_key|secret_?access_?key)[\"']?\s{0,8}[=:]\s{0,8}[\"']?[A-Za-z0-9/+=]{40}",
        "[REDACTED AWS SECRET]",
    ),
    _rule(
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        r"\b(?:gh[pousr]_[A-Za-z0-9_]{36,255}|github_pat_[A-Za-z0-9_]{22,255})\b",
        "[REDACTED GITHUB TOKEN]",
    ),
    _rule("aiza", r"\bAIza[A-Za-z0-9_-]{35}", "[REDACTED API KEY]"),
    _rule(
        "sk- k_live_ k_test_ hf_ npm_",
        # a key has a run of characters that no words joined by hyphens have
        r"\b(?:sk-(?:[A-Za-z0-9_]{1,20}-){0,6}[A-Za-z0-9_]{16,}+[A-Za-z0-9_-]*+"
        r"|[sr]k_(?:live|test)_[A-Za-z0-9]{10,}+|hf_[A-Za-z0-9]{30,}+|npm_[A-Za-z0-9]{36})",
        "[REDACTED API KEY]",
    ),
    _rule(
        "xox xapp-",
        r"\bx(?:ox[a-z]|app)(?:\.xox[a-z])?-[A-Za-z0-9-]{10,}+",
        "[REDACTED SLACK TOKEN]",
    ),
    _rule("glpat-", r"\bglpat-[A-Za-z0-9_-]{20,}+", "[REDACTED GITLAB TOKEN]"),
    _rule(
        "ey",
        r"(?<![A-Za-z0-9_-])ey[A-Za-z0-9_-]{10,}+\.[A-Za-z0-9_-]{10,}+\.[A-Za-z0-9_-]{10,}+",
        "[REDACTED JWT]",
    ),
    _rule(
        "bearer",
        r"(?i:\bBearer)\s{1,8}(?:(?=[A-Za-z._~+/-]{0,64}[0-9])[A-Za-z0-9._~+/-]{8,}+|[A-Za-z0-9._~+/-]{24,}+)=*+",
        "Bearer [REDACTED]",
    ),
    _rule(
        "authorization",
        r"(?i:(\bAuthorization[\"']?\s{0,8}[:=]\s{0,8}[\"']?Basic)\s{1,8}[A-Za-z0-9+/]{6,}+=*+)",
        r"\1 [REDACTED]",
    ),
    _rule(
        "postgres mysql mariadb mongodb redis amqp",
        r"(?i:postgres|mysql|mariadb|mongodb|redis|rediss|amqps?)(?i:ql|\+srv)?://(?P<credentials>[^\s@]*+@?)",
        _connection,
    ),
)

_NAME_HINTS: Final = (
    "secret", "token", "passw", "passphrase", "api_key", "api-key", "apikey", "private_key",
    "database_url", "db_url", "redis_url",
)  # fmt: skip

_NAME: Final = re.compile(
    r"api[_-]?(?:key|secret)|secret(?:[_-]?key)?|access[_-]?token|auth[_-]?token|private[_-]?key"
    r"|(?:database|redis|db)_url|db_password|passw(?:or)?d|passphrase|token"
)
"""Names that are followed by a secret; searched for in lower-case text."""

_VALUE: Final = re.compile(
    r"(?P<sep>(?:\\?[\"'`]\]?)?\??[ \t]{0,8}"
    r"(?::[ \t]{0,4}[A-Za-z_][\w.\[\]|]{0,40}[ \t]{0,4}=(?![=>])|===?|!==?|=>|:=|=|:(?!:))[ \t]{0,8})"
    r"(?P<value>(?:\[REDACTED(?: [A-Z]+){0,3}\])++\S*+|\[REDACTED\S*+(?:[ \t]{1,8}\S++)?"
    r"|\"(?:[^\"\\\n]|\\.)*+\"|'(?:[^'\\\n]|\\.)*+'|\S++)"
)
"""What makes the rest of a line after a name an assignment, with an annotation maybe; and a value,
of which a mark of ours is no end."""

_LONGEST_CODE: Final = 400
"""Characters. What is longer is taken unread, so that no text is read more than so often."""

_SHORTEST_VALUE: Final = 6
"""Shorter known values would black out ordinary words."""

_SHORTEST_LINE: Final = 16
"""The same for one line of a value that has several."""


def redact(text: str) -> str:
    """Return the text with everything that looks like a credential replaced."""
    lowered = text.lower()
    for rule in _RULES:
        if any(hint in lowered for hint in rule.hints):
            text = rule.pattern.sub(rule.replacement, text)
    if any(hint in lowered for hint in _NAME_HINTS):
        text = _without_assigned(text)
    return text


def _without_assigned(text: str) -> str:
    """Take out what stands behind names like PASSWORD, unless it is only spoken of."""
    lowered = text.lower()
    if len(lowered) != len(text):  # some letters have two in lower case
        lowered = "".join(each if each.isascii() else " " for each in text).lower()
    parts: list[str] = []
    done = 0
    for name in _NAME.finditer(lowered):
        if name.start() < done:
            continue
        found = _VALUE.match(text, name.end())
        if found is None:
            continue
        key, value = text[name.start() : name.end()], found["value"]
        after = text[found.end() : found.end() + 2]
        if len(value) > _LONGEST_CODE or not is_code(key, found["sep"], value, after):
            parts += [text[done : name.start()], "[REDACTED CREDENTIAL]"]
            done = found.end()
    return "".join([*parts, text[done:]]) if parts else text


def redact_value(value: Any) -> Any:
    """Redact every string inside a JSON value, at any depth."""
    return Redactor().value(value)


class Redactor:
    """Redacts by shape and, in addition, the given secret values wherever they stand."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known = sorted({form for secret in secrets for form in _forms(secret)})

    def text(self, text: str) -> str:
        return redact(self._without_known(text))

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(key) if isinstance(key, str) else key: self.value(member)
                for key, member in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(member) for member in value]
        return value

    def _without_known(self, text: str) -> str:
        """Take out the known values whole, also where one begins within another."""
        places: list[tuple[int, int]] = []
        for secret in self._known:
            at = text.find(secret)
            while at >= 0:
                places.append((at, at + len(secret)))
                at = text.find(secret, at + 1)
        if not places:
            return text
        parts: list[str] = []
        done = 0
        for begin, end in sorted(places):
            if begin >= done:
                parts += [text[done:begin], "[REDACTED]"]
            done = max(done, end)
        parts.append(text[done:])
        return "".join(parts)


def _forms(secret: str) -> Iterable[str]:
    """A secret as it may appear: as it is, within JSON, and by its lines."""
    if len(secret) < _SHORTEST_VALUE:
        return
    yield secret
    for as_ascii in (True, False):
        yield json.dumps(secret, ensure_ascii=as_ascii)[1:-1]
    if "\n" in secret:
        yield from (line for line in secret.splitlines() if len(line) >= _SHORTEST_LINE)
