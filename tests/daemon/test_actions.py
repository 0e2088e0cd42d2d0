"""Requests that come with heartbeats: each answered once, honestly, whatever happens around."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from daemon.agents.contract import AgentError, Program
from daemon.agents.local_skills import ImportedFile, ImportedSkill, LocalSkill, SkillError
from daemon.agents.models_catalogue import Model, thinking_of
from daemon.runtimes.abilities import Abilities, Unable, Updated, unable
from daemon.runtimes.actions import plan_actions
from shared import codec
from shared.wire.runtime import Beat
from tests.support.daemon_rig import CLAUDE, CODEX, open_rig
from tests.support.fake_server import open_fake_server
from tests.support.network import LOSE_RESPONSE, Fault, answer

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
    "pending_ping": {"id": "p"},
}
RESULT = "POST /api/daemon/runtimes/.*/result"


@attrs.define
class Machine:
    """Abilities that note what was asked of them; `doing` may make them wait or fail."""

    asked: list[Any] = attrs.field(factory=list)
    restarted: list[float] = attrs.field(factory=list)
    doing: Callable[[], Awaitable[None]] | None = None

    async def _do(self, *what: Any) -> None:
        self.asked.append(what)
        await trio.lowlevel.checkpoint()
        if self.doing is not None:
            await self.doing()

    async def models(self, program: Program) -> list[Model] | None:
        await self._do("models", program)
        thinking = thinking_of(["low", "high"], default="low")
        return [Model(id="opus", label="Opus", default=True, thinking=thinking)]

    async def list_skills(self, provider: str) -> list[LocalSkill] | None:
        await self._do("skills", provider)
        return None

    async def import_skill(self, provider: str, key: str) -> ImportedSkill:
        await self._do("import", provider, key)
        if key == "b":
            raise SkillError("there is no skill 'b' on this machine any more")
        files = [ImportedFile(path="x.md", content="X")]
        return ImportedSkill(
            name="A", content="text", source_path="~/a", provider=provider, files=files
        )

    async def ping(self, program: Program) -> str:
        await self._do("ping", program)
        await trio.sleep(1.5)
        return "pong"

    async def update(self, target_version: str) -> Updated:
        await self._do("update", target_version)
        return Updated(
            output=f"Updated to {target_version}",
            then=lambda: self.restarted.append(trio.current_time()),
        )

    def abilities(self) -> Abilities:
        return Abilities(
            models=self.models,
            list_skills=self.list_skills,
            import_skill=self.import_skill,
            ping=self.ping,
            update=self.update,
        )


def _paths(told: dict[str, Any]) -> list[str]:
    return [action.path for action in plan_actions("r", codec.structure(told, Beat))]


def test_the_plural_imports_win() -> None:
    assert _paths(EVERYTHING) == [
        "update/u",
        "models/m",
        "local-skills/s",
        "local-skills/import/i1",
        "local-skills/import/i2",
        "ping/p",
    ]
    single = {"pending_local_skill_import": {"id": "i1", "skill_key": "a"}}
    assert _paths(single) == ["local-skills/import/i1"]
    assert _paths({"status": "ok"}) == []


@pytest.mark.parametrize("refused", [None, 503])
async def test_each_request_is_answered_once(
    autojump_clock: MockClock, tmp_path: Path, refused: int | None
) -> None:
    """Over the websocket and over HTTP alike."""
    machine = Machine()
    async with open_fake_server() as server:
        server.refuse_sockets = refused
        async with open_rig(
            server, tmp_path, programs=(CLAUDE, CODEX), abilities=machine.abilities()
        ) as rig:
            await rig.until_running()
            server.pending[server.runtime_id("claude")] = dict(EVERYTHING)
            await rig.until(lambda: len(server.results) == 6, within=31)
            await trio.sleep(100)
            assert server.results == {
                "update/u": {"status": "completed", "output": "Updated to v9.9.9"},
                "models/m": {
                    "status": "completed",
                    "models": [
                        {
                            "id": "opus",
                            "label": "Opus",
                            "default": True,
                            "thinking": {
                                "supported_levels": [
                                    {"value": "low", "label": "Low"},
                                    {"value": "high", "label": "High"},
                                ],
                                "default_level": "low",
                            },
                        }
                    ],
                    "supported": True,
                },
                "local-skills/s": {"status": "completed", "skills": None, "supported": False},
                "local-skills/import/i1": {
                    "status": "completed",
                    "skill": {
                        "name": "A",
                        "content": "text",
                        "source_path": "~/a",
                        "provider": "claude",
                        "files": [{"path": "x.md", "content": "X"}],
                    },
                },
                "local-skills/import/i2": {
                    "status": "failed",
                    "error": "there is no skill 'b' on this machine any more",
                },
                "ping/p": {"status": "completed", "output": "pong", "duration_ms": 1500},
            }
            first, _ = server.requests(RESULT.replace(".*", ".*update/u"))
            assert first.body == {"status": "running"}
            assert server.count(RESULT) == 7, "handed out once, answered once"
            assert ("ping", CLAUDE) in machine.asked
            assert len(machine.restarted) == 1


async def test_what_cannot_be_done_is_said_in_words(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        server.pending[server.runtime_id("claude")] = dict(EVERYTHING)
        await rig.until(lambda: len(server.results) == 6, within=31)
        for path, told in server.results.items():
            assert told["status"] == "failed"
            wanted = "updates are off" if path == "update/u" else "not offered by this daemon"
            assert wanted in told["error"]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (AgentError("claude executable not found"), "claude executable not found"),
        (Unable("claude said nothing"), "claude said nothing"),
        (ValueError("a bug"), "internal error: ValueError('a bug')"),
        (ExceptionGroup("", [AgentError("in a group")]), "in a group"),
    ],
)
async def test_a_failing_request_harms_no_other(
    autojump_clock: MockClock,
    tmp_path: Path,
    error_log: Any,
    failure: Exception,
    said: str,
) -> None:
    async def fail() -> None:
        raise failure

    machine = Machine(doing=fail)
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, abilities=machine.abilities()) as rig,
    ):
        await rig.until_running()
        for number in range(6):  # more than there are workers
            pending = {"pending_ping": {"id": f"p{number}"}}
            server.pending[server.runtime_id("claude")] = pending
            await rig.until(lambda n=number: f"ping/p{n}" in server.results, within=31)  # type: ignore[misc]
            told = server.results[f"ping/p{number}"]
            assert told == {"status": "failed", "error": said, "duration_ms": 0}
    if isinstance(failure, ValueError):
        error_log.expect("request crashed")


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("pending_model_list", 45), ("pending_local_skills", 45), ("pending_ping", 100)],
)
async def test_a_request_that_hangs_is_given_up_while_the_server_still_listens(
    autojump_clock: MockClock, tmp_path: Path, kind: str, limit: float
) -> None:
    machine = Machine(doing=trio.sleep_forever)
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, abilities=machine.abilities()) as rig,
    ):
        await rig.until_running()
        server.pending[server.runtime_id("claude")] = {kind: {"id": "x"}}
        await rig.until(lambda: machine.asked, within=31)
        began = trio.current_time()
        await rig.until(lambda: server.results, within=200)
        [at] = server.times(RESULT)
        assert began + limit - 0.6 <= at <= began + limit
        [told] = server.results.values()
        assert told["status"] == "failed"
        assert "not done" in told["error"]


async def test_a_request_handed_out_again_is_not_begun_twice(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The server heard nothing for 20 s, because the ping takes that long."""

    async def slowly() -> None:
        await trio.sleep(50)

    machine = Machine(doing=slowly)
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, abilities=machine.abilities()) as rig,
    ):
        await rig.until_running()
        for _ in range(3):
            server.pending[server.runtime_id("claude")] = {"pending_ping": {"id": "p"}}
            await trio.sleep(16)
        await rig.until(lambda: server.results)
        await trio.sleep(100)
        assert len(machine.asked) == 1
        assert server.count(RESULT) == 1


