"""The files we put into a working directory, remembered so that exactly they can be taken out.

A path that exists already is the user's or the agent's: it is never written and never removed
(spec 05 §14). The manifest lies beside the working directory, not in it. All calls are small and
synchronous.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)


class Sidecars:
    """Records what it creates; `save` writes the manifest."""

    def __init__(self, manifest: Path) -> None:
        self._manifest = manifest
        self._files: list[str] = []
        self._dirs: list[str] = []

    def make_dir(self, path: Path) -> None:
        """Create a directory and its missing parents; what existed is not recorded."""
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        self._dirs += [str(folder) for folder in reversed(missing)]

    def write(self, path: Path, text: str) -> bool:
        """Create a file, its parents too; False, and nothing written, if anything is there."""
        if path.exists() or path.is_symlink():
            return False
        self.make_dir(path.parent)
        path.write_text(text, encoding="utf-8", errors="replace", newline="")
        self._files.append(str(path))
        return True

    def save(self) -> None:
        manifest = {"files": self._files, "dirs": self._dirs}
        self._manifest.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def clean_up(manifest: Path, *, below: Path) -> None:
    """Remove what an earlier manifest lists below `below`, then the manifest; never user content.

    Directories that are not empty stay. Entries outside `below` are ignored: a manifest that an
    agent changed must not reach further than the agent could.
    """
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        files, dirs = _paths(listed["files"], below), _paths(listed["dirs"], below)
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("sidecar manifest unreadable", path=str(manifest), error=str(error))
        return
    for path in files:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    for path in sorted(dirs, key=lambda each: len(each.parts), reverse=True):
        with contextlib.suppress(OSError):  # not empty: someone else's content
            path.rmdir()
    manifest.unlink(missing_ok=True)


def _paths(texts: Iterable[object], below: Path) -> list[Path]:
    paths = [Path(text) for text in texts if isinstance(text, str)]
    return [path for path in paths if ".." not in path.parts and path.is_relative_to(below)]
