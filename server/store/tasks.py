"""Task rows as the protocol shows them, and the statements of a task's life in `tasks.sql`.

Rows come as records or, out of statements with several results, as JSON; both read the same here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import attrs

from server.errors import Foreign, NotFound
from server.store.queries import Connection, Record, load
from shared import depth
from shared.times import fine_stamp, parse_stamp, stamp
from shared.wire.task import Task, TaskMessagePayload, kind_of

SQL: Final = load("tasks")

_HOME: Final = re.compile(r"^(?:[A-Za-z]:)?/(?:Users|home)/[^/]+/", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class Caller:
    """Whose right to a machine a statement checks: the user's who owns it.

    A machine's token stands for who made it (`user_id`, None for tokens older than makers) at the one
    machine it was made for (`workspace_id` and `daemon_id`, None for everybody else).
    """

    user_id: str | None
    workspace_id: str | None = None
    daemon_id: str | None = None

    @property
    def args(self) -> tuple[str | None, list[str | None] | None]:
        """The values of $user and $bound. Someone who is neither is nobody's member."""
        if self.user_id is None and self.workspace_id is None:
            raise Foreign
        bound = None if self.workspace_id is None else [self.workspace_id, self.daemon_id]
        return self.user_id, bound


def caller_args(caller: Caller | None) -> tuple[str | None, list[str | None] | None]:
    """The values of $user and $bound; None for callers that were checked before."""
    return (None, None) if caller is None else caller.args


def seen(row: Record | None, missing: str = "task not found") -> Record:
    """Return the row if it exists and the caller may see it. Raises NotFound, Foreign.

    On a machine of somebody else's in the caller's own workspace it does not exist for them; what
    belongs to another workspace has a text on which no daemon acts.
    """
    if row is not None and row["allowed"] is None:
        raise Foreign
    if row is None or not row["allowed"]:
        raise NotFound(missing)
    return row


async def see_task(conn: Connection, task_id: str, caller: Caller | None) -> Record:
    """Read a task. Raises NotFound, Foreign."""
    return seen(await conn.fetchrow(SQL.see_task, task_id, *caller_args(caller)))


async def get_task(conn: Connection, task_id: str) -> Record | None:
    """Read a task that the caller may see, if it still exists."""
    return await conn.fetchrow(SQL.get_task, task_id)


def moment(value: datetime | str) -> datetime:
    """A time, however the statement returned it."""
    return parse_stamp(value) if isinstance(value, str) else value


def try_moment(value: datetime | str | None) -> str | None:
    """Form A of a time, or None."""
    return None if value is None else stamp(moment(value))


def base_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the base task object (spec 01 §3.5)."""
    work_dir = row["work_dir"] or ""
    return {
        "id": row["id"],
        "agent_id": row["agent_id"],
        "runtime_id": row["runtime_id"],
        "issue_id": row["issue_id"] or "",
        "workspace_id": row["workspace_id"],
        "status": row["status"],
        "priority": row["priority"],
        "dispatched_at": try_moment(row["dispatched_at"]),
        "started_at": try_moment(row["started_at"]),
        "completed_at": try_moment(row["completed_at"]),
        "result": row["result"],
        "error": row["error"] or _out_of_reach(row),
        "failure_reason": row["failure_reason"] or "",
        "attempt": row["attempt"],
        "max_attempts": row["max_attempts"],
        "parent_task_id": row["parent_task_id"] or "",
        "created_at": stamp(moment(row["created_at"])),
        "work_dir": work_dir,
        "relative_work_dir": relative_work_dir(work_dir, row["workspace_id"], row["id"]),
        "trigger_comment_id": row["trigger_comment_id"] or "",
        "trigger_summary": row["trigger_summary"] or "",
        "chat_session_id": row["chat_session_id"] or "",
        "autopilot_run_id": row["autopilot_run_id"] or "",
        "handoff_note": row["handoff_note"] or "",
        "unreachable_since": try_moment(row["unreachable_since"]) or "",
        "resume_at": try_moment(row["resume_at"]) or "",
        "not_before": try_moment(row["not_before"]) or "",
        "late_result": row["late"],
        "kind": kind_of(
            chat_session_id=row["chat_session_id"] or "",
            autopilot_run_id=row["autopilot_run_id"] or "",
            issue_id=row["issue_id"] or "",
            trigger_comment_id=row["trigger_comment_id"] or "",
        ),
    }


def _out_of_reach(row: Mapping[str, Any]) -> str | None:
    """What tables that know no `unreachable_since` show of a run whose machine is silent."""
    since = try_moment(row["unreachable_since"])
    return f"its machine cannot be reached since {since}" if since else None


def task_of(row: Mapping[str, Any]) -> Task:
    """The base task object of a row."""
    return Task(**base_fields(row))


def message_of(row: Mapping[str, Any]) -> TaskMessagePayload:
    """A stored message as readers get it; the row also has the task's issue_id."""
    return TaskMessagePayload(
        task_id=row["task_id"],
        issue_id=row["issue_id"] or "",
        seq=row["seq"],
        type=row["type"],
        tool=row["tool"] or "",
        content=row["content"] or "",
        input=depth.cut(row["input"]),  # what was stored before there was a bound
        output=row["output"] or "",
        created_at=fine_stamp(row["created_at"]),
    )


def relative_work_dir(work_dir: str, workspace_id: str, task_id: str) -> str:
    """A work directory for showing: never with a user's name in it (spec 02 §4.6)."""
    path = work_dir.replace("\\", "/")
    ours = path.find(f"{workspace_id}/{task_id[:8]}")
    if ours >= 0:
        return path[ours:]
    stripped = _HOME.sub("", path)
    return stripped if stripped != path else path.rstrip("/").rpartition("/")[2]
