"""Issues and comments as every reader gets them (spec 06 §5 and §7, 01 §5.5).

Times are strings of form A (`shared.times.stamp`), dates are `YYYY-MM-DD`.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from shared.codec import omitted

STATUSES: Final = ("backlog", "todo", "in_progress", "in_review", "done", "blocked", "cancelled")
CLOSED: Final = frozenset({"done", "cancelled"})
PRIORITIES: Final = ("urgent", "high", "medium", "low", "none")


@attrs.frozen(kw_only=True)
class Issue:
    """One piece of work. `labels` is there only on the list and on the single read (06 §5)."""

    id: str
    workspace_id: str = ""
    number: int = 0
    identifier: str = ""
    title: str = ""
    description: str | None = None
    status: str = "todo"
    priority: str = "none"
    assignee_type: str | None = None
    assignee_id: str | None = None
    creator_type: str = ""
    creator_id: str = ""
    parent_issue_id: str | None = None
    project_id: str | None = None
    position: float = 0.0
    stage: int | None = None
    start_date: str | None = None
    due_date: str | None = None
    created_at: str = ""
    updated_at: str = ""
    metadata: dict[str, Any] = attrs.field(factory=dict)
    reactions: list[dict[str, Any]] = omitted(factory=list)
    attachments: list[dict[str, Any]] = omitted(factory=list)
    labels: list[dict[str, Any]] | None = omitted(None)
    runs_paused_at: str | None = omitted(None)
    """Ours: since then agents start no run here, until a person has looked."""
    edited_by_others: bool = omitted(False)
    """Ours: somebody other than its creator changed the description."""


@attrs.frozen(kw_only=True)
class FoundIssue(Issue):
    """A search hit: where the words stood, and the text around them (06 §6.1)."""

    match_source: str = "title"
    matched_snippet: str = omitted("")
    matched_description_snippet: str = omitted("")
    matched_comment_snippet: str = omitted("")


@attrs.frozen(kw_only=True)
class Comment:
    """One comment; the last group of fields exists only in the reading modes that say so (06 §7)."""

    id: str
    issue_id: str = ""
    author_type: str = ""
    author_id: str = ""
    content: str = ""
    type: str = "comment"
    parent_id: str | None = None
    created_at: str = ""
    updated_at: str = ""
    resolved_at: str | None = None
    resolved_by_type: str | None = None
    resolved_by_id: str | None = None
    source_task_id: str = omitted("")
    reactions: list[dict[str, Any]] = attrs.field(factory=list)
    attachments: list[dict[str, Any]] = attrs.field(factory=list)
    reply_count: int | None = omitted(None)
    last_activity_at: str = omitted("")
    content_truncated: bool | None = omitted(None)
    thread_resolved: bool | None = omitted(None)
    folded_count: int | None = omitted(None)
    edited_by_others: bool = omitted(False)
    """Ours: somebody other than its author changed it."""


@attrs.frozen(kw_only=True)
class IssueUsage:
    """The tokens all runs of an issue have used (06 §6.1)."""

    total_input_tokens: int = 0
    total_output_tokens: int = 0
    total_cache_read_tokens: int = 0
    total_cache_write_tokens: int = 0
    task_count: int = 0
