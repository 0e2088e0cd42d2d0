"""Claiming: a daemon asks for work of a runtime and gets a task with all an agent run needs.

Woken by the claim endpoint, in its transaction. Delivery is at least once: a claim whose answer
was lost is delivered again after 90 s. Two statements: the first locks the agents, so that the
second sees every run that counts against their capacity (spec 02 §4; its races are closed here).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import structlog

from server.consequences import Consequence, TaskAvailable
from server.dispatch import events, finish
from server.dispatch.lifecycle import LEASE, REDELIVER_AFTER, TOKEN_LIFE
from server.dispatch.payload import assemble
from server.errors import NotFound
from server.store.queries import Connection
from server.store.tasks import SQL, Caller, caller_args, seen
from shared.failure import RESUME_UNSAFE
from shared.ids import TASK_TOKEN, hash_token, mint_token
from shared.wire.task import ClaimedTask

log = structlog.get_logger(__name__)

_LEASE: Final = timedelta(seconds=LEASE)
_REDELIVER_AFTER: Final = timedelta(seconds=REDELIVER_AFTER)
_TOKEN_LIFE: Final = timedelta(seconds=TOKEN_LIFE)


class OwnerMissing(Exception):
    """The runtime belongs to nobody, so there is nobody for the task's token to act for.

    Nothing was claimed: the next person who registers the runtime owns it.
    """


async def claim(
    conn: Connection,
    runtime_id: str,
    *,
    caller: Caller | None = None,
    by_ref: bool = False,
    apart: bool = False,
) -> tuple[ClaimedTask | None, list[Consequence]]:
    """Claim the next task of a runtime; None when there is nothing to do.

    `by_ref`: the daemon keeps skills and is told only which (capability `skill-bundles-v1`).
    `apart`: it asks for the passwords of repositories (capability `repository-access-v1`).

    Raises NotFound("runtime not found"), Foreign, OwnerMissing.
    """
    [answer], told = await _claim_once(conn, [runtime_id], caller, by_ref=by_ref, apart=apart)
    if isinstance(answer, Exception):
        raise answer
    return answer, told


Answer = ClaimedTask | Exception | None
"""What a claim gives one runtime: a task, nothing, or why it cannot be (NotFound, Foreign,
OwnerMissing)."""


async def claim_many(
    conn: Connection,
    slots: Mapping[str, int],
    total: int,
    *,
    caller: Caller | None = None,
    by_ref: bool = False,
    apart: bool = False,
) -> tuple[dict[str, list[ClaimedTask] | Exception], list[Consequence]]:
    """Claim for many runtimes at once, at most `slots` for each and `total` in all.

    Every round gives each runtime that still has room one task, so that a busy one does not take
    all, with two statements however many runtimes there are.
    """
    given: dict[str, list[ClaimedTask] | Exception] = {runtime_id: [] for runtime_id in slots}
    told: list[Consequence] = []
    hungry = [runtime_id for runtime_id, room in slots.items() if room > 0]
    while hungry and total > 0:
        asked = hungry[:total]
        answers, more = await _claim_once(conn, asked, caller, by_ref=by_ref, apart=apart)
        told += more
        hungry = hungry[total:]
        for runtime_id, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Exception):
                given[runtime_id] = answer
            elif answer is not None:
                mine = given[runtime_id]
                assert isinstance(mine, list)
                mine.append(answer)
                total -= 1
                if len(mine) < slots[runtime_id]:
                    hungry.append(runtime_id)
    return given, told


async def _claim_once(
    conn: Connection,
    runtime_ids: Sequence[str],
    caller: Caller | None,
    *,
    by_ref: bool,
    apart: bool,
) -> tuple[list[Answer], list[Consequence]]:
    """At most one task for each of the runtimes: one statement, or two when there is work."""
    args = (list(runtime_ids), *caller_args(caller), _REDELIVER_AFTER)
    found = {row["id"]: row for row in await conn.fetch(SQL.lock_claimable, *args)}
    misplaced = next((row["misplaced"] for row in found.values() if row["misplaced"]), None)
    if misplaced is not None:
        return await _cancel_misplaced(conn, runtime_ids, misplaced)
    refused: dict[str, Exception] = {}
    agents: list[str] = []
    wanted: dict[str, str] = {}
    for runtime_id in runtime_ids:
        try:
            runtime = seen(found.get(runtime_id), "runtime not found")
        except NotFound as error:
            refused[runtime_id] = error
            continue
        if runtime["agents"] or runtime["lost"]:
            if runtime["owner_id"] is None:
                refused[runtime_id] = OwnerMissing()
            else:
                agents += runtime["agents"]
                wanted[runtime_id] = mint_token(TASK_TOKEN)
    tasks: dict[str, ClaimedTask] = {}
    told: list[Consequence] = []
    if wanted:
        rows = await conn.fetch(
            SQL.claim,
            list(wanted),
            [hash_token(token) for token in wanted.values()],
            agents,
            _REDELIVER_AFTER,
            _LEASE,
            _TOKEN_LIFE,
            sorted(RESUME_UNSAFE),
            by_ref,
        )
        for row in rows:
            tasks[row["runtime_id"]] = assemble(
                row, wanted[row["runtime_id"]], by_ref=by_ref, apart=apart
            )
            if not row["again"]:
                told.append(events.dispatched(row))
            if row["became_busy"]:
                told.append(events.agent_status(row["agent"]))
    return [refused.get(one) or tasks.get(one) for one in runtime_ids], told


async def _cancel_misplaced(
    conn: Connection, runtime_ids: Sequence[str], task_ids: Sequence[str]
) -> tuple[list[Answer], list[Consequence]]:
    """Tasks of another workspace than the machine they wait for are cancelled, not handed out.

    Nothing else is claimed with it (nobody locks issues after agents); the runtimes are woken to ask
    again.
    """
    log.warning("tasks of another workspace than their machine are cancelled", tasks=list(task_ids))
    told = await finish.cancel_many(conn, task_ids)
    told += [TaskAvailable(runtime_id, task_ids[0]) for runtime_id in runtime_ids]
    return [None] * len(runtime_ids), told
