"""Give back the disk that tasks no longer need, and nothing that somebody might (spec 03 §24).

A pass runs half a minute after the start and then at the user's interval. It asks the server about
the owner of every directory, decides by table (`reclaim_rules`), and says of what stays why. Before
a directory goes, work in its repositories that is nowhere else is kept under a ref in the clone; a
repository for which that cannot be done keeps its directory until the user's limit for orphans.
Removing is one rename into a trash beside the workspaces, so that a task which comes at that moment
finds the directory whole or not at all. Tasks come first and call a removal off. It ends by being
cancelled.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import structlog
import trio

from daemon.client import ApiError
from daemon.repos.checkouts import lender_of
from daemon.repos.git import GitError
from daemon.repos.keeping import Keeper
from daemon.repos.kept import Owner
from daemon.repos.mirror import open_mirror
from daemon.repos.places import place_of
from daemon.upkeep.reclaim_rules import ENDPOINTS, Decision, Known, Limits, decide, span
from daemon.workdir.meta import CHAT, Meta, read_meta
from daemon.workdir.regular import read_regular
from shared import times
from shared.home import write_private
from shared.ids import canonical_id, is_id
from shared.mailbox import Nudge

if TYPE_CHECKING:
    from daemon.client import Client
    from daemon.config import Config
    from daemon.repos.clones import Clones
    from daemon.workdir.prepare import LiveRoots

log = structlog.get_logger(__name__)

FIRST: Final = 30.0
"""Seconds after the start of the first pass: a start has better things to do."""

ASKING: Final = 4
"""Directories looked at at a time."""

SECOND_LOOK: Final = 600.0
"""Seconds after which the server must still not show an owner before its directory goes."""

FEW: Final = 5
"""Directories of owners the server does not show that go in one pass, without an operator's word."""

TRASH: Final = ".trash"
REPORT: Final = ".reclaim.json"
"""What the last pass kept and why, below the workspaces root; `daemon disk-usage` shows it."""


@attrs.define(eq=False)
class Pass:
    """What one pass did. `kept` is why each directory that might have gone stays."""

    removed: list[str] = attrs.field(factory=list)
    absent: int = 0
    """How many went because the server does not know what they were for."""
    artifacts: int = 0
    kept: dict[str, str] = attrs.field(factory=dict)
    saved: list[str] = attrs.field(factory=list)
    expired: list[str] = attrs.field(factory=list)


