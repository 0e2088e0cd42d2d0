"""The real claude, driven as the daemon drives it, against a stub of its model's API."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from daemon.agents.contract import AgentMessage, AgentResult, AgentRun, Program
from daemon.agents.launch import open_agent
from shared import failure
from tests.support.processes import Watch
from tests.support.stub_messages_api import Stub, claude_environment

pytestmark = pytest.mark.real_agents

LIMIT = 60.0


@attrs.frozen
class Claude:
    """Runs claude in one work directory against one stub."""

    program: Program
    stub: Stub
    work: Path
    watch: Watch

    def run(
        self, prompt: str, *, key: str = "key-ok", subscriber: bool = False, **more: Any
    ) -> AgentRun:
        node = shutil.which("node")
        folders = [str(Path(node).parent)] if node else []
        path = os.pathsep.join([*folders, os.defpath])
        home = str(self.work.parent / "home")
        env = claude_environment(self.stub.url, home=home, path=path, key=key)
        if subscriber:  # only they have quotas that the program tells of
            del env["ANTHROPIC_API_KEY"]
            env["CLAUDE_CODE_OAUTH_TOKEN"] = "sk-ant-oat01-stub"
        env |= {"MULTICA_TASK_ID": self.watch.word, "TMPDIR": str(self.work.parent)}
        return AgentRun(program=self.program, cwd=self.work, env=env, prompt=prompt, **more)

    async def __call__(self, prompt: str, **more: Any) -> tuple[list[AgentMessage], AgentResult]:
        with trio.fail_after(LIMIT):
            async with open_agent(self.run(prompt, **more)) as agent:
                messages = [message async for message in agent.messages]
        assert agent.result is not None
        return messages, agent.result


@pytest.fixture
def ask(claude: Program, stub: Stub, work: Path, watch: Watch) -> Claude:
    return Claude(claude, stub, work, watch)


def _kinds(messages: list[AgentMessage]) -> list[str]:
    return [m.kind for m in messages if m.kind not in {"log", "status"}]


async def test_a_plain_answer(ask: Claude) -> None:
    messages, result = await ask("[[say: hello from the stub]]", model="claude-sonnet-4-5")
    assert result.status == "completed"
    assert result.output == "hello from the stub"
    assert result.exit_code == 0
    (tokens,) = result.usage.values()
    assert (tokens.input, tokens.output, tokens.cache_read, tokens.cache_write) == (101, 20, 5, 7)
    assert messages[0].session_id == result.session_id != ""
    assert _kinds(messages) == ["text"]
    assert ask.stub.requests[0]["model"] == "claude-sonnet-4-5"


async def test_a_tool_call_runs_in_the_work_directory(ask: Claude) -> None:
    messages, result = await ask(
        "[[text: I look]] [[sh: echo made > made.txt; pwd]] [[think: good]] [[say: it said {out}]]"
    )
    assert result.status == "completed"
    assert (ask.work / "made.txt").read_text() == "made\n"
    assert result.output == f"it said {ask.work.resolve()}"
    assert _kinds(messages) == ["text", "tool_use", "tool_result", "thinking", "text"]
    use, answer = (m for m in messages if m.kind in {"tool_use", "tool_result"})
    assert use.tool == answer.tool == "Bash"
    assert use.input["command"] == "echo made > made.txt; pwd"
    assert use.call_id == answer.call_id
    assert answer.output == str(ask.work.resolve())


async def test_a_long_prompt_is_written_while_output_is_read(ask: Claude) -> None:
    _, result = await ask("x" * 300_000 + " [[say: read it all]]")
    assert result.output == "read it all"


async def test_a_resumed_session_keeps_its_id_and_its_history(ask: Claude) -> None:
    _, first = await ask("[[say: turn {turn}]]")
    _, second = await ask("[[say: turn {turn}]]", resume_session_id=first.session_id)
    assert (first.output, second.output) == ("turn 1", "turn 2")
    assert second.session_id == first.session_id
    assert not second.resume_rejected


@pytest.mark.parametrize("session", ["11111111-2222-4333-8444-555555555555", "not-a-uuid"])
async def test_an_unknown_session_is_rejected_and_not_pinned(ask: Claude, session: str) -> None:
    _, result = await ask("[[say: x]]", resume_session_id=session)
    assert result.status == "failed"
    assert result.resume_rejected
    assert result.session_id == ""
    assert session in result.error
    assert ask.stub.requests == []


async def test_a_refused_key_is_an_authentication_failure(ask: Claude) -> None:
    messages, result = await ask("[[say: x]]", key="key-401")
    assert result.status == "failed"
    assert result.output == ""
    assert failure.classify(result.error) == failure.AUTH
    assert messages[-1].kind == "error"
    assert "401" in messages[-1].content


async def test_retries_are_shown(ask: Claude) -> None:
    messages, result = await ask("[[http: 529 1]] [[say: recovered]]")
    assert result.output == "recovered"
    (retry,) = (m for m in messages if m.kind == "error")
    assert "HTTP 529" in retry.content


async def test_a_stream_cut_in_the_middle_is_a_network_failure_or_repaired(ask: Claude) -> None:
    _, result = await ask("[[drop]]")
    assert result.status == "failed"
    assert result.error


async def test_the_last_result_counts_when_work_goes_on_in_the_background(ask: Claude) -> None:
    messages, result = await ask("[[sh-bg: sleep 0.5; echo later]] [[say: first]]")
    assert result.status == "completed"
    assert result.output == "stub answer, turn 2"
    texts = [m.content for m in messages if m.kind == "text"]
    assert texts == ["first", "stub answer, turn 2"]


async def test_work_in_the_background_is_waited_for(ask: Claude) -> None:
    """Longer than the five seconds after which the program kills it once its input is closed."""
    messages, result = await ask(
        "[[sh: sleep 3; echo long]] [[sh-bg: sleep 8; echo late > late.txt]] [[say: I'll report]]"
    )
    assert result.status == "completed"
    assert not result.unfinished
    assert (ask.work / "late.txt").read_text() == "late\n"
    assert result.output == "stub answer, turn 2"
    assert _kinds(messages)[-2:] == ["text", "text"]


async def test_a_quota_is_told_with_the_moment_it_is_back(ask: Claude) -> None:
    _, result = await ask("[[quota: 7200]]", subscriber=True)
    assert result.status == "failed"
    assert "resets" in result.error
    assert result.quota is not None
    assert 7100 < result.quota.resets_at - time.time() <= 7200


async def test_a_hanging_model_is_stopped_by_the_protocol(ask: Claude) -> None:
    with trio.fail_after(LIMIT):
        async with open_agent(ask.run("[[hang]]")) as agent:
            await ask.stub.asked.wait()
            began = trio.current_time()
            agent.stop("stopped by the test")
            messages = [message async for message in agent.messages]
            assert trio.current_time() - began < 4.0
    assert agent.result is not None
    assert agent.result.status == "aborted"
    assert agent.result.error == "stopped by the test"
    assert agent.result.session_id
    assert all(m.kind != "error" for m in messages)


@pytest.mark.parametrize("how", ["stop", "leave", "cancel"])
async def test_ending_during_a_tool_leaves_nothing_behind(ask: Claude, how: str) -> None:
    """The tool's shell has a session of its own, and its child one that hides from everything."""
    word = ask.watch.word
    command = f"setsid env -i HIDDEN={word} tail -f /dev/null & tail -f /dev/null"
    received: list[AgentMessage] = []
    with trio.fail_after(LIMIT), trio.CancelScope() as scope:
        async with open_agent(ask.run(f"[[sh: {command}]]")) as agent:
            async for message in agent.messages:
                received.append(message)
                if message.kind != "tool_use":
                    continue
                await trio.to_thread.run_sync(ask.watch.wait_alive, 3)
                began = trio.current_time()
                if how == "stop":
                    agent.stop("enough")
                elif how == "leave":
                    break
                else:
                    scope.cancel()
    assert trio.current_time() - began < 12.0
    assert agent.result is not None
    assert agent.result.status == "aborted"
    assert agent.result.session_id
    if how == "stop":
        assert _kinds(received)[-2:] == ["tool_use", "tool_result"]


async def test_a_killed_program_is_a_process_failure(ask: Claude) -> None:
    with trio.fail_after(LIMIT):
        async with open_agent(ask.run("[[sh: kill -9 $PPID; tail -f /dev/null]]")) as agent:
            messages = [message async for message in agent.messages]
    assert agent.result is not None
    assert agent.result.status == "failed"
    assert failure.classify(agent.result.error) == failure.PROCESS_FAILURE
    assert agent.result.exit_code == -9
    assert _kinds(messages) == ["tool_use", "tool_result"]
    assert agent.result.session_id
    assert sum(tokens.input for tokens in agent.result.usage.values()) > 0
