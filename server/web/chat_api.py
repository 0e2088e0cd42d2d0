"""Endpoints for chats: private to who began them, and never open to an agent (spec 06 §13)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence, TaskAvailable
from server.dispatch import events, finish
from server.dispatch.chat import SQL
from server.errors import Invalid, NotFound
from server.rights import Thing
from server.store.agents import agent_thing
from server.store.queries import Connection, Record
from server.store.wire_rows import wire
from server.web import auth
from server.web.agents_api import usable_agent
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.unit import fields, path_id, query, read, write
from shared.times import fine_stamp, stamp
from shared.wire.event import Event
from shared.wire.teamwork import ChatMessage, ChatSession

LONGEST_TITLE: Final = 200
LONGEST_MESSAGE: Final = 100_000
MOST_ATTACHMENTS: Final = 20
MOST_MESSAGES: Final = 1000

_Told = Sequence[Consequence]


# --- sessions -------------------------------------------------------------------------------------


async def create_session(request: Request) -> Response:
    """POST /api/chat/sessions."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    agent_id = sent.id("agent_id")
    if agent_id is None:
        raise Invalid("agent_id is required")
    title = sent.text("title").strip()[:LONGEST_TITLE]

    async def unit(conn: Connection) -> tuple[ChatSession, _Told]:
        agent = await usable_agent(conn, caller, agent_id)
        if agent.archived_at is not None:
            raise Invalid("agent is archived")
        row = await conn.fetchrow(
            SQL.create_session, caller.workspace_id, caller.actor.user_id, title, agent_id
        )
        assert row is not None
        return wire(ChatSession, row), ()

    return answer(await write(request, unit), 201)


async def list_sessions(request: Request) -> Response:
    """GET /api/chat/sessions: the caller's, those that moved last first."""
    caller = await auth.workspace(request)
    everything = query(request).text("status") == "all"
    args = (caller.workspace_id, caller.actor.user_id, everything, None)
    rows = await read(request, lambda conn: conn.fetch(SQL.list_sessions, *args))
    return answer([wire(ChatSession, row) for row in rows])


async def get_session(request: Request) -> Response:
    """GET /api/chat/sessions/{id}."""
    caller = await auth.workspace(request)
    row = await read(request, lambda conn: _mine(conn, caller, request))
    return answer(wire(ChatSession, row))


async def rename_session(request: Request) -> Response:
    """PATCH /api/chat/sessions/{id}."""
    caller = await auth.workspace(request)
    title = (await fields(request)).required_text("title")
    if len(title) > LONGEST_TITLE:
        raise Invalid(f"title must be at most {LONGEST_TITLE} characters")

    async def unit(conn: Connection) -> tuple[ChatSession, _Told]:
        found = await _mine(conn, caller, request)
        row = await conn.fetchrow(SQL.rename_session, found["id"], title)
        assert row is not None
        shown = wire(ChatSession, row)
        told = _event(
            caller,
            "chat:session_updated",
            chat_session_id=shown.id,
            title=shown.title,
            updated_at=shown.updated_at,
        )
        return shown, (told,)

    return answer(await write(request, unit))


async def delete_session(request: Request) -> Response:
    """DELETE /api/chat/sessions/{id}: with all that was said; what runs is cancelled."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> tuple[None, _Told]:
        found = await _mine(conn, caller, request, gated=False)
        told = await finish.cancel_chat(conn, found["id"])
        await conn.execute(SQL.lock_session, found["id"])
        await conn.execute(SQL.delete_session, found["id"])
        gone = _event(caller, "chat:session_deleted", chat_session_id=found["id"])
        return None, (*told, gone)

    await write(request, unit)
    return nothing()


async def mark_read(request: Request) -> Response:
    """POST /api/chat/sessions/{id}/read."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> tuple[None, _Told]:
        found = await _mine(conn, caller, request)
        await conn.execute(SQL.read_session, found["id"])
        return None, (_event(caller, "chat:session_read", chat_session_id=found["id"]),)

    await write(request, unit)
    return nothing()


# --- messages -------------------------------------------------------------------------------------


