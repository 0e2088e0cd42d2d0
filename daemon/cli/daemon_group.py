"""`bullpen daemon …`: start, stop and look at this machine's daemon (spec 03 §2).

The daemon tells where it listens in its file; everything here asks it there. Starting watches the
child it started, so that a daemon that cannot run is reported at once with what it said.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import attrs
import click

from daemon.cli.disk_usage import disk_usage
from daemon.cli.errors import UNREACHABLE, CliError
from daemon.cli.output import notice, output_option, print_fields, print_json
from daemon.cli.settings import Settings
from shared.home import Home

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

PROBE: Final = 2.0
"""Seconds the daemon may take to answer."""

READY: Final = 45.0
"""Seconds a start waits for the daemon to have registered (spec 03 §30)."""

SETTLE: Final = 3.0
"""Seconds a start listens to a daemon that says it cannot work yet, before it reports that."""

STOPPED: Final = 20.0
"""Seconds a stop waits: the default grace of 10 s, the reports after it, and goodbye."""

LOOK: Final = 0.2

_FLAGS: Final = (
    ("--daemon-id", "BULLPEN_DAEMON_ID", "ID", "Register as this daemon."),
    ("--device-name", "BULLPEN_DAEMON_DEVICE_NAME", "NAME", "How this machine is called."),
    ("--poll-interval", "BULLPEN_DAEMON_POLL_INTERVAL", "TIME", "How often to ask for work."),
    ("--heartbeat-interval", "BULLPEN_DAEMON_HEARTBEAT_INTERVAL", "TIME", "How often to beat."),
    (
        "--agent-timeout",
        "BULLPEN_AGENT_TIMEOUT",
        "TIME",
        "Longest run of an agent; 0 for no limit.",
    ),
    (
        "--codex-semantic-inactivity-timeout",
        "BULLPEN_CODEX_SEMANTIC_INACTIVITY_TIMEOUT",
        "TIME",
        "Longest time without progress that Codex is given.",
    ),
    ("--max-concurrent-tasks", "BULLPEN_DAEMON_MAX_CONCURRENT_TASKS", "N", "Tasks at a time."),
    ("--agents", "BULLPEN_AGENTS", "NAMES", "Only these agent programs, comma separated."),
)
"""Option, the variable it overrides, placeholder, help."""


def _overrides(command: Decorated) -> Decorated:
    """Add the options that override the daemon's settings; they reach it as `given`."""
    for option, variable, metavar, told in reversed(_FLAGS):
        command = click.option(option, variable, metavar=metavar, help=told)(command)
    return command


@click.group()
def daemon() -> None:
    """Run this machine's daemon: it fetches tasks and runs agents."""


@daemon.command()
@click.option("--foreground", is_flag=True, help="Run in this terminal.")
@_overrides
@click.pass_obj
def start(settings: Settings, /, foreground: bool, **given: str | None) -> None:
    """Start the daemon, detached from this terminal."""
    env = _environment(settings, given)
    if foreground:
        sys.exit(subprocess.call(_command(settings), env=env))
    _start(settings, env)


@daemon.command()
@click.pass_obj
def stop(settings: Settings) -> None:
    """Stop the daemon; tasks get a few seconds to end."""
    _stop(settings)


@daemon.command()
@_overrides
@click.pass_obj
def restart(settings: Settings, /, **given: str | None) -> None:
    """Stop the daemon if it runs, then start it."""
    env = _environment(settings, given)
    if not _stop(settings):
        raise CliError("the old daemon is still finishing a task; try again when it has ended")
    _start(settings, env)


@daemon.command()
@output_option("table")
@click.pass_obj
def status(settings: Settings, output: str) -> None:
    """Show whether the daemon runs and what it does."""
    running = _find(settings.home)
    if output == "json":
        print_json(running.health if running else {"status": "stopped"})
        return
    if running is None:
        click.echo("The daemon is stopped.")
        return
    health = running.health
    if health["status"] != "running":
        click.echo(f"The daemon is {health['status']} (pid {running.pid}).")
        if health.get("problem"):
            click.echo(f"Problem: {health['problem']}")
        return
    name = f"Daemon [{settings.profile}]" if settings.profile else "Daemon"
    workspaces = health.get("workspaces")
    print_fields(
        [
            (name, f"running (pid {running.pid}, up {health.get('uptime', '?')})"),
            ("Version", health.get("cli_version")),
            ("Agents", ", ".join(health.get("agents") or [])),
            ("Workspaces", str(len(workspaces)) if isinstance(workspaces, list) else ""),
            ("Tasks", str(health.get("active_task_count", ""))),
            ("Problem", health.get("problem")),
        ]
    )


@daemon.command()
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True)
@click.pass_obj
def logs(settings: Settings, follow: bool, lines: int) -> None:
    """Print the end of the daemon's log."""
    path = _log_file(settings.home)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise CliError(f"there is no log yet at {path}") from None
    with file:
        _write(tail(file, lines))
        while follow:
            more = file.read()
            if more:
                _write(more)
            elif _was_cut(file):
                file.seek(0)
            else:
                time.sleep(LOOK)


