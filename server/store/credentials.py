"""Passwords of repositories, kept apart from their addresses. No policy here."""

from __future__ import annotations

from collections.abc import Mapping

from server.store.queries import Connection, load

SQL = load("credentials")


async def keep(conn: Connection, workspace_id: str, given: Mapping[str, str]) -> None:
    """Keep what was given by address, and forget what belongs to no address any more."""
    await conn.execute(SQL.keep_credentials, workspace_id, list(given), list(given.values()))


async def is_other(conn: Connection, workspace_id: str, url: str, userinfo: str) -> bool:
    """Whether an address has another user or password already."""
    found = await conn.fetchval(SQL.credential, workspace_id, url)
    return found is not None and found != userinfo
