"""What every test of a real agent program needs: the program, a home, a stub, no survivors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from daemon.agents.contract import Program
from tests.support import agent_programs
from tests.support.processes import Watch, no_survivors
from tests.support.stub_messages_api import Stub, open_stub


@pytest.fixture(scope="session")
def claude() -> Program:
    path = agent_programs.find("claude")
    if path is None:
        pytest.fail("claude is not installed: run `python -m tests.support.agent_programs` first")
    version = agent_programs.PACKAGES["claude"].version
    return Program(provider="claude", path=str(path), version=version)


@pytest.fixture
def watch() -> Iterator[Watch]:
    with no_survivors() as found:
        yield found


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    async with open_stub() as running:
        yield running


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The agent's work directory; its home stands beside it."""
    (tmp_path / "home").mkdir()
    folder = tmp_path / "work"
    folder.mkdir()
    return folder
