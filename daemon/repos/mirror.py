"""Look at an agent's repository through a git directory of the daemon's own.

Whoever runs git in a repository runs what its configuration says, and agents write theirs. A mirror
is a git directory in the daemon's folder, with the repository's references and HEAD and a copy of its
index, that borrows its objects. Git works on the agent's files with it, and reads nothing of the
agent's configuration but how text and names are written. What is made in a mirror reaches a clone
by a fetch, which checks every object it takes. A mirror lives for one block; those of a killed daemon
go with unfinished clones.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import attrs
import trio

from daemon import threads
from daemon.repos.git import FETCH, LOCAL, Git, GitError
from daemon.repos.names import SAVED
from daemon.repos.places import (
    Head,
    Place,
    Unreadable,
    has_plain_objects,
    lenders,
    read_head,
    read_refs,
    read_small,
)

CLONES_REMOTES: Final = "refs/remotes/bullpen-clone/"
"""What the clone knows of the server, in a mirror: an agent cannot make that up."""

_GIVEN: Final = "refs/bullpen-given/"
_TAKE_BACK: Final = 20.0
_MOST_LENDERS: Final = 5
"""How often a lender may borrow itself; git's own limit."""
_INDEX: Final = 1024 * 1024 * 1024

_SPELLING: Final = re.compile(
    r"core\.(autocrlf|eol|safecrlf|filemode|ignorecase|symlinks|precomposeunicode|trustctime"
    r"|checkstat)|extensions\.objectformat"
)
"""Settings of a repository that say how files are written, and run nothing."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9]{1,16}")


@attrs.frozen(kw_only=True)
class Mirror:
    """A repository as git may safely be run on it. `refs` are its references, less our own."""

    git: Git
    dir: Path
    place: Place
    head: Head
    refs: Mapping[str, str]

    @property
    def tree(self) -> Path:
        assert self.place.tree is not None
        return self.place.tree

    async def run(
        self,
        *args: str,
        deadline: float = LOCAL,
        guarded: bool = False,
        index: Path | None = None,
    ) -> str:
        """Run git on the work tree, if there is one. Raises GitError."""
        env = {"GIT_INDEX_FILE": str(index)} if index is not None else {}
        return await self.git.at(
            self.dir, *args, tree=self.place.tree, deadline=deadline, guarded=guarded, env=env
        )

    async def attempt(self, *args: str, guarded: bool = False, index: Path | None = None) -> str:
        """As `run`; "" when git says no."""
        try:
            return await self.run(*args, guarded=guarded, index=index)
        except GitError:
            return ""

    async def give(self, to: Path, commits: Mapping[str, str]) -> None:
        """Put commits under references of another git directory of ours. Raises GitError.

        `to` gets the objects it does not have; each is checked on the way.
        """
        if not commits:
            return
        words = []
        if to == self.dir:
            for name, commit in commits.items():
                await self.git.at(self.dir, "update-ref", name, commit)
            return
        for number, (name, commit) in enumerate(commits.items()):
            await self.git.at(self.dir, "update-ref", f"{_GIVEN}{number}", commit)
            words.append(f"{_GIVEN}{number}:{name}")
        local = ("-c", "protocol.file.allow=always")
        fetch = ("fetch", "-q", "--no-tags", "--no-write-fetch-head", str(self.dir), *words)
        await self.git.at(to, *local, *fetch, deadline=FETCH)


@asynccontextmanager
async def open_mirror(
    git: Git,
    place: Place,
    folder: Path,
    *,
    lender: Path | None = None,
    within: Path | None = None,
) -> AsyncIterator[Mirror]:
    """Make a mirror below `folder`; leaving the block removes it. Raises GitError.

    `lender` is the clone whose objects the repository may borrow: what that keeps already and what
    it knows of the server, the mirror knows. `within` is a directory, without links, in which
    repositories may borrow from each other, as from the clones in `folder`. One that borrows from
    elsewhere is refused: git would read for its agent what that may not read.
    """
    at = folder / f".mirror.{secrets.token_hex(6)}.new"
    kept: dict[str, str] = {}
    if lender is not None:
        kept = await _refs_of_clone(git, lender)
    try:
        try:
            refs, head = await threads.in_thread(lambda: _make(at, place, kept, lender, within))
        except (OSError, Unreadable) as error:
            raise GitError(f"it cannot be read: {error}") from error
        await _spell_alike(git, at, place.common / "config")
        yield Mirror(git=git, dir=at, place=place, head=head, refs=refs)
    finally:
        with trio.move_on_after(_TAKE_BACK, shield=True):
            await threads.in_thread(lambda: shutil.rmtree(at, ignore_errors=True))


async def _refs_of_clone(git: Git, clone: Path) -> dict[str, str]:
    """What a clone keeps, and what it knows of the server, as a mirror calls it."""
    form = "--format=%(objectname) %(refname)"
    listed = await git.clone(clone, "for-each-ref", form, SAVED, "refs/remotes/origin", "refs/tags")
    found = {}
    for line in listed.splitlines():
        commit, _, name = line.partition(" ")
        if not name.startswith(f"{SAVED}/"):
            name = CLONES_REMOTES + name.removeprefix("refs/").replace("remotes/origin/", "")
        found[name] = commit
    return found


def _make(
    at: Path, place: Place, kept: Mapping[str, str], lender: Path | None, within: Path | None
) -> tuple[dict[str, str], Head]:
    """Write a mirror's files; return the repository's references and HEAD. Raises Unreadable."""
    refs = read_refs(place.common)
    head = read_head(place.git_dir, refs)
    allowed = {str(lender / "objects")} if lender is not None else set()
    if lender is None or place.common != lender:
        _check_objects(place.common / "objects", allowed, [within, at.parent])
    theirs = {name: commit for name, commit in refs.items() if not name.startswith(f"{SAVED}/")}
    borrowed = [str(place.common / "objects"), *sorted(allowed)]
    write_git_dir(at, {**theirs, **kept}, head, borrowed)
    _copy_index(place, at)
    for name in ("info/exclude", "info/attributes", "shallow"):
        if (content := read_small(place.common / name)) is not None:
            (at / name).write_bytes(content)
    return theirs, head


def _check_objects(
    objects: Path, allowed: set[str], within: list[Path | None], *, depth: int = 0
) -> None:
    """Refuse objects that are not the repository's, nor borrowed from where it may borrow."""
    if depth > _MOST_LENDERS or not has_plain_objects(objects.parent):
        raise Unreadable("its objects are links to another repository's")
    for line in lenders(objects.parent):
        if line in allowed or not line or line.startswith("#"):
            continue
        borrowed = (objects / line).resolve()
        is_ours = any(place and borrowed.is_relative_to(place) for place in within)
        if not is_ours or borrowed.name != "objects":
            raise Unreadable("it borrows objects from another repository")
        _check_objects(borrowed, allowed, within, depth=depth + 1)


