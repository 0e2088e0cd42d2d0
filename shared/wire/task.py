"""A task as it travels: the claim payload, the base object, reports and messages.

Sources: spec 01 §3.5 (claim), §3.10 to §3.13 (reports), §5.4 (message payload), 02 §4.6 and §4.7.
Times are strings in the forms of `shared.times`.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from shared.codec import omitted

QUEUED: Final = "queued"
DISPATCHED: Final = "dispatched"
WAITING_LOCAL_DIRECTORY: Final = "waiting_local_directory"
RUNNING: Final = "running"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"

PENDING: Final = frozenset({QUEUED, DISPATCHED})
IN_FLIGHT: Final = frozenset({DISPATCHED, WAITING_LOCAL_DIRECTORY, RUNNING})
ACTIVE: Final = IN_FLIGHT | {QUEUED}
TERMINAL: Final = frozenset({COMPLETED, FAILED, CANCELLED})


@attrs.frozen(kw_only=True)
class Repo:
    """A repository a task may check out."""

    url: str = ""
    description: str = omitted("")
    ref: str = omitted("")
    """Where its runs start: a branch, tag or commit; "" for the default branch."""


@attrs.frozen(kw_only=True)
class SkillFile:
    """One supporting file of a skill; `sha256` and `size_bytes` only in bundles and refs."""

    path: str = ""
    content: str = omitted("")
    sha256: str = omitted("")
    size_bytes: int = omitted(0)


@attrs.frozen(kw_only=True)
class Skill:
    """A skill sent whole, for peers without the bundle capability."""

    id: str = ""
    name: str = ""
    description: str = omitted("")
    content: str = ""
    files: list[SkillFile] = omitted(factory=list)


@attrs.frozen(kw_only=True)
class SkillRef:
    """A skill sent by hash (capability `skill-bundles-v1`)."""

    id: str = ""
    source: str = ""
    name: str = ""
    description: str = omitted("")
    hash: str = ""
    size_bytes: int = 0
    file_count: int = 0
    files: list[SkillFile] = omitted(factory=list)


@attrs.frozen(kw_only=True)
class SkillBundle:
    """A skill with everything in it, as it is fetched and kept by its hash (01 §3.7)."""

    id: str = ""
    source: str = ""
    name: str = ""
    description: str = omitted("")
    hash: str = ""
    size_bytes: int = omitted(0)
    content: str = ""
    files: list[SkillFile] = omitted(factory=list)


@attrs.frozen(kw_only=True)
class ResolveRequest:
    """Skills whose bundles are asked for, by the references of a claim."""

    skills: list[SkillRef] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class ResolveResponse:
    """Their bundles, in the order asked."""

    bundles: list[SkillBundle] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class TaskAgent:
    """The agent a claimed task runs as. Holds secrets: never logged."""

    id: str = ""
    name: str = ""
    instructions: str = ""
    skills: list[Skill] | None = omitted(None)
    skill_refs: list[SkillRef] | None = omitted(None)
    custom_env: dict[str, str] = attrs.field(
        factory=dict, repr=False, metadata=omitted(factory=dict).metadata
    )
    custom_args: list[str] = omitted(factory=list)
    mcp_config: Any = attrs.field(default=None, repr=False, metadata=omitted(None).metadata)
    model: str = omitted("")
    thinking_level: str = omitted("")
    runtime_config: Any = attrs.field(default=None, repr=False, metadata=omitted(None).metadata)


@attrs.frozen(kw_only=True)
class ProjectResource:
    """Something a project points at; `resource_ref` depends on the type (spec 01 §3.5)."""

    id: str = ""
    resource_type: str = ""
    resource_ref: dict[str, Any] = attrs.field(factory=dict)
    label: str = omitted("")


@attrs.frozen(kw_only=True)
class ChatAttachment:
    id: str = ""
    filename: str = ""
    content_type: str = omitted("")


@attrs.frozen(kw_only=True)
class Task:
    """The base task object: what every task endpoint but the claim answers with."""

    id: str
    agent_id: str = ""
    runtime_id: str = ""
    issue_id: str = ""
    workspace_id: str = ""
    status: str = ""
    priority: int = 0
    dispatched_at: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    result: Any = None
    error: str | None = None
    failure_reason: str = omitted("")
    attempt: int = 1
    max_attempts: int = 2
    parent_task_id: str = omitted("")
    created_at: str = ""
    work_dir: str = omitted("")
    relative_work_dir: str = omitted("")
    trigger_comment_id: str = omitted("")
    trigger_summary: str = omitted("")
    chat_session_id: str = omitted("")
    autopilot_run_id: str = omitted("")
    handoff_note: str = omitted("")
    unreachable_since: str = omitted("")
    """Ours: its machine has been silent since then; it is not failed while it may come back."""
    resume_at: str = omitted("")
    """Ours: failed because a quota is used up; the new attempt waits until then."""
    not_before: str = omitted("")
    """Ours: queued, and not claimed before."""
    late_result: Any = omitted(None)
    """Ours: what the daemon reported after the server had given the task up and gone on:
    `status`, `at`, and `result` or `error` with `failure_reason`."""
    kind: str = ""


@attrs.frozen(kw_only=True)
class ClaimedTask(Task):
    """A task with all an agent run needs. Holds secrets: never logged."""

    workspace_context: str = omitted("")
    thread_name: str = omitted("")
    agent: TaskAgent | None = omitted(None)
    repos: list[Repo] = omitted(factory=list)
    project_id: str = omitted("")
    project_title: str = omitted("")
    project_description: str = omitted("")
    project_resources: list[ProjectResource] = omitted(factory=list)
    prior_session_id: str = omitted("")
    prior_work_dir: str = omitted("")
    trigger_thread_id: str = omitted("")
    trigger_comment_content: str = omitted("")
    trigger_author_type: str = omitted("")
    trigger_author_name: str = omitted("")
    new_comment_count: int = omitted(0)
    new_comments_since: str = omitted("")
    chat_message: str = omitted("")
    chat_message_attachments: list[ChatAttachment] = omitted(factory=list)
    autopilot_id: str = omitted("")
    autopilot_title: str = omitted("")
    autopilot_description: str = omitted("")
    autopilot_source: str = omitted("")
    autopilot_trigger_payload: Any = omitted(None)
    quick_create_prompt: str = omitted("")
    quick_create_attachment_ids: list[str] = omitted(factory=list)
    squad_id: str = omitted("")
    squad_name: str = omitted("")
    parent_issue_id: str = omitted("")
    parent_issue_identifier: str = omitted("")
    requesting_user_name: str = omitted("")
    requesting_user_profile_description: str = omitted("")
    initiator_type: str = omitted("")
    initiator_id: str = omitted("")
    initiator_name: str = omitted("")
    initiator_email: str = omitted("")
    auth_token: str = attrs.field(default="", repr=False, metadata=omitted("").metadata)


@attrs.frozen(kw_only=True)
class ClaimReply:
    task: ClaimedTask | None = None


@attrs.frozen(kw_only=True)
class TaskMessage:
    """One transcript item as the daemon sends it. `seq` counts from 1 over the whole task."""

    seq: int
    type: str
    tool: str = omitted("")
    content: str = omitted("")
    input: dict[str, Any] | None = omitted(None)
    output: str = omitted("")


@attrs.frozen(kw_only=True)
class MessagesRequest:
    messages: list[TaskMessage] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class TaskMessagePayload(TaskMessage):
    """One transcript item as readers get it: `task:message` and the message lists."""

    task_id: str
    issue_id: str = omitted("")
    created_at: str = omitted("")


@attrs.frozen(kw_only=True)
class StatusReply:
    """`presumed` (ours): the server failed the task because nothing was heard of its machine."""

    status: str = ""
    presumed: bool = omitted(default=False)


@attrs.frozen(kw_only=True)
class WaitRequest:
    reason: str = ""


@attrs.frozen(kw_only=True)
class ProgressRequest:
    summary: str = ""
    step: int = 0
    total: int = 0


@attrs.frozen(kw_only=True)
class SessionRequest:
    session_id: str = omitted("")
    work_dir: str = omitted("")


@attrs.frozen(kw_only=True)
class ModelUsage:
    """Tokens of one model over the whole task; buckets exclude each other (spec 04 §1.3)."""

    provider: str = ""
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


@attrs.frozen(kw_only=True)
class UsageRequest:
    usage: list[ModelUsage] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class CompleteRequest:
    output: str = ""
    pr_url: str = omitted("")
    branch_name: str = omitted("")
    session_id: str = omitted("")
    work_dir: str = omitted("")


@attrs.frozen(kw_only=True)
class FailRequest:
    error: str = ""
    session_id: str = omitted("")
    work_dir: str = omitted("")
    failure_reason: str = omitted("")
    resets_at: str = omitted("")
    """Ours: when the quota is back that the task failed of; the machine knows its own time zone."""


@attrs.frozen(kw_only=True)
class RecoverReply:
    orphaned: int = 0
    retried: int = 0


def kind_of(
    *, chat_session_id: str, autopilot_run_id: str, issue_id: str, trigger_comment_id: str
) -> str:
    """Classify a task: the first that applies wins (spec 02 §4.6)."""
    if chat_session_id:
        return "chat"
    if autopilot_run_id:
        return "autopilot"
    if not issue_id:
        return "quick_create"
    return "comment" if trigger_comment_id else "direct"


@attrs.frozen(kw_only=True)
class WantedClaims:
    """How many tasks one runtime has room for."""

    runtime_id: str = ""
    slots: int = 1


@attrs.frozen(kw_only=True)
class ClaimManyRequest:
    """Ours: claims for many runtimes, at most `slots` in all."""

    runtimes: list[WantedClaims] = attrs.field(factory=list)
    slots: int = 1


@attrs.frozen(kw_only=True)
class RuntimeClaims:
    """What one runtime got; `error` says why it can get nothing."""

    runtime_id: str = ""
    tasks: list[ClaimedTask] = attrs.field(factory=list)
    error: str = omitted("")


@attrs.frozen(kw_only=True)
class ClaimManyReply:
    """One entry for each runtime, in the order asked."""

    claims: list[RuntimeClaims] = attrs.field(factory=list)
