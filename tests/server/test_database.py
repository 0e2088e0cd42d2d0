"""The crossing into asyncio: cancellation, deadlines, retries, lost connections, listening."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import asyncpg
import pytest
import trio

from server.database import Database, open_database
from server.store.migrate import known, migrate, pending
from server.store.queries import Connection
from tests.conftest import ExpectedErrors
from tests.support.postgres import open_empty_database, open_test_database, url_of

pytestmark = pytest.mark.postgres


async def whole(database: Database, size: int) -> None:
    """Use every connection of the pool at once: none may have been leaked."""
    inside = 0
    everybody = asyncio.Event()

    async def unit(conn: Connection) -> None:
        nonlocal inside
        await conn.fetchval("select 1")
        inside += 1
        if inside == size:
            everybody.set()
        await everybody.wait()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(size):
                nursery.start_soon(database.read, unit)


async def test_values_cross_as_plain_ones() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        sent = ["2D0B6B3E-8F0E-4D55-9E52-5A3F4E1C7A01", {"a": [1, None, "ü"]}, "text"]
        row = await database.read(
            lambda conn: conn.fetchrow("select $1::uuid, $2::jsonb, $3::text", *sent)
        )
        assert row is not None
        assert list(row.values()) == ["2d0b6b3e-8f0e-4d55-9e52-5a3f4e1c7a01", sent[1], "text"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a\0b", "ab"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ({"k\0": ["\0x", {"y": "\ud83d"}]}, {"k": ["x", {"y": "?"}]}),
        ({"n": float("nan"), "i": float("-inf"), "t": "NaN"}, {"n": None, "i": None, "t": "NaN"}),
        ({"path": "C:\\u0000"}, {"path": "C:\\u0000"}),
    ],
)
async def test_what_postgres_refuses_is_replaced(sent: Any, kept: Any) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        kind = "text" if isinstance(sent, str) else "jsonb"
        assert await database.write(lambda c: c.fetchval(f"select $1::{kind}", sent)) == kept


async def test_cancelled_units_leave_the_pool_whole() -> None:
    async with open_test_database(pool_size=4) as (database, _):
        await database.write(lambda conn: conn.execute("create table trace (n int)"))
        reported = 0

        async def unit(conn: Connection, number: int) -> None:
            await conn.execute("insert into trace values ($1)", number)
            await conn.fetchval("select pg_sleep(0.002)")

        async def attempt(number: int, patience: float, *, write: bool) -> None:
            nonlocal reported
            with trio.move_on_after(patience):
                if write:
                    await database.write(lambda conn: unit(conn, number))
                    reported += 1
                else:
                    await database.read(lambda conn: unit(conn, number))

        async with trio.open_nursery() as nursery:
            for number in range(300):
                # Seeded by nothing: any moment must do.
                patience = random.uniform(0, 0.4)
                nursery.start_soon(lambda n=number, p=patience: attempt(n, p, write=bool(n % 2)))
        await whole(database, 4)
        written = await database.read(
            lambda conn: conn.fetchval("select count(*) from trace where n % 2 = 1")
        )
        # A write that began is never cut off: what was committed is what was reported, except
        # for those whose caller's scope had expired when they ended.
        assert written >= reported


async def test_a_write_survives_its_callers_cancellation() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        await database.write(lambda conn: conn.execute("create table trace (n int)"))

        async def slow(conn: Connection) -> str:
            await conn.execute("insert into trace values (1)")
            await conn.fetchval("select pg_sleep(0.2)")
            return "done"

        answer = ""
        with trio.move_on_after(0.05) as scope:
            answer = await database.write(slow)
        assert answer == "done"
        assert not scope.cancelled_caught
        assert await database.read(lambda conn: conn.fetchval("select count(*) from trace")) == 1


async def test_a_write_does_not_begin_in_a_cancelled_scope() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        begun = False

        async def unit(_: Connection) -> None:
            nonlocal begun
            begun = True

        with trio.CancelScope() as scope:
            scope.cancel()
            await database.write(unit)
        assert scope.cancelled_caught
        assert not begun


async def test_a_stuck_write_ends_at_its_deadline_and_is_undone() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        await database.write(lambda conn: conn.execute("create table trace (n int)"))

        async def stuck(conn: Connection) -> None:
            await conn.execute("insert into trace values (1)")
            await conn.fetchval("select pg_sleep(60)")

        with trio.fail_after(10), pytest.raises(trio.TooSlowError):
            await database.write(stuck, deadline=0.2)
        assert await database.read(lambda conn: conn.fetchval("select count(*) from trace")) == 0
        await whole(database, 1)


async def test_a_failing_unit_is_rolled_back_and_its_error_is_bare() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        await database.write(lambda conn: conn.execute("create table trace (n int)"))

        async def wrong(conn: Connection) -> None:
            await conn.execute("insert into trace values (1)")
            raise LookupError("no")

        with pytest.raises(LookupError):
            await database.write(wrong)
        assert await database.read(lambda conn: conn.fetchval("select count(*) from trace")) == 0


async def test_a_deadlock_is_resolved_by_running_one_unit_again() -> None:
    async with open_test_database(pool_size=2) as (database, _):
        await database.write(
            lambda conn: conn.execute(
                "create table account (id int primary key, n int);"
                "insert into account values (1, 0), (2, 0)"
            )
        )
        both = asyncio.Event()
        runs = locked = 0

        async def transfer(conn: Connection, first: int, second: int) -> None:
            nonlocal runs, locked
            runs += 1
            await conn.execute("set local deadlock_timeout = '50ms'")
            await conn.execute("update account set n = n + 1 where id = $1", first)
            locked += 1
            if locked == 2:
                both.set()
            await both.wait()
            await conn.execute("update account set n = n + 1 where id = $1", second)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.write, lambda conn: transfer(conn, 1, 2))
            nursery.start_soon(database.write, lambda conn: transfer(conn, 2, 1))
        assert runs == 3
        total = await database.read(lambda conn: conn.fetchval("select sum(n) from account"))
        assert total == 4


async def test_a_connection_killed_before_the_commit_is_replaced() -> None:
    async with open_test_database(pool_size=1) as (database, url):
        await database.write(lambda conn: conn.execute("create table trace (n int)"))
        victims: list[int] = []

        async def unit(conn: Connection) -> None:
            pid = await conn.fetchval("select pg_backend_pid()")
            await conn.execute("insert into trace values ($1)", len(victims))
            if not victims:
                victims.append(pid)
                killer = await asyncpg.connect(url)
                await killer.execute("select pg_terminate_backend($1)", pid)
                await killer.close()
                await conn.fetchval("select 1")

        await database.write(unit)
        rows = await database.read(lambda conn: conn.fetch("select n from trace"))
        assert [row["n"] for row in rows] == [1]


@pytest.mark.parametrize("one_statement", [False, True])
async def test_a_commit_whose_answer_is_lost_is_not_sent_again(one_statement: bool) -> None:
    """The connection ends while the commit is under way: nobody knows what became of it."""
    async with open_test_database(pool_size=1) as (database, _):
        runs = 0

        async def fill(conn: Connection) -> None:
            await conn.execute(
                "create table trace (n int);"
                "create function die() returns trigger language plpgsql as $$ begin"
                " perform pg_terminate_backend(pg_backend_pid()); return null; end $$;"
                "create constraint trigger late after insert on trace deferrable initially deferred"
                " for each row execute function die()"
            )

        async def unit(conn: Connection) -> None:
            nonlocal runs
            runs += 1
            await conn.execute("insert into trace values (1)")

        await database.write(fill)
        with pytest.raises(asyncpg.PostgresError):
            await database.write(unit, one_statement=one_statement)
        assert runs == 1


@pytest.mark.parametrize(
    ("error", "runs"),
    [
        (asyncpg.InternalClientError("got result for unknown protocol state 3"), 2),
        (asyncpg.AdminShutdownError("terminating connection"), 2),
        (asyncpg.InterfaceError("the server expects 1 argument for this query, 2 were passed"), 1),
        (asyncpg.DataError("invalid input for query argument $1"), 1),
    ],
)
async def test_only_a_lost_connection_is_taken_for_one(error: Exception, runs: int) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        seen: list[int] = []

        async def unit(conn: Connection) -> None:
            seen.append(await conn.fetchval("select pg_backend_pid()"))
            if len(seen) == 1:
                raise error

        if runs == 1:
            with pytest.raises(type(error)):
                await database.write(unit)
        else:
            await database.write(unit)
        assert len(seen) == runs
        if isinstance(error, asyncpg.InternalClientError):
            assert seen[0] != seen[1], "a connection in an unknown state is used again"


async def test_a_wrong_call_is_no_lost_connection() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        runs = 0

        async def unit(conn: Connection) -> None:
            nonlocal runs
            runs += 1
            await conn.fetchval("select $1::int", 1, 2)

        with pytest.raises(asyncpg.InterfaceError):
            await database.write(unit)
        assert runs == 1


async def test_what_was_deleted_meanwhile_is_looked_up_again() -> None:
    async with open_test_database(pool_size=2) as (database, _):
        await database.write(
            lambda conn: conn.execute(
                "create table place (id int primary key);"
                "create table thing (place_id int references place);"
                "insert into place values (1), (2)"
            )
        )
        found: list[int] = []

        async def unit(conn: Connection) -> None:
            place = await conn.fetchval("select min(id) from place")
            if not found:
                async with database._pool.acquire() as other:
                    await other.execute("delete from place where id = 1")
            found.append(place)
            await conn.execute("insert into thing values ($1)", place)

        await database.write(unit)
        assert found == [1, 2]


async def test_an_open_transaction_is_reported_and_does_not_survive(
    error_log: ExpectedErrors,
) -> None:
    async with open_test_database(pool_size=1) as (database, _):
        await database.read(lambda conn: conn.execute("begin"))

        async def inside(conn: Any) -> bool:
            return bool(conn.is_in_transaction())

        assert await database.read(inside) is False
    error_log.expect("active transaction")


async def test_listening() -> None:
    async with (
        open_test_database() as (database, _),
        database.listen("news") as heard,
    ):
        await database.notify("news", "one")
        await database.notify("news", "zwei ü")
        with trio.fail_after(5):
            assert await heard.receive() == "one"
            assert await heard.receive() == "zwei ü"


async def test_a_dead_listener_ends_its_channel() -> None:
    async with (
        open_test_database() as (database, _),
        database.listen("news") as heard,
    ):
        killed = await database.write(
            lambda conn: conn.fetchval(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                " where query ilike 'listen%' and datname = current_database()"
            )
        )
        assert killed == 1
        with trio.fail_after(5), pytest.raises(trio.EndOfChannel):
            await heard.receive()


async def test_errors_in_the_block_come_out_as_they_are() -> None:
    with pytest.raises(KeyError):
        async with open_test_database(pool_size=1):
            raise KeyError
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        async with open_database(url_of("no_such_database")):
            pass


async def test_migrations_run_once_however_many_start_together() -> None:
    applied: list[list[str]] = []

    async def serve(url: str) -> None:
        async with open_database(url, pool_size=1) as database:
            applied.append(await database.write(migrate, deadline=60))

    async with open_empty_database() as url:
        async with open_database(url, pool_size=1) as database:
            assert await database.read(pending) == known()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(serve, url)
        assert sorted(applied) == [[], [], [], [], known()]
        async with open_database(url, pool_size=1) as database:
            assert await database.read(pending) == []
