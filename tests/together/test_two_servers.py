"""Several servers on one Postgres: they are one to whoever uses them, and none is needed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Self

import attrs
import httpx
import psutil
import pytest
import trio
import trio_websocket

from server.database import Database, open_database
from server.store.queries import Connection
from tests.support.bullpen import wait_for
from tests.support.own_postgres import OwnPostgres, start_postgres
from tests.support.portal import open_portal
from tests.support.postgres import open_test_database
from tests.support.rows import (
    World,
    insert,
    make_issue,
    make_task,
    make_token,
    make_user,
    make_world,
)
from tests.support.server_process import ServerProcess, start_servers

pytestmark = pytest.mark.together


@attrs.frozen
class Stage:
    """A world in a database, and two servers on it."""

    world: World
    peer_token: str
    """Of another member, with nothing of their own."""
    issue_id: str
    task_id: str
    servers: list[ServerProcess]
    read: Callable[[str], list[str]]

    def client(self, server: int) -> httpx.Client:
        return httpx.Client(
            base_url=self.servers[server].url,
            headers={
                "Authorization": f"Bearer {self.world.token}",
                "X-Workspace-ID": self.world.workspace_id,
            },
            timeout=15,
            trust_env=False,
        )

    def socket(self, server: int) -> str:
        base = self.servers[server].url.replace("http://", "ws://")
        return f"{base}/ws?workspace_id={self.world.workspace_id}"


@contextmanager
def two_servers(database_url: str = "") -> Iterator[Stage]:
    """Two servers on a database, by default one made for the test."""
    urls = [database_url]

    @asynccontextmanager
    async def open_it() -> AsyncIterator[Database]:
        if database_url:
            async with open_database(database_url, pool_size=2) as database:
                yield database
        else:
            async with open_test_database(pool_size=2) as (database, urls[0]):
                yield database

    with open_portal(open_it) as portal, start_servers(2, urls[0]) as servers:
        database = portal.resource

        async def fill() -> tuple[World, str, str, str]:
            world = await make_world(database)

            async def unit(conn: Connection) -> tuple[str, str, str]:
                peer = await make_user(conn, "Peer")
                place = {"workspace_id": world.workspace_id, "user_id": peer}
                await insert(conn, "member", **place, role="member")
                issue = await make_issue(conn, world, assignee_type=None, assignee_id=None)
                task_id = await make_task(conn, world, issue_id=issue.id, status="running")
                return await make_token(conn, peer), issue.id, task_id

            return world, *await database.write(unit)

        async def column(query: str) -> list[str]:
            rows = await database.read(lambda conn: conn.fetch(query))
            return [row[0] for row in rows]

        filled = portal(fill)
        yield Stage(*filled, servers, lambda query: portal(column, query))


@pytest.fixture
def stage() -> Iterator[Stage]:
    with two_servers() as opened:
        yield opened


class Writer:
    """A user or daemon who keeps writing to one server and remembers what was confirmed."""

    def __init__(self, stage: Stage, server: int) -> None:
        self._stage = stage
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer {server}")
        self.comments: list[str] = []
        self.rows: list[int] = []
        self.refused = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        number = 0
        with self._stage.client(self._server) as client:
            while not self._stop.is_set():
                number += 1
                self._write(client, number)

    def _write(self, client: httpx.Client, number: int) -> None:
        text = f"server {self._server} comment {number}"
        seq = 2 * number + self._server
        row = {"seq": seq, "type": "text", "content": "x"}
        stage = self._stage
        for path, body, done in (
            (f"/api/issues/{stage.issue_id}/comments", {"content": text}, 201),
            (f"/api/daemon/tasks/{stage.task_id}/messages", {"messages": [row]}, 200),
        ):
            try:
                answer = client.post(path, json=body)
            except httpx.TransportError:
                self.refused += 1
                time.sleep(0.02)
                continue
            if answer.status_code != done:
                assert answer.status_code >= 500, f"{answer.status_code} {answer.text}"
                self.refused += 1
                time.sleep(0.02)
            elif done == 201:
                self.comments.append(text)
            else:
                self.rows.append(seq)


def assert_all_there(stage: Stage, writers: list[Writer]) -> None:
    comments = set(stage.read("select content from comment"))
    rows = set(map(int, stage.read("select seq::text from task_message")))
    for writer in writers:
        assert writer.comments, "nothing was written"
        missing = [text for text in writer.comments if text not in comments]
        assert not missing, f"confirmed and lost: {missing}"
        assert not set(writer.rows) - rows, "a confirmed transcript row is lost"


def test_what_happens_on_one_server_is_seen_on_the_other(stage: Stage) -> None:
    async def watch() -> None:
        async with trio_websocket.open_websocket_url(stage.socket(1)) as socket:
            auth = {"type": "auth", "payload": {"token": stage.world.token}}
            await socket.send_message(json.dumps(auth))
            assert json.loads(await socket.get_message())["type"] == "auth_ack"
            with stage.client(0) as client, trio.fail_after(20):
                for number in range(20):
                    sent = await trio.to_thread.run_sync(
                        lambda number=number: client.post(
                            f"/api/issues/{stage.issue_id}/comments", json={"content": f"{number}"}
                        )
                    )
                    assert sent.status_code == 201
                    while True:
                        frame = json.loads(await socket.get_message())
                        if frame["type"] == "comment:created":
                            assert frame["payload"]["comment"]["content"] == f"{number}"
                            break

    trio.run(watch)


def test_a_private_agents_run_stays_private_across_servers(stage: Stage) -> None:
    """What is announced by one server is sent by the other to who may read it, and to nobody else."""
    secret = "what a private agent says"

    def act() -> None:
        with stage.client(0) as client:
            agent = f"/api/agents/{stage.world.agent_id}"
            client.put(agent, json={"visibility": "private"}).raise_for_status()
            path = f"/api/daemon/tasks/{stage.task_id}"
            row = {"seq": 1, "type": "text", "content": secret}
            client.post(f"{path}/messages", json={"messages": [row]}).raise_for_status()
            told = {"summary": secret, "step": 1, "total": 2}
            client.post(f"{path}/progress", json=told).raise_for_status()
            client.put(agent, json={"description": secret}).raise_for_status()
            end = client.post(f"/api/issues/{stage.issue_id}/comments", json={"content": "end"})
            end.raise_for_status()

    async def listen(token: str, heard: list[str], *, task_status: Any) -> None:
        async with trio_websocket.open_websocket_url(stage.socket(1)) as socket:
            await socket.send_message(json.dumps({"type": "auth", "payload": {"token": token}}))
            assert json.loads(await socket.get_message())["type"] == "auth_ack"
            task_status.started()
            while True:
                heard.append(await socket.get_message())
                if json.loads(heard[-1])["type"] == "comment:created":
                    return

    async def watch() -> None:
        owners: list[str] = []
        peers: list[str] = []
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(listen, stage.world.token, owners))
                await nursery.start(partial(listen, stage.peer_token, peers))
                await trio.to_thread.run_sync(act)
        told = {json.loads(text)["type"] for text in owners if secret in text}
        assert told >= {"task:message", "task:progress", "agent:status"}
        assert not [text for text in peers if secret in text]

    trio.run(watch)


def test_a_killed_server_takes_nothing_with_it(stage: Stage) -> None:
    with Writer(stage, 0) as doomed, Writer(stage, 1) as other:
        wait_for("writes on both", lambda: len(doomed.comments) > 20 < len(other.comments) or None)
        stage.servers[0].kill()
        before = len(other.comments)
        wait_for("the other to go on", lambda: len(other.comments) > before + 20 or None)
    assert doomed.refused
    assert not other.refused, "the other server was harmed"
    assert_all_there(stage, [doomed, other])


@pytest.fixture
def own_postgres() -> Iterator[OwnPostgres]:
    with start_postgres() as started:
        yield started


@pytest.mark.parametrize("how", ["crash", "restart"])
def test_postgres_restarts_under_load_and_no_confirmed_write_is_missing(
    own_postgres: OwnPostgres, how: str
) -> None:
    with two_servers(own_postgres.url) as stage:
        with Writer(stage, 0) as first, Writer(stage, 1) as second:
            for _ in range(2):
                before = len(first.comments), len(second.comments)
                own_postgres.stop(crash=how == "crash")
                time.sleep(0.3)  # the outage itself: requests are refused meanwhile
                own_postgres.start()
                wait_for(
                    "both servers to write again",
                    lambda before=before: (
                        (
                            len(first.comments) > before[0] + 20
                            and len(second.comments) > before[1] + 20
                        )
                        or None
                    ),
                )
        assert first.refused + second.refused, "the restart was not noticed: nothing was tested"
        assert_all_there(stage, [first, second])
        for server in stage.servers:
            assert psutil.Process(server.process.pid).is_running()
