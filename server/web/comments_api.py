"""Endpoints for comments: the reading modes, writing, resolving (spec 06 §7, 02 §3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.dispatch import derived, enqueue, finish
from server.errors import Conflict, Forbidden, Invalid, NotFound
from server.store import comments, work
from server.store.adornments import adorn_comment, adorn_comments
from server.store.attachments import bind_to_comment, release_from_comment
from server.store.comments import Cursor, Page, Reading
from server.store.queries import Connection
from server.web import auth
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.context import services
from server.web.fields import Fields, Query
from server.web.issue_changes import existing, facts, work_thing
from server.web.unit import event, fields, path_id, query, read, write, wrote
from shared.times import fine_stamp
from shared.wire.work import Comment, Issue

KINDS: Final = ("comment", "status_change", "progress_update")
"""What a caller may post; `system` is the server's own."""

MOST_SUPPRESSED: Final = 500

_Told = tuple[Comment, Sequence[Consequence]]


# --- reading --------------------------------------------------------------------------------------


async def list_comments(request: Request) -> Response:
    """GET /api/issues/{id}/comments: all, one thread, recent threads, or roots only."""
    caller = await auth.workspace(request)
    how = _reading(query(request))
    base = _base(request)

    async def unit(conn: Connection) -> Page:
        issue = await _issue(conn, caller, request)
        page = await comments.read_comments(conn, issue.id, how)
        if page is None:
            raise NotFound("comment not found")
        shown = await adorn_comments(conn, page.comments, base)
        return attrs.evolve(page, comments=shown)

    page = await read(request, unit)
    headers = {}
    if page.older is not None and (how.since is None or page.older.at > how.since):
        headers = {
            "X-Multica-Next-Before": fine_stamp(page.older.at),
            "X-Multica-Next-Before-Id": page.older.id,
        }
    return answer(page.comments, headers=headers)


def _reading(asked: Query) -> Reading:
    at, before_id = asked.moment("before"), asked.id("before_id", "before-id")
    if (at is None) != (before_id is None):
        raise Invalid("before and before_id must be given together")
    how = Reading(
        since=asked.moment("since"),
        thread=asked.id("thread"),
        tail=asked.whole("tail", low=0),
        recent=asked.whole("recent", low=1),
        before=None if at is None or before_id is None else Cursor(at=at, id=before_id),
        roots_only=asked.strict_flag("roots_only", "roots-only"),
        summary=asked.strict_flag("summary"),
        fold=asked.strict_flag("fold"),
    )
    problem = _contradiction(how)
    if problem:
        raise Invalid(problem)
    return how


def _contradiction(how: Reading) -> str:
    """Say which parameters exclude each other; "" when none do (06 §7.1)."""
    if how.thread is not None and how.recent is not None:
        return "thread cannot be combined with recent"
    if how.tail is not None and how.thread is None:
        return "tail needs thread"
    if how.before is not None and how.recent is None and how.tail is None:
        return "before needs recent, or thread with tail"
    one_thread = how.thread is not None or how.tail is not None
    if how.roots_only and (one_thread or how.recent is not None or how.before is not None):
        return "roots_only cannot be combined with thread, tail, recent or before"
    if how.fold and (how.since is not None or how.tail is not None or how.roots_only):
        return "fold cannot be combined with since, tail or roots_only"
    return ""


# --- writing --------------------------------------------------------------------------------------


