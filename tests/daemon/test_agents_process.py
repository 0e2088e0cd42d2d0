"""Agent processes that misbehave: whatever they do, the run ends, is judged and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from daemon.agents import process as process_module
from daemon.agents import session as session_module
from daemon.agents import stream_json
from daemon.agents.contract import AgentError, AgentMessage, AgentResult, AgentRun, Program
from daemon.agents.launch import open_agent
from daemon.agents.process import kill_marked
from shared import failure
from tests.support.processes import Watch, no_survivors
from tests.support.scripted_agent import ROOT, SESSION, environment, scripted

pytestmark = pytest.mark.together

LIMIT = 30.0
# Leaves the group, the session and the environment; only a subreaper can still know it.
ESCAPE = "setsid env -i HIDDEN={word} sh -c '(tail -f /dev/null & tail -f /dev/null)' &"


@pytest.fixture
def watch() -> Iterator[Watch]:
    with no_survivors() as found:
        yield found


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For agents that do not know the protocol's stop: why wait for their answer."""
    monkeypatch.setattr(process_module, "PROTOCOL_GRACE", 0.3)


@pytest.fixture
def make(watch: Watch, tmp_path: Path) -> Any:
    def run(*steps: dict[str, Any], prompt: str = "go", **more: Any) -> AgentRun:
        more.setdefault("program", scripted(*steps))
        more.setdefault("cwd", tmp_path)
        return AgentRun(env=environment(watch.word), prompt=prompt, **more)

    return run


async def finish(run: AgentRun) -> tuple[list[AgentMessage], AgentResult]:
    with trio.fail_after(LIMIT):
        async with open_agent(run) as agent:
            messages = [message async for message in agent.messages]
    assert agent.result is not None
    return [m for m in messages if m.kind not in {"log", "status"}], agent.result


async def test_an_ordinary_run(make: Any) -> None:
    messages, result = await finish(
        make({"prompt": True}, {"say": "a"}, {"tool": "echo b"}, {"done": "c"})
    )
    assert [(m.kind, m.content or m.output) for m in messages] == [
        ("text", "a"), ("tool_use", ""), ("tool_result", "b\n"),
    ]  # fmt: skip
    assert (result.status, result.output, result.exit_code) == ("completed", "c", 0)
    assert result.session_id == SESSION


async def test_the_prompt_is_written_while_the_banner_is_read(make: Any) -> None:
    banner = {"flood": 300_000}
    messages, result = await finish(
        make(banner, {"echo": True}, {"done": "ok"}, prompt="x" * 300_000)
    )
    assert result.status == "completed"
    assert int(messages[0].content) > 300_000


async def test_a_grandchild_that_holds_the_pipes_delays_nothing(make: Any, watch: Watch) -> None:
    began = trio.current_time()
    _, result = await finish(
        make({"spawn": ESCAPE.format(word=watch.word)}, {"sleep": 0.3}, {"done": "ok"})
    )
    assert result.status == "completed"
    assert trio.current_time() - began < 3


