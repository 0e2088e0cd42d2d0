"""Fetching work for one runtime: a slot first, then a claim, then the hand-over.

Woken by its interval or by a nudge from the websocket; a nudge that comes while it claims stays
for the next wait. It owns the slot between taking it and handing it over, and gives it back on
every other way out. It ends when the pool admits nothing more, or when the runtime is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog
import trio

from daemon.client import CALL, ApiError

if TYPE_CHECKING:
    from daemon.runtimes.info import RuntimeInfo
    from daemon.services import Services

log = structlog.get_logger(__name__)

SLOT_WAIT: Final = 2.0
"""Seconds a poller queues for a slot before it stands back (spec 03 §12)."""

CAPACITY_BACKOFF: Final = 5.0
"""Seconds at most a poller stands back while all slots are out."""

CLAIM_WITHIN: Final = CALL + 5.0
"""Seconds a claim may hold up a cancel: the client's own deadline and a margin. A claim that was
cut would leave a task dispatched to nobody for 90 s."""


def poll_offset(runtime_id: str, interval: float) -> float:
    """Return a runtime's fixed place in the interval: FNV-1a of its id, modulo (spec 01 §1.7)."""
    digest = 0xCBF29CE484222325
    for byte in runtime_id.encode():
        digest = ((digest ^ byte) * 0x100000001B3) % 2**64
    return digest % round(interval * 1e9) / 1e9


async def run_poller(services: Services, runtime: RuntimeInfo, gone: Callable[[], None]) -> None:
    """Claim and hand over until the pool is closed or the runtime is gone, reported by `gone`."""
    pool = services.pool
    nudge = services.directory.nudge_of(runtime.id)
    await nudge.wait(poll_offset(runtime.id, services.config.poll_interval))
    while pool.admitting:
        interval = services.config.poll_interval
        slot = pool.try_take_slot()
        if slot is None:
            slot = await pool.wait_for_slot(SLOT_WAIT)
        if slot is None:
            await nudge.wait(min(interval, CAPACITY_BACKOFF))
            continue
        nudge.take()  # the claim answers every nudge up to now
        claimed = False
        try:
            claimed = await _claim(services, runtime, slot)
        except ApiError as error:
            if error.runtime_gone:
                gone()
                return
            log.warning("claim failed", runtime_id=runtime.id, error=str(error))
        if not claimed:
            await nudge.wait(interval)


async def _claim(services: Services, runtime: RuntimeInfo, slot: int) -> bool:
    """Claim once and hand over; tell whether a task was admitted. Raises ApiError.

    Shielded with a deadline: no cancel can come between the request and the hand-over. On every
    way out the slot is either handed over or given back.
    """
    owned = True
    try:
        with trio.move_on_after(CLAIM_WITHIN, shield=True) as claim:
            services.claims.add(claim)
            task = await services.client.claim(runtime.id)
            if task is not None:
                owned = False
                log.info("task claimed", task_id=task.id, runtime_id=runtime.id, slot=slot)
                now = services.directory.find(runtime.id) or runtime
                return services.pool.hand_over(task, slot, now)
    finally:
        services.claims.discard(claim)
        if owned:
            services.pool.give_back(slot)
    return False
