"""Sessions as rows: opened, looked up and ended here (spec 06 §2.3).

A session made with a personal token, directly or through a link or another session, ends with it.
"""

from __future__ import annotations

from datetime import datetime

from server.store.queries import Connection, Record, load

SQL = load("sessions")


async def shared_secret(conn: Connection, name: str, proposal: str) -> str:
    """The secret of that name that all servers of the database share, made of the proposal if need be."""
    # Run again when another server's insert was not visible yet: its row is there then.
    value = await conn.fetchval(SQL.secret, name, proposal)
    if value is None:
        value = await conn.fetchval(SQL.secret, name, proposal)
    assert isinstance(value, str)
    return value


async def open_session(
    conn: Connection,
    *,
    user_id: str,
    token_hash: str,
    kind: str,
    user_agent: str,
    expires_at: datetime,
    made_with: str = "",
    personal_token_id: str | None = None,
) -> bool:
    """Keep a session; False when what it was made with (a token's hash) has ended meanwhile."""
    values = (user_id, token_hash, kind, user_agent[:300], expires_at, made_with, personal_token_id)
    return await conn.fetchval(SQL.open, *values) is not None


async def by_token(conn: Connection, token_hash: str) -> Record | None:
    """Row (session_id, user_id, email, expires_at, stale) of an open session."""
    return await conn.fetchrow(SQL.by_token, token_hash)


async def used(conn: Connection, token_hash: str) -> None:
    """Refresh `last_used_at`."""
    await conn.execute(SQL.used, token_hash)


async def list_open(conn: Connection, user_id: str) -> list[Record]:
    """A person's open sessions, the last used first."""
    return await conn.fetch(SQL.list_open, user_id)


async def close(conn: Connection, token_hash: str) -> tuple[str, ...]:
    """End a session; the hashes that are dead now."""
    return _hashes(await conn.fetch(SQL.close, token_hash))


async def close_one(conn: Connection, user_id: str, session_id: str) -> tuple[str, ...]:
    """End one of a person's sessions; the hashes that are dead now."""
    return _hashes(await conn.fetch(SQL.close_one, user_id, session_id))


async def close_all(conn: Connection, user_id: str) -> tuple[str, ...]:
    """End all of a person's sessions and unused sign-in links; the hashes that are dead now."""
    return _hashes(await conn.fetch(SQL.close_all, user_id))


async def add_link(
    conn: Connection, code_hash: str, user_id: str, expires_at: datetime, made_with: str
) -> bool:
    """Keep a sign-in link; False when what it is made with (a token's hash) has ended meanwhile."""
    return await conn.fetchval(SQL.add_link, code_hash, user_id, expires_at, made_with) is not None


async def spend_link(conn: Connection, code_hash: str) -> Record | None:
    """Row (user_id, email, name, personal_token_id) the first time, None ever after."""
    return await conn.fetchrow(SQL.spend_link, code_hash)


def _hashes(rows: list[Record]) -> tuple[str, ...]:
    return tuple(row["token_hash"] for row in rows)
