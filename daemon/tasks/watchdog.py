"""How long an agent may be silent. ◇

The consumer of the agent's messages asks before each receive; there is no task and no timer here.
A running tool is allowed more silence than a thinking agent. What runs is known by call ids, not by
a counter, so one lost result cannot raise the budget for ever (spec 03 §15.4).
"""

from __future__ import annotations

import math

from daemon.agents.contract import AgentMessage


class Watchdog:
    """Budgets in seconds; `idle` 0 disables everything, `tool` 0 never fires during a tool."""

    def __init__(self, idle: float, tool: float) -> None:
        self._idle = idle
        self._tool = tool
        self._open: dict[str, str] = {}  # call id -> tool; only `saw` changes it

    def saw(self, message: AgentMessage) -> None:
        """Take note of a message the consumer has received."""
        if message.kind == "tool_use" and message.call_id:
            self._open[message.call_id] = message.tool
        elif message.kind == "tool_result":
            self._open.pop(message.call_id, None)

    @property
    def running_tool(self) -> str:
        """The name of a tool whose result is awaited, or "" for none."""
        return next(iter(self._open.values()), "") if self._open else ""

    def budget(self) -> float:
        """Seconds of silence allowed from now; infinite when nothing is to fire."""
        if self._idle <= 0:
            return math.inf
        if not self._open:
            return self._idle
        return self._tool if self._tool > 0 else math.inf

    def explain(self) -> str:
        """Say, for the task's error, what was waited for and how long."""
        waited = f"{self.budget():g} seconds"
        if self._open:
            return f"agent stopped: tool {self.running_tool or 'call'} gave no result for {waited}"
        return f"agent stopped: it was silent for {waited}"
