"""One append-only file a task, so that nothing an agent did is lost with a process or a network.

Everything is written here before it is sent. The transcript's sender reads what it sends from the
file, so an outage costs disk and not memory. The file goes only when the server has confirmed all
of it; what a dead daemon left is read again by `open_left` at the next start. Woken by nobody: the
task appends, the sender reads, `grown` tells it when. It ends with `remove`, or stays.

Format: a line a record, a JSON object with one key that names the record. A line without its
newline was torn by a crash and never happened.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import attrs
import structlog

from daemon.tasks.outcome import Outcome
from shared import codec
from shared.mailbox import Nudge
from shared.wire.task import ModelUsage, TaskMessage

log = structlog.get_logger(__name__)

SUFFIX: Final = ".jsonl"

BATCH_ITEMS: Final = 100
BATCH_BYTES: Final = 256 * 1024
"""A batch's size on disk, near enough its size on the wire; one item may exceed it alone."""


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
    """An open journal. One task appends; one sender reads and confirms."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.grown = Nudge()
        self.claim: Claim | None = None
        self.started = False
        self.session: Session | None = None
        self.usage: list[ModelUsage] = []
        self.outcome: Outcome | None = None
        self.last_seq = 0
        self.confirmed = Position(seq=0, offset=0)
        self._file = file
        for record in _records(file):
            with contextlib.suppress(codec.DecodeError):  # damaged: the rest is good
                self._take_in(record)
        self._size = file.tell()
        with _as_journal_error(self.path):
            file.truncate(self._size)

    # -- what the task writes

    def note_claim(self, claim: Claim) -> None:
        """Begin: on disk before the task is touched. What an earlier delivery decided is void."""
        self._begin(claim)
        self._append("claim", claim, durable=True)

    def note_started(self) -> None:
        self.started = True
        self._append("started", True)

    def note_session(self, session: Session) -> None:
        """Keep the resume pointer: on disk before it is sent."""
        self.session = session
        self._append("session", session, durable=True)

    def note_message(self, message: TaskMessage) -> None:
        """Append a transcript item under the task's next number; its own `seq` is ignored.

        In the page cache only: it survives this process, not the machine.
        """
        self._append("item", attrs.evolve(message, seq=self.last_seq + 1))
        self.last_seq += 1
        self.grown.nudge()

    def note_usage(self, usage: Sequence[ModelUsage]) -> None:
        self.usage = list(usage)
        self._append("usage", self.usage)

    def note_outcome(self, outcome: Outcome) -> None:
        """Decide: on disk before it is reported for the first time."""
        self.outcome = outcome
        self._append("outcome", outcome, durable=True)

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
        with _as_journal_error(self.path):
            self._file.seek(self.confirmed.offset)
            for record, offset in _lines(self._file):
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
        self._file.close()

    # --

    def _append(self, kind: str, value: Any, *, durable: bool = False) -> None:
        line = codec.encode({kind: value}) + b"\n"
        with _as_journal_error(self.path):
            self._file.seek(self._size)
            self._file.write(line)
            self._file.flush()
            if durable:
                os.fsync(self._file.fileno())
        self._size += len(line)

    def _begin(self, claim: Claim) -> None:
        self.claim, self.started = claim, False
        self.session, self.usage, self.outcome = None, [], None

    def _take_in(self, record: dict[str, Any]) -> None:
        """Bring the state up to date with one record that was read; unknown ones are skipped."""
        match record:
            case {"claim": value}:
                self._begin(codec.structure(value, Claim))
            case {"started": _}:
                self.started = True
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
    journal = _open(folder / f"{claim.task_id}{SUFFIX}", create=True)
    try:
        journal.note_claim(claim)
    except JournalError:
        journal.close()
        raise
    return journal


def open_left(folder: Path) -> Iterator[Journal]:
    """Open every journal in the folder, oldest first; the caller closes or removes each."""
    with contextlib.suppress(FileNotFoundError):
        paths = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in paths:
            try:
                yield _open(path, create=False)
            except JournalError as error:
                log.error("journal cannot be read", path=str(path), error=str(error))  # noqa: TRY400


def _open(path: Path, *, create: bool) -> Journal:
    with _as_journal_error(path):
        if create:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        file = os.fdopen(os.open(path, flags, 0o600), "r+b")
    try:
        return Journal(path, file)
    except BaseException:
        file.close()
        raise


@contextlib.contextmanager
def _as_journal_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        raise JournalError(f"journal {path}: {error}") from error


def _records(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Read all whole records and leave the file behind the last of them."""
    good = 0
    for record, offset in _lines(file):
        good = offset
        yield record
    file.seek(good)


def _lines(file: IO[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
    """Read records from here on, each with the offset behind it.

    A torn last line ends the reading; a damaged one inside is skipped, because the rest is good.
    """
    offset = file.tell()
    while (line := file.readline()).endswith(b"\n"):
        offset += len(line)
        try:
            record = json.loads(line)
        except ValueError:
            log.warning("damaged journal line skipped", offset=offset)
            record = None
        yield (record if isinstance(record, dict) else {}), offset


def _item(record: dict[str, Any]) -> TaskMessage | None:
    if "item" in record:
        with contextlib.suppress(codec.DecodeError):
            return codec.structure(record["item"], TaskMessage)
    return None
