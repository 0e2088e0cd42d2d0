"""An agent's answer as people see it (spec 02 §2.3). Pure.

Some agents print line breaks as the two characters backslash and n. That is undone only where it is
certain: in an answer of one line, outside code, where every backslash can be such an escape.
"""

from __future__ import annotations

import re
from typing import Final

from shared.redact import redact

_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}

_VERBATIM: Final = re.compile(
    r"(?P<ticks>(?<!`)`+(?!`)).{1,10000}?(?<!`)(?P=ticks)(?!`)"  # code
    r"|\$[^$\s](?:[^$]{0,200}[^$\s])?\$(?!\d)"  # a formula
    r"|(?<![A-Za-z])[A-Za-z]:\\[^\s\"'<>|]*"  # a path of Windows
    r"|(?<![\\\w])\\\\[\w.-]+\\[^\s\"'<>|]*"
)
_ESCAPE: Final = re.compile(r"\\(.?)")

_TRIVIAL: Final = frozenset({"done", "готово", "готова", "сделано", "完成", "完了"})
_DECORATION: Final = ".!！。… "  # noqa: RUF001


def shown_output(output: str) -> str:
    """What people see of an agent's output: escapes decoded where they are some, secrets removed."""
    return redact(_decoded(output))


def plan_comment(output: str, *, in_thread: bool) -> str:
    """Return what to post for an agent that wrote no comment itself; "" for nothing.

    An answer that only says "done" is left out in a thread, where the agent's silence says as much
    (spec 02 §2.3).
    """
    text = shown_output(output)
    if not text.strip():
        return ""
    if in_thread and text.strip().strip(_DECORATION).lower() in _TRIVIAL:
        return ""
    return text


def _decoded(output: str) -> str:
    if "\\" not in output or "\n" in output.strip():
        return output
    parts, end = [], 0
    for found in _VERBATIM.finditer(output):
        parts += [(output[end : found.start()], False), (found[0], True)]
        end = found.end()
    parts.append((output[end:], False))
    if any(
        escape not in _ESCAPES
        for text, verbatim in parts
        if not verbatim
        for escape in _ESCAPE.findall(text)
    ):
        return output
    return "".join(text if verbatim else _ESCAPE.sub(_decode, text) for text, verbatim in parts)


def _decode(found: re.Match[str]) -> str:
    return _ESCAPES[found[1]]
