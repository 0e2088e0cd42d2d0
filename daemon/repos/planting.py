"""Write single files into directories that an agent owns, and nowhere else.

An agent may put a link where a directory was, so that a file written there would land in another
place. Every directory on the way is opened without following links, and the file is renamed into
place. Synchronous: run it in a thread.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

_WAY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def plant(folder: Path, name: str, content: bytes, mode: int = 0o644) -> None:
    """Put a file below a directory, making the directories between. Raises OSError."""
    *between, last = name.split("/")
    if not last or any(part in ("", ".", "..") for part in (*between, last)):
        raise OSError(errno.EINVAL, "not a name", name)
    at = os.open(folder, _WAY)
    try:
        for part in between:
            with suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=at)
            inner = os.open(part, _WAY, dir_fd=at)
            os.close(at)
            at = inner
        new = f".{secrets.token_hex(8)}.new"
        handle = os.open(new, _NEW, mode, dir_fd=at)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
            os.rename(new, last, src_dir_fd=at, dst_dir_fd=at)
        except BaseException:
            with suppress(OSError):
                os.unlink(new, dir_fd=at)
            raise
    finally:
        os.close(at)


def uproot(folder: Path, name: str) -> None:
    """Take a file away that lies directly in a directory, if it is there. Raises OSError."""
    at = os.open(folder, _WAY)
    try:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=at)
    finally:
        os.close(at)
