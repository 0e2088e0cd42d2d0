"""One bare clone per workspace and repository: made on demand, brought up to date, mended.

Only the daemon writes into a clone. Checkouts are repositories of their own that borrow its objects,
so nothing an agent configures is ever in one; a clone whose settings were changed all the same, on a
machine where agents can reach it, is mended before it is used, and that is told. As long as there
are tasks' directories that borrow from a clone, no object of it is removed.

A clone is made under another name and renamed when it is whole, so one that is there is complete.
Making and fetching are shared by everybody who asks meanwhile and belong to the daemon, not to who
asked; they hold no lock that a checkout needs. The clone's lock guards its worktrees and branches,
and the moment a damaged clone is set aside. Nothing is ever deleted that may hold somebody's work:
a clone that git can no longer read is kept beside the new one.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from daemon import threads
from daemon.repos.access import Access
from daemon.repos.clone_files import borrowers, settle
from daemon.repos.flights import Flights, KeyLocks
from daemon.repos.git import CLONE, FETCH, GC, Git, GitError
from daemon.repos.kept import bundles, drop, list_kept, local_work
from daemon.repos.names import SAVED, TASK_BRANCHES, clone_name
from daemon.repos.snapshots import keep_commit
from daemon.repos.visible import FOLDER
from shared import times

log = structlog.get_logger(__name__)

_STALE_LOCK: Final = 600.0
"""Seconds after which a lock file belongs to a git that was killed: no command here runs longer
while it holds one."""

TAKE_BACK: Final = 20.0
"""Seconds that removing what a cancelled call has begun may take."""

_HELPER: Final = re.compile(r"[A-Za-z0-9+.-]*::")
"""Addresses of git's remote helpers, some of which run commands."""

_USED: Final = "bullpen-used"
"""A file in a clone whose time says when somebody last asked for it."""

_ASIDE: Final = re.compile(r"\.git\.damaged-(\d{8}T\d{6})Z")

_PACKS: Final = 40
_LOOSE: Final = 6000
"""Packs and loose objects a clone may have before it is tidied; git's own limits are near."""


