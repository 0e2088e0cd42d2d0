"""`bullpen daemon …`: start, stop and look at this machine's daemon (spec 03 §2).

The daemon tells where it listens in its file; everything here asks it there. Starting watches the
child it started, so that a daemon that cannot run is reported at once with what it said. A restart
first shows that a start would succeed, then waits until no task is left. Where the daemon is
installed as a service, its manager starts it, so that there is never one beside the other.
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

from daemon.cli.allow_dir import allow_dir
from daemon.cli.disk_usage import disk_usage
from daemon.cli.errors import UNREACHABLE, CliError
from daemon.cli.groups import Group
from daemon.cli.output import notice, output_option, print_fields, print_json
from daemon.cli.service import Manager, ServiceError, find_manager
from daemon.cli.settings import Settings
from shared.home import OURS, Home, gather_secrets

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
    (
        "--runtime-name",
        "BULLPEN_AGENT_RUNTIME_NAME",
        "NAME",
        "What runtimes are called after, instead of the machine.",
    ),
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
    (
        "--auto-update-interval",
        "BULLPEN_DAEMON_AUTO_UPDATE_INTERVAL",
        "TIME",
        "How often to look for a new version.",
    ),
    ("--agents", "BULLPEN_AGENTS", "NAMES", "Only these agent programs, comma separated."),
)
"""Option, the variable it overrides, placeholder, help."""


def _overrides(command: Decorated) -> Decorated:
    """Add the options that override the daemon's settings; they reach it as `given`."""
    command = click.option(
        "--auto-update/--no-auto-update",
        "BULLPEN_DAEMON_AUTO_UPDATE",
        default=None,
        help="Whether to update Bullpen while no task runs.",
    )(command)
    for option, variable, metavar, told in reversed(_FLAGS):
        command = click.option(option, variable, metavar=metavar, help=told)(command)
    return command


@click.group(cls=Group)
def daemon() -> None:
    """Run this machine's daemon: it fetches tasks and runs agents."""


@daemon.command()
@click.option("--foreground", is_flag=True, help="Run in this terminal.")
@click.option("--check", is_flag=True, help="Only say whether it could start.")
@_overrides
@click.pass_obj
def start(settings: Settings, /, foreground: bool, check: bool, **given: str | bool | None) -> None:
    """Start the daemon, detached from this terminal; through its service if it has one."""
    env = _environment(settings, given)
    command = _command(settings)
    if check:
        sys.exit(subprocess.call([*command, "--check"], env=env))
    if foreground:
        # Ctrl-C reaches the daemon itself, and nobody above it loses patience with its grace.
        os.execve(command[0], command, env)  # noqa: S606
    manager = service_of(settings)
    if manager is None:
        launch(settings, env)
        return
    _refuse_flags(manager, given)
    _refuse_second(settings)
    through(settings, manager.start)


@daemon.command()
@click.pass_obj
def stop(settings: Settings) -> None:
    """Stop the daemon; tasks get a few seconds to end."""
    halt(settings)
    if up_pid(settings):
        notice("`bullpen up` runs it and starts it again; end that to stop both.")


@daemon.command()
@click.option("--force", is_flag=True, help="Do not wait for running tasks; they are cut.")
@_overrides
@click.pass_obj
def restart(settings: Settings, /, force: bool, **given: str | bool | None) -> None:
    """Start the daemon anew once no task is left; nothing new is begun meanwhile."""
    env = _environment(settings, given)
    manager = service_of(settings)
    above = up_pid(settings)
    if above and any(value is not None for value in given.values()):
        raise CliError(f"`bullpen up` (pid {above}) runs the daemon: use `bullpen config set`")
    if manager is not None:
        _refuse_flags(manager, given)
    prove(settings, env)
    if not force:
        drain(settings)
    if not halt(settings, quiet=not force):
        raise CliError("the old daemon is still finishing a task; try again when it has ended")
    if above:
        _tell_state(settings)  # `up` has seen the end and starts another
    elif manager is None:
        launch(settings, env)
    else:
        through(settings, manager.restart)


@daemon.command()
@_overrides
@click.pass_obj
def install(settings: Settings, /, **given: str | bool | None) -> None:
    """Run the daemon as a service of yours: from now on, and from every sign-in to this machine."""
    env = _environment(settings, given)
    refuse_up(settings)
    try:
        manager = find_manager(settings)
        manager.check()
    except ServiceError as error:
        raise CliError(str(error)) from error
    prove(settings, env)
    before = find_running(settings)
    try:
        drain(settings)
        if not halt(settings, quiet=True):
            raise CliError("the running daemon has not ended yet; try again when it has")
        begin = _log_size(settings.home)
        told = manager.install(_command(settings), env)
        manager.enable()
    except ServiceError as error:
        with contextlib.suppress(ServiceError):
            manager.uninstall()
        said = _said(_log_file(settings.home), begin)
        if before is not None:
            launch(settings, env)
        raise CliError(
            f"the service did not start, and is not installed: {error}\n{said}"
        ) from error
    notice(f"Installed {manager.file}")
    for line in told:
        notice(line)
    _tell_state(settings)
    for line in manager.hints():
        notice(line)


