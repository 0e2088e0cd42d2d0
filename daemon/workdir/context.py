"""The context files an agent finds in its working directory (spec 05 §3): data, not rules. ◇"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from shared.wire.task import ClaimedTask

ISSUE_CONTEXT: Final = ".agent_context/issue_context.md"
RESOURCES: Final = ".multica/project/resources.json"


def quote(text: str) -> str:
    """Quote every line of a text that someone else wrote."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")
    return "\n".join(f"> {line}".rstrip() for line in lines)


def fenced_json(value: object) -> str:
    return "```json\n" + json.dumps(value, indent=2, ensure_ascii=False) + "\n```"


def render_context(task: ClaimedTask, kind: str, skills: Sequence[str]) -> str:
    """Return `issue_context.md` for a task of the given kind."""
    match kind:
        case "autopilot":
            parts = _autopilot(task)
        case "quick_create":
            parts = [
                "# New issue from a request",
                "Trigger: a request typed into the product.",
                "The request:",
                quote(task.quick_create_prompt),
            ]
        case "chat":
            parts = [
                "# Chat",
                f"Chat session: {task.chat_session_id}",
                "There is no issue; the conversation is with a person in a chat window.",
            ]
        case _:
            parts = _issue(task)
    if skills:
        parts.append("Skills: " + ", ".join(skills))
    return "\n\n".join(part for part in parts if part) + "\n"


def render_resources(task: ClaimedTask) -> str | None:
    """Return `resources.json`, or None when the task has no project and no resources."""
    if not task.project_id and not task.project_resources:
        return None
    document: dict[str, object] = {}
    if task.project_id:
        document["project_id"] = task.project_id
    if task.project_title:
        document["project_title"] = task.project_title
    if task.project_description:
        document["project_description"] = task.project_description
    document["resources"] = [
        {
            "id": resource.id,
            "resource_type": resource.resource_type,
            "resource_ref": resource.resource_ref,
            **({"label": resource.label} if resource.label else {}),
        }
        for resource in task.project_resources
    ]
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _issue(task: ClaimedTask) -> list[str]:
    if task.trigger_comment_id:
        trigger = f"Trigger: a comment (id {task.trigger_comment_id})."
    else:
        trigger = "Trigger: the issue was assigned to you."
    parts = [
        f"# {task.thread_name}" if task.thread_name else "# Issue",
        f"Issue id: {task.issue_id}",
        trigger,
    ]
    if task.handoff_note:
        parts += [
            "## Handoff note",
            "Scope given by whoever assigned the issue:",
            quote(task.handoff_note),
        ]
    parts.append(f"Read it with `bullpen issue get {task.issue_id} --output json`.")
    return parts


def _autopilot(task: ClaimedTask) -> list[str]:
    facts = [f"Autopilot run: {task.autopilot_run_id}"]
    facts += [f"Autopilot: {task.autopilot_id}"] if task.autopilot_id else []
    facts += [f"Title: {task.autopilot_title}"] if task.autopilot_title else []
    facts += [f"Source: {task.autopilot_source}"] if task.autopilot_source else []
    parts = ["# Autopilot run", "\n".join(facts)]
    if task.autopilot_trigger_payload is not None:
        parts += ["Trigger payload:", fenced_json(task.autopilot_trigger_payload)]
    parts.append("There is no issue; reading issues is pointless.")
    if task.autopilot_id:
        command = f"bullpen autopilot get {task.autopilot_id} --output json"
        parts.append(f"Read the autopilot with `{command}`.")
    if task.autopilot_description.strip():
        parts += ["## Instructions", task.autopilot_description.strip()]
    return parts