class Clones:
    """The clones below one workspaces root. `flights` run in the nursery of who opens this."""

    def __init__(self, git: Git, root: Path, nursery: trio.Nursery) -> None:
        self.git = git
        self.folder = root.resolve() / FOLDER  # git names its directories without links
        self.locks: KeyLocks[Path] = KeyLocks()
        self.mended: dict[Path, str] = {}
        """What was changed in a clone and put right; whoever tells somebody takes it out."""
        self._flights: Flights[Path, None] = Flights(nursery)

    def path(self, workspace_id: str, url: str) -> Path:
        return self.folder / workspace_id / clone_name(url)

    def hold(self, clone: Path) -> AbstractAsyncContextManager[None]:
        """Hold a clone's lock: nobody else adds or removes worktrees and branches."""
        return self.locks.hold(clone)

    def all(self) -> list[Path]:
        """Every clone there is, without the unfinished and those set aside."""
        return clone_dirs(self.folder.parent)

    def owns(self, path: Path) -> bool:
        """Whether a git directory is one of the clones."""
        return path.parent.parent == self.folder

    async def refresh(
        self, workspace_id: str, url: str, *, suspect: bool = False, access: Access | None = None
    ) -> Path:
        """Return the repository's clone, made or brought up to date.

        An existing clone whose server cannot be reached is good enough, with a warning in the log.
        Whether all of it can be read is looked at when fetching fails, or it is `suspect`: that
        takes a while. Raises GitError when there is none and none can be made.
        """
        if url.startswith("-") or _HELPER.match(url) or any(ord(letter) < 32 for letter in url):
            raise GitError("that is not the address of a repository")
        clone = self.path(workspace_id, url)
        await self._flights.share(clone, partial(self._refresh, clone, url, suspect, access))
        return clone

    async def _refresh(self, clone: Path, url: str, suspect: bool, access: Access | None) -> None:
        if _is_there(clone):
            _mark_used(clone)
            await self._settle(clone, url)
            if await self._is_readable(clone):
                try:
                    await self._fetch(clone, access)
                except GitError as error:
                    log.warning("clone not brought up to date", clone=clone.name, error=str(error))
                    suspect = True
                if not suspect or await self._is_whole(clone):
                    return
            await self._set_aside(clone)
        await self._make(clone, url, access)

    async def _make(self, clone: Path, url: str, access: Access | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)  # whoever has an account here need not read the code
        clone.parent.mkdir(exist_ok=True)
        new = clone.with_name(f".{clone.name}.{secrets.token_hex(4)}.new")
        try:
            new.mkdir()
            await self.git.clone(new, "init", "--bare", "-q", "--template=", str(new))
            await threads.in_thread(partial(settle, new, url))
            await self._fetch(new, access, "--tags", deadline=CLONE)
            _mark_used(new)
            new.rename(clone)
        except OSError as error:
            raise GitError(f"cannot make a clone in {clone.parent}: {error}") from error
        finally:
            if _is_there(new):
                with trio.move_on_after(TAKE_BACK, shield=True):
                    await remove_tree(new)
        log.info("cloned", clone=clone.name)

    async def _settle(self, clone: Path, url: str) -> None:
        """Make a clone's settings what they are to be, and remember it if others had changed them."""
        try:
            changed = await threads.in_thread(partial(settle, clone, url))
        except OSError as error:
            raise GitError(f"the clone's settings cannot be written: {error}") from error
        if changed:
            log.warning("clone changed by somebody; mended", clone=clone.name, what=changed)
            self.mended[clone] = f"somebody had changed {', '.join(changed)}"

    async def _fetch(
        self, clone: Path, access: Access | None, *extra: str, deadline: float = FETCH
    ) -> None:
        git = self.git
        await trio.to_thread.run_sync(remove_stale_locks, clone)
        # FETCH_HEAD is left to `fetch_one`, which reads it
        words = ("fetch", "-q", "--no-write-fetch-head", *extra, "origin")
        await git.clone(clone, *words, deadline=deadline, guarded=True, access=access)
        with suppress(GitError):  # an empty repository has no HEAD
            head = ("remote", "set-head", "origin", "--auto")
            await git.clone(clone, *head, guarded=True, access=access)

    async def fetch_one(self, clone: Path, ref: str, access: Access | None = None) -> str:
        """Fetch what plain fetching leaves out, such as a tag or a pull request; its commit or "".

        The caller holds the clone's lock.
        """
        with suppress(GitError):
            words = ("fetch", "-q", "--no-tags", "origin", ref)
            await self.git.clone(clone, *words, deadline=FETCH, guarded=True, access=access)
            found = await self.git.clone(
                clone, "rev-parse", "--verify", "-q", "FETCH_HEAD^{commit}"
            )
            return found.strip()
        return ""

    async def address(self, clone: Path) -> str:
        """The address a clone is fetched from; "" if it says none."""
        return ((await self.git.try_clone(clone, "config", "remote.origin.url")) or "").strip()

    async def _is_readable(self, clone: Path) -> bool:
        if not ((clone / "objects").is_dir() and (clone / "HEAD").is_file()):
            return False
        return await self.git.try_clone(clone, "rev-parse", "--git-dir") is not None

    async def _is_whole(self, clone: Path) -> bool:
        """Whether what came from the server can be read."""
        walk = ("rev-list", "--objects", "--quiet", "--remotes")
        try:
            await self.git.clone(clone, *walk, deadline=FETCH)
        except GitError as error:
            return error.code is None  # taking too long proves nothing
        return True

    async def _set_aside(self, clone: Path) -> None:
        """Keep a damaged clone under another name: it may hold what agents committed."""
        async with self.hold(clone):
            try:
                aside = _rename_aside(clone)
            except OSError as error:
                raise GitError(f"cannot set a damaged clone aside: {error}") from error
        log.error("clone is damaged; set aside and made anew", clone=clone.name, kept=str(aside))

    # -- upkeep

    async def prune(self, clone: Path) -> list[str]:
        """Forget worktrees that are gone and task branches nobody needs; return what keeps them now.

        A branch is needed while it is checked out, or has commits that neither the server nor a
        ref of ours has; those get such a ref. Raises GitError.
        """
        async with self.hold(clone):
            await self.prune_worktrees(clone)
            used = {tree.get("branch", "") for tree in await self.worktrees(clone)}
            kept = []
            form = "%(refname)"
            listed = await self.git.clone(clone, "for-each-ref", f"--format={form}", TASK_BRANCHES)
            for ref in listed.split():
                if ref in used:
                    continue
                ahead = await self.git.clone(
                    clone, "rev-list", "--count", ref, "--not", "--remotes", "--glob=refs/bullpen"
                )
                name = ref.removeprefix("refs/heads/")
                if int(ahead):
                    # the branch goes the next time: its task may want it back until then
                    kept.append(await keep_commit(self.git, clone, name, ref))
                else:
                    with suppress(GitError):  # git knows of a rebase that is under way in it
                        await self.git.clone(clone, "branch", "-q", "-D", name)
        return kept

    async def worktrees(self, clone: Path) -> list[dict[str, str]]:
        """What git says of the clone's worktrees: `worktree`, `HEAD`, `branch`, `prunable`."""
        listed = await self.git.clone(clone, "worktree", "list", "--porcelain")
        found = []
        for block in listed.split("\n\n"):
            fields = dict(_field(line) for line in block.splitlines())
            if fields and "bare" not in fields:
                found.append(fields)
        return found

    async def prune_worktrees(self, clone: Path) -> None:
        """Forget worktrees that are gone, but not what was committed in them off any branch.

        The caller holds the clone's lock.
        """
        for tree in await self.worktrees(clone):
            if "prunable" in tree and "branch" not in tree:
                with suppress(GitError):  # an unborn or broken HEAD
                    await keep_commit(self.git, clone, "", tree["HEAD"])
        await self.git.clone(clone, "worktree", "prune", "--expire=now")

    async def expire(
        self, clone: Path, before: datetime, discard: Callable[[Path], None]
    ) -> list[str]:
        """Let go of kept work from before a time, and of a clone that nobody has used since.

        Branches and stashes of agents go only where no worktree is left that could want them. What
        `discard` gets is out of the way when it returns. Returns what went. Raises GitError.
        """
        gone = []
        async with self.hold(clone):
            trees = await self.worktrees(clone)
            for each in await list_kept(self.git, clone):
                ours = each.ref.startswith(f"{SAVED}/")
                if each.at < before and (ours or not trees):
                    await drop(self.git, each)
                    gone.append(f"{clone.name} {each.ref}")
            if trees or await local_work(self.git, clone):
                return gone
            if await threads.in_thread(partial(borrowers, clone)):
                return gone
            # no await from here: who asks for the clone now marks it first
            if _used(clone) < before.timestamp():
                discard(clone)
                gone.append(clone.name)
        return gone

    async def expire_aside(self, before: datetime, discard: Callable[[Path], None]) -> list[str]:
        """Let go of damaged clones and of bundles that were put there before a time."""
        gone = []
        for path in sorted(self.folder.glob("*/*.git.damaged-*")):
            match = _ASIDE.search(path.name)
            if match and _moment(match[1]) < before:
                discard(path)
                gone.append(path.name)
        for folder in self.folder.glob("*"):
            for each in await trio.to_thread.run_sync(bundles, folder):
                if each.at < before:
                    await drop(self.git, each)
                    gone.append(each.place.name)
        return gone

    async def tidy(self, clone: Path) -> None:
        """Pack a clone that needs it, without a lock: git keeps this apart from other work."""
        counted = await self.git.clone(clone, "count-objects", "-v")
        numbers = dict(line.split(": ", 1) for line in counted.splitlines() if ": " in line)
        if int(numbers.get("packs", 0)) <= _PACKS and int(numbers.get("count", 0)) <= _LOOSE:
            return
        if await threads.in_thread(partial(borrowers, clone)):
            # a checkout may need what no reference of the clone reaches any more
            words = ("repack", "-q", "-a", "-d", "--keep-unreachable")
            await self.git.clone(clone, *words, deadline=GC, guarded=True)
            await self.git.clone(clone, "pack-refs", "--all", deadline=GC)
        else:
            await self.git.clone(
                clone, "gc", "-q", "--prune=30.days.ago", deadline=GC, guarded=True
            )

    def remove_unfinished(self) -> None:
        """Remove clones that a killed daemon left half made, once nobody can be at it any more."""
        for path in self.folder.glob("*/.*.new"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > CLONE + FETCH:
                    shutil.rmtree(path, ignore_errors=True)


def clone_dirs(root: Path) -> list[Path]:
    """Every clone below a workspaces root, without the unfinished and those set aside."""
    return sorted(path for path in (root / FOLDER).glob("*/*.git") if not _is_aside(path))


async def remove_tree(path: Path) -> None:
    """Remove a directory, as far as that can be done, without holding anybody up."""
    remove = partial(shutil.rmtree, path, ignore_errors=True)
    await trio.to_thread.run_sync(remove, abandon_on_cancel=True)


def remove_stale_locks(clone: Path) -> None:
    """Remove the lock files of gits that were killed."""
    for path in (*clone.glob("*.lock"), *clone.glob("refs/**/*.lock")):
        remove_if_stale(path)


def remove_if_stale(path: Path) -> None:
    """Remove a lock file that is too old to be anybody's."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _STALE_LOCK:
            path.unlink()
            log.warning("stale lock removed", path=str(path))


def _is_there(clone: Path) -> bool:
    return clone.exists()


def _mark_used(clone: Path) -> None:
    with suppress(OSError):
        (clone / _USED).touch()


def _used(clone: Path) -> float:
    """When a clone was last asked for; for one of an older version, when it was last changed."""
    newest = 0.0
    for place in (clone / _USED, clone, clone / "worktrees", clone / "objects" / "pack"):
        with suppress(OSError):
            newest = max(newest, place.stat().st_mtime)
    return newest


def _moment(stamp: str) -> datetime:
    return datetime.strptime(stamp, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


def _rename_aside(clone: Path) -> Path:
    stamp = times.stamp(times.now()).replace("-", "").replace(":", "")
    aside = clone.with_name(f"{clone.name}.damaged-{stamp}-{secrets.token_hex(2)}")
    return clone.rename(aside)


def _is_aside(path: Path) -> bool:
    return path.name.startswith(".") or ".git.damaged-" in path.name


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(" ")
    return name, value
