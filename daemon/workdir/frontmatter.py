"""The block of YAML a skill's text begins with (spec 05 §4). ◇

Programs that find broken YAML there do not load the skill at all, without a word. So what would
break them is dropped and written anew. No YAML library is needed for that: only the mistakes people
make in such blocks are looked for, and what merely looks unusual is left to the program.
"""

from __future__ import annotations

import json
import re
from typing import Final

_OPENING: Final = re.compile(r"---\r?\n")
_CLOSING: Final = re.compile(r"^---\r?$\n?", re.MULTILINE)
_NAME: Final = re.compile(r"^name:[ \t]*(?!#)[^\s]", re.MULTILINE)
_EMPTY_NAME: Final = re.compile(r"^name:[ \t]*(?:#.*)?(?:\"\"|'')?[ \t]*\r?(?:\n|\Z)", re.MULTILINE)
_KEY: Final = re.compile(r"(?:[\w.-][\w .-]*|\"[^\"]*\"|'[^']*')[ \t]*:(?:[ \t]+(.*))?", re.DOTALL)
_BLOCK_SCALAR: Final = re.compile(r"[|>][+-]?\d?[+-]?[ \t]*(?:#.*)?")
_PLAIN: Final = re.compile(r"[^\"'\[\]{}|>&*!%@`#,]")
_SINGLE: Final = re.compile(r"'(?:[^']|'')*'[ \t]*(?:#.*)?", re.DOTALL)
_DOUBLE: Final = re.compile(r"\"(?:[^\"\\]|\\.)*\"[ \t]*(?:#.*)?", re.DOTALL)


def with_frontmatter(text: str, *, name: str, description: str) -> str:
    """Return a skill's text with a block that is YAML and at least names it.

    `name` is its directory's. A block that has a name and holds together stays as it is.
    """
    opening = _OPENING.match(text)
    closing = _CLOSING.search(text, opening.end()) if opening is not None else None
    if opening is None or closing is None:
        return _block(name, description) + text
    block = text[opening.end() : closing.start()]
    if not _NAME.search(_EMPTY_NAME.sub("", block)):
        end = "\r\n" if opening[0].endswith("\r\n") else "\n"
        rest = _EMPTY_NAME.sub("", block)
        return f"{opening[0]}name: {name}{end}{rest}{text[closing.start() :]}"
    if holds_together(block):
        return text
    return _block(name, description) + text[closing.end() :].lstrip("\r\n")


def _block(name: str, description: str) -> str:
    lines = [f"name: {name}"]
    if description.strip():
        lines.append(f"description: {quoted(description)}")
    return "---\n" + "\n".join(lines) + "\n---\n\n"


def quoted(text: str) -> str:
    """A double-quoted YAML string on one line."""
    return json.dumps(" ".join(text.split()), ensure_ascii=False)


def holds_together(block: str) -> bool:
    """Whether a block has none of the mistakes that keep it from being a YAML mapping."""
    lines = block.replace("\r\n", "\n").split("\n")
    if any(re.match(r" *\t", line) and line.strip() for line in lines):
        return False
    entries: list[list[str]] = []
    for line in lines:
        if line[:1] in {" ", "-"} and entries:
            entries[-1].append(line)
        elif line.strip() and not line.startswith("#"):
            if line[:1] in {"}", "]"} and entries:
                entries[-1].append(line)
            else:
                entries.append([line])
        elif entries:
            entries[-1].append("")
    return bool(entries) and all(_is_sound("\n".join(entry).rstrip()) for entry in entries)


def _is_sound(entry: str) -> bool:
    """Whether a key with its value, over all its lines, can be YAML."""
    found = _KEY.fullmatch(entry)
    if found is None:
        return re.fullmatch(r"[^\n]*:[ \t]*\n[\s\S]*", entry) is not None
    value = (found[1] or "").strip()
    first = value.split("\n", 1)[0]
    if not value or value.startswith(("#", "&", "!")) or _BLOCK_SCALAR.fullmatch(first):
        return True
    if value[0] == "'":
        return _SINGLE.fullmatch(value) is not None
    if value[0] == '"':
        return _DOUBLE.fullmatch(value) is not None
    if value[0] in "[{":
        closed = re.sub(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^']|'')*'", "", value)
        return all(closed.count(a) == closed.count(b) for a, b in ("[]", "{}"))
    if value[0] == "-" and "\n" in value:
        return True
    plain = re.split(r"[ \t]#", first, maxsplit=1)[0]
    return _PLAIN.match(value) is not None and re.search(r":(?:[ \t]|$)", plain) is None
