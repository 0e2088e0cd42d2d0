"""Endpoints for who follows an issue, how people react, and what happened (06 §6.2, §7.3-§7.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.errors import Forbidden, Invalid, NotFound
from server.store import work
from server.store.adornments import Shown, on_comments, show_reaction
from server.store.queries import Connection, Record
from server.web import auth
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.context import services
from server.web.inbox_api import SQL
from server.web.issue_changes import existing, work_thing
from server.web.unit import event, fields, optional_fields, path_id, read, write
from shared.times import stamp, try_stamp

LONGEST_EMOJI: Final = 64

_ENTRY: Final = {
    "comment": (
        *("content", "parent_id", "comment_type", "resolved_by_type", "resolved_by_id"),
        "source_task_id",
    ),
    "activity": ("action", "details"),
}

_Told = Sequence[Consequence]


# --- subscribers ----------------------------------------------------------------------------------


async def list_subscribers(request: Request) -> Response:
    """GET /api/issues/{id}/subscribers."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> list[Record]:
        issue_id = await _issue(conn, caller, request)
        return await conn.fetch(SQL.list_subscribers, issue_id)

    rows = await read(request, unit)
    return answer([dict(row) | {"created_at": stamp(row["created_at"])} for row in rows])


async def subscribe(request: Request) -> Response:
    """POST /api/issues/{id}/subscribe: the caller, or whom the body names."""
    return await _follow(request, wanted=True)


async def unsubscribe(request: Request) -> Response:
    """POST /api/issues/{id}/unsubscribe."""
    return await _follow(request, wanted=False)


async def _follow(request: Request, *, wanted: bool) -> Response:
    caller = await auth.workspace(request)
    sent = await optional_fields(request)
    kind = sent.one_of("user_type", ("member", "agent"), caller.actor.actor_type)
    user_id = sent.id("user_id") or caller.actor.actor_id

    async def unit(conn: Connection) -> tuple[None, _Told]:
        issue_id = await _issue(conn, caller, request, hold=True)
        if not await conn.fetchval(SQL.can_follow, caller.workspace_id, kind, user_id):
            raise Forbidden("only members and agents of the workspace can follow an issue")
        if wanted:
            changed = await conn.fetchval(SQL.subscribe, issue_id, kind, user_id, "manual")
        else:
            changed = await conn.fetchval(SQL.unsubscribe, issue_id, kind, user_id)
        if changed is None:
            return None, ()
        about = {"issue_id": issue_id, "user_type": kind, "user_id": user_id}
        if wanted:
            return None, (event(caller, "subscriber:added", **about, reason="manual"),)
        return None, (event(caller, "subscriber:removed", **about),)

    await write(request, unit)
    return answer({"subscribed": wanted})


# --- the timeline ---------------------------------------------------------------------------------


async def timeline(request: Request) -> Response:
    """GET /api/issues/{id}/timeline: ascending; with paging words, the older wrapper, descending."""
    caller = await auth.workspace(request)

    base = services(request).config.public_url

    async def unit(conn: Connection) -> list[dict[str, Any]]:
        rows = await conn.fetch(SQL.timeline, await _issue(conn, caller, request))
        said = [row["id"] for row in rows if row["type"] == "comment"]
        reactions, files = await on_comments(conn, said, base)
        return [_entry(row, reactions.get(row["id"]), files.get(row["id"])) for row in rows]

    entries = await read(request, unit)
    if {"limit", "before", "after", "around"} & set(request.query_params):
        return answer(
            {
                "entries": entries,
                "next_cursor": None,
                "prev_cursor": None,
                "has_more_before": False,
                "has_more_after": False,
            }
        )
    return answer(list(reversed(entries)))


def _entry(row: Record, reactions: Shown | None, files: Shown | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "type": row["type"],
        "id": row["id"],
        "actor_type": row["actor_type"],
        "actor_id": row["actor_id"],
        "created_at": stamp(row["created_at"]),
    }
    if row["type"] == "comment":
        shown["updated_at"] = stamp(row["updated_at"])
        if resolved := try_stamp(row["resolved_at"]):
            shown["resolved_at"] = resolved
        if reactions:
            shown["reactions"] = reactions
        if files:
            shown["attachments"] = files
    return shown | {key: row[key] for key in _ENTRY[row["type"]] if row[key] is not None}


# --- reactions ------------------------------------------------------------------------------------


