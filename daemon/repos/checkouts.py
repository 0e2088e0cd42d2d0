"""Put a repository into a task's directory: a repository of its own, on a branch of the task's.

A checkout borrows the objects of the clone (`objects/info/alternates`) and shares nothing else:
configuration, hooks, references and index are its agent's alone. It is made in the daemon's folder
and renamed into place when it is whole. One that is there already is never reset or cleaned while
it has work: what is in it and nowhere else is kept under a ref of the clone first, and unless another
base was asked for, the work then goes on where it is. Git touches it through a mirror only. Whoever
calls holds the clone's lock. A call that fails or is cancelled takes back what it had begun.
"""

from __future__ import annotations

import re
import secrets
import shutil
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import structlog
import trio

from daemon import threads
from daemon.repos import snapshots
from daemon.repos.access import Access
from daemon.repos.clone_files import borrow, checkouts
from daemon.repos.clones import TAKE_BACK, Clones, remove_if_stale, remove_tree
from daemon.repos.git import TREE, Git, GitError
from daemon.repos.kept import issue_refs
from daemon.repos.mirror import Mirror, open_mirror, write_git_dir
from daemon.repos.names import branch_name, repo_name
from daemon.repos.older import Own, adopt_worktree
from daemon.repos.places import Head, Place, lenders, place_of
from daemon.repos.planting import plant, uproot
from shared import times

log = structlog.get_logger(__name__)

SUBMODULES: Final = 900.0
"""Seconds for all submodules of a checkout; they are fetched anew each time."""

_TRIES: Final = 100
_STATES: Final = (
    "MERGE_HEAD",
    "MERGE_MODE",
    "MERGE_MSG",
    "AUTO_MERGE",
    "CHERRY_PICK_HEAD",
    "REVERT_HEAD",
    "SQUASH_MSG",
)
"""What git leaves of something half done, which another start ends."""

_NO_REF: Final = re.compile(r"^[-+^]|[:\s\x00-\x1f\x7f]|\.\.")
"""Options, refspecs and ranges: git would take them for more than one commit."""


@attrs.frozen(kw_only=True)
class Wanted:
    """A repository by its address, `ref` ("" for the default branch), below `parent`.

    `default_ref` takes the place of the default branch where nobody asked for a ref. `env_root` is
    the task's directory, `parent` itself if None. `issue_id` decides which kept work
    the checkout is shown; `access` is how its server is reached, `helper` the agent's own way there.
    """

    url: str
    ref: str
    parent: Path
    agent_name: str
    task_id: str
    env_root: Path | None = None
    default_ref: str = ""
    issue_id: str = ""
    submodules: bool = True
    access: Access | None = None
    helper: str = ""

    @property
    def root(self) -> Path:
        return self.env_root or self.parent


@attrs.frozen(kw_only=True)
class CheckedOut:
    """Where it is. `saved`: the ref that keeps what was there before; `note`: what to know."""

    path: Path
    branch: str
    saved: str = ""
    note: str = ""


async def check_out(clones: Clones, clone: Path, wanted: Wanted) -> CheckedOut:
    """Check out into `<parent>/<repository>`. Raises GitError, which names what was kept."""
    base = await _base(clones, clone, wanted)
    path, there, note = await _place(clones, clone, wanted)
    known = await threads.in_thread(partial(checkouts, clone, wanted.root))
    if there is None:
        branch = _beside(branch_name(wanted.agent_name, wanted.task_id), path, known)
        await threads.in_thread(partial(borrow, clone, wanted.root, path, branch))
        missing = await _add(clones.git, clone, path, wanted, branch=branch, base=base)
        notes = [text for text in (note, missing) if text]
        return CheckedOut(path=path, branch=branch, note="; ".join(notes))
    branch = branch_name(wanted.agent_name, wanted.task_id)
    done = await _go_on(clones, clone, there, wanted, branch=branch, base=base)
    await threads.in_thread(partial(borrow, clone, wanted.root, path, done.branch))
    return attrs.evolve(done, note="; ".join(text for text in (note, done.note) if text))


