"""Tell the secret that is written behind a name like PASSWORD from code and prose that speak of one.

`password = getpass()`, `token: string` and "the token: run `bullpen login`" give nothing away, and a
reader needs them; `PASSWORD=hunter2` does. In doubt it is a secret: what is let through has the form
of a reference, a call, a type, a mask or a sentence. A line as in a file of variables, `NAME=value`,
is let through least. Pure.
"""

from __future__ import annotations

import re
from typing import Final

_PLAIN: Final = frozenset(
    re.findall(
        r"\S+",
        """
        true false null none nil undefined void str string strings int integer number float double
        bool boolean bytes byte any object unknown never char text varchar uuid date &str *string
        []byte string[] str[] yes no on off optional required missing invalid expired empty unset
        set redacted hidden masked bearer basic self this not is was are await new return lambda
        func function async yield if else or and in the a an must should your enter please type
        for to of
        """,
    )
)
"""What stands where a value would, and is none: types, truth, and the words of a language."""

_ROOTS: Final = frozenset(
    re.findall(
        r"\S+",
        """
        self this os process env environ import config configuration conf cfg settings setting ctx
        context args argv options opts option request req response res params props state secrets
        user account credentials creds session app data body form input kwargs var local vars each
        """,
    )
)
"""What the path of a value usually begins with: `self.token`, `process.env.TOKEN`."""

_WORD: Final = r"(?:token|password|passwd|passphrase|secret|api_?key|private_?key|credential)"
_NAME: Final = r"[A-Za-z_$][\w$]{0,60}"
_PATH: Final = re.compile(rf"{_NAME}(?:(?:\.|::|->|\?\.){_NAME}){{0,8}}")
_NAMED: Final = re.compile(rf"[A-Za-z_]{{0,40}}{_WORD}s?[A-Za-z_]{{0,40}}", re.IGNORECASE)
_SAME: Final = re.compile(rf"{_WORD}s?", re.IGNORECASE)
_GENERIC: Final = re.compile(r"[A-Z][A-Za-z]{1,30}<[A-Za-z<>,\[\]|.?&' ]{1,60}>?")
_REFERENCE: Final = re.compile(
    r"\$\{.*|\$\(.*|\$[A-Z_][A-Z0-9_]*|\$[A-Za-z_]*(?:token|password|secret|key)[A-Za-z_]*"
    r"|\{\{.*|\{[A-Za-z_][\w.()\[\]!:]{0,80}\}\W*|[\[({]\W?\w{0,2},?|</?[A-Za-z][^<>\d]{0,60}>?|%[A-Z_][A-Z0-9_]*%|[*x.•…]+|[\[{(]|\{\}|\[\]"
    r"|\{[\"'].*|\\n.*",
    re.DOTALL,
)
_MARKED: Final = re.compile(r"(?:\[REDACTED(?: [A-Z]+){0,3}\])+[)\]}\"'`,;.:]*@?")
_PROSE: Final = re.compile(r"[a-z]{1,14}[,.]?")
_NAME_ONLY: Final = re.compile(r"[A-Z]\w{1,40}")
_LETTERS: Final = re.compile(r"[A-Za-z_]{1,40}")
_CLOSING: Final = ")]},;.:!?"
_OPEN: Final = str.maketrans("", "", "".join(set(map(chr, range(128))) - set("()[]")))


def is_code(key: str, sep: str, value: str, after: str) -> bool:
    """Tell whether `value` is no secret although it stands behind `key` and `sep`.

    `after` are the two characters behind the value, which ends at a space or with its quote.
    """
    if _MARKED.fullmatch(value):
        return True
    if value.startswith("[REDACTED"):
        return False
    strict = key.isupper() and sep == "="
    quote = value[0]
    by_hand = "pass" in key.lower()  # chosen by people, who take plain words
    if quote in "\"'" and value.endswith(quote) and len(value) > 1:
        inner = value[1:-1].rstrip("?")
        compared = "==" in sep or "!=" in sep
        if compared and not by_hand and len(inner) < 12 and not any(map(str.isdigit, inner)):
            return True
        return _is_no_literal(inner, by_hand=by_hand)
    if "==" in sep or "!=" in sep:
        return True
    bare = value.strip("\\\"'`").rstrip(_CLOSING)
    if not bare or bare.lower() in _PLAIN or value.rstrip(",;)").lower() in _PLAIN:
        return True
    if _REFERENCE.fullmatch(value.rstrip(",;")) or _is_call(value, spaced=sep == " = "):
        return True
    if bare.isdigit() and len(bare) < 4:
        return True
    path = _PATH.fullmatch(bare)
    if path and len(bare) > len(re.split(r"\W", bare, maxsplit=1)[0]):
        first, last = re.split(r"\W+", bare)[0], re.split(r"\W+", bare)[-1]
        if sep == " = " and not by_hand and not any(map(str.isdigit, bare)):
            return True
        return first.lower() in _ROOTS or (not strict and _NAMED.fullmatch(last) is not None)
    if strict:
        return _SAME.fullmatch(bare) is not None
    if after == " |" and _NAME_ONLY.fullmatch(bare):
        return True
    if sep == " = " and "token" in key.lower() and _LETTERS.fullmatch(bare):
        return True
    if _NAMED.fullmatch(bare) or _GENERIC.fullmatch(value.rstrip(",;)")):
        return True
    spoken = ":" in sep and sep[-1:] in " \t" and not by_hand
    return spoken and _PROSE.fullmatch(bare) is not None and after[:1] == " " and after[1:] != ""


def _is_no_literal(inner: str, *, by_hand: bool) -> bool:
    """Tell whether a text in quotes is a placeholder, a type or a description."""
    if not inner.strip() or inner.lower() in _PLAIN or _REFERENCE.fullmatch(inner):
        return True
    if _SAME.fullmatch(inner):
        return True
    words = inner.split()
    plain = all(word.rstrip(",.:;").isalpha() for word in words)
    return plain and len(words) > 2 and not by_hand


def _is_call(value: str, *, spaced: bool) -> bool:
    """Tell whether a value is a call or a look-up: `getpass()`, `os.environ['API_KEY']`."""
    path = _PATH.match(value)
    if path is None or value[path.end() : path.end() + 1] not in {"(", "["}:
        return False
    inside = value[path.end() + 1 : path.end() + 2]
    if not spaced and inside and not (inside in ")'\"`${" or inside.isalpha() or inside == "_"):
        return False
    brackets = value.translate(_OPEN)
    balanced = all(brackets.count(a) == brackets.count(b) for a, b in ("()", "[]"))
    return balanced or not any(map(str.isdigit, path[0]))
