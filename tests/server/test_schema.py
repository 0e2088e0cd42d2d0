"""What holds for every table: foreign keys have indexes, and what grows is pruned or meant to stay."""

from __future__ import annotations

import pytest
import trio

from server.database import open_database
from server.dispatch import sweeper
from server.store.migrate import migrate
from server.store.queries import Connection
from tests.support.postgres import open_empty_database, open_test_database
from tests.support.rows import make_world

pytestmark = pytest.mark.postgres

_UNSERVED = """
select c.conrelid::regclass::text as place, c.conname as name
from pg_constraint c
where c.contype = 'f' and c.connamespace = 'public'::regnamespace
  and not exists (
      select from pg_index i
      where i.indrelid = c.conrelid
        and (i.indkey::int2[])[0:cardinality(c.conkey) - 1] @> c.conkey)
order by 1, 2
"""
"""Foreign keys without an index that begins with their columns: deleting what they point at reads
the whole table."""


async def test_every_foreign_key_has_an_index_that_serves_it() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        rows = await database.read(lambda conn: conn.fetch(_UNSERVED))
        assert [f"{row['place']}: {row['name']}" for row in rows] == []


async def test_servers_that_start_together_migrate_once() -> None:
    async with open_empty_database() as url:
        counts: list[int] = []

        async def start() -> None:
            async with open_database(url, pool_size=1) as database:
                counts.append(len(await database.write(migrate, deadline=60)))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(start)
        assert sorted(counts)[:3] == [0, 0, 0]
        assert max(counts) > 5


async def test_what_is_kept_for_a_while_is_forgotten_after_it() -> None:
    async with open_test_database(pool_size=1) as (database, _):
        world = await make_world(database)

        async def fill(conn: Connection) -> None:
            for age in ("1 minute", "200 days"):
                await conn.execute(
                    "insert into inbox_item (workspace_id, recipient_type, recipient_id, type,"
                    " title, archived, created_at)"
                    " select $1, 'member', $2, 'x', 'x', a, now() - $3::text::interval"
                    " from unnest(array[true, false]) a",
                    world.workspace_id,
                    world.user_id,
                    age,
                )
                await conn.execute(
                    "insert into runtime_request (id, runtime_id, kind, expires_at, run_limit)"
                    " values ($1, $2, 'models', now() - $1::text::interval, '1 minute')",
                    age,
                    world.runtime_id,
                )
                await conn.execute(
                    "insert into sign_in_link (code_hash, user_id, expires_at)"
                    " values ($1, $2, now() - $1::text::interval)",
                    age,
                    world.user_id,
                )

        await database.write(fill)
        await database.write(sweeper.forget)

        async def count(conn: Connection) -> list[int]:
            tables = ("inbox_item", "runtime_request", "sign_in_link")
            return [await conn.fetchval(f"select count(*) from {table}") for table in tables]

        assert await database.read(count) == [3, 1, 1]
