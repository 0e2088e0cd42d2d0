"""The head of a SKILL.md: the part of YAML that people write there. ◇

Skills on a machine were written for other programs, so their heads hold whatever those accept:
block scalars, quotes over several lines, lists, nested mappings. Anchors, tags and several documents
are beyond it and count as unreadable, as anything malformed does (spec 03 §26).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

import attrs

_OPENING: Final = re.compile(r"---[ \t]*\r?\n")
_CLOSING: Final = re.compile(r"^---[ \t]*\r?$", re.MULTILINE)
_KEY: Final = re.compile(
    r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s\-?:,\[\]{}#&*!|>'"%@`][^#]*?|[-?:][^\s#][^#]*?)"""
    r"""[ \t]*:(?:[ \t]+(.*)|)$"""
)
_HEADER: Final = re.compile(r"([|>])(?:([+-]?)([1-9]?)|([1-9])([+-]))(?:[ \t]+#.*)?[ \t]*")
_COMMENT: Final = re.compile(r"(?:^|[ \t])#.*")
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_WORDS: Final[dict[str, Any]] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(_NULLS, None),
}
_ESCAPES: Final = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "\t": "\t", "n": "\n", "v": "\v", "f": "\f",
    "r": "\r", "e": "\x1b", " ": " ", '"': '"', "/": "/", "\\": "\\", "N": "\x85", "_": "\xa0",
    "L": "\u2028", "P": "\u2029",
}  # fmt: skip
_HEX: Final = {"x": 2, "u": 4, "U": 8}


class Unreadable(ValueError):
    """Not YAML, or more of it than is understood here."""


@attrs.frozen
class Plain:
    """A scalar without quotes: its text as written, whose type only structures ask for."""

    text: str

    def value(self) -> Any:
        """The value YAML gives the text."""
        if self.text in _WORDS:
            return _WORDS[self.text]
        for kind in (int, float):
            if re.fullmatch(r"[-+]?\d[\d.]*(?:[eE][-+]?\d+)?|[-+]?\.\d+", self.text):
                try:
                    return kind(self.text)
                except ValueError:
                    continue
        return self.text


def head_of(text: str) -> str | None:
    """Return what stands between the opening and the closing `---` lines, or None."""
    opening = _OPENING.match(text)
    if opening is None:
        return None
    closing = _CLOSING.search(text, opening.end())
    return text[opening.end() : closing.start()] if closing is not None else None


def described(text: str) -> tuple[str, str]:
    """Return the name and description a SKILL.md gives itself; both empty if it is unreadable.

    Scalars are taken as written, null is nothing, a structure is its JSON.
    """
    head = head_of(text)
    if head is None:
        return "", ""
    try:
        found = read_mapping(head)
        return _text_of(found.get("name")), _text_of(found.get("description"))
    except Unreadable:
        return "", ""


def read_mapping(text: str) -> dict[str, Any]:
    """Read a document that is one mapping; plain scalars come as `Plain`. Raises Unreadable."""
    try:
        found = _Reader(text).document()
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error
    if not isinstance(found, dict):
        raise Unreadable("no mapping")
    return found


def _text_of(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Plain):
        return "" if value.text in _NULLS else value.text
    if isinstance(value, str):
        return value
    return json.dumps(_typed(value), ensure_ascii=False, separators=(",", ":"))


def _typed(value: Any) -> Any:
    if isinstance(value, Plain):
        return value.value()
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    return value


