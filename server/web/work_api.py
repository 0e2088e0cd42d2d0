"""Endpoints for issues: reading, searching, writing (spec 06 §5 and §6, 02 §3.3).

A write is one transaction: lock, check, change the columns that were sent, and queue or cancel
the runs that follow from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.dispatch import derived, enqueue, finish
from server.dispatch.autopilot_end import issues_deleted
from server.errors import Conflict, Forbidden, Invalid
from server.store import work
from server.store.adornments import adorn_issue
from server.store.attachments import bind_to_issue
from server.store.queries import Connection
from server.web import auth, comments_api, labels_api, metadata_api
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.context import services
from server.web.fields import Fields, Query
from server.web.issue_changes import (
    Patch,
    apply,
    apply_to_all,
    check_assignee,
    check_parent,
    existing,
    facts,
    read_patch,
)
from server.web.issue_changes import made as made_by
from server.web.projects_api import check_project
from server.web.unit import event, fields, query, read, write
from shared.wire.work import PRIORITIES, STATUSES, Issue

DATE_FIELDS: Final = ("created_at", "updated_at")
MOST_IDS: Final = 500
MOST_PARENTS: Final = 200
MOST_OPEN: Final = 2000
LONGEST_QUERY: Final = 500

_Told = Sequence[Consequence]


# --- reading --------------------------------------------------------------------------------------


async def list_issues(request: Request) -> Response:
    """GET /api/issues: one page and the full count, or with `open_only` everything open."""
    caller = await auth.workspace(request)
    asked = query(request)
    filters = _filters(asked)
    if filters.open_only:
        unit = partial(
            work.list_issues, workspace_id=caller.workspace_id, filters=filters, limit=MOST_OPEN
        )
        issues, _ = await read(request, unit)
        return answer({"issues": issues, "total": len(issues)})
    sort, descending = sorting(asked)
    limit, offset = asked.page(limit=100, most=100)
    unit = partial(
        work.list_issues,
        workspace_id=caller.workspace_id,
        filters=filters,
        sort=sort,
        descending=descending,
        limit=limit,
        offset=offset,
    )
    issues, total = await read(request, unit)
    return answer({"issues": issues, "total": total})


def _filters(asked: Query) -> work.Filters:
    assignees = asked.ids("assignee_ids", most=MOST_IDS)
    if (assignee := asked.id("assignee_id")) is not None:
        assignees = [assignee] if assignees is None or assignee in assignees else []
    date_field, start, end = date_window(asked)
    common: dict[str, Any] = {
        "priority": asked.text("priority"),
        "assignee_ids": assignees,
        "creator_id": asked.id("creator_id"),
        "project_id": asked.id("project_id"),
        "involves_user_id": asked.id("involves_user_id"),
        "metadata": metadata_of(asked),
        "scheduled": asked.flag("scheduled"),
    }
    if asked.flag("open_only"):
        return work.Filters(open_only=True, **common)
    return work.Filters(
        status=asked.text("status"),
        date_field=date_field,
        date_start=start,
        date_end=end,
        **common,
    )


def sorting(asked: Query) -> tuple[str, bool]:
    """What to sort by, and whether the other way round."""
    sort = asked.text("sort") or "position"
    direction = asked.text("direction") or "asc"
    if sort not in work.ORDERS:
        raise Invalid(f"invalid sort: must be one of {', '.join(work.ORDERS)}")
    if direction not in {"asc", "desc"}:
        raise Invalid("invalid direction: must be asc or desc")
    return sort, direction == "desc" and sort != "position"


def date_window(asked: Query) -> tuple[str | None, datetime | None, datetime | None]:
    """A date of issues, and from when until when; all or nothing."""
    date_field, start, end = (
        asked.text("date_field"),
        asked.moment("date_start"),
        asked.moment("date_end"),
    )
    if len({value is None for value in (date_field, start, end)}) > 1:
        raise Invalid("date_field, date_start and date_end must be given together")
    if date_field is not None and date_field not in DATE_FIELDS:
        raise Invalid(f"invalid date_field: must be one of {', '.join(DATE_FIELDS)}")
    return date_field, start, end


def metadata_of(asked: Query) -> dict[str, Any] | None:
    """What an issue's metadata must contain."""
    metadata = asked.object("metadata")
    if metadata is not None and any(isinstance(v, dict | list) for v in metadata.values()):
        raise Invalid("invalid metadata: values must be strings, numbers or booleans")
    return metadata


