"""Fetching work for one runtime: room first, then a claim, then again at once or after a while.

Woken by its interval, by a slot that has become free while it waits for one, or by a nudge from the
websocket; a nudge that comes while it claims stays
for the next wait. How a claim is made, and whose slots it takes, is the business of `claims.py`. It
ends when the pool admits nothing more, or when the runtime is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
import trio

from daemon.client import ApiError

if TYPE_CHECKING:
    from daemon.runtimes.info import RuntimeInfo
    from daemon.services import Services
    from shared.mailbox import Nudge

log = structlog.get_logger(__name__)


def poll_offset(runtime_id: str, interval: float) -> float:
    """Return a runtime's fixed place in the interval: FNV-1a of its id, modulo (spec 01 §1.7)."""
    digest = 0xCBF29CE484222325
    for byte in runtime_id.encode():
        digest = ((digest ^ byte) * 0x100000001B3) % 2**64
    return digest % round(interval * 1e9) / 1e9


async def run_poller(services: Services, runtime: RuntimeInfo, gone: Callable[[], None]) -> None:
    """Claim and hand over until the pool is closed or the runtime is gone, reported by `gone`."""
    pool, claims = services.pool, services.claims
    nudge = services.directory.nudge_of(runtime.id)
    await nudge.wait(poll_offset(runtime.id, services.config.poll_interval))
    most = 1
    while True:
        # all who wait are woken by a slot and one gets it, by the luck of scheduling: nobody starves
        if not await pool.wait_for_room():
            return
        nudge.take()  # the claim answers every nudge up to now
        got: int | None = 0
        try:
            got = await claims.claim(runtime, most)
        except ApiError as error:
            if error.runtime_gone:
                gone()
                return
            log.warning("claim failed", runtime_id=runtime.id, error=str(error))
        # Where there was as much as we asked for there may be more; nobody asks for many at first,
        # because slots that are asked for are out of everybody else's reach meanwhile.
        most = 2 * most if got is not None and got >= most else 1
        if got == 0:
            await _rest(nudge, claims.next_poll(services.config.poll_interval))


async def _rest(nudge: Nudge, until: float) -> None:
    """Wait for a nudge, at most until a time on Trio's clock."""
    with trio.CancelScope(deadline=until):
        await nudge.wait()
