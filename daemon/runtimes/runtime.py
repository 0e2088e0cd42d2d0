"""One runtime: the nursery of its heartbeat and its poller.

A workspace's reconciler starts it when the server has registered the runtime and cancels it when
the runtime is no longer wanted. Before its first claim in this process it settles what an earlier
process left in flight. It ends by itself when the server says the runtime is gone; it reports that
and leaves the recovery to the reconciler, which would otherwise cancel the one performing it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog
import trio

from daemon.client import ApiError, Foreign, Transient
from daemon.runtimes.heartbeat import run_heartbeat
from daemon.runtimes.poller import run_poller
from shared.supervise import Backoff

if TYPE_CHECKING:
    from daemon.runtimes.info import RuntimeInfo
    from daemon.services import Services

log = structlog.get_logger(__name__)

HELD_BACK: Final = 120.0
"""Seconds the reports of an earlier process may hold up a runtime's work. Afterwards it works
without recovery: what has a journal is reported by name, the rest meets the server's time-outs."""

RECOVER_WITHIN: Final = 5.0
"""Seconds recover-orphans may take, and may therefore hold up a stop."""

_RECOVERY_BACKOFF: Final = Backoff(first=1.0, limit=30.0)


async def run_runtime(services: Services, runtime: RuntimeInfo) -> None:
    """Beat and poll until the runtime is gone; beat on after the pool has closed."""
    async with trio.open_nursery() as presence:

        def gone() -> None:
            services.directory.report_gone(runtime.id)
            presence.cancel_scope.cancel(reason="runtime gone")

        presence.start_soon(run_heartbeat, services, runtime.id, gone)
        await _recover_orphans(services, runtime.id, gone)
        await run_poller(services, runtime, gone)


async def _recover_orphans(services: Services, runtime_id: str, gone: Callable[[], None]) -> None:
    """Fail what an earlier process left in flight and has no journal, once all journals are told.

    Not while the pool has a task of this runtime: the call would fail it (spec 01 §3.15). Until it
    has succeeded nothing is claimed, and its answer is waited for even when cancelled, so it can
    never hit a task of our own.
    """
    with trio.move_on_after(HELD_BACK) as held_back:
        await services.backlog.wait_told(runtime_id)
    if held_back.cancelled_caught:
        log.warning("reports are still owed; working without recovery", runtime_id=runtime_id)
        return
    failures, patience = 0, trio.current_time() + HELD_BACK
    while runtime_id not in services.pool.active_runtimes():
        try:
            with trio.move_on_after(RECOVER_WITHIN, shield=True):
                reply = await services.client.recover_orphans(runtime_id)
                if reply.orphaned:
                    log.info("orphans recovered", runtime_id=runtime_id, orphaned=reply.orphaned)
                return
        except Transient as error:
            log.warning("orphans not recovered yet", runtime_id=runtime_id, error=str(error))
            if isinstance(error, Foreign) and trio.current_time() > patience:
                return  # whatever it is that does not know this call: work is worth more
        except ApiError as error:
            if error.runtime_gone:
                gone()
            log.warning("orphans not recovered", runtime_id=runtime_id, error=str(error))
            return
        failures += 1
        await trio.sleep(_RECOVERY_BACKOFF.wait(failures))
