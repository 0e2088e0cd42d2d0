"""Make a task's working directory ready, fresh or the one its predecessor left.

It owns nothing that runs. `LiveRoots` knows which directories tasks of this daemon use now, so that
no two ever share one; the task holds its directory until its very end. What works on disk blocks,
and is called in threads: a user's disk may be a network's.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import structlog
import trio

from daemon.workdir.borrowed import Borrowed, give_back, give_back_left
from daemon.workdir.brief import BRIEF_FILES, brief_file, without_block, written_brief
from daemon.workdir.codex_home import make_codex_home
from daemon.workdir.context import ISSUE_CONTEXT, RESOURCES, render_context, render_resources
from daemon.workdir.cursor_mcp import MCP_FILE, data_files, managed_servers, mcp_file
from daemon.workdir.errors import PrepareError
from daemon.workdir.layout import Layout, LayoutError, layout_of, layout_of_prior
from daemon.workdir.local import LocalDirectory
from daemon.workdir.regular import read_regular
from daemon.workdir.sidecars import Sidecars, clean_up, remove_link_out
from daemon.workdir.skills import FALLBACK, SkillError, folder_for, plan_skills
from shared.home import write_private
from shared.wire.task import ClaimedTask

log = structlog.get_logger(__name__)

T = TypeVar("T")

SHORT: Final = 60
"""Bytes of a TMPDIR that leave enough room for the names of sockets."""


@attrs.frozen(kw_only=True)
class Prepared:
    """A directory for an agent. `reused`: it is the one the prior task worked in.

    `borrowed` is what is known of a user's directory; None for one of ours. `skills_in` says where
    the skills are, below the directory. `variables` are for the agent's environment.
    """

    layout: Layout
    reused: bool
    local: LocalDirectory | None = None
    borrowed: Borrowed | None = attrs.field(default=None, eq=False)
    skills_in: str = ""
    variables: Mapping[str, str] = attrs.field(factory=dict, repr=False)


@attrs.define(eq=False)
class _Reclaim:
    """Somebody is about to remove an env root; `scope` calls that off until it is done."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    over: trio.Event = attrs.field(factory=trio.Event)


class LiveRoots:
    """The env roots in use by this daemon's tasks, and those about to be reclaimed.

    Tasks come first: a reclaim takes only what nobody holds, and a task that comes meanwhile calls
    it off. Only `hold` and `reclaim` change the sets.
    """

    def __init__(self) -> None:
        self._roots: set[Path] = set()
        self._reclaims: dict[Path, _Reclaim] = {}

    def __contains__(self, root: Path) -> bool:
        return root in self._roots

    @contextmanager
    def hold_free(self, *roots: Path) -> Iterator[frozenset[Path]]:
        """Keep everybody else out of those of the roots that are free; yields the others."""
        taken = frozenset(root for root in roots if root in self._roots)
        mine = set(roots) - taken
        self._roots |= mine
        try:
            yield taken
        finally:
            self._roots -= mine

    @contextmanager
    def hold(self, root: Path) -> Iterator[None]:
        """Keep everybody else out of an env root. Raises PrepareError if somebody is in it."""
        if root in self._roots:
            raise PrepareError(f"working directory {root} is in use by another task")
        self._roots.add(root)
        try:
            yield
        finally:
            self._roots.remove(root)

    async def claim(self, *roots: Path) -> None:
        """Call off what would remove these env roots; nobody removes them before the next await."""
        while under_way := [self._reclaims[root] for root in roots if root in self._reclaims]:
            for reclaim in under_way:
                reclaim.scope.cancel(reason="a task needs the directory")
                await reclaim.over.wait()

    async def reclaim(self, root: Path, work: Callable[[], Awaitable[T]]) -> T | None:
        """Do `work`, which removes the env root; None if a task has it or took it meanwhile.

        When `work` returns the root is gone, or stays. It must bear being cancelled.
        """
        if root in self._roots or root in self._reclaims:
            return None
        reclaim = self._reclaims[root] = _Reclaim()
        result: T | None = None
        try:
            with reclaim.scope:
                result = await work()
        finally:
            del self._reclaims[root]
            reclaim.over.set()
        return result


