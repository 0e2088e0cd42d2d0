"""What the git of a task needs to see on the disk, for who hides everything else from its agent. ◇

A checkout is a repository of its own in the task's directory: configuration, hooks, references and
new objects are there. What the server has had before lies in the workspace's clones, from which a
checkout borrows objects and writes nothing. A clone may come while the task runs, so the folder of
the workspace's clones is named, not the clones there are.
"""

from __future__ import annotations

from pathlib import Path

import attrs

FOLDER = ".repos"
"""Below the workspaces root; directories with a leading dot are no workspaces."""


@attrs.frozen(kw_only=True)
class Visible:
    """Directories, as they are named without links; `read_only` ones may not be there yet."""

    writable: tuple[Path, ...]
    read_only: tuple[Path, ...]


def visible_to_git(root: Path, workspace_id: str, env_root: Path) -> Visible:
    """The directories a task's git uses, from the workspaces root and the task's directory.

    Who mounts a folder that is not there makes it first: the clones are put into it later.
    """
    clones = root.resolve() / FOLDER / workspace_id
    return Visible(writable=(env_root.resolve(),), read_only=(clones,))
