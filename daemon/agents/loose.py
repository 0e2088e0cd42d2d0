"""Read the JSON that agent programs write, whatever it holds, and write theirs. ◇

Programs change their output without notice, so a field of the wrong type counts as absent instead
of ending the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from shared.text import read_json

TOO_DEEP: Final = "nested too deeply"
"""The type of the event that stands for a line whose values nobody can read."""


def parse(line: bytes) -> dict[str, Any] | None:
    """Return the object a line holds, its text clean (`shared.text`); None for anything else.

    A line that is nested beyond what Python reads becomes an event of type TOO_DEEP.
    """
    try:
        event = read_json(line)
    except RecursionError:
        return {"type": TOO_DEEP}
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def frame(value: Any) -> bytes:
    """Write a value as one line."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def mapping(value: Any) -> Mapping[str, Any]:
    """Return the value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def string(value: Any) -> str:
    """Return the value if it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def number(value: Any) -> int:
    """Return a count: the value if it is a finite number above zero, else zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 0
    return max(0, int(value))


def blocks(content: Any) -> list[Mapping[str, Any]]:
    """Return the content blocks of a message; a bare string is one text block."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        return []
    return [block for block in content if isinstance(block, Mapping)]


def flat(content: Any) -> str:
    """Flatten a tool's result, a string or a list of blocks, into text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "" if content is None else json.dumps(content, ensure_ascii=False)
    return "\n".join(map(_flat_block, content))


def _flat_block(block: Any) -> str:
    kind = mapping(block).get("type")
    if kind == "text":
        return string(block.get("text"))
    return "[image]" if kind == "image" else json.dumps(block, ensure_ascii=False)
