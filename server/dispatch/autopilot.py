"""Starting a run of an autopilot, whatever its reason (spec 02 §3.9).

One transaction: whether it may start, the run, and the issue or bare task it is about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from server.consequences import Consequence, TaskAvailable
from server.dispatch import enqueue, events
from server.dispatch.rules import IssueFacts
from server.dispatch.schedule import zone
from server.store import work
from server.store.queries import Connection, Record, load
from server.store.wire_rows import wire
from shared import codec, times
from shared.wire.event import Event
from shared.wire.teamwork import AutopilotRun

SQL: Final = load("autopilots")

RUN_ONLY: Final = "run_only"


class _Pilot:
    """The leading agent, as the one who makes the issue and asks for the run."""

    actor_type = "agent"
    task_id = None

    def __init__(self, agent_id: str) -> None:
        self.actor_id = agent_id
        self.user_id = ""


class _System:
    """The server itself: what it starts does not count as one agent starting another."""

    actor_type = "system"
    task_id = None
    user_id: Any = None
    actor_id = "00000000-0000-0000-0000-000000000000"


async def start_run(
    conn: Connection,
    autopilot: Record,
    *,
    source: str,
    trigger: Record | None = None,
    planned_at: datetime | None = None,
    payload: Mapping[str, Any] | None = None,
) -> tuple[AutopilotRun | None, list[Consequence]]:
    """Start a run of a locked autopilot, or note why not; None when this plan has its run."""
    who = await conn.fetchrow(
        SQL.assignee,
        autopilot["workspace_id"],
        autopilot["assignee_type"],
        autopilot["assignee_id"],
        autopilot["created_by_id"],
    )
    reason = _refusal(autopilot["assignee_type"], who)
    bare = autopilot["execution_mode"] == RUN_ONLY
    run = await conn.fetchrow(
        SQL.add_run,
        autopilot["id"],
        None if trigger is None else trigger["id"],
        source,
        "skipped" if reason else "running" if bare else "issue_created",
        None if who is None else who["squad_id"],
        planned_at,
        reason or None,
        payload,
    )
    if run is None:
        return None, []
    told: list[Consequence] = []
    if not reason:
        assert who is not None
        begin = _bare_task if bare else _issue
        run, told = await begin(conn, autopilot, run, who, trigger)
    shown = wire(AutopilotRun, run)
    start = {
        "run_id": shown.id,
        "autopilot_id": shown.autopilot_id,
        "source": source,
        "status": shown.status,
    }
    told.append(
        Event(
            type="autopilot:run_start",
            payload=start,
            workspace_id=autopilot["workspace_id"],
            **events.autopilot_whose(autopilot),
        )
    )
    return shown, told


def _refusal(kind: str, who: Record | None) -> str:
    """Why a run must not start; empty when it may."""
    prefix = "squad leader" if kind == "squad" else "assignee"
    if who is None:
        return f"{prefix} does not exist"
    if who["squad_archived"]:
        return "squad is archived"
    if who["archived"]:
        return f"{prefix} is archived"
    if not who["open"]:
        return f"{prefix} is private, and whoever made the autopilot has no access to it"
    if not who["online"]:
        return f"{prefix}'s runtime is offline"
    return ""


async def _bare_task(
    conn: Connection, autopilot: Record, run: Record, who: Record, _: Record | None
) -> tuple[Record, list[Consequence]]:
    task = await conn.fetchrow(
        SQL.queue_run,
        autopilot["workspace_id"],
        who["agent_id"],
        run["id"],
        autopilot["title"],
        who["squad_id"] is not None,
    )
    assert task is not None
    linked = await conn.fetchrow(SQL.link_run, run["id"], None, task["id"])
    assert linked is not None
    told: list[Consequence] = [
        events.task_event("task:queued", task),
        TaskAvailable(task["runtime_id"], task["id"]),
    ]
    return linked, told


async def _issue(
    conn: Connection, autopilot: Record, run: Record, who: Record, trigger: Record | None
) -> tuple[Record, list[Consequence]]:
    now = times.now()
    timezone = "UTC" if trigger is None else trigger["timezone"]
    title = autopilot["issue_title_template"] or autopilot["title"]
    made = await work.create_issue(
        conn,
        autopilot["workspace_id"],
        {
            "title": title.replace("{{date}}", now.astimezone(zone(timezone)).date().isoformat()),
            "description": _description(autopilot, run, now),
            "status": "todo",
            "priority": "none",
            "assignee_type": autopilot["assignee_type"],
            "assignee_id": autopilot["assignee_id"],
            "creator_type": "agent",
            "creator_id": who["agent_id"],
            "parent_issue_id": None,
            "project_id": autopilot["project_id"],
            "stage": None,
            "start_date": None,
            "due_date": None,
            "origin_type": "autopilot",
            "origin_id": autopilot["id"],
        },
    )
    pilot = _Pilot(who["agent_id"])
    told: list[Consequence] = [
        Event(
            type="issue:created",
            payload={"issue": codec.unstructure(made)},
            workspace_id=made.workspace_id,
            actor_type=pilot.actor_type,
            actor_id=pilot.actor_id,
        )
    ]
    rows = await conn.fetch(SQL.subscribe_issue, made.id, autopilot["id"], pilot.actor_id)
    told += [events.inbox_new(row["item"], issue_status=made.status) for row in rows]
    facts = IssueFacts(
        id=made.id,
        workspace_id=made.workspace_id,
        identifier=made.identifier,
        status=made.status,
        priority=made.priority,
        assignee_type=made.assignee_type,
        assignee_id=made.assignee_id,
    )
    told += await enqueue.issue_created(conn, facts, _System())
    linked = await conn.fetchrow(SQL.link_run, run["id"], made.id, None)
    assert linked is not None
    return linked, told


def _description(autopilot: Record, run: Record, now: datetime) -> str:
    parts = [autopilot["description"] or ""]
    payload = run["trigger_payload"]
    if payload:
        shown = json.dumps(payload.get("eventPayload"), indent=2, ensure_ascii=False)
        parts.append(f"Event: `{payload.get('event')}`\n\n```json\n{shown}\n```")
    parts.append(
        f"*Made by an autopilot at {times.stamp(now)}. Rename this issue once it is clear what it"
        " is about.*"
    )
    return "\n\n".join(part for part in parts if part)
