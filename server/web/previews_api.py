"""Endpoints that say what a change would start, before it is made (spec 02 §3.3 and §3.4)."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.dispatch import enqueue, previews
from server.dispatch.rules import Choice, Target
from server.errors import Invalid
from server.store import comments, work
from server.store.queries import Connection
from server.web import auth
from server.web.answers import answer
from server.web.issue_changes import existing, facts
from server.web.unit import fields, read
from shared.version import HANDOFF_NOTES, supports
from shared.wire.work import STATUSES

MOST_ISSUES: Final = 500
MOST_SUPPRESSED: Final = 500


async def preview_issues(request: Request) -> Response:
    """POST /api/issues/preview-trigger: the runs that an assignment or a status would start."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    issue_ids = sent.ids("issue_ids", most=MOST_ISSUES)
    kind, who = sent.text("assignee_type"), sent.id("assignee_id")
    assignee = Target(kind, who) if who is not None and kind else None
    status = sent.one_of("status", STATUSES, "") if sent.text("status") else None
    creating = sent.flag("is_create")

    async def unit(conn: Connection) -> list[tuple[str, Choice]]:
        if not creating:
            return await previews.preview_issues(
                conn,
                caller.workspace_id,
                issue_ids,
                caller.actor,
                assignee=assignee,
                status=status,
            )
        if assignee is None:
            return []
        choice = await previews.preview_new_issue(
            conn, caller.workspace_id, caller.actor, assignee=assignee, status=status or "todo"
        )
        return [] if choice is None else [("", choice)]

    triggers = [_trigger(issue_id, choice) for issue_id, choice in await read(request, unit)]
    return answer({"triggers": triggers, "total_count": len(triggers)})


async def preview_comment(request: Request) -> Response:
    """POST /api/issues/{id}/comments/trigger-preview: the agents that a comment would start."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    content = sent.text("content")
    parent_id, editing_id = sent.id("parent_id"), sent.id("editing_comment_id")
    suppressed = sent.ids("suppress_agent_ids", most=MOST_SUPPRESSED)

    async def unit(conn: Connection) -> list[Choice]:
        ref = request.path_params["id"]
        issue = existing(await work.get_issue(conn, caller.workspace_id, ref))
        if parent_id is not None and not await comments.is_on(conn, parent_id, issue.id):
            raise Invalid("parent comment not found on this issue")
        return await enqueue.preview_comment(
            conn,
            facts(issue),
            content=content,
            parent_id=parent_id,
            actor=caller.actor,
            suppress_agent_ids=suppressed,
            editing_comment_id=editing_id,
        )

    return answer({"agents": [_agent(choice) for choice in await read(request, unit)]})


def _trigger(issue_id: str, choice: Choice) -> dict[str, Any]:
    return {
        "issue_id": issue_id,
        "agent_id": choice.agent_id,
        "source": choice.source,
        "handoff_supported": supports(choice.cli_version, HANDOFF_NOTES),
    }


def _agent(choice: Choice) -> dict[str, Any]:
    shown = {"id": choice.agent_id, "name": choice.name}
    if choice.avatar_url:
        shown["avatar_url"] = choice.avatar_url
    return shown | {"source": choice.source, "reason": choice.reason}


routes: list[BaseRoute] = [
    Route("/api/issues/preview-trigger", preview_issues, methods=["POST"]),
    Route("/api/issues/{id}/comments/trigger-preview", preview_comment, methods=["POST"]),
]
