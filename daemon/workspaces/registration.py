"""What to register in a workspace, and what the server's answer means. ◇

A plan holds everything the server is told and how each runtime is launched. Two equal plans need no
new registration, so comparing plans is the drift detection (spec 03 §8.4); a renamed profile
counts as a change, which the reference misses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import attrs

from daemon.agents.contract import Program
from daemon.config import Config
from daemon.identity import machine_proof
from daemon.runtimes.info import RuntimeInfo
from shared import __version__
from shared.version import PROTOCOL_VERSION
from shared.wire.runtime import (
    FailedProfile,
    RegisterReply,
    RegisterRequest,
    RuntimeProfile,
    RuntimeSpec,
)

Find = Callable[[str], str | None]
"""Resolve a command name or an absolute path to an executable's path."""


@attrs.frozen(kw_only=True)
class Wanted:
    """One runtime to register, and the program that runs its tasks."""

    spec: RuntimeSpec
    program: Program

    @property
    def key(self) -> tuple[str, str]:
        return _key(self.spec.type, self.spec.profile_id)


@attrs.frozen(kw_only=True)
class Plan:
    """What a workspace should have registered."""

    wanted: tuple[Wanted, ...] = ()
    failed: tuple[FailedProfile, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to tell the server; an empty registration is refused."""
        return bool(self.wanted or self.failed)


def plan_runtimes(
    programs: Sequence[Program],
    profiles: Sequence[RuntimeProfile],
    *,
    families: Collection[str],
    device_name: str,
    overrides: Mapping[str, str],
    find: Find,
) -> Plan:
    """Decide what to register: every program found, and every runtime profile usable here.

    `families` are the protocol families this daemon can drive for custom profiles. A profile that
    cannot be launched is reported with its reason; one that is blank is skipped (spec 03 §8.3).
    """
    wanted = [
        Wanted(
            spec=RuntimeSpec(
                name=_named(program.provider[:1].upper() + program.provider[1:], device_name),
                type=program.provider,
                version=program.version,
            ),
            program=program,
        )
        for program in programs
    ]
    failed = []
    for profile in profiles:
        command, family = profile.command_name.strip(), profile.protocol_family.strip().lower()
        if not command or not family or not profile.enabled:
            continue
        path, reason = _locate(profile.id, command, overrides, find)
        if family not in families:
            path, reason = None, f"this daemon cannot run agents of the family {family!r}"
        if path is None:
            failed.append(FailedProfile(profile_id=profile.id, command_name=command, reason=reason))
            continue
        wanted.append(
            Wanted(
                spec=RuntimeSpec(
                    name=_named(profile.display_name or command, device_name),
                    type=family,
                    profile_id=profile.id,
                ),
                program=Program(provider=family, path=path, args=tuple(profile.fixed_args)),
            )
        )
    return Plan(wanted=tuple(wanted), failed=tuple(failed))


def custom_paths(plan: Plan) -> frozenset[str]:
    """Where the programs of runtime profiles are; discovery has not asked those for a version."""
    return frozenset(one.program.path for one in plan.wanted if one.spec.profile_id)


def with_versions(plan: Plan, versions: Mapping[str, str]) -> Plan:
    """The plan with the versions of custom programs, by path; an empty one is allowed."""
    wanted = [
        attrs.evolve(
            one,
            spec=attrs.evolve(one.spec, version=versions.get(one.program.path, "")),
            program=attrs.evolve(one.program, version=versions.get(one.program.path, "")),
        )
        if one.spec.profile_id
        else one
        for one in plan.wanted
    ]
    return attrs.evolve(plan, wanted=tuple(wanted))


def registration(
    config: Config, workspace_id: str, plan: Plan, *, take_over: bool = False
) -> RegisterRequest:
    """Write the plan as the request of spec 01 §3.1, with the machine's proof of who it is.

    `take_over`: the daemon has not registered under this account yet, so if the machine was somebody
    else's, whoever signed in here wants it.
    """
    proof = ""
    if config.machine_key:
        proof = machine_proof(
            config.machine_key, server_url=config.server_url, workspace_id=workspace_id
        )
    return RegisterRequest(
        workspace_id=workspace_id,
        daemon_id=config.daemon_id,
        legacy_daemon_ids=list(config.legacy_daemon_ids),
        device_name=config.device_name,
        cli_version=PROTOCOL_VERSION,
        bullpen_version=__version__,
        launched_by=config.launched_by,
        runtimes=[wanted.spec for wanted in plan.wanted],
        failed_profiles=list(plan.failed),
        machine_key=proof,
        take_over=take_over,
    )


def runtimes_of(workspace_id: str, plan: Plan, reply: RegisterReply) -> tuple[RuntimeInfo, ...]:
    """Read the answer: it is authoritative, but only for runtimes this plan can launch."""
    programs = {wanted.key: wanted.program for wanted in plan.wanted}
    return tuple(
        RuntimeInfo(
            id=row.id,
            workspace_id=workspace_id,
            provider=row.provider,
            program=programs[key],
            profile_id=row.profile_id or "",
        )
        for row in reply.runtimes
        if (key := _key(row.provider, row.profile_id or "")) in programs
    )


def dropped(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """The runtime ids to deregister: registered before, not in the new answer."""
    return sorted(set(before) - set(after))


def _key(provider: str, profile_id: str) -> tuple[str, str]:
    """Built-in runtimes are told apart by provider, custom ones by profile alone."""
    return ("", profile_id) if profile_id else (provider.strip().lower(), "")


def _named(name: str, device_name: str) -> str:
    return f"{name} ({device_name})" if device_name else name


def _locate(
    profile_id: str, command: str, overrides: Mapping[str, str], find: Find
) -> tuple[str | None, str]:
    """The executable of a profile, or why there is none: this machine's override, then PATH."""
    reasons = []
    override = overrides.get(profile_id)
    if override is not None:
        path = find(override)
        if path is not None:
            return path, ""
        reasons.append(f"the path set for it, {override}, is not an executable file")
    path = find(command)
    if path is None:
        reasons.append(f"{command} was not found on this machine")
    return path, "; ".join(reasons)
