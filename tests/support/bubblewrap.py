"""Bubblewrap for tests that need it: installed as root where apt has it, else its absence is said."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache


@cache
def has_bubblewrap() -> bool:
    """Whether `bwrap` is there; as root it is installed first."""
    if shutil.which("bwrap") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0"]
        for words in (["update"], ["install", "--no-install-recommends", "bubblewrap"]):
            subprocess.run([*apt, *words], env=quiet, check=False, capture_output=True, timeout=180)
    return shutil.which("bwrap") is not None
