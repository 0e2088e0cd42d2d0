"""Tasks and their transcripts as readers of the user API see them.

Functions of the asyncio island, as in `work`. Only reading: what happens to a task is decided in
`dispatch`.
"""

from __future__ import annotations

import attrs

from server.store.queries import Connection, load
from server.store.tasks import message_of, task_of
from shared.wire.task import Task, TaskMessagePayload
from shared.wire.work import IssueUsage

SQL = load("runs")


@attrs.frozen(kw_only=True)
class FoundTask:
    """A task with what decides who may touch it."""

    task: Task
    agent_visibility: str
    agent_owner: str | None
    chat_of: str | None = None
    """Whose chat it answers: nobody else's business."""


async def list_tasks(conn: Connection, issue_id: str) -> list[Task]:
    """Return the runs of an issue, newest first (at most 500)."""
    return [task_of(row) for row in await conn.fetch(SQL.list_tasks, issue_id)]


async def active_tasks(conn: Connection, issue_id: str) -> list[Task]:
    """Return the runs of an issue that are not over, newest first."""
    return [task_of(row) for row in await conn.fetch(SQL.active_tasks, issue_id)]


async def agent_tasks(conn: Connection, agent_id: str, chats_of: str | None) -> list[Task]:
    """Return the runs of an agent, newest first (at most 500)."""
    return [task_of(row) for row in await conn.fetch(SQL.agent_tasks, agent_id, chats_of)]


async def task_snapshot(
    conn: Connection, workspace_id: str, *, only_private_of: str | None, chats_of: str | None
) -> list[Task]:
    """Return every run that is not over, and of each agent the last one that ended.

    Of private agents only those of `only_private_of`; None: everybody's. Of chats only those of
    `chats_of`; None: nobody's.
    """
    rows = await conn.fetch(SQL.task_snapshot, workspace_id, only_private_of, chats_of)
    return [task_of(row) for row in rows]


async def get_task(conn: Connection, workspace_id: str, task_id: str) -> FoundTask | None:
    """Return a task of the workspace."""
    row = await conn.fetchrow(SQL.get_task, workspace_id, task_id)
    if row is None:
        return None
    return FoundTask(
        task=task_of(row),
        agent_visibility=row["agent_visibility"],
        agent_owner=row["agent_owner"],
        chat_of=row["chat_of"],
    )


async def task_messages(conn: Connection, task_id: str, since: int = 0) -> list[TaskMessagePayload]:
    """Return the transcript after `since`, in order (at most 10,000 items; then ask again)."""
    rows = await conn.fetch(SQL.task_messages, task_id, since)
    return [message_of(row) for row in rows]


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
