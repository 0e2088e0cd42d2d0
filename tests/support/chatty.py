"""An agent program that keeps a log of its own of all it says, to compare with what arrived.

`install` puts it where a daemon finds it as `claude`. Every item is in the log, with the time, before
it is said; `MULTICA_TASK_ID` names the log. What it says: so many lines, a tool call between them
now and then, and a result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attrs

_PROGRAM = """\
#!{python} -IS
import json, os, sys, time

if "--version" in sys.argv:
    print("2.1.0 (Claude Code)")
    raise SystemExit
log = open(os.path.join({folder!r}, os.environ["MULTICA_TASK_ID"] + ".log"), "a")


def say(kind, text, event):
    log.write(json.dumps([time.time(), kind, text]) + "\\n")
    log.flush()
    print(json.dumps(dict(event, session_id="5c5c5c5c-0000-4000-8000-000000000009")), flush=True)


def block(kind, text, what):
    who = "user" if kind == "tool_result" else "assistant"
    message = dict(id="m" + str(number) + kind, content=[dict(what, type=kind)])
    say(kind, text, dict(type=who, message=message))


print(json.dumps(dict(type="system", subtype="init", model="chatty")), flush=True)
for number in range({items}):
    text = "line %d of it\\n" % number
    block("text", text, dict(text=text))
    if number % 7 == 3:
        call, output = "t%d" % number, "output %d" % number
        block("tool_use", call, dict(id=call, name="Bash", input=dict(command=call)))
        block("tool_result", output, dict(tool_use_id=call, content=output))
    time.sleep({pause})
print(json.dumps(dict(type="result", subtype="success", is_error=False, result="all said",
    modelUsage=dict(chatty=dict(inputTokens=11, outputTokens=7)),
    session_id="5c5c5c5c-0000-4000-8000-000000000009")), flush=True)
"""


@attrs.frozen
class Chatty:
    """Where it is installed, and where its logs are."""

    bin: Path
    logs: Path

    def said(self, task_id: str) -> list[tuple[float, str, str]]:
        """What it said in one task: time, kind and text of each item."""
        path = self.logs / f"{task_id}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(json.loads(line)) for line in lines]


def install(folder: Path, *, items: int, pause: float) -> Chatty:
    chatty = Chatty(folder / "bin", folder / "logs")
    for made in (chatty.bin, chatty.logs):
        made.mkdir(parents=True)
    program = chatty.bin / "claude"
    words = {"python": sys.executable, "folder": str(chatty.logs), "items": items, "pause": pause}
    program.write_text(_PROGRAM.format(**words))
    program.chmod(0o755)
    return chatty


def stream(items: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join neighbouring texts, which a transcript merges as it likes."""
    joined: list[tuple[str, str]] = []
    for kind, text in items:
        if joined and kind == "text" == joined[-1][0]:
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined


def arrived(messages: list[Any]) -> list[tuple[str, str]]:
    """The server's transcript in the log's terms."""
    return stream(
        [
            (row["type"], row["input"]["command"])
            if row["type"] == "tool_use"
            else (row["type"], row.get("output") or row.get("content", ""))
            for row in messages
        ]
    )
