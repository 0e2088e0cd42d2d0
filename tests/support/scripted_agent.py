"""An agent program that does what a test tells it, above all what agents should not do.

`python -m tests.support.scripted_agent SCRIPT …` runs the JSON list SCRIPT, one object a step, and
ignores further arguments, so it can stand where claude stands. `scripted` builds the Program.

    {"say": TEXT}            an assistant's text            {"event": {...}}     any event
    {"tool": COMMAND}        a tool call that runs it        {"raw": TEXT}        bytes as they are
    {"done": TEXT}           a successful result             {"flood": BYTES}     one long line
    {"prompt": true}         read one line of input          {"stderr": TEXT}
    {"echo": true}           read it, say how long it was    {"sleep": SECONDS}
    {"spawn": COMMAND}       start it and do not wait        {"ignore": "SIGTERM"}
    {"close": "stdout"}                                      {"exit": CODE}
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from daemon.agents.contract import Program

ROOT = Path(__file__).resolve().parents[2]
SESSION = "5c5c5c5c-0000-4000-8000-000000000001"


def scripted(*steps: dict[str, Any], provider: str = "claude") -> Program:
    """Return a program that takes these steps."""
    arguments = ("-P", "-m", "tests.support.scripted_agent", json.dumps(steps))
    return Program(provider=provider, path=sys.executable, version="scripted", args=arguments)


def environment(task_id: str) -> dict[str, str]:
    """Return an environment in which it can be started, as root too."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(ROOT),
        "IS_SANDBOX": "1",
        "MULTICA_TASK_ID": task_id,
    }


def _write(event: dict[str, Any]) -> None:
    print(json.dumps({"session_id": SESSION, **event}), flush=True)


def _assistant(block: dict[str, Any], number: int) -> None:
    _write({"type": "assistant", "message": {"id": f"m{number}", "content": [block]}})


def _tool(command: str, number: int) -> None:
    identity = f"t{number}"
    _assistant(
        {"type": "tool_use", "id": identity, "name": "Bash", "input": {"command": command}}, number
    )
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, check=False,
        start_new_session=True,
    )  # fmt: skip
    block = {"type": "tool_result", "tool_use_id": identity, "content": done.stdout}
    _write({"type": "user", "message": {"content": [block]}})


def _take(step: dict[str, Any], number: int) -> None:
    match step:
        case {"say": text}:
            _assistant({"type": "text", "text": text}, number)
        case {"tool": command}:
            _tool(command, number)
        case {"done": text}:
            _write({"type": "result", "subtype": "success", "is_error": False, "result": text})
        case {"event": event}:
            _write(event)
        case {"raw": text}:
            sys.stdout.write(text)
            sys.stdout.flush()
        case {"flood": size}:
            for _ in range(size // 65536 + 1):
                sys.stdout.write("x" * 65536)
            print(flush=True)
        case {"prompt": _}:
            sys.stdin.readline()
        case {"echo": _}:
            _assistant({"type": "text", "text": str(len(sys.stdin.readline()))}, number)
        case {"stderr": text}:
            sys.stderr.write(text)
            sys.stderr.flush()
        case {"sleep": seconds}:
            time.sleep(seconds)
        case {"spawn": command}:
            subprocess.Popen(["/bin/sh", "-c", command])
        case {"ignore": name}:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        case {"close": "stdout"}:
            os.close(1)
        case {"exit": code}:
            os._exit(code)
        case _:
            raise ValueError(f"no such step: {step}")


def main() -> None:
    _write({"type": "system", "subtype": "init", "model": "scripted"})
    for number, step in enumerate(json.loads(sys.argv[1])):
        _take(step, number)


if __name__ == "__main__":
    main()
