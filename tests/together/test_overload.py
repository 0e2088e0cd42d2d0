"""Two servers under more than they can do: nothing is lost, nobody is thrown out, reads go on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest
import trio
from trio_websocket import ConnectionClosed, open_websocket_url

from server.store.queries import Connection
from tests.support.postgres import open_test_database
from tests.support.rows import make_issue, make_world
from tests.support.server_process import start_servers

pytestmark = pytest.mark.together

SOCKETS = 150
RATE = 50
"""Requests a second, half of them for the row that is locked."""

SECONDS = 10.0


async def test_sockets_and_reads_live_through_a_locked_row_under_load() -> None:
    async with open_test_database(pool_size=3) as (database, url):
        world = await make_world(database)

        async def fill(conn: Connection) -> tuple[str, str]:
            locked = await make_issue(conn, world, assignee_type=None, assignee_id=None)
            free = await make_issue(conn, world, assignee_type=None, assignee_id=None)
            return locked.id, free.id

        locked, free = await database.write(fill)
        with start_servers(2, url, {"BULLPEN_DATABASE_POOL": "8"}) as servers:
            async with (
                httpx.AsyncClient(
                    headers={
                        "authorization": f"Bearer {world.token}",
                        "x-workspace-id": world.workspace_id,
                    },
                    limits=httpx.Limits(max_connections=None),
                    timeout=30,
                    trust_env=False,
                ) as client,
                trio.open_nursery() as crowd,
            ):
                pages = await _open_pages(crowd, [s.url for s in servers], world)
                async with trio.open_nursery() as load:
                    load.start_soon(database.write, _hold(locked))
                    reads, writes = await _load(client, servers[0].url, locked, free)
                told = await client.put(
                    f"{servers[0].url}/api/issues/{free}", json={"title": "Afterwards"}
                )
                assert told.status_code == 200
                with trio.fail_after(10):
                    for page in pages:
                        await page.heard.wait()
                crowd.cancel_scope.cancel()
        assert set(reads.statuses) == {200}, reads.statuses
        assert reads.longest < 5.0  # one locked row made it 17 s
        assert set(writes.statuses) <= {200, 503}, writes.statuses
        assert writes.statuses[503] > 0  # and they were told to come again, before they gave up
        assert writes.longest < 14.0
        assert [page.lost for page in pages] == [None] * SOCKETS


def _hold(issue_id: str) -> Any:
    async def unit(conn: Connection) -> None:
        await conn.fetchval("select id from issue where id = $1 for update", issue_id)
        await conn.fetchval("select pg_sleep($1)", SECONDS)

    return unit


class Page:
    """An open page: what ended its socket, and whether it heard of the last change."""

    def __init__(self) -> None:
        self.lost: str | None = None
        self.heard = trio.Event()

    async def run(self, url: str, first: str, *, task_status: trio.TaskStatus[None]) -> None:
        async with open_websocket_url(url, message_queue_size=64) as socket:
            await socket.send_message(first)
            task_status.started()
            try:
                while True:
                    if "Afterwards" in await socket.get_message():
                        self.heard.set()
            except ConnectionClosed as closed:
                self.lost = str(closed.reason)
                self.heard.set()


async def _open_pages(crowd: trio.Nursery, urls: list[str], world: Any) -> list[Page]:
    first = '{"type":"auth","payload":{"token":"' + world.token + '"}}'
    pages = []
    for number in range(SOCKETS):
        page = Page()
        url = urls[number % 2].replace("http:", "ws:") + f"/ws?workspace_id={world.workspace_id}"
        await crowd.start(page.run, url, first)
        pages.append(page)
    return pages


class Figures:
    """What the requests of a kind came to."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.longest = 0.0


async def _load(
    client: httpx.AsyncClient, url: str, locked: str, free: str
) -> tuple[Figures, Figures]:
    reads, writes = Figures(), Figures()

    async def read() -> None:
        await _timed(reads, client.get(f"{url}/api/issues/{free}"))

    async def change() -> None:
        await _timed(writes, client.put(f"{url}/api/issues/{locked}", json={"priority": "high"}))

    async with trio.open_nursery() as requests:
        end = trio.current_time() + SECONDS - 1
        while trio.current_time() < end:
            requests.start_soon(read)
            requests.start_soon(change)
            await trio.sleep(2 / RATE)
    return reads, writes


async def _timed(figures: Figures, call: Any) -> None:
    began = trio.current_time()
    answer = await call
    figures.statuses[answer.status_code] += 1
    figures.longest = max(figures.longest, trio.current_time() - began)
