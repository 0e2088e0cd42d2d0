"""Claiming: a daemon asks for work of a runtime and gets a task with all an agent run needs.

Woken by the claim endpoint, in its transaction. Delivery is at least once: a claim whose answer
was lost is delivered again after 90 s. Two statements: the first locks the agents, so that the
second sees every run that counts against their capacity (spec 02 §4; its races are closed here).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from server.consequences import Consequence
from server.dispatch import events
from server.dispatch.lifecycle import LEASE, REDELIVER_AFTER, TOKEN_LIFE
from server.dispatch.payload import assemble
from server.store.queries import Connection
from server.store.tasks import SQL, Caller, caller_args, seen
from shared.failure import RESUME_UNSAFE
from shared.ids import TASK_TOKEN, hash_token, mint_token
from shared.wire.task import ClaimedTask

_LEASE: Final = timedelta(seconds=LEASE)
_REDELIVER_AFTER: Final = timedelta(seconds=REDELIVER_AFTER)
_TOKEN_LIFE: Final = timedelta(seconds=TOKEN_LIFE)


class OwnerMissing(Exception):
    """The runtime belongs to nobody, so there is nobody for the task's token to act for.

    Nothing was claimed: the next person who registers the runtime owns it.
    """


async def claim(
    conn: Connection, runtime_id: str, *, caller: Caller | None = None, by_ref: bool = False
) -> tuple[ClaimedTask | None, list[Consequence]]:
    """Claim the next task of a runtime; None when there is nothing to do.

    `by_ref`: the daemon keeps skills and is told only which (capability `skill-bundles-v1`).

    Raises NotFound("runtime not found"), Foreign, OwnerMissing.
    """
    found = await conn.fetchrow(
        SQL.lock_claimable, [runtime_id], *caller_args(caller), _REDELIVER_AFTER
    )
    runtime = seen(found, "runtime not found")
    if not runtime["agents"] and not runtime["lost"]:
        return None, []
    if runtime["owner_id"] is None:
        raise OwnerMissing
    token = mint_token(TASK_TOKEN)
    row = await conn.fetchrow(
        SQL.claim,
        [runtime_id],
        [hash_token(token)],
        runtime["agents"],
        _REDELIVER_AFTER,
        _LEASE,
        _TOKEN_LIFE,
        sorted(RESUME_UNSAFE),
    )
    if row is None:
        return None, []
    consequences: list[Consequence] = [] if row["again"] else [events.dispatched(row)]
    if row["became_busy"]:
        consequences.append(events.agent_status(row["agent"]))
    return assemble(row, token, by_ref=by_ref), consequences
