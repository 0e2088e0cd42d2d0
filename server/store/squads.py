"""Squads as they are stored. Functions of the asyncio island: the connection first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.store.queries import Connection, load
from server.store.wire_rows import wire
from shared.times import try_stamp
from shared.wire.teamwork import Squad, SquadMember

SQL = load("squads")


async def list_squads(conn: Connection, workspace_id: str) -> list[Squad]:
    """Return the squads that are not archived, oldest first."""
    return [wire(Squad, row) for row in await conn.fetch(SQL.list_squads, workspace_id, None)]


async def get_squad(conn: Connection, workspace_id: str, squad_id: str) -> Squad | None:
    """Return one squad, archived or not."""
    row = await conn.fetchrow(SQL.list_squads, workspace_id, squad_id)
    return None if row is None else wire(Squad, row)


async def lock_squad(conn: Connection, workspace_id: str, squad_id: str) -> Squad | None:
    """Return one squad for a change, without its members."""
    row = await conn.fetchrow(SQL.lock_squad, workspace_id, squad_id)
    return None if row is None else wire(Squad, row)


async def create_squad(
    conn: Connection, workspace_id: str, creator_id: str, values: Mapping[str, Any]
) -> Squad:
    """Make a squad; `values`: name, description, instructions, avatar_url, leader_id."""
    squad_id = await conn.fetchval(
        SQL.create_squad,
        workspace_id,
        values["name"],
        values["description"],
        values["avatar_url"],
        values["leader_id"],
        creator_id,
        values["instructions"],
    )
    made = await get_squad(conn, workspace_id, squad_id)
    assert made is not None
    return made


async def list_members(conn: Connection, squad_id: str) -> list[SquadMember]:
    """Return a squad's members in the order they joined."""
    return [wire(SquadMember, row) for row in await conn.fetch(SQL.list_members, squad_id)]


async def member_status(conn: Connection, squad_id: str) -> list[dict[str, Any]]:
    """Return what each member is doing; nothing is known of people."""
    rows = await conn.fetch(SQL.member_status, squad_id)
    return [dict(row) | {"last_active_at": try_stamp(row["last_active_at"])} for row in rows]
