"""Text as it comes in: bytes become characters here, and everything behind can rely on them.

Programs cut emoji in half and write bytes that are no UTF-8. A lone surrogate passes every check in
Python and then fails where it is written (a journal, a hash, the database), long after the work it
belongs to was done. So it is replaced once, at the entrance, as JSON readers do. Pure.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

REPLACEMENT: Final = "\ufffd"

_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
"""One escape of a JSON text; the group is half a character without its other half."""


def clean(text: str) -> str:
    """Return the text with each lone surrogate replaced."""
    return text if text.isascii() else _SURROGATE.sub(REPLACEMENT, text)


def from_bytes(data: bytes) -> str:
    """Return what the bytes say in UTF-8, with a replacement for what they do not."""
    return data.decode("utf-8", "replace")


def json_text(data: bytes | str) -> str:
    """Return a JSON text whose strings, once they are read, hold no lone surrogate."""
    text = from_bytes(data) if isinstance(data, bytes) else clean(data)
    if "\\ud" not in text and "\\uD" not in text:
        return text
    return _ESCAPE.sub(lambda found: r"\ufffd" if found[1] else found[0], text)


def read_json(data: bytes) -> Any:
    """Read one JSON value. Raises ValueError, RecursionError."""
    return json.loads(json_text(data))
