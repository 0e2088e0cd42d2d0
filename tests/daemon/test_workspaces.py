"""Workspaces: registration, drift, vanished runtimes, joining and leaving, with exact counts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.agents.contract import Program
from daemon.app import Health, Parts, Stop, be_present
from daemon.client import Client
from daemon.identity import machine_proof
from daemon.tasks.task import Job
from daemon.workspaces.sync import SignInRefused
from tests.support.daemon_rig import CLAUDE, CODEX, DEMO, open_rig, run_at_once
from tests.support.fake_server import WORKSPACE, client_of, make_config, open_fake_server, uid
from tests.support.network import HANG, LOSE_RESPONSE, REFUSE, answer

pytestmark = pytest.mark.fast

REGISTER = "POST /api/daemon/register"
PROFILES = "GET /api/daemon/workspaces/.*/runtime-profiles"
ALL = (CLAUDE, CODEX, DEMO)


def _profile(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": uid(name),
        "workspace_id": WORKSPACE,
        "display_name": name,
        "protocol_family": "claude",
        "command_name": "sh",
        "fixed_args": [],
        "visibility": "workspace",
        "enabled": True,
        **changes,
    }


async def test_registration_says_what_is_here(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await rig.until_running()
        [call] = server.requests(REGISTER)
        assert call.body["workspace_id"] == WORKSPACE
        assert call.body["daemon_id"] == rig.config.daemon_id
        assert call.body["device_name"] == "box"
        assert call.body["failed_profiles"] == []
        assert call.body["runtimes"][0] == {
            "name": "Claude (box)",
            "type": "claude",
            "version": "2.1.0",
            "status": "online",
        }
        told = rig.health.tell()
        assert told["agents"] == ["claude", "codex", "demo"]
        assert told["workspaces"] == [{"id": WORKSPACE, "runtimes": sorted(server.runtimes)}]
        await rig.until(lambda: len(server.recovered) == 3)
        assert sorted(server.recovered) == sorted(server.runtimes)


async def test_the_machine_proves_itself_and_takes_over_only_at_its_start(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        lost = server.runtime_id("claude")
        server.delete_runtime(lost)
        server.wake(lost)
        await rig.until(lambda: server.count(REGISTER) == 2)
        first, again = (call.body for call in server.requests(REGISTER))
        config = rig.config
        proof = machine_proof(
            config.machine_key, server_url=config.server_url, workspace_id=WORKSPACE
        )
        assert first["machine_key"] == again["machine_key"] == proof
        assert config.machine_key not in str(first)
        assert first["take_over"] is True
        assert "take_over" not in again, "a machine handed over is not taken back by its old daemon"


async def test_a_machine_of_somebody_elses_says_so(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        why = "this machine belongs to Dana: ask Dana"
        server.fail_always(REGISTER, answer(403, f'{{"error":"{why}"}}'))
        await rig.until(lambda: why in rig.health.tell().get("problem", ""))
        server.fail_always(REGISTER, None)
        await rig.until(lambda: "problem" not in rig.health.tell())


async def test_nothing_changed_is_nothing_done(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await rig.until_running()
        await trio.sleep(3600)
        assert server.count(REGISTER) == 1
        assert len(server.recovered) == 3
        assert len(server.handshakes) == 1
        assert 115 <= server.count("GET /api/workspaces") <= 121
        assert server.deregistered == []


async def test_three_gone_at_once_are_one_registration(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await rig.until_running()
        await trio.sleep(100)
        old = set(server.runtimes)
        for runtime_id in old:
            server.delete_runtime(runtime_id)
        for runtime_id in old:
            server.wake(runtime_id)  # all three claim now, and all three are told they are gone
        began = trio.current_time()
        await rig.until(lambda: len(server.runtimes) == 3)
        assert trio.current_time() - began < 0.1
        await trio.sleep(100)
        assert server.count(REGISTER) == 2
        assert not old & set(server.runtimes)
        assert sorted(server.recovered[3:]) == sorted(server.runtimes)
        told = rig.health.tell()["workspaces"]
        assert told == [{"id": WORKSPACE, "runtimes": sorted(server.runtimes)}]


async def test_two_losses_one_after_the_other_are_two_registrations(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await rig.until_running()
        await trio.sleep(100)
        for expected in (2, 3):
            lost = server.runtime_id("claude")
            server.delete_runtime(lost)
            server.wake(lost)
            began = trio.current_time()
            await rig.until(lambda: len(server.runtimes) == 3)
            assert trio.current_time() - began < 0.1, "no coalescing window after a success"
            assert server.count(REGISTER) == expected


async def test_a_sibling_goes_on_undisturbed(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await rig.until_running()
        await trio.sleep(100)
        sibling, lost = server.runtime_id("codex"), server.runtime_id("claude")
        claims = server.times(f"POST /api/daemon/runtimes/{sibling}/tasks/claim")
        server.delete_runtime(lost)
        server.wake(lost)
        await trio.sleep(100)
        assert server.runtime_id("codex") == sibling
        assert server.recovered.count(sibling) == 1, "its orphans are not recovered again"
        later = server.times(f"POST /api/daemon/runtimes/{sibling}/tasks/claim")
        assert len(claims) + 3 <= len(later) <= len(claims) + 5, "one poller, one wake-up"


async def test_a_failed_recovery_is_repeated_until_it_works(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await rig.until_running()
        await trio.sleep(100)
        server.fail_next(REGISTER, answer(500), REFUSE, answer(500))
        lost = server.runtime_id("claude")
        server.delete_runtime(lost)
        server.wake(lost)
        began = trio.current_time()
        await trio.sleep(0.5)
        other = server.runtime_id("codex")
        server.delete_runtime(other)
        server.wake(other)  # a second loss while the first is being repaired
        await trio.sleep(0.2)
        assert server.count(REGISTER) == 2, "it does not cut the back-off short"
        assert len(rig.health.tell()["workspaces"][0]["runtimes"]) == 1
        await rig.until(lambda: len(server.runtimes) == 3)
        _, *times = server.times(REGISTER)
        waits = [later - earlier for earlier, later in pairwise(times)]
        assert waits == pytest.approx([1, 2, 4], rel=0.21)
        assert trio.current_time() - began < 9
        await trio.sleep(100)
        assert server.count(REGISTER) == 5


async def test_a_server_that_loses_what_it_registers_is_not_asked_without_end(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Three repairs at once, then each waits until the first of them is 30 s old."""
    async with open_fake_server() as server, open_rig(server, tmp_path, programs=ALL) as rig:
        await rig.until_running()
        await trio.sleep(100)
        began = trio.current_time()
        server.fail_always(".*/claim", answer(404, '{"error":"runtime not found"}'))
        server.wake(server.runtime_id("claude"))
        await trio.sleep(95)
        server.fail_always(".*/claim", None)
        times = [at - began for at in server.times(REGISTER) if at >= began]
        assert 3 <= len(times) <= 12
        for first, fourth in zip(times, times[3:], strict=False):
            assert fourth - first >= 29.9
        task = server.add_task(server.runtime_id("claude"))
        await rig.until(lambda: task.status == "completed", within=62)