def lender_of(clones: Clones, place: Place) -> Path | None:
    """The clone a repository borrows from, or that a worktree of an older version belongs to."""
    if clones.owns(place.common):
        return place.common
    for line in lenders(place.common):
        clone = Path(line).parent
        if clones.owns(clone) and Path(line).name == "objects":
            return clone
    return None


async def _base(clones: Clones, clone: Path, wanted: Wanted) -> str:
    """The commit to start from. Raises GitError."""
    git, ref = clones.git, wanted.ref or wanted.default_ref
    if _NO_REF.search(ref):
        raise GitError(f"{ref!r} is no branch, tag or commit")
    if ref:
        for name in (f"refs/remotes/origin/{ref}", f"refs/tags/{ref}", ref):
            if commit := await _commit(git, clone, name):
                return commit
        if commit := await clones.fetch_one(clone, ref, wanted.access):
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


async def _place(clones: Clones, clone: Path, wanted: Wanted) -> tuple[Path, Place | None, str]:
    """Where the checkout is or will be, what is there (None for nothing), and what to say of it.

    A directory that belongs to nothing any more is moved aside, with a note that says so. Raises
    GitError for one that is somebody's.
    """
    name = repo_name(wanted.url)
    known = await threads.in_thread(partial(checkouts, clone, wanted.root))
    for number in range(1, 10):
        path = wanted.parent / (name if number == 1 else f"{name}-{number}")
        kind = await threads.in_thread(partial(_kind, path))
        if kind == "other":
            raise GitError(f"{path} is in the way: it is not a directory")
        if kind == "free":
            return path, None, ""
        if kind == "plain":
            raise GitError(f"{path} is in the way: it is no checkout of ours")
        there = await threads.in_thread(partial(place_of, path))
        if there is None:
            aside = wanted.parent / f"{path.name}.kept-{_stamp()}"
            path.rename(aside)
            log.warning("checkout without a repository moved aside", path=str(aside))
            return (
                path,
                None,
                f"what was there had lost its repository and is kept in {aside}",
            )
        owner = await threads.in_thread(partial(lender_of, clones, there))
        if owner == clone or str(path) in known:
            there, note = await adopt(clones, clone, there, wanted)
            return path, there, note
        if owner is None:
            raise GitError(f"{path} is in the way: it is no checkout of ours")
    raise GitError(f"{wanted.parent} has too many repositories called {name}")


