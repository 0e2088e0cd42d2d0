"""Rules for every test: which tier it belongs to, and that no unexpected error was logged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
import structlog
import trio
from hypothesis import HealthCheck, settings

# How fast examples are drawn says something of the machine, not of the code.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

TIERS = {"fast", "simulation", "postgres", "together", "browser", "real_agents", "machine"}

_LOUD = frozenset({"error", "exception", "critical"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not TIERS & {mark.name for mark in item.iter_markers()}:
            raise pytest.UsageError(
                f"{item.nodeid} has no tier; mark it with one of {sorted(TIERS)}"
            )


@pytest.fixture(autouse=True)
def no_threads_on_virtual_time(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Virtual time runs on while a thread works, so there the task itself works on disk."""

    async def at_once(work: Callable[[], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return work()

    if any(request.node.get_closest_marker(tier) for tier in ("fast", "simulation")):
        monkeypatch.setattr("daemon.threads.in_thread", at_once)


RUN_MARK = "PYTEST_RUN_MARK"
"""A variable that every process a test starts inherits, so that what it leaves is known by it."""


@pytest.fixture(autouse=True)
def no_agent_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test that leaves an agent, or anything an agent started, alive."""
    if not any(request.node.get_closest_marker(t) for t in ("together", "browser", "real_agents")):
        yield
        return
    mark = os.environ[RUN_MARK] = f"{os.getpid()}-{request.node.name}"
    yield
    del os.environ[RUN_MARK]
    deadline = time.monotonic() + 5
    while (left := _agents_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"agents left: {left}"


def _agents_of(mark: str) -> list[str]:
    """The commands of the processes that run on behalf of a task of this test."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environ = process.environ()
            if environ.get(RUN_MARK) == mark and "MULTICA_TASK_ID" in environ:
                found.append(" ".join(process.cmdline()))
    return found


class ExpectedErrors:
    """Error records of the running test; `expect` claims those whose event contains a text."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def expect(self, text: str) -> None:
        claimed = [record for record in self.records if text in str(record.get("event"))]
        assert claimed, f"no error containing {text!r} was logged: {self.records}"
        self.records = [record for record in self.records if record not in claimed]


@pytest.fixture(autouse=True)
def error_log() -> Iterator[ExpectedErrors]:
    """Fails the test that logs an error it does not expect."""
    seen = ExpectedErrors()

    def collect(_: Any, method: str, record: Any) -> Any:
        if method in _LOUD:
            seen.records.append(dict(record))
        raise structlog.DropEvent

    structlog.configure(processors=[collect], cache_logger_on_first_use=False)
    yield seen
    structlog.reset_defaults()
    assert not seen.records, f"unexpected errors were logged: {seen.records}"
