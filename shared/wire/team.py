"""People, workspaces, tokens and agents as the user API shows them (spec 06 §2.4, §2.5, §4, §10).

Times are strings of form A (`shared.times.stamp`). An agent's environment values and other
stored secrets have no field here: what cannot be held cannot leak.
"""

from __future__ import annotations

from typing import Any

import attrs

from shared.codec import omitted


@attrs.frozen(kw_only=True)
class User:
    """The account behind a credential (spec 06 §2.4)."""

    id: str
    name: str = ""
    email: str = ""
    avatar_url: str | None = None
    language: str | None = None
    timezone: str | None = None
    onboarded_at: str | None = None
    onboarding_questionnaire: dict[str, Any] = attrs.field(factory=dict)
    starter_content_state: str | None = None
    profile_description: str = ""
    created_at: str = ""
    updated_at: str = ""


@attrs.frozen(kw_only=True)
class AccessToken:
    """A personal access token; `token` is there only in the answer that mints it (06 §2.5)."""

    id: str
    name: str = ""
    token_prefix: str = ""
    expires_at: str | None = None
    last_used_at: str | None = None
    created_at: str = ""
    token: str = attrs.field(default="", repr=False, metadata=omitted("").metadata)


@attrs.frozen(kw_only=True)
class Renewal:
    """What renewing the calling token did; `expires_at` is empty for one that never ends."""

    expires_at: str = ""
    renewed: bool = False


@attrs.frozen(kw_only=True)
class FullWorkspace:
    """A workspace with everything its members may read (06 §4)."""

    id: str
    name: str = ""
    slug: str = ""
    description: str | None = None
    context: str | None = None
    settings: dict[str, Any] = attrs.field(factory=dict)
    repos: list[dict[str, Any]] = attrs.field(factory=list)
    issue_prefix: str = ""
    avatar_url: str | None = None
    created_at: str = ""
    updated_at: str = ""


@attrs.frozen(kw_only=True)
class Member:
    """One person in one workspace; `id` is the membership's, not the user's (06 §4)."""

    id: str
    workspace_id: str = ""
    user_id: str = ""
    role: str = "member"
    created_at: str = ""
    name: str = ""
    email: str = ""
    avatar_url: str | None = None


@attrs.frozen(kw_only=True)
class SkillSummary:
    id: str
    name: str = ""
    description: str = ""


@attrs.frozen(kw_only=True)
class Agent:
    """An agent as readers get it; which readers see `mcp_config` is the server's rule (06 §10.1).

    `runtime_config` is already masked.
    """

    id: str
    workspace_id: str = ""
    runtime_id: str = ""
    name: str = ""
    description: str = ""
    instructions: str = ""
    avatar_url: str | None = None
    runtime_mode: str = "local"
    runtime_config: dict[str, Any] = attrs.field(factory=dict)
    custom_args: list[str] = attrs.field(factory=list)
    mcp_config: Any = attrs.field(default=None, repr=False)
    mcp_config_redacted: bool = False
    has_custom_env: bool = False
    custom_env_key_count: int = 0
    visibility: str = "private"
    permission_mode: str = "private"
    invocation_targets: list[dict[str, str]] = attrs.field(factory=list)
    status: str = "offline"
    max_concurrent_tasks: int = 6
    model: str = ""
    thinking_level: str = ""
    owner_id: str | None = None
    skills: list[SkillSummary] = attrs.field(factory=list)
    created_at: str = ""
    updated_at: str = ""
    archived_at: str | None = None
    archived_by: str | None = None
    placed_under: str = omitted("")
    """Ours: whose machine it was when the agent was put there, if the machine has changed hands since."""
