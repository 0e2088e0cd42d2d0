"""Requests that come with heartbeats: each answered once, honestly, whatever happens around."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.runtimes.actions import plan_actions
from shared import codec
from shared.wire.runtime import Beat
from tests.support.daemon_rig import open_rig
from tests.support.fake_server import open_fake_server
from tests.support.network import Fault, answer

pytestmark = pytest.mark.fast

EVERYTHING: dict[str, Any] = {
    "pending_update": {"id": "u", "target_version": "v9.9.9"},
    "pending_model_list": {"id": "m"},
    "pending_local_skills": {"id": "s"},
    "pending_local_skill_import": {"id": "i1", "skill_key": "a"},
    "pending_local_skill_imports": [
        {"id": "i1", "skill_key": "a"},
        {"id": "i2", "skill_key": "b"},
    ],
}
RESULT = "POST /api/daemon/runtimes/.*/result"


def _paths(told: dict[str, Any]) -> list[str]:
    return [action.path for action in plan_actions("r", codec.structure(told, Beat))]


def test_the_plural_imports_win() -> None:
    assert _paths(EVERYTHING) == [
        "update/u",
        "models/m",
        "local-skills/s",
        "local-skills/import/i1",
        "local-skills/import/i2",
    ]
    single = {"pending_local_skill_import": {"id": "i1", "skill_key": "a"}}
    assert _paths(single) == ["local-skills/import/i1"]
    assert _paths({"status": "ok"}) == []


@pytest.mark.parametrize("refused", [None, 503])
async def test_what_is_not_built_is_refused_in_words(
    autojump_clock: MockClock, tmp_path: Path, refused: int | None
) -> None:
    """Over the websocket and over HTTP alike."""
    async with open_fake_server() as server:
        server.refuse_sockets = refused
        async with open_rig(server, tmp_path) as rig:
            await rig.until_running()
            server.pending[server.runtime_id("claude")] = dict(EVERYTHING)
            await rig.until(lambda: len(server.results) == 5, within=31)
            await trio.sleep(1)
            for key, told in server.results.items():
                assert told["status"] == "failed"
                why = "cannot change its version" if "u" in key else "not supported yet"
                assert why in told["error"]
            await trio.sleep(100)
            assert server.count(RESULT) == 6, "handed out once, answered once; an update says more"


@pytest.mark.parametrize(
    ("fault", "waits"),
    [(answer(500), [0.5, 2, 4]), (answer(404), []), (answer(408), []), (answer(429), [])],
)
async def test_reports_are_repeated_only_for_the_servers_fault(
    autojump_clock: MockClock, tmp_path: Path, fault: Fault, waits: list[float]
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        server.fail_always(RESULT, fault)
        server.pending[server.runtime_id("claude")] = {"pending_model_list": {"id": "m"}}
        await trio.sleep(60)
        assert [b - a for a, b in pairwise(server.times(RESULT))] == pytest.approx(waits)


async def test_a_flood_is_bounded_and_does_not_stop_the_beats(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        server.fail_always(RESULT, answer(500))
        imports = [{"id": f"i{n}", "skill_key": "k"} for n in range(200)]
        server.pending[server.runtime_id("claude")] = {"pending_local_skill_imports": imports}
        await trio.sleep(300)
        assert len({call.path for call in server.requests(RESULT)}) <= 64 + 4
        assert server.count("POST /api/daemon/heartbeat") == 0
