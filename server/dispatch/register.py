"""Registration: a daemon says which agent programs its machine has, and gets their runtimes.

Woken by the register endpoint, in its transaction: all of it is registered or nothing, and an
earlier identity of the machine is merged whole or not at all (spec 01 §3.1, 02 §10.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from server.consequences import Consequence, Counted
from server.dispatch import events, machines
from server.dispatch.heartbeat import SQL
from server.errors import Conflict, DomainError, Foreign, Invalid, NotFound
from server.store.agents import runtime_of
from server.store.queries import Connection, Record
from server.store.tasks import Caller, seen
from shared import codec
from shared.addresses import join_address
from shared.ids import InvalidId, canonical_id
from shared.wire.runtime import (
    BEAT_MANY,
    CLAIM_MANY,
    MACHINE_REPORTS,
    OFFLINE,
    ONLINE,
    UNIQUE_ROWS,
    FailedProfile,
    RegisterReply,
    RegisterRequest,
    RuntimeSpec,
)
from shared.wire.task import Repo

_FAILED: Final = "the profile's command could not be started on this machine"


async def register(
    conn: Connection, request: RegisterRequest, *, caller: Caller, apart: bool = False
) -> tuple[RegisterReply, list[Consequence]]:
    """Register what the request lists.

    `apart`: the daemon asks for the passwords of repositories; else they stand in the addresses.
    Raises Invalid, NotFound("workspace not found"), Conflict, and Forbidden for a machine that is
    somebody else's (see `machines`).
    """
    daemon_id, workspace_id = _checked(request)
    try:
        workspace = await see_workspace(conn, workspace_id, caller)
    except Foreign:
        raise NotFound("workspace not found") from None
    device = request.device_name.strip()
    builtin = [spec for spec in request.runtimes if not spec.profile_id.strip()]
    custom = [spec for spec in request.runtimes if spec.profile_id.strip()]
    profiles: dict[str, Record] = {}
    if custom or request.failed_profiles:
        rows = await conn.fetch(SQL.profiles, workspace_id, True)
        profiles = {row["id"]: row for row in rows}

    found: dict[str, dict[str, Any]] = {}
    for spec in builtin:
        entry = _entry(spec, spec.type.strip().lower() or "unknown", device, request)
        found[entry["provider"]] = entry
    found_custom: dict[str, dict[str, Any]] = {}
    for spec in custom:
        profile = _profile(spec, profiles)
        entry = _entry(spec, profile["protocol_family"], device, request)
        found_custom[profile["id"]] = entry | {"profile_id": profile["id"]}
    failed: dict[str, dict[str, Any]] = {}
    for failure in request.failed_profiles:
        profile_id = _try_canonical(failure.profile_id)
        broken = profiles.get(profile_id)
        if broken is not None and broken["enabled"] and profile_id not in found_custom:
            failed[profile_id] = _failed_entry(failure, broken, device)

    owner_id, told = await machines.hold(
        conn,
        workspace_id,
        daemon_id,
        caller=caller,
        key=request.machine_key,
        may_take=request.take_over,
    )
    place = (workspace_id, daemon_id, owner_id)
    rows = []
    if found:
        rows += await conn.fetch(SQL.register, *place, list(found.values()))
    if by_profile := failed | found_custom:
        # Together, since everybody must lock the rows in the same order.
        known = await conn.fetch(SQL.register_profiles, *place, list(by_profile.values()))
        rows += [row for row in known if row["profile_id"] in found_custom]
    # A machine's token speaks for the one id it was made for.
    if request.legacy_daemon_ids and rows and caller.daemon_id is None:
        await _merge(conn, workspace_id, request.legacy_daemon_ids, [row["id"] for row in rows])

    runtimes = [runtime_of(row) for row in rows]
    repos = repos_of(workspace["repos"], {} if apart else workspace["credentials"])
    reply = RegisterReply(
        runtimes=runtimes,
        repos=repos,
        repos_version=repos_version(repos),
        settings=workspace["settings"],
        capabilities=[CLAIM_MANY, BEAT_MANY, UNIQUE_ROWS, MACHINE_REPORTS],
    )
    shown = events.runtimes_changed(workspace_id, runtimes=codec.unstructure(runtimes))
    ready = sum(row["status"] == ONLINE and row["was"] != ONLINE for row in rows)
    counted = [
        Counted("runtime_registered", sum(row["was"] is None for row in rows)),
        Counted("runtime_ready", ready),
        Counted("runtime_failed", len(failed)),
    ]
    return reply, [*told, shown, *counted]


async def deregister(
    conn: Connection, runtime_ids: list[str], *, caller: Caller
) -> list[Consequence]:
    """Mark runtimes offline; unknown and foreign ones are skipped."""
    rows = await conn.fetch(SQL.deregister, runtime_ids, *caller.args)
    told: list[Consequence] = [
        events.runtimes_changed(workspace_id, action="deregister")
        for workspace_id in sorted({row["workspace_id"] for row in rows})
    ]
    return [*told, Counted("runtime_offline", len(rows))]


async def see_workspace(conn: Connection, workspace_id: str, caller: Caller) -> Record:
    """Read a workspace's id, repos and settings. Raises NotFound, Foreign."""
    row = await conn.fetchrow(SQL.see_workspace, workspace_id, *caller.args)
    return seen(row, "workspace not found")


