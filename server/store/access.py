"""Look-ups that decide who a caller is and where they belong (spec 01 §2)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from server.rights import WIDER
from server.store.queries import Connection, Record, load
from server.store.tasks import Caller

SQL = load("access")


class Seat(NamedTuple):
    """A user's place in a workspace, and what its owner lets agents do beside the table."""

    workspace_id: str
    role: str
    agents_may: frozenset[str] = frozenset()


async def personal_token(conn: Connection, token_hash: str) -> Record | None:
    """Row (user_id, email, expires_at, stale) of a valid personal token."""
    return await conn.fetchrow(SQL.personal_token, token_hash)


async def personal_token_used(conn: Connection, token_hash: str) -> None:
    """Refresh `last_used_at`."""
    await conn.execute(SQL.personal_token_used, token_hash)


async def task_token(conn: Connection, token_hash: str) -> Record | None:
    """Row (user_id, email, agent_id, task_id, workspace_id, expires_at, owner_id, issue_id,
    parent_id, chat_id) of a valid task token.
    """
    return await conn.fetchrow(SQL.task_token, token_hash)


async def daemon_token(conn: Connection, token_hash: str) -> Record | None:
    """Row (workspace_id, daemon_id, expires_at) of a valid daemon token."""
    return await conn.fetchrow(SQL.daemon_token, token_hash)


async def user(conn: Connection, user_id: str) -> Record | None:
    """Row (user_id, email, name)."""
    return await conn.fetchrow(SQL.user_by_id, user_id)


async def membership(
    conn: Connection, user_id: str, *, workspace_id: str = "", slug: str = ""
) -> Seat | None:
    """The user's place, or None when they are no member or the workspace is unknown."""
    if slug:
        row = await conn.fetchrow(SQL.membership_by_slug, user_id, slug)
    else:
        row = await conn.fetchrow(SQL.membership_by_id, user_id, workspace_id)
    if row is None:
        return None
    named = row["agents_may"] if isinstance(row["agents_may"], list) else []
    return Seat(str(row["workspace_id"]), str(row["role"]), WIDER & {str(name) for name in named})


async def workspace_exists(conn: Connection, slug: str) -> bool:
    """Whether a workspace has that slug."""
    return await conn.fetchrow(SQL.workspace_by_slug, slug) is not None


async def runtimes_for_socket(
    conn: Connection, runtime_ids: Sequence[str], caller: Caller
) -> list[Record]:
    """Rows (id, workspace_id, allowed) of the runtimes that exist."""
    return list(await conn.fetch(SQL.runtimes_for_socket, list(runtime_ids), *caller.args))


async def task_workspace(conn: Connection, task_id: str) -> Record | None:
    """Row (workspace_id, issue_id) of a task."""
    return await conn.fetchrow(SQL.task_workspace, task_id)


async def add_link(conn: Connection, code_hash: str, user_id: str, expires_at: datetime) -> None:
    """Keep a sign-in link, and forget old ones."""
    await conn.execute(SQL.drop_old_links)
    await conn.execute(SQL.add_link, code_hash, user_id, expires_at)


async def spend_link(conn: Connection, code_hash: str) -> Record | None:
    """Row (user_id, email, name) the first time, None ever after."""
    return await conn.fetchrow(SQL.spend_link, code_hash)
