"""The queue keeps its promises over two servers that share nothing but Postgres.

`BULLPEN_TEST_STEPS=20000` walks longer; a failing walk is printed step by step, and
`--hypothesis-seed=N` repeats it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from server.database import Database
from tests.support.portal import Portal, open_portal
from tests.support.postgres import open_test_database
from tests.support.server_process import ServerProcess, start_servers
from tests.together.queue_machine import Together, machine_for

pytestmark = pytest.mark.together

STEPS = int(os.environ.get("BULLPEN_TEST_STEPS", "2000"))
PHASES = tuple(Phase) if os.environ.get("BULLPEN_TEST_SHRINK") else (Phase.explicit, Phase.generate)
"""Looking for a shorter walk that fails too takes minutes: by option."""
WALK = 100
"""Steps per walk; each walk has a workspace of its own."""


@asynccontextmanager
async def _database() -> AsyncIterator[Database]:
    async with open_test_database(pool_size=2) as (database, url):
        database_url.append(url)
        yield database


database_url: list[str] = []


@pytest.fixture
def stage() -> Iterator[tuple[Portal[Database], list[ServerProcess]]]:
    with open_portal(_database) as portal, start_servers(2, database_url.pop()) as servers:
        yield portal, servers


@contextmanager
def told_by(servers: list[ServerProcess]) -> Iterator[None]:
    """What the servers logged goes with a failure."""
    try:
        yield
    except BaseException as error:
        for server in servers:
            error.add_note(f"log of {server.url}:\n{server.log.read_text()[-4000:]}")
        raise


def test_random_lives_of_tasks_over_two_servers(
    stage: tuple[Portal[Database], list[ServerProcess]],
) -> None:
    portal, servers = stage
    with ThreadPoolExecutor(8) as workers, told_by(servers):
        together = Together([server.url for server in servers], portal, workers)
        run_state_machine_as_test(
            machine_for(together),
            settings=settings(
                max_examples=max(1, STEPS // WALK),
                stateful_step_count=WALK,
                deadline=None,
                database=None,
                print_blob=True,
                phases=PHASES,
                suppress_health_check=list(HealthCheck),
            ),
        )

    for what in ("claimed", "claimed again", "completed", "failed", "cancelled", "went on"):
        assert together.seen[what], f"none was {what}: {together.seen}"
    for server in servers:
        assert '"level": "error"' not in server.log.read_text(), server.log.read_text()[-3000:]
