"""Saying "still here" for one runtime over HTTP, whenever the websocket does not.

Wakes at every heartbeat interval, after a random first delay that keeps many runtimes from beating
in step. It ends only by being cancelled; a runtime that is gone is reported and its owner cancels.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from daemon.client import ApiError
from shared.supervise import every

if TYPE_CHECKING:
    from daemon.services import Services

log = structlog.get_logger(__name__)


async def run_heartbeat(services: Services, runtime_id: str, gone: Callable[[], None]) -> None:
    """Beat for ever. Failures are logged and nothing is retried within a tick (spec 03 §10)."""
    interval = services.config.heartbeat_interval

    async def beat() -> None:
        if services.freshness.is_fresh(runtime_id):
            return
        try:
            answer = await services.client.heartbeat(runtime_id)
        except ApiError as error:
            if error.runtime_gone:
                gone()
            else:
                log.warning("heartbeat failed", runtime_id=runtime_id, error=str(error))
            return
        if answer.runtime_gone:
            gone()
        else:
            services.actions.submit(runtime_id, answer)

    await every(interval, beat, first=random.uniform(0, interval))  # noqa: S311
