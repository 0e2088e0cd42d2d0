"""Asking agent programs themselves, as processes: their models, and whether they work at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from daemon.agents import models as asking
from daemon.agents.contract import AgentError, Program
from daemon.agents.launch import demo_program
from daemon.agents.models import Models
from daemon.runtimes.abilities import Unable, abilities_of, ping
from tests.support.fake_server import make_config

pytestmark = pytest.mark.together

ENV = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}

ACP = """\
import json, sys
print("welcome")
asked = 0
for line in sys.stdin:
    said = json.loads(line)
    if said.get("method") == "initialize":
        print(json.dumps({"jsonrpc": "2.0", "id": 0, "method": "fs/read", "params": {}}))
        print(json.dumps({"jsonrpc": "2.0", "id": said["id"], "result": {"protocolVersion": 1}}))
    elif said.get("method") == "session/new":
        assert asked == -32601, asked
        models = {"currentModelId": "m1", "availableModels": [{"modelId": "m1", "name": "One"}]}
        print(json.dumps({"method": "session/update", "params": {}}))
        print(json.dumps({"jsonrpc": "2.0", "id": said["id"], "result": {"models": models}}))
    else:
        asked = said["error"]["code"]
    sys.stdout.flush()
"""


def _program(folder: Path, provider: str, script: str, **more: Any) -> Program:
    """A program of ours that counts its starts in `starts`."""
    path = folder / provider
    path.write_text(f"#!/bin/sh\necho x >> {folder}/starts\n{script}\n")
    path.chmod(0o755)
    return Program(provider=provider, path=str(path), **more)


def _python(folder: Path, provider: str, script: str) -> Program:
    source = folder / f"{provider}.py"
    source.write_text(script)
    return _program(folder, provider, f'exec "{sys.executable}" -u "{source}" "$@"')


def _starts(folder: Path) -> int:
    return len((folder / "starts").read_text().splitlines())


async def test_levels_are_read_from_the_help_once_per_version(tmp_path: Path) -> None:
    script = 'test "$1" = --help || exit 3; echo "  --effort <l>  (low, max)"'
    program = _program(tmp_path, "claude", script, version="1")
    models = Models(ENV)
    for _ in range(3):
        listed = await models.offered_by(program)
        assert listed is not None
        opus = next(model for model in listed if model.id == "claude-opus-4-8")
        assert opus.thinking is not None
        assert [level.value for level in opus.thinking.supported_levels] == ["low", "max"]
    assert _starts(tmp_path) == 1
    assert await models.is_valid_level(program, "claude-opus-4-8", "max")
    assert not await models.is_valid_level(program, "claude-opus-4-8", "high")
    newer = Program(provider="claude", path=program.path, version="2")
    await models.offered_by(newer)
    assert _starts(tmp_path) == 2


async def test_a_claude_that_does_not_answer_still_has_models(tmp_path: Path) -> None:
    listed = await Models(ENV).offered_by(_program(tmp_path, "claude", "echo broken >&2; exit 1"))
    assert listed is not None
    assert listed[0].thinking is not None
    assert [level.value for level in listed[0].thinking.supported_levels] == [
        "low",
        "medium",
        "high",
    ]


async def test_lists_are_kept_for_a_minute_and_empty_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = trio.current_time()
    monkeypatch.setattr(asking.trio, "current_time", lambda: now)
    program = _program(tmp_path, "opencode", f"cat {tmp_path}/models")
    models = Models(ENV)
    (tmp_path / "models").write_text("")
    assert await models.offered_by(program) == []
    assert _starts(tmp_path) == 2, "both ways are tried"
    (tmp_path / "models").write_text("a/b\n")
    for later in (0, 59.9):
        now += later
        listed = await models.offered_by(program)
        assert listed is not None
        assert [model.id for model in listed] == ["a/b"]
    assert _starts(tmp_path) == 3
    now += 0.2
    await models.offered_by(program)
    assert _starts(tmp_path) == 4
    other = Program(provider="opencode", path=program.path, args=("--profile",))
    await models.offered_by(other)
    assert _starts(tmp_path) == 5, "another profile's program tells for itself"


async def test_what_is_said_on_standard_error_counts_where_programs_do_that(tmp_path: Path) -> None:
    program = _program(tmp_path, "pi", 'echo "$1"; echo "anthropic opus" >&2')
    listed = await Models(ENV).offered_by(program)
    assert listed is not None
    assert [model.id for model in listed] == ["anthropic/opus"]


async def test_acp_programs_are_asked_by_opening_a_session(tmp_path: Path) -> None:
    """Banners, notifications and the agent's own requests notwithstanding."""
    listed = await Models(ENV).offered_by(_python(tmp_path, "kimi", ACP))
    assert listed is not None
    assert [(model.id, model.label, model.default) for model in listed] == [("m1", "One", True)]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; sys.stderr.write('not signed in'); sys.exit(1)", "not signed in"),
        ('print(\'{"id": 0, "error": {"message": "AUTH_REQUIRED"}}\')', "AUTH_REQUIRED"),
        ("print('[]'); print('{')", "ended before it answered initialize"),
    ],
)
async def test_acp_programs_that_refuse_are_quoted(tmp_path: Path, script: str, said: str) -> None:
    with pytest.raises(AgentError, match=said):
        await Models(ENV).offered_by(_python(tmp_path, "kimi", script))


