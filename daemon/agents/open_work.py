"""Work that goes on in the background of a conversation, as the program tells of it. ◇

Claude names each piece (`task_started`) and says when it has ended (`task_notification`); what came
of it is told in a turn that begins by itself. Once its standard input is closed the program kills
whatever is still open some seconds later, so the conversation must not be ended before. A tool in
the foreground that takes long is told of in the same way; its end comes before its result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from daemon.agents.loose import mapping, string

_ENDED: Final = frozenset({"completed", "failed", "killed", "stopped", "cancelled", "error"})
_LAUNCHED: Final = ("async_launched", "remote_launched")


class OpenWork:
    """What of one conversation is open. Only its driver changes it."""

    def __init__(self) -> None:
        self._open: dict[str, str] = {}  # task id -> what it is, for people
        self._ended: set[str] = set()  # of the open ones, those whose end is still to be told
        self._calls: dict[str, str] = {}  # id of a tool call without a result -> its task
        self._owed = False  # an end was told: a turn may begin by itself

    @property
    def names(self) -> list[str]:
        """What is at work, in the program's words."""
        return [name for task, name in self._open.items() if task not in self._ended]

    @property
    def unsettled(self) -> bool:
        """Whether nothing is at work, and yet a turn may begin by itself in a moment."""
        return not self.names and (self._owed or bool(self._open))

    def started(self, event: Mapping[str, Any]) -> None:
        """Take note of a piece that has begun."""
        task = string(event.get("task_id"))
        if task:
            self._open[task] = string(event.get("description")) or task
            if call := string(event.get("tool_use_id")):
                self._calls[call] = task

    def updated(self, event: Mapping[str, Any]) -> None:
        """Take note of a piece whose state has changed; the news of its end is still to come."""
        task = string(event.get("task_id"))
        if task in self._open and mapping(event.get("patch")).get("status") in _ENDED:
            self._ended.add(task)

    def told(self, event: Mapping[str, Any]) -> None:
        """Take note of the news that a piece has ended."""
        task = string(event.get("task_id"))
        if task in self._open and task not in self._calls.values():
            self._owed = True
        self._forget(task)

    def answered(self, call: str, details: Mapping[str, Any]) -> None:
        """Take note of a tool's result, which says whether its work goes on without it."""
        begun = self._calls.pop(call, "")
        task = string(details.get("backgroundTaskId"))
        if details.get("status") in _LAUNCHED:
            task = string(details.get("agentId")) or string(details.get("taskId"))
        if task:
            self._open.setdefault(task, string(details.get("description")) or task)
        elif begun in self._ended:  # it was in the foreground, and this is its end
            self._forget(begun)

    def turn_began(self) -> None:
        """Take note that the program speaks again: what it owed, it tells now."""
        self._owed = False

    def _forget(self, task: str) -> None:
        self._open.pop(task, None)
        self._ended.discard(task)