class _Reader:
    """Reads block structures line by line; `_at` is the next line."""

    def __init__(self, text: str) -> None:
        self._lines = text.replace("\r\n", "\n").split("\n")
        self._at = 0

    def document(self) -> Any:
        found = self._node(0)
        if self._peek() is not None:
            raise Unreadable(f"line {self._at + 1} belongs to nothing")
        return found

    def _peek(self) -> tuple[int, str] | None:
        """The indent and content of the next line that says something."""
        while self._at < len(self._lines):
            line = self._lines[self._at].rstrip()
            content = line.lstrip(" ")
            if content.lstrip("\t") and not content.startswith("#"):
                if content.startswith("\t"):
                    raise Unreadable("indented by a tab")
                return len(line) - len(content), content
            self._at += 1
        return None

    def _node(self, least: int) -> Any:
        """What begins on the next line, indented by `least` or more."""
        following = self._peek()
        if following is None or following[0] < least:
            return None
        indent, content = following
        if _is_item(content):
            return self._sequence(indent)
        if _key(content) is not None:
            return self._mapping(indent)
        self._at += 1
        return self._value(content, least - 1)

    def _mapping(self, indent: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while (line := self._peek()) is not None and line[0] >= indent:
            parts = _key(line[1]) if line[0] == indent and not _is_item(line[1]) else None
            if parts is None or parts[0] in found:
                raise Unreadable(f"line {self._at + 1} is no new key")
            self._at += 1
            found[parts[0]] = self._value(parts[1], indent, in_mapping=True)
        return found

    def _sequence(self, indent: int) -> list[Any]:
        found: list[Any] = []
        while (line := self._peek()) is not None and line[0] == indent and _is_item(line[1]):
            # What follows the dash is a node of its own, indented as it stands.
            self._lines[self._at] = " " * (indent + 1) + line[1][1:]
            found.append(self._node(indent + 1))
        return found

    def _value(self, rest: str, indent: int, *, in_mapping: bool = False) -> Any:
        """The value that begins with `rest`, in a structure indented by `indent`."""
        rest = rest.strip()
        if not rest or rest.startswith("#"):
            following = self._peek()
            if in_mapping and following is not None and following[0] == indent:
                return self._sequence(indent) if _is_item(following[1]) else None
            return self._node(indent + 1)
        if rest[0] in "|>":
            return self._block(rest, indent)
        if rest[0] in "\"'":
            return self._until_closed(rest, indent, _quoted)
        if rest[0] in "[{":
            return self._until_closed(rest, indent, _flow)
        if rest[0] in "&*!%@`,]}" or rest.startswith(("? ", "- ")) or rest in ("?", "-"):
            raise Unreadable(f"line {self._at}: not understood: {rest[:20]}")
        return self._plain(rest, indent)

    def _continuation(self, indent: int) -> str | None:
        """The next line if it continues a scalar: indented more, or blank."""
        if self._at >= len(self._lines):
            return None
        line = self._lines[self._at]
        if line.strip() and len(line) - len(line.lstrip(" ")) <= indent:
            return None
        self._at += 1
        return line.strip()

    def _plain(self, rest: str, indent: int) -> Plain:
        lines: list[str] = []
        line: str | None = rest
        while line is not None:
            if line.startswith("#"):
                break
            bare = _COMMENT.sub("", line).rstrip()
            if re.search(r":(?:[ \t]|$)", bare):
                raise Unreadable(f"line {self._at}: a colon in an unquoted text")
            lines.append(bare)
            if bare != line.rstrip():
                break  # a comment ends it
            line = self._continuation(indent)
        return Plain(_folded(lines).strip())

    def _until_closed(
        self, rest: str, indent: int, read: Callable[[str], tuple[Any, str] | None]
    ) -> Any:
        """Read on until `read` has what it needs; only a comment may follow it."""
        lines = [rest]
        while (found := read(_folded(lines))) is None:
            line = self._continuation(indent)
            if line is None:
                raise Unreadable(f"line {self._at}: not closed")
            lines.append(line)
        value, after = found
        if after.strip() and not re.match(r"\s+#", after):
            raise Unreadable(f"line {self._at}: {after.strip()[:20]} comes too late")
        return value

    def _block(self, rest: str, indent: int) -> str:
        header = _HEADER.fullmatch(rest)
        if header is None:
            raise Unreadable(f"line {self._at}: not understood: {rest[:20]}")
        chomp, given = header[2] or header[5] or "", header[3] or header[4] or ""
        lines: list[str] = []
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.strip(" ") and len(line) - len(line.lstrip(" ")) <= indent:
                break
            lines.append(line)
            self._at += 1
        first = next((line for line in lines if line.strip(" ")), "")
        depth = max(indent, 0) + int(given) if given else len(first) - len(first.lstrip(" "))
        if any(line.strip(" ") and line[:depth].strip(" ") for line in lines):
            raise Unreadable(f"line {self._at}: a text that is indented unevenly")
        lines = [line[depth:] for line in lines]
        kept = len(lines)
        while kept and not lines[kept - 1]:
            kept -= 1
        trailing = len(lines) - kept
        if self._at >= len(self._lines) and trailing:
            trailing -= 1  # what follows the last line's end is no line
        body = "\n".join(lines[:kept]) if header[1] == "|" else _fold_block(lines[:kept])
        if chomp == "-":
            return body
        if chomp == "+":
            return body + "\n" * (trailing + bool(kept))
        return body + "\n" if body else body


def _is_item(content: str) -> bool:
    return content == "-" or content.startswith(("- ", "-\t"))


def _key(content: str) -> tuple[str, str] | None:
    """A key and what follows its colon, if that is what the line begins with."""
    found = _KEY.match(content)
    if found is None or (": " in found[1].strip("\"'") and found[1][0] not in "\"'"):
        return None
    key = found[1]
    if key[0] in "\"'":
        read = _quoted(key)
        if read is None or read[1]:
            return None
        key = read[0]
    return key, found[2] or ""


def _folded(lines: list[str]) -> str:
    """Join the lines of a flow scalar: one line end is a space, each further one stays."""
    text = lines[0]
    blank = 0
    for line in lines[1:]:
        if not line:
            blank += 1
            continue
        # A backslash at the end of a quoted line joins it with the next.
        if text.endswith("\\") and not text.endswith("\\\\"):
            text = text[:-1] + line
        else:
            text += ("\n" * blank or " ") + line
        blank = 0
    return text + "\n" * blank


def _fold_block(lines: list[str]) -> str:
    text = ""
    previous: str | None = None
    blank = 0
    for line in lines:
        if not line:
            blank += 1
            continue
        if previous is None:
            text = "\n" * blank + line
        elif line[0] in " \t" or previous[0] in " \t":
            text += "\n" * (blank + 1) + line
        else:
            text += ("\n" * blank or " ") + line
        previous, blank = line, 0
    return text


def _quoted(text: str) -> tuple[str, str] | None:
    """A quoted text at the beginning and what follows it; None if it is not closed."""
    if text[0] == "'":
        found = re.match(r"'((?:[^']|'')*)'(?!')", text)
        return (found[1].replace("''", "'"), text[found.end() :]) if found else None
    written: list[str] = []
    at = 1
    while at < len(text):
        character = text[at]
        if character == '"':
            return "".join(written), text[at + 1 :]
        if character != "\\":
            written.append(character)
            at += 1
            continue
        code = text[at + 1 : at + 2]
        if code in _ESCAPES and code:
            written.append(_ESCAPES[code])
            at += 2
        elif code in _HEX and code:
            digits = text[at + 2 : at + 2 + _HEX[code]]
            try:
                written.append(chr(int(digits, 16)))
            except (ValueError, OverflowError) as error:
                raise Unreadable(f"\\{code}{digits} is no character") from error
            at += 2 + _HEX[code]
        elif not code:
            return None
        else:
            raise Unreadable(f"\\{code} means nothing")
    return None


def _flow(text: str) -> tuple[Any, str] | None:
    """A `[...]` or `{...}` at the beginning and what follows it; None if it is not closed."""
    text = text.strip()
    if not text:
        return None
    if text[0] in "\"'":
        return _quoted(text)
    if text[0] not in "[{":
        found = re.match(r"(?:[^,\[\]{}:#]|:(?![ \t,\[\]{}]|$)|(?<![ \t])#)*", text)
        assert found is not None
        return Plain(found[0].strip()), text[found.end() :]
    closing = "]" if text[0] == "[" else "}"
    listed: list[Any] = []
    mapped: dict[str, Any] = {}
    rest = text[1:].lstrip()
    while rest:
        if rest[0] == closing:
            return (listed if closing == "]" else mapped), rest[1:]
        item = _flow(rest)
        if item is None:
            return None
        value, rest = item[0], item[1].lstrip()
        if rest[:1] == ":":
            inner: tuple[Any, str] | None = (None, rest[1:])
            if rest[1:].lstrip()[:1] not in {",", closing}:
                inner = _flow(rest[1:])
            if inner is None:
                return None
            key = value.text if isinstance(value, Plain) else value
            if not isinstance(key, str):
                raise Unreadable("a structure as a key")
            value, rest = {key: inner[0]}, inner[1].lstrip()
        elif closing == "}":
            value = {value.text if isinstance(value, Plain) else str(value): None}
        if closing == "}":
            mapped |= value
        else:
            listed.append(value)
        if rest[:1] == ",":
            rest = rest[1:].lstrip()
        elif rest and rest[0] != closing:
            raise Unreadable(f"{rest[:20]} comes too early")
    return None
