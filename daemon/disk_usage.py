"""What Bullpen's files on this machine take up (spec 03 §25): a scan, without a daemon.

It counts what is there rather than what ought to be: tasks' directories with their worktrees, the
clones with what is kept in them, damaged clones that were set aside, half-made ones, the trash and
the journals that the server has not confirmed. Why a directory stays is what the last reclaim said.
Links are not followed and a file with several names counts once. Synchronous; it reads only.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import attrs

from daemon.repos.clone_files import checkouts_of
from daemon.repos.kept import BUNDLE, saved_refs
from daemon.repos.visible import FOLDER
from daemon.upkeep.reclaim import REPORT, TRASH, env_roots, last_change
from daemon.workdir.meta import read_meta
from shared import times
from shared.home import Home
from shared.ids import short_id

UNKNOWN: Final = "unknown"


@attrs.frozen(kw_only=True)
class TaskUse:
    """One task's directory. `kept`: why the last reclaim left it; `worktrees`: checkouts in it."""

    workspace_id: str
    workspace_short: str
    task_short: str
    path: str
    kind: str
    parent_status: str = ""
    age_seconds: int
    size_bytes: int
    artifact_size_bytes: int
    worktrees: int
    kept: str = ""


@attrs.frozen(kw_only=True)
class WorkspaceUse:
    workspace_id: str
    workspace_short: str
    task_count: int
    size_bytes: int
    artifact_size_bytes: int
    artifact_ratio: float
    oldest_age_seconds: int


@attrs.frozen(kw_only=True)
class CloneUse:
    """One clone. `state` is `ready`, `damaged` (set aside) or `unfinished`.

    `saved_refs` is how many refs keep work that is on no server.
    """

    workspace_id: str
    name: str
    path: str
    state: str
    size_bytes: int
    worktrees: int
    saved_refs: int


@attrs.frozen(kw_only=True)
class Report:
    """One workspaces root. Sizes in bytes; `total_size_bytes` is the tasks' alone (spec 03 §25).

    `bundle_count` is how many files keep work of agents' own repositories, `other_size_bytes` is in
    further directories of ours, such as caches; `grand_total_bytes` is
    everything.
    """

    workspaces_root: str
    generated_at: str
    artifact_patterns: list[str]
    tasks: list[TaskUse]
    workspaces: list[WorkspaceUse]
    clones: list[CloneUse]
    total_task_count: int
    total_workspace_count: int
    total_size_bytes: int
    total_artifact_size_bytes: int
    total_artifact_ratio: float
    total_clone_size_bytes: int
    bundle_count: int
    bundle_size_bytes: int
    trash_size_bytes: int
    other_size_bytes: int
    journal_count: int
    journal_size_bytes: int
    last_reclaim_at: str = ""

    @property
    def grand_total_bytes(self) -> int:
        return (
            self.total_size_bytes
            + self.total_clone_size_bytes
            + self.bundle_size_bytes
            + self.trash_size_bytes
            + self.other_size_bytes
            + self.journal_size_bytes
        )


@attrs.define(eq=False)
class _Sizes:
    """Sums up trees; `_seen` holds files with several names."""

    patterns: frozenset[str]
    _seen: set[tuple[int, int]] = attrs.field(factory=set)

    def tree(self, root: Path) -> tuple[int, int, int]:
        """Return (bytes, bytes in artifact directories, worktrees) below a directory."""
        size = artifacts = worktrees = 0
        pending = [(str(root), False)]
        while pending:
            folder, made = pending.pop()
            try:
                entries = list(os.scandir(folder))
            except OSError:
                continue
            for entry in entries:
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    worktrees += entry.name == ".git"
                    pending.append((entry.path, made or entry.name in self.patterns))
                elif stat.S_ISREG(found.st_mode):
                    worktrees += entry.name == ".git"
                    if found.st_nlink > 1:
                        if (found.st_dev, found.st_ino) in self._seen:
                            continue
                        self._seen.add((found.st_dev, found.st_ino))
                    size += found.st_size
                    artifacts += found.st_size if made else 0
        return size, artifacts, worktrees