async def react_to_issue(request: Request) -> Response:
    """POST /api/issues/{id}/reactions: once per actor and emoji."""
    caller = await auth.workspace(request)
    emoji = await _emoji(request)

    async def unit(conn: Connection) -> tuple[dict[str, Any], _Told]:
        issue_id = await _issue(conn, caller, request, hold=True)
        row = await conn.fetchrow(SQL.react_issue, issue_id, *_by(caller), emoji)
        return _reacted(caller, "issue_reaction", "issue_id", row)

    return answer(await write(request, unit), 201)


async def unreact_to_issue(request: Request) -> Response:
    """DELETE /api/issues/{id}/reactions."""
    caller = await auth.workspace(request)
    emoji = await _emoji(request)

    async def unit(conn: Connection) -> tuple[None, _Told]:
        issue_id = await _issue(conn, caller, request)
        row = await conn.fetchrow(SQL.unreact_issue, issue_id, *_by(caller)[1:], emoji)
        return None, _unreacted(caller, "issue_reaction", "issue_id", row)

    await write(request, unit)
    return nothing()


async def react_to_comment(request: Request) -> Response:
    """POST /api/comments/{id}/reactions."""
    caller = await auth.workspace(request)
    comment_id = path_id(request, "id", "comment id")
    emoji = await _emoji(request)

    async def unit(conn: Connection) -> tuple[dict[str, Any], _Told]:
        await _comment(conn, caller, comment_id)
        row = await conn.fetchrow(SQL.react_comment, comment_id, *_by(caller), emoji)
        return _reacted(caller, "reaction", "comment_id", row)

    return answer(await write(request, unit), 201)


async def unreact_to_comment(request: Request) -> Response:
    """DELETE /api/comments/{id}/reactions."""
    caller = await auth.workspace(request)
    comment_id = path_id(request, "id", "comment id")
    emoji = await _emoji(request)

    async def unit(conn: Connection) -> tuple[None, _Told]:
        await _comment(conn, caller, comment_id)
        row = await conn.fetchrow(SQL.unreact_comment, comment_id, *_by(caller)[1:], emoji)
        return None, _unreacted(caller, "reaction", "comment_id", row)

    await write(request, unit)
    return nothing()


def _by(caller: Membership) -> tuple[str, str, str]:
    return caller.workspace_id, caller.actor.actor_type, caller.actor.actor_id


def _reacted(
    caller: Membership, kind: str, target: str, row: Record | None
) -> tuple[dict[str, Any], _Told]:
    assert row is not None
    shown = show_reaction(target, row)
    return shown, (event(caller, f"{kind}:added", reaction=shown),) if row["is_new"] else ()


def _unreacted(caller: Membership, kind: str, target: str, row: Record | None) -> _Told:
    if row is None:
        return ()
    return (
        event(
            caller,
            f"{kind}:removed",
            **{target: row[target]},
            emoji=row["emoji"],
            actor_type=row["actor_type"],
            actor_id=row["actor_id"],
        ),
    )


async def _emoji(request: Request) -> str:
    emoji = (await fields(request)).required_text("emoji")
    if len(emoji) > LONGEST_EMOJI:
        raise Invalid("emoji is too long")
    return emoji


async def _issue(
    conn: Connection, caller: Membership, request: Request, *, hold: bool = False
) -> str:
    look_up = work.hold_issue if hold else work.get_issue
    issue = existing(await look_up(conn, caller.workspace_id, request.path_params["id"]))
    if hold:
        caller.check(work_thing(caller, issue))
    return issue.id


async def _comment(conn: Connection, caller: Membership, comment_id: str) -> None:
    if await conn.fetchval(SQL.hold_comment, caller.workspace_id, comment_id) is None:
        raise NotFound("comment not found")


routes: list[BaseRoute] = [
    Route("/api/issues/{id}/subscribers", list_subscribers, methods=["GET"]),
    Route("/api/issues/{id}/subscribe", subscribe, methods=["POST"]),
    Route("/api/issues/{id}/unsubscribe", unsubscribe, methods=["POST"]),
    Route("/api/issues/{id}/timeline", timeline, methods=["GET"]),
    Route("/api/issues/{id}/reactions", react_to_issue, methods=["POST"]),
    Route("/api/issues/{id}/reactions", unreact_to_issue, methods=["DELETE"]),
    Route("/api/comments/{id}/reactions", react_to_comment, methods=["POST"]),
    Route("/api/comments/{id}/reactions", unreact_to_comment, methods=["DELETE"]),
]