def places(task: ClaimedTask, root: Path) -> list[Path]:
    """The env roots a task may work in."""
    found = []
    prior = layout_of_prior(root, task.workspace_id, task.prior_work_dir)
    if prior is not None:
        found.append(prior.env_root)
    with suppress(LayoutError):
        found.append(layout_of(root, task.workspace_id, task.id).env_root)
    return found


def choose(
    task: ClaimedTask, root: Path, live: Container[Path], local: LocalDirectory | None = None
) -> Prepared:
    """Choose the task's directory: the prior one if it is ours, there and free, else its own.

    With `local` it is the user's, whatever the task did before; `live` are the env roots others are
    in. Nothing is written. Raises PrepareError. Blocks: it looks at the disk.
    """
    prior = layout_of_prior(root, task.workspace_id, task.prior_work_dir)
    if (
        local is None
        and prior is not None
        and prior.env_root not in live
        and prior.work_dir.is_dir()
        and not prior.work_dir.is_symlink()
        and not prior.env_root.is_symlink()
    ):
        return Prepared(layout=prior, reused=True)
    try:
        layout = layout_of(root, task.workspace_id, task.id)
    except LayoutError as error:
        raise PrepareError(str(error)) from error
    if local is not None:
        layout = attrs.evolve(layout, local=local.path)
    return Prepared(layout=layout, reused=False, local=local)


@contextmanager
def giving_back(chosen: Prepared, task_id: str, records: Path) -> Iterator[Prepared]:
    """Lend a user's directory for the block: afterwards it is as it was (spec 05 §14).

    Entered before the first write, so that a failure half way leaves nothing either. `records` is
    the folder of what is borrowed. For one of our own directories it does nothing.
    """
    if chosen.local is None:
        yield chosen
        return
    give_back_left(records, chosen.local.path)
    borrowed = Borrowed(records, task_id, chosen.local.path, chosen.layout.env_root)
    try:
        yield attrs.evolve(chosen, borrowed=borrowed)
    finally:
        give_back(borrowed.path)


def prepare(
    task: ClaimedTask,
    kind: str,
    provider: str,
    chosen: Prepared,
    env: Mapping[str, str] = os.environ,
) -> Prepared:
    """Create or refresh the directories, context files and skills (spec 05 §2, §10).

    A fresh directory that exists already is from an earlier delivery of the same task, which never
    started: it is made anew. `env` is the daemon's environment. Raises PrepareError.
    """
    layout = chosen.layout
    try:
        if not chosen.reused and layout.env_root.exists():
            shutil.rmtree(layout.env_root)
        layout.env_root.mkdir(mode=0o755, parents=True, exist_ok=True)
        folders = (layout.output, layout.logs, layout.tmp)
        for folder in folders if chosen.local is not None else (layout.work_dir, *folders):
            remove_link_out(folder, layout.env_root)
            folder.mkdir(mode=0o755, exist_ok=True)
        if chosen.reused:
            clean_up(layout.manifest, below=layout.work_dir)
            _remove_foreign_briefs(layout.work_dir, provider)
        planned = Sidecars(layout.work_dir)
        skills_in = _plan(task, kind, provider, layout, planned)
        variables = _provide(task, provider, layout, planned, env)
        if chosen.borrowed is not None and chosen.local is not None:
            chosen.borrowed.put(planned, brief_file(provider), chosen.local.excludes)
        else:
            planned.save(layout.manifest)
            planned.create()
    except (OSError, SkillError) as error:
        raise PrepareError(f"cannot prepare {layout.work_dir}: {error}") from error
    return attrs.evolve(chosen, skills_in=skills_in, variables=variables)


@contextmanager
def short_path(folder: Path) -> Iterator[Path]:
    """Give a directory a name short enough for sockets in it, for as long as the block lasts.

    A socket's path has room for 107 bytes, on macOS for 103. Two full ids use most of it up, and
    then things as common as Python's multiprocessing fail in the agent's TMPDIR.
    """
    if len(os.fsencode(folder)) <= SHORT:
        yield folder
        return
    link = Path(tempfile.gettempdir()) / f"bullpen-{secrets.token_hex(4)}"
    try:
        link.symlink_to(folder)
    except OSError as error:
        log.warning("no short name for a directory", path=str(folder), error=str(error))
        yield folder
        return
    try:
        yield link
    finally:
        link.unlink(missing_ok=True)


