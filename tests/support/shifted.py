"""Processes that believe it is another day: Debian's libfaketime, preloaded.

Only the calendar is shifted; what measures durations is left alone, so that nothing times out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def library() -> Path | None:
    """Return the library to preload; installs it where that is possible, else None."""
    found = _find()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        apt = ["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0"]
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "--no-install-recommends", "libfaketime"]):
            subprocess.run([*apt, *words], env=quiet, check=False)
        found = _find()
    return found


def _find() -> Path | None:
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def in_days(days: int, preloaded: Path) -> dict[str, str]:
    """The environment of processes for which it is so many days later."""
    return {
        "LD_PRELOAD": str(preloaded),
        "FAKETIME": f"+{days}d",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
