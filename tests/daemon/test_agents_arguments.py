"""How agent programs are started: command lines, blocked arguments, environments, versions."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from daemon.agents import claude
from daemon.agents.arguments import filter_arguments, unquote
from daemon.agents.contract import AgentError, AgentRun, Program
from daemon.agents.launch import DRIVERS, demo_program
from daemon.agents.providers import (
    DEMO,
    PROVIDERS,
    chosen_command,
    is_pinned,
    parse_version,
    too_old,
)

pytestmark = pytest.mark.fast

CLAUDE = PROVIDERS["claude"]
BASE = [
    "claude", "-p", "--output-format", "stream-json", "--input-format", "stream-json",
    "--verbose", "--disallowedTools", "AskUserQuestion",
]  # fmt: skip
MODE = ["--permission-mode", "bypassPermissions"]


def a_run(**more: Any) -> AgentRun:
    program = Program(provider="claude", path="claude")
    return AgentRun(**{"program": program, "cwd": Path("/"), "env": {}, "prompt": "secret", **more})


def test_the_plain_command_line_holds_neither_prompt_nor_empty_flags() -> None:
    assert claude.arguments(a_run()) == [*BASE, *MODE]


def test_every_option_has_its_flag() -> None:
    run = a_run(
        model="m", thinking_level="high", max_turns=3, system_prompt="s", resume_session_id="r",
        extra_args=("--add-dir", "/x"), custom_args=("--debug",),
        program=Program(provider="claude", path="claude", args=("--fixed",)),
    )  # fmt: skip
    argv = claude.arguments(run, mcp_file="/tmp/m.json")
    assert argv[:2] == ["claude", "--fixed"]
    assert argv[argv.index("--mcp-config") :] == [
        "--mcp-config", "/tmp/m.json", "--strict-mcp-config", *MODE, "--model", "m",
        "--effort", "high", "--max-turns", "3", "--append-system-prompt", "s", "--resume", "r",
        "--add-dir", "/x", "--debug",
    ]  # fmt: skip


def test_users_cannot_break_the_protocol() -> None:
    run = a_run(
        extra_args=("-p", "--output-format", "text", "--permission-mode=plan", "keep"),
        custom_args=("'--effort'", "low", '--mcp-config="x"', "--resume", "mine"),
    )
    assert claude.arguments(run) == [*BASE, *MODE, "keep", "--resume", "mine"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("'a b'", "a b"), ('"a"', "a"), ("''a''", "'a'"), ("'a\"", "'a\""), ("'", "'"),
     ("--flag='v w'", "--flag=v w"), ('-c="x"', "-c=x"), ('model="o3"', 'model="o3"'), ("", "")],
)  # fmt: skip
def test_one_layer_of_quotes_goes(given: str, expected: str) -> None:
    assert unquote(given) == expected


def test_what_a_blocked_flag_takes_along() -> None:
    blocked = {"-v": "value", "-n": "nothing", "-o": "optional"}
    arguments = ["-v", "-x", "a", "-v=1", "b", "-n", "c", "-o", "d", "-o", "-e", "f", "-v"]
    assert filter_arguments(arguments, blocked, label="x") == ["a", "b", "c", "-e", "f"]  # type: ignore[arg-type]


def test_root_needs_to_be_told_that_it_is_a_sandbox() -> None:
    with pytest.raises(AgentError, match="as root"):
        claude.environment({}, is_root=True)
    assert claude.environment({"IS_SANDBOX": "yes"}, is_root=True) == {"IS_SANDBOX": "1"}
    assert claude.environment({"CLAUDE_CODE_BUBBLEWRAP": "1"}, is_root=True) == {
        "CLAUDE_CODE_BUBBLEWRAP": "1"
    }
    assert claude.environment({"IS_SANDBOX": "yes"}, is_root=False) == {"IS_SANDBOX": "yes"}


def test_managed_mcp_servers_go_through_a_private_file() -> None:
    config = {"mcpServers": {"x": {"env": {"KEY": "s3cret"}}}}
    run = a_run(mcp_config=config, env={"IS_SANDBOX": "1"})
    with DRIVERS["claude"](run) as prepared:
        argv = list(prepared.launch.argv)
        file = Path(argv[argv.index("--mcp-config") + 1])
        assert json.loads(file.read_text()) == config
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert "s3cret" not in " ".join(argv)
    assert not file.exists()
    with DRIVERS["claude"](a_run(env={"IS_SANDBOX": "1"})) as prepared:
        assert "--strict-mcp-config" not in prepared.launch.argv


def test_secrets_are_not_shown() -> None:
    run = a_run(env={"KEY": "s3cret"}, mcp_config={"a": "s3cret"}, system_prompt="s3cret")
    assert "s3cret" not in repr(run)
    assert "secret" not in repr(run)


def test_the_demo_is_this_python_and_never_the_work_directorys_code() -> None:
    program = demo_program()
    assert program.args[0] == "-I"
    assert program.version.startswith("demo ")
    with DRIVERS[DEMO](a_run(program=program, resume_session_id="r")) as prepared:
        assert list(prepared.launch.argv)[-2:] == ["--resume", "r"]


@pytest.mark.parametrize(
    ("output", "shown", "numbers"),
    [("2.1.197 (Claude Code)\n", "2.1.197 (Claude Code)", (2, 1, 197)),
     ("Active code page: 65001\r\ncodex-cli 0.169.0\n", "codex-cli 0.169.0", (0, 169, 0)),
     ("v1.2.3", "v1.2.3", (1, 2, 3)), ("unknown\n", "unknown", None), ("", "", None)],
)  # fmt: skip
def test_versions(output: str, shown: str, numbers: tuple[int, int, int] | None) -> None:
    assert parse_version(output) == (shown, numbers)


def test_only_a_version_known_to_be_old_is_too_old() -> None:
    assert too_old(CLAUDE, (1, 99, 99))
    assert not too_old(CLAUDE, (2, 0, 0))
    assert not too_old(CLAUDE, None)
    assert not too_old(PROVIDERS["opencode"], (0, 0, 1))


def test_the_command_may_be_chosen() -> None:
    assert chosen_command(CLAUDE, {}) == "claude"
    assert chosen_command(CLAUDE, {"BULLPEN_CLAUDE_PATH": " /x/claude "}) == "/x/claude"
    assert is_pinned("/x/claude")
    assert not is_pinned("claude-next")


def test_every_driver_has_a_provider() -> None:
    assert set(DRIVERS) <= set(PROVIDERS)