async def test_the_back_off_of_registrations_ends_at_60_s(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.fail_always(REGISTER, answer(500))
        async with open_rig(server, tmp_path) as rig:
            await rig.until_running()
            await trio.sleep(500)
            waits = [later - earlier for earlier, later in pairwise(server.times(REGISTER))]
            for wait, plain in zip(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60], strict=False):
                assert plain * 0.8 <= wait <= plain * 1.2
            assert len(waits) >= 9
            server.fail_always(REGISTER, None)
            await rig.until(lambda: server.runtimes, within=72.5)
            lost = server.runtime_id("claude")
            await trio.sleep(40)
            server.fail_next(REGISTER, answer(500))
            server.delete_runtime(lost)
            server.wake(lost)
            await rig.until(lambda: server.runtimes, within=1.5)  # it starts afresh


async def test_lists_are_asked_for_every_30_s_and_given_15_s(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(100)
        times = server.times("GET /api/workspaces")
        assert [b - a for a, b in pairwise(times)] == pytest.approx([30.0] * (len(times) - 1))
        assert len(times) == 4
        server.fail_always("GET /api/workspaces", HANG)
        await trio.sleep(120)
        times = server.times("GET /api/workspaces")[4:]
        assert [b - a for a, b in pairwise(times)] == pytest.approx([45.0] * (len(times) - 1))
        assert "no answer within 15 s" in rig.health.tell()["problem"]
        server.fail_always("GET /api/workspaces", None)


async def test_profiles_that_do_not_come_hold_up_a_registration_for_30_s(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.fail_next(PROFILES, HANG)
        async with open_rig(server, tmp_path) as rig:
            await rig.until_running()
            assert server.times(REGISTER) == [30.0]


async def test_programs_are_looked_for_every_minute(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        rig.programs.append(CODEX)
        await rig.until(lambda: len(server.runtimes) == 2)
        assert server.times(REGISTER)[-1] == 60.0


async def test_gone_is_heard_over_every_way(autojump_clock: MockClock, tmp_path: Path) -> None:
    """By websocket beat, within an interval; without websocket by HTTP beat."""
    for refused in (None, 503):
        async with open_fake_server() as server:
            server.refuse_sockets = refused
            async with open_rig(server, tmp_path, poll_interval=3600.0) as rig:
                await rig.until_running()
                await trio.sleep(100)
                began, lost = trio.current_time(), server.runtime_id("claude")
                claims = server.count(f".*/{lost}/tasks/claim")
                server.delete_runtime(lost)
                await rig.until(lambda: len(server.runtimes) == 1)
                assert trio.current_time() - began < 15.6
                assert server.count(f".*/{lost}/tasks/claim") == claims, "no claim noticed it"


async def test_a_gone_answer_with_the_same_id_starts_anew(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The server says gone once, and then has the row after all: the runtime works on."""
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(100)
        runtime_id = server.runtime_id("claude")
        server.fail_next(".*/claim", answer(404, '{"error":"runtime not found"}'))
        server.wake(runtime_id)
        await rig.until(lambda: server.count(REGISTER) == 2)
        task = server.add_task(runtime_id)
        await rig.until(lambda: task.status == "completed", within=31)
        task = server.add_task(runtime_id)
        server.wake(runtime_id)
        await rig.until(lambda: task.status == "completed", within=0.1)


async def test_a_changed_profile_is_registered_and_an_old_one_dropped(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        built_in = server.runtime_id("claude")
        server.profiles[WORKSPACE] = [_profile("House"), _profile("Ghost", command_name="no-such")]
        await rig.until(lambda: len(server.runtimes) == 2, within=31)
        body = server.requests(REGISTER)[-1].body
        assert body["runtimes"][1] == {
            "name": "House (box)",
            "type": "claude",
            "version": "",
            "status": "online",
            "profile_id": uid("House"),
        }
        assert body["failed_profiles"] == [
            {
                "profile_id": uid("Ghost"),
                "command_name": "no-such",
                "reason": "no-such was not found on this machine",
            }
        ]
        await trio.sleep(5)
        recovered = list(server.recovered)
        [custom] = [row["id"] for row in server.runtimes.values() if row["profile_id"]]
        server.profiles[WORKSPACE] = []
        await server.push("daemon:runtime_profiles_changed", {"workspace_id": WORKSPACE})
        await rig.until(lambda: server.deregistered, within=0.1)
        assert [ids for _, ids in server.deregistered] == [(custom,)]
        assert rig.health.tell()["workspaces"][0]["runtimes"] == [built_in]
        await trio.sleep(100)
        assert server.recovered == recovered, "surviving runtimes may be at work"


async def test_custom_programs_tell_their_versions_and_a_new_one_is_drift(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    versions = {"/bin/sh": "acme 1.0"}
    asked: list[str] = []

    async def ask(path: str) -> str:
        asked.append(path)
        await trio.sleep(1)  # they are asked all at once
        return versions.get(path, "")

    async with open_fake_server() as server:
        server.profiles[WORKSPACE] = [
            _profile("House", command_name="/bin/sh"),
            _profile("Twin", command_name="/bin/sh", fixed_args=["-x"]),
            _profile("Mute", command_name="/bin/cat", protocol_family="codex"),
            _profile("Off", enabled=False),
        ]
        async with open_rig(server, tmp_path, ask_version=ask) as rig:
            await rig.until_running()
            assert server.times(REGISTER) == [1.0]
            rows = server.requests(REGISTER)[-1].body["runtimes"]
            told = {row["name"]: (row["type"], row["version"]) for row in rows}
            assert told == {
                "Claude (box)": ("claude", "2.1.0"),
                "House (box)": ("claude", "acme 1.0"),
                "Twin (box)": ("claude", "acme 1.0"),
                "Mute (box)": ("codex", ""),
            }
            assert sorted(asked) == ["/bin/cat", "/bin/sh"], "once for each program"
            versions["/bin/sh"] = "acme 1.1"
            await rig.until(lambda: server.count(REGISTER) == 2, within=32)
            await trio.sleep(100)
            assert server.count(REGISTER) == 2


async def test_an_override_decides_which_program_a_profile_runs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The task is given the program with the profile's arguments; a later change reaches it too."""
    ran: list[Program] = []

    async def run(client: Client, job: Job, shutdown: trio.CancelScope) -> None:
        ran.append(job.runtime.program)
        await run_at_once(client, job, shutdown)

    async with open_fake_server() as server:
        server.profiles[WORKSPACE] = [_profile("House", fixed_args=["--team", "a b"])]
        overrides = {uid("House"): "/bin/cat"}
        async with open_rig(
            server, tmp_path, run_job=run, profile_command_overrides=overrides
        ) as rig:
            await rig.until_running()
            [custom] = [row["id"] for row in server.runtimes.values() if row["profile_id"]]
            task = server.add_task(custom)
            await rig.until(lambda: task.status == "completed", within=31)
            server.profiles[WORKSPACE] = [_profile("House", fixed_args=["--team", "c"])]
            await server.push("daemon:runtime_profiles_changed", {"workspace_id": WORKSPACE})
            await rig.until(lambda: server.count(REGISTER) == 2, within=0.1)
            task = server.add_task(custom)
            await rig.until(lambda: task.status == "completed", within=31)
    assert [(program.path, program.args) for program in ran] == [
        ("/bin/cat", ("--team", "a b")),
        ("/bin/cat", ("--team", "c")),
    ]


async def test_a_rename_and_arguments_count_as_drift(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.profiles[WORKSPACE] = [_profile("House", fixed_args=["ab"])]
        async with open_rig(server, tmp_path) as rig:
            await rig.until_running()
            server.profiles[WORKSPACE] = [_profile("House", fixed_args=["a", "b"])]
            await rig.until(lambda: server.count(REGISTER) == 2, within=31)
            server.profiles[WORKSPACE] = [_profile("House", fixed_args=["a", "b"])]
            server.profiles[WORKSPACE][0]["display_name"] = "Home"
            await rig.until(lambda: server.count(REGISTER) == 3, within=31)
            await trio.sleep(300)
            assert server.count(REGISTER) == 3


async def test_profiles_that_cannot_be_fetched_stay_what_they_were(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.fail_always(PROFILES, answer(404, "404 page not found"))
        async with open_rig(server, tmp_path) as rig:
            await rig.until_running()
            assert len(server.runtimes) == 1, "an older server has no profiles"
            server.fail_always(PROFILES, None)
            server.profiles[WORKSPACE] = [_profile("House")]
            await rig.until(lambda: len(server.runtimes) == 2, within=31)
            server.fail_always(PROFILES, answer(500))
            await trio.sleep(300)
            assert server.count(REGISTER) == 2
            assert server.deregistered == []


async def test_converging_to_nothing_is_quiet(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        [runtime_id] = server.runtimes
        rig.programs.clear()
        await rig.until(lambda: server.deregistered, within=331)
        assert server.deregistered[0][1] == (runtime_id,)
        assert rig.health.tell()["workspaces"] == [{"id": WORKSPACE, "runtimes": []}]
        assert "no agent program" in rig.health.tell()["problem"]
        await trio.sleep(3600)
        assert server.count(REGISTER) == 1
        rig.programs.append(CODEX)  # installed while the daemon runs
        await rig.until(lambda: server.count(REGISTER) == 2, within=331)
        assert "problem" not in rig.health.tell()


async def test_workspaces_come_and_go(autojump_clock: MockClock, tmp_path: Path) -> None:
    other = uid("other")
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        server.workspaces[other] = "Other"
        await rig.until(lambda: len(server.runtimes) == 2, within=31)
        theirs = server.runtime_id("claude", other)
        task = server.add_task(theirs)
        server.wake(theirs)
        await rig.until(lambda: task.status == "completed", within=31)
        del server.workspaces[other]
        await rig.until(lambda: len(rig.health.tell()["workspaces"]) == 1, within=31)
        await trio.sleep(1)
        claims = server.count(f"POST /api/daemon/runtimes/{theirs}/tasks/claim")
        beats = len([beat for beat in server.beats if beat[1] == theirs])
        await trio.sleep(300)
        assert server.count(f"POST /api/daemon/runtimes/{theirs}/tasks/claim") == claims
        assert len([beat for beat in server.beats if beat[1] == theirs]) == beats


async def test_a_failed_list_changes_nothing(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        for fault in (answer(500), answer(401), REFUSE):
            server.fail_always("GET /api/workspaces", fault)
            await rig.until(lambda: rig.health.tell().get("problem"), within=31)
            await trio.sleep(100)
            assert rig.health.tell()["status"] == "running"
            assert len(rig.health.tell()["workspaces"][0]["runtimes"]) == 1
            server.fail_always("GET /api/workspaces", None)
            await rig.until(lambda: "problem" not in rig.health.tell(), within=31)
        assert server.count(REGISTER) == 1


async def test_a_server_that_is_away_at_the_start_is_waited_for(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.fail_always(".*", REFUSE)
        server.refuse_sockets = 503
        async with open_rig(server, tmp_path) as rig:
            await trio.sleep(300)
            told = rig.health.tell()
            assert told["status"] == "starting"
            assert "connection refused" in told["problem"]
            assert server.count(REGISTER) == 0
            server.fail_always(".*", None)
            await rig.until(lambda: rig.health.tell()["status"] == "running", within=36.5)
            assert "problem" not in rig.health.tell()


async def test_a_refused_sign_in_ends_the_start(autojump_clock: MockClock, tmp_path: Path) -> None:
    config = make_config(tmp_path)
    async with open_fake_server() as server, client_of(server, config) as client:
        server.fail_always(".*", answer(401, '{"error":"invalid token"}'))

        async def discover() -> list[Any]:
            return []

        parts = Parts(discover=discover, connect=server.connect)
        with pytest.RaisesGroup(SignInRefused, flatten_subgroups=True):
            await be_present(config, client, parts, stop=Stop(), health=Health(config))


async def test_a_workspace_that_cannot_be_registered_does_not_hold_up_the_others(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.workspaces[uid("other")] = "Other"
        server.fail_next(REGISTER, answer(500))
        async with open_rig(server, tmp_path) as rig:
            await rig.until(lambda: rig.health.status == "running", within=0.1)
            assert len(server.runtimes) == 1
            await rig.until(lambda: len(server.runtimes) == 2, within=2)


async def test_an_empty_registration_is_an_error_and_repeated(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.fail_next(REGISTER, answer(200, '{"runtimes":[],"repos":[],"repos_version":""}'))
        async with open_rig(server, tmp_path) as rig:
            await rig.until(lambda: len(server.runtimes) == 1, within=2)
            assert server.count(REGISTER) == 2


async def test_a_lost_registration_answer_registers_nothing_twice(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        server.fail_next(REGISTER, LOSE_RESPONSE)
        async with open_rig(server, tmp_path, programs=ALL) as rig:
            await rig.until(lambda: server.count(REGISTER) == 2, within=2)
            await trio.sleep(1)
            assert len(server.runtimes) == 3
            assert len(server.recovered) == 3
