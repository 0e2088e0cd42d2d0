"""Whose a machine is: proving it at a registration, and handing it over.

A machine is a daemon's id in a workspace. Who registers it first owns it; from then on its daemon
routes answer to its owner and to the tokens made for it. Somebody else becomes the owner in two ways:
the daemon proves with a key it keeps that it is the same machine, now signed in as them, or the owner
or an administrator of the workspace hands it over. Neither moves more than the machine: agents of
other people, their queued tasks and the directories named for the machine stay where their owners
left them, unless the owner who hands it over gives them along.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Final

import attrs

from server.consequences import Consequence, TokensRevoked
from server.dispatch import events
from server.dispatch.finish import fail_many
from server.dispatch.verdict import Failure
from server.errors import Forbidden
from server.store.agents import runtime_of
from server.store.queries import Connection, Record, load
from server.store.tasks import Caller
from shared import failure
from shared.wire.event import Event
from shared.wire.runtime import Runtime

SQL: Final = load("runtimes")

CHANGED_HANDS: Final = Failure(
    error="the machine changed hands while the task was on it",
    reason=failure.RUNTIME_RECOVERY,
    presumed=True,
)


@attrs.frozen(kw_only=True)
class Moved:
    """What a machine's new owner has, and what stayed the former one's."""

    runtimes: list[Runtime]
    agents_given: list[dict[str, Any]] = attrs.field(factory=list)
    agents_waiting: list[dict[str, Any]] = attrs.field(factory=list)
    directories_removed: list[dict[str, Any]] = attrs.field(factory=list)
    tasks_stopped: int = 0


def key_hash(key: str) -> str | None:
    """What the server keeps of a machine's key; None for no key."""
    return hashlib.sha256(key.encode()).hexdigest() if key else None


async def hold(
    conn: Connection,
    workspace_id: str,
    daemon_id: str,
    *,
    caller: Caller,
    key: str = "",
    may_take: bool = False,
) -> tuple[str | None, list[Consequence]]:
    """Lock the machine a registration is for and return its owner's id, with what follows.

    `key` is what the machine proves itself with; `may_take` says that it was signed in anew, so that
    it may become the caller's. Raises Forbidden when it is somebody else's.
    """
    if caller.daemon_id is not None and caller.daemon_id != daemon_id:
        raise Forbidden(
            f"this token was made for the machine {caller.daemon_id}, not for {daemon_id}: make one "
            "for this machine"
        )
    sent = key_hash(key)
    row = await conn.fetchrow(SQL.hold_machine, workspace_id, daemon_id, caller.user_id, sent)
    assert row is not None
    if caller.user_id is None or row["owner_id"] == caller.user_id:
        return row["owner_id"], []
    kept = row["key_hash"]
    proved = kept is not None and sent is not None and hmac.compare_digest(kept, sent)
    nobodys = kept is None and not row["owner_here"]
    if not nobodys and not (proved and may_take):
        raise Forbidden(_refusal(row))
    _, told = await move(
        conn, workspace_id, daemon_id, before=row["owner_id"], after=caller.user_id, key=sent
    )
    return caller.user_id, told


async def owner_of(conn: Connection, workspace_id: str, daemon_id: str) -> str | None:
    """Lock a machine and return its owner's id; None when it is nobody's."""
    row = await conn.fetchrow(SQL.hold_machine, workspace_id, daemon_id, None, None)
    assert row is not None
    owner: str | None = row["owner_id"]
    return owner


def _refusal(row: Record) -> str:
    if not row["owner_here"]:
        whose = "somebody who has left this workspace"
        return f"this machine belongs to {whose}: ask an owner or admin to hand it over to you"
    name = row["owner_name"]
    return (
        f"this machine belongs to {name}: ask {name}, or an owner or admin of the workspace, to hand "
        "it over (bullpen runtime hand-over), or sign its daemon in as its owner"
    )


async def move(
    conn: Connection,
    workspace_id: str,
    daemon_id: str,
    *,
    before: str | None,
    after: str,
    key: str | None = None,
    with_agents: bool = False,
    with_directories: bool = False,
) -> tuple[Moved, list[Consequence]]:
    """Make a machine somebody else's. What runs on it stops first, and is queued again.

    `with_agents` and `with_directories`: its owner `before` gives theirs along.
    """
    rows = await conn.fetch(SQL.runtimes_of_machine, workspace_id, daemon_id)
    ids = [row["id"] for row in rows]
    stopped, told = await _stop(conn, ids)
    given: list[Record] = []
    if with_agents and before is not None:
        given = await conn.fetch(SQL.give_agents, ids, after, before)
    left = await conn.fetch(SQL.leave_agents, ids, after, before)
    if with_directories and before is not None:
        await conn.execute(SQL.give_directories, workspace_id, daemon_id, after, before)
    dropped = await conn.fetch(SQL.drop_directories, workspace_id, daemon_id, after)
    ended = await conn.fetch(SQL.end_access, workspace_id, daemon_id, after, ids)
    moved = await conn.fetch(SQL.move_machine, workspace_id, daemon_id, after, key)
    if ended:
        told.append(TokensRevoked(tuple(row["token_hash"] for row in ended)))
    told += [_dropped(workspace_id, row, after) for row in dropped]
    told.append(events.runtimes_changed(workspace_id, action="update"))
    result = Moved(
        runtimes=[runtime_of(row) for row in sorted(moved, key=lambda row: row["id"])],
        agents_given=[dict(row) for row in given],
        agents_waiting=[
            {"id": row["id"], "name": row["name"], "owner_id": row["owner_id"]}
            for row in left
            if row["active"]
        ],
        directories_removed=[dict(row) for row in dropped],
        tasks_stopped=stopped,
    )
    return result, told


async def _stop(conn: Connection, runtime_ids: Sequence[str]) -> tuple[int, list[Consequence]]:
    rows = await conn.fetch(SQL.in_flight_there, list(runtime_ids))
    if not rows:
        return 0, []
    _, told = await fail_many(conn, [row["id"] for row in rows], CHANGED_HANDS)
    return len(rows), told


def _dropped(workspace_id: str, row: Record, actor_id: str) -> Event:
    return Event(
        type="project_resource:deleted",
        payload={"project_id": row["project_id"], "resource_id": row["id"]},
        workspace_id=workspace_id,
        actor_type="member",
        actor_id=actor_id,
    )
