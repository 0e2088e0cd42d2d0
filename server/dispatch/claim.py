"""Claiming: a daemon asks for work of a runtime and gets a task with all an agent run needs.

Woken by the claim endpoint, in its transaction. Delivery is at least once: a claim whose answer
was lost is delivered again after 90 s. Two statements: the first locks the agents, so that the
second sees every run that counts against their capacity (spec 02 §4; its races are closed here).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from server.consequences import Consequence
from server.dispatch import events
from server.dispatch.lifecycle import LEASE, REDELIVER_AFTER, TOKEN_LIFE
from server.store.queries import Connection, Record
from server.store.tasks import SQL, Caller, base_fields, caller_args, seen
from shared.failure import RESUME_UNSAFE
from shared.ids import TASK_TOKEN, hash_token, mint_token
from shared.times import stamp
from shared.wire.task import ClaimedTask, Repo, TaskAgent

_LEASE: Final = timedelta(seconds=LEASE)
_REDELIVER_AFTER: Final = timedelta(seconds=REDELIVER_AFTER)
_TOKEN_LIFE: Final = timedelta(seconds=TOKEN_LIFE)


class OwnerMissing(Exception):
    """The runtime belongs to nobody, so there is nobody for the task's token to act for.

    Nothing was claimed: the next person who registers the runtime owns it.
    """


async def claim(
    conn: Connection, runtime_id: str, *, caller: Caller | None = None
) -> tuple[ClaimedTask | None, list[Consequence]]:
    """Claim the next task of a runtime; None when there is nothing to do.

    Raises NotFound("runtime not found"), Foreign, OwnerMissing.
    """
    found = await conn.fetchrow(
        SQL.lock_claimable, [runtime_id], *caller_args(caller), _REDELIVER_AFTER
    )
    runtime = seen(found, "runtime not found")
    if not runtime["agents"] and not runtime["lost"]:
        return None, []
    if runtime["owner_id"] is None:
        raise OwnerMissing
    token = mint_token(TASK_TOKEN)
    row = await conn.fetchrow(
        SQL.claim,
        [runtime_id],
        [hash_token(token)],
        runtime["agents"],
        _REDELIVER_AFTER,
        _LEASE,
        _TOKEN_LIFE,
        sorted(RESUME_UNSAFE),
    )
    if row is None:
        return None, []
    consequences: list[Consequence] = [] if row["again"] else [events.dispatched(row)]
    if row["became_busy"]:
        consequences.append(events.agent_status(row["agent"]))
    return assemble(row, token), consequences


def assemble(row: Record, token: str) -> ClaimedTask:
    """Build the payload of a claim (spec 01 §3.5) from the claim statement's row. Pure."""
    parts: dict[str, Any] = base_fields(row)
    parts |= {
        "auth_token": token,
        "agent": _agent(row["agent"]),
        "workspace_context": row["workspace_context"] or "",
        "repos": _repos(row["workspace_repos"]),
        "thread_name": row["issue_title"] or "",
        "requesting_user_name": row["owner_name"],
        "requesting_user_profile_description": row["owner_profile"],
        "initiator_type": row["started_by_type"] or "",
        "initiator_id": row["started_by_id"] or "",
        "initiator_name": row["started_by_name"] or "",
        "initiator_email": row["started_by_email"] or "",
        "prior_work_dir": row["prior_work_dir"] or "",
    }
    if row["prior_runtime_id"] == row["runtime_id"]:
        # A session lives on the machine that made it.
        parts["prior_session_id"] = row["prior_session_id"] or ""
    if row["trigger_content"] is not None:
        parts |= {
            "trigger_comment_content": row["trigger_content"],
            "trigger_thread_id": row["trigger_parent_id"] or row["trigger_comment_id"],
            "trigger_author_type": row["trigger_author_type"],
            "trigger_author_name": row["trigger_author_name"] or "",
        }
    if row["last_run_at"] is not None and row["new_comments"]:
        parts |= {
            "new_comment_count": row["new_comments"],
            "new_comments_since": stamp(row["last_run_at"]),
        }
    return ClaimedTask(**parts)


def _agent(agent: Mapping[str, Any]) -> TaskAgent:
    return TaskAgent(
        id=agent["id"],
        name=agent["name"],
        instructions=agent["instructions"],
        custom_env={str(key): str(value) for key, value in (agent["custom_env"] or {}).items()},
        custom_args=[str(value) for value in agent["custom_args"] or []],
        mcp_config=agent["mcp_config"],
        model=agent["model"] or "",
        thinking_level=agent["thinking_level"] or "",
        runtime_config=agent["runtime_config"] or None,
    )


def _repos(stored: Any) -> list[Repo]:
    """The workspace's repositories as stored; what is not one is left out."""
    if not isinstance(stored, list):
        return []
    return [
        Repo(url=item["url"], description=item.get("description") or "")
        for item in stored
        if isinstance(item, Mapping) and isinstance(item.get("url"), str)
    ]
