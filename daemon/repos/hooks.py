"""What the daemon puts into a checkout's own repository: the co-author hook and the excludes.

They are for the agent's git; the daemon's runs no hook. Small and synchronous, repeated at every
checkout. A hook that somebody else wrote is left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from daemon.repos.places import read_small
from daemon.repos.planting import plant, uproot

log = structlog.get_logger(__name__)

CO_AUTHOR: Final = "Co-authored-by: Bullpen agent <agent@bullpen.invalid>"
"""`.invalid` belongs to nobody, so no stranger is credited."""

_MARKS: Final = (
    "# bullpen:prepare-commit-msg:co-authored-by",
    "# multica:prepare-commit-msg:co-authored-by",
    "# Installed by the Multica daemon.",
)

_NAME: Final = "prepare-commit-msg"

HOOK: Final = f"""\
#!/bin/sh
{_MARKS[0]}
# Written by Bullpen; the workspace's settings switch it off.
case "$2" in
merge | squash) exit 0 ;;
esac
exec git interpret-trailers --in-place --if-exists addIfDifferent --trailer '{CO_AUTHOR}' "$1"
"""

EXCLUDES: Final = ("/.agent_context/", "/.multica/")
"""What the daemon itself may write into a working directory and nobody wants to commit. Not the
files agents read (`CLAUDE.md`, `.claude`): in a repository those are work like any other."""


def arrange(tree: Path, *, co_author: bool) -> None:
    """Bring a checkout's hook and excludes in line with the settings; failing only warns."""
    git_dir = tree / ".git"
    try:
        _arrange_hook(git_dir, wanted=co_author)
        _exclude(git_dir)
    except OSError as error:
        log.warning("checkout not arranged", path=str(tree), error=str(error))


def co_author_wanted(settings: object) -> bool:
    """Whether a workspace's settings ask for the trailer; what is malformed does (spec 03 §20)."""
    if not isinstance(settings, dict):
        return True
    return all(
        settings.get(key) is not False for key in ("github_enabled", "co_authored_by_enabled")
    )


def submodules_wanted(settings: object) -> bool:
    """Whether a workspace's settings let submodules be checked out; what is malformed does."""
    return not isinstance(settings, dict) or settings.get("submodules_enabled") is not False


def _arrange_hook(git_dir: Path, *, wanted: bool) -> None:
    path = git_dir / "hooks" / _NAME
    found = (read_small(path) or b"").decode("utf-8", "replace")
    ours = any(mark in found for mark in _MARKS)
    if not ours and (found or path.is_symlink() or path.exists()):
        if wanted:
            log.info("somebody else's hook stays, so no co-author is named", path=str(path))
        return
    if not wanted:
        if ours:
            uproot(git_dir / "hooks", _NAME)
    elif found != HOOK:
        plant(git_dir, f"hooks/{_NAME}", HOOK.encode(), 0o755)


def _exclude(git_dir: Path) -> None:
    path = git_dir / "info" / "exclude"
    content = read_small(path)
    if content is None and (path.is_symlink() or path.exists()):
        return
    found = (content or b"").decode("utf-8", "surrogateescape")
    missing = [line for line in EXCLUDES if line not in found.splitlines()]
    if missing:
        start = found if not found or found.endswith("\n") else f"{found}\n"
        text = start + "".join(f"{line}\n" for line in missing)
        plant(git_dir, "info/exclude", text.encode("utf-8", "surrogateescape"))