async def get_issue(request: Request) -> Response:
    """GET /api/issues/{id}, by id or identifier."""
    caller = await auth.workspace(request)
    base = services(request).config.public_url

    async def unit(conn: Connection) -> Issue:
        found = await work.get_issue(conn, caller.workspace_id, request.path_params["id"])
        issue = await adorn_issue(conn, existing(found), base)
        return attrs.evolve(issue, labels=await conn.fetchval(labels_api.SQL.labels_of, issue.id))

    return answer(await read(request, unit))


async def list_children(request: Request) -> Response:
    """GET /api/issues/{id}/children: by number."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> list[Issue]:
        ref = request.path_params["id"]
        parent = existing(await work.get_issue(conn, caller.workspace_id, ref))
        return await work.list_children(conn, caller.workspace_id, [parent.id])

    return answer({"issues": await read(request, unit)})


async def list_children_of(request: Request) -> Response:
    """GET /api/issues/children?parent_ids=: the children of several."""
    caller = await auth.workspace(request)
    parents = query(request).ids("parent_ids", most=MOST_PARENTS) or []
    unit = partial(work.list_children, workspace_id=caller.workspace_id, parent_ids=parents)
    return answer({"issues": await read(request, unit)})


async def child_progress(request: Request) -> Response:
    """GET /api/issues/child-progress: how far each parent's children are."""
    caller = await auth.workspace(request)
    unit = partial(work.child_progress, workspace_id=caller.workspace_id)
    return answer({"progress": await read(request, unit)})


async def search_issues(request: Request) -> Response:
    """GET /api/issues/search: best matches first; the count is a header too."""
    caller = await auth.workspace(request)
    asked = query(request)
    phrase = (asked.text("q") or "").strip()
    if not phrase:
        raise Invalid("q is required")
    if len(phrase) > LONGEST_QUERY:
        raise Invalid(f"q must be at most {LONGEST_QUERY} characters")
    limit, offset = asked.page(limit=20, most=50)
    unit = partial(
        work.search_issues,
        workspace_id=caller.workspace_id,
        phrase=phrase,
        include_closed=asked.flag("include_closed"),
        limit=limit,
        offset=offset,
    )
    found, total = await read(request, unit)
    return answer({"issues": found, "total": total}, headers={"X-Total-Count": str(total)})


async def list_pull_requests(request: Request) -> Response:
    """GET /api/issues/{id}/pull-requests: none without a code host connected."""
    caller = await auth.workspace(request)
    unit = partial(work.get_issue, workspace_id=caller.workspace_id, ref=request.path_params["id"])
    existing(await read(request, unit))
    return answer({"pull_requests": []})


# --- writing --------------------------------------------------------------------------------------


async def create_issue(request: Request) -> Response:
    """POST /api/issues: a new one at the top of its column; starts its agent if it has one."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    values = _new(sent, caller)
    allow_duplicate = sent.flag("allow_duplicate")
    base = services(request).config.public_url
    attachment_ids = sent.ids("attachment_ids", most=MOST_IDS)

    async def unit(conn: Connection) -> tuple[Issue, _Told]:
        await check_assignee(conn, caller, values["assignee_type"], values["assignee_id"])
        written = dict(values)
        if (parent_id := values["parent_issue_id"]) is not None:
            parent = await check_parent(conn, caller, parent_id)
            written["project_id"] = values["project_id"] or parent.project_id
        if values["project_id"] is not None:
            await check_project(conn, caller, values["project_id"])
        if not allow_duplicate:
            await _refuse_duplicate(conn, caller, written)
        made = await work.create_issue(conn, caller.workspace_id, written)
        if attachment_ids:
            await bind_to_issue(conn, made, attachment_ids)
            made = await adorn_issue(conn, made, base)
        told = await derived.issue_made(conn, made, caller.actor)
        told += await enqueue.issue_created(conn, facts(made), caller.actor)
        return made, (event(caller, "issue:created", issue=made), *told)

    return answer(await write(request, unit), 201)


def _new(sent: Fields, caller: Membership) -> dict[str, Any]:
    assignee_id, assignee_type = sent.id("assignee_id"), sent.text("assignee_type") or None
    origin_type, origin_id = sent.text("origin_type") or None, sent.id("origin_id")
    if origin_type not in {None, "quick_create"} or (origin_type is None) != (origin_id is None):
        raise Invalid("invalid origin")
    if origin_id is not None and origin_id != caller.actor.task_id:
        raise Forbidden("an issue's origin is the task that makes it")
    return {
        "title": sent.required_text("title"),
        "description": sent.optional_text("description"),
        "status": sent.one_of("status", STATUSES, "todo"),
        "priority": sent.one_of("priority", PRIORITIES, "none"),
        "assignee_type": assignee_type,
        "assignee_id": assignee_id,
        "creator_type": caller.actor.actor_type,
        "creator_id": caller.actor.actor_id,
        "parent_issue_id": sent.id("parent_issue_id"),
        "project_id": sent.id("project_id"),
        "stage": sent.whole("stage", low=1),
        "start_date": sent.day("start_date"),
        "due_date": sent.day("due_date"),
        "origin_type": origin_type,
        "origin_id": origin_id,
    }


async def _refuse_duplicate(conn: Connection, caller: Membership, values: dict[str, Any]) -> None:
    found = await work.find_duplicate(
        conn,
        caller.workspace_id,
        project_id=values["project_id"],
        parent_id=values["parent_issue_id"],
        title=values["title"],
    )
    if found is not None:
        raise Conflict(
            f'an open issue with this title exists: {found.identifier} "{found.title}" '
            f"({found.status}); use --allow-duplicate to create another one",
            code="active_duplicate_issue",
            issue=found,
        )


async def update_issue(request: Request) -> Response:
    """PUT /api/issues/{id}: what was sent, and no other column."""
    caller = await auth.workspace(request)
    patch = read_patch(await fields(request))

    async def unit(conn: Connection) -> tuple[Issue, _Told]:
        ref = request.path_params["id"]
        found = await work.lock_issue(
            conn, caller.workspace_id, ref, parent="status" in patch.changes
        )
        before = existing(found)
        return await apply(conn, caller, before, patch)

    return answer(await write(request, unit))


async def delete_issue(request: Request) -> Response:
    """DELETE /api/issues/{id}: with its comments and runs; runs under way are cancelled."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> tuple[None, _Told]:
        ref = request.path_params["id"]
        issue = existing(await work.get_issue(conn, caller.workspace_id, ref))
        doomed = await work.lock_doomed(conn, caller.workspace_id, [issue.id])
        return None, await _delete(conn, caller, doomed)

    await write(request, unit)
    return nothing()


