"""Trouble of this machine's own that passes: too many open files, no memory, a full disk, a program
being replaced.

An installer takes an agent's program away for some seconds, and a machine at its limits refuses what
it grants the next moment. Neither says anything about the task. So what meets such trouble waits and
tries again, says so, and fails only when it stays. Runs nothing by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog
import trio

from daemon.agents.contract import AgentError
from shared.system import EXHAUSTED, FULL

T = TypeVar("T")

log = structlog.get_logger(__name__)

PATIENCE: Final = 60.0
"""Seconds: an installation of an agent program from a slow network takes less."""

_WAITS: Final = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt, the last one repeated."""


class Stays(Exception):
    """The trouble has not passed; the text says what it is."""


async def patiently(
    what: str,
    work: Callable[[], Awaitable[T]],
    say: Callable[[str], Awaitable[None]],
    *,
    hurried: Callable[[], bool] = lambda: False,
) -> T:
    """Do `work`, again while it meets trouble that passes; `say` tells whoever watches.

    `work` must leave nothing behind where it fails; once `hurried` it is not tried again. Raises
    Stays, and whatever else `work` raises.
    """
    began, attempt = trio.current_time(), 0
    while True:
        trouble: BaseException | None = None
        try:
            return await work()
        except Exception as error:
            trouble = passing(error)
            if trouble is None:
                raise
        wait = _WAITS[min(attempt, len(_WAITS) - 1)]
        waited = trio.current_time() - began
        if waited + wait > PATIENCE or hurried():
            text = f"{trouble} (it has been so for {waited:.0f} s)"
            raise Stays(text) from trouble
        log.warning("this machine is in trouble; trying again", what=what, error=str(trouble))
        if attempt == 0:
            await say(f"waiting: {trouble}")
        attempt += 1
        await trio.sleep(wait)


def passing(error: BaseException) -> BaseException | None:
    """Find trouble that passes: the error, what it was raised from, or all a group holds."""
    if isinstance(error, BaseExceptionGroup):
        found = [passing(each) for each in error.exceptions]
        return found[0] if all(each is not None for each in found) else None
    if isinstance(error, AgentError) and error.passing:
        return error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in EXHAUSTED | FULL:
            return error
        cause = cause.__cause__
    return None