@daemon.command()
@click.pass_obj
def uninstall(settings: Settings) -> None:
    """Stop the service and remove it."""
    if settings.agent_context:
        raise CliError("an agent cannot manage the daemon it runs under", UNREACHABLE)
    try:
        manager = find_manager(settings)
        if not manager.is_installed:
            notice("The daemon is not installed as a service.")
            return
        manager.uninstall()
    except ServiceError as error:
        raise CliError(str(error)) from error
    notice(f"Removed {manager.file}")


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
            ("Service", health.get("service")),
            ("Stopping", "when no task is left" if health.get("draining") else ""),
            ("Isolation", _isolation(health)),
            ("Problem", health.get("problem")),
        ]
    )


def _isolation(health: Mapping[str, Any]) -> str | None:
    problem = health.get("isolation_problem")
    return f"none: {problem}" if problem else health.get("isolation")


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
daemon.add_command(allow_dir)


@daemon.command()
@click.option("--all", is_flag=True, required=True, expose_value=False, help="Any number of them.")
@click.pass_obj
def reclaim(settings: Settings) -> None:
    """Give directories back whose issue, chat or run the server does not show any more.

    Without this only a few go in each pass, since a server that was restored from a backup, or is
    the wrong one, knows nothing either. Work in them that is nowhere else is kept as always.
    """
    running = _find(settings.home)
    if running is None:
        raise CliError("the daemon does not run: bullpen daemon start")
    if _ask("POST", running.port, "/reclaim", PROBE, running.secret) is None:
        raise CliError(
            "the daemon does not know how to do that; restart it: bullpen daemon restart"
        )
    notice("The daemon reclaims now. What stays, and why: bullpen daemon disk-usage --by-task")


# -- the running daemon


@attrs.frozen(kw_only=True)
class Running:
    """A daemon that answered. `health` is its answer as it came."""

    pid: int
    port: int
    secret: str = attrs.field(repr=False)
    health: dict[str, Any]


def find_running(settings: Settings) -> Running | None:
    """The daemon of these settings' home, if it runs and answers."""
    return _find(settings.home)


def _find(home: Home, timeout: float = PROBE) -> Running | None:
    """Ask the daemon of this home; None if nobody answers as it would."""
    gather_secrets(home)  # a daemon of an earlier version may still run
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
    headers = {OURS: "1"} | ({"Authorization": f"Bearer {secret}"} if secret else {})
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read(1 << 20)
        return json.loads(body) if answer.status < 300 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _refuse_second(settings: Settings) -> None:
    running = _find(settings.home)
    if running is not None:
        raise CliError(
            f"the daemon is already running (pid {running.pid}); to replace it: "
            "bullpen daemon restart"
        )


def launch(settings: Settings, env: Mapping[str, str]) -> None:
    """Start a detached daemon and wait until it is ready or says why it is not.

    Raises CliError, with what it said last, if it ended or is neither in time.
    """
    _refuse_second(settings)
    path = _log_file(settings.home)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("ab")
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror}") from error
    with log:
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
            if health.get("isolation_problem"):
                notice(f"Warning: {health['isolation_problem']}.")
            return
        if health.get("problem"):
            problem_since = problem_since or time.monotonic()
            if time.monotonic() - problem_since > SETTLE:
                break
        time.sleep(LOOK)
    if not health.get("problem"):
        why = "is still starting" if health else "does not answer"
        raise CliError(
            f"the daemon{label} (pid {child.pid}) {why} after {READY:g} s; it goes on trying. "
            f"Its log ends with:\n{_said(path, begin)}"
        )
    notice(f"Daemon{label} started (pid {child.pid}) but is not ready: {health['problem']}.")
    notice(f"Log: {path}")