def scan(
    root: Path,
    patterns: Iterable[str],
    *,
    journals: Path | None = None,
    wall: Callable[[], float] = time.time,
) -> Report:
    """Look at a workspaces root; one that is missing is empty. Raises OSError if unreadable."""
    names = frozenset(patterns)
    told = _last_reclaim(root)
    now = wall()
    tasks = [_task(root, path, names, told, now) for path in env_roots(root)]
    clones = [_clone(path) for path in _clone_dirs(root)]
    bundles = sorted((root / FOLDER).glob(f"*/*{BUNDLE}"))
    plain = _Sizes(frozenset())
    files = sorted(journals.glob("*")) if journals is not None else []
    size = sum(task.size_bytes for task in tasks)
    artifacts = sum(task.artifact_size_bytes for task in tasks)
    workspaces = _workspaces(tasks)
    return Report(
        workspaces_root=str(root),
        generated_at=times.stamp(times.now()),
        artifact_patterns=sorted(names),
        tasks=sorted(tasks, key=lambda task: -task.size_bytes),
        workspaces=workspaces,
        clones=sorted(clones, key=lambda clone: -clone.size_bytes),
        total_task_count=len(tasks),
        total_workspace_count=len(workspaces),
        total_size_bytes=size,
        total_artifact_size_bytes=artifacts,
        total_artifact_ratio=_ratio(artifacts, size),
        total_clone_size_bytes=sum(clone.size_bytes for clone in clones),
        bundle_count=len(bundles),
        bundle_size_bytes=sum(_size(path) for path in bundles),
        trash_size_bytes=plain.tree(root / TRASH)[0],
        other_size_bytes=sum(
            plain.tree(path)[0]
            for path in root.glob(".*")
            if path.name not in (FOLDER, TRASH) and path.is_dir() and not path.is_symlink()
        ),
        journal_count=len(files),
        journal_size_bytes=sum(_size(path) for path in files),
        last_reclaim_at=str(told.get("at") or ""),
    )


def roots_of_profiles(home: Home) -> list[tuple[str, Home]]:
    """The default profile, always, then the others by name; one directory is named once."""
    found = [("", Home(home.base))]
    folder = home.base / "profiles"
    if folder.is_dir():
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        found += [(name, Home(home.base, name)) for name in names]
    seen: dict[Path, tuple[str, Home]] = {}
    for name, each in found:
        seen.setdefault(each.workspaces.resolve(), (name, each))
    return list(seen.values())


def _task(
    root: Path, path: Path, patterns: frozenset[str], told: dict[str, Any], now: float
) -> TaskUse:
    meta = read_meta(path)
    size, artifacts, worktrees = _Sizes(patterns).tree(path)
    since = last_change(path)
    if meta is not None and meta.completed_at:
        with contextlib.suppress(ValueError):
            since = times.parse_stamp(meta.completed_at).timestamp()
    workspace_id = path.parent.name
    kept = told.get("kept")
    why = kept.get(str(path.relative_to(root)), "") if isinstance(kept, dict) else ""
    return TaskUse(
        workspace_id=workspace_id,
        workspace_short=short_id(workspace_id),
        task_short=short_id(path.name),
        path=str(path),
        kind=meta.kind if meta is not None else UNKNOWN,
        age_seconds=max(int(now - since), 0),
        size_bytes=size,
        artifact_size_bytes=artifacts,
        worktrees=worktrees,
        kept=str(why),
    )


def _workspaces(tasks: Iterable[TaskUse]) -> list[WorkspaceUse]:
    by_id: dict[str, list[TaskUse]] = {}
    for task in tasks:
        by_id.setdefault(task.workspace_id, []).append(task)
    rows = []
    for workspace_id, own in by_id.items():
        size = sum(task.size_bytes for task in own)
        artifacts = sum(task.artifact_size_bytes for task in own)
        row = WorkspaceUse(
            workspace_id=workspace_id,
            workspace_short=short_id(workspace_id),
            task_count=len(own),
            size_bytes=size,
            artifact_size_bytes=artifacts,
            artifact_ratio=_ratio(artifacts, size),
            oldest_age_seconds=max(task.age_seconds for task in own),
        )
        rows.append(row)
    return sorted(rows, key=lambda row: -row.size_bytes)


def _clone_dirs(root: Path) -> list[Path]:
    return sorted(path for path in (root / FOLDER).glob("*/*") if path.is_dir())


def _clone(path: Path) -> CloneUse:
    state = "ready"
    if path.name.startswith("."):
        state = "unfinished"
    elif ".git.damaged-" in path.name:
        state = "damaged"
    older = path / "worktrees"
    return CloneUse(
        workspace_id=path.parent.name,
        name=path.name,
        path=str(path),
        state=state,
        size_bytes=_Sizes(frozenset()).tree(path)[0],
        worktrees=checkouts_of(path) + (len(list(older.iterdir())) if older.is_dir() else 0),
        saved_refs=len(saved_refs(path)),
    )


def _last_reclaim(root: Path) -> dict[str, Any]:
    try:
        told = json.loads((root / REPORT).read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
