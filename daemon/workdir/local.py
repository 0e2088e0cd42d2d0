"""Working in a directory of the user's own: which one, whether it may be, where git excludes.

A project names it by a resource of type `local_directory` for this daemon (spec 03 §17). Nothing
here changes anything in it; what is put there and taken out again is in `borrowed.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import structlog
import trio

from daemon.workdir.brief import BRIEF_FILES
from daemon.workdir.errors import PrepareError
from shared import failure
from shared.ids import machine_key
from shared.wire.task import ClaimedTask

log = structlog.get_logger(__name__)

RESOURCE: Final = "local_directory"

GIT_WITHIN: Final = 10.0
"""Seconds git may take to say where it reads excludes: it only looks at a few files."""

_BANNED: Final = (
    "/",
    "/Users",
    "/Users/Shared",
    "/home",
    "/root",
    "/var",
    "/etc",
    "/tmp",  # noqa: S108
    "/usr",
    "/opt",
)
_WINDOWS: Final = (
    "C:\\Users",
    "C:\\ProgramData",
    "C:\\Program Files",
    "C:\\Program Files (x86)",
    "C:\\Windows",
)


class LocalDirectoryError(PrepareError):
    """The user's directory cannot be worked in; the text is for the user."""

    def __init__(self, text: str) -> None:
        super().__init__(text, reason=failure.LOCAL_DIRECTORY_ERROR)


@attrs.frozen(kw_only=True)
class Excludes:
    """The file git reads a repository's private excludes from, and where in it we are.

    `prefix` is the directory's path below the top of the working tree, "" or ending in a slash.
    `tracked` are those files for briefs, without links, that are in git's index: what is written to
    them would be in the agent's commits.
    """

    file: Path
    prefix: str = ""
    tracked: frozenset[Path] = frozenset()


@attrs.frozen(kw_only=True)
class LocalDirectory:
    """A user's directory that passed every check. `excludes` is None outside of git."""

    path: Path
    excludes: Excludes | None = None


def named_directory(task: ClaimedTask, daemon_id: str) -> Path | None:
    """Return the directory the task's project names for this daemon, None if there is none.

    Raises LocalDirectoryError if that is not clear.
    """
    if not daemon_id:
        return None
    found: list[str] = []
    for resource in task.project_resources:
        if resource.resource_type != RESOURCE:
            continue
        ref = resource.resource_ref
        whose, where = ref.get("daemon_id"), ref.get("local_path")
        if not isinstance(whose, str) or not isinstance(where, str):
            raise LocalDirectoryError("a local directory of the project is malformed")
        if not whose.strip():
            raise LocalDirectoryError(f"local directory {where!r} names no machine")
        if machine_key(whose) == machine_key(daemon_id):
            found.append(where.strip())
    if not found:
        return None
    if len(found) > 1:
        raise LocalDirectoryError(f"the project names {len(found)} directories on this machine")
    path = Path(found[0])
    if not found[0] or "\0" in found[0] or not path.is_absolute():
        raise LocalDirectoryError(f"local directory {found[0]!r} is not an absolute path")
    return path


def check_directory(path: Path, ours: tuple[Path, ...] = ()) -> Path:
    """Return the real path of a directory an agent may be let loose in.

    `ours` are directories of Bullpen's own, which are none of the user's. Raises
    LocalDirectoryError.
    """
    banned = _banned()
    if Path(os.path.normpath(path)) in banned:
        raise LocalDirectoryError(f"{path} is too much to hand to an agent")
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError:
        raise LocalDirectoryError(f"{path} does not exist") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise LocalDirectoryError(f"{path} cannot be reached: {error}") from error
    if not real.is_dir():
        raise LocalDirectoryError(f"{path} is not a directory")
    if real == Path(real.anchor) or real in banned | {_real(each) for each in banned}:
        raise LocalDirectoryError(f"{path} is too much to hand to an agent")
    if any(real.is_relative_to(_real(each)) for each in ours):
        raise LocalDirectoryError(f"{path} is one of Bullpen's own directories")
    try:
        with os.scandir(real) as entries:
            next(entries, None)
        _try_writing(real)
    except OSError as error:
        raise LocalDirectoryError(f"{path} cannot be read and written: {error}") from error
    return real


def _banned() -> set[Path]:
    places = {Path(each) for each in (_WINDOWS if sys.platform == "win32" else _BANNED)}
    try:
        places.add(Path.home())
    except RuntimeError:  # nobody's home
        log.debug("no home directory known")
    return places


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _try_writing(folder: Path) -> None:
    """Write to the directory; where the system can, without a name that a crash could leave."""
    nameless = getattr(os, "O_TMPFILE", 0)
    if nameless:
        try:
            os.close(os.open(folder, nameless | os.O_RDWR, 0o600))
        except OSError as error:
            # some file systems have no nameless files; only a named one tells then
            log.debug("no nameless file", path=str(folder), error=str(error))
        else:
            return
    handle, name = tempfile.mkstemp(prefix=".multica-rwcheck-", dir=folder)
    os.close(handle)
    Path(name).unlink()


async def find_excludes(folder: Path, env: Mapping[str, str]) -> Excludes | None:
    """Ask git where it reads `info/exclude` for a directory: not in a worktree's own git directory.

    None outside of a working tree, without git, and when it does not answer.
    """
    words = ("--is-inside-work-tree", "--show-prefix", "--git-path", "info/exclude")
    told = await _ask_git(folder, env, "rev-parse", *words)
    lines = told.split("\n")
    if len(lines) != 4 or lines[0] != "true":
        return None
    real = _real(folder)
    files = {each for name in BRIEF_FILES for each in (real / name, _real(real / name))}
    names = sorted(str(each.relative_to(real)) for each in files if each.is_relative_to(real))
    listed = await _ask_git(folder, env, "--literal-pathspecs", "ls-files", "-z", "--", *names)
    tracked = frozenset(real / name for name in listed.split("\0") if name)
    return Excludes(file=_real(folder / lines[2]), prefix=lines[1], tracked=tracked)


async def _ask_git(folder: Path, env: Mapping[str, str], *words: str) -> str:
    """What git says of a directory; "" without git, outside of a repository, or if it hangs."""
    clean = {name: value for name, value in env.items() if not name.startswith("GIT_")}
    try:
        with trio.fail_after(GIT_WITHIN):
            done = await trio.run_process(
                ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", *words],
                cwd=folder,
                env=clean | {"LC_ALL": "C"},
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
            )
    except (OSError, trio.TooSlowError) as error:
        log.warning("git does not answer", path=str(folder), error=str(error))
        return ""
    return "" if done.returncode else os.fsdecode(done.stdout)