class Reclaim:
    """Reclaims below one workspaces root."""

    def __init__(
        self,
        config: Config,
        client: Client,
        clones: Clones,
        live: LiveRoots,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._root = config.workspaces_root
        self._client = client
        self._clones = clones
        self._live = live
        self._wall = wall
        self.all_absent = False
        """Whether the next pass may remove any number of directories of unknown owners."""
        self._absent: dict[str, float] = {}
        """Directories whose owner the server does not show: since when, on the wall clock."""
        self._limits = Limits(
            ttl=config.gc_ttl,
            orphan=config.gc_orphan_ttl,
            artifacts=config.gc_artifact_ttl,
            patterns=frozenset(config.gc_artifact_patterns),
            kept=config.gc_kept_ttl,
        )

    async def run_once(self) -> Pass:
        """Go through every directory and clone once. Never raises for one of them."""
        done = Pass()
        if not self._absent:
            self._absent = await trio.to_thread.run_sync(absent_before, self._root)
        await self._empty_trash()
        limiter = trio.CapacityLimiter(ASKING)
        async with trio.open_nursery() as looking:
            for env_root in await trio.to_thread.run_sync(env_roots, self._root):
                await limiter.acquire_on_behalf_of(env_root)
                looking.start_soon(self._look, env_root, done, limiter)
        for folder in workspace_dirs(self._root):
            with suppress(OSError):  # not empty
                folder.rmdir()
        await self._empty_trash()
        for clone in self._clones.all():
            await self._prune(clone, done)
        await self._expire(done)
        await trio.to_thread.run_sync(self._clones.remove_unfinished)
        await trio.to_thread.run_sync(self._report, done)
        return done

    async def _look(self, env_root: Path, done: Pass, limiter: trio.CapacityLimiter) -> None:
        name = str(env_root.relative_to(self._root))
        try:
            why = await self._decide_and_do(env_root, done)
        except (OSError, GitError) as error:
            why = f"could not be reclaimed: {error}"
        finally:
            limiter.release_on_behalf_of(env_root)
        if why:
            done.kept[name] = why

    async def _decide_and_do(self, env_root: Path, done: Pass) -> str:
        """Look at one directory and act on it; return why it stays, "" if it went."""
        if env_root in self._live:
            return "a task works in it"
        meta = read_meta(env_root)
        name = str(env_root.relative_to(self._root))
        known = await self._ask(name, meta)

        async def act() -> str:
            idle = self._wall() - await trio.to_thread.run_sync(last_change, env_root)
            if read_meta(env_root) != meta:
                return "a task has just worked in it"
            moment = times.now()
            decision = decide(meta, known, idle=idle, now=moment, limits=self._limits)
            if decision.action == "remove":
                if known is not None and known.missing and (why := self._doubt(name, done)):
                    return f"{decision.why}, but {why}"
                return await self._remove(env_root, decision, idle, done)
            if decision.action == "artifacts":
                await self._remove_artifacts(env_root, done)
            return decision.why

        result = await self._live.reclaim(env_root, act)
        return "a task needs it" if result is None else result

    def _doubt(self, name: str, done: Pass) -> str:
        """Why a directory whose owner the server does not show stays all the same; "" if it goes.

        A server that was restored, or is another one, does not know anything either.
        """
        since = self._wall() - self._absent.get(name, self._wall())
        if since < SECOND_LOOK:
            return f"it goes only if that is so in {span(SECOND_LOOK - since)} as well"
        if done.absent >= FEW and not self.all_absent:
            return (
                f"only {FEW} of these go at a time: `bullpen daemon reclaim --all` lets all of "
                "them go at once"
            )
        done.absent += 1
        return ""

    async def _ask(self, name: str, meta: Meta | None) -> Known | None:
        """Ask the server about the directory's owner; None if there is nothing to ask about.

        Only the server's own words about that owner make it missing, and since when is remembered.
        """
        if meta is None or meta.kind not in ENDPOINTS or not meta.parent_id:
            return None
        try:
            check = await self._client.gc_check(f"{ENDPOINTS[meta.kind]}/{meta.parent_id}")
        except ApiError as error:
            if error.gone:
                self._absent.setdefault(name, self._wall())
                return Known(missing=True, gone_for_good=meta.kind == CHAT)
            return Known(failed=str(error))
        self._absent.pop(name, None)
        return Known(status=check.status, updated_at=check.updated_at)

    # -- removing

    async def _remove(self, env_root: Path, decision: Decision, idle: float, done: Pass) -> str:
        """Remove a directory, keeping the work in it first; return why it stays, "" if it went."""
        unkept = []
        is_last = idle > self._limits.orphan
        owner = await trio.to_thread.run_sync(_owner_of, env_root)
        keeper = Keeper(self._clones, env_root, owner, done.saved)
        unkept = await keeper.keep(at_last=is_last)
        if unkept and not is_last:
            left = span(self._limits.orphan - idle)
            return f"{decision.why}, but {'; '.join(unkept)}; it goes in {left}"
        # no await from here: what was kept is what goes
        self._discard(env_root)
        log.info("directory reclaimed", path=str(env_root), why=decision.why, lost=unkept or None)
        done.removed.append(f"{env_root.relative_to(self._root)}: {decision.why}")
        return ""

    async def _remove_artifacts(self, env_root: Path, done: Pass) -> None:
        """Remove what builds make again, except what a repository tracks."""
        names = self._limits.patterns
        found = await trio.to_thread.run_sync(lambda: list(artifacts(env_root, names)))
        for path in found:
            if await self._is_made(env_root, path):
                self._discard(path)
                done.artifacts += 1
        await self._empty_trash()

    async def _is_made(self, env_root: Path, path: Path) -> bool:
        """Whether a directory is a build's: no repository around it, or one that ignores it."""
        around = (place for place in path.parents if place.is_relative_to(env_root))
        tree = next((place for place in around if (place / ".git").exists()), None)
        if tree is None:
            return True
        place = await trio.to_thread.run_sync(place_of, tree)
        if place is None:
            return False
        folder = self._clones.folder / env_root.parent.name
        within = await trio.to_thread.run_sync(env_root.resolve)
        await trio.to_thread.run_sync(lambda: folder.mkdir(parents=True, exist_ok=True))
        relative = str(path.relative_to(tree))
        lender = lender_of(self._clones, place)
        try:
            async with open_mirror(
                self._clones.git, place, folder, lender=lender, within=within
            ) as mirror:
                if await mirror.run("ls-files", "-z", "--", f":(literal){relative}"):
                    return False
                await mirror.run("check-ignore", "-q", "--", relative)
        except GitError:
            return False
        return True

    def _discard(self, path: Path) -> None:
        """Take a directory away at once; its files go with the trash."""
        trash = self._root / TRASH
        trash.mkdir(exist_ok=True)
        path.rename(trash / f"{path.name}-{secrets.token_hex(4)}")

    async def _empty_trash(self) -> None:
        trash = self._root / TRASH
        if trash.is_dir():
            await trio.to_thread.run_sync(remove_tree, trash, abandon_on_cancel=True)

    # -- clones

    async def _prune(self, clone: Path, done: Pass) -> None:
        try:
            done.saved += [f"{clone.name} {ref}" for ref in await self._clones.prune(clone)]
            await self._clones.tidy(clone)
        except (GitError, ValueError) as error:
            log.warning("clone not pruned", clone=clone.name, error=str(error))

    async def _expire(self, done: Pass) -> None:
        """Let go of kept work and of clones as old as the user allows them to become."""
        ttl = self._limits.kept
        if not ttl:
            return
        before = datetime.fromtimestamp(self._wall() - ttl, UTC)
        for clone in self._clones.all():
            try:
                done.expired += await self._clones.expire(clone, before, self._discard)
            except (GitError, OSError, ValueError) as error:
                log.warning("clone not looked through", clone=clone.name, error=str(error))
        try:
            done.expired += await self._clones.expire_aside(before, self._discard)
        except (GitError, OSError) as error:
            log.warning("old clones and bundles stay", error=str(error))
        for name in done.expired:
            log.info("kept long enough; gone", what=name)
        await self._empty_trash()

    def _report(self, done: Pass) -> None:
        if done.removed or done.artifacts:
            log.info(
                "reclaimed",
                directories=len(done.removed),
                artifacts=done.artifacts,
                saved=len(done.saved),
                kept=len(done.kept),
            )
        there = (name for name in self._absent if (self._root / name).is_dir())
        self._absent = {name: self._absent[name] for name in there}
        told: dict[str, Any] = {"at": times.stamp(times.now()), **attrs.asdict(done)}
        told["missing_since"] = self._absent
        with suppress(OSError):
            if self._root.is_dir():
                write_private(self._root / REPORT, json.dumps(told, indent=2) + "\n")


async def run_reclaim(
    config: Config, client: Client, clones: Clones, live: LiveRoots, word: Nudge | None = None
) -> None:
    """Reclaim now and then until cancelled, unless the user switched it off.

    `word` is an operator's: a pass at once, with no limit for what the server does not show.
    """
    if not config.gc_enabled:
        return
    reclaim = Reclaim(config, client, clones, live)
    word = Nudge() if word is None else word
    due = trio.current_time() + FIRST
    while True:
        reclaim.all_absent = await word.wait(max(due - trio.current_time(), 0))
        spread = random.uniform(0.95, 1.05)  # noqa: S311
        due = trio.current_time() + config.gc_interval * spread
        try:
            await reclaim.run_once()
        except* Exception:  # upkeep must never end the daemon
            log.exception("reclaim failed")


# -- the disk; all of it synchronous, most of it run in a thread


def absent_before(root: Path) -> dict[str, float]:
    """Since when the server has not shown directories' owners, as the last report tells."""
    try:
        told = json.loads(read_regular(root / REPORT))
    except (OSError, ValueError):
        return {}
    since = told.get("missing_since") if isinstance(told, dict) else None
    found = since.items() if isinstance(since, dict) else ()
    return {str(name): float(moment) for name, moment in found if isinstance(moment, int | float)}


def workspace_dirs(root: Path) -> list[Path]:
    """The workspaces' directories."""
    return _dirs_of_ids(root)


def env_roots(root: Path) -> list[Path]:
    """Every task's directory: `<workspace>/<task>`, both full ids.

    Whatever else is there is not ours, however old: the user may have named a directory of theirs
    as the workspaces root.
    """
    return [path for folder in workspace_dirs(root) for path in _dirs_of_ids(folder)]


def _dirs_of_ids(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if is_id(path.name)
        and path.name == canonical_id(path.name)
        and path.is_dir()
        and not path.is_symlink()
    )


def last_change(env_root: Path) -> float:
    """When anything changed in a directory or its first two levels, as a wall-clock time."""
    newest = 0.0
    places = [env_root, *_entries(env_root)]
    places += [inner for place in places[1:] for inner in _entries(place)]
    for place in places:
        with suppress(OSError):
            newest = max(newest, place.lstat().st_mtime)
    return newest


def _entries(path: Path) -> list[Path]:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            return list(path.iterdir())
    return []


def _owner_of(env_root: Path) -> Owner:
    meta = read_meta(env_root)
    return Owner(task_id=env_root.name, issue_id=meta.issue_id if meta is not None else "")


def artifacts(env_root: Path, patterns: frozenset[str]) -> Iterator[Path]:
    """The directories below with one of the names, outermost only; no links, nothing of git's."""
    for folder, names, _ in os.walk(env_root):
        places = [Path(folder) / name for name in names if name in patterns]
        yield from (place for place in places if not place.is_symlink())
        names[:] = [name for name in names if name != ".git" and name not in patterns]


def remove_tree(path: Path) -> None:
    """Remove a tree, read-only directories (module caches have them) included; best effort."""

    def force(remove: Callable[[str], Any], name: str, _: Any) -> None:
        with suppress(OSError):
            parent = os.path.dirname(name)  # noqa: PTH120 - rmtree's own text
            for place in (parent, name):
                mode = os.lstat(place).st_mode
                if stat.S_ISDIR(mode):
                    os.chmod(place, stat.S_IRWXU)  # noqa: PTH101
            if remove is os.unlink or remove is os.rmdir:
                remove(name)
            else:
                shutil.rmtree(name, ignore_errors=True)

    shutil.rmtree(path, onerror=force)
