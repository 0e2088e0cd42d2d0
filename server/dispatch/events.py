"""Rows that changed, as the events browsers get (spec 01 §5.4 to §5.6). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from server.store.tasks import moment, try_moment
from shared import codec
from shared.times import stamp
from shared.wire.event import Event
from shared.wire.task import TaskMessagePayload

Row = Mapping[str, Any]

_AGENT_KEYS: Final = (
    "id",
    "workspace_id",
    "runtime_id",
    "name",
    "description",
    "avatar_url",
    "runtime_mode",
    "visibility",
    "status",
    "max_concurrent_tasks",
    "owner_id",
    "archived_by",
)


def task_event(kind: str, row: Row) -> Event:
    """`task:queued`, `task:running` and the like."""
    payload = {
        "task_id": row["id"],
        "agent_id": row["agent_id"],
        "issue_id": row["issue_id"] or "",
        "status": row["status"],
    }
    if row["chat_session_id"]:
        payload["chat_session_id"] = row["chat_session_id"]
    if row["failure_reason"] and row["status"] == "failed":
        payload["failure_reason"] = row["failure_reason"]
    return Event(type=kind, payload=payload, workspace_id=row["workspace_id"], **_seen_by(row))


def _seen_by(row: Row) -> dict[str, Any]:
    """Whose a run is, for who may see that it is there: whoever may read the issue it is on."""
    return {} if row["issue_id"] and not row["chat_session_id"] else _read_by(row)


def _read_by(row: Row) -> dict[str, Any]:
    """Whose a run is, for who may read it: a chat's of who chats, a private agent's of its owner."""
    if row["chat_session_id"]:
        return {"kind": "chat", "users": (row["initiator_id"],) if row["initiator_id"] else ()}
    if row["agent_private"]:
        return {"kind": "private", "users": _owner(row["agent_owner_id"])}
    return {}


def _owner(user_id: str | None) -> tuple[str, ...]:
    return () if user_id is None else (user_id,)


def agent_whose(visibility: str, owner_id: str | None) -> dict[str, Any]:
    """Whose an agent is, for events about it."""
    return {"kind": "private", "users": _owner(owner_id)} if visibility == "private" else {}


def autopilot_whose(row: Row) -> dict[str, Any]:
    """Whose an autopilot is, for events about it."""
    whose = row["whose"]
    return {"kind": "private", "users": tuple(whose["people"])} if whose["private"] else {}


def reachability(row: Row) -> Event:
    """`task:unreachable`, ours: its machine fell silent at that time, or (null) is back."""
    event = task_event("task:unreachable", row)
    event.payload["unreachable_since"] = try_moment(row["unreachable_since"])
    return event


def dispatched(row: Row) -> Event:
    """`task:dispatch`. What the task's context holds is nobody's business but the daemon's."""
    payload = {
        "task_id": row["id"],
        "runtime_id": row["runtime_id"],
        "issue_id": row["issue_id"] or "",
        "agent_id": row["agent_id"],
    }
    if row["chat_session_id"]:
        payload["chat_session_id"] = row["chat_session_id"]
    return Event(
        type="task:dispatch",
        payload=payload,
        workspace_id=row["workspace_id"],
        **_seen_by(row),
    )


def agent_status(agent: Row) -> Event:
    """`agent:status` of a row of agent: nothing of what only some may read of it."""
    shown: dict[str, Any] = {key: agent[key] for key in _AGENT_KEYS}
    shown |= {
        "skills": [],
        "created_at": stamp(moment(agent["created_at"])),
        "updated_at": stamp(moment(agent["updated_at"])),
        "archived_at": try_moment(agent["archived_at"]),
    }
    return Event(
        type="agent:status",
        payload={"agent": shown},
        workspace_id=agent["workspace_id"],
        **agent_whose(agent["visibility"], agent["owner_id"]),
    )


def task_message(row: Row, message: TaskMessagePayload) -> Event:
    """`task:message`; the row has the task's columns beside the message's."""
    return Event(
        type="task:message",
        payload=codec.unstructure(message),
        workspace_id=row["workspace_id"],
        **_read_by(row),
    )


def task_progress(row: Row, payload: dict[str, Any]) -> Event:
    """`task:progress`; the row has the task's columns."""
    return Event(
        type="task:progress",
        payload=payload,
        workspace_id=row["workspace_id"],
        **_read_by(row),
    )


def comment_created(comment: Row, *, issue_title: str, issue_status: str) -> Event:
    """`comment:created` for a comment that dispatch wrote, in an agent's name or the server's."""
    return Event(
        type="comment:created",
        payload={
            "comment": _comment(comment),
            "issue_title": issue_title,
            "issue_status": issue_status,
        },
        workspace_id=comment["workspace_id"],
        actor_type=comment["author_type"],
        actor_id=comment["author_id"],
    )


def comment_unresolved(comment: Row) -> Event:
    """`comment:unresolved`: a new reply has brought the thread of this root back."""
    return Event(
        type="comment:unresolved",
        payload={"comment": _comment(comment)},
        workspace_id=comment["workspace_id"],
    )


def _comment(comment: Row) -> dict[str, Any]:
    shown = {
        "id": comment["id"],
        "issue_id": comment["issue_id"],
        "author_type": comment["author_type"],
        "author_id": comment["author_id"],
        "content": comment["content"],
        "type": comment["type"],
        "parent_id": comment["parent_id"],
        "created_at": stamp(moment(comment["created_at"])),
        "updated_at": stamp(moment(comment["updated_at"])),
        "resolved_at": None,
        "resolved_by_type": None,
        "resolved_by_id": None,
        "reactions": [],
        "attachments": [],
    }
    if comment["source_task_id"]:
        shown["source_task_id"] = comment["source_task_id"]
    return shown


def inbox_new(item: Row, *, issue_status: str | None = None) -> Event:
    """`inbox:new`, to its recipient only."""
    keys = (
        *("id", "workspace_id", "recipient_type", "recipient_id", "type", "severity", "issue_id"),
        *("title", "body", "read", "archived", "actor_type", "actor_id", "details"),
    )
    shown: dict[str, Any] = {key: item[key] for key in keys}
    shown["created_at"] = stamp(moment(item["created_at"]))
    if issue_status is not None:
        shown["issue_status"] = issue_status
    return Event(
        type="inbox:new",
        payload={"item": shown},
        workspace_id=item["workspace_id"],
        users=(item["recipient_id"],),
    )


def activity_created(row: Row) -> Event:
    """`activity:created` for a row of activity_log."""
    keys = ("id", "actor_type", "actor_id", "action", "details")
    entry = {"type": "activity"} | {key: row[key] for key in keys}
    entry["created_at"] = stamp(moment(row["created_at"]))
    return Event(
        type="activity:created",
        payload={"issue_id": row["issue_id"], "entry": entry},
        workspace_id=row["workspace_id"],
        actor_type=row["actor_type"] or "system",
        actor_id=row["actor_id"] or "",
    )


def runtimes_changed(workspace_id: str, **payload: Any) -> Event:
    """`daemon:register`: whatever its payload, it means "fetch the runtimes again"."""
    return Event(type="daemon:register", payload=payload, workspace_id=workspace_id)
