"""Tasks and their transcripts as readers of the user API see them.

Functions of the asyncio island, as in `work`. Only reading: what happens to a task is decided in
`dispatch`.
"""

from __future__ import annotations

import attrs

from server.rights import Thing
from server.store.agents import agent_thing
from server.store.queries import Connection, Record, load
from server.store.tasks import message_of, task_of
from shared.wire.task import Task, TaskMessagePayload
from shared.wire.work import IssueUsage

SQL = load("runs")


@attrs.frozen(kw_only=True)
class FoundTask:
    """A task with what decides who may touch it."""

    task: Task
    thing: Thing
    """A chat's run is nobody's business but of who chats."""


async def list_tasks(conn: Connection, issue_id: str, gate: str | None) -> list[Task]:
    """Return the runs of an issue, newest first (at most 500); `gate` says who looks."""
    return [_seen(row) for row in await conn.fetch(SQL.list_tasks, issue_id, gate)]


async def active_tasks(conn: Connection, issue_id: str, gate: str | None) -> list[Task]:
    """Return the runs of an issue that are not over, newest first."""
    return [_seen(row) for row in await conn.fetch(SQL.active_tasks, issue_id, gate)]


def _seen(row: Record) -> Task:
    """A run that everybody may see to be there, but whose results only some may read."""
    task = task_of(row)
    if row["open"]:
        return task
    return attrs.evolve(
        task,
        result=None,
        error=None,
        late_result=None,
        work_dir="",
        relative_work_dir="",
        handoff_note="",
    )


async def agent_tasks(conn: Connection, agent_id: str, chats_of: str | None) -> list[Task]:
    """Return the runs of an agent, newest first (at most 500)."""
    return [task_of(row) for row in await conn.fetch(SQL.agent_tasks, agent_id, chats_of)]


async def task_snapshot(
    conn: Connection, workspace_id: str, *, gate: str | None, chats_of: str | None
) -> list[Task]:
    """Return every run that is not over, and of each agent the last one that ended.

    Of private agents only those open to `gate`; None: all. Of chats only those of `chats_of`; None:
    nobody's.
    """
    rows = await conn.fetch(SQL.task_snapshot, workspace_id, gate, chats_of)
    return [task_of(row) for row in rows]


async def get_task(
    conn: Connection, workspace_id: str, task_id: str, gate: str | None
) -> FoundTask | None:
    """Return a task of the workspace; `gate` says who looks."""
    row = await conn.fetchrow(SQL.get_task, workspace_id, task_id, gate)
    if row is None:
        return None
    if row["chat_of"] is not None:
        thing = Thing(kind="chat", people=(row["chat_of"],))
    else:
        thing = agent_thing(row["agent_visibility"], row["agent_owner"], row["open"])
    return FoundTask(task=task_of(row), thing=thing)


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
