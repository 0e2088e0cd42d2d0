from __future__ import annotations

from itertools import pairwise

import pytest
import trio

from shared.supervise import Backoff, CrashLoop, Intensity, every, supervise

pytestmark = pytest.mark.fast

EXACT = Backoff(first=1, limit=8, jitter=0)


async def test_waits_double_up_to_the_limit_and_reset_when_healthy(autojump_clock: object) -> None:
    starts: list[float] = []
    healthy_run = 4

    async def service() -> None:
        starts.append(trio.current_time())
        if len(starts) == healthy_run:
            await trio.sleep(100)
        if len(starts) < 7:
            raise ConnectionError

    await supervise("x", service, backoff=EXACT, intensity=None)
    gaps = [round(b - a) for a, b in pairwise(starts)]
    assert gaps == [1, 2, 4, 101, 2, 4]


async def test_a_crash_loop_reaches_the_parent(autojump_clock: object) -> None:
    async def service() -> None:
        raise ConnectionError("down")

    with pytest.raises(CrashLoop) as caught:
        await supervise(
            "x", service, backoff=Backoff(first=0.1, limit=0.1), intensity=Intensity(failures=3)
        )
    assert isinstance(caught.value.__cause__, ExceptionGroup)


async def test_what_is_not_retryable_goes_through(autojump_clock: object) -> None:
    async def service() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await supervise("x", service, retryable=(ConnectionError,))


async def test_cancellation_beats_a_failure_in_the_same_moment(autojump_clock: object) -> None:
    async def service() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep(1)
            raise ConnectionError

    with trio.move_on_after(1) as scope:
        await supervise("x", service, backoff=EXACT)
    assert scope.cancelled_caught


async def test_every_keeps_its_rhythm_and_never_doubles(autojump_clock: object) -> None:
    starts: list[float] = []
    zero = trio.current_time()

    async def action() -> None:
        starts.append(trio.current_time() - zero)
        await trio.sleep(25 if len(starts) == 2 else 1)

    with trio.move_on_after(60):
        await every(10, action, first=3)
    assert [round(start) for start in starts] == [3, 13, 38, 48, 58]
