"""The endpoint with which a squad's leader says what its turn came to (spec 02 §3.12, 06 §11.2).

An outcome of `no_action` ends the turn in silence: the task may not comment any more, and nothing
is posted for it when it completes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.dispatch import events
from server.dispatch.enqueue import SQL
from server.errors import Forbidden, Invalid
from server.rights import Thing
from server.store import work
from server.store.queries import Connection
from server.web import auth
from server.web.answers import answer
from server.web.issue_changes import existing
from server.web.unit import fields, write
from shared.times import stamp

OUTCOMES: Final = ("action", "no_action", "failed")


async def evaluate(request: Request) -> Response:
    """POST /api/issues/{id}/squad-evaluated."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    outcome = sent.one_of("outcome", OUTCOMES, "")
    reason = sent.text("reason")
    actor = caller.actor

    async def unit(conn: Connection) -> tuple[dict[str, Any], Sequence[Consequence]]:
        ref = request.path_params["id"]
        issue = existing(await work.hold_issue(conn, caller.workspace_id, ref))
        if issue.assignee_type != "squad":
            raise Invalid("issue is not assigned to a squad")
        leader = await conn.fetchval(SQL.leader_of, issue.assignee_id)
        if not caller.may("run.evaluate", Thing(agents=(leader,))):
            raise Forbidden("only the leader of the squad may evaluate")
        task_id = actor.task_id
        if task_id is None or await conn.fetchval(SQL.task_on, task_id, issue.id) is None:
            raise Invalid("the task is not on this issue")
        details = {
            "squad_id": issue.assignee_id,
            "task_id": task_id,
            "outcome": outcome,
            "reason": reason,
        }
        row = await conn.fetchrow(
            SQL.evaluate, caller.workspace_id, issue.id, actor.actor_id, details
        )
        assert row is not None
        made = {
            "id": row["id"],
            "action": row["action"],
            "created_at": stamp(row["created_at"]),
        }
        return made, [events.activity_created(row)]

    return answer(await write(request, unit), 201)


routes: list[BaseRoute] = [
    Route("/api/issues/{id}/squad-evaluated", evaluate, methods=["POST"]),
]
