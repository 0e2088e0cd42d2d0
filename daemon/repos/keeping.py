"""Keep all the work in a task's directory before that goes.

Every repository whose git directory lies in it counts: checkouts, submodules, worktrees of the
agent's own repositories, clones within clones, bare ones. What a checkout has goes under refs of its
clone. What another repository has is a bundle beside the clones, made when the directory is about to
go for good; until then it is left as it is, with a word why. A repository that lies elsewhere stays
there and is not written to.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import structlog

from daemon import threads
from daemon.repos import snapshots
from daemon.repos.checkouts import lender_of
from daemon.repos.clones import Clones
from daemon.repos.git import GitError
from daemon.repos.kept import Owner, bundle, note
from daemon.repos.mirror import Mirror, open_mirror
from daemon.repos.places import Place, places_below

log = structlog.get_logger(__name__)


class Keeper:
    """Keeps the work of one task's directory; what it kept is added to `saved`."""

    def __init__(self, clones: Clones, env_root: Path, owner: Owner, saved: list[str]) -> None:
        self._clones = clones
        self._root = env_root
        self._real = env_root.resolve()
        self._owner = owner
        self._saved = saved
        self._folder = clones.folder / env_root.parent.name

    async def keep(self, *, at_last: bool) -> list[str]:
        """Keep everything; return what stands against it, a text for each repository."""
        unkept = []
        found = await threads.in_thread(lambda: list(places_below(self._root)))
        by_common: dict[Path, list[Place]] = {}
        for each in found:
            if isinstance(each, Path):
                name = each.relative_to(self._root)
                unkept.append(f"{name}: its repository is gone, so its work cannot be kept")
            else:
                by_common.setdefault(each.common, []).append(each)
        if by_common:
            await threads.in_thread(lambda: self._folder.mkdir(parents=True, exist_ok=True))
        for common, all_places in by_common.items():
            places = _each_once(all_places)
            try:
                problem = await self._keep(common, places, at_last=at_last)
            except (GitError, OSError, ValueError) as error:
                problem = f"its work cannot be kept: {error}"
            if problem:
                unkept.append(f"{self._name(places[0])}: {problem}")
        return unkept

    def _name(self, place: Place) -> str:
        path = place.tree or place.git_dir
        for root in (self._root, self._real):
            if path.is_relative_to(root):
                return str(path.relative_to(root))
        return str(path)

    async def _keep(self, common: Path, places: list[Place], *, at_last: bool) -> str:
        lender = await threads.in_thread(partial(lender_of, self._clones, places[0]))
        if lender is not None:
            # a worktree of an older version has only its own HEAD and files to keep
            for place in places:
                whole = common != lender and place is places[0]
                await self._keep_in_clone(place, lender, whole=whole)
            return ""
        if not common.is_relative_to(self._real):
            return await self._keep_elsewhere(places)
        return await self._keep_own(places, at_last=at_last)

    async def _keep_in_clone(self, place: Place, clone: Path, *, whole: bool) -> None:
        made = open_mirror(self._clones.git, place, self._folder, lender=clone, within=self._real)
        async with made as mirror:
            _, new = await snapshots.save(mirror, clone, whole=whole)
        for ref in new:
            await threads.in_thread(partial(note, clone, ref, self._owner))
            self._saved.append(f"{clone.name} {ref}")
            log.info("work kept", clone=clone.name, ref=ref)

    async def _keep_elsewhere(self, places: list[Place]) -> str:
        """Look at worktrees of a repository that stays where it is, with its commits."""
        for place in places:
            made = open_mirror(self._clones.git, place, self._folder, within=self._real)
            async with made as mirror:
                if (await snapshots.look(mirror)).dirty:
                    return "a worktree of a repository elsewhere has work that is nowhere else"
        return ""

    async def _keep_own(self, places: list[Place], *, at_last: bool) -> str:
        async with AsyncExitStack() as stack:
            mirrors: list[Mirror] = []
            has_work = False
            for place in places:
                made = open_mirror(self._clones.git, place, self._folder, within=self._real)
                mirror = await stack.enter_async_context(made)
                mirrors.append(mirror)
                has_work = has_work or await _has_work(mirror)
            if not has_work:
                return ""
            if not at_last:
                return "a repository of the agent's own has work that is nowhere else"
            for mirror in mirrors:
                await snapshots.save(mirror, mirrors[0].dir)
            made_file = await bundle(mirrors[0], self._folder, self._owner)
        self._saved.append(made_file.name)
        log.info("work kept in a bundle", path=str(made_file))
        return ""


async def _has_work(mirror: Mirror) -> bool:
    state = await snapshots.look(mirror)
    if state.has_work:
        return True
    return bool(await mirror.run("rev-list", "-1", "--all", "--not", "--remotes"))


def _each_once(places: list[Place]) -> list[Place]:
    """The places of one repository, its own first, and a work tree rather than none."""
    found: dict[Path, Place] = {}
    for place in places:
        if place.git_dir not in found or found[place.git_dir].tree is None:
            found[place.git_dir] = place
    return sorted(found.values(), key=lambda place: place.git_dir != place.common)