def repos_of(stored: Any, credentials: Mapping[str, str] | None = None) -> list[Repo]:
    """The workspace's repositories for a daemon: trimmed, no blanks, each once. Pure.

    `credentials` by address are put into the addresses, for a daemon that knows no other way.
    """
    repos: dict[str, Repo] = {}
    for item in stored if isinstance(stored, list) else []:
        url = item.get("url") if isinstance(item, Mapping) else None
        if isinstance(url, str) and url.strip():
            description = item.get("description")
            repos.setdefault(
                url.strip(),
                Repo(
                    url=join_address(url.strip(), (credentials or {}).get(url.strip(), "")),
                    description=description if isinstance(description, str) else "",
                    ref=ref if isinstance(ref := item.get("ref"), str) else "",
                ),
            )
    return list(repos.values())


def repos_version(repos: Iterable[Repo]) -> str:
    """Changes when the set of URLs does (spec 01 §3.1). Pure."""
    urls = sorted(repo.url.encode("utf-8", "replace") for repo in repos)
    return hashlib.sha256(b"\n".join(urls)).hexdigest()


def _checked(request: RegisterRequest) -> tuple[str, str]:
    daemon_id, workspace_id = request.daemon_id.strip(), request.workspace_id.strip()
    if not daemon_id:
        raise Invalid("daemon_id is required")
    if not workspace_id:
        raise Invalid("workspace_id is required")
    if not request.runtimes and not request.failed_profiles:
        raise Invalid("at least one runtime or failed profile is required")
    return daemon_id, _canonical(workspace_id, Invalid("invalid workspace_id"))


def _entry(
    spec: RuntimeSpec, provider: str, device: str, request: RegisterRequest
) -> dict[str, Any]:
    return {
        "name": spec.name.strip() or (f"{provider} ({device})" if device else provider),
        "provider": provider,
        "status": OFFLINE if spec.status == OFFLINE else ONLINE,
        "device_info": " · ".join(part for part in (device, spec.version.strip()) if part),
        "metadata": {
            "version": spec.version,
            "cli_version": request.cli_version,
            "launched_by": request.launched_by,
            **_isolation(request),
            **({"bullpen_version": request.bullpen_version} if request.bullpen_version else {}),
        },
    }


def _isolation(request: RegisterRequest) -> dict[str, str]:
    """What a daemon of ours says of its agents' isolation; a stock one says nothing."""
    told = {"isolation": request.isolation, "isolation_problem": request.isolation_problem[:600]}
    return {name: text for name, text in told.items() if text}


def _failed_entry(failure: FailedProfile, profile: Record, device: str) -> dict[str, Any]:
    name = profile["display_name"]
    return {
        "name": f"{name} ({device})" if device else name,
        "provider": profile["protocol_family"],
        "status": OFFLINE,
        "device_info": device,
        "metadata": {
            "runtime_profile_registration_error": True,
            "runtime_profile_failure_reason": failure.reason.strip() or _FAILED,
            "command_name": failure.command_name,
        },
        "profile_id": profile["id"],
    }


def _profile(spec: RuntimeSpec, profiles: Mapping[str, Record]) -> Record:
    profile_id = _canonical(spec.profile_id, Invalid("invalid profile_id"))
    profile = profiles.get(profile_id)
    if profile is None:
        raise Invalid(f"unknown runtime profile: {profile_id}")
    if not profile["enabled"]:
        raise Conflict(f"runtime profile is disabled: {profile_id}")
    return profile


async def _merge(
    conn: Connection, workspace_id: str, legacy_ids: Iterable[str], new_ids: list[str]
) -> None:
    """Earlier identities of the machine become the new rows: agents, tasks, then the old row.

    Only its owner's: an id proves nothing, so nobody else's agents come along.
    """
    rows = await conn.fetch(SQL.legacy, workspace_id, list(legacy_ids), new_ids)
    if not rows:
        return
    old = [row["id"] for row in rows]
    new = [row["new_id"] for row in rows]
    await conn.execute(SQL.hold_agents, old)
    await conn.execute(SQL.hold_tasks, old)
    await conn.execute(SQL.merge_agents, old, new)
    await conn.execute(SQL.merge_tasks, old, new)
    await conn.execute(SQL.merge_names, new, [row["daemon_id"] for row in rows])
    await conn.execute(SQL.delete_merged, old)
    await conn.execute(SQL.forget_merged, workspace_id, [row["daemon_id"] for row in rows])


def _canonical(text: str, error: DomainError) -> str:
    try:
        return canonical_id(text)
    except InvalidId:
        raise error from None


def _try_canonical(text: str) -> str:
    try:
        return canonical_id(text)
    except InvalidId:
        return ""
