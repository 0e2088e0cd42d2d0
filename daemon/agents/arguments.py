"""Keep users' extra arguments from breaking a program's protocol. ◇

A provider names the flags it lives by; those are dropped from what users add, everything else is
theirs to decide (spec 04 §1.8).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import structlog

log = structlog.get_logger(__name__)

Takes = Literal["value", "nothing", "optional"]
"""What follows a flag: always a value, never one, or one unless it looks like a flag."""

_QUOTED_VALUE: Final = re.compile(r"(-[^=\s]*)=(['\"])(.*)\2", re.DOTALL)


def unquote(argument: str) -> str:
    """Strip one layer of quotes round the whole argument or round a flag's `=value`."""
    if len(argument) >= 2 and argument[0] == argument[-1] and argument[0] in "'\"":
        return argument[1:-1]
    if match := _QUOTED_VALUE.fullmatch(argument):
        return f"{match[1]}={match[3]}"
    return argument


def filter_arguments(
    arguments: Iterable[str], blocked: Mapping[str, Takes], *, label: str
) -> list[str]:
    """Return the arguments without the blocked flags and their values."""
    kept: list[str] = []
    skip: Takes = "nothing"
    for argument in map(unquote, arguments):
        if skip == "value" or (skip == "optional" and not argument.startswith("-")):
            skip = "nothing"
            continue
        flag, has_value, _ = argument.partition("=")
        takes = blocked.get(flag)
        skip = "nothing" if has_value or takes is None else takes
        if takes is None:
            kept.append(argument)
        else:
            log.warning("argument dropped: the protocol needs it", provider=label, flag=flag)
    return kept
