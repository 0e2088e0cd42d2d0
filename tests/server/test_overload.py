"""More than can be done: what is refused, what goes on all the same, and what nobody waits for any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest
import trio

from server.database import Database, Line, NoRoom, NotSaid, TooSlow, open_database
from server.lanes import QUEUE, Overloaded, lane
from server.push import relay
from server.store.queries import Connection
from shared.wire.event import Event
from tests.support.postgres import open_test_database
from tests.support.rows import World, make_session, make_world
from tests.support.server import RunningServer, open_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.postgres

SIZE = 10


async def sleep_in(database: Database, seconds: float) -> None:
    await database.read(lambda conn: conn.fetchval("select pg_sleep($1)", seconds))


async def test_one_lane_does_not_keep_the_others_waiting() -> None:
    async with (
        open_test_database(pool_size=SIZE) as (database, _),
        trio.open_nursery() as crowd,
    ):
        with lane("people"):
            for _ in range(3 * SIZE):
                crowd.start_soon(_tolerant, database)

        async def busy() -> bool:
            return await sleeping(database) == SIZE * 9 // 20

        await eventually(busy)
        with trio.fail_after(1):
            with lane("daemons"):
                await sleep_in(database, 0)
            await sleep_in(database, 0)  # a service of the server
        crowd.cancel_scope.cancel()


async def sleeping(database: Database) -> int:
    """How many connections sleep."""
    count: int = await database.read(
        lambda conn: conn.fetchval(
            "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
            " and datname = current_database()"
        )
    )
    return count


async def test_a_locked_row_holds_up_writes_and_no_read() -> None:
    async with open_test_database(pool_size=SIZE) as (database, url):
        await database.write(lambda conn: conn.execute("create table held (n int)"))
        await database.write(lambda conn: conn.execute("insert into held values (1)"))
        holder = _hold(database, url)
        refused: list[float] = []

        async def change() -> None:
            began = trio.current_time()
            with pytest.raises((TooSlow, Overloaded)):
                await database.write(lambda conn: conn.execute("update held set n = n + 1"))
            refused.append(trio.current_time() - began)

        async with holder, trio.open_nursery() as crowd:
            with lane("people"):
                for _ in range(2 * SIZE):
                    crowd.start_soon(change)
                await trio.sleep(0.3)
                for _ in range(10):
                    with trio.fail_after(1):
                        await sleep_in(database, 0)
        assert len(refused) == 2 * SIZE
        assert max(refused) < 14  # told to come again, before a client gives up


@asynccontextmanager
async def _hold(database: Database, url: str) -> AsyncIterator[None]:
    """A transaction of somebody else's that has the row for longer than anybody waits."""
    async with open_database(url, pool_size=1) as other, trio.open_nursery() as nursery:

        async def unit(conn: Connection) -> None:
            await conn.execute("update held set n = 0")
            await conn.fetchval("select pg_sleep(13)")

        nursery.start_soon(other.write, unit)
        await eventually(lambda: _is_locked(database))
        yield


async def _is_locked(database: Database) -> bool:
    return await sleeping(database) == 1


async def test_a_queue_that_is_too_long_is_refused_at_once() -> None:
    async with open_test_database(pool_size=2) as (database, _), trio.open_nursery() as crowd:
        with lane("people"):
            for _ in range(QUEUE + 1):
                crowd.start_soon(_tolerant, database)
            await trio.testing.wait_all_tasks_blocked(0.05)
            with trio.fail_after(0.5), pytest.raises(Overloaded):
                await sleep_in(database, 0)
        crowd.cancel_scope.cancel()


async def _tolerant(database: Database) -> None:
    with suppress(Overloaded, TooSlow):
        await sleep_in(database, 30)


async def test_what_passes_by_itself_is_503_and_when_to_come_again() -> None:
    async with open_test_database() as (database, _), open_server(database) as server:
        world = await make_world(database)
        async with server.client(world.token, **{"x-workspace-id": world.workspace_id}) as client:
            assert (await client.get("/api/issues")).status_code == 200
            for error in (TooSlow(), Overloaded(), NoRoom()):

                async def fail(*_: Any, error: Exception = error, **__: Any) -> Any:
                    await trio.lowlevel.checkpoint()
                    raise error

                kept = database.read
                database.read = fail  # type: ignore[method-assign]
                try:
                    answer = await client.get("/api/issues")
                finally:
                    database.read = kept  # type: ignore[method-assign]
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]


async def test_a_full_disk_of_the_database_says_so() -> None:
    async def unit(_: Connection) -> None:
        raise asyncpg.DiskFullError("could not extend file")

    async with open_test_database(pool_size=1) as (database, _):
        with pytest.raises(NoRoom, match="disk"):
            await database.write(unit)


