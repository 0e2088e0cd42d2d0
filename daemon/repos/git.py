"""Run git: each process with a deadline, a clean environment, and nobody left behind.

Called by whoever needs a repository. Nothing here ever asks a person for a password, and no hook of
a repository runs. Short commands run in a process group of their own. Those that talk to a network
or run a repository's filters get a warden (`daemon.agents.warden`), so that helpers which leave the
group, and commands whose daemon was killed, end as well. A command that is cut is asked first, so
that it takes its lock files away. It ends with its output or as a GitError.

Git runs in the clones, which are the daemon's, and in git directories made for one purpose
(`daemon.repos.mirror`); never with the configuration of a repository that an agent writes. For
clones, which agents of an unguarded machine or an older version could write, what git would run
because of a setting counts only as far as the user's own configuration says the same.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

import attrs
import trio

from daemon.agents import warden
from daemon.repos.access import Access
from daemon.repos.names import without_credentials

LOCAL: Final = 30.0
FETCH: Final = 120.0
TREE: Final = 240.0
"""Seconds for filling a worktree or saving one: filters may run for every file."""
CLONE: Final = 1800.0
GC: Final = 600.0

_OUTPUT: Final = 64 * 1024 * 1024
_STDERR: Final = 4096
_ASK: Final = 2.0
"""Seconds a command that is cut gets to remove its lock files and half-made packs."""
_BURY: Final = 3.0
_STRAY: Final = 0.5
"""Seconds the pipes are read after git has ended: a stray helper may hold them open for ever."""

_QUIET: Final = {
    "LC_ALL": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "SSH_ASKPASS": "",
    "SSH_ASKPASS_REQUIRE": "never",
    "GCM_INTERACTIVE": "never",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_EDITOR": "true",
    "GIT_PAGER": "cat",
}

_SETTINGS: Final = (
    ("safe.directory", "*"),
    ("core.fsmonitor", "false"),
    ("core.hooksPath", os.devnull),  # agents write hooks; they are for agents
    ("submodule.recurse", "false"),  # what is in a submodule is not ours to reset
    ("fetch.recurseSubmodules", "false"),
    ("diff.ignoreSubmodules", "dirty"),  # looking into one starts a git that does not know this
    ("protocol.ext.allow", "never"),
    ("gc.auto", "0"),  # it would go on in the background
    ("maintenance.auto", "false"),
    ("advice.detachedHead", "false"),
)

_RUNS: Final = re.compile(
    r"filter\..*\.(clean|smudge|process|required)|credential\.(.*\.)?helper|core\.sshcommand",
    re.DOTALL,
)
"""Settings that make git run something in a guarded command, as git writes their names."""

_NOTHING: Final = {"required": "false", "sshcommand": "ssh"}
"""What they are without a value; "" but for these."""

_SOMEBODY: Final = {
    "GIT_AUTHOR_NAME": "Bullpen",
    "GIT_AUTHOR_EMAIL": "bullpen@localhost",
    "GIT_COMMITTER_NAME": "Bullpen",
    "GIT_COMMITTER_EMAIL": "bullpen@localhost",
}

_DROPPED: Final = ("BULLPEN_", "MULTICA_")

_REFUSED: Final = re.compile(
    # another repository, index, work tree or set of objects than the one git is run for
    r"GIT_(DIR|WORK_TREE|COMMON_DIR|INDEX_FILE|INDEX_VERSION|OBJECT_DIRECTORY|NAMESPACE|PREFIX"
    r"|ALTERNATE_OBJECT_DIRECTORIES|SHALLOW_FILE|GRAFT_FILE|REPLACE_REF_BASE|NO_REPLACE_OBJECTS"
    r"|IMPLICIT_WORK_TREE|INTERNAL_SUPER_PREFIX|REF_STORAGE|REFERENCE_BACKEND|DEFAULT_HASH"
    r"|DEFAULT_REF_FORMAT|QUARANTINE_PATH|CEILING_DIRECTORIES|DISCOVERY_ACROSS_FILESYSTEM"
    r"|ATTR_SOURCE|ATTR_NOSYSTEM"
    # settings of one command of somebody else's; who started the daemon from a hook has them
    r"|CONFIG|CONFIG_PARAMETERS|INTERNAL_GETTEXT_TEST_FALLBACKS|REFLOG_ACTION|PUSH_OPTION_.*"
    # how paths are read: `:(literal)` must mean that
    r"|LITERAL_PATHSPECS|GLOB_PATHSPECS|NOGLOB_PATHSPECS|ICASE_PATHSPECS"
    # programs that ask, show or edit: nobody sits there
    r"|ASKPASS|EDITOR|SEQUENCE_EDITOR|PAGER|PAGER_IN_USE|EXTERNAL_DIFF|DIFF_OPTS"
    # whose name a commit gets is said for each command
    r"|AUTHOR_.*|COMMITTER_.*"
    # traces tell addresses and headers, passwords too, and `redact` can be switched off
    r"|TRACE.*|CURL_VERBOSE|REDACT_.*|TR2_.*)"
)
"""Git's variables that would point it elsewhere or let it say too much; all others are the user's
switches and count, such as those for proxies, certificates, ssh and large files."""


class GitError(Exception):
    """Git refused or took too long; the text is what it said, without credentials."""

    def __init__(self, text: str, *, code: int | None = None) -> None:
        super().__init__(without_credentials(text))
        self.code = code


def git_environment(base: Mapping[str, str]) -> dict[str, str]:
    """What git gets: the daemon's environment less its secrets and what misleads git; no questions."""
    env = {
        name: value
        for name, value in base.items()
        if not name.startswith(_DROPPED) and not _REFUSED.fullmatch(name)
    }
    return configured(env, _SETTINGS) | _QUIET


