"""A database as it is after years: a million finished tasks and a long queue."""

from __future__ import annotations

from server.store.queries import Connection
from tests.support.rows import World

AGENTS_PER_RUNTIME = 4


async def fill(conn: Connection, world: World, *, finished: int, queued: int) -> list[str]:
    """Add runtimes and agents, and their tasks spread evenly; returns the runtimes' ids.

    An issue for each queued task, on which the finished ones lie too. Key checks are left out where
    the role may do so: they are most of the time, and every row is made here.
    """
    unchecked = await conn.fetchval("select rolsuper from pg_roles where rolname = current_user")
    issues = max(queued, 1)
    agents = max(AGENTS_PER_RUNTIME, min(200, issues // 50))
    if unchecked:
        await conn.execute("set local session_replication_role = replica")
    runtimes = await conn.fetch(
        "insert into agent_runtime (workspace_id, daemon_id, name, provider, status, owner_id,"
        " last_seen_at) select $1, 'machine ' || n, 'Claude', 'claude', 'online', $2, now()"
        " from generate_series(1, $3) n returning id",
        world.workspace_id,
        world.user_id,
        agents // AGENTS_PER_RUNTIME,
    )
    ids = [row["id"] for row in runtimes]
    await conn.execute(
        "create temp table crowd on commit drop as"
        " with made as (insert into agent (workspace_id, name, visibility, status, runtime_id,"
        " owner_id) select $1, 'Old agent ' || n, 'workspace', 'idle',"
        " ($3::uuid[])[1 + n % cardinality($3::uuid[])], $2 from generate_series(1, $4) n"
        " returning id, runtime_id) select id, runtime_id, row_number() over () - 1 as n from made",
        world.workspace_id,
        world.user_id,
        ids,
        agents,
    )
    await conn.execute("create index on crowd (n)")
    await conn.execute(
        "create temp table pile on commit drop as"
        " with made as (insert into issue (workspace_id, number, title, creator_type, creator_id)"
        " select $1, 1000000 + n, 'Old issue ' || n, 'member', $2 from generate_series(1, $3) n"
        " returning id) select id, row_number() over () - 1 as n from made",
        world.workspace_id,
        world.user_id,
        issues,
    )
    await conn.execute("create index on pile (n)")
    for status, count in (("completed", finished), ("queued", queued)):
        await conn.execute(
            "insert into agent_task_queue (workspace_id, agent_id, runtime_id, issue_id, status,"
            " priority, created_at, dispatched_at, started_at, completed_at, session_id, work_dir)"
            " select $1, a.id, a.runtime_id, p.id, $2, k.n % 5, k.at - interval '1 minute',"
            " k.ended, k.ended, k.ended, 'session ' || k.n, '/work/' || k.n"
            " from (select n, now() - n * interval '0.05 seconds' as at, case when $2 = 'completed'"
            " then now() - n * interval '0.05 seconds' end as ended"
            " from generate_series(0, $3 - 1) n) k"
            " join pile p on p.n = k.n % $4 join crowd a on a.n = (k.n % $4) % $5",
            world.workspace_id,
            status,
            count,
            issues,
            agents,
        )
    await conn.execute(
        "insert into comment (issue_id, workspace_id, author_type, author_id, content)"
        " select id, $1, 'member', $2, 'an old comment' from pile",
        world.workspace_id,
        world.user_id,
    )
    await conn.execute(
        "insert into task_message (task_id, seq, type, content)"
        " select id, seq, 'text', 'an old line' from (select id from agent_task_queue"
        " where status = 'completed' limit $1) t, generate_series(1, 2) seq",
        queued,
    )
    await conn.execute(
        "insert into task_token (token_hash, task_id, agent_id, workspace_id, user_id, expires_at)"
        " select md5(id::text), id, agent_id, workspace_id, $1, now() + interval '1 day'"
        " from agent_task_queue where status = 'queued'",
        world.user_id,
    )
    if unchecked:
        await conn.execute("set local session_replication_role = origin")
    return ids


async def settle(conn: Connection) -> None:
    """What autovacuum does in time: statistics, and the visibility map. Outside a transaction."""
    await conn.execute("vacuum analyze")