def _kind(path: Path) -> str:
    """What is at a path: `free`, `other` (no directory), `plain` (no repository), `checkout`."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        return "other"
    if not path.exists():
        return "free"
    if not any(path.iterdir()):
        path.rmdir()
        return "free"
    return "checkout" if (path / ".git").exists() or (path / ".git").is_symlink() else "plain"


async def adopt(clones: Clones, clone: Path, there: Place, wanted: Wanted) -> tuple[Place, str]:
    """Make what an older version left a checkout of its own, or mend one; return what was done.

    Raises GitError.
    """
    if there.common == clone:
        refs = await _refs_for(clones.git, clone, wanted)
        own = Own(refs=refs, config=_config(wanted), task_id=wanted.task_id)
        return await adopt_worktree(clone, there, own), ""
    needed = f"{clone / 'objects'}"
    if there.git_dir != there.common or await threads.in_thread(
        lambda: lenders(there.common) == [needed]
    ):
        return there, ""
    await threads.in_thread(
        partial(plant, there.common, "objects/info/alternates", f"{needed}\n".encode())
    )
    log.warning("what a checkout borrows was changed; mended", path=str(there.tree))
    return there, "where it borrows objects from had been changed and is mended"


# -- a new checkout


def _beside(branch: str, path: Path, known: dict[str, str]) -> str:
    """The task's branch, or one beside it when another checkout of the task's has that."""
    used = {name for place, name in known.items() if place != str(path) and Path(place).exists()}
    names = (branch, *(f"{branch}-{number}" for number in range(2, _TRIES)))
    return next(name for name in names if name not in used)


async def _add(git: Git, clone: Path, path: Path, wanted: Wanted, *, branch: str, base: str) -> str:
    """Make a checkout; return what to know of its submodules."""
    staging = clone.parent / f".{path.name}.{secrets.token_hex(4)}.new"
    tree = staging / path.name
    git_dir = tree / ".git"
    refs = await _refs_for(git, clone, wanted)
    refs[f"refs/heads/{branch}"] = base
    default = await git.try_clone(clone, "symbolic-ref", "-q", "refs/remotes/origin/HEAD")

    def make() -> None:
        write_git_dir(git_dir, refs, Head(branch=branch), [str(clone / "objects")], _config(wanted))
        if default:
            plant(git_dir, "refs/remotes/origin/HEAD", f"ref: {default.strip()}\n".encode())

    try:
        await threads.in_thread(make)
        words = ("read-tree", "-m", "-u", "HEAD")
        access = wanted.access
        await git.at(git_dir, *words, tree=tree, deadline=TREE, guarded=True, access=access)
        missing = await _submodules(git, git_dir, tree, wanted)
        await threads.in_thread(partial(_move, tree, path))
    finally:
        with trio.move_on_after(TAKE_BACK, shield=True):
            await remove_tree(staging)
    return missing


def _move(tree: Path, path: Path) -> None:
    if path.exists():
        raise GitError(f"{path} is in the way: it has just been made")
    shutil.move(tree, path)


async def _submodules(git: Git, git_dir: Path, tree: Path, wanted: Wanted) -> str:
    """Check submodules out; return what to say where that was not to be, or failed."""
    if not (tree / ".gitmodules").is_file():
        return ""
    later = "`git submodule update --init --recursive` fetches them"
    if not wanted.submodules:
        return f"its submodules are not checked out: {later}"
    words = ("submodule", "--quiet", "update", "--init", "--recursive", "--jobs=4")
    try:
        await git.at(
            git_dir, *words, tree=tree, deadline=SUBMODULES, guarded=True, access=wanted.access
        )
    except GitError as error:
        log.warning("submodules not checked out", url=wanted.url, error=str(error))
        return f"not all submodules are checked out ({_one_line(error)}); {later}"
    return ""


def _one_line(error: GitError) -> str:
    return " ".join(str(error).split())[:400]


async def _refs_for(git: Git, clone: Path, wanted: Wanted) -> dict[str, str]:
    """What a checkout knows of its clone: the server's branches, tags, its issue's kept work."""
    form = "--format=%(objectname) %(refname) %(symref)"
    listed = await git.clone(clone, "for-each-ref", form, "refs/remotes/origin", "refs/tags")
    rows = (line.split(" ") for line in listed.splitlines())
    refs = {name: commit for commit, name, symbolic in rows if not symbolic}
    kept = await threads.in_thread(partial(issue_refs, clone, wanted.issue_id))
    for name in kept:
        if commit := await _commit(git, clone, name):
            refs[name] = commit
    return refs


def _config(wanted: Wanted) -> str:
    url = wanted.url.replace("\\", "\\\\").replace('"', '\\"')
    text = (
        "\tlogallrefupdates = true\n"
        f'[remote "origin"]\n\turl = "{url}"\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n'
        "[push]\n\tautoSetupRemote = true\n"
    )
    if wanted.access is not None and wanted.helper:
        text += (
            f'[credential "{wanted.access.server}"]\n\thelper =\n\thelper = {wanted.helper}\n'
            "\tuseHttpPath = true\n"
        )
    return text


# -- one that is there


async def _go_on(
    clones: Clones, clone: Path, there: Place, wanted: Wanted, *, branch: str, base: str
) -> CheckedOut:
    """Bring an existing checkout to where it is wanted, after keeping what is in it."""
    git, path, git_dir = clones.git, there.tree, there.git_dir
    assert path is not None
    await threads.in_thread(partial(remove_if_stale, git_dir / "index.lock"))
    async with open_mirror(git, there, clone.parent, lender=clone) as mirror:
        state = await snapshots.look(mirror)
        saved, new = await snapshots.save(mirror, clone) if state.has_work else ("", [])
        for name in new:
            commit = await _commit(git, clone, name)
            await threads.in_thread(partial(plant, there.common, name, f"{commit}\n".encode()))
        own = mirror.refs.get(f"refs/heads/{branch}", "")
        is_behind = bool(own) and await _is_ancestor(mirror, own, base)
        if not wanted.ref and (state.has_work or (state.branch == branch and not is_behind)):
            note = "it was there already, with work in it, and is left as it is; --ref starts anew"
            return CheckedOut(path=path, branch=state.branch, saved=saved, note=note)
        if own and not (is_behind and (state.branch == branch or not _has_worktrees(there))):
            branch = _free(mirror, branch)
        try:
            await _switch(mirror, there, branch=branch, base=base, dirty=state.dirty)
        except GitError as error:
            raise GitError(
                f"{error}; what was there is kept as {saved}" if saved else str(error)
            ) from error
        note = ""
        if (path / ".gitmodules").is_file():
            note = "its submodules are as they were: `git submodule update --init --recursive`"
    return CheckedOut(path=path, branch=branch, saved=saved, note=note)


async def _switch(mirror: Mirror, there: Place, *, branch: str, base: str, dirty: bool) -> None:
    """Make the work tree that of a branch at a commit, and tell its repository."""
    moved = False
    try:
        if dirty:
            await mirror.run("reset", "-q", "--hard", deadline=TREE, guarded=True)
            await mirror.run("clean", "-q", "-fd", deadline=TREE, guarded=True)
        # ignored files are in no snapshot: git is to refuse rather than to overwrite one
        words = ("checkout", "-q", "--no-track", "--no-overwrite-ignore", "-B", branch, base)
        await mirror.run(*words, deadline=TREE, guarded=True)
        moved = True
    finally:
        # the files have changed in any case, and the index has to say so
        with trio.move_on_after(TAKE_BACK, shield=True):
            index = await threads.in_thread((mirror.dir / "index").read_bytes)
            await threads.in_thread(partial(plant, there.git_dir, "index", index))
    known = await _origin(mirror)

    def tell() -> None:
        for name, commit in known.items():
            plant(there.common, name, f"{commit}\n".encode())
        plant(there.common, f"refs/heads/{branch}", f"{base}\n".encode())
        plant(there.git_dir, "HEAD", f"ref: refs/heads/{branch}\n".encode())
        for name in _STATES:
            uproot(there.git_dir, name)

    if moved:
        try:
            await threads.in_thread(tell)
        except OSError as error:
            raise GitError(f"its references cannot be written: {error}") from error


async def _origin(mirror: Mirror) -> dict[str, str]:
    """The server's branches of which the clone knows something newer than the checkout."""
    form = "--format=%(objectname) %(refname:lstrip=3)"
    listed = await mirror.run("for-each-ref", form, "refs/remotes/bullpen-clone")
    newer = {}
    for line in listed.splitlines():
        commit, _, name = line.partition(" ")
        ours = f"refs/remotes/origin/{name}"
        if not name.startswith("tags/") and name != "HEAD" and mirror.refs.get(ours) != commit:
            newer[ours] = commit
    return newer


def _free(mirror: Mirror, branch: str) -> str:
    names = (f"{branch}-{number}" for number in range(2, _TRIES))
    free = next((name for name in names if f"refs/heads/{name}" not in mirror.refs), "")
    if not free:
        raise GitError(f"there are too many branches like {branch}")
    return free


def _has_worktrees(there: Place) -> bool:
    return (there.common / "worktrees").exists()


async def _is_ancestor(mirror: Mirror, older: str, newer: str) -> bool:
    try:
        await mirror.run("merge-base", "--is-ancestor", older, newer)
    except GitError:
        return False
    return True


def _stamp() -> str:
    return times.stamp(times.now()).replace("-", "").replace(":", "")
