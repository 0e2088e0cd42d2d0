"""A user's git repository on the disk, and what can be seen of it before and after."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any


def git(folder: Path, *words: str, check: bool = True) -> str:
    """Run git with nobody's settings; returns what it printed."""
    done = subprocess.run(
        ["git", "-c", "user.name=T", "-c", "user.email=t@example.test", *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"},
        capture_output=True,
        text=True,
        check=check,
    )
    return done.stdout


def make_repository(folder: Path) -> Path:
    """A repository with a commit, an executable, a directory of settings, and a file not added."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    (folder / "main.py").write_text("print()\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / ".claude").mkdir()
    (folder / ".claude/settings.json").write_text("{}")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    (folder / "notes").write_text("not added")
    return folder


def picture(root: Path) -> dict[str, Any]:
    """Every file with its bytes, mode, time of change and inode, `.git` too; modes of folders."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name] = oct(status.st_mode)
        elif path.name != "index":  # git itself refreshes what it knows of times
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = (digest, oct(status.st_mode), status.st_mtime_ns, status.st_ino)
    return found
