"""Whose directory an env root is: a small file in it, for the reclaim and for people (spec 05 §16).

Written when the task begins, so that no end of it, not even a power cut, leaves a directory that
nobody knows anything about; and again when the task ends, with the time. Later tasks in the same
directory write it anew. Small and synchronous; failing only warns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
import structlog

from daemon.workdir.layout import META
from daemon.workdir.regular import read_regular
from daemon.workdir.sidecars import remove_link_out
from shared import codec, times
from shared.codec import omitted
from shared.wire.task import ClaimedTask

log = structlog.get_logger(__name__)

ISSUE: Final = "issue"
CHAT: Final = "chat"
RUN: Final = "autopilot_run"
QUICK: Final = "quick_create"


@attrs.frozen(kw_only=True)
class Meta:
    """What the file says. `completed_at` is empty while a task works there, or if it was killed."""

    kind: str = ISSUE
    issue_id: str = omitted("")
    chat_session_id: str = omitted("")
    autopilot_run_id: str = omitted("")
    task_id: str = omitted("")
    workspace_id: str = ""
    completed_at: str = ""
    local_directory: bool = omitted(default=False)

    @property
    def parent_id(self) -> str:
        """The id of what decides how long the directory is kept; "" for an unknown kind."""
        ids = {
            ISSUE: self.issue_id,
            CHAT: self.chat_session_id,
            RUN: self.autopilot_run_id,
            QUICK: self.task_id,
        }
        return ids.get(self.kind, "")


def meta_of(task: ClaimedTask, *, local_directory: bool = False) -> Meta | None:
    """What a task's directory is kept for; None if for nothing that could be asked about."""
    common = Meta(workspace_id=task.workspace_id, local_directory=local_directory)
    if task.chat_session_id:
        return attrs.evolve(common, kind=CHAT, chat_session_id=task.chat_session_id)
    if task.autopilot_run_id:
        return attrs.evolve(common, kind=RUN, autopilot_run_id=task.autopilot_run_id)
    if task.issue_id:
        return attrs.evolve(common, kind=ISSUE, issue_id=task.issue_id)
    if task.quick_create_prompt:
        return attrs.evolve(common, kind=QUICK, task_id=task.id)
    return None


@contextmanager
def noting(env_root: Path, task: ClaimedTask, *, local_directory: bool = False) -> Iterator[None]:
    """Say whose directory it is, and at the end of the block since when nobody works in it."""
    meta = meta_of(task, local_directory=local_directory)
    if meta is None:
        yield
        return
    _write(env_root, meta)
    try:
        yield
    finally:
        _write(env_root, attrs.evolve(meta, completed_at=times.fine_stamp(times.now())))


def read_meta(env_root: Path) -> Meta | None:
    """Read the file; None if there is none, or nothing that can be read."""
    try:
        return codec.decode(read_regular(env_root / META), Meta)
    except (OSError, codec.DecodeError):
        return None


def _write(env_root: Path, meta: Meta) -> None:
    try:
        if env_root.is_dir():
            remove_link_out(env_root / META, env_root)
            # torn by a crash it says nothing, and then the directory is merely kept for longer
            (env_root / META).write_bytes(codec.encode(meta) + b"\n")
    except OSError as error:
        log.warning("owner of a directory not noted", path=str(env_root), error=str(error))