async def test_a_program_that_hangs_is_given_up_with_all_it_started(tmp_path: Path) -> None:
    marker = "3877.25"
    program = _program(tmp_path, "opencode", f"setsid sleep {marker} & sleep {marker}")
    with pytest.raises(AgentError, match=r"did not end within 0\.5 s"):
        await asking.run_command(program, ("models",), ENV, limit=0.5)
    left = [p for p in psutil.process_iter() if marker in " ".join(_words(p))]
    assert left == []


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def test_a_flood_of_output_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_LARGEST_OUTPUT", 1000)
    with pytest.raises(AgentError, match="more than 1000 bytes"):
        await asking.run_command(_program(tmp_path, "opencode", "yes"), (), ENV, limit=20)


async def test_programs_without_a_list(tmp_path: Path) -> None:
    models = Models(ENV)
    assert await models.offered_by(demo_program()) is None
    assert not await models.is_valid_level(demo_program(), "", "high")
    assert await models.is_valid_level(demo_program(), "", "")
    gone = Program(provider="kimi", path=str(tmp_path / "gone"))
    with pytest.raises(AgentError, match="not found"):
        await models.offered_by(gone)
    assert await models.is_valid_level(gone, "m", "high"), "what cannot be told is believed"
    listed = await models.offered_by(Program(provider="copilot", path=str(tmp_path / "gone")))
    assert listed is not None
    assert listed[0].id == "gpt-5.5", "the list that stands here"


# -- pings


async def test_a_ping_runs_the_agent_once(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    answer = await ping(config, ENV | {"MULTICA_DEMO_PACE": "0"}, demo_program())
    assert "demo agent" in answer


async def test_a_ping_says_why_an_agent_does_not_work(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    env = ENV | {"IS_SANDBOX": "1"}
    with pytest.raises(AgentError, match="not found"):
        await ping(config, env, Program(provider="claude", path=str(tmp_path / "gone")))
    broken = _program(tmp_path, "claude", "echo 'please log in' >&2; exit 1")
    with pytest.raises(Unable, match="please log in"):
        await ping(config, env, broken)


async def test_agents_asked_between_tasks_get_nothing_of_the_daemons_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BULLPEN_SECRET", "x")
    monkeypatch.setenv("MULTICA_TOKEN", "mat_x")
    program = _program(tmp_path, "claude", f"env > {tmp_path}/env")
    await abilities_of(make_config(tmp_path)).models(program)
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert "PATH" in names
    assert not {"BULLPEN_SECRET", "MULTICA_TOKEN"} & names
