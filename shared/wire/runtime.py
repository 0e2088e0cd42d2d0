"""Registration, heartbeats and runtimes as they travel (spec 01 §3.1 to §3.4, §3.16 to §3.19)."""

from __future__ import annotations

from typing import Any, Final

import attrs

from shared.codec import omitted
from shared.wire.task import Repo

ONLINE: Final = "online"
OFFLINE: Final = "offline"

SKILL_BUNDLES: Final = "skill-bundles-v1"
REPOSITORY_ACCESS: Final = "repository-access-v1"
"""Ours: a daemon that takes the passwords of repositories apart from their addresses."""
"""Capability named in `X-Client-Capabilities` by daemons that resolve skills by hash."""


CLAIM_MANY: Final = "claim-many-v1"
BEAT_MANY: Final = "beat-many-v1"
UNIQUE_ROWS: Final = "unique-rows-v1"
MACHINE_REPORTS: Final = "machine-reports-v1"
"""Ours: what a server may offer daemons beyond the protocol, in its answer to a registration: claims
for many runtimes in one call, one frame for the beats of many (`frame.heartbeats`), transcripts
that keep one row for each number, so that a batch may be sent again, and calls that tell what a machine
has used by its programs' own logs, and that the agent of a cancelled task has stopped."""


@attrs.frozen(kw_only=True)
class RuntimeSpec:
    """An agent program found on a machine, as the daemon registers it."""

    name: str = ""
    type: str = ""
    version: str = ""
    status: str = ONLINE
    profile_id: str = omitted("")


@attrs.frozen(kw_only=True)
class FailedProfile:
    profile_id: str = ""
    command_name: str = ""
    reason: str = ""


@attrs.frozen(kw_only=True)
class RegisterRequest:
    """`isolation` (ours) names how agents are isolated; `isolation_problem` says why they are not."""

    workspace_id: str = ""
    daemon_id: str = ""
    legacy_daemon_ids: list[str] = attrs.field(factory=list)
    device_name: str = ""
    cli_version: str = ""
    bullpen_version: str = omitted("")
    """Ours: what the daemon is, where `cli_version` says which protocol it speaks."""
    launched_by: str = ""
    isolation: str = omitted("")
    isolation_problem: str = omitted("")
    runtimes: list[RuntimeSpec] = attrs.field(factory=list)
    failed_profiles: list[FailedProfile] = attrs.field(factory=list)
    machine_key: str = omitted("")
    """Ours: what proves that it is the machine that registered before, whoever is signed in there."""
    take_over: bool = omitted(False)
    """Ours: the daemon was started under this account; a machine that proves itself becomes theirs."""


@attrs.frozen(kw_only=True)
class Runtime:
    """A runtime as every endpoint shows it (spec 01 §3.1, 06 §17)."""

    id: str
    workspace_id: str = ""
    daemon_id: str | None = None
    name: str = ""
    custom_name: str | None = omitted(None)
    runtime_mode: str = "local"
    provider: str = ""
    launch_header: str = ""
    status: str = OFFLINE
    device_info: str = ""
    metadata: dict[str, Any] = attrs.field(factory=dict)
    owner_id: str | None = None
    visibility: str = "private"
    profile_id: str | None = None
    last_seen_at: str | None = None
    created_at: str = ""
    updated_at: str = ""


@attrs.frozen(kw_only=True)
class RegisterReply:
    runtimes: list[Runtime] = attrs.field(factory=list)
    repos: list[Repo] = attrs.field(factory=list)
    repos_version: str = ""
    settings: dict[str, Any] | None = None
    capabilities: list[str] = omitted(factory=list)


@attrs.frozen(kw_only=True)
class DeregisterRequest:
    runtime_ids: list[str] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class DayUsage:
    """What one program has used of one model on one day of the machine's calendar."""

    date: str
    provider: str = ""
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


@attrs.frozen(kw_only=True)
class UsageReport:
    entries: list[DayUsage]


@attrs.frozen(kw_only=True)
class ReposReply:
    workspace_id: str = ""
    repos: list[Repo] = attrs.field(factory=list)
    repos_version: str = ""
    settings: dict[str, Any] | None = omitted(None)
    credentials: dict[str, str] = attrs.field(
        factory=dict, repr=False, metadata=omitted(factory=dict).metadata
    )
    """Ours, for daemons that say `repository-access-v1`: what stood before the host, by address."""


@attrs.frozen(kw_only=True)
class RuntimeProfile:
    """A workspace's own command that speaks a known protocol family."""

    id: str
    workspace_id: str = ""
    display_name: str = ""
    protocol_family: str = ""
    command_name: str = ""
    description: str | None = None
    fixed_args: list[str] = attrs.field(factory=list)
    visibility: str = "workspace"
    created_by: str | None = None
    enabled: bool = True
    created_at: str = ""
    updated_at: str = ""


@attrs.frozen(kw_only=True)
class ProfilesReply:
    workspace_id: str = ""
    runtime_profiles: list[RuntimeProfile] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class HeartbeatRequest:
    runtime_id: str = ""
    supports_batch_import: bool = omitted(False)


@attrs.frozen(kw_only=True)
class PendingUpdate:
    id: str
    target_version: str = ""


@attrs.frozen(kw_only=True)
class PendingRequest:
    id: str


@attrs.frozen(kw_only=True)
class PendingImport:
    id: str
    skill_key: str = ""


@attrs.frozen(kw_only=True)
class FeatureFlags:
    version: int = 1
    flags: dict[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Beat:
    """A heartbeat's answer: the HTTP body, and with `runtime_id` the websocket ack's payload."""

    runtime_id: str = omitted("")
    status: str = "ok"
    runtime_gone: bool = omitted(False)
    pending_update: PendingUpdate | None = omitted(None)
    pending_model_list: PendingRequest | None = omitted(None)
    pending_local_skills: PendingRequest | None = omitted(None)
    pending_local_skill_import: PendingImport | None = omitted(None)
    pending_local_skill_imports: list[PendingImport] = omitted(factory=list)
    pending_ping: PendingRequest | None = omitted(None)
    """Ours: run the agent once with one word, and tell how it went."""
    feature_flags: FeatureFlags | None = omitted(None)


@attrs.frozen(kw_only=True)
class Workspace:
    """What the daemon and the command line read of a workspace (spec 01 §3.20)."""

    id: str
    name: str = ""
    slug: str = ""
