"""One append-only file a task, so that nothing an agent did is lost with a process or a network.

Everything is written here before it is sent. The transcript's sender reads what it sends from the
file, so an outage costs disk and not memory. The file goes only when the server has confirmed all
of it; what a dead daemon left is read again at the next start (`tasks/backlog.py`). Woken by nobody: the
task appends, the sender reads, `grown` tells it when. It ends with `remove`, or stays.

Format: a line a record, a JSON object with one key that names the record. A line without its
newline was torn by a crash and never happened. What a full disk does not take is kept in memory,
as the tail of the file it will be, and written when there is room: a running task goes on.

Appending is one write into the system's cache, in the daemon's own home, and stays on Trio's thread:
what was said is on its way to the disk before anything else happens. It is bounded in size (an item
is at most a line of the agent's), a batch is read back from that same cache, and whatever waits for
the disk itself (fsync, opening, reading a journal whole) is done in threads. A home on a file system
that blocks writers (a network share that is gone) therefore holds up the daemon: keep it on a disk
of the machine's own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import attrs
import structlog

from daemon import threads
from daemon.tasks.outcome import Outcome
from shared import codec
from shared.mailbox import Nudge
from shared.system import FULL
from shared.wire.task import ModelUsage, TaskMessage

log = structlog.get_logger(__name__)

SUFFIX: Final = ".jsonl"

BATCH_ITEMS: Final = 100
BATCH_BYTES: Final = 256 * 1024
"""A batch's size on disk, near enough its size on the wire; one item may exceed it alone."""


BEHIND_LIMIT: Final = 64 * 1024 * 1024
"""Bytes one journal keeps in memory while the disk is full; a task that says more fails."""


class JournalError(Exception):
    """The journal cannot be written or read; the task cannot go on without it."""


@attrs.frozen(kw_only=True)
class Claim:
    """Whose journal this is. No secrets: the task's token is never written."""

    task_id: str
    workspace_id: str = ""
    runtime_id: str = ""
    agent_id: str = ""
    issue_id: str = ""
    provider: str = ""
    claimed_at: str = ""


@attrs.frozen(kw_only=True)
class Session:
    """An agent's session and the directory it can be resumed in."""

    session_id: str
    work_dir: str = ""


@attrs.frozen(kw_only=True)
class Position:
    """How far the server has confirmed: every item up to `seq`, which ends at byte `offset`."""

    seq: int
    offset: int


@attrs.frozen(kw_only=True)
class Batch:
    """Consecutive transcript items and where reading goes on once they are confirmed."""

    messages: list[TaskMessage]
    end: Position

    def __bool__(self) -> bool:
        return bool(self.messages)