async def update_issues(request: Request) -> Response:
    """POST /api/issues/batch-update: the same change to many; what does not fit is skipped."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    issue_ids = sent.ids("issue_ids", most=MOST_IDS)
    patch = read_patch(Fields(sent.object("updates")))

    async def unit(conn: Connection) -> tuple[int, _Told]:
        issues = await work.lock_issues(
            conn, caller.workspace_id, issue_ids, parents="status" in patch.changes
        )
        if not issues:
            return 0, ()
        done = await apply_to_all(conn, caller, issues, patch)
        return len(done.changed), done.told

    updated = await write(request, unit) if patch != Patch() else 0
    return answer({"updated": updated})


async def delete_issues(request: Request) -> Response:
    """POST /api/issues/batch-delete."""
    caller = await auth.workspace(request)
    issue_ids = (await fields(request)).ids("issue_ids", most=MOST_IDS)

    async def unit(conn: Connection) -> tuple[int, _Told]:
        issues = await work.lock_doomed(conn, caller.workspace_id, issue_ids)
        return len(issues), await _delete(conn, caller, issues)

    return answer({"deleted": await write(request, unit)})


async def _delete(
    conn: Connection, caller: Membership, issues: Sequence[Issue]
) -> list[Consequence]:
    ids = [issue.id for issue in issues]
    for issue in issues:
        caller.check(made_by(caller, issue))
    if caller.actor.agent_id is not None and await work.others_wrote(
        conn, caller.actor.agent_id, issue_ids=ids
    ):
        raise Forbidden("an agent does not delete what others wrote: there are comments of others")
    told = await finish.cancel_issues(conn, ids)
    told += await issues_deleted(conn, ids)
    told += [event(caller, "issue:deleted", issue_id=issue.id) for issue in issues]
    await work.delete_issues(conn, ids)
    return told


routes: list[BaseRoute] = [
    Route("/api/issues", list_issues, methods=["GET"]),
    Route("/api/issues", create_issue, methods=["POST"]),
    Route("/api/issues/search", search_issues, methods=["GET"]),
    Route("/api/issues/children", list_children_of, methods=["GET"]),
    Route("/api/issues/child-progress", child_progress, methods=["GET"]),
    Route("/api/issues/batch-update", update_issues, methods=["POST"]),
    Route("/api/issues/batch-delete", delete_issues, methods=["POST"]),
    Route("/api/issues/{id}", get_issue, methods=["GET"]),
    Route("/api/issues/{id}", update_issue, methods=["PUT"]),
    Route("/api/issues/{id}", delete_issue, methods=["DELETE"]),
    Route("/api/issues/{id}/children", list_children, methods=["GET"]),
    Route("/api/issues/{id}/pull-requests", list_pull_requests, methods=["GET"]),
    *metadata_api.routes,
    *comments_api.routes,
]
