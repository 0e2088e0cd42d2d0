"""What a claim hands over: the claim statement's row as the payload of spec 01 §3.5. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.dispatch import builtin_skills
from server.dispatch.briefing import brief_leader
from server.dispatch.register import repos_of
from server.store.queries import Record
from server.store.tasks import base_fields
from shared.addresses import join_address
from shared.skillbundle import WORKSPACE
from shared.times import stamp
from shared.wire.task import (
    ChatAttachment,
    ClaimedTask,
    ProjectResource,
    Repo,
    Skill,
    SkillFile,
    SkillRef,
    TaskAgent,
)


def assemble(row: Record, token: str, *, by_ref: bool = False, apart: bool = False) -> ClaimedTask:
    """Build the payload; `by_ref`: skills by their hash instead of whole.

    `apart`: the daemon asks for the passwords of repositories; else they stand in the addresses.
    """
    credentials = {} if apart else row["credentials"] or {}
    parts: dict[str, Any] = base_fields(row)
    parts |= {
        "auth_token": token,
        "agent": _agent(row, by_ref=by_ref),
        "workspace_context": row["workspace_context"] or "",
        "repos": _project_repos(row["resources"], credentials)
        or repos_of(row["workspace_repos"], credentials),
        "thread_name": row["issue_title"] or "",
        "requesting_user_name": row["owner_name"],
        "requesting_user_profile_description": row["owner_profile"],
    }
    if row["started_by_type"] in {"member", "agent"}:
        parts |= {
            "initiator_type": row["started_by_type"],
            "initiator_id": row["started_by_id"] or "",
            "initiator_name": row["started_by_name"] or "",
            "initiator_email": row["started_by_email"] or "",
        }
    parts |= _project(row) | _prior(row) | _trigger(row)
    if row["chat_session_id"]:
        parts |= _chat(row)
    elif row["autopilot"] is not None:
        parts |= _autopilot(row)
    elif row["issue_id"] is None and row["context"]:
        parts |= _quick_create(row)
    return ClaimedTask(**parts)


def _agent(row: Record, *, by_ref: bool) -> TaskAgent:
    agent: Mapping[str, Any] = row["agent"]
    known = row["skills"] or ()
    instructions = agent["instructions"]
    if row["squad"] is not None:
        briefing = brief_leader(row["squad"], row["roster"] or [])
        instructions = f"{instructions}\n\n{briefing}" if instructions else briefing
    return TaskAgent(
        id=agent["id"],
        name=agent["name"],
        instructions=instructions,
        skills=None if by_ref else [*map(_whole, known), *builtin_skills.WHOLE],
        skill_refs=[*map(_ref, known), *builtin_skills.REFS] if by_ref else None,
        custom_env={str(key): str(value) for key, value in (agent["custom_env"] or {}).items()},
        custom_args=[str(value) for value in agent["custom_args"] or []],
        mcp_config=agent["mcp_config"],
        model=agent["model"] or "",
        thinking_level=agent["thinking_level"] or "",
        runtime_config=agent["runtime_config"] or None,
    )


def _whole(skill: Mapping[str, Any]) -> Skill:
    return Skill(
        id=skill["id"],
        name=skill["name"],
        description=skill["description"],
        content=skill["content"],
        files=[SkillFile(path=file["path"], content=file["content"]) for file in skill["files"]],
    )


def _ref(skill: Mapping[str, Any]) -> SkillRef:
    return SkillRef(
        id=skill["id"],
        source=WORKSPACE,
        name=skill["name"],
        description=skill["description"],
        hash=skill["hash"],
        size_bytes=skill["size_bytes"],
        file_count=len(skill["files"]),
        files=[
            SkillFile(path=file["path"], sha256=file["sha256"], size_bytes=file["size_bytes"])
            for file in skill["files"]
        ],
    )


def _project_repos(resources: Any, credentials: Mapping[str, str]) -> list[Repo]:
    """A project's own repositories take the place of the workspace's."""
    refs = (
        item["resource_ref"] for item in resources or () if item["resource_type"] == "github_repo"
    )
    return [
        Repo(url=join_address(url, credentials.get(url, "")), ref=ref.get("ref") or "")
        for ref in refs
        if (url := ref.get("url"))
    ]


def _project(row: Record) -> dict[str, Any]:
    project = row["project"]
    if project is None:
        return {}
    return {
        "project_id": project["id"],
        "project_title": project["title"],
        "project_description": project["description"] or "",
        "project_resources": [ProjectResource(**item) for item in row["resources"] or ()],
    }


def _prior(row: Record) -> dict[str, Any]:
    """Where the agent left off; a session lives only on the machine that made it."""
    session, runtime_id = row["prior_session_id"], row["prior_runtime_id"]
    work_dir = row["prior_work_dir"]
    if row["chat_session_id"] and not row["force_fresh_session"]:
        if row["chat_session"] and row["chat_runtime_id"] == row["runtime_id"]:
            session, runtime_id = row["chat_session"], row["chat_runtime_id"]
        work_dir = row["chat_work_dir"] or work_dir
    same = runtime_id == row["runtime_id"]
    return {
        "prior_session_id": (session or "") if same else "",
        "prior_work_dir": work_dir or "",
    }


def _trigger(row: Record) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    if row["trigger_content"] is not None:
        parts = {
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
    return parts


def _chat(row: Record) -> dict[str, Any]:
    message = "\n\n".join(text for text in row["chat_texts"] or () if text.strip())
    return {
        "thread_name": row["chat_title"] or message,
        "chat_message": message,
        "chat_message_attachments": [
            ChatAttachment(**file) for files in row["chat_files"] or () for file in files
        ],
    }


def _autopilot(row: Record) -> dict[str, Any]:
    autopilot = row["autopilot"]
    return {
        "thread_name": autopilot["title"],
        "autopilot_id": autopilot["id"],
        "autopilot_title": autopilot["title"],
        "autopilot_description": autopilot["description"] or "",
        "autopilot_source": row["run_source"],
        "autopilot_trigger_payload": row["run_payload"],
    }


def _quick_create(row: Record) -> dict[str, Any]:
    context = row["context"]
    squad = row["squad"]
    return {
        "thread_name": context.get("prompt") or "",
        "quick_create_prompt": context.get("prompt") or "",
        "quick_create_attachment_ids": context.get("attachment_ids") or [],
        "parent_issue_id": context.get("parent_issue_id") or "",
        "parent_issue_identifier": row["parent_identifier"] or "",
        "squad_id": squad["id"] if squad else "",
        "squad_name": squad["name"] if squad else "",
    }
