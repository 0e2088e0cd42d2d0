"""Who may work in a directory of the user's, and who waits for it (spec 03 §17).

Tasks queue in the order they came, by the real path; a directory inside another one is the same
place. A task joins with a ticket, which is its place in the queue and its hold on the directory, and
leaves by leaving the ticket's block: cancelled while waiting or done, the next ones are woken. One
`PathLocks` per daemon; only tickets change it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from daemon import threads
from daemon.allowed import AllowedError, allowed_directories, is_allowed
from daemon.client import ApiError
from daemon.tasks.trouble import Stays, patiently
from daemon.workdir.local import (
    LocalDirectory,
    LocalDirectoryError,
    check_directory,
    find_excludes,
    named_directory,
)
from shared.ids import short_id
from shared.wire.task import ClaimedTask

if TYPE_CHECKING:
    from daemon.client import Client
    from daemon.config import Config
    from daemon.tasks.slots import Slot

log = structlog.get_logger(__name__)


@attrs.define(eq=False)
class Ticket:
    """A place in the queue for one path. `first` is set once nobody before it is in its way."""

    path: Path
    task_id: str
    first: trio.Event = attrs.field(factory=trio.Event)


class PathLocks:
    """The queue of all paths. Every method is synchronous."""

    def __init__(self) -> None:
        self._queue: list[Ticket] = []

    def blocker(self, ticket: Ticket) -> Ticket | None:
        """The first ticket before this one whose path is its own, around it or inside it."""
        for other in self._queue:
            if other is ticket:
                return None
            if _overlap(other.path, ticket.path):
                return other
        return None

    @contextmanager
    def join(self, path: Path, task_id: str) -> Iterator[Ticket]:
        """Queue for a path; the directory may be used once the ticket is `first`."""
        ticket = Ticket(path, task_id)
        self._queue.append(ticket)
        self._wake()
        try:
            yield ticket
        finally:
            self._queue.remove(ticket)
            self._wake()

    def _wake(self) -> None:
        for ticket in self._queue:
            if not ticket.first.is_set() and self.blocker(ticket) is None:
                ticket.first.set()


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def check_named(named: Path, config: Config) -> Path:
    """The real path of a directory the machine's owner lets tasks work in. Raises LocalDirectoryError.

    Whether there is such a directory is told only of what is allowed: who named it may be anybody.
    """
    real = Path(os.path.realpath(named))
    try:
        allowed = allowed_directories(config.home)
    except AllowedError as error:
        raise LocalDirectoryError(str(error)) from error
    if not is_allowed(real, allowed):
        raise LocalDirectoryError(
            f"{named} is not a directory that tasks may work in on this machine: if they may, its "
            f"owner runs `bullpen daemon allow-dir {shlex.quote(str(named))}` there"
        )
    checked = check_directory(named, (config.home.root, config.workspaces_root))
    if checked != real:
        raise LocalDirectoryError(f"{named} became another directory while it was looked at")
    return checked


async def enter_local_directory(
    task: ClaimedTask,
    place: ExitStack | AsyncExitStack,
    *,
    client: Client,
    config: Config,
    locks: PathLocks,
    slot: Slot,
    env: Mapping[str, str],
    say: Callable[[str], Awaitable[None]],
) -> LocalDirectory | None:
    """Take hold of the user's directory the task is to work in, until `place` is left.

    Waits for whoever holds it, and tells the server so; others may use the slot meanwhile. Who has
    the directory then waits for a slot of somebody who waits for no directory, so neither wait can
    be for the other. Returns None for a task without one. Raises LocalDirectoryError.
    """
    named = named_directory(task, config.daemon_id)
    if named is None:
        return None
    check = partial(check_named, named, config)
    # it may be on a server that takes its time
    checking = partial(threads.in_thread, check)
    try:
        path = await patiently("looking at the directory", checking, say)
    except Stays as stays:
        raise LocalDirectoryError(str(stays)) from stays
    ticket = place.enter_context(locks.join(path, task.id))
    holder = locks.blocker(ticket)
    if holder is not None:
        reason = f"local_directory {named} (held by task {short_id(holder.task_id)})"
        log.info("waiting for a directory", task_id=task.id, reason=reason)
        try:
            await client.wait_local_directory(task.id, reason)
        except ApiError as error:  # it waits all the same
            log.warning("waiting not told", task_id=task.id, error=str(error))
        slot.lend()
        await ticket.first.wait()
        await slot.regain()
        if await threads.in_thread(check) != path:
            raise LocalDirectoryError(f"{named} became another directory during the wait")
    return LocalDirectory(path=path, excludes=await find_excludes(path, env))