async def test_a_line_without_end_is_a_read_error_and_the_end(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, result = await finish(make({"flood": 40 * 1024 * 1024}, {"sleep": 60}, {"done": "never"}))
    assert result.status == "failed"
    assert result.error.startswith("claude stdout read error: ")
    monkeypatch.setattr(process_module, "LINE_LIMIT", 1)  # nothing hangs on the old default
    _, result = await finish(make({"flood": 20 * 1024 * 1024}, {"done": "one long line is fine"}))
    assert result.status == "completed"


async def test_without_a_result_it_failed(make: Any) -> None:
    _, result = await finish(make({"say": "half of"}))
    assert result.error == "claude stream ended without terminal result"
    _, result = await finish(make({"stderr": "x" * 5000 + "the end\n"}, {"exit": 7}))
    assert result.error.startswith("claude exited with error: exit status 7; claude stderr: xxx")
    assert result.error.endswith("the end")
    assert len(result.error) < 2200
    assert result.exit_code == 7


async def test_a_program_that_ignores_everything_is_killed(make: Any, watch: Watch) -> None:
    steps = [
        {"ignore": "SIGTERM"}, {"spawn": ESCAPE.format(word=watch.word)}, {"say": "here"},
        {"sleep": 600},
    ]  # fmt: skip
    with trio.fail_after(LIMIT):
        async with open_agent(make(*steps)) as agent:
            async for message in agent.messages:
                if message.kind == "text":
                    break
            await trio.to_thread.run_sync(watch.wait_alive, 4)
            began = trio.current_time()
            agent.stop("enough")
            async for _ in agent.messages:
                pass
            assert trio.current_time() - began < 12
    assert agent.result is not None
    assert (agent.result.status, agent.result.error) == ("aborted", "enough")
    assert agent.result.session_id == SESSION
    assert agent.result.exit_code == -signal.SIGKILL


@pytest.mark.usefixtures("_impatient")
async def test_leaving_early_still_gives_a_result(make: Any) -> None:
    with trio.fail_after(LIMIT):
        async with open_agent(make({"say": "x"}, {"sleep": 600})) as agent:
            await agent.messages.receive()
    assert agent.result is not None
    assert agent.result.status == "aborted"


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("after", [0.0, 0.01, 0.03, 0.06, 0.1, 0.3])
async def test_cancelling_at_any_moment_leaves_nothing(
    make: Any, watch: Watch, after: float
) -> None:
    steps = [{"tool": "tail -f /dev/null"}]
    with trio.fail_after(LIMIT), trio.move_on_after(after):
        async with open_agent(make(*steps)) as agent:
            async for _ in agent.messages:
                pass
    assert not watch.alive()


async def test_no_stream_stays_open_when_the_end_outlives_its_shield(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "KILL_GRACE", 0.0)
    monkeypatch.setattr(process_module, "_LAST_WAIT", 0.0)
    started = []
    start = process_module._start

    async def noted(*args: Any) -> Any:
        started.append(await start(*args))
        return started[-1]

    monkeypatch.setattr(process_module, "_start", noted)
    with trio.move_on_after(0.5):
        async with open_agent(make({"say": "x"}, {"sleep": 600})) as agent:
            await agent.messages.receive()
            await trio.sleep_forever()
    [process] = started
    streams = (process._stdin, process._stdout, process._process.stderr, process._control.socket)
    assert [stream.fileno() for stream in streams] == [-1, -1, -1, -1]
    with trio.fail_after(5):
        await process._process.wait()


async def test_errors_of_the_block_come_out_bare(make: Any) -> None:
    with pytest.raises(KeyError):
        async with open_agent(make({"sleep": 600})):
            raise KeyError("mine")


async def test_a_slow_consumer_loses_nothing(make: Any) -> None:
    says = [{"say": str(number)} for number in range(600)]
    with trio.fail_after(LIMIT):
        async with open_agent(make(*says, {"done": "ok"})) as agent:
            await trio.sleep(0.5)
            received = [message async for message in agent.messages]
    texts = [m.content for m in received if m.kind == "text"]
    assert texts == [str(number) for number in range(600)]
    assert agent.result is not None
    assert agent.result.status == "completed"


async def test_a_program_that_does_not_leave_after_its_result_is_ended(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_json, "_EXIT_LINGER", 0.3)
    _, result = await finish(make({"done": "ok"}, {"sleep": 600}))
    assert (result.status, result.output) == ("completed", "ok")


async def test_a_turn_that_may_begin_by_itself_is_waited_for_and_then_the_input_is_closed(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_json, "_EXIT_LINGER", 0.3)
    task = {"type": "system", "subtype": "task_started", "task_id": "b"}
    told = {"type": "system", "subtype": "task_notification", "task_id": "b"}
    _, result = await finish(
        make({"event": task}, {"event": told}, {"done": "ok"}, {"open_for": 60})
    )
    assert (result.status, result.output, result.exit_code) == ("completed", "ok", 0)


async def test_a_program_that_closes_its_output_and_stays_is_ended(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_EXIT_GRACE", 0.3)
    _, result = await finish(make({"done": "ok"}, {"close": "stdout"}, {"sleep": 600}))
    assert (result.status, result.output) == ("completed", "ok")


async def test_the_wardens_death_is_the_agents(make: Any, watch: Watch) -> None:
    steps = [{"spawn": "setsid tail -f /dev/null &"}, {"say": "here"}, {"sleep": 600}]
    with trio.fail_after(LIMIT):
        async with open_agent(make(*steps)) as agent:
            async for message in agent.messages:
                if message.kind == "text":
                    break
            found = await trio.to_thread.run_sync(watch.wait_alive, 3)
            (warden,) = (p for p in found if p.ppid() == os.getpid())
            warden.kill()
            async for _ in agent.messages:
                pass
    assert agent.result is not None
    assert failure.classify(agent.result.error) == failure.PROCESS_FAILURE


async def test_a_killed_daemon_takes_its_agents_along(watch: Watch, tmp_path: Path) -> None:
    script = ESCAPE.format(word=watch.word)
    program = scripted({"spawn": script}, {"say": "here"}, {"ignore": "SIGTERM"}, {"sleep": 600})
    code = (
        "import sys, trio; from pathlib import Path\n"
        "from daemon.agents.launch import open_agent\n"
        "from daemon.agents.contract import AgentRun, Program\n"
        "async def main():\n"
        f"    run = AgentRun(program=Program(provider='claude', path={program.path!r},"
        f" args={program.args!r}), cwd=Path({str(tmp_path)!r}),"
        f" env={environment(watch.word)!r}, prompt='x')\n"
        "    async with open_agent(run) as agent:\n"
        "        async for message in agent.messages: print(message.kind, flush=True)\n"
        "trio.run(main)\n"
    )
    daemon = await trio.lowlevel.open_process(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert daemon.stdout is not None
    with trio.fail_after(LIMIT):
        seen = b""
        while b"text" not in seen:
            seen += await daemon.stdout.receive_some()
        await trio.to_thread.run_sync(watch.wait_alive, 4)
        daemon.kill()
        await daemon.wait()
        await daemon.stdout.aclose()
        await trio.to_thread.run_sync(watch.wait_gone)


async def test_many_agents_at_once(make: Any, watch: Watch) -> None:
    results: list[AgentResult] = []

    async def one(number: int) -> None:
        _, result = await finish(make({"tool": f"echo {number}"}, {"done": str(number)}))
        results.append(result)

    async with trio.open_nursery() as agents:
        for number in range(12):
            agents.start_soon(one, number)
    assert sorted(int(result.output) for result in results) == list(range(12))


async def test_what_cannot_be_started_says_so(make: Any, tmp_path: Path) -> None:
    async def error(**more: Any) -> str:
        with pytest.raises(AgentError) as caught:
            async with open_agent(make(**more)):
                pass
        return str(caught.value)

    def program(path: object) -> Program:
        return Program(provider="claude", path=str(path))

    empty = tmp_path / "empty"
    empty.touch()
    assert await error(program=program(empty)) == f'claude executable not found at "{empty}"'
    empty.chmod(0o755)
    assert "exec format error" in await error(program=program(empty))
    nowhere = await error(program=program(tmp_path / "nothing"))
    assert failure.classify(nowhere) == failure.MISSING_EXECUTABLE
    assert "does not exist" in await error(cwd=tmp_path / "gone")
    assert "no driver" in await error(program=Program(provider="kimi", path="/bin/true"))
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert "executable not found" in await error(program=program(script))


def test_a_marked_process_is_found_and_killed_and_no_other(watch: Watch) -> None:
    marked = subprocess.Popen(["sleep", "60"], env={"MULTICA_TASK_ID": watch.word, "PATH": "/bin"})
    other = subprocess.Popen(["sleep", "60"], env={"MULTICA_TASK_ID": f"{watch.word}x"})
    try:
        assert kill_marked(watch.word) == 1
        assert marked.wait(5) == -signal.SIGKILL
        assert psutil.pid_exists(other.pid)
        assert other.poll() is None
    finally:
        for process in (marked, other):
            process.kill()
            process.wait()
