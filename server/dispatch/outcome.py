"""A task that has just ended, as the consequences of its kind see it. Pure.

Kept apart from `settle`, which names the functions, so that the modules that hold them need not
import each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import attrs

from server.consequences import Consequence
from server.store.queries import Connection
from shared.wire.task import COMPLETED, kind_of

Row = Mapping[str, Any]


@attrs.frozen(kw_only=True)
class Ended:
    """One task that this very transaction has completed, failed or cancelled.

    `task` is its row now; times in it are strings. `before` is the row as it was, with
    `issue_title`, `issue_status` and `agent_archived`. `retry` is the row of the new attempt, if
    one was queued: then nobody needs to be told of the failure. `text` is what to show of it: the
    output of a completed task (escapes decoded, secrets removed), the error of a failed one.
    `answer` takes what the endpoint that caused this adds to its answer (spec 02 §2.6).
    """

    task: Row
    before: Row
    retry: Row | None = None
    text: str = ""
    resume_unsafe: bool = False
    adopted: bool = False
    """A failure that turned out to be none: its daemon came back with the result."""
    answer: dict[str, Any] = attrs.field(factory=dict)

    @property
    def id(self) -> str:
        """The task's id."""
        task_id: str = self.task["id"]
        return task_id

    @property
    def status(self) -> str:
        """`completed`, `failed` or `cancelled`."""
        status: str = self.task["status"]
        return status

    @property
    def completed(self) -> bool:
        """Whether it went well."""
        return self.status == COMPLETED

    @property
    def kind(self) -> str:
        """`chat`, `autopilot`, `quick_create` or `issue`; as it was queued."""
        kind = kind_of(
            chat_session_id=self.before["chat_session_id"] or "",
            autopilot_run_id=self.before["autopilot_run_id"] or "",
            issue_id=self.before["issue_id"] or "",
            trigger_comment_id="",
        )
        return "issue" if kind == "direct" else kind


Settler = Callable[[Connection, Sequence[Ended]], Awaitable[Sequence[Consequence]]]
"""Does what follows for all the tasks of one kind that ended together: a fixed number of
statements, however many tasks. Runs in the transaction that ends them, whoever caused it."""
