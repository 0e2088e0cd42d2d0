"""What people and agents share beside issues, as the user API shows it (spec 06 §8, §11, §12, §14).

Times are strings of form A.
"""

from __future__ import annotations

from typing import Any

import attrs

from shared.codec import omitted


@attrs.frozen(kw_only=True)
class SkillSummary:
    """A skill without what it says."""

    id: str
    workspace_id: str
    name: str
    description: str = ""
    config: dict[str, Any] = attrs.field(factory=dict)
    created_by: str | None = None
    created_at: str = ""
    updated_at: str = ""


@attrs.frozen(kw_only=True)
class SkillFileRow:
    """One supporting file of a skill."""

    id: str
    skill_id: str
    path: str
    content: str = ""
    created_at: str = ""
    updated_at: str = ""


@attrs.frozen(kw_only=True)
class FullSkill(SkillSummary):
    """A skill with its text and its files."""

    content: str = ""
    files: list[SkillFileRow] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class Squad:
    """A leader and members; `member_preview` has the first three."""

    id: str
    workspace_id: str
    name: str
    description: str = ""
    instructions: str = ""
    avatar_url: str | None = None
    leader_id: str = ""
    creator_id: str = ""
    created_at: str = ""
    updated_at: str = ""
    archived_at: str | None = None
    archived_by: str | None = None
    member_count: int = 0
    member_preview: list[dict[str, str]] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class SquadMember:
    """One member of a squad: `member_id` is an agent's or a user's."""

    id: str
    squad_id: str
    member_type: str
    member_id: str
    role: str = ""
    created_at: str = ""


@attrs.frozen(kw_only=True)
class Project:
    """A project with what is counted in it."""

    id: str
    workspace_id: str
    title: str
    description: str | None = None
    icon: str | None = None
    status: str = "planned"
    priority: str = "none"
    lead_type: str | None = None
    lead_id: str | None = None
    start_date: str | None = None
    due_date: str | None = None
    created_at: str = ""
    updated_at: str = ""
    issue_count: int = 0
    done_count: int = 0
    resource_count: int = 0
    resources: list[Resource] | None = omitted(None)


@attrs.frozen(kw_only=True)
class FoundProject(Project):
    """A project that a search found, and where."""

    match_source: str = "title"
    matched_snippet: str = omitted("")


@attrs.frozen(kw_only=True)
class Resource:
    """What agents work on in a project: a repository or a directory of one machine."""

    id: str
    project_id: str
    workspace_id: str
    resource_type: str
    resource_ref: dict[str, Any] = attrs.field(factory=dict)
    label: str | None = None
    position: int = 0
    created_at: str = ""
    created_by: str | None = None


@attrs.frozen(kw_only=True)
class Label:
    """A label; the color is "#" and six lower-case hex digits."""

    id: str
    workspace_id: str
    name: str
    color: str = ""
    created_at: str = ""
    updated_at: str = ""


@attrs.frozen(kw_only=True)
class Autopilot:
    """Work that starts by itself; `last_run_status` only in lists (spec 06 §15)."""

    id: str
    workspace_id: str
    title: str
    description: str | None = None
    project_id: str | None = None
    assignee_type: str = "agent"
    assignee_id: str = ""
    status: str = "active"
    execution_mode: str = "create_issue"
    issue_title_template: str | None = None
    created_by_type: str = "member"
    created_by_id: str = ""
    last_run_at: str | None = None
    created_at: str = ""
    updated_at: str = ""
    trigger_kinds: list[str] = omitted(factory=list)
    next_run_at: str | None = omitted(None)
    last_run_status: str | None = omitted(None)
    subscribers: list[dict[str, str]] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class AutopilotTrigger:
    """What starts an autopilot; a signing secret is never shown, but for its end."""

    id: str
    autopilot_id: str
    kind: str
    enabled: bool = True
    cron_expression: str | None = None
    timezone: str | None = None
    next_run_at: str | None = None
    webhook_token: str | None = None
    webhook_path: str | None = None
    webhook_url: str | None = None
    provider: str | None = None
    has_signing_secret: bool = False
    signing_secret_hint: str | None = None
    label: str | None = None
    last_fired_at: str | None = None
    created_at: str = ""
    updated_at: str = ""
    event_filters: list[dict[str, Any]] | None = omitted(None)


@attrs.frozen(kw_only=True)
class AutopilotRun:
    """One time an autopilot started, or was kept from it."""

    id: str
    autopilot_id: str
    trigger_id: str | None = None
    source: str = "manual"
    status: str = "running"
    issue_id: str | None = None
    task_id: str | None = None
    triggered_at: str = ""
    completed_at: str | None = None
    failure_reason: str | None = None
    trigger_payload: Any = None
    result: Any = None
    created_at: str = ""


@attrs.frozen(kw_only=True)
class ChatSession:
    """A conversation of one person with one agent."""

    id: str
    workspace_id: str
    agent_id: str
    creator_id: str
    title: str = ""
    status: str = "active"
    has_unread: bool = False
    created_at: str = ""
    updated_at: str = ""


@attrs.frozen(kw_only=True)
class ChatMessage:
    """What one side said; the times have fractions, pages are cut by them."""

    id: str
    chat_session_id: str
    role: str
    content: str = ""
    task_id: str | None = None
    created_at: str = ""
    failure_reason: str | None = None
    elapsed_ms: int | None = None
    attachments: list[dict[str, Any]] = omitted(factory=list)