class Journal:
    """An open journal. One task appends; one sender reads and confirms.

    `unwanted` says that the server has ended the task itself: no outcome is owed.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.grown = Nudge()
        self.claim: Claim | None = None
        self.started = False
        self.unwanted = False
        self.session: Session | None = None
        self.usage: list[ModelUsage] = []
        self.outcome: Outcome | None = None
        self.last_seq = 0
        self.confirmed = Position(seq=0, offset=0)
        self._descriptor = descriptor
        self._behind = bytearray()
        self._size = 0
        with _as_journal_error(path):
            with path.open("rb") as file:
                for record, self._size in _lines(file):
                    with contextlib.suppress(codec.DecodeError):  # damaged: the rest is good
                        self._take_in(record)
            os.ftruncate(descriptor, self._size)

    # -- what the task writes

    def note_claim(self, claim: Claim) -> None:
        """Begin. What an earlier delivery decided is void."""
        self._begin(claim)
        self._append("claim", claim)

    def note_started(self) -> None:
        self.started = True
        self._append("started", True)

    def note_session(self, session: Session) -> None:
        """Keep the resume pointer; `save` before it is sent."""
        self.session = session
        self._append("session", session)

    def note_message(self, message: TaskMessage) -> None:
        """Append a transcript item under the task's next number; its own `seq` is ignored.

        Without `save` it is in the page cache only: it survives this process, not the machine.
        """
        if self._descriptor < 0:
            raise JournalError(f"journal {self.path} is closed")
        self.last_seq += 1  # also when it cannot be written now: what is in memory is part of it
        try:
            self._append("item", attrs.evolve(message, seq=self.last_seq))
        finally:
            self.grown.nudge()

    def note_usage(self, usage: Sequence[ModelUsage]) -> None:
        self.usage = list(usage)
        self._append("usage", self.usage)

    def note_outcome(self, outcome: Outcome) -> None:
        """Decide; `save` before it is reported for the first time."""
        self.outcome = outcome
        self._append("outcome", outcome)

    def note_unwanted(self) -> None:
        """Note that the server has ended the task: usage and transcript are owed, no outcome."""
        self.unwanted = True
        self._append("unwanted", True)

    async def save(self) -> None:
        """Have the disk itself keep everything up to here, before it is told to the server.

        In a thread, because a busy disk takes its time; a disk that fails is only logged, since
        what cannot be kept can still be told.
        """
        try:
            self._write_out()
            await threads.in_thread(partial(os.fsync, self._descriptor))
        except (JournalError, OSError) as error:
            log.error("journal not saved", path=str(self.path), error=str(error))  # noqa: TRY400

    @property
    def behind(self) -> bool:
        """Whether something is in memory only: to close the journal would lose it."""
        return bool(self._behind)

    # -- what the sender reads and confirms

    @property
    def unsent(self) -> int:
        """How many items the server has not confirmed."""
        return self.last_seq - self.confirmed.seq

    def next_batch(self, *, items: int = BATCH_ITEMS, size: int = BATCH_BYTES) -> Batch:
        """Read the items after the confirmed ones, in order; empty when there are none."""
        messages: list[TaskMessage] = []
        end = self.confirmed
        if not self.unsent:
            return Batch(messages=messages, end=end)
        for record, offset in self._records_behind(end.offset):
            message = _item(record)
            if message is not None:
                if messages and offset - self.confirmed.offset > size:
                    break
                messages.append(message)
                end = Position(seq=message.seq, offset=offset)
                if len(messages) >= items:
                    break
        return Batch(messages=messages, end=end)

    def confirm(self, end: Position) -> None:
        """Note that the server has everything up to `end`."""
        self.confirmed = end
        try:
            self._append("confirmed", end)
        except JournalError as error:  # what is sent twice after a crash does no harm
            log.warning("confirmed position not journalled", error=str(error))

    def remove(self) -> None:
        """The server has confirmed everything: the journal has done its work."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file and leave it for the next start. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # --

    def _append(self, kind: str, value: Any) -> None:
        if self._descriptor < 0:
            raise JournalError(f"journal {self.path} is closed")
        line = codec.encode({kind: value}) + b"\n"
        self._behind += line
        self._size += len(line)
        self._write_out()

    def _write_out(self) -> None:
        """Write what is not on disk yet; while there is no room it waits in memory."""
        full = False
        while self._behind and not full:
            try:
                end = os.pwrite(self._descriptor, self._behind, self._size - len(self._behind))
            except OSError as error:
                if error.errno not in FULL:
                    raise JournalError(f"journal {self.path}: {error}") from error
                end, full = 0, True
            whole = end if end == len(self._behind) else self._behind.rfind(b"\n", 0, end) + 1
            del self._behind[:whole]  # whole lines, so that reading goes on at a line
            full = full or not whole
        if full and len(self._behind) > BEHIND_LIMIT:
            raise JournalError(f"journal {self.path}: no space left on the disk for too long")

    def _records_behind(self, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Read the records from `offset` on, each with the offset behind it."""
        written = self._size - len(self._behind)
        if offset < written:
            with _as_journal_error(self.path), self.path.open("rb") as file:
                file.seek(offset)
                for record, end in _lines(file):
                    if end > written:  # half of a line that waits in memory
                        break
                    yield record, end
            offset = written
        waiting = io.BytesIO(bytes(self._behind))
        waiting.seek(offset - written)
        for record, end in _lines(waiting):
            yield record, written + end

    def _begin(self, claim: Claim) -> None:
        self.claim, self.started, self.unwanted = claim, False, False
        self.session, self.usage, self.outcome = None, [], None

    def _take_in(self, record: dict[str, Any]) -> None:
        """Bring the state up to date with one record that was read; unknown ones are skipped."""
        match record:
            case {"claim": value}:
                self._begin(codec.structure(value, Claim))
            case {"started": _}:
                self.started = True
            case {"unwanted": _}:
                self.unwanted = True
            case {"session": value}:
                self.session = codec.structure(value, Session)
            case {"item": {"seq": int(seq)}}:
                self.last_seq = max(self.last_seq, seq)
            case {"usage": value}:
                self.usage = codec.structure(value, list[ModelUsage])
            case {"outcome": value}:
                self.outcome = codec.structure(value, Outcome)
            case {"confirmed": value}:
                self.confirmed = codec.structure(value, Position)


def open_journal(folder: Path, claim: Claim) -> Journal:
    """Open a task's journal, going on with what an earlier delivery of it left.

    Raises JournalError.
    """
    journal = _open(path_of(folder, claim.task_id), create=True)
    try:
        journal.note_claim(claim)
    except JournalError:
        journal.close()
        raise
    return journal


def reopen_journal(folder: Path, task_id: str) -> Journal:
    """Open what an earlier run of a task left. It is read whole. Raises JournalError."""
    return _open(path_of(folder, task_id), create=False)


def left_journals(folder: Path) -> dict[str, str]:
    """List the journals in the folder, oldest first: task id to runtime id, which may be "".

    The runtime is in the first line, so that no journal has to be read whole for it.
    """
    left: dict[str, str] = {}
    for _, path in sorted((path.stat().st_mtime, path) for path in folder.glob(f"*{SUFFIX}")):
        runtime_id = ""
        with contextlib.suppress(OSError, codec.DecodeError), path.open("rb") as file:
            for record, _ in _lines(file):
                runtime_id = codec.structure(record.get("claim", {}), Claim).runtime_id
                break
        left[path.name.removesuffix(SUFFIX)] = runtime_id
    return left


def path_of(folder: Path, task_id: str) -> Path:
    return folder / f"{task_id}{SUFFIX}"


def _open(path: Path, *, create: bool) -> Journal:
    with _as_journal_error(path):
        if create:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        descriptor = os.open(path, flags, 0o600)
    try:
        return Journal(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise


@contextlib.contextmanager
def _as_journal_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JournalError(f"journal {path}: {error}") from error


def _lines(file: IO[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
    """Read records from here on, each with the offset behind it.

    A torn last line ends the reading; a damaged one inside is skipped, because the rest is good.
    """
    offset = file.tell()
    while (line := file.readline()).endswith(b"\n"):
        offset += len(line)
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            log.warning("damaged journal line skipped", offset=offset)
            record = None
        yield (record if isinstance(record, dict) else {}), offset


def _item(record: dict[str, Any]) -> TaskMessage | None:
    if "item" in record:
        with contextlib.suppress(codec.DecodeError):
            return codec.structure(record["item"], TaskMessage)
    return None
