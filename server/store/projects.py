"""Projects as they are stored. Functions of the asyncio island: the connection first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.store.queries import Connection, load
from server.store.wire_rows import wire
from shared.wire.teamwork import Project, Resource

SQL = load("projects")


async def list_projects(
    conn: Connection,
    workspace_id: str,
    *,
    status: str | None = None,
    priority: str | None = None,
    pattern: str | None = None,
) -> list[Project]:
    """Return projects newest first; `pattern` is one of `ilike`, over title and description."""
    rows = await conn.fetch(SQL.list_projects, workspace_id, status, priority, None, pattern)
    return [wire(Project, row) for row in rows]


async def get_project(conn: Connection, workspace_id: str, project_id: str) -> Project | None:
    """Return one project."""
    row = await conn.fetchrow(SQL.list_projects, workspace_id, None, None, project_id, None)
    return None if row is None else wire(Project, row)


async def list_resources(conn: Connection, project_id: str) -> list[Resource]:
    """Return a project's resources in their order."""
    return [wire(Resource, row) for row in await conn.fetch(SQL.list_resources, project_id)]


async def add_resources(
    conn: Connection,
    workspace_id: str,
    project_id: str,
    user_id: str,
    wanted: Sequence[Mapping[str, Any]],
) -> list[Resource]:
    """Attach resources; those that were attached already are not in the answer."""
    rows = await conn.fetch(
        SQL.add_resources, project_id, workspace_id, user_id, [dict(one) for one in wanted]
    )
    return [wire(Resource, row) for row in rows]
