"""Keep a service running: restart it after expected failures, give up on a crash loop.

Trio has no supervisor object; this is the function. It restarts only what the caller names as
retryable, waits a jittered back-off that a healthy period resets, and raises once failures come
faster than the stated intensity, so that a crash loop reaches the parent instead of the log.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable

import attrs
import structlog
import trio

log = structlog.get_logger(__name__)


class CrashLoop(Exception):
    """The service failed too often in too short a time."""


@attrs.frozen(kw_only=True)
class Backoff:
    """Waits between attempts, in seconds: doubling from `first` to `limit`, ± `jitter`."""

    first: float = 1.0
    limit: float = 30.0
    jitter: float = 0.2

    def wait(self, failures: int) -> float:
        """The wait after the n-th failure in a row (from 1)."""
        plain: float = min(self.limit, self.first * 2 ** min(failures - 1, 30))
        return plain * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311


@attrs.frozen(kw_only=True)
class Intensity:
    """More than `failures` in `period` seconds is a crash loop."""

    failures: int = 5
    period: float = 30.0


async def supervise(
    name: str,
    service: Callable[[], Awaitable[None]],
    *,
    retryable: tuple[type[Exception], ...] = (Exception,),
    backoff: Backoff = Backoff(),
    intensity: Intensity | None = Intensity(),
    healthy_after: float = 60.0,
) -> None:
    """Run `service` until it returns; restart it after a retryable failure.

    Raises CrashLoop from the last failure when `intensity` is exceeded, and anything that is not
    retryable at once. `intensity=None` retries for ever: only for services whose peers may be
    away for long.
    """
    in_a_row = 0
    recent: deque[float] = deque()
    while True:
        started = trio.current_time()
        failure: BaseExceptionGroup[Exception] | None = None
        try:
            await service()
        except* retryable as group:
            failure = group
        if failure is None:
            return
        now = trio.current_time()
        in_a_row = 1 if now - started >= healthy_after else in_a_row + 1
        recent.append(now)
        if intensity is not None:
            while recent and recent[0] <= now - intensity.period:
                recent.popleft()
            if len(recent) > intensity.failures:
                raise CrashLoop(name) from failure
        wait = backoff.wait(in_a_row)
        log.warning(
            "service failed; restarting", service=name, wait=round(wait, 2), exc_info=failure
        )
        await trio.sleep(wait)


async def every(
    interval: float,
    action: Callable[[], Awaitable[None]],
    *,
    first: float = 0.0,
    jitter: float = 0.0,
) -> None:
    """Run `action` for ever: after `first` seconds, then `interval` seconds after each start.

    An action that overruns its interval is followed by the next at once, never by two.
    `jitter` spreads each wait by that share of the interval.
    """
    due = trio.current_time() + first
    while True:
        await trio.sleep_until(due)
        started = trio.current_time()
        await action()
        spread = interval * random.uniform(-jitter, jitter)  # noqa: S311
        due = max(started + interval + spread, trio.current_time())
