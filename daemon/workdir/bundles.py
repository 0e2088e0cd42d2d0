"""The skills a claim only names, whole: from the disk, or else from the server (spec 03 §18).

A bundle is kept under the hash of its content and is never believed unread: a file that does not
hold what its path says is deleted and fetched again, and a disk that takes nothing only makes the
next task fetch again. All that is missing is asked for in one request. Two tasks that miss the same
bundle at the same moment both fetch it; each file is put in place whole, so the second replaces the
first by the same. Nothing runs here.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from daemon.client import ApiError, Transient
from daemon.workdir.errors import PrepareError
from shared import codec, skillbundle
from shared.supervise import Backoff
from shared.wire.task import ClaimedTask, Skill, SkillBundle, SkillRef

if TYPE_CHECKING:
    from daemon.client import Client

log = structlog.get_logger(__name__)

FOLDER: Final = ".skill-cache"
VERSION: Final = "v1"

UNUSED: Final = 30 * 86400.0
"""Seconds after which an older version of a skill, that nobody has asked for since, is deleted."""

ATTEMPTS: Final = 4
_BACKOFF: Final = Backoff(first=1.0, limit=8.0)


class BundleCache:
    """One per daemon; any number of tasks at a time."""

    def __init__(self, client: Client, workspaces_root: Path) -> None:
        self._client = client
        self._root = workspaces_root / FOLDER / VERSION

    async def fill(self, runtime_id: str, task: ClaimedTask) -> ClaimedTask:
        """Return the task with its agent's skills in it, in the order of the references.

        Skills sent whole stay as they are. Raises PrepareError when one cannot be had.
        """
        agent = task.agent
        if agent is None or not agent.skill_refs:
            return task
        refs = agent.skill_refs
        found = [self._kept(task.workspace_id, ref) for ref in refs]
        missing = [ref for ref, bundle in zip(refs, found, strict=True) if bundle is None]
        fetched = await self._fetch(runtime_id, task, missing) if missing else {}
        skills = []
        for ref, kept in zip(refs, found, strict=True):
            bundle = kept or fetched[ref.source, ref.id]
            skills.append(
                Skill(
                    id=bundle.id,
                    name=bundle.name,
                    description=bundle.description,
                    content=bundle.content,
                    files=bundle.files,
                )
            )
        whole = [*(agent.skills or ()), *skills]
        return attrs.evolve(task, agent=attrs.evolve(agent, skills=whole))

    async def _fetch(
        self, runtime_id: str, task: ClaimedTask, refs: Sequence[SkillRef]
    ) -> dict[tuple[str, str], SkillBundle]:
        """Get bundles from the server and keep them, by source and id."""
        answer = await self._ask(runtime_id, task.id, refs)
        by_id = {(bundle.source, bundle.id): bundle for bundle in answer}
        for ref in refs:
            bundle = by_id.get((ref.source, ref.id))
            if bundle is None:
                raise PrepareError(f"skill {ref.name!r} was not sent by the server")
            try:
                skillbundle.check(bundle, ref)
            except skillbundle.InvalidBundle as error:
                raise PrepareError(f"the server sent a damaged skill: {error}") from error
            self._keep(task.workspace_id, bundle)
        return by_id

    async def _ask(
        self, runtime_id: str, task_id: str, refs: Sequence[SkillRef]
    ) -> list[SkillBundle]:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._client.resolve_bundles(runtime_id, task_id, refs)
            except ApiError as error:
                if not isinstance(error, Transient) or attempt == ATTEMPTS:
                    raise PrepareError(f"skills cannot be fetched: {error}") from error
                log.warning("skills not fetched yet", task_id=task_id, error=str(error))
            await trio.sleep(_BACKOFF.wait(attempt))
        raise AssertionError

    def path_of(self, workspace_id: str, source: str, skill_id: str, digest: str) -> Path:
        """Where a bundle is kept."""
        parts = (_segment(each) for each in (workspace_id, source, skill_id, digest))
        return self._root.joinpath(*parts) / "bundle.json"

    def _kept(self, workspace_id: str, ref: SkillRef) -> SkillBundle | None:
        """Read a bundle; None, and the file gone, if it is not exactly what is asked for."""
        path = self.path_of(workspace_id, ref.source, ref.id, ref.hash)
        try:
            bundle = codec.decode(path.read_bytes(), SkillBundle)
            _check_kept(bundle, ref)
        except FileNotFoundError:
            return None
        except (OSError, codec.DecodeError, skillbundle.InvalidBundle, UnicodeError) as error:
            log.warning(
                "kept skill is damaged; fetching it again", path=str(path), error=str(error)
            )
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # in use: not to be deleted
        return bundle

    def _keep(self, workspace_id: str, bundle: SkillBundle) -> None:
        path = self.path_of(workspace_id, bundle.source, bundle.id, bundle.hash)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(codec.encode(bundle))
                    os.fchmod(file.fileno(), 0o644)
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            _forget_old(path)
        except OSError as error:
            log.warning("skill not kept", path=str(path), error=str(error))


def _check_kept(bundle: SkillBundle, ref: SkillRef) -> None:
    skillbundle.check(bundle, ref)
    if bundle.hash != ref.hash:
        raise skillbundle.InvalidBundle("it is another version")
    if len(bundle.files) != ref.file_count:
        raise skillbundle.InvalidBundle("it has another number of files")


def _forget_old(path: Path) -> None:
    """Delete versions of the same skill that nobody has used for long."""
    for other in path.parent.parent.glob("*/bundle.json"):
        if other != path and time.time() - other.stat().st_mtime > UNUSED:
            other.unlink()
            with suppress(OSError):
                other.parent.rmdir()


def _segment(text: str) -> str:
    """A directory name for any text."""
    clean = re.sub(r"[^A-Za-z0-9._-]", "_", text) or "_"
    return f"_{clean}" if clean in {".", ".."} else clean
