"""Put a repository into a task's directory as a worktree on a branch of its own (spec 05 §15).

A worktree that is there already is never reset or cleaned while it has work: what is in it and
nowhere else is kept under a ref first, and unless another base was asked for, the work then goes on
where it is. Whoever calls holds the clone's lock. A call that fails or is cancelled takes back what
it had begun.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs
import structlog
import trio

from daemon.repos import snapshots
from daemon.repos.clones import TAKE_BACK, Clones, remove_if_stale, remove_tree
from daemon.repos.git import TREE, Git, GitError
from daemon.repos.names import branch_name, repo_name
from shared import times

log = structlog.get_logger(__name__)

_TRIES: Final = 100

_NO_REF: Final = re.compile(r"^[-+^]|[:\s\x00-\x1f\x7f]|\.\.")
"""Options, refspecs and ranges: git would take them for more than one commit."""


@attrs.frozen(kw_only=True)
class Wanted:
    """A repository by its address, `ref` ("" for the default branch), below `parent`."""

    url: str
    ref: str
    parent: Path
    agent_name: str
    task_id: str


@attrs.frozen(kw_only=True)
class CheckedOut:
    """Where it is. `saved`: the ref that keeps what was there before; `note`: what to know."""

    path: Path
    branch: str
    saved: str = ""
    note: str = ""


async def check_out(clones: Clones, clone: Path, wanted: Wanted) -> CheckedOut:
    """Check out into `<parent>/<repository>`. Raises GitError, which names what was kept."""
    git = clones.git
    await clones.prune_worktrees(clone)
    base = await _base(clones, clone, wanted.ref)
    branch = branch_name(wanted.agent_name, wanted.task_id)
    path, note = await _place(git, clone, wanted)
    if not path.exists():
        taken = await _add(git, clone, path, branch=branch, base=base, ref=wanted.ref)
        return CheckedOut(path=path, branch=taken, note=note)
    return await _go_on(git, clone, path, branch=branch, base=base, ref=wanted.ref)


async def _base(clones: Clones, clone: Path, ref: str) -> str:
    """The commit to start from. Raises GitError."""
    git = clones.git
    if _NO_REF.search(ref):
        raise GitError(f"{ref!r} is no branch, tag or commit")
    if ref:
        for name in (f"refs/remotes/origin/{ref}", f"refs/tags/{ref}", ref):
            if commit := await _commit(git, clone, name):
                return commit
        if commit := await clones.fetch_one(clone, ref):
            return commit
        raise GitError(f"the repository has no branch, tag or commit {ref!r}")
    head = (await git.try_clone(clone, "symbolic-ref", "-q", "--short", "HEAD") or "").strip()
    names = ("HEAD", "main", "master", head)
    for name in names:
        if name and (commit := await _commit(git, clone, f"refs/remotes/origin/{name}")):
            return commit
    listed = await git.clone(clone, "for-each-ref", "--format=%(objectname)", "refs/remotes/origin")
    commits = listed.split()
    if len(commits) == 1:
        return commits[0]
    if not commits and (commit := await _commit(git, clone, "HEAD")):
        return commit
    if not commits:
        raise GitError("the repository is empty: it has no commit to start from")
    raise GitError("the repository has no default branch: name one with --ref")


async def _commit(git: Git, clone: Path, name: str) -> str:
    found = await git.try_clone(clone, "rev-parse", "--verify", "-q", f"{name}^{{commit}}")
    return (found or "").strip()


async def _place(git: Git, clone: Path, wanted: Wanted) -> tuple[Path, str]:
    """Where the worktree is or will be: a path that is this clone's worktree or does not exist.

    A directory that belongs to nothing any more (its clone was made anew) is moved aside, with a
    note that says so. Raises GitError for one that is somebody's.
    """
    name = repo_name(wanted.url)
    for number in range(1, 10):
        path = wanted.parent / (name if number == 1 else f"{name}-{number}")
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise GitError(f"{path} is in the way: it is not a directory")
        if not path.exists() or not any(path.iterdir()):
            with suppress(OSError):
                path.rmdir()
            return path, ""
        if not (path / ".git").is_file():
            raise GitError(f"{path} is in the way: it is no worktree of a checkout")
        owner = await git_dir_of(git, path)
        if owner == clone:
            return path, ""
        if owner is None:
            aside = wanted.parent / f"{path.name}.kept-{_stamp()}"
            path.rename(aside)
            log.warning("worktree without a clone moved aside", path=str(aside))
            return path, f"what was there had lost its repository and is kept in {aside}"
    raise GitError(f"{wanted.parent} has too many repositories called {name}")


async def git_dir_of(git: Git, tree: Path) -> Path | None:
    """The directory of the repository a work tree belongs to; None if it belongs to none."""
    found = await git.try_tree(tree, "rev-parse", "--git-common-dir")
    return None if found is None else (tree / found.rstrip("\n")).resolve()


# -- a new worktree


async def _add(git: Git, clone: Path, path: Path, *, branch: str, base: str, ref: str) -> str:
    """Add a worktree; return its branch: the task's own, or one beside it when that is in use.

    A task whose worktree was removed goes on with its own commits, unless it asks for a base.
    """
    own = await _commit(git, clone, f"refs/heads/{branch}")
    is_free = own and not await _is_checked_out(git, clone, branch)
    is_behind = own and await _is_ancestor(git, clone, own, base)
    new = False
    words: tuple[str, ...]
    if is_free and is_behind:
        words = ("--no-track", "-B", branch, str(path), base)
    elif is_free and not ref:
        words = (str(path), branch)
    else:
        branch, new = await _free(git, clone, branch) if own else branch, True
        words = ("--no-track", "-b", branch, str(path), base)
    done = False
    try:
        await git.clone(clone, "worktree", "add", "-q", *words, deadline=TREE, guarded=True)
        done = True
    finally:
        if not done:
            with trio.move_on_after(TAKE_BACK, shield=True):
                await _take_back(git, clone, path, branch if new else "")
    return branch


async def _take_back(git: Git, clone: Path, path: Path, branch: str) -> None:
    await remove_tree(path)
    await git.try_clone(clone, "worktree", "prune", "--expire=now")
    if branch:
        await git.try_clone(clone, "branch", "-q", "-D", branch)


async def _free(git: Git, clone: Path, branch: str) -> str:
    for number in range(2, _TRIES):
        name = f"{branch}-{number}"
        if not await _commit(git, clone, f"refs/heads/{name}"):
            return name
    raise GitError(f"there are too many branches like {branch}")


async def _is_checked_out(git: Git, clone: Path, branch: str) -> bool:
    listed = await git.clone(clone, "worktree", "list", "--porcelain")
    return f"branch refs/heads/{branch}" in listed.splitlines()


async def _is_ancestor(git: Git, clone: Path, older: str, newer: str) -> bool:
    found = await git.try_clone(clone, "merge-base", "--is-ancestor", older, newer)
    return found is not None


# -- one that is there


async def _go_on(
    git: Git, clone: Path, path: Path, *, branch: str, base: str, ref: str
) -> CheckedOut:
    """Bring an existing worktree to where it is wanted, after keeping what is in it."""
    index = (await git.tree(path, "rev-parse", "--git-path", "index.lock")).rstrip("\n")
    remove_if_stale(path / index)
    state = await snapshots.look(git, path)
    saved = await snapshots.save(git, path) if state.has_work else ""
    own = await _commit(git, clone, f"refs/heads/{branch}")
    is_behind = own and await _is_ancestor(git, clone, own, base)
    if not ref and (state.has_work or (state.branch == branch and not is_behind)):
        note = "it was there already, with work in it, and is left as it is; --ref starts anew"
        return CheckedOut(path=path, branch=state.branch, saved=saved, note=note)
    try:
        if state.dirty:
            await git.tree(path, "reset", "-q", "--hard", deadline=TREE, guarded=True)
            await git.tree(path, "clean", "-q", "-fd", deadline=TREE, guarded=True)
        how = "-b"
        if own:
            is_free = state.branch == branch or not await _is_checked_out(git, clone, branch)
            if is_free and is_behind:
                how = "-B"
            else:
                branch = await _free(git, clone, branch)
        # ignored files are in no snapshot: git is to refuse rather than to overwrite one
        words = ("checkout", "-q", "--no-track", "--no-overwrite-ignore", how, branch, base)
        await git.tree(path, *words, deadline=TREE, guarded=True)
    except GitError as error:
        raise GitError(
            f"{error}; what was there is kept as {saved}" if saved else str(error)
        ) from error
    return CheckedOut(path=path, branch=branch, saved=saved)


def _stamp() -> str:
    return times.stamp(times.now()).replace("-", "").replace(":", "")
