"""Find the agent programs of this machine (spec 03 §3.5, §3.6).

Woken by the daemon at start and every minute. Programs are looked up in the PATH, then, for those
still missing, in what the user's login shell would find; each is asked for its version, a few at a
time and with a deadline, so that one that hangs delays nobody for long. It owns the version cache,
keyed by the file and its age, so that a look that finds nothing changed starts no program; one that
did not answer is asked again after some minutes. It ends within about 30 s whatever it meets.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from daemon.agents.contract import AgentError, Program
from daemon.agents.launch import DRIVERS, demo_program
from daemon.agents.models import run_command
from daemon.agents.providers import (
    DEMO,
    PROVIDERS,
    Provider,
    chosen_command,
    is_pinned,
    parse_version,
    too_old,
)

log = structlog.get_logger(__name__)

_PROBE_LIMIT: Final = 10.0
_PROBES: Final = 8
"""Programs asked at a time: most start an interpreter of their own, and a small machine would make
every one of them late."""

_ASK_AGAIN: Final = 300.0
"""Seconds until a program is asked again that did not answer: it may have been the machine."""

_SHELL_LIMIT: Final = 3.0
_SHELLS: Final = frozenset({"bash", "zsh", "sh", "dash", "ksh"})
_OUTPUT_LIMIT: Final = 64 * 1024

_File = tuple[str, int, int]  # path, mtime_ns, size
_cache: dict[_File, str] = {}  # what it answered
_silent: dict[_File, float] = {}  # until when it is not asked
_warned: set[tuple[str, ...]] = set()


def _warn_once(event: str, **about: str) -> None:
    """Warn of what every look would find again."""
    key = (event, *about.values())
    if key not in _warned:
        _warned.add(key)
        log.warning(event, **about)


# One line "name<TAB>path" for each command the shell would run, aliases and functions aside.
_SHELL_SCRIPT: Final = """
for name in {names}; do
  unalias "$name" 2>/dev/null
  unset -f "$name" 2>/dev/null
  found=$(command -v "$name" 2>/dev/null) || continue
  case "$found" in
    /*) dir=$(cd "$(dirname "$found")" 2>/dev/null && pwd -P) || continue
        printf '%s\\t%s/%s\\n' "$name" "$dir" "$(basename "$found")" ;;
  esac
done
true
"""


async def discover(wanted: Collection[str] | None, env: Mapping[str, str]) -> list[Program]:
    """Return the programs that can be offered, in the order of the provider table.

    `wanted` limits the providers; None means all that have a driver, except the demo. Names in
    `wanted` that cannot be served are logged. Never raises for what a program does.
    """
    names = [name for name in DRIVERS if name != DEMO] if wanted is None else list(wanted)
    for name in names:
        if name not in DRIVERS:
            _warn_once("no driver for this agent program", provider=name)
    providers = [p for p in PROVIDERS.values() if p.name in names and p.name in DRIVERS]
    found = await _locate([p for p in providers if p.name != DEMO], env)
    programs: dict[str, Program] = {}
    limit = trio.CapacityLimiter(_PROBES)

    async def probe(provider: Provider, path: str) -> None:
        async with limit:
            program = await _probe(provider, path, env)
        if program is not None:
            programs[provider.name] = program

    async with trio.open_nursery() as probes:
        for provider in providers:
            if provider.name == DEMO:
                programs[DEMO] = demo_program()
            elif provider.name in found:
                probes.start_soon(probe, provider, found[provider.name])
    return [programs[p.name] for p in providers if p.name in programs]


async def _locate(providers: list[Provider], env: Mapping[str, str]) -> dict[str, str]:
    """Map the providers that are installed to absolute paths."""
    found: dict[str, str] = {}
    missing: list[Provider] = []
    for provider in providers:
        command = chosen_command(provider, env)
        path = _look_up(command, env)
        if path is not None:
            found[provider.name] = path
        elif is_pinned(command):
            _warn_once("agent program not found", provider=provider.name, path=command)
        elif provider.in_login_shell and command == provider.command:
            missing.append(provider)
    if missing:
        in_shell = await _ask_login_shell([p.command for p in missing], env)
        for provider in missing:
            path = in_shell.get(provider.command) or _first_runnable(provider.places)
            if path is not None:
                found[provider.name] = path
    return found


def _look_up(command: str, env: Mapping[str, str]) -> str | None:
    path = shutil.which(Path(command).expanduser(), path=env.get("PATH", os.defpath))
    return None if path is None else str(Path(path).absolute())  # links stay as they are


def _first_runnable(places: Collection[str]) -> str | None:
    paths = (Path(place).expanduser() for place in places)
    return next((str(path) for path in paths if os.access(path, os.X_OK)), None)


async def _ask_login_shell(commands: list[str], env: Mapping[str, str]) -> dict[str, str]:
    """Ask the user's shell, with its start-up files read, where commands are. Empty on trouble."""
    shell = env.get("SHELL", "")
    if Path(shell).name not in _SHELLS or not os.access(shell, os.X_OK):
        return {}
    script = _SHELL_SCRIPT.format(names=" ".join(commands))  # names of the table: plain words
    output = await _run([shell, "-ilc", script], env, limit=_SHELL_LIMIT)
    return parse_shell_answer(output or "", commands)


def parse_shell_answer(output: str, commands: Collection[str]) -> dict[str, str]:
    """Read the login shell's lines, ignoring what start-up files may have printed between."""
    answer: dict[str, str] = {}
    for line in output.splitlines():
        name, _, path = line.partition("\t")
        if name in commands and path.startswith("/") and os.access(path, os.X_OK):
            answer[name] = path
    return answer


async def _probe(provider: Provider, path: str, env: Mapping[str, str]) -> Program | None:
    try:
        output = await _version_output(path, env)
    except OSError as error:
        _warn_once("agent program vanished", provider=provider.name, path=path, error=str(error))
        return None
    if output is None:
        _warn_once("agent program does not tell its version", provider=provider.name, path=path)
        return None
    version, numbers = parse_version(output)
    if too_old(provider, numbers):
        minimum = ".".join(map(str, provider.minimum or ()))
        _warn_once(
            "agent program is below the minimum supported version",
            provider=provider.name,
            version=version,
            minimum=minimum,
        )
        return None
    return Program(provider=provider.name, path=path, version=version)


_Ask = Callable[[str, Mapping[str, str]], Awaitable[str | None]]


async def _asked_plainly(path: str, env: Mapping[str, str]) -> str | None:
    return await _run([path, "--version"], env, limit=_PROBE_LIMIT)


async def _asked_isolated(path: str, env: Mapping[str, str]) -> str | None:
    """What a program says that a server has named: it may be one that an agent has written."""
    program = Program(provider=Path(path).name, path=path, version="")
    try:
        return await run_command(program, ["--version"], env, limit=_PROBE_LIMIT)
    except AgentError as error:
        log.debug("a program does not tell its version", path=path, error=str(error))
        return None


async def _version_output(
    path: str, env: Mapping[str, str], ask: _Ask = _asked_plainly
) -> str | None:
    """What a program says to `--version`, asked once as long as its file stays the same.

    None if it does not say. Raises OSError if it is not there.
    """
    stat = await trio.Path(path).stat()
    key = (path, stat.st_mtime_ns, stat.st_size)
    if key not in _cache:
        if trio.current_time() < _silent.get(key, 0.0):
            return None
        output = await ask(path, env)
        if output is None:
            _silent[key] = trio.current_time() + _ASK_AGAIN
            return None
        _cache[key] = output
    return _cache[key]


async def find_version(path: str, env: Mapping[str, str]) -> str:
    """Return what to show as a profile's program's version, "" if it does not tell; at most 10 s."""
    try:
        output = await _version_output(path, env, _asked_isolated)
    except OSError:
        return ""
    return "" if output is None else parse_version(output)[0]


async def _run(argv: list[str], env: Mapping[str, str], *, limit: float) -> str | None:
    """Return a short command's standard output; None when it fails, hangs or cannot be run.

    Its whole group is killed in the end: start-up files leave things running that hold the pipe.
    """
    try:
        process = await trio.lowlevel.open_process(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(env),
            start_new_session=True,
        )
    except OSError as error:
        log.debug("cannot run", program=argv[0], error=str(error))
        return None
    assert process.stdout is not None
    output = bytearray()
    code: int | None = None
    try:
        with trio.move_on_after(limit):
            async with trio.open_nursery() as reading:
                reading.start_soon(_collect, process.stdout, output)
                code = await process.wait()
                # What it wrote is in the pipe by now; a stray child may hold it open for ever.
                reading.cancel_scope.deadline = trio.current_time() + 0.5
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.move_on_after(2.0, shield=True):
            await process.wait()
            await process.stdout.aclose()
    return output.decode("utf-8", "replace") if code == 0 else None


async def _collect(stream: trio.abc.ReceiveStream, output: bytearray) -> None:
    while len(output) < _OUTPUT_LIMIT:
        data = await stream.receive_some(_OUTPUT_LIMIT)
        if not data:
            return
        output += data
