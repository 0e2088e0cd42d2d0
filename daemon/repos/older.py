"""Turn worktrees of a clone, as older versions made them, into checkouts of their own.

Such a worktree shares configuration, hooks and references with every other one of its clone. What is
its own (HEAD, index, what is half done) is taken along; its files are not touched. The caller holds
the clone's lock.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import structlog
import trio

from daemon import threads
from daemon.repos.clones import TAKE_BACK, remove_tree
from daemon.repos.git import GitError
from daemon.repos.mirror import write_git_dir
from daemon.repos.names import TASK_BRANCHES
from daemon.repos.places import Place, Unreadable, read_head, read_refs
from shared.ids import short_id

log = structlog.get_logger(__name__)

_THE_CLONES: Final = frozenset({"commondir", "gitdir", "locked", "config.worktree"})


@attrs.frozen(kw_only=True)
class Own:
    """What a worktree gets of its own: references, settings and whose task it is."""

    refs: Mapping[str, str]
    config: str
    task_id: str


async def adopt_worktree(clone: Path, there: Place, own: Own) -> Place:
    """Give a worktree a repository of its own that borrows from the clone. Raises GitError."""
    staging = clone.parent / f".adopted.{secrets.token_hex(4)}.new"
    try:
        made = await threads.in_thread(partial(_adopt, staging, clone, there, own))
    except (OSError, Unreadable) as error:
        raise GitError(f"{there.tree} cannot be taken over: {error}") from error
    finally:
        with trio.move_on_after(TAKE_BACK, shield=True):
            await remove_tree(staging)
    log.info("worktree of an older version taken over", path=str(there.tree))
    return made


def _adopt(staging: Path, clone: Path, there: Place, own: Own) -> Place:
    assert there.tree is not None
    shared = read_refs(clone)
    head = read_head(there.git_dir, shared)
    refs = dict(own.refs)
    for name, commit in shared.items():
        is_others = name.startswith(TASK_BRANCHES) and f"/{short_id(own.task_id)}" not in name
        if name == f"refs/heads/{head.branch}" or (
            name.startswith("refs/heads/") and not is_others
        ):
            refs[name] = commit
    at = staging / "git"
    write_git_dir(at, refs, head, [str(clone / "objects")], own.config)
    for entry in there.git_dir.iterdir():
        if entry.name in _THE_CLONES or entry.suffix == ".lock" or entry.is_symlink():
            continue
        if entry.is_dir():
            shutil.copytree(entry, at / entry.name, symlinks=True, dirs_exist_ok=True)
        elif entry.is_file():
            shutil.copy2(entry, at / entry.name)
    pointer = there.tree / ".git"
    pointer.rename(staging / "pointer")
    try:
        at.rename(pointer)
    except BaseException:
        (staging / "pointer").rename(pointer)
        raise
    with suppress(OSError):
        shutil.rmtree(there.git_dir)
    made = pointer.resolve()
    return Place(tree=there.tree, git_dir=made, common=made)
