"""Plans: what is registered for which programs and profiles, and how the answer is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from daemon.agents.contract import Program
from daemon.workspaces.programs import ProgramFinder
from daemon.workspaces.registration import Plan, dropped, plan_runtimes, runtimes_of
from shared import codec
from shared.wire.runtime import RegisterReply, RuntimeProfile
from tests.support.daemon_rig import CLAUDE, CODEX
from tests.support.fake_server import uid

pytestmark = pytest.mark.fast

FOUND = {"acme": "/usr/bin/acme", "/opt/acme": "/opt/acme"}


def _profile(**changes: Any) -> RuntimeProfile:
    values: dict[str, Any] = {
        "id": uid("p"),
        "display_name": "Acme",
        "protocol_family": "claude",
        "command_name": "acme",
        **changes,
    }
    return RuntimeProfile(**values)


def _plan(*profiles: RuntimeProfile, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "families": {"claude"},
        "device_name": "box",
        "overrides": {},
        "find": FOUND.get,
        **changes,
    }
    return plan_runtimes([CLAUDE], list(profiles), **values)


def _reply(*rows: dict[str, Any]) -> RegisterReply:
    return codec.structure({"runtimes": list(rows)}, RegisterReply)


def test_names_carry_the_device() -> None:
    assert [w.spec.name for w in _plan(_profile()).wanted] == ["Claude (box)", "Acme (box)"]
    bare = _plan(_profile(), device_name="").wanted
    assert [wanted.spec.name for wanted in bare] == ["Claude", "Acme"]


def test_a_profile_is_launched_with_its_own_command_and_arguments() -> None:
    _, custom = _plan(_profile(fixed_args=["--profile", "x"])).wanted
    assert custom.program == Program(
        provider="claude", path="/usr/bin/acme", args=("--profile", "x")
    )
    assert (custom.spec.type, custom.spec.version, custom.spec.profile_id) == (
        "claude",
        "",
        uid("p"),
    )


@pytest.mark.parametrize(
    "changes", [{"command_name": " "}, {"protocol_family": ""}, {"enabled": False}]
)
def test_blank_and_disabled_profiles_are_skipped(changes: dict[str, Any]) -> None:
    plan = _plan(_profile(**changes))
    assert len(plan.wanted) == 1
    assert plan.failed == ()


def test_a_profile_that_cannot_run_here_says_why() -> None:
    plan = _plan(
        _profile(id="1", command_name="missing"),
        _profile(id="2", protocol_family="Codex"),
        _profile(id="3", command_name="missing"),
        overrides={"3": "/no/where"},
    )
    assert [(failed.profile_id, failed.reason) for failed in plan.failed] == [
        ("1", "missing was not found on this machine"),
        ("2", "this daemon cannot run agents of the family 'codex'"),
        (
            "3",
            (
                "the path set for it, /no/where, is not an executable file; "
                "missing was not found on this machine"
            ),
        ),
    ]


def test_an_override_wins_and_a_broken_one_falls_back() -> None:
    [_, custom] = _plan(_profile(), overrides={uid("p"): "/opt/acme"}).wanted
    assert custom.program.path == "/opt/acme"
    [_, custom] = _plan(_profile(), overrides={uid("p"): "/no/where"}).wanted
    assert custom.program.path == "/usr/bin/acme"


def test_plans_are_equal_exactly_when_nothing_matters() -> None:
    assert _plan(_profile()) == _plan(_profile(description="else", updated_at="later"))
    for changes in (
        {"display_name": "New"},
        {"fixed_args": ["a"]},
        {"command_name": "/opt/acme"},
        {"enabled": False},
    ):
        assert _plan(_profile()) != _plan(_profile(**changes))
    assert _plan(_profile(fixed_args=["ab"])) != _plan(_profile(fixed_args=["a", "b"]))


def test_nothing_to_say_is_false() -> None:
    assert not Plan()
    assert _plan()
    only_failures = plan_runtimes(
        [],
        [_profile(command_name="x")],
        families={"claude"},
        device_name="",
        overrides={},
        find=FOUND.get,
    )
    assert only_failures.wanted == ()
    assert only_failures


def test_the_answer_is_matched_by_provider_or_profile() -> None:
    plan = _plan(_profile())
    rows = runtimes_of(
        "w",
        plan,
        _reply(
            {"id": "a", "provider": "Claude", "profile_id": None},
            {"id": "b", "provider": "claude", "profile_id": uid("p")},
            {"id": "c", "provider": "codex"},
        ),
    )
    assert [(row.id, row.workspace_id, row.program.path) for row in rows] == [
        ("a", "w", "/bin/claude"),
        ("b", "w", "/usr/bin/acme"),
    ]


def test_what_was_dropped() -> None:
    assert dropped(["b", "a", "c"], ["b"]) == ["a", "c"]
    assert dropped([], ["b"]) == []


# -- looking for programs


async def test_later_looks_spare_the_login_shell_and_keep_what_is_there() -> None:
    seen: list[dict[str, str]] = []
    present = {"/home/me/.local/bin/claude", "/usr/bin/codex"}
    answers = [
        [Program(provider="claude", path="/home/me/.local/bin/claude", version="2.1"), CODEX],
        [],  # both version probes failed
        [Program(provider="claude", path="/home/me/.local/bin/claude", version="2.2")],
        [],
    ]

    async def look(env: Any) -> list[Program]:
        seen.append(dict(env))
        return answers[len(seen) - 1]

    find = ProgramFinder(
        look, {"SHELL": "/bin/zsh", "PATH": "/usr/bin"}, is_runnable=lambda path: path in present
    )
    assert [p.provider for p in await find()] == ["claude", "codex"]
    assert [p.version for p in await find()] == ["2.1"], "codex' file is not there"
    assert [p.version for p in await find()] == ["2.2"]
    present.clear()
    assert await find() == []
    assert seen[0]["SHELL"] == "/bin/zsh"
    assert all("SHELL" not in env for env in seen[1:])
    assert "/home/me/.local/bin" in seen[1]["PATH"].split(":")


async def test_the_login_shell_is_asked_now_and_then(autojump_clock: MockClock) -> None:
    asked: list[float] = []

    async def look(env: Mapping[str, str]) -> list[Program]:
        await trio.lowlevel.checkpoint()
        if "SHELL" in env:
            asked.append(trio.current_time())
        return []

    find = ProgramFinder(look, {"PATH": "/bin", "SHELL": "/bin/bash"})
    for _ in range(130):
        await find()
        await trio.sleep(60)
    assert asked == [0, 3600, 7200]
    find.look_with(look)
    await find()
    assert len(asked) == 4, "changed settings may name other programs"
