"""How a chat's task ends: with an answer, an error, or the message taken back (02 §2.3-§2.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from server.consequences import Consequence
from server.dispatch.outcome import Ended
from server.store.queries import Connection, Record, load
from shared.times import fine_stamp, parse_stamp
from shared.wire.event import Event

SQL: Final = load("chat")


async def settle_chats(conn: Connection, ended: Sequence[Ended]) -> list[Consequence]:
    """Settler of chat tasks. What a retry will answer is left to it."""
    rows = [_row(one) for one in ended]
    told: list[Consequence] = []
    for row in await conn.fetch(SQL.settle, rows):
        one = next(one for one in ended if one.id == row["task_id"])
        if row["withdrawn"]:
            one.answer["cancelled_chat_message"] = _restored(row)
        if row["how"] == "completed" and row["creator_id"] is not None:
            told.append(_done(row))
    return told


async def take_back(conn: Connection, task_id: str, retries: Sequence[str]) -> Record | None:
    """A task answers for itself instead of its new attempts, which are about to be called off.

    Returns the task that is queued for what was said since, if anything was.
    """
    return await conn.fetchrow(SQL.take_back, task_id, retries)


def _row(one: Ended) -> dict[str, Any]:
    return {
        "task_id": one.id,
        "session_id": one.before["chat_session_id"],
        "how": one.status if one.retry is None else "retried",
        "text": one.text,
        "reason": one.task["failure_reason"],
        "resume": not one.resume_unsafe,
        "retry_id": None if one.retry is None else one.retry["id"],
    }


def _restored(row: Any) -> dict[str, Any]:
    """The message that goes back into the writer's hands."""
    messages = row["withdrawn"]
    shown: dict[str, Any] = {
        "chat_session_id": row["session_id"],
        "message_id": messages[-1]["id"],
        "content": "\n\n".join(message["content"] for message in messages),
        "restore_to_input": True,
    }
    if row["released"]:
        shown["attachments"] = [{"id": file_id} for file_id in row["released"]]
    return shown


def _done(row: Any) -> Event:
    payload: dict[str, Any] = {"chat_session_id": row["session_id"], "task_id": row["task_id"]}
    if answer := row["answer"]:
        payload |= {
            "message_id": answer["id"],
            "content": answer["content"],
            "elapsed_ms": row["took"],
            "created_at": fine_stamp(parse_stamp(answer["created_at"])),
        }
    return Event(
        type="chat:done",
        payload=payload,
        workspace_id=row["workspace_id"],
        users=(row["creator_id"],),
    )
