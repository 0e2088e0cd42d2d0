"""Rows for tests of the server: the smallest world in which a task can run."""

from __future__ import annotations

import itertools
from typing import Any

import attrs

from server.config import Config
from server.database import Database
from server.dispatch.enqueue import IssueFacts
from server.store.queries import Connection
from server.web import auth
from shared.ids import PERSONAL_TOKEN, hash_token, mint_token

_number = itertools.count(1)


@attrs.frozen(kw_only=True)
class Actor:
    """What dispatch reads of a caller."""

    actor_type: str = "member"
    actor_id: str = ""
    user_id: str = ""
    task_id: str | None = None


@attrs.frozen(kw_only=True)
class World:
    """One user who owns one workspace with one online runtime and one agent; a token of theirs."""

    user_id: str
    workspace_id: str
    slug: str
    runtime_id: str
    agent_id: str
    token: str

    @property
    def actor(self) -> Actor:
        return Actor(actor_id=self.user_id, user_id=self.user_id)


async def make_world(database: Database, **agent: Any) -> World:
    """Make a World; keyword arguments are columns of its agent."""

    async def unit(conn: Connection) -> World:
        user_id = await make_user(conn)
        slug = f"w{next(_number)}"
        workspace_id = await insert(
            conn, "workspace", name="Bullpen", slug=slug, issue_prefix="BUL"
        )
        await insert(conn, "member", workspace_id=workspace_id, user_id=user_id, role="owner")
        token = await make_token(conn, user_id)
        runtime_id = await make_runtime(conn, workspace_id, user_id)
        agent_id = await make_agent(conn, workspace_id, runtime_id, owner_id=user_id, **agent)
        return World(
            user_id=user_id,
            workspace_id=workspace_id,
            slug=slug,
            runtime_id=runtime_id,
            agent_id=agent_id,
            token=token,
        )

    return await database.write(unit)


async def insert(conn: Connection, table: str, **columns: Any) -> str:
    """Insert one row and return its id."""
    names = ", ".join(columns)
    places = ", ".join(f"${place}" for place in range(1, len(columns) + 1))
    made: str = await conn.fetchval(
        f"insert into {table} ({names}) values ({places}) returning id", *columns.values()
    )
    return made


async def make_user(conn: Connection, name: str = "Dana") -> str:
    return await insert(
        conn,
        "app_user",
        name=name,
        email=f"u{next(_number)}@bullpen.local",
        profile_description="Writes tests.",
    )


async def make_token(conn: Connection, user_id: str, **columns: Any) -> str:
    """Make a personal token; returns the token itself."""
    token = mint_token(PERSONAL_TOKEN)
    await insert(
        conn,
        "personal_access_token",
        user_id=user_id,
        token_hash=hash_token(token),
        token_prefix=token[:12],
        name="test",
        **columns,
    )
    return token


async def make_runtime(
    conn: Connection, workspace_id: str, owner_id: str | None, **columns: Any
) -> str:
    row: dict[str, Any] = {
        "daemon_id": f"d{next(_number)}",
        "name": "Claude",
        "provider": "claude",
        "status": "online",
    }
    runtime_id = await insert(
        conn, "agent_runtime", workspace_id=workspace_id, owner_id=owner_id, **(row | columns)
    )
    if "last_seen_at" not in columns:
        await conn.execute(
            "update agent_runtime set last_seen_at = now() where id = $1", runtime_id
        )
    return runtime_id


async def make_agent(conn: Connection, workspace_id: str, runtime_id: str, **columns: Any) -> str:
    row: dict[str, Any] = {
        "name": f"Agent {next(_number)}",
        "visibility": "workspace",
        "status": "idle",
    }
    return await insert(
        conn, "agent", workspace_id=workspace_id, runtime_id=runtime_id, **(row | columns)
    )


async def make_issue(conn: Connection, world: World, **columns: Any) -> IssueFacts:
    """Make an issue, assigned to the world's agent unless told otherwise; no task is queued."""
    row: dict[str, Any] = {
        "title": "Fix the login",
        "status": "todo",
        "priority": "none",
        "assignee_type": "agent",
        "assignee_id": world.agent_id,
        "creator_type": "member",
        "creator_id": world.user_id,
        "number": next(_number),
    } | columns
    issue_id = await insert(conn, "issue", workspace_id=world.workspace_id, **row)
    return IssueFacts(
        id=issue_id,
        workspace_id=world.workspace_id,
        status=row["status"],
        priority=row["priority"],
        assignee_type=row["assignee_type"],
        assignee_id=row["assignee_id"],
    )


async def make_comment(
    conn: Connection, issue: IssueFacts, author_id: str, content: str, **columns: Any
) -> str:
    row: dict[str, Any] = {"author_type": "member"} | columns
    return await insert(
        conn,
        "comment",
        issue_id=issue.id,
        workspace_id=issue.workspace_id,
        author_id=author_id,
        content=content,
        **row,
    )


async def make_task(conn: Connection, world: World, **columns: Any) -> str:
    """Make a queued task of the world's agent; a run or chat it names is made when it is missing."""
    if run_id := columns.get("autopilot_run_id"):
        known = await conn.fetchval("select true from autopilot_run where id = $1", run_id)
        if not known:
            await make_autopilot_run(conn, world, run_id)
    if session_id := columns.get("chat_session_id"):
        await conn.execute(
            "insert into chat_session (id, workspace_id, agent_id, creator_id)"
            " values ($1, $2, $3, $4) on conflict do nothing",
            session_id,
            world.workspace_id,
            columns.get("agent_id", world.agent_id),
            world.user_id,
        )
    row: dict[str, Any] = {
        "agent_id": world.agent_id,
        "runtime_id": world.runtime_id,
        "workspace_id": world.workspace_id,
    } | columns
    return await insert(conn, "agent_task_queue", **row)


async def make_autopilot_run(conn: Connection, world: World, run_id: str | None = None) -> str:
    """Make an autopilot of the world's agent that runs now; its run's id."""
    made: str = await conn.fetchval(
        "with pilot as (insert into autopilot (workspace_id, title, assignee_id, execution_mode,"
        " created_by_type, created_by_id) values ($1, 'Nightly', $2, 'run_only', 'member', $3)"
        " returning id) insert into autopilot_run (id, autopilot_id, source, status)"
        " select coalesce($4, gen_random_uuid()), id, 'manual', 'running' from pilot returning id",
        world.workspace_id,
        world.agent_id,
        world.user_id,
        run_id,
    )
    return made


async def make_session(database: Database, config: Config, user_id: str) -> str:
    """Sign somebody in as by a code; returns the session."""

    async def unit(conn: Connection) -> str:
        user = {"user_id": user_id, "email": "e@example.org", "name": "n"}
        return await auth.open_session(conn, config, user, kind="code")

    return await database.write(unit)
