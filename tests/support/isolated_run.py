"""Run a command as an isolated agent of a made-up home, as whatever user this is.

`python -m tests.support.isolated_run BACKEND PLACE SCRIPT…` makes a home below PLACE with a marker in
each thing that agents must not see, and a task's directory; it runs each SCRIPT with /bin/sh there
and prints, as JSON, what each said and how it ended. BACKEND is bubblewrap, namespaces or none.
`hunt` is a script of its own kind: it looks for the marker by every path. `version` is none: it asks
two programs for their versions, one that everybody sees and one that an agent has written. AGENT_VARIABLES in the
environment, a JSON object, are variables that the agent's owner has set.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import trio

from daemon.agents import isolation
from daemon.agents.discovery import find_version
from daemon.agents.isolation import Isolation, View
from daemon.agents.process import Launch, open_process
from shared.home import Home

TASK = "33333333-3333-4333-8333-333333333333"
OTHER = "44444444-4444-4444-8444-444444444444"
WORKSPACE = "22222222-2222-4222-8222-222222222222"


def marker_of(place: Path) -> str:
    """The marker of what is below a place: no other run's, and in no file of ours."""
    return f"marker-{hashlib.sha256(str(place).encode()).hexdigest()[:16]}"


def make_home(place: Path) -> tuple[Home, Path]:
    """Make a home with the marker in everything hidden; return it and its workspaces root."""
    home = Home(place / "home")
    root = place / "elsewhere"
    task = root / WORKSPACE / TASK
    for folder in (task / "workdir", task / "tmp", root / ".repos" / WORKSPACE, home.root / "bin"):
        folder.mkdir(parents=True, exist_ok=True)
    (task / "workdir" / "mine").write_text("mine")
    other = root / WORKSPACE / OTHER
    for path in (
        home.config_file,
        home.up_file,
        home.daemon_file,
        home.session_secret,
        home.postgres_password,
        home.secrets / "machine.key",
        home.postgres / "base" / "1",
        home.journals / f"{OTHER}.jsonl",
        home.logs / "daemon.log",
        other / "workdir" / "file",
        other / "tmp" / "file",
        home.root / "anything" / "else",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.name} {marker_of(place)}\n")
    return home, root


async def run(argv: list[str], place: Path, home: Home, root: Path) -> dict[str, Any]:
    """Run a program as the task's agent; return its output, its end and how long a start takes."""
    task = root / WORKSPACE / TASK
    launch = Launch(
        label="test",
        argv=argv,
        cwd=task / "workdir",
        env={
            **os.environ,
            "HOME": os.environ.get("HOME", str(place)),
            **json.loads(os.environ.get("AGENT_VARIABLES", "{}")),
        },
        view=View(
            own=(task,),
            read_only=(home.root / "bin", root / ".repos" / WORKSPACE),
            tmp=task / "tmp",
        ),
    )
    lines = []
    began = time.perf_counter()
    with trio.fail_after(100):
        async with open_process(launch) as process:
            took = time.perf_counter() - began
            process.close_stdin()
            while (line := await process.receive_line()) is not None:
                lines.append(line.decode(errors="replace"))
            await process.wait()
    said = process.stderr_tail()
    return {"out": lines, "err": said, "code": process.exit_code, "took": took}


async def versions(place: Path, root: Path) -> list[str]:
    found = []
    for folder in (place, root / WORKSPACE / TASK / "workdir"):
        program = folder / "program"
        program.write_text(f"#!/bin/sh\ntouch {folder}/ran\necho 1.2.3\n")
        program.chmod(0o755)
        found.append(await find_version(str(program), os.environ))
    return found


async def main(backend: str, place: Path, scripts: list[str]) -> list[dict[str, Any]]:
    home, root = make_home(place)
    # A daemon of this user, whose environment and memory hold the marker too.
    neighbour = await trio.lowlevel.open_process(
        ["/bin/sleep", "90"], env={"BULLPEN_SECRET": marker_of(place)}
    )
    hidden = isolation.hidden_of(home, root)
    found = Isolation(
        backend=backend,  # type: ignore[arg-type]
        setting="auto",
        bubblewrap=shutil.which("bwrap") or "",
        hidden=hidden,
    )
    isolation.machine.set(found if backend != "none" else Isolation())
    results: list[dict[str, Any]] = []
    try:
        for script in scripts:
            if script == "version":
                results.append({"out": [await versions(place, root)]})
                continue
            argv = ["/bin/sh", "-c", script.replace("@NEIGHBOUR@", str(neighbour.pid))]
            if script == "hunt":
                hunter = str(Path(__file__).with_name("hunter.py"))
                argv = [sys.executable, "-I", hunter, marker_of(place)[::-1], str(place)]
            results.append(await run(argv, place, home, root))
    finally:
        neighbour.kill()
        with trio.move_on_after(10, shield=True):
            await neighbour.wait()
    return results


if __name__ == "__main__":
    print(json.dumps(trio.run(main, sys.argv[1], Path(sys.argv[2]), sys.argv[3:])))
