"""An issue from one sentence: an agent writes it (spec 06 §6.4, 02 §3.8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence, TaskAvailable
from server.dispatch.quick_create import SQL
from server.errors import Forbidden, Invalid, NotFound, Unprocessable
from server.store import work
from server.store.queries import Connection, Record
from server.web import auth
from server.web.answers import answer
from server.web.projects_api import check_project
from server.web.unit import fields, write
from shared.version import QUICK_CREATE, supports

MOST_ATTACHMENTS: Final = 20
LONGEST_PROMPT: Final = 20_000


async def quick_create(request: Request) -> Response:
    """POST /api/issues/quick-create: queue the task; the agent makes the issue."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    prompt = sent.required_text("prompt", LONGEST_PROMPT)
    agent_id, squad_id = sent.id("agent_id"), sent.id("squad_id")
    if (agent_id is None) == (squad_id is None):
        raise Invalid("exactly one of agent_id and squad_id is required")
    project_id, parent_id = sent.id("project_id"), sent.id("parent_issue_id")
    attachment_ids = sent.ids("attachment_ids", most=MOST_ATTACHMENTS)
    context: dict[str, Any] = {
        "type": "quick_create",
        "prompt": prompt,
        "requester_id": caller.actor.user_id,
        "workspace_id": caller.workspace_id,
    }
    extra = {
        "project_id": project_id,
        "squad_id": squad_id,
        "parent_issue_id": parent_id,
        "attachment_ids": attachment_ids,
    }
    context |= {key: value for key, value in extra.items() if value}
    gate = caller.caller.gate

    async def unit(conn: Connection) -> tuple[str, Sequence[Consequence]]:
        who = _able(await conn.fetchrow(SQL.target, caller.workspace_id, agent_id, squad_id, gate))
        if project_id is not None:
            await check_project(conn, caller, project_id)
        if parent_id and await work.get_issue(conn, caller.workspace_id, parent_id) is None:
            raise Invalid("parent issue not found")
        task = await conn.fetchrow(
            SQL.add_task, caller.workspace_id, who["agent_id"], context, caller.actor.user_id
        )
        assert task is not None
        return task["id"], (TaskAvailable(task["runtime_id"], task["id"]),)

    return answer({"task_id": await write(request, unit)}, 202)


def _able(who: Record | None) -> Record:
    """The one who can do it now. Raises what keeps it from it."""
    if who is None:
        raise NotFound("agent or squad not found")
    if who["squad_archived"] or who["archived"]:
        raise Invalid("the agent or squad is archived")
    if not who["open"]:
        raise Forbidden("you do not have access to this agent")
    if not who["online"]:
        raise Unprocessable(
            "the agent cannot be reached now",
            code="agent_unavailable",
            reason="its runtime is offline",
        )
    if not supports(who["cli_version"], QUICK_CREATE):
        raise Unprocessable(
            "the machine's daemon is too old for this; update it",
            code="daemon_version_unsupported",
            current_version=who["cli_version"],
            min_version=".".join(map(str, QUICK_CREATE)),
            runtime_id=who["runtime_id"],
        )
    return who


routes: list[BaseRoute] = [Route("/api/issues/quick-create", quick_create, methods=["POST"])]
