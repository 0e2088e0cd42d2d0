"""Start an agent: pick the provider's driver, prepare what it needs, open its session.

Woken by a task; owns the private files a run needs for as long as it lasts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import attrs

from daemon.agents import claude
from daemon.agents.contract import Agent, AgentError, AgentRun, Program
from daemon.agents.dialogue import Dialogue
from daemon.agents.isolation import private_directory
from daemon.agents.process import Launch
from daemon.agents.providers import DEMO
from daemon.agents.session import open_session
from daemon.agents.stream_json import StreamJson

DEMO_VERSION: Final = "demo 0.1.0"


@attrs.frozen(kw_only=True)
class Prepared:
    """A driver's part of a run."""

    launch: Launch
    dialogue: Dialogue


Driver = Callable[[AgentRun], AbstractContextManager[Prepared]]


@asynccontextmanager
async def open_agent(run: AgentRun) -> AsyncIterator[Agent]:
    """Run an agent; see `contract.Agent` for what may be done with it inside the block.

    Raises AgentError when it cannot be started. Leaving the block in any way, cancellation
    included, ends every process of the agent within 12 s; `result` is readable afterwards.
    """
    driver = DRIVERS.get(run.program.provider)
    if driver is None:
        raise AgentError(f"no driver for {run.program.provider!r} in this version of Bullpen")
    with driver(run) as prepared:
        async with open_session(prepared.launch, prepared.dialogue) as agent:
            yield agent


def demo_program() -> Program:
    """Return the demo agent: one file run by this Python, isolated from the work directory."""
    arguments = ("-I", "-X", "utf8", str(Path(__file__).with_name("demo.py")))
    return Program(provider=DEMO, path=sys.executable, version=DEMO_VERSION, args=arguments)


@contextmanager
def _prepare_claude(run: AgentRun) -> Iterator[Prepared]:
    with _private_json(run.mcp_config, private_directory(run.view)) as mcp_file:
        yield _prepare(
            run,
            claude.LABEL,
            claude.arguments(run, mcp_file=mcp_file),
            claude.environment(run.env),
        )


@contextmanager
def _prepare_demo(run: AgentRun) -> Iterator[Prepared]:
    argv = [run.program.path, *run.program.args]
    if run.resume_session_id:
        argv += ["--resume", run.resume_session_id]
    yield _prepare(run, DEMO, argv, run.env)


def _prepare(run: AgentRun, label: str, argv: list[str], env: Mapping[str, str]) -> Prepared:
    return Prepared(
        launch=Launch(label=label, argv=argv, cwd=run.cwd, env=env, view=run.view),
        dialogue=StreamJson(
            label=label,
            prompt=run.prompt,
            model=run.model,
            resume_session_id=run.resume_session_id,
        ),
    )


@contextmanager
def _private_json(value: Mapping[str, Any] | None, folder: Path) -> Iterator[str]:
    """Keep a value in a file only its owner can read; yields its path, "" for None."""
    if value is None:
        yield ""
        return
    handle, name = tempfile.mkstemp(
        prefix="bullpen-mcp-", suffix=".json", dir=folder
    )  # created 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file)
        yield name
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()


DRIVERS: Final[Mapping[str, Driver]] = {"claude": _prepare_claude, DEMO: _prepare_demo}
