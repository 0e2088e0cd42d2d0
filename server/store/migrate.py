"""Bring the database to the schema this program expects.

Runs at every start, in the caller's transaction: everything that is missing is applied, or nothing.
An advisory lock makes any number of servers that start together queue up; all but the first find
nothing left to do. A migration is known by its file name and never applied twice.
"""

from __future__ import annotations

from typing import Final

from server.store.queries import FOLDER, Connection

_LOCK: Final = 0x62756C6C70656E
"""The advisory lock's key ("bullpen"); anything that no one else uses."""

_TABLE: Final = """
create table if not exists schema_migration (
    name text primary key,
    applied_at timestamptz not null default now()
)
"""


def known() -> list[str]:
    """Return the names of the migrations that come with this program, in order."""
    return sorted(path.name for path in (FOLDER / "migrations").glob("*.sql"))


async def migrate(conn: Connection) -> list[str]:
    """Apply what is missing; return the names applied. May take as long as the data is large."""
    async with conn.transaction():
        await conn.execute("set local lock_timeout = 0")  # others' migrations are waited for
        await conn.execute("select pg_advisory_xact_lock($1)", _LOCK)
        await conn.execute(_TABLE)
        missing = await pending(conn)
        for name in missing:
            await conn.execute((FOLDER / "migrations" / name).read_text(encoding="utf-8"))
            await conn.execute("insert into schema_migration (name) values ($1)", name)
    return missing


async def pending(conn: Connection) -> list[str]:
    """Return the names of the migrations that are not applied, in order."""
    if await conn.fetchval("select to_regclass('schema_migration') is null"):
        return known()
    applied = {row["name"] for row in await conn.fetch("select name from schema_migration")}
    return [name for name in known() if name not in applied]