def prove(settings: Settings, env: Mapping[str, str]) -> None:
    """Show that a daemon could start with these settings. Raises CliError with what it says."""
    try:
        tried = subprocess.run(
            [*_command(settings), "--check"],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=READY,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CliError(f"trying whether the daemon can start took over {READY:g} s") from None
    if tried.returncode != 0:
        raise CliError(
            f"the daemon could not start, so nothing was changed:\n{tried.stderr.strip()}"
        )


def drain(settings: Settings) -> None:
    """Have the daemon end by itself once no task is left; return when it has, or does not run.

    A daemon of another version may not know how: it is left to be stopped. Interrupted, it is as if
    nothing had been asked. Raises CliError when the daemon decides otherwise meanwhile.
    """
    running = _find(settings.home)
    if running is None or _ask("POST", running.port, "/drain", PROBE, running.secret) is None:
        return
    left = -1
    try:
        while (now := _find(settings.home)) is not None and now.pid == running.pid:
            if now.health["status"] == "running" and not now.health.get("draining"):
                raise CliError("somebody else has told the daemon to go on")
            count = int(now.health.get("active_task_count") or 0)
            if count and count != left:
                tasks = "1 task" if count == 1 else f"{count} tasks"
                notice(f"Waiting for {tasks} to end; nothing new is begun (--force does not wait).")
                left = count
            time.sleep(LOOK)
    except KeyboardInterrupt:
        _ask("POST", running.port, "/resume", PROBE, running.secret)
        notice("The daemon goes on as before.")
        raise


def service_of(settings: Settings) -> Manager | None:
    """The manager that has this daemon as a service, if one has."""
    try:
        manager = find_manager(settings)
    except ServiceError:
        return None
    return manager if manager.is_installed else None


def up_pid(settings: Settings) -> int:
    """The `bullpen up` that runs this home's daemon and starts it again when it ends; 0 if none."""
    gather_secrets(settings.home)
    try:
        pid = int(json.loads(settings.home.up_file.read_bytes())["pid"])
        os.kill(pid, 0)
    except PermissionError:
        return pid
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return pid if pid != os.getpid() else 0


def refuse_up(settings: Settings) -> None:
    """Raise CliError while `bullpen up` runs server and daemon, restarting what ends."""
    pid = up_pid(settings)
    if pid:
        raise CliError(f"`bullpen up` is running (pid {pid}): end it first")


def _refuse_flags(manager: Manager, given: Mapping[str, str | bool | None]) -> None:
    if any(value is not None for value in given.values()):
        raise CliError(
            f"the daemon is a service ({manager.file}), which takes no flags from here: "
            "use `bullpen config set`, or install it again with the flags"
        )


def through(settings: Settings, act: Callable[[], None]) -> None:
    """Have the service manager do something and tell how the daemon is. Raises CliError."""
    begin = _log_size(settings.home)
    try:
        act()
    except ServiceError as error:
        raise CliError(f"{error}\n{_said(_log_file(settings.home), begin)}") from error
    _tell_state(settings)


def _tell_state(settings: Settings) -> None:
    """Say how the daemon is that a manager has just started; some do not wait for it."""
    deadline = time.monotonic() + READY
    while (running := _find(settings.home)) is None or (
        running.health["status"] == "starting" and not running.health.get("problem")
    ):
        if time.monotonic() > deadline:
            raise CliError(f"the daemon is not ready after {READY:g} s: bullpen daemon logs")
        time.sleep(LOOK)
    problem = running.health.get("problem")
    notice(f"Daemon started (pid {running.pid}){f', but: {problem}' if problem else '.'}")
    notice(f"Log: {_log_file(settings.home)}")


def halt(settings: Settings, *, quiet: bool = False) -> bool:
    """Stop the daemon if it runs; False if it had not ended in time."""
    running = _find(settings.home)
    if running is None:
        if not quiet:
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


def _environment(settings: Settings, given: Mapping[str, str | bool | None]) -> dict[str, str]:
    """The daemon's environment: ours, with what the command line said on top."""
    if settings.agent_context:
        raise CliError("an agent cannot manage the daemon it runs under", UNREACHABLE)
    of_one_start = {"BULLPEN_PARENT_PID", "BULLPEN_SERVICE", "BULLPEN_DAEMON_TRIAL"}
    env = {key: value for key, value in settings.env.items() if key not in of_one_start}
    env |= {key.upper(): str(value) for key, value in given.items() if value is not None}
    if settings.flag_server_url:
        env["BULLPEN_SERVER_URL"] = settings.flag_server_url
    if settings.flag_debug:
        env["BULLPEN_LOG_LEVEL"] = "debug"
    return env


# -- its log


def _log_file(home: Home) -> Path:
    return home.logs / "daemon.log"


def _log_size(home: Home) -> int:
    path = _log_file(home)
    return path.stat().st_size if path.exists() else 0


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
    if not path.exists():
        return f"there is no log at {path}"
    with path.open("rb") as file:
        file.seek(max(begin, path.stat().st_size - 256 * 1024))
        text = file.read().decode("utf-8", "replace").strip()
    return "\n".join(text.splitlines()[-15:]) or f"it said nothing; see {path}"


def _was_cut(file: IO[bytes]) -> bool:
    """Whether the file is shorter than what was read of it: somebody emptied it."""
    return os.fstat(file.fileno()).st_size < file.tell()


def _write(data: bytes) -> None:
    stream = sys.stdout.buffer
    stream.write(data)
    stream.flush()
