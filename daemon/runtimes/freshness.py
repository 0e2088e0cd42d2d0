"""Which runtimes the websocket has beaten for lately, so that HTTP need not. Runs nothing."""

from __future__ import annotations

import trio


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
