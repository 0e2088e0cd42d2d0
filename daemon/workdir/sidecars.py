"""The files we put into a working directory, remembered so that exactly they can be taken out.

A path that exists already is the user's or the agent's: it is never written and never removed
(spec 05 §14). What will be created is planned first and listed in the manifest before the first
of it is there, so that a crash at any moment leaves nothing that nobody knows of. The manifest
lies beside the working directory, not in it. All calls are small and synchronous.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog

from daemon.workdir.regular import read_regular

log = structlog.get_logger(__name__)


class Sidecars:
    """A plan of directories and files below `root`; `create` carries it out."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real = root.resolve()
        self.files: dict[Path, bytes] = {}
        self.modes: dict[Path, int] = {}
        self.dirs: list[Path] = []
        self.skills: list[Path] = []

    def is_taken(self, path: Path) -> bool:
        """Whether anything is there or will be."""
        return os.path.lexists(path) or path in self.files or path in self.dirs

    def reaches(self, path: Path) -> bool:
        """Whether the path can be made inside the root: no file and no link leads elsewhere."""
        there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
        return there.is_dir() and there.resolve().is_relative_to(self._real)

    def make_dir(self, path: Path) -> None:
        """Plan a directory and its missing parents; what exists is not ours."""
        for folder in reversed((path, *path.parents)):
            if not self.is_taken(folder):
                self.dirs.append(folder)

    def make_skill(self, path: Path) -> None:
        """Plan a directory that is ours with everything that comes into it."""
        self.make_dir(path)
        self.skills.append(path)

    def write(self, path: Path, text: str, mode: int = 0o644) -> bool:
        """Plan a file, its parents too; False, and nothing planned, if it cannot be ours."""
        if self.is_taken(path) or not self.reaches(path.parent):
            return False
        self.make_dir(path.parent)
        self.files[path] = text.encode("utf-8", "replace")
        self.modes[path] = mode
        return True

    def create(self) -> None:
        """Make everything. What somebody else has made since the plan is left alone."""
        for folder in self.dirs:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o755)
        for path, data in self.files.items():
            try:
                new_file(path, data, self.modes[path])
            except FileExistsError:
                log.warning("file came up meanwhile; left alone", path=str(path))

    def save(self, manifest: Path) -> None:
        """Write the manifest, before `create`. It is about our own directory: no sync to disk."""
        listed = {
            "files": [str(path) for path in self.files],
            "dirs": [str(path) for path in self.dirs],
            "skills": [str(path) for path in self.skills],
        }
        remove_link_out(manifest, manifest.parent)
        manifest.write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def clean_up(manifest: Path, *, below: Path) -> None:
    """Remove what an earlier manifest lists below `below`, then the manifest; never user content.

    A skill's directory goes with all that is in it, or the next run would put its successor under
    another name; other directories only if they are empty. Entries outside `below` are ignored: a
    manifest that an agent changed must not reach further than the agent could.
    """
    try:
        listed: Mapping[str, Any] = json.loads(read_regular(manifest))
        files, dirs = _paths(listed["files"], below), _paths(listed["dirs"], below)
        skills = _paths(listed.get("skills", ()), below)
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("sidecar manifest unreadable", path=str(manifest), error=str(error))
        return
    for path in skills:
        if not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    for path in files:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    for path in deepest_first(dirs):
        with contextlib.suppress(OSError):  # not empty: someone else's content
            path.rmdir()
    manifest.unlink(missing_ok=True)


def remove_link_out(path: Path, folder: Path) -> None:
    """Remove a link that an agent put where we write, if it leads out of the folder."""
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        log.warning("link removed from where we write", path=str(path), to=str(path.readlink()))
        path.unlink()


def new_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Create a file that is not there. Raises FileExistsError, OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        while data:
            data = data[os.write(handle, data) :]
    finally:
        os.close(handle)


def deepest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda each: len(each.parts), reverse=True)


def _paths(texts: Iterable[object], below: Path) -> list[Path]:
    """The listed paths that are below `below`, links on the way resolved."""
    real = below.resolve()
    return [
        path
        for path in (Path(text) for text in texts if isinstance(text, str))
        if ".." not in path.parts
        and path != below
        and path.is_relative_to(below)
        and path.parent.resolve().is_relative_to(real)
    ]
