"""Telling the server how a task ended, until it has confirmed it.

Usage goes first, then completion or failure; both calls may be repeated at will, because the server
answers a task that has ended already with what it is (spec 01 §3.13). `settle` returns when both are
confirmed or refused for good. Whoever calls it bounds it; the journal keeps what was not told, and
`tasks/backlog.py` goes on with it.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from daemon.client import ApiError
from daemon.tasks.drain import Sender
from daemon.tasks.journal import Journal, JournalError, Session
from daemon.tasks.outcome import Outcome, shortened
from shared import failure
from shared.wire.task import FailRequest, ModelUsage, SessionRequest

if TYPE_CHECKING:
    from daemon.client import Client

log = structlog.get_logger(__name__)

SCHEDULE: Final = (4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds between the first attempts (spec 03 §30); the reference then gives up, we do not."""

LATER: Final = 60.0
"""Seconds between all further attempts, for as long as the daemon runs."""

USAGE_LEADS: Final = 2
"""Attempts that usage may hold up the report; a report that waits keeps the issue blocked."""

TRANSCRIPT_LEADS: Final = 30.0
"""Seconds the rest of the transcript may hold up the report; it is sent all the same."""


def wait_before(attempt: int) -> float:
    """Seconds to wait before the n-th repetition (from 0), spread by a fifth."""
    plain = SCHEDULE[attempt] if attempt < len(SCHEDULE) else LATER
    return plain * random.uniform(0.9, 1.1)  # noqa: S311


DATABASE_TRIES: Final = 4
"""Repetitions before a completion that the server could not carry out counts as refused: a minute."""


_ROOM: Final = (256 * 1024, 64 * 1024, 16 * 1024, 4 * 1024)
"""Bytes of a result that are tried one after the other where more was too large."""


StillWanted = Callable[[], Awaitable[bool]]


async def settle(
    client: Client,
    task_id: str,
    usage: list[ModelUsage],
    outcome: Outcome | None,
    still_wanted: StillWanted | None = None,
) -> None:
    """Report usage and, if there is one, the outcome; return when nothing is left to tell.

    `still_wanted` is asked once, right before the outcome; if it says no, the outcome is kept back.
    """
    usage_told, outcome_told = not usage, False
    attempt = 0
    while True:
        usage_told = usage_told or await _told(
            client, task_id, lambda: client.usage(task_id, usage)
        )
        if outcome is not None and not outcome_told and (usage_told or attempt >= USAGE_LEADS):
            if still_wanted is not None and not await still_wanted():
                outcome = None
                continue
            still_wanted = None
            outcome_told = await _tell_outcome(client, task_id, outcome, attempt)
        if usage_told and (outcome_told or outcome is None):
            return
        await trio.sleep(wait_before(attempt))
        attempt += 1


async def _tell_outcome(client: Client, task_id: str, outcome: Outcome, attempt: int) -> bool:
    """Tell once; True when there is nothing more to tell.

    A completion the server refuses for good becomes a failure that says so (spec 03 §16); one that
    it only cannot take now stays a completion.
    """
    if not outcome.completed:
        told = partial(client.fail, task_id)
        sending = partial(_as_much_as_fits, lambda cut: told(cut.fail_request()), outcome)
        return await _told(client, task_id, sending)
    try:
        completed = partial(client.complete, task_id)
        await _as_much_as_fits(lambda cut: completed(cut.complete_request()), outcome)
    except ApiError as error:
        # what `complete` is refused with may be the server's database, which it says in the same words
        if attempt < DATABASE_TRIES and error.text.startswith("complete task:"):
            log.warning("not reported yet", task_id=task_id, error=str(error))
            return False
        if not await _is_final(client, task_id, error):
            return False
        if error.task_gone:
            return True
        text = f"complete task failed: {error}"
        log.warning("completion refused; reporting a failure", task_id=task_id, error=str(error))
        request = FailRequest(
            error=text,
            session_id=outcome.session_id,
            work_dir=outcome.work_dir,
            failure_reason=failure.classify(text),
        )
        return await _told(client, task_id, lambda: client.fail(task_id, request))
    return True


async def _as_much_as_fits(tell: Callable[[Outcome], Awaitable[object]], outcome: Outcome) -> None:
    """Tell an outcome, with less and less of its text while somebody on the way finds it too large."""
    for limit in _ROOM:
        try:
            await tell(outcome)
        except ApiError as error:
            if not error.too_large:
                raise
            text = shortened(outcome.text, limit=limit)
            outcome = attrs.evolve(outcome, text=text)
            log.warning("result too large; telling less of it", bytes=limit, error=str(error))
        else:
            return
    await tell(outcome)


async def _told(client: Client, task_id: str, tell: Callable[[], Awaitable[object]]) -> bool:
    try:
        await tell()
    except ApiError as error:
        if not await _is_final(client, task_id, error):
            return False
        if not error.task_gone:
            log.error("report refused", task_id=task_id, error=str(error))  # noqa: TRY400
    return True


async def _is_final(client: Client, task_id: str, error: ApiError) -> bool:
    """Whether the server will never take this: its own words, and for `gone` a second look."""
    final = error.final
    if error.task_gone:
        final = await client.surely_gone(task_id)
    if not final:
        log.warning("not reported yet", task_id=task_id, error=str(error))
    return final


async def close_journal(
    client: Client,
    journal: Journal,
    sender: Sender,
    task_id: str,
    still_wanted: StillWanted | None = None,
) -> None:
    """Bring the server up to date with a journal nobody appends to any more, then remove it.

    The transcript first, so that nobody sees an ended task grow; but only for a while. One that
    cannot be read keeps nothing else back, and then raises JournalError: the file stays.
    """
    with trio.move_on_after(TRANSCRIPT_LEADS), suppress(JournalError):
        await sender.send_rest()
    await settle(client, task_id, journal.usage, journal.outcome, still_wanted)
    await sender.send_rest()
    journal.remove()


async def pin_session(client: Client, task_id: str, session: Session) -> None:
    """Tell the server how the task can be resumed if this daemon dies; retried until told."""
    request = SessionRequest(session_id=session.session_id, work_dir=session.work_dir)
    attempt = 0
    while not await _told(client, task_id, lambda: client.session(task_id, request)):
        await trio.sleep(wait_before(attempt))
        attempt += 1