async def create_comment(request: Request) -> Response:
    """POST /api/issues/{id}/comments: tells its readers, and starts whom it addresses."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    content = _content(sent)
    kind = sent.one_of("type", KINDS, "comment")
    parent_id = sent.id("parent_id")
    suppressed = _suppressed(sent)
    attachment_ids = sent.ids("attachment_ids", most=MOST_SUPPRESSED)
    base = _base(request)

    async def unit(conn: Connection) -> _Told:
        ref = request.path_params["id"]
        issue = existing(await work.lock_issue(conn, caller.workspace_id, ref))
        caller.check(work_thing(caller, issue))
        await _check_place(conn, caller, issue, parent_id)
        reopened: list[Consequence] = []
        if parent_id is not None:
            reopened = await _reopen(conn, caller, issue, parent_id)
        made = await comments.create_comment(
            conn,
            issue_id=issue.id,
            workspace_id=issue.workspace_id,
            author_type=caller.actor.actor_type,
            author_id=caller.actor.actor_id,
            content=content,
            kind=kind,
            parent_id=parent_id,
        )
        if attachment_ids:
            await bind_to_comment(conn, issue, made.id, attachment_ids)
            made = await adorn_comment(conn, made, base)
        heard = await derived.commented(conn, issue, made.id, content, caller.actor)
        started = await _start(conn, caller, issue, made, suppressed)
        created = event(
            caller,
            "comment:created",
            comment=made,
            issue_title=issue.title,
            issue_assignee_type=issue.assignee_type,
            issue_assignee_id=issue.assignee_id,
            issue_status=issue.status,
        )
        return made, (created, *reopened, *heard, *started)

    return answer(await write(request, unit), 201)


async def _check_place(
    conn: Connection, caller: Membership, issue: Issue, parent_id: str | None
) -> None:
    """An agent at work on the issue answers the comment that started it, nowhere else."""
    actor = caller.actor
    if actor.actor_type != "agent" or actor.task_id is None:
        return
    trigger = await comments.trigger_of(conn, actor.task_id, issue.id)
    if trigger is not None and parent_id != trigger:
        raise Conflict(f"this task answers comment {trigger}; reply to it with parent_id")
    if await comments.kept_silence(conn, actor.task_id, issue.id):
        raise Conflict("this task was evaluated as no_action; it ends without a comment")


async def _reopen(
    conn: Connection, caller: Membership, issue: Issue, parent_id: str
) -> list[Consequence]:
    """A reply brings a resolved thread back."""
    found = await comments.lock_thread(conn, caller.workspace_id, parent_id)
    if found is None or found[1].issue_id != issue.id:
        raise Invalid("parent comment not found on this issue")
    root = await comments.unresolve_comment(conn, found[0])
    return [] if root is None else [event(caller, "comment:unresolved", comment=root)]


async def update_comment(request: Request) -> Response:
    """PUT /api/comments/{id}: a new text; runs the old one started are cancelled."""
    caller = await auth.workspace(request)
    comment_id = path_id(request, "id", "comment id")
    sent = await fields(request)
    content = _content(sent)
    suppressed = _suppressed(sent)
    attachment_ids = sent.ids("attachment_ids", most=MOST_SUPPRESSED)
    base = _base(request)

    async def unit(conn: Connection) -> _Told:
        before = await _own(conn, caller, comment_id)
        after, told = before, list[Consequence]()
        if before.content != content or sent.given("attachment_ids"):
            issue = existing(await work.hold_issue(conn, caller.workspace_id, before.issue_id))
        if before.content != content:
            by = (caller.actor.actor_type, caller.actor.actor_id)
            after = await comments.update_comment(conn, comment_id, content, by)
            told += await finish.cancel_trigger(conn, comment_id)
            told += await _start(conn, caller, issue, after, suppressed)
        if sent.given("attachment_ids"):
            await release_from_comment(conn, issue, comment_id, attachment_ids)
            await bind_to_comment(conn, issue, comment_id, attachment_ids)
        after = await adorn_comment(conn, after, base)
        if before.content != content or sent.given("attachment_ids"):
            told.insert(0, event(caller, "comment:updated", comment=after))
        return after, told

    return answer(await write(request, unit))


async def delete_comment(request: Request) -> Response:
    """DELETE /api/comments/{id}: with the replies below it; runs it started are cancelled."""
    caller = await auth.workspace(request)
    comment_id = path_id(request, "id", "comment id")

    async def unit(conn: Connection) -> tuple[None, Sequence[Consequence]]:
        comment = await _own(conn, caller, comment_id)
        agent_id = caller.actor.agent_id
        if agent_id and await work.others_wrote(conn, agent_id, below=comment_id):
            raise Forbidden(
                "an agent does not delete what others wrote: there are replies of others"
            )
        stopped = await finish.cancel_trigger(conn, comment_id, replies=True)
        await comments.delete_comment(conn, comment_id)
        told = event(caller, "comment:deleted", comment_id=comment_id, issue_id=comment.issue_id)
        return None, (told, *stopped)

    await write(request, unit)
    return nothing()


async def resolve_comment(request: Request) -> Response:
    """POST /api/comments/{id}/resolve: at most one of a thread; the first resolver stays."""
    caller = await auth.workspace(request)
    comment_id = path_id(request, "id", "comment id")
    actor, base = caller.actor, _base(request)

    async def unit(conn: Connection) -> _Told:
        root_id, comment = await _settled(conn, caller, comment_id)
        resolved, cleared = await comments.resolve_comment(
            conn, comment, root_id, actor.actor_type, actor.actor_id
        )
        resolved = await adorn_comment(conn, resolved, base)
        told = [event(caller, "comment:unresolved", comment=other) for other in cleared]
        return resolved, (*told, event(caller, "comment:resolved", comment=resolved))

    return answer(await write(request, unit))


async def unresolve_comment(request: Request) -> Response:
    """DELETE /api/comments/{id}/resolve: answers with the comment, resolved before or not."""
    caller = await auth.workspace(request)
    comment_id = path_id(request, "id", "comment id")
    base = _base(request)

    async def unit(conn: Connection) -> _Told:
        _, comment = await _settled(conn, caller, comment_id)
        changed = await comments.unresolve_comment(conn, comment_id)
        if changed is None:
            return await adorn_comment(conn, comment, base), ()
        changed = await adorn_comment(conn, changed, base)
        return changed, (event(caller, "comment:unresolved", comment=changed),)

    return answer(await write(request, unit))


# --- shared ---------------------------------------------------------------------------------------


def _base(request: Request) -> str:
    return services(request).config.public_url


async def _issue(conn: Connection, caller: Membership, request: Request) -> Issue:
    return existing(await work.get_issue(conn, caller.workspace_id, request.path_params["id"]))


async def _locked(conn: Connection, caller: Membership, comment_id: str) -> tuple[str, Comment]:
    found = await comments.lock_thread(conn, caller.workspace_id, comment_id)
    if found is None:
        raise NotFound("comment not found")
    return found


async def _settled(conn: Connection, caller: Membership, comment_id: str) -> tuple[str, Comment]:
    """Return a locked comment and its thread, which the caller may resolve: an agent on its issue."""
    found = await _locked(conn, caller, comment_id)
    if caller.actor.agent_id is not None:
        issue = await work.get_issue(conn, caller.workspace_id, found[1].issue_id)
        caller.check(work_thing(caller, existing(issue)))
    return found


async def _own(conn: Connection, caller: Membership, comment_id: str) -> Comment:
    """Return a locked comment that the caller wrote or may change as an administrator."""
    _, comment = await _locked(conn, caller, comment_id)
    caller.check(wrote(comment.author_type, comment.author_id))
    return comment


async def _start(
    conn: Connection,
    caller: Membership,
    issue: Issue,
    comment: Comment,
    suppressed: Sequence[str],
) -> list[Consequence]:
    return await enqueue.comment_created(
        conn,
        facts(issue),
        comment_id=comment.id,
        content=comment.content,
        parent_id=comment.parent_id,
        actor=caller.actor,
        suppress_agent_ids=suppressed,
    )


def _content(sent: Fields) -> str:
    content = sent.text("content")
    if not content.strip():
        raise Invalid("content is required")
    return content


def _suppressed(sent: Fields) -> list[str]:
    return sent.ids("suppress_agent_ids", most=MOST_SUPPRESSED)


routes: list[BaseRoute] = [
    Route("/api/issues/{id}/comments", list_comments, methods=["GET"]),
    Route("/api/issues/{id}/comments", create_comment, methods=["POST"]),
    Route("/api/comments/{id}", update_comment, methods=["PUT"]),
    Route("/api/comments/{id}", delete_comment, methods=["DELETE"]),
    Route("/api/comments/{id}/resolve", resolve_comment, methods=["POST"]),
    Route("/api/comments/{id}/resolve", unresolve_comment, methods=["DELETE"]),
]