async def test_a_read_ends_with_its_client_and_a_write_does_not() -> None:
    async with open_test_database() as (database, _), open_server(database) as server:
        world = await make_world(database)
        await database.write(
            lambda conn: conn.execute(
                "create function slow() returns trigger language plpgsql as"
                " $$begin perform pg_sleep(1); return new; end$$;"
                "create trigger slow before insert on issue for each row execute function slow();"
            )
        )
        # A write: its client leaves while the trigger sleeps.
        head = f"host: a\r\nauthorization: Bearer {world.token}\r\nx-workspace-id: {world.workspace_id}"
        await _leave(
            server,
            f"POST /api/issues HTTP/1.1\r\n{head}\r\ncontent-length: 13\r\n\r\n" + '{"title":"x"}',
            0.4,
        )

        async def there() -> bool:
            return bool(
                await database.read(lambda conn: conn.fetchval("select count(*) from issue"))
            )

        await eventually(there)
        # A read: everything that reads issues now sleeps.
        await database.write(
            lambda conn: conn.execute(
                "alter table issue rename to real_issue;"
                "create view issue as select i.* from real_issue i, lateral"
                " (select pg_sleep(20) from (select i.id) one) slow"
            )
        )
        async with trio.open_nursery() as leaving:
            leaving.start_soon(_leave, server, f"GET /api/issues HTTP/1.1\r\n{head}\r\n\r\n", 1.0)

            async def busy() -> bool:
                return await sleeping(database) == 1

            await eventually(busy, seconds=1)

        async def idle() -> bool:
            return await sleeping(database) == 0

        await eventually(idle, seconds=3)


async def _leave(server: RunningServer, request: str, after: float) -> None:
    """Send a request and close the connection before its answer."""
    host, port = server.url.removeprefix("http://").split(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(request.encode())
        await trio.sleep(after)


# --- the relay ------------------------------------------------------------------------------------


def news(world: World, number: int) -> Event:
    return Event(
        type="issue:created",
        payload={"number": number},
        workspace_id=world.workspace_id,
        actor_type="member",
        actor_id=world.user_id,
    )


@asynccontextmanager
async def pair(pool_size: int = 4) -> AsyncIterator[tuple[RunningServer, RunningServer, World]]:
    async with (
        open_test_database(pool_size=pool_size) as (database, url),
        open_database(url, pool_size=pool_size) as other,
        open_server(database) as one,
        open_server(other) as two,
    ):
        yield one, two, await make_world(database)


@asynccontextmanager
async def page(server: RunningServer, world: World) -> AsyncIterator[Any]:
    parts = server.services
    session = await make_session(parts.database, parts.config, world.user_id)
    path = f"/ws?workspace_id={world.workspace_id}"
    async with server.socket(path, headers=[("cookie", f"multica_auth={session}")]) as opened:
        yield opened


async def test_the_relay_waits_behind_no_request() -> None:
    async with pair() as (one, two, world), page(two, world) as far:
        database = one.services.database
        async with trio.open_nursery() as crowd:
            for _ in range(40):  # the whole pool, and a queue for it
                crowd.start_soon(_tolerant, database)
            await eventually(lambda: database.connections()[1] == 0)
            one.services.hub.announce([news(world, 1)])
            with trio.fail_after(1):
                assert '"number":1' in await far.get_message()
            crowd.cancel_scope.cancel()
        assert [one.services.hub.tally.resyncs, two.services.hub.tally.resyncs] == [0, 0]


async def test_a_failed_notification_costs_no_socket_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay, "_AGAIN", relay.Backoff(first=0.01, limit=0.01))
    said, failures = Line.notify, [3]

    async def sometimes(self: Line, payloads: list[str], **options: Any) -> None:
        if failures[0]:
            failures[0] -= 1
            if failures[0] == 1:
                await said(self, payloads, **options)  # it was said, and the answer got lost
            raise NotSaid("no room in the queue")
        await said(self, payloads, **options)

    monkeypatch.setattr(Line, "notify", sometimes)
    async with pair() as (one, two, world), page(two, world) as far, page(one, world) as near:
        one.services.hub.announce([news(world, 1)])
        await trio.sleep(0.2)
        one.services.hub.announce([news(world, 2)])
        with trio.fail_after(3):
            for opened in (near, far):
                assert '"number":1' in await opened.get_message()
                assert '"number":2' in await opened.get_message()
        assert failures == [0]
        assert [one.services.hub.tally.resyncs, two.services.hub.tally.resyncs] == [0, 0]
