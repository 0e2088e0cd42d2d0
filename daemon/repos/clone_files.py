"""What the daemon writes into a clone besides git: its settings, and who borrows its objects.

Small and synchronous; run in a thread.
"""

from __future__ import annotations

import errno
import json
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from daemon.repos.places import read_small
from shared.home import write_private

_REFSPEC: Final = "+refs/heads/*:refs/remotes/origin/*"
_BORROWERS: Final = "bullpen-borrowers"
"""A folder in a clone with a file for each task's directory that borrows its objects."""

_MARK: Final = "# Written by the Bullpen daemon, which undoes what others change here."

_NOBODYS: Final = (
    "commondir",
    "config.worktree",
    "info/attributes",
    "info/grafts",
    "objects/info/alternates",
    "objects/info/http-alternates",
    "shallow",
)
"""Files of git's that are not in a clone of ours, and would make it something else."""


def settle(clone: Path, url: str) -> list[str]:
    """Write a clone's settings; return what somebody had changed. Raises OSError.

    A clone of an older version, into which agents' git wrote, is taken over without a word.
    """
    config = _config(url)
    found = (read_small(clone / "config") or b"").decode("utf-8", "replace")
    changed = []
    if found != config:
        if found.startswith(_MARK) and _without_address(found) != _without_address(config):
            changed.append("its settings")
        new = clone / f".config.{secrets.token_hex(4)}"
        new.write_text(config, encoding="utf-8")
        if (clone / "config").is_dir():
            raise OSError(errno.EISDIR, "its settings are a directory", str(clone / "config"))
        new.rename(clone / "config")
    for name in _NOBODYS:
        path = clone / name
        if path.is_symlink() or path.exists():
            path.unlink()
            changed.append(name)
    return changed


def _config(url: str) -> str:
    quoted = url.replace("\\", "\\\\").replace('"', '\\"')
    return (
        f"{_MARK}\n[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"
        f'[remote "origin"]\n\turl = "{quoted}"\n\tfetch = {_REFSPEC}\n'
        "[push]\n\tautoSetupRemote = true\n"
    )


def _without_address(config: str) -> str:
    return re.sub(r"(?m)^\turl = .*\n", "", config)


def borrow(clone: Path, env_root: Path, tree: Path, branch: str) -> None:
    """Note that a task's directory borrows from a clone, and the branch of a checkout in it."""
    known = checkouts(clone, env_root)
    known[str(tree)] = branch
    path = clone / _BORROWERS / f"{env_root.name}.json"
    path.parent.mkdir(exist_ok=True)
    write_private(path, json.dumps({"env_root": str(env_root), "checkouts": known}) + "\n")


def checkouts(clone: Path, env_root: Path) -> dict[str, str]:
    """The checkouts of a clone that were made for a task's directory: branches by path."""
    told = _told(clone / _BORROWERS / f"{env_root.name}.json")
    known = told.get("checkouts")
    if told.get("env_root") != str(env_root) or not isinstance(known, dict):
        return {}
    return {str(path): str(branch) for path, branch in known.items()}


def checkouts_of(clone: Path) -> int:
    """How many checkouts of a clone there are, in all tasks' directories."""
    paths: set[str] = set()
    for path in (clone / _BORROWERS).glob("*.json"):
        known = _told(path).get("checkouts")
        paths |= {str(each) for each in known} if isinstance(known, dict) else set()
    return sum(Path(path).is_dir() for path in paths)


def borrowers(clone: Path) -> int:
    """How many tasks' directories borrow a clone's objects; forgets those that are gone."""
    found = 0
    for path in (clone / _BORROWERS).glob("*.json"):
        env_root = _told(path).get("env_root")
        if env_root and not Path(str(env_root)).exists():
            path.unlink(missing_ok=True)
        else:
            found += 1
    return found


def _told(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        told = json.loads(path.read_bytes())
        if isinstance(told, dict):
            return told
    return {}