@attrs.frozen(kw_only=True)
class Git:
    """The git of this machine; `env` is the whole environment of its processes."""

    env: Mapping[str, str] = attrs.field(repr=False)

    async def clone(
        self,
        clone: Path,
        *args: str,
        deadline: float = LOCAL,
        guarded: bool = False,
        access: Access | None = None,
    ) -> str:
        """Run in a bare clone; returns standard output. Raises GitError."""
        env = {**self.env, **_SOMEBODY, "GIT_DIR": str(clone)}
        if guarded:
            env = await _with_the_users_own(clone, env)
        env = _with_access(env, access)
        return await _run(args, clone, env, deadline=deadline, guarded=guarded)

    async def at(
        self,
        git_dir: Path,
        *args: str,
        tree: Path | None = None,
        deadline: float = LOCAL,
        guarded: bool = False,
        env: Mapping[str, str] = MappingProxyType({}),
        access: Access | None = None,
    ) -> str:
        """Run with a git directory that only the daemon writes, on a work tree if one is given.

        Whatever is in the tree, git reads no configuration but that directory's and the user's.
        Raises GitError.
        """
        all_of_it = {**self.env, **_SOMEBODY, "GIT_DIR": str(git_dir), **env}
        if tree is not None:
            all_of_it["GIT_WORK_TREE"] = str(tree)
        all_of_it = _with_access(all_of_it, access)
        return await _run(args, tree or git_dir, all_of_it, deadline=deadline, guarded=guarded)

    async def try_at(
        self, git_dir: Path, *args: str, tree: Path | None = None, guarded: bool = False
    ) -> str | None:
        """As `at`; None when git says no."""
        try:
            return await self.at(git_dir, *args, tree=tree, guarded=guarded)
        except GitError:
            return None

    async def try_clone(self, clone: Path, *args: str, deadline: float = LOCAL) -> str | None:
        """As `clone`; None when git says no."""
        try:
            return await self.clone(clone, *args, deadline=deadline)
        except GitError:
            return None


