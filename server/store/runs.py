"""Tasks and their transcripts as readers of the user API see them.

Functions of the asyncio island, as in `work`. Only reading: what happens to a task is decided in
`dispatch`.
"""

from __future__ import annotations

import re
from typing import Any

import attrs

from server.store.queries import Connection, Record, load
from shared.ids import short_id
from shared.times import fine_stamp, stamp, try_stamp
from shared.wire.task import Task, TaskMessagePayload, kind_of
from shared.wire.work import IssueUsage

SQL = load("runs")


@attrs.frozen(kw_only=True)
class FoundTask:
    """A task with what decides who may touch it."""

    task: Task
    agent_visibility: str
    agent_owner: str | None


async def list_tasks(conn: Connection, issue_id: str) -> list[Task]:
    """Return the runs of an issue, newest first (at most 500)."""
    return [task_of(row) for row in await conn.fetch(SQL.list_tasks, issue_id)]


async def active_tasks(conn: Connection, issue_id: str) -> list[Task]:
    """Return the runs of an issue that are not over, newest first."""
    return [task_of(row) for row in await conn.fetch(SQL.active_tasks, issue_id)]


async def agent_tasks(conn: Connection, agent_id: str) -> list[Task]:
    """Return the runs of an agent, newest first (at most 500)."""
    return [task_of(row) for row in await conn.fetch(SQL.agent_tasks, agent_id)]


async def agent_active_ids(conn: Connection, agent_id: str) -> list[str]:
    """Return the ids of what an agent still has to do, in a fixed order."""
    return [str(row["id"]) for row in await conn.fetch(SQL.agent_active_ids, agent_id)]


async def task_snapshot(conn: Connection, workspace_id: str) -> list[Task]:
    """Return every run that is not over, and of each agent the last one that ended."""
    return [task_of(row) for row in await conn.fetch(SQL.task_snapshot, workspace_id)]


async def get_task(conn: Connection, workspace_id: str, task_id: str) -> FoundTask | None:
    """Return a task of the workspace."""
    row = await conn.fetchrow(SQL.get_task, workspace_id, task_id)
    if row is None:
        return None
    owner = row["agent_owner"]
    return FoundTask(
        task=task_of(row),
        agent_visibility=row["agent_visibility"],
        agent_owner=None if owner is None else str(owner),
    )


async def task_messages(
    conn: Connection, task_id: str, since: int = 0, *, issue_id: str = ""
) -> list[TaskMessagePayload]:
    """Return the transcript after `since`, in order (at most 10,000 items; then ask again)."""
    rows = await conn.fetch(SQL.task_messages, task_id, since)
    return [
        TaskMessagePayload(
            task_id=str(row["task_id"]),
            issue_id=issue_id,
            seq=row["seq"],
            type=row["type"],
            tool=row["tool"] or "",
            content=row["content"] or "",
            input=row["input"],
            output=row["output"] or "",
            created_at=fine_stamp(row["created_at"]),
        )
        for row in rows
    ]


async def issue_usage(conn: Connection, issue_id: str) -> IssueUsage:
    """Return the tokens all runs of an issue have used."""
    row = await conn.fetchrow(SQL.issue_usage, issue_id)
    assert row is not None
    return IssueUsage(
        total_input_tokens=row["input_tokens"],
        total_output_tokens=row["output_tokens"],
        total_cache_read_tokens=row["cache_read_tokens"],
        total_cache_write_tokens=row["cache_write_tokens"],
        task_count=row["task_count"],
    )


def task_of(row: Record) -> Task:
    """Turn a row of agent_task_queue into the base task object (02 §4.6)."""
    ids = {
        key: _text(row[key])
        for key in ("issue_id", "chat_session_id", "autopilot_run_id", "trigger_comment_id")
    }
    return Task(
        id=str(row["id"]),
        agent_id=str(row["agent_id"]),
        runtime_id=str(row["runtime_id"]),
        workspace_id=str(row["workspace_id"]),
        status=row["status"],
        priority=row["priority"],
        dispatched_at=try_stamp(row["dispatched_at"]),
        started_at=try_stamp(row["started_at"]),
        completed_at=try_stamp(row["completed_at"]),
        result=row["result"],
        error=row["error"],
        failure_reason=row["failure_reason"] or "",
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        parent_task_id=_text(row["parent_task_id"]),
        created_at=stamp(row["created_at"]),
        work_dir=row["work_dir"] or "",
        relative_work_dir=relative_work_dir(
            row["work_dir"] or "", str(row["workspace_id"]), str(row["id"])
        ),
        trigger_summary=row["trigger_summary"] or "",
        handoff_note=row["handoff_note"] or "",
        kind=kind_of(**ids),
        **ids,
    )


_HOME = re.compile(r"^([A-Za-z]:)?/(Users|home)/[^/]+/", re.IGNORECASE)


def relative_work_dir(work_dir: str, workspace_id: str, task_id: str) -> str:
    """Return a path that may be shown: without what names the machine's user (02 §4.6)."""
    path = work_dir.replace("\\", "/")
    at = path.find(f"{workspace_id}/{short_id(task_id)}")
    if at >= 0:
        return path[at:]
    stripped = _HOME.sub("", path, count=1)
    return stripped if stripped != path else path.rstrip("/").rpartition("/")[2]


def _text(value: Any) -> str:
    return "" if value is None else str(value)
