"""Saying "still here" for one runtime over HTTP, whenever the websocket does not.

Wakes at every heartbeat interval, after a random first delay that keeps many runtimes from beating
in step. It ends only by being cancelled; a runtime that is gone is reported and its owner cancels.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
import trio

from daemon.client import ApiError
from shared.supervise import every

if TYPE_CHECKING:
    from daemon.services import Services

log = structlog.get_logger(__name__)


class Freshness:
    """When each runtime's beat was last acknowledged over the websocket.

    The websocket's reader marks and, when the connection ends, clears; heartbeats ask.
    """

    def __init__(self, heartbeat_interval: float) -> None:
        self.window = 2 * heartbeat_interval
        self._marks: dict[str, float] = {}

    def mark(self, runtime_id: str) -> None:
        self._marks[runtime_id] = trio.current_time()

    def clear(self) -> None:
        self._marks.clear()

    def is_fresh(self, runtime_id: str) -> bool:
        """Whether the last acknowledgement is younger than two intervals (spec 03 §10)."""
        mark = self._marks.get(runtime_id)
        return mark is not None and trio.current_time() - mark < self.window


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