async def test_a_result_that_could_not_be_told_is_told_when_asked_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    machine = Machine()
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, abilities=machine.abilities()) as rig,
    ):
        await rig.until_running()
        server.fail_always(RESULT, answer(503))
        server.pending[server.runtime_id("claude")] = {"pending_ping": {"id": "p"}}
        await rig.until(lambda: server.count(RESULT) == 4)
        server.fail_always(RESULT, None)
        server.pending[server.runtime_id("claude")] = {"pending_ping": {"id": "p"}}
        await rig.until(lambda: server.results, within=31)
        assert server.results["ping/p"]["output"] == "pong"
        assert len(machine.asked) == 1, "what is known already is not found out again"


async def test_a_lost_answer_to_a_result_is_repeated_and_the_update_restarts_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    machine = Machine()
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, abilities=machine.abilities()) as rig,
    ):
        await rig.until_running()
        server.fail_next(f"{RESULT} .*completed.*", LOSE_RESPONSE, LOSE_RESPONSE)
        server.pending[server.runtime_id("claude")] = {"pending_update": {"id": "u"}}
        await rig.until(lambda: machine.restarted, within=31)
        assert machine.asked == [("update", "")]
        told = [call.body["status"] for call in server.requests(RESULT)]
        assert told == ["running", "completed", "completed", "completed"]
        last = server.times(RESULT)[-1]
        assert machine.restarted == [last], "told first, then restarted"


async def test_a_runtime_that_is_gone_is_asked_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    machine = Machine()
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, abilities=machine.abilities()) as rig,
    ):
        await rig.until_running()
        await rig.until(lambda: server.sockets)
        await trio.sleep(20)
        beat = {"status": "ok", "pending_ping": {"id": "p"}, "pending_update": {"id": "u"}}
        payload = {"runtime_id": "11111111-2222-4333-8444-555555555555", **beat}
        await server.push("daemon:heartbeat_ack", payload)
        await trio.sleep(10)
        assert machine.asked == [("update", "")], "an update is the machine's, not the runtime's"


@pytest.mark.parametrize(
    ("fault", "waits"),
    [
        (answer(500), [0.5, 2, 4]),
        (answer(404, '{"error":"request not found"}'), []),
        (answer(408), []),
        (answer(429), []),
    ],
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


def test_nothing_can_be_asked_where_nothing_is_offered() -> None:
    abilities = unable()
    with pytest.raises(Unable):
        trio.run(abilities.ping, CLAUDE)
