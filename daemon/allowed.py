"""Which directories of this machine tasks may work in: what its owner has allowed, and nothing else.

A project names a directory, and whoever can change the project could name any; so the machine keeps
a list of its own, which the server has no part in. It is a file of the home that agents do not see;
`bullpen daemon allow-dir` changes it, and the daemon reads it anew for every task. What is inside an
allowed directory is allowed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from shared.codec import DecodeError, loads
from shared.home import Home, write_private


class AllowedError(Exception):
    """The list cannot be read or written; the text names the file."""


def allowed_directories(home: Home) -> tuple[Path, ...]:
    """Read the list: real paths, sorted. Raises AllowedError; a missing file allows nothing."""
    file = home.directories_file
    try:
        found = loads(file.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, DecodeError) as error:
        raise AllowedError(f"cannot read {file}: {error}") from error
    listed = found.get("allowed") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise AllowedError(f"{file} does not hold a list of directories")
    return tuple(sorted(Path(each) for each in listed))


def allow_directory(home: Home, path: Path) -> Path:
    """Add a directory by its real path, which is returned. Raises AllowedError."""
    real = Path(os.path.realpath(path))
    _write(home, {*allowed_directories(home), real})
    return real


def forget_directory(home: Home, path: Path) -> bool:
    """Take a directory off the list, by its real or its written path; False if it was not there."""
    known = allowed_directories(home)
    gone = {path, Path(os.path.realpath(path))}
    _write(home, set(known) - gone)
    return bool(gone & set(known))


def is_allowed(real: Path, allowed: Iterable[Path]) -> bool:
    """Tell whether a real path is one of the directories or inside one. Pure."""
    return any(real.is_relative_to(each) for each in allowed)


def _write(home: Home, directories: set[Path]) -> None:
    text = json.dumps({"allowed": sorted(map(str, directories))}, indent=2)
    try:
        write_private(home.directories_file, text + "\n")
    except (OSError, UnicodeEncodeError) as error:
        raise AllowedError(f"cannot write {home.directories_file}: {error}") from error