daemon.add_command(disk_usage)


# -- the running daemon


@attrs.frozen(kw_only=True)
class Running:
    """A daemon that answered. `health` is its answer as it came."""

    pid: int
    port: int
    secret: str = attrs.field(repr=False)
    health: dict[str, Any]


def _find(home: Home, timeout: float = PROBE) -> Running | None:
    """Ask the daemon of this home; None if nobody answers as it would."""
    try:
        told = json.loads(home.daemon_file.read_bytes())
        port, secret = int(told["port"]), str(told["secret"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    health = _ask("GET", port, "/health", timeout)
    if not isinstance(health, dict) or not isinstance(health.get("status"), str):
        return None
    if health.get("pid") != told.get("pid"):  # somebody else has the port now
        return None
    return Running(pid=int(told["pid"]), port=port, secret=secret, health=health)


def _ask(method: str, port: int, path: str, timeout: float, secret: str = "") -> Any:
    """One request over loopback, never through a proxy; None for any failure."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read(1 << 20)
        return json.loads(body) if answer.status < 300 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _start(settings: Settings, env: Mapping[str, str]) -> None:
    running = _find(settings.home)
    if running is not None:
        raise CliError(
            f"the daemon is already running (pid {running.pid}); to replace it: "
            "bullpen daemon restart"
        )
    path = _log_file(settings.home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        begin = log.tell()
        child = subprocess.Popen(
            _command(settings),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    label = f" [{settings.profile}]" if settings.profile else ""
    health: dict[str, Any] = {}
    deadline = time.monotonic() + READY
    problem_since: float | None = None
    while time.monotonic() < deadline:
        code = child.poll()
        if code is not None:
            raise CliError(f"the daemon did not start (exit {code}):\n{_said(path, begin)}")
        running = _find(settings.home)
        health = running.health if running and running.pid == child.pid else {}
        if health.get("status") == "running":
            notice(f"Daemon{label} started (pid {child.pid}, version {health['cli_version']}).")
            notice(f"Log: {path}")
            return
        if health.get("problem"):
            problem_since = problem_since or time.monotonic()
            if time.monotonic() - problem_since > SETTLE:
                break
        time.sleep(LOOK)
    why = health.get("problem") or ("it is still starting" if health else "it does not answer yet")
    notice(f"Daemon{label} started (pid {child.pid}) but is not ready: {why}.")
    notice(f"Log: {path}")


def _stop(settings: Settings) -> bool:
    """Stop the daemon if it runs; False if it had not ended in time."""
    running = _find(settings.home)
    if running is None:
        notice("The daemon is not running.")
        return True
    notice(f"Stopping the daemon (pid {running.pid}) …")
    answer = _ask("POST", running.port, "/shutdown", PROBE, running.secret)
    if answer is None:
        notice("It did not take the request; sending it a signal.")
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOPPED
    while time.monotonic() < deadline:
        time.sleep(LOOK)
        if _find(settings.home, 1.0) is None:
            notice("The daemon has stopped.")
            return True
    notice("The daemon has not ended yet; it may be finishing a task.")
    return False


def _command(settings: Settings) -> list[str]:
    command = [sys.executable, "-P", "-m", "daemon", "--home", str(settings.home.base)]
    return [*command, "--profile", settings.profile] if settings.profile else command


def _environment(settings: Settings, given: Mapping[str, str | None]) -> dict[str, str]:
    """The daemon's environment: ours, with what the command line said on top."""
    if settings.agent_context:
        raise CliError("an agent cannot manage the daemon it runs under", UNREACHABLE)
    env = {key: value for key, value in settings.env.items() if key != "BULLPEN_PARENT_PID"}
    env |= {key.upper(): value for key, value in given.items() if value is not None}
    if settings.flag_server_url:
        env["BULLPEN_SERVER_URL"] = settings.flag_server_url
    if settings.flag_debug:
        env["BULLPEN_LOG_LEVEL"] = "debug"
    return env


# -- its log


def _log_file(home: Home) -> Path:
    return home.logs / "daemon.log"


def tail(file: IO[bytes], lines: int) -> bytes:
    """Return the last `lines` lines of a file and leave it at its end."""
    end = position = file.seek(0, os.SEEK_END)
    kept = b""
    while position > 0 and kept.count(b"\n") <= lines:
        step = min(64 * 1024, position)
        position -= step
        file.seek(position)
        kept = file.read(step) + kept
    file.seek(end)
    return b"".join(kept.splitlines(keepends=True)[-lines:]) if lines else b""


def _said(path: Path, begin: int) -> str:
    """What a child that ended said, as far as it helps: its last lines."""
    with path.open("rb") as file:
        file.seek(begin)
        text = file.read(256 * 1024).decode("utf-8", "replace").strip()
    return "\n".join(text.splitlines()[-15:]) or f"it said nothing; see {path}"


def _was_cut(file: IO[bytes]) -> bool:
    """Whether the file is shorter than what was read of it: somebody emptied it."""
    return os.fstat(file.fileno()).st_size < file.tell()


def _write(data: bytes) -> None:
    stream = sys.stdout.buffer
    stream.write(data)
    stream.flush()
