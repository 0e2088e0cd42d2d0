"""Outcome, watchdog and environment: pure decisions."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from daemon.agents.contract import AgentResult, Quota, Tokens
from daemon.tasks.environment import build_environment, make_launcher, secrets_of
from daemon.tasks.outcome import (
    End,
    broken,
    decide,
    may_run_afresh,
    merge_usage,
    usage_entries,
)
from daemon.tasks.watchdog import Watchdog
from shared.home import Home
from shared.redact import Redactor
from shared.times import parse_stamp
from shared.wire.task import ClaimedTask, TaskAgent
from tests.daemon.tasks_support import text, tool_result, tool_use

pytestmark = pytest.mark.fast


def result(status: Any, **fields: Any) -> AgentResult:
    return AgentResult(status=status, session_id="s1", **fields)


@pytest.mark.parametrize(
    ("told", "end", "completed", "text", "reason"),
    [
        (result("completed", output="hi"), "agent", True, "hi", ""),
        (result("completed"), "agent", True, "", ""),
        (
            result("completed", output="I reached the iteration limit."),
            *("agent", False, "I reached the iteration limit.", "iteration_limit"),
        ),
        (
            result("completed", output="Put your final update inside the content string"),
            *("agent", False, "Put your final update inside the content string"),
            "agent_fallback_message",
        ),
        (
            result("completed", output="I reached the iteration limit." + "x" * 320),
            *("agent", True, "I reached the iteration limit." + "x" * 320, ""),
        ),
        (result("completed", output="hi"), "idle", True, "hi", ""),
        (result("completed", output="hi"), "shutdown", True, "hi", ""),
        (result("timeout", error="took long"), "agent", False, "took long", "timeout"),
        (result("timeout"), "agent", False, "claude timed out after 60 seconds", "timeout"),
        (
            result("aborted", error="x"),
            "cap",
            False,
            "claude timed out after 60 seconds",
            "timeout",
        ),
        (result("aborted", error="x"), "idle", False, "silent", "idle_watchdog"),
        (
            result("aborted", error="x"),
            *("shutdown", False, "the daemon stopped while the agent was working"),
            "runtime_recovery",
        ),
        (
            *(None, "shutdown", False, "the daemon stopped while the agent was working"),
            "runtime_recovery",
        ),
        (
            result("failed", error="400 invalid_request_error: bad"),
            *("agent", False, "400 invalid_request_error: bad", "api_invalid_request"),
        ),
        (
            result("failed", error="API Error: 401"),
            *("agent", False, "API Error: 401", "agent_error.provider_auth_or_access"),
        ),
        (result("failed"), "agent", False, "claude execution failed", "agent_error.unknown"),
        (result("aborted"), "agent", False, "claude execution aborted", "agent_error.unknown"),
        (None, "agent", False, "the agent's process left no result", "agent_error.unknown"),
    ],
)
def test_the_outcome_table(
    told: AgentResult | None, end: End, completed: bool, text: str, reason: str
) -> None:
    outcome = decide(told, end, provider="claude", work_dir="/w", silence="silent", cap=60)
    assert (outcome.completed, outcome.text, outcome.reason) == (completed, text, reason)
    assert outcome.session_id == ("s1" if told else "")
    assert outcome.work_dir == "/w"


NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
BACK = datetime(2026, 11, 30, 16, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("told", "resets_at"),
    [
        (result("failed", error="x", quota=Quota(resets_at=int(BACK.timestamp()))), BACK),
        (result("failed", error="limit, resets in 4 hours", quota=Quota()), BACK),
        (result("failed", error="You've hit your Opus limit, resets at 16:00 UTC"), BACK),
        (result("failed", error="x", quota=Quota()), None),
        (result("failed", error="x", quota=Quota(resets_at=2**60)), None),
    ],
)
def test_a_quota_comes_with_the_moment_it_is_back(
    told: AgentResult, resets_at: datetime | None
) -> None:
    request = decide(told, "agent", provider="claude", now=NOW).fail_request()
    assert request.failure_reason == "agent_error.provider_quota_limit"
    found = parse_stamp(request.resets_at) - timedelta(seconds=30) if request.resets_at else None
    assert found == resets_at


def test_a_daemon_that_stops_leaves_work_in_the_background_to_another_attempt() -> None:
    told = result("completed", output="I'll report", unfinished=True)
    assert decide(told, "shutdown", provider="claude").reason == "runtime_recovery"
    assert decide(told, "idle", provider="claude").completed
    assert decide(told, "agent", provider="claude").completed


def test_codex_silence_is_its_own_reason_and_only_codex_has_it() -> None:
    told = result("timeout", error="Codex semantic inactivity timeout after 600s")
    assert decide(told, "agent", provider="codex").reason == "codex_semantic_inactivity"
    assert decide(told, "agent", provider="claude").reason == "timeout"


def test_what_breaks_before_the_agent_is_classified() -> None:
    assert broken("claude: executable not found").reason == "agent_error.runtime_missing_executable"
    assert broken("x", reason="local_directory_error").reason == "local_directory_error"


@pytest.mark.parametrize(
    ("told", "resumed", "again"),
    [
        (AgentResult(status="failed"), True, True),
        (AgentResult(status="failed", session_id="s", resume_rejected=True), True, True),
        (AgentResult(status="failed", session_id="s"), True, False),
        (AgentResult(status="failed"), False, False),
        (AgentResult(status="aborted"), True, False),
        (AgentResult(status="completed"), True, False),
        (None, True, False),
    ],
)
def test_when_to_run_afresh(told: AgentResult | None, resumed: bool, again: bool) -> None:
    assert may_run_afresh(told, resumed=resumed) is again


def test_usage_adds_up_and_leaves_out_zeros() -> None:
    one = AgentResult(status="failed", usage={"a": Tokens(input=1, cache_read=2), "z": Tokens()})
    two = AgentResult(status="completed", usage={"a": Tokens(input=3), "b": Tokens(output=4)})
    entries = usage_entries("claude", merge_usage([one, None, two]))
    assert [
        (e.provider, e.model, e.input_tokens, e.output_tokens, e.cache_read_tokens) for e in entries
    ] == [("claude", "a", 4, 0, 2), ("claude", "b", 0, 4, 0)]


def test_budgets_follow_the_open_calls() -> None:
    dog = Watchdog(idle=10, tool=100)
    assert dog.budget() == 10
    dog.saw(tool_use("1", "Bash"))
    dog.saw(tool_use("2", "Read"))
    dog.saw(text("meanwhile"))
    assert dog.budget() == 100
    dog.saw(tool_result("1"))
    dog.saw(tool_result("1"))  # told twice: the other call is still open
    assert dog.budget() == 100
    assert "Read" in dog.explain()
    dog.saw(tool_result("2"))
    assert dog.budget() == 10


def test_zero_budgets() -> None:
    assert Watchdog(idle=0, tool=5).budget() == math.inf
    dog = Watchdog(idle=5, tool=0)
    dog.saw(tool_use("1"))
    assert dog.budget() == math.inf


# -- environment

TASK = ClaimedTask(
    id="t1",
    workspace_id="w1",
    agent_id="a1",
    auth_token="mat_" + "1" * 40,
    agent=TaskAgent(
        id="a1",
        name="Backend",
        custom_env={
            "KEY": "value",
            "PATH": "/evil",
            "multica_token": "x",
            "BULLPEN_HOME": "x",
            "Home": "x",
            "BAD=NAME": "x",
            "NUL": "a\0b",
        },
    ),
)


def build(task: ClaimedTask = TASK, **changes: Any) -> dict[str, str]:
    values: dict[str, Any] = {
        "base": {"PATH": "/usr/bin", "HOME": "/home/u"},
        "provider": "claude",
        "slot": 3,
        "server_url": "http://127.0.0.1:8080",
        "control_port": 19514,
        "launcher": Path("/opt/bullpen"),
        "tmp": Path("/ws/t1/tmp"),
        "as_root": False,
        **changes,
    }
    return build_environment(task, **values)


def test_what_the_agent_is_told() -> None:
    env = build()
    assert env == {
        "HOME": "/home/u",
        "PATH": "/opt/bullpen:/usr/bin",
        "TMPDIR": "/ws/t1/tmp",
        "KEY": "value",
        "MULTICA_TOKEN": TASK.auth_token,
        "MULTICA_SERVER_URL": "http://127.0.0.1:8080",
        "MULTICA_DAEMON_PORT": "19514",
        "MULTICA_WORKSPACE_ID": "w1",
        "MULTICA_AGENT_ID": "a1",
        "MULTICA_AGENT_NAME": "Backend",
        "MULTICA_TASK_ID": "t1",
        "MULTICA_TASK_SLOT": "3",
    }


def test_the_secret_for_checkouts_is_the_agents_own() -> None:
    assert build(checkout_secret="s3cret")["MULTICA_CHECKOUT_SECRET"] == "s3cret"
    custom = attrs.evolve(TASK.agent, custom_env={"MULTICA_CHECKOUT_SECRET": "x"})
    assert "MULTICA_CHECKOUT_SECRET" not in build(attrs.evolve(TASK, agent=custom))


def test_what_the_daemon_has_and_the_agent_must_not() -> None:
    base = {
        "PATH": "/usr/bin",
        "CLAUDECODE": "1",
        "CLAUDECODE_X": "1",
        "CLAUDE_CODE_SESSION_ID": "1",
        "CLAUDE_CODE_SSE_PORT": "1",
        "CLAUDE_CODE_MAX_RETRIES": "2",
        "BULLPEN_DATABASE_URL": "postgres://u:p@h/d",
        "BULLPEN_TOKEN": "mul_x",
        "MULTICA_TOKEN": "mul_x",
        "MULTICA_AUTOPILOT_ID": "of another task",
    }
    env = build(base=base)
    assert env["CLAUDE_CODE_MAX_RETRIES"] == "2"
    assert env["MULTICA_TOKEN"] == TASK.auth_token
    gone = set(base) - {"PATH", "CLAUDE_CODE_MAX_RETRIES", "MULTICA_TOKEN"}
    assert not gone & set(env)


def test_root_and_claude_need_the_sandbox_mark() -> None:
    assert build(as_root=True)["IS_SANDBOX"] == "1"
    base = {"PATH": "/usr/bin", "IS_SANDBOX": "yes"}
    assert build(as_root=True, base=base)["IS_SANDBOX"] == "1", "only exactly 1 is accepted"
    assert "IS_SANDBOX" not in build(as_root=True, provider="codex")
    assert "IS_SANDBOX" not in build()


def test_kinds_bring_their_own_variables() -> None:
    task = ClaimedTask(id="t", autopilot_run_id="run", autopilot_id="pilot")
    env = build(task)
    assert env["MULTICA_AUTOPILOT_RUN_ID"] == "run"
    assert env["MULTICA_AUTOPILOT_ID"] == "pilot"
    assert env["MULTICA_AGENT_NAME"] == "agent"
    task = ClaimedTask(id="t", quick_create_prompt="p", quick_create_attachment_ids=["x"])
    env = build(task)
    assert env["MULTICA_QUICK_CREATE_TASK_ID"] == "t"
    assert env["MULTICA_QUICK_CREATE_ATTACHMENT_IDS"] == '["x"]'


def test_the_known_secrets_are_the_token_and_the_custom_values() -> None:
    assert set(secrets_of(TASK)) >= {TASK.auth_token, "value"}


@pytest.mark.parametrize(
    ("about", "secrets"),
    [
        ({"runtime_config": {"mode": "gateway", "gateway": {"token": "gwtoken"}}}, {"gwtoken"}),
        ({"runtime_config": {"gateway": {"token": 5}}}, set()),
        ({"runtime_config": {"gateway": "odd"}, "mcp_config": {"mcpServers": []}}, set()),
        (
            {
                "mcp_config": {
                    "mcpServers": {
                        "one": {"command": "x", "env": {"KEY": "env secret", "N": 5}},
                        "four": {"env": {"DEEP": ["nested secret", {"a": "deeper secret"}]}},
                        "two": {"url": "u", "headers": {"Authorization": "Bearer header-secret"}},
                        "three": "odd",
                    }
                }
            },
            {"env secret", "header-secret", "nested secret", "deeper secret"},
        ),
    ],
)
def test_what_an_agent_is_trusted_with_is_secret(about: dict[str, Any], secrets: set[str]) -> None:
    task = attrs.evolve(TASK, agent=TaskAgent(**about))
    found = set(secrets_of(task))
    assert found >= secrets
    text = f"it said {' and '.join(secrets)}"
    assert not any(secret in Redactor(found).text(text) for secret in secrets)


def test_the_launcher_is_alone_in_its_directory_and_runs_isolated(tmp_path: Path) -> None:
    folder = make_launcher(Home(tmp_path), "/opt/my python/bin/python")
    make_launcher(Home(tmp_path), "/opt/my python/bin/python")
    assert sorted(path.name for path in folder.iterdir()) == ["bullpen", "multica"]
    assert (folder / "multica").read_text() == (folder / "bullpen").read_text()
    script = (folder / "bullpen").read_text()
    assert script.startswith("#!/bin/sh\nexec '/opt/my python/bin/python' -I -c ")
    assert (folder / "bullpen").stat().st_mode & 0o777 == 0o755
