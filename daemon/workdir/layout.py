"""Where a task's files are. ◇

Full ids make the paths: the reference's eight hex digits let two tasks share, and one delete, the
same directory (spec 05 §1). Everything is predictable without touching the disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs

from shared.ids import InvalidId, canonical_id

WORK_DIR: Final = "workdir"
META: Final = ".gc_meta.json"


class LayoutError(Exception):
    """No safe path can be made for the task."""


@attrs.frozen(kw_only=True)
class Layout:
    """One task's directories; `env_root` is ours alone, the agent works in `work_dir`.

    `local` is the user's directory it works in instead of one of ours.
    """

    env_root: Path
    local: Path | None = None

    @property
    def work_dir(self) -> Path:
        return self.local if self.local is not None else self.env_root / WORK_DIR

    @property
    def output(self) -> Path:
        return self.env_root / "output"

    @property
    def logs(self) -> Path:
        return self.env_root / "logs"

    @property
    def tmp(self) -> Path:
        """The agent's TMPDIR: agent programs leave conversations in temporary files."""
        return self.env_root / "tmp"

    @property
    def meta(self) -> Path:
        """Whose directory this is, for the reclaim."""
        return self.env_root / META

    @property
    def codex_home(self) -> Path:
        return self.env_root / "codex-home"

    @property
    def cursor_data(self) -> Path:
        return self.env_root / "cursor-data"

    @property
    def manifest(self) -> Path:
        return self.env_root / ".multica_sidecar_manifest.json"


def layout_of(root: Path, workspace_id: str, task_id: str) -> Layout:
    """Return a task's own layout below the workspaces root. Raises LayoutError."""
    try:
        return Layout(env_root=root / canonical_id(workspace_id) / canonical_id(task_id))
    except InvalidId as error:
        raise LayoutError(f"not an id, so not a directory name: {error}") from error


def layout_of_prior(root: Path, workspace_id: str, prior_work_dir: str) -> Layout | None:
    """Return the layout a prior working directory belongs to; None unless it is provably ours.

    Only `<root>/<workspace>/<x>/workdir` is: any other path the server names, such as a directory
    of the user's that was once attached, is not ours to rewrite (spec 03 §14, hazard c).
    """
    path = Path(prior_work_dir)
    if not prior_work_dir or not path.is_absolute() or ".." in path.parts:
        return None
    if path.name != WORK_DIR or path.parent.parent != root / workspace_id:
        return None
    return Layout(env_root=path.parent)
