"""Keep what is in a work tree and nowhere else, under references of our own.

Called before anything that could lose work: a checkout that moves a work tree, a reclaim that
removes one. Nothing in the work tree changes. What is kept has the shape of a stash, so `git stash
apply <ref>` brings it back: a commit of the files as they are, untracked ones too, whose parents
are HEAD and a commit of the index. Ignored files are not kept; whoever calls leaves them or says so.
All of it happens in a mirror (`daemon.repos.mirror`), so nothing that an agent has configured runs.
A save that fails is a GitError, and then nothing may be removed.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import attrs

from daemon.repos.git import TREE, Git
from daemon.repos.mirror import Mirror
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


async def look(mirror: Mirror) -> State:
    """Tell what a work tree holds. Raises GitError if it is broken."""
    run = mirror.run
    head = (await mirror.attempt("rev-parse", "--verify", "-q", "HEAD^{commit}")).strip()
    status = ""
    if mirror.place.tree is not None:
        words = ("status", "--porcelain", "-z", "--untracked-files=all")
        status = await run(*words, deadline=TREE, guarded=True)
    ahead = unkept = 0
    if head:
        ahead = int(await run("rev-list", "--count", head, "--not", "--remotes"))
    if ahead:
        unkept = int(await run("rev-list", "--count", head, "--not", *_KEPT))
    return State(
        head=head, branch=mirror.head.branch, dirty=bool(status), ahead=ahead, unkept=unkept
    )


async def work_of(mirror: Mirror, state: State, *, whole: bool) -> tuple[dict[str, str], str]:
    """What has to be kept: commits by the names they get, and the name that keeps the work tree.

    The name is "" for a work tree without work; it may be one that keeps the same work already, and
    then names no commit. `whole`: other branches and stashes, too. Raises GitError.
    """
    found: dict[str, str] = {}
    saved = ""
    if state.dirty:
        commit, saved = await _commit_of_files(mirror, state)
        if not saved:
            saved = saved_name(state.branch, _stamp(), commit)
            found[saved] = commit
    elif state.unkept:
        saved = saved_name(state.branch, _stamp(), state.head)
        found[saved] = state.head
    if whole:
        for name, commit in mirror.refs.items():
            if not name.startswith("refs/heads/") and name != "refs/stash":
                continue
            if commit == state.head and saved:
                continue
            words = ("rev-list", "--count", commit, "--not", *_KEPT)
            if int(await mirror.attempt(*words) or "0"):
                branch = name.removeprefix("refs/heads/").removeprefix("refs/")
                found[saved_name(branch, _stamp(), commit)] = commit
    return found, saved


async def _commit_of_files(mirror: Mirror, state: State) -> tuple[str, str]:
    """Make a commit of the files as they are; return it and the ref that keeps the same already."""
    run = mirror.run
    base = ("-p", state.head) if state.head else ()
    # writing an index may read files once more, through their filters
    staged = (await mirror.attempt("write-tree", guarded=True)).strip()  # "" when in conflict
    copy = mirror.dir / "bullpen-index"
    with suppress(FileNotFoundError):
        shutil.copy2(mirror.dir / "index", copy)
    # `add` starts a git in every submodule, which is a repository by itself; what is in one is kept
    # as in any repository of the agent's own
    listed = await run("ls-files", "-z", "--stage", index=copy)
    links = [row.partition("\t")[2] for row in listed.split("\0") if row.startswith("160000 ")]
    rest = (".", *(f":(exclude,literal){path}" for path in links)) if links else ()
    await run("add", "-A", "--", *rest, deadline=TREE, guarded=True, index=copy)
    files = (await run("write-tree", guarded=True, index=copy)).strip()
    if earlier := await _kept_already(mirror, state, files, staged):
        return "", earlier
    parents = base
    if staged and state.head:
        message = f"index on {state.branch or 'detached HEAD'}"
        index = await run("commit-tree", staged, *base, "-m", message)
        parents = (*base, "-p", index.strip())
    message = f"Kept by Bullpen from {mirror.place.name}, {state.branch or 'detached HEAD'}"
    return (await run("commit-tree", files, *parents, "-m", message)).strip(), ""


async def save(mirror: Mirror, to: Path, *, whole: bool = False) -> tuple[str, list[str]]:
    """Keep a repository's work in a git directory of ours.

    Returns the ref that keeps the work tree, "" if there was nothing to keep, and all refs that are
    new. The same work is kept once, however often this is called. Raises GitError.
    """
    commits, saved = await work_of(mirror, await look(mirror), whole=whole)
    await mirror.give(to, commits)
    return saved, list(commits)


async def keep_commit(git: Git, clone: Path, branch: str, commit: str) -> str:
    """Keep a commit of a clone unless it is published or kept already; return the new ref or ""."""
    ahead = await git.clone(clone, "rev-list", "--count", commit, "--not", *_KEPT)
    if not int(ahead):
        return ""
    name = saved_name(branch, _stamp(), commit)
    await git.clone(clone, "update-ref", name, commit)
    return name


async def _kept_already(mirror: Mirror, state: State, files: str, staged: str) -> str:
    """The ref that keeps exactly these files and this index on top of this HEAD."""
    pattern = f"{SAVED}/{state.branch or 'detached'}/"
    form = "%(tree) %(parent) %(refname)"
    for line in (await mirror.run("for-each-ref", f"--format={form}", pattern)).splitlines():
        tree_id, _, rest = line.partition(" ")
        *parents, name = rest.split(" ")
        if tree_id != files or (parents or [""])[0] != state.head:
            continue
        if not staged or len(parents) < 2:
            return name
        index = await mirror.attempt("rev-parse", "--verify", "-q", f"{parents[1]}^{{tree}}")
        if index.strip() == staged:
            return name
    return ""


def _stamp() -> str:
    moment = times.fine_stamp(times.now())
    return moment.replace("-", "").replace(":", "").replace(".", "")
