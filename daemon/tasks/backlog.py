"""What is journalled and not yet with the server, and nobody works on any more.

At the daemon's start that is what a dead daemon left; later, tasks leave what the server does not
take for too long, so that their slots are free for other work. Woken by those. It owns one child a
journal, which tells the server everything, however long that takes, and removes the file. A task
whose run died with its daemon is reported as failed here, by name. It ends by being cancelled; what
is not told by then stays on disk for the next start.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
import trio

from daemon import threads
from daemon.tasks.drain import Sender
from daemon.tasks.journal import (
    Journal,
    JournalError,
    Session,
    left_journals,
    reopen_journal,
)
from daemon.tasks.outcome import interrupted
from daemon.tasks.report import close_journal, pin_session
from shared.mailbox import Nudge

if TYPE_CHECKING:
    from daemon.client import Client

log = structlog.get_logger(__name__)

AT_ONCE: Final = 8
"""Journals told at the same time, so that a long outage does not end in a storm."""

TURN: Final = 30.0
"""Seconds one journal may hold a turn. One the server does not take goes on without."""


class Backlog:
    """The journals that are owed. Every method but `run` and the wait is synchronous."""

    def __init__(self, client: Client, folder: Path) -> None:
        """Owe what is in the folder now."""
        self._client = client
        self._folder = folder
        self._owed = left_journals(folder)
        self._grown = Nudge()
        self._changed = trio.Event()
        self._turns = trio.Semaphore(AT_ONCE)

    @property
    def count(self) -> int:
        """How many journals are still to be told."""
        return len(self._owed)

    def owes(self, task_id: str) -> bool:
        """Whether a task's journal is still to be told; until then it must not be run again."""
        return task_id in self._owed

    def leave(self, task_id: str, runtime_id: str) -> None:
        """Take over the journal of a task that has ended. It must be closed."""
        self._owed[task_id] = runtime_id
        self._grown.nudge()

    async def wait_told(self, runtime_id: str) -> None:
        """Wait until nothing is owed for a runtime."""
        await trio.lowlevel.checkpoint()
        while runtime_id in self._owed.values() or "" in self._owed.values():
            await self._changed.wait()

    async def run(self) -> None:
        """Tell what is owed, and what will be, until cancelled."""
        begun: set[str] = set()
        async with trio.open_nursery() as journals:
            while True:
                for task_id in self._owed.keys() - begun:
                    begun.add(task_id)
                    name = f"journal {task_id}"
                    journals.start_soon(self._settle, task_id, begun, name=name)
                await self._grown.wait()

    async def _settle(self, task_id: str, begun: set[str]) -> None:
        """Tell one journal. What cannot be told stays on disk for the next start; others go on."""
        try:
            async with self._turns:
                with trio.move_on_after(TURN) as turn:
                    await self._tell(task_id)
            if turn.cancelled_caught:
                log.warning("server does not take a journal; trying on", task_id=task_id)
                await self._tell(task_id)
        except JournalError as error:  # nobody can say what is in it
            log.error("journal not told", task_id=task_id, error=str(error))  # noqa: TRY400
        except Exception:
            log.exception("telling a journal crashed", task_id=task_id)
        begun.remove(task_id)  # with what follows: the same task may leave another one
        del self._owed[task_id]
        self._changed.set()
        self._changed = trio.Event()

    async def _tell(self, task_id: str) -> None:
        # in a thread: it may be hundreds of megabytes
        journal = await threads.in_thread(partial(reopen_journal, self._folder, task_id))
        try:
            log.info("telling a journal", task_id=task_id, finished=journal.outcome is not None)
            if journal.session is not None and journal.outcome is None:
                await pin_session(self._client, task_id, journal.session)
            await self._decide(journal)
            sender = Sender(self._client, journal, task_id=task_id)
            await close_journal(self._client, journal, sender, task_id)
        finally:
            journal.close()

    async def _decide(self, journal: Journal) -> None:
        """A run that ended without an outcome died with its daemon."""
        if journal.outcome is None and not journal.unwanted:
            session = journal.session or Session(session_id="")
            journal.note_outcome(interrupted(session.session_id, session.work_dir))
            await journal.save()