def write_git_dir(
    at: Path, refs: Mapping[str, str], head: Head, borrowed: list[str], config: str = ""
) -> None:
    """Write a git directory that is not bare, in git's own files. Raises OSError."""
    for name in ("objects/info", "objects/pack", "refs/heads", "refs/tags", "info", "hooks"):
        (at / name).mkdir(parents=True)
    (at / "config").write_text(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n" + config,
        encoding="utf-8",
    )
    if borrowed:
        (at / "objects/info/alternates").write_text("".join(f"{line}\n" for line in borrowed))
    packed = "".join(f"{commit} {name}\n" for name, commit in sorted(refs.items()))
    (at / "packed-refs").write_text(f"# pack-refs with: \n{packed}", errors="surrogateescape")
    text = f"ref: refs/heads/{head.branch}" if head.branch else head.commit
    (at / "HEAD").write_text(f"{text}\n", errors="surrogateescape")


def _copy_index(place: Place, at: Path) -> None:
    sources = [place.git_dir / "index", *place.git_dir.glob("sharedindex.*")]
    for source in sources:
        with suppress(FileNotFoundError):
            status = source.lstat()
            if source.is_symlink() or not source.is_file() or status.st_size > _INDEX:
                raise Unreadable("its index is no file of git's")
            shutil.copy2(source, at / source.name)


async def _spell_alike(git: Git, at: Path, config: Path) -> None:
    """Take over how the repository writes text and names."""
    if await threads.in_thread(lambda: read_small(config)) is None:
        return
    words = ("config", "--file", str(config), "--no-includes", "--list", "-z")
    listed = await git.try_at(at, *words)
    for entry in (listed or "").split("\0"):
        name, _, value = entry.partition("\n")
        if _SPELLING.fullmatch(name) and _PLAIN.fullmatch(value):
            if name.startswith("extensions."):
                await git.at(at, "config", "core.repositoryformatversion", "1")
            await git.at(at, "config", name, value)
