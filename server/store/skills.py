"""Skills as they are stored. Functions of the asyncio island: the connection first, wire values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg

from server.store.queries import Connection, Record, load
from server.store.wire_rows import wire
from shared.skillbundle import make_bundle
from shared.times import parse_stamp
from shared.wire.task import SkillBundle
from shared.wire.teamwork import FullSkill, SkillFileRow, SkillSummary

SQL = load("skills")

_STAMPS = ("created_at", "updated_at")


async def list_skills(conn: Connection, workspace_id: str) -> list[SkillSummary]:
    """Return the workspace's skills by name, without their text."""
    return [wire(SkillSummary, row) for row in await conn.fetch(SQL.list_skills, workspace_id)]


async def get_skill(conn: Connection, workspace_id: str, skill_id: str) -> FullSkill | None:
    """Return one skill with its files."""
    return _full(await conn.fetchrow(SQL.get_skill, workspace_id, skill_id))


async def lock_skill(conn: Connection, workspace_id: str, skill_id: str) -> SkillSummary | None:
    """Return one skill for a change."""
    row = await conn.fetchrow(SQL.lock_skill, workspace_id, skill_id)
    return None if row is None else wire(SkillSummary, row)


async def create_skill(
    conn: Connection,
    workspace_id: str,
    user_id: str,
    values: Mapping[str, Any],
    files: Mapping[str, str],
) -> FullSkill | None:
    """Make a skill; None when the name is taken. `values`: name, description, content, config."""
    row = await conn.fetchrow(
        SQL.create_skill,
        workspace_id,
        values["name"],
        values["description"],
        values["content"],
        values["config"],
        _listed(files),
        user_id,
    )
    return _full(row)


async def update_skill(
    conn: Connection,
    skill_id: str,
    changes: Mapping[str, Any],
    files: Mapping[str, str] | None,
) -> FullSkill | None:
    """Write what was given; files replace all when given. None when the name is taken."""
    given = None if files is None else _listed(files)
    try:
        return _full(await conn.fetchrow(SQL.update_skill, skill_id, dict(changes), given))
    except asyncpg.UniqueViolationError:
        return None


async def list_files(conn: Connection, skill_id: str) -> list[SkillFileRow]:
    """Return a skill's files by path."""
    return [wire(SkillFileRow, row) for row in await conn.fetch(SQL.list_files, skill_id)]


async def put_file(conn: Connection, skill_id: str, path: str, content: str) -> SkillFileRow:
    """Write one file of a skill."""
    row = await conn.fetchrow(SQL.put_file, skill_id, path, content)
    assert row is not None
    return wire(SkillFileRow, row)


async def agent_skills(conn: Connection, agent_id: str) -> list[SkillSummary]:
    """Return an agent's skills by name."""
    return [wire(SkillSummary, row) for row in await conn.fetch(SQL.agent_skills, agent_id)]


async def give_skills(
    conn: Connection, workspace_id: str, agent_id: str, skill_ids: Sequence[str], *, keep: bool
) -> list[SkillSummary] | None:
    """Give an agent skills, beside or in place of those it has; None when one is not there."""
    known = await conn.fetchval(SQL.count_skills, workspace_id, list(skill_ids))
    if known != len(skill_ids):
        return None
    await conn.execute(SQL.give_skills, agent_id, list(skill_ids), keep)
    return await agent_skills(conn, agent_id)


async def bundles(
    conn: Connection, agent_id: str, skill_ids: Sequence[str]
) -> dict[str, SkillBundle]:
    """Return the bundles of an agent's skills, by id; those it does not have are missing."""
    rows = await conn.fetch(SQL.bundles_for_task, agent_id, list(skill_ids))
    return {row["id"]: bundle_of(row) for row in rows}


def bundle_of(row: Record) -> SkillBundle:
    """The bundle of a row with id, name, description, content and files by path."""
    return make_bundle(
        skill_id=row["id"],
        name=row["name"],
        description=row["description"],
        content=row["content"],
        files=row["files"],
    )


def _full(row: Record | None) -> FullSkill | None:
    if row is None:
        return None
    files = [
        wire(SkillFileRow, file | {name: parse_stamp(file[name]) for name in _STAMPS})
        for file in row["files"]
    ]
    return wire(FullSkill, row, files=files)


def _listed(files: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"path": path, "content": content} for path, content in files.items()]
