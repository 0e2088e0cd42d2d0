"""A workspace with one of everything, for tests that walk every route.

All of it belongs to `maker`, an ordinary member, so that what others may do with it is a question of
their role. Every text in it contains a mark, by which an answer that shows any of it is recognised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from server.store.queries import Connection
from shared.ids import hash_token
from tests.support.rows import (
    World,
    insert,
    make_agent,
    make_comment,
    make_issue,
    make_runtime,
    make_task,
    make_user,
)

Things = Mapping[str, str]
"""Ids (or other words of a path) by what they are."""


async def furnish(conn: Connection, world: World, maker: str, mark: str) -> Things:
    """Put one of everything into a workspace of which `maker` is a member."""
    ws = {"workspace_id": world.workspace_id}
    runtime = await make_runtime(
        conn,
        world.workspace_id,
        maker,
        name=f"{mark} machine",
        metadata={"cli_version": "9.9.9"},
    )
    idle = await make_runtime(conn, world.workspace_id, maker, provider="codex", daemon_id=mark)
    agent = await make_agent(
        conn, world.workspace_id, runtime, owner_id=maker, name=f"{mark} agent",
        instructions=mark, custom_env={"KEY": mark},
    )  # fmt: skip
    archived = await make_agent(
        conn, world.workspace_id, runtime, owner_id=maker, name=f"{mark} old"
    )
    await conn.execute("update agent set archived_at = now() where id = $1", archived)
    project = await insert(conn, "project", **ws, title=f"{mark} project")
    resource = await insert(
        conn, "project_resource", **ws, project_id=project, resource_type="github_repo",
        resource_ref={"url": f"https://x.org/{mark}"},
    )  # fmt: skip
    made = await make_issue(
        conn, world, title=f"{mark} issue", description=mark, assignee_id=agent, creator_id=maker,
        metadata={"note": mark},
    )  # fmt: skip
    comment = await make_comment(conn, made, maker, f"{mark} comment")
    task = await make_task(
        conn, world, agent_id=agent, runtime_id=runtime, issue_id=made.id, trigger_summary=mark
    )
    await conn.execute(
        "insert into task_message (task_id, seq, type, content) values ($1, 1, 'text', $2)",
        task, mark,
    )  # fmt: skip
    label = await insert(conn, "issue_label", **ws, name=mark[:20], color="#000000")
    await conn.execute(
        "insert into issue_to_label (issue_id, label_id) values ($1, $2)", made.id, label
    )
    skill = await insert(conn, "skill", **ws, name=mark, content=mark, created_by=maker)
    file = await insert(conn, "skill_file", skill_id=skill, path="a.md", content=mark)
    squad = await insert(conn, "squad", **ws, name=f"{mark} squad", leader_id=world.agent_id)
    for kind, who in (("agent", agent), ("member", maker)):
        await insert(conn, "squad_member", squad_id=squad, member_type=kind, member_id=who)
    pilot = await insert(
        conn, "autopilot", **ws, title=f"{mark} autopilot", assignee_type="agent",
        assignee_id=agent, execution_mode="run_only", created_by_type="member",
        created_by_id=maker,
    )  # fmt: skip
    token = f"awt_{(mark + 'x' * 43)[:43]}"
    trigger = await insert(
        conn, "autopilot_trigger", autopilot_id=pilot, kind="webhook", webhook_token=token
    )
    run = await insert(
        conn, "autopilot_run", autopilot_id=pilot, source="manual", status="completed",
        failure_reason=mark,
    )  # fmt: skip
    delivery = await insert(
        conn, "webhook_delivery", **ws, autopilot_id=pilot, trigger_id=trigger,
        provider="generic", status="dispatched", event="x",
        raw_body=json.dumps({"event": mark}).encode(),
    )  # fmt: skip
    chat = await insert(
        conn, "chat_session", **ws, agent_id=agent, creator_id=maker, title=f"{mark} chat"
    )
    await insert(conn, "chat_message", chat_session_id=chat, role="user", content=f"{mark} said")
    attachment = await insert(
        conn, "attachment", **ws, issue_id=made.id, uploader_type="member", uploader_id=maker,
        filename=f"{mark}.txt", url="", content_type="text/plain", size_bytes=len(mark),
    )  # fmt: skip
    await conn.execute(
        "insert into attachment_content (attachment_id, data) values ($1, $2)",
        attachment, mark.encode(),
    )  # fmt: skip
    inbox = await insert(
        conn, "inbox_item", **ws, recipient_type="member", recipient_id=maker,
        type="mentioned", severity="info", title=f"{mark} news", issue_id=made.id,
    )  # fmt: skip
    pin = await insert(conn, "pinned_item", **ws, user_id=maker, item_type="issue", item_id=made.id)
    other = await make_user(conn, f"{mark} Olga")
    member = await insert(conn, "member", **ws, user_id=other, role="member")
    invitation = await insert(
        conn, "workspace_invitation", **ws, invitee_email=f"{mark.lower()}@x.org",
        role="member", inviter_id=world.user_id,
    )  # fmt: skip
    machine = await conn.fetchval(
        "insert into daemon_token (workspace_id, daemon_id, token_hash, expires_at)"
        " values ($1, $2, $3, now() + interval '1 day') returning id",
        world.workspace_id, mark, hash_token(mark),
    )  # fmt: skip
    profile = await insert(
        conn, "runtime_profile", **ws, display_name=f"{mark} profile", protocol_family="claude",
        command_name="x",
    )  # fmt: skip
    pat = await insert(
        conn, "personal_access_token", user_id=maker, token_hash=hash_token(f"pat {mark}"),
        token_prefix="mul_", name=f"{mark} token",
    )  # fmt: skip
    return {
        "workspaces": world.workspace_id,
        "runtimes": runtime,
        "idle_runtime": idle,
        "agents": agent,
        "archived_agent": archived,
        "projects": project,
        "resources": resource,
        "issues": made.id,
        "comments": comment,
        "tasks": task,
        "labels": label,
        "skills": skill,
        "files": file,
        "squads": squad,
        "autopilots": pilot,
        "triggers": trigger,
        "runs": run,
        "deliveries": delivery,
        "sessions": chat,
        "attachments": attachment,
        "inbox": inbox,
        "pin": pin,
        "members": member,
        "other": other,
        "maker": maker,
        "invitations": invitation,
        "daemon-tokens": machine,
        "runtime-profiles": profile,
        "tokens": pat,
        "webhook": token,
        "metadata": "note",
        "mark": mark,
    }


def path_of(template: str, things: Things) -> str:
    """A route's path with its parameters filled in.

    A parameter is what the word before it says (`/issues/{id}`), unless it is itself the name of a
    thing (`/agents/{archived_agent}`). Unknown ones become `x`.
    """
    parts = template.split("/")
    for place, part in enumerate(parts):
        if not part.startswith("{"):
            continue
        name = part.strip("{}")
        before = parts[place - 1]
        if name == "item_type":
            parts[place] = "issue"
        elif name == "item_id":
            parts[place] = things["issues"]
        elif before == "autopilots" and name == "token":
            parts[place] = things["webhook"]
        else:
            parts[place] = things.get(name) or things.get(before, "x")
    return "/".join(parts)


def body_of(template: Any, things: Things) -> Any:
    """A body with `"{issues}"` and the like filled in."""
    if isinstance(template, str):
        return re.sub(r"{([\w-]+)}", lambda found: things[found[1]], template)
    if isinstance(template, list):
        return [body_of(item, things) for item in template]
    if isinstance(template, dict):
        return {key: body_of(value, things) for key, value in template.items()}
    return template