async def send_message(request: Request) -> Response:
    """POST /api/chat/sessions/{id}/messages: the message and the task that answers it, or neither."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    content = sent.text("content")
    if not content.strip():
        raise Invalid("content is required")
    if len(content) > LONGEST_MESSAGE:
        raise Invalid(f"content must be at most {LONGEST_MESSAGE} characters")
    attachment_ids = sent.ids("attachment_ids", most=MOST_ATTACHMENTS)

    async def unit(conn: Connection) -> tuple[dict[str, Any], _Told]:
        found = await _mine(conn, caller, request)
        if found["status"] != "active":
            raise Invalid("chat session is archived")
        if found["archived"]:
            raise Invalid("agent is archived")
        await conn.execute(SQL.lock_session, found["id"])
        said = await conn.fetchrow(
            SQL.say, found["id"], content, caller.actor.user_id, attachment_ids
        )
        if said is None:  # deleted while this waited
            raise NotFound("chat session not found")
        task = said["task"]
        told: list[Consequence] = [
            _event(
                caller,
                "chat:message",
                chat_session_id=found["id"],
                message_id=said["id"],
                role="user",
                content=content,
                task_id=task["id"],
                created_at=stamp(said["created_at"]),
            )
        ]
        if said["is_new"]:
            told.append(events.task_event("task:queued", task))
        told.append(TaskAvailable(task["runtime_id"], task["id"]))
        made = {
            "message_id": said["id"],
            "task_id": task["id"],
            "attachment_ids": said["attachment_ids"] or None,
            "created_at": stamp(said["created_at"]),
        }
        return made, told

    return answer(await write(request, unit), 201)


async def list_messages(request: Request) -> Response:
    """GET /api/chat/sessions/{id}/messages: the last thousand, oldest first."""
    caller = await auth.workspace(request)
    rows = await _messages(request, caller, None, None, MOST_MESSAGES)
    return answer([_message(row) for row in rows])


async def page_messages(request: Request) -> Response:
    """GET /api/chat/sessions/{id}/messages/page: back from a place, a page at a time."""
    caller = await auth.workspace(request)
    asked = query(request)
    limit, _ = asked.page(limit=50, most=100)
    before, before_id = asked.moment("before_created_at"), asked.id("before_id")
    if (before is None) != (before_id is None):
        raise Invalid("before_created_at and before_id go together")
    rows = await _messages(request, caller, before, before_id, limit + 1)
    page = rows[-limit:]
    shown: dict[str, Any] = {
        "messages": [_message(row) for row in page],
        "limit": limit,
        "has_more": len(rows) > limit,
    }
    if shown["has_more"]:
        first = page[0]
        shown["next_cursor"] = {"created_at": fine_stamp(first["created_at"]), "id": first["id"]}
    return answer(shown)


async def _messages(
    request: Request,
    caller: Membership,
    before: datetime | None,
    before_id: str | None,
    limit: int,
) -> list[Record]:
    async def unit(conn: Connection) -> list[Record]:
        found = await _mine(conn, caller, request)
        return await conn.fetch(SQL.list_messages, found["id"], before, before_id, limit)

    return await read(request, unit)


def _message(row: Record) -> ChatMessage:
    return wire(ChatMessage, row, created_at=fine_stamp(row["created_at"]))


async def pending_task(request: Request) -> Response:
    """GET /api/chat/sessions/{id}/pending-task: what is at work on an answer, if anything."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> Record | None:
        found = await _mine(conn, caller, request)
        return await conn.fetchrow(SQL.pending_task, found["id"])

    row = await read(request, unit)
    return answer({} if row is None else dict(row) | {"created_at": stamp(row["created_at"])})


async def pending_tasks(request: Request) -> Response:
    """GET /api/chat/pending-tasks: of all the caller's sessions."""
    caller = await auth.workspace(request)
    args = (caller.workspace_id, caller.actor.user_id)
    rows = await read(request, lambda conn: conn.fetch(SQL.pending_tasks, *args))
    return answer({"tasks": [dict(row) for row in rows]})


# --- rules ----------------------------------------------------------------------------------------


async def _mine(
    conn: Connection, caller: Membership, request: Request, *, gated: bool = True
) -> Record:
    """The session of the path, if it is the caller's and they may still use its agent."""
    session_id = path_id(request, "id", "session id")
    found = await conn.fetchrow(SQL.find_session, caller.workspace_id, session_id)
    if found is None:
        raise NotFound("chat session not found")
    caller.check(Thing(people=(found["creator_id"],)))
    if gated:
        caller.check(agent_thing(found["visibility"], found["owner_id"]), "agent.use")
    return found


def _event(caller: Membership, kind: str, **payload: Any) -> Event:
    """Only the one who chats hears of the chat."""
    return Event(
        type=kind,
        payload=payload,
        workspace_id=caller.workspace_id,
        actor_type="member",
        actor_id=caller.actor.user_id,
        users=(caller.actor.user_id,),
    )


_ONE: Final = "/api/chat/sessions/{id}"

routes: list[BaseRoute] = [
    Route("/api/chat/sessions", list_sessions, methods=["GET"]),
    Route("/api/chat/sessions", create_session, methods=["POST"]),
    Route("/api/chat/pending-tasks", pending_tasks, methods=["GET"]),
    Route(_ONE, get_session, methods=["GET"]),
    Route(_ONE, rename_session, methods=["PATCH"]),
    Route(_ONE, delete_session, methods=["DELETE"]),
    Route(f"{_ONE}/messages", list_messages, methods=["GET"]),
    Route(f"{_ONE}/messages", send_message, methods=["POST"]),
    Route(f"{_ONE}/messages/page", page_messages, methods=["GET"]),
    Route(f"{_ONE}/pending-task", pending_task, methods=["GET"]),
    Route(f"{_ONE}/read", mark_read, methods=["POST"]),
]
