"""A task's surroundings for tests: the fake server, a pool on it, and agents scripted in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from daemon.agents.contract import Agent, AgentMessage, AgentResult, AgentRun, Program, Tokens
from daemon.client import Client
from daemon.config import Config
from daemon.runtimes.info import RuntimeInfo
from daemon.tasks.backlog import Backlog
from daemon.tasks.pool import TaskPool
from daemon.tasks.task import TaskRunner
from shared import codec
from shared.wire.task import DISPATCHED, ClaimedTask
from tests.support.fake_server import (
    WORKSPACE,
    FakeServer,
    FakeTask,
    client_of,
    make_config,
    open_fake_server,
    uid,
)

RUNTIME = RuntimeInfo(
    id=uid("runtime"),
    workspace_id=WORKSPACE,
    provider="claude",
    program=Program(provider="claude", path="/bin/claude", version="2.1.0"),
)

Step = AgentMessage | float | Callable[[], None]
"""A message to send, seconds of silence, or something to do."""

USAGE = {"opus": Tokens(input=10, output=5)}

DONE = AgentResult(status="completed", output="done", session_id="s1", usage=USAGE)


def text(content: str) -> AgentMessage:
    return AgentMessage(kind="text", content=content)


def thinking(content: str) -> AgentMessage:
    return AgentMessage(kind="thinking", content=content)


def tool_use(call_id: str, tool: str = "Bash", **arguments: Any) -> AgentMessage:
    return AgentMessage(kind="tool_use", call_id=call_id, tool=tool, input=arguments)


def tool_result(call_id: str, output: str = "", tool: str = "") -> AgentMessage:
    return AgentMessage(kind="tool_result", call_id=call_id, tool=tool, output=output)


def status(session_id: str) -> AgentMessage:
    return AgentMessage(kind="status", session_id=session_id)


@attrs.frozen(kw_only=True)
class Script:
    """What one run of the agent does; it takes `stop_takes` seconds to stop when told to."""

    steps: tuple[Step, ...] = ()
    result: AgentResult = DONE
    stop_takes: float = 1.0
    last_words: tuple[AgentMessage, ...] = ()


class ScriptedAgent:
    """One run in memory; implements `contract.Agent`."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._send, self.messages = trio.open_memory_channel[AgentMessage](256)
        self._acting = trio.CancelScope()
        self._stopped = ""
        self._guard = trio.CancelScope(shield=True)
        self.result: AgentResult | None = None

    def stop(self, reason: str) -> None:
        self._stopped = self._stopped or reason
        self._acting.cancel()

    def leave(self) -> None:
        self.stop("left")
        self._guard.deadline = trio.current_time() + 12

    async def run(self) -> None:
        with self._guard, self._send:
            with self._acting:
                for step in self._script.steps:
                    if isinstance(step, AgentMessage):
                        await self._send.send(step)
                    elif callable(step):
                        step()
                    else:
                        await trio.sleep(step)
                self.result = self._script.result
            if self.result is None:
                await trio.sleep(self._script.stop_takes)
                for message in self._script.last_words:
                    await self._send.send(message)
                self.result = AgentResult(
                    status="aborted", error=self._stopped, session_id="s1", usage=USAGE
                )


class Agents:
    """Opens agents by script, one script a run, the last one for all further runs."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.runs: list[AgentRun] = []
        self.alive = 0
        self.refuse: Exception | None = None

    @asynccontextmanager
    async def open(self, run: AgentRun) -> AsyncIterator[Agent]:
        self.runs.append(run)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        await trio.lowlevel.checkpoint()
        if self.refuse is not None:
            raise self.refuse
        agent = ScriptedAgent(script)
        self.alive += 1
        try:
            async with trio.open_nursery() as process:
                process.start_soon(agent.run)
                try:
                    yield agent
                finally:
                    agent.leave()
        finally:
            self.alive -= 1


async def tell_journals(client: Client, folder: Path) -> None:
    """Do what a daemon does at its start; return when every journal is told."""
    backlog = Backlog(client, folder)
    async with trio.open_nursery() as telling:
        telling.start_soon(backlog.run)
        while backlog.count:  # noqa: ASYNC110 - virtual time
            await trio.sleep(0.1)
        telling.cancel_scope.cancel()


@attrs.define(eq=False)
class Bench:
    """A pool on the fake server. `run` hands a task over and waits for the pool to be empty."""

    server: FakeServer
    client: Client
    config: Config
    pool: TaskPool
    agents: Agents
    runner: TaskRunner
    backlog: Backlog

    def add(self, name: str = "task", **claimed: Any) -> FakeTask:
        """Put a dispatched task on the server."""
        task = self.server.add_task(RUNTIME.id, uid(name), **claimed)
        task.status = DISPATCHED
        return task

    def hand_over(self, task: FakeTask) -> bool:
        slot = self.pool.try_take_slot()
        assert slot is not None
        claimed = codec.structure({**task.claimed, "status": DISPATCHED}, ClaimedTask)
        return self.pool.hand_over(claimed, slot, RUNTIME)

    async def run(self, task: FakeTask, within: float = 100_000) -> FakeTask:
        self.hand_over(task)
        with trio.fail_after(within):
            await self.pool.wait_empty()
        return task

    @property
    def journals(self) -> list[Path]:
        return sorted(self.config.home.journals.glob("*"))

    def routes(self, task: FakeTask) -> list[str]:
        """The calls made about a task, in order, shortened to their last word."""
        return [call.path.rsplit("/", 1)[1] for call in self.server.calls if task.id in call.path]


@asynccontextmanager
async def open_bench(home: Path, *scripts: Script, **changes: Any) -> AsyncIterator[Bench]:
    """Open a bench; leaving it normally checks that nothing is left behind."""
    agents = Agents(*(scripts or (Script(),)))
    async with open_fake_server() as server:
        config = make_config(home, **changes)
        async with client_of(server, config) as client:
            backlog = Backlog(client, config.home.journals)
            runner = TaskRunner(
                config,
                client,
                control_port=19514,
                open_agent=agents.open,
                backlog=backlog,
                env={"PATH": "/bin"},
            )
            async with trio.open_nursery() as tasks:
                pool = TaskPool(config.max_concurrent_tasks, tasks, runner.run, backlog.owes)
                yield Bench(server, client, config, pool, agents, runner, backlog)
                await pool.wait_empty()
            assert pool.slots_out == 0
            assert pool.active == frozenset()
            assert agents.alive == 0
