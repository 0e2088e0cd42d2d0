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
    {"open_for": SECONDS}    wait; end at once if standard input is closed meanwhile, as claude
                             does with work in the background

`install` writes a program that takes the steps a file holds when it is started.
"""

from __future__ import annotations

import json
import os
import select
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


def install(folder: Path) -> tuple[Path, Path]:
    """Write a program that says it is claude; return it, and the file its steps are read from."""
    folder.mkdir(parents=True)
    program, steps = folder / "claude", folder / "steps.json"
    program.write_text(
        f"#!{sys.executable} -P\n"
        "import sys\n"
        "if '--version' in sys.argv:\n"
        "    print('2.1.0 (Claude Code)')\n"
        "    raise SystemExit\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"sys.argv = ['claude', open({str(steps)!r}).read()]\n"
        "from tests.support.scripted_agent import main\n"
        "main()\n"
    )
    program.chmod(0o755)
    steps.write_text("[]")
    return program, steps


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
            sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
            sys.stdout.buffer.flush()
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
        case {"open_for": seconds}:
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                if select.select([0], [], [], left)[0] and not os.read(0, 65536):
                    os._exit(0)
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