async def _with_the_users_own(place: Path, env: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a repository's settings that run something are the user's again."""
    words = ("config", "--list", "-z", "--show-scope")
    told = await _run(words, place, env, deadline=LOCAL, guarded=False)
    theirs: set[str] = set()
    users: dict[str, list[str]] = {}
    fields = told.split("\0")
    for scope, setting in zip(fields[::2], fields[1::2], strict=False):
        name, _, value = setting.partition("\n")
        if _RUNS.fullmatch(name):
            if scope in ("local", "worktree"):
                theirs.add(name)
            else:
                users.setdefault(name, []).append(value)
    settings: list[tuple[str, str]] = []
    for name in sorted(theirs):
        values = users.get(name, [])
        if name.endswith(".helper"):
            settings += [(name, ""), *((name, value) for value in values)]  # "" empties the list
        else:
            settings.append((name, values[-1] if values else _NOTHING.get(_last(name), "")))
    return configured(env, settings)


def _with_access(env: dict[str, str], access: Access | None) -> dict[str, str]:
    if access is None:
        return env
    return {**configured(env, access.settings), **access.variables}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def configured(env: Mapping[str, str], settings: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Add settings that beat those of every file."""
    try:
        count = int(env.get("GIT_CONFIG_COUNT", "0"))
    except ValueError:
        count = 0
    added = dict(env)
    for number, (name, value) in enumerate(settings, count):
        added[f"GIT_CONFIG_KEY_{number}"], added[f"GIT_CONFIG_VALUE_{number}"] = name, value
    return added | {"GIT_CONFIG_COUNT": str(count + len(settings))}


async def _run(
    args: tuple[str, ...],
    cwd: Path,
    env: Mapping[str, str],
    *,
    deadline: float,
    guarded: bool,
    stdin: bytes = b"",
) -> str:
    what = next((arg for arg in args if not arg.startswith("-")), "")
    try:
        child = await _start(("git", *args), cwd, env, guarded=guarded)
    except OSError as error:
        raise GitError(f"git cannot be run: {error}") from error
    output, errors = bytearray(), bytearray()
    code: int | None = None
    try:
        with trio.move_on_after(deadline):
            async with trio.open_nursery() as streams:
                streams.start_soon(_write, child.process, stdin)
                streams.start_soon(_read, child.process.stdout, output, _OUTPUT)
                streams.start_soon(_read_end, child.process.stderr, errors)
                code = await child.wait()
                streams.cancel_scope.deadline = trio.current_time() + _STRAY
    finally:
        if code is None:
            child.ask()
            with trio.move_on_after(_ASK, shield=True):
                await child.process.wait()
        child.kill()
        with trio.move_on_after(_BURY, shield=True):
            await child.bury()
    said = errors.decode("utf-8", "replace").strip()
    if code is None:
        raise GitError(f"git {what} took longer than {deadline:g} s")
    if code:
        raise GitError(f"git {what}: {said or f'exit {code}'}", code=code)
    if len(output) >= _OUTPUT:
        raise GitError(f"git {what} said too much")
    return output.decode("utf-8", "surrogateescape")


@attrs.define(eq=False)
class _Child:
    """One process of git's; with a warden, `process` is that, and `control` reaches it."""

    process: trio.Process
    control: socket.socket | None

    async def wait(self) -> int:
        """Wait for the end; the exit code is git's own."""
        code = await self.process.wait()
        if self.control is None:
            return code
        report = b""
        with suppress(OSError):
            while part := self.control.recv(64):
                report += part
        last = report.strip().rpartition(b"\n")[2]
        if last[:1] == b"X":
            raise GitError(f"git cannot be run: {os.strerror(int(last[1:]))}")
        return int(last[1:]) if last[:1] == b"E" else -signal.SIGKILL

    def ask(self) -> None:
        """Send SIGTERM to git and its helpers."""
        if self.control is not None:
            with suppress(OSError):
                self.control.send(b"T")
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.control is not None:
            with suppress(OSError):
                self.control.send(b"K")
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    async def bury(self) -> None:
        """Wait for the end and close the pipes; at the caller's deadline a warden goes as well."""
        try:
            await self.process.wait()
        finally:
            if self.process.returncode is None:
                self.process.kill()
            if self.control is not None:
                self.control.close()
            # no await: past the deadline the first one would leave the other pipes open
            for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
                if isinstance(stream, trio.lowlevel.FdStream):
                    stream.close()


async def _start(
    argv: tuple[str, ...], cwd: Path, env: Mapping[str, str], *, guarded: bool
) -> _Child:
    ours = theirs = None
    if guarded:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        program = (sys.executable, "-I", "-S", warden.__file__, str(theirs.fileno()))
        argv = (*program, *argv)
    try:
        process = await trio.lowlevel.open_process(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=dict(env),
            start_new_session=True,
            pass_fds=(theirs.fileno(),) if theirs is not None else (),
        )
    except BaseException:
        if ours is not None:
            ours.close()
        raise
    finally:
        if theirs is not None:
            theirs.close()
    return _Child(process, ours)


async def _write(process: trio.Process, data: bytes) -> None:
    assert process.stdin is not None
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        if data:
            await process.stdin.send_all(data)
    await process.stdin.aclose()


async def _read(stream: trio.abc.ReceiveStream | None, output: bytearray, limit: int) -> None:
    assert stream is not None
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while len(output) < limit and (data := await stream.receive_some(64 * 1024)):
            output += data


async def _read_end(stream: trio.abc.ReceiveStream | None, output: bytearray) -> None:
    assert stream is not None
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await stream.receive_some(64 * 1024):
            output += data
            del output[:-_STDERR]