def keep_whole(path: Path, text: str) -> bool:
    """Keep a result that is too long to be reported; False if the disk does not take it."""
    try:
        remove_link_out(path.parent, path.parent.parent)  # the agent works beside it
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, text)
    except OSError as error:
        log.warning("result not kept", path=str(path), error=str(error))
        return False
    return True


def write_brief(chosen: Prepared, provider: str, brief: str) -> bool:
    """Put the brief into the provider's file, around whatever else it holds.

    False if it is in no file: then the agent must be told in another way.
    """
    name = brief_file(provider)
    if name is None:
        return False
    if chosen.borrowed is not None:
        return chosen.borrowed.write_brief(name, brief)
    path = chosen.layout.work_dir / name
    try:
        remove_link_out(path, chosen.layout.work_dir)
        before = read_regular(path) if path.exists() else None
        path.write_bytes(written_brief(before, brief))
    except OSError as error:
        log.warning("brief not written", path=str(path), error=str(error))
        return False
    return True


def _plan(task: ClaimedTask, kind: str, provider: str, layout: Layout, planned: Sidecars) -> str:
    """Plan context files and skills; return where the skills are, below the work directory."""
    skills = (task.agent.skills if task.agent is not None else None) or []
    names = [skill.name for skill in skills]
    planned.write(layout.work_dir / ISSUE_CONTEXT, render_context(task, kind, names))
    resources = render_resources(task)
    if resources is not None:
        planned.write(layout.work_dir / RESOURCES, resources)
    if provider == "codex":  # it finds them in its home, and the directory's own in the old place
        if skills:
            planned.make_dir(layout.work_dir / FALLBACK)
        return layout.codex_home.name
    place = folder_for(provider)
    if not planned.reaches(layout.work_dir / place):
        place = FALLBACK  # a link of the user's leads out of the directory
    plan_skills(layout.work_dir / place, skills, planned)
    return place


def _provide(
    task: ClaimedTask, provider: str, layout: Layout, planned: Sidecars, env: Mapping[str, str]
) -> dict[str, str]:
    """Give a provider what it needs besides; return the variables that tell it where that is."""
    agent = task.agent
    if provider == "codex":
        skills = (agent.skills if agent is not None else None) or []
        make_codex_home(layout.codex_home, skills, env)
        return {"CODEX_HOME": str(layout.codex_home)}
    if provider == "cursor":
        servers = managed_servers(agent.mcp_config if agent is not None else None)
        if servers is not None:
            _provide_cursor(layout, servers, planned)
            return {"CURSOR_DATA_DIR": str(layout.cursor_data)}
    return {}


def _provide_cursor(
    layout: Layout, servers: Mapping[str, Mapping[str, Any]], planned: Sidecars
) -> None:
    project = layout.work_dir.resolve()
    if layout.local is not None:
        tops = (each for each in (project, *project.parents) if os.path.lexists(each / ".git"))
        top = next(tops, project)
        if top != project:
            raise PrepareError(
                f"cursor takes MCP servers only at the top of a repository, which is {top}"
            )
    if not planned.write(project / MCP_FILE, mcp_file(servers), 0o600):
        raise PrepareError(f"{MCP_FILE} is there already; the agent's MCP servers would replace it")
    shutil.rmtree(layout.cursor_data, ignore_errors=True)
    for name, text in data_files(project, servers).items():
        path = layout.cursor_data / name
        for folder in (layout.cursor_data, path.parent.parent, path.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        write_private(path, text)


def _remove_foreign_briefs(work_dir: Path, provider: str) -> None:
    """Take our brief out of files this provider does not read, left by one that did."""
    for name in BRIEF_FILES:
        path = work_dir / name
        if name == brief_file(provider) or path.is_symlink() or not path.is_file():
            continue
        before = path.read_bytes()
        after = without_block(before)
        if after is None:
            path.unlink()
        elif after != before:
            path.write_bytes(after)
