"""How deep JSON values may be nested. ◇

What takes a value apart recurses once or more a level: codecs, redaction, the database's driver.
A value that is deeper than they can go would be stored and then break everything that reads it, so
the bound is kept where a value enters.
"""

from __future__ import annotations

from typing import Any, Final

DEEPEST: Final = 100
"""Levels of a JSON value that are taken in; real ones have ten."""

CUT: Final = "[cut: nested too deeply]"
"""What stands for what was cut."""


def is_deeper(value: Any, most: int = DEEPEST) -> bool:
    """Whether there are more than `most` levels of arrays and objects. Does not recurse."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [
            member
            for container in level
            for member in (container.values() if isinstance(container, dict) else container)
            if isinstance(member, dict | list)
        ]
    return bool(level)


def cut(value: Any, most: int = DEEPEST) -> Any:
    """Return the value with `CUT` in place of every array and object below `most` levels."""
    return _cut(value, most) if is_deeper(value, most) else value


def _cut(value: Any, most: int) -> Any:
    if isinstance(value, dict):
        return {key: _cut(each, most - 1) for key, each in value.items()} if most > 0 else CUT
    if isinstance(value, list):
        return [_cut(each, most - 1) for each in value] if most > 0 else CUT
    return value
