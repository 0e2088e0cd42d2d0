"""Endpoints for attached files (spec 06 §9).

Files are served only to members, never sniffed, and shown inside a page only when they are of a kind
that cannot run anything there.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server import rights
from server.consequences import Consequence
from server.errors import Forbidden, Invalid, NotFound, TooLarge, Unsupported
from server.rights import Thing
from server.store import work
from server.store.adornments import show_file
from server.store.attachments import SQL
from server.store.queries import Connection, Record
from server.web import auth
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.context import services
from server.web.fields import id_of, text_of
from server.web.issue_changes import existing, work_thing
from server.web.unit import path_id, read, write, wrote

LARGEST: Final = 25 * 1024 * 1024
LARGEST_PREVIEW: Final = 2 * 1024 * 1024
LONGEST_NAME: Final = 255

_FRAMING: Final = 64 * 1024
"""What a multipart body may have round the file."""

_INLINE: Final = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp", "video/mp4", "audio/mpeg", "text/plain"}
)
_TEXTS: Final = frozenset({"application/json", "application/xml", "image/svg+xml"})


async def upload(request: Request) -> Response:
    """POST /api/upload-file: a file, for an issue, a comment, a chat, or for later."""
    caller = await auth.workspace(request)
    filename, data, place = await _form(request)
    content_type = mimetypes.guess_type(filename)[0] or "application/octet-stream"

    async def unit(conn: Connection) -> tuple[Record, Sequence[Consequence]]:
        await _check_place(conn, caller, place)
        row = await conn.fetchrow(
            SQL.add,
            caller.workspace_id,
            place["issue_id"],
            place["comment_id"],
            place["chat_session_id"],
            caller.actor.actor_type,
            caller.actor.actor_id,
            filename,
            content_type,
            data,
        )
        assert row is not None
        return row, ()

    return answer(_shown(request, await write(request, unit)))


async def get_attachment(request: Request) -> Response:
    """GET /api/attachments/{id}."""
    caller = await auth.workspace(request)
    return answer(_shown(request, await _found(request, caller.actor, caller.workspace_id)))


async def download(request: Request) -> Response:
    """GET /api/attachments/{id}/download: the file itself; the row says whose workspace it is."""
    actor = await auth.user(request)
    row = await _found(request, actor, actor.workspace_id)
    data = await read(request, lambda conn: conn.fetchval(SQL.content, row["id"]))
    kind = row["content_type"]
    disposition = "inline" if kind in _INLINE else "attachment"
    name = quote(row["filename"], safe="")
    headers = {
        "content-disposition": f"{disposition}; filename*=UTF-8''{name}",
        "cache-control": "no-store",
        "content-security-policy": "sandbox; default-src 'none'",
    }
    return Response(data or b"", headers=headers, media_type=kind)


async def preview(request: Request) -> Response:
    """GET /api/attachments/{id}/content: the text of a file that is text."""
    caller = await auth.workspace(request)
    row = await _found(request, caller.actor, caller.workspace_id)
    kind = row["content_type"]
    if not kind.startswith("text/") and kind not in _TEXTS:
        raise Unsupported("this file is not text")
    if row["size_bytes"] > LARGEST_PREVIEW:
        raise TooLarge("this file is too large to preview")
    data = await read(request, lambda conn: conn.fetchval(SQL.content, row["id"]))
    text = (data or b"").decode("utf-8", "replace")
    headers = {"X-Original-Content-Type": kind}
    return Response(text, headers=headers, media_type="text/plain; charset=utf-8")


async def delete_attachment(request: Request) -> Response:
    """DELETE /api/attachments/{id}: by who uploaded it, or an admin."""
    caller = await auth.workspace(request)
    row = await _found(request, caller.actor, caller.workspace_id)
    caller.check(wrote(row["uploader_type"], row["uploader_id"]))

    async def unit(conn: Connection) -> tuple[None, Sequence[Consequence]]:
        await conn.execute(SQL.remove, row["id"])
        return None, ()

    await write(request, unit)
    return nothing()


async def of_issue(request: Request) -> Response:
    """GET /api/issues/{id}/attachments: of the issue and its comments."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> list[Record]:
        ref = request.path_params["id"]
        issue = existing(await work.get_issue(conn, caller.workspace_id, ref))
        return await conn.fetch(SQL.of_issue, issue.id)

    return answer([_shown(request, row) for row in await read(request, unit)])


