"""Keep what is in a work tree and nowhere else, under a ref of our own.

Called before anything that could lose work: a checkout that moves a work tree, a reclaim that
removes one. Nothing in the work tree changes. What is kept has the shape of a stash, so `git stash
apply <ref>` brings it back: a commit of the files as they are, untracked ones too, whose parents
are HEAD and a commit of the index. Ignored files are not kept; whoever calls leaves them or says so.
A save that fails is a GitError, and then nothing may be removed.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import attrs

from daemon.repos.git import TREE, Git
from daemon.repos.names import SAVED, saved_name
from shared import times

_KEPT = ("--remotes", f"--glob={SAVED}")
"""What reaches a commit for good: the server has it, or a ref that we never delete."""


@attrs.frozen(kw_only=True)
class State:
    """A work tree: `head` is empty before the first commit, `branch` when HEAD is detached.

    `dirty`: files or index differ from HEAD. `ahead`: how many commits the server is not known to
    have; `unkept`: how many of those no ref of ours keeps.
    """

    head: str = ""
    branch: str = ""
    dirty: bool = False
    ahead: int = 0
    unkept: int = 0

    @property
    def has_work(self) -> bool:
        return self.dirty or self.ahead > 0


async def look(git: Git, tree: Path) -> State:
    """Tell what a work tree holds. Raises GitError if it is none, or broken."""
    head = (await git.try_tree(tree, "rev-parse", "--verify", "-q", "HEAD^{commit}") or "").strip()
    branch = (await git.try_tree(tree, "symbolic-ref", "-q", "--short", "HEAD") or "").strip()
    status = await git.tree(
        tree, "status", "--porcelain", "-z", "--untracked-files=all", deadline=TREE, guarded=True
    )
    ahead = unkept = 0
    if head:
        ahead = int(await git.tree(tree, "rev-list", "--count", head, "--not", "--remotes"))
    if ahead:
        unkept = int(await git.tree(tree, "rev-list", "--count", head, "--not", *_KEPT))
    return State(head=head, branch=branch, dirty=bool(status), ahead=ahead, unkept=unkept)


async def save(git: Git, tree: Path) -> str:
    """Keep the work tree's work; return the ref that keeps it, "" if there was nothing to keep.

    The same work is kept once, however often this is called. Raises GitError.
    """
    state = await look(git, tree)
    if not state.dirty:
        return await _keep(git, tree, state.branch, state.head) if state.unkept else ""
    base = ("-p", state.head) if state.head else ()
    index_path = (await git.tree(tree, "rev-parse", "--git-path", "index")).rstrip("\n")
    index_file = tree / index_path  # git says it relative to the work tree, or absolute
    # writing an index may read files once more, through their filters
    staged = await git.try_tree(tree, "write-tree", guarded=True)  # None: conflicts
    with tempfile.TemporaryDirectory(prefix="bullpen-index-") as folder:
        copy = Path(folder) / "index"
        with suppress(FileNotFoundError):
            shutil.copy2(index_file, copy)
        # `add` starts a git in every submodule, which knows nothing of what we let git run; what is
        # in them is kept as in any repository of the agent's own
        listed = await git.tree(tree, "ls-files", "-z", "--stage", index=copy)
        links = [row.partition("\t")[2] for row in listed.split("\0") if row.startswith("160000 ")]
        rest = (".", *(f":(exclude,literal){path}" for path in links)) if links else ()
        await git.tree(tree, "add", "-A", "--", *rest, deadline=TREE, guarded=True, index=copy)
        files = (await git.tree(tree, "write-tree", guarded=True, index=copy)).strip()
    earlier = await _kept_already(git, tree, state, files, (staged or "").strip())
    if earlier:
        return earlier
    parents = base
    if staged is not None and state.head:
        message = f"index on {state.branch or 'detached HEAD'}"
        index = await git.tree(tree, "commit-tree", staged.strip(), *base, "-m", message)
        parents = (*base, "-p", index.strip())
    message = f"Kept by Bullpen from {tree.name}, {state.branch or 'detached HEAD'}"
    commit = await git.tree(tree, "commit-tree", files, *parents, "-m", message)
    return await _keep(git, tree, state.branch, commit.strip())


async def keep_commit(git: Git, clone: Path, branch: str, commit: str) -> str:
    """Keep a commit of a clone unless it is published or kept already; return the new ref or ""."""
    ahead = await git.clone(clone, "rev-list", "--count", commit, "--not", *_KEPT)
    if not int(ahead):
        return ""
    name = saved_name(branch, _stamp(), commit)
    await git.clone(clone, "update-ref", name, commit)
    return name


async def _keep(git: Git, tree: Path, branch: str, commit: str) -> str:
    name = saved_name(branch, _stamp(), commit)
    await git.tree(tree, "update-ref", name, commit)
    return name


async def _kept_already(git: Git, tree: Path, state: State, files: str, staged: str) -> str:
    """The ref that keeps exactly these files and this index on top of this HEAD."""
    pattern = f"{SAVED}/{state.branch or 'detached'}/"
    form = "%(tree) %(parent) %(refname)"
    for line in (await git.tree(tree, "for-each-ref", f"--format={form}", pattern)).splitlines():
        tree_id, _, rest = line.partition(" ")
        *parents, name = rest.split(" ")
        if tree_id != files or (parents or [""])[0] != state.head:
            continue
        if not staged or len(parents) < 2:
            return name
        index = await git.try_tree(tree, "rev-parse", "--verify", "-q", f"{parents[1]}^{{tree}}")
        if (index or "").strip() == staged:
            return name
    return ""


def _stamp() -> str:
    moment = times.fine_stamp(times.now())
    return moment.replace("-", "").replace(":", "").replace(".", "")
