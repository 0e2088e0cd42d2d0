"""What every worktree of a clone shares besides its objects: the co-author hook and the excludes.

Git reads both from the clone, never from a worktree (spec 05 §15, hazard). Small and synchronous,
repeated at every checkout. A hook that somebody else wrote is left alone.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from shared.home import write_private

log = structlog.get_logger(__name__)

CO_AUTHOR: Final = "Co-authored-by: Bullpen agent <agent@bullpen.invalid>"
"""`.invalid` belongs to nobody, so no stranger is credited."""

_MARKS: Final = (
    "# bullpen:prepare-commit-msg:co-authored-by",
    "# multica:prepare-commit-msg:co-authored-by",
    "# Installed by the Multica daemon.",
)

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


def arrange(clone: Path, *, co_author: bool) -> None:
    """Bring hook and excludes in line with the settings; failing only warns."""
    try:
        _arrange_hook(clone / "hooks" / "prepare-commit-msg", wanted=co_author)
        _exclude(clone / "info" / "exclude")
    except OSError as error:
        log.warning("clone not arranged", clone=str(clone), error=str(error))


def co_author_wanted(settings: object) -> bool:
    """Whether a workspace's settings ask for the trailer; what is malformed does (spec 03 §20)."""
    if not isinstance(settings, dict):
        return True
    return all(
        settings.get(key) is not False for key in ("github_enabled", "co_authored_by_enabled")
    )


def _arrange_hook(path: Path, *, wanted: bool) -> None:
    try:
        found = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        found = ""
    ours = any(mark in found for mark in _MARKS)
    if found and not ours:
        if wanted:
            log.info("somebody else's hook stays, so no co-author is named", path=str(path))
        return
    if not wanted:
        with suppress(FileNotFoundError):
            path.unlink()
    elif found != HOOK:
        write_private(path, HOOK)
        path.chmod(0o755)


def _exclude(path: Path) -> None:
    try:
        found = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        found = ""
    missing = [line for line in EXCLUDES if line not in found.splitlines()]
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        start = found if not found or found.endswith("\n") else f"{found}\n"
        text = start + "".join(f"{line}\n" for line in missing)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
