"""Find and read git directories as files, without running git in them.

Agents own the repositories in their directories, with all that git would do because of their
configuration. What a daemon has to know of one before it trusts anything, it reads here: where its
directories are, its references, HEAD, and whose objects it borrows. Links are not followed, what is
no plain file is not opened, and everything is bounded. Synchronous: run it in a thread.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs

from daemon.workdir.regular import read_regular

_SMALL: Final = 64 * 1024
_LARGE: Final = 256 * 1024 * 1024
_MOST_REFS: Final = 500_000
_ID: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REF: Final = re.compile(r"refs/[^\x00-\x20\x7f~^:?*\[\\]+")
_SKIPPED: Final = frozenset({"node_modules"})
_OF_GIT: Final = frozenset({"objects", "refs", "logs", "hooks", "info", "lfs"})
"""Directories of a repository in which no other one is looked for."""


class Unreadable(Exception):
    """A repository cannot be read as git's own files; the text says why."""


@attrs.frozen(kw_only=True)
class Place:
    """A repository or one of its worktrees. `tree` is None for a bare one.

    `git_dir` has HEAD and the index, `common` references and objects; they differ in a worktree.
    """

    tree: Path | None
    git_dir: Path
    common: Path

    @property
    def name(self) -> str:
        return (self.tree or self.git_dir).name


@attrs.frozen(kw_only=True)
class Head:
    """What HEAD says: a branch (without `refs/heads/`) or "", and a commit or ""."""

    branch: str = ""
    commit: str = ""


def place_of(tree: Path) -> Place | None:
    """The repository a work tree belongs to; None if it belongs to none that is there."""
    entry = tree / ".git"
    try:
        if stat.S_ISREG(entry.lstat().st_mode):
            word, _, path = _text(entry).strip().partition(": ")
            git_dir = (tree / path).resolve() if word == "gitdir" and path else None
        else:
            git_dir = entry.resolve()
    except (OSError, ValueError, RuntimeError):
        return None
    return _at(git_dir, tree) if git_dir is not None else None


def _at(git_dir: Path, tree: Path | None) -> Place | None:
    common = git_dir
    with suppress(OSError, ValueError, RuntimeError):
        common = (git_dir / _text(git_dir / "commondir").strip()).resolve()
    is_one = _is_file(git_dir / "HEAD") and (common / "objects").is_dir()
    return Place(tree=tree, git_dir=git_dir, common=common) if is_one else None


def places_below(folder: Path) -> Iterator[Place | Path]:
    """Every repository and worktree below a directory; submodules' and bare ones, too.

    A path stands for a work tree whose repository is gone. A submodule may come twice, with its work
    tree and without.
    """
    for place, names, files in os.walk(folder):
        at = Path(place)
        if ".git" in names or ".git" in files:
            yield place_of(at) or at
        names[:] = [name for name in names if name not in _SKIPPED]
        if "HEAD" in files and "objects" in names and "refs" in names:
            bare = _at(at.resolve(), None) if at.name != ".git" else None
            if bare is not None:
                yield bare
            names[:] = [name for name in names if name not in _OF_GIT]


def read_head(git_dir: Path, refs: dict[str, str]) -> Head:
    """What HEAD of a git directory says. Raises Unreadable."""
    try:
        text = _text(git_dir / "HEAD").strip()
    except (OSError, ValueError) as error:
        raise Unreadable(f"its HEAD cannot be read: {error}") from error
    if _ID.fullmatch(text):
        return Head(commit=text)
    word, _, name = text.partition(": ")
    if word != "ref" or not is_ref(name):
        raise Unreadable("its HEAD names nothing")
    return Head(branch=name.removeprefix("refs/heads/"), commit=refs.get(name, ""))


def read_refs(common: Path) -> dict[str, str]:
    """The references of a repository by name, symbolic ones left out. Raises Unreadable."""
    if (common / "reftable").exists():
        raise Unreadable("its references are not kept in files")
    found: dict[str, str] = {}
    try:
        with suppress(FileNotFoundError):
            for line in _text(common / "packed-refs", _LARGE).splitlines():
                commit, _, name = line.partition(" ")
                if _ID.fullmatch(commit) and is_ref(name):
                    found[name] = commit
        for place, _, names in os.walk(common / "refs"):
            for each in names:
                path = Path(place) / each
                name = str(path.relative_to(common))
                if not is_ref(name) or not _is_file(path):
                    continue
                text = _text(path).strip()
                if _ID.fullmatch(text):
                    found[name] = text
            if len(found) > _MOST_REFS:
                raise Unreadable("it has too many references")
    except (OSError, ValueError) as error:
        raise Unreadable(f"its references cannot be read: {error}") from error
    return found


def is_ref(name: str) -> bool:
    """Whether git would take this for a reference's full name."""
    return (
        bool(_REF.fullmatch(name))
        and ".." not in name
        and "//" not in name
        and "@{" not in name
        and not name.endswith(("/", "."))
        and not any(
            part.startswith((".", "-")) or part.endswith(".lock") for part in name.split("/")
        )
    )


def lenders(common: Path) -> list[str]:
    """The directories a repository borrows objects from, as its file names them."""
    try:
        return _text(common / "objects" / "info" / "alternates").splitlines()
    except (OSError, ValueError):
        return []


def has_plain_objects(common: Path) -> bool:
    """Whether a repository's objects are its own: no directory or pack is a link to another's."""
    objects = common / "objects"
    if objects.is_symlink() or not objects.is_dir():
        return False
    with os.scandir(objects) as entries:
        if any(entry.is_symlink() for entry in entries):
            return False
    try:
        with os.scandir(objects / "pack") as entries:
            return not any(entry.is_symlink() for entry in entries)
    except FileNotFoundError:
        return True


def read_small(path: Path) -> bytes | None:
    """A small plain file that is no link; None for anything else."""
    with suppress(OSError):
        if _is_file(path) and path.lstat().st_size <= _SMALL:
            return read_regular(path)
    return None


def _text(path: Path, limit: int = _SMALL) -> str:
    """A plain file's text. Raises OSError, ValueError."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        raise ValueError(f"{path.name} is no file of git's")
    return read_regular(path).decode("utf-8", "surrogateescape")


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