# --- rules ----------------------------------------------------------------------------------------


async def _form(request: Request) -> tuple[str, bytes, dict[str, str | None]]:
    """The file of a multipart body, and what it is for."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Invalid("the body must be multipart/form-data with a file")
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        raise Invalid("the length of an upload must be declared")
    if int(length) > LARGEST + _FRAMING:
        raise Invalid(f"file too large: at most {LARGEST // 1024 // 1024} MiB")
    async with request.form(max_files=1, max_fields=10) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Invalid("file is required")
        data = await file.read()
        place = {
            name: id_of(str(value), name) if (value := form.get(name)) else None
            for name in ("issue_id", "comment_id", "chat_session_id", "task_id")
        }
        named = text_of((file.filename or "").replace("\\", "/").rsplit("/", 1)[-1])
    if len(data) > LARGEST:
        raise Invalid(f"file too large: at most {LARGEST // 1024 // 1024} MiB")
    return named[-LONGEST_NAME:] or "file", data, place


async def _check_place(conn: Connection, caller: Membership, place: dict[str, str | None]) -> None:
    """What the file is for is in this workspace; a chat is the caller's own.

    A file for a task is its issue's or its chat's.
    """
    if place["task_id"]:
        task = await conn.fetchrow(SQL.place_of_task, caller.workspace_id, place["task_id"])
        if task is None:
            raise Forbidden("task not found in this workspace")
        if task["issue_id"] is not None:
            place["issue_id"] = place["issue_id"] or task["issue_id"]
        elif task["chat_session_id"] is None:
            raise Invalid("this task has no issue and no chat that a file could belong to")
        elif caller.actor.task_id == place["task_id"]:
            place["chat_session_id"] = task["chat_session_id"]
            return  # an agent's own chat
        else:
            place["chat_session_id"] = place["chat_session_id"] or task["chat_session_id"]
    if place["issue_id"]:
        found = await work.hold_issue(conn, caller.workspace_id, place["issue_id"])
        if found is None:
            raise Forbidden("issue not found in this workspace")
        caller.check(work_thing(caller, found))
    if place["comment_id"]:
        on = await conn.fetchval(SQL.comment_of, caller.workspace_id, place["comment_id"])
        if on is None:
            raise Forbidden("comment not found in this workspace")
        if caller.actor.agent_id is not None:
            issue = existing(await work.get_issue(conn, caller.workspace_id, on))
            caller.check(work_thing(caller, issue))
    if place["chat_session_id"]:
        owner = await conn.fetchval(SQL.chat_of, caller.workspace_id, place["chat_session_id"])
        if not caller.may("chat.write", Thing(people=(owner,))):
            raise Forbidden("chat session not found in this workspace")


async def _found(request: Request, actor: auth.Actor, workspace_id: str | None) -> Record:
    """The attachment of the path, for a member of its workspace; of a chat, for who chats."""
    attachment_id = path_id(request, "id", "attachment id")

    async def unit(conn: Connection) -> Record | None:
        row = await conn.fetchrow(SQL.see, attachment_id, actor.user_id)
        if row is not None and row["chat_session_id"]:
            owner = await conn.fetchval(SQL.chat_of, row["workspace_id"], row["chat_session_id"])
            # An agent may read what it was given: its own chat's files.
            mine = actor.chat_id == row["chat_session_id"]
            thing = Thing(kind="private", people=(owner,), mine=mine)
            # The row was found, so who asks is a member.
            rights.check(auth.caller_of(actor, "member"), "attachment.read", thing)
        return row

    row = await read(request, unit)
    if row is None or (workspace_id is not None and row["workspace_id"] != workspace_id):
        raise NotFound("attachment not found")
    return row


def _shown(request: Request, row: Record) -> dict[str, Any]:
    return show_file(row, services(request).config.public_url)


_ONE: Final = "/api/attachments/{id}"

routes: list[BaseRoute] = [
    Route("/api/upload-file", upload, methods=["POST"]),
    Route(_ONE, get_attachment, methods=["GET"]),
    Route(f"{_ONE}/download", download, methods=["GET"]),
    Route(f"{_ONE}/content", preview, methods=["GET"]),
    Route(_ONE, delete_attachment, methods=["DELETE"]),
    Route("/api/issues/{id}/attachments", of_issue, methods=["GET"]),
]
