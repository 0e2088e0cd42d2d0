"""A runtime's sign of life, over HTTP or the daemon's socket, and what it is told in return.

One statement, and mostly without a write: a beat every 15 s needs no row version every 15 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from server.consequences import Consequence, Counted
from server.dispatch import events
from server.dispatch.reachability import came_back
from server.errors import NotFound
from server.store.queries import Connection, load
from server.store.tasks import Caller, seen
from shared.wire.runtime import (
    Beat,
    FeatureFlags,
    PendingImport,
    PendingRequest,
    PendingUpdate,
)

SQL: Final = load("runtimes")

_WRITE_AFTER: Final = timedelta(seconds=10)
"""Beats come every 15 s, and after 45 s without one a runtime is shown offline: each is written, and
only repeats are not."""

_HAND_OUT_AGAIN: Final = timedelta(seconds=20)
"""After how long without a word a request is handed out again; longer than between two beats."""

IMPORTS: Final = 10

_PLAIN: Final = {
    "models": "pending_model_list",
    "local_skills": "pending_local_skills",
    "ping": "pending_ping",
}

_FLAGS: Final = FeatureFlags(flags={"runtime_brief_slim": "off"})


async def beat(
    conn: Connection,
    *,
    runtime_id: str,
    caller: Caller,
    supports_batch_import: bool = False,
) -> Beat:
    """Note that the runtime lives; return the answer without `runtime_id`.

    Raises NotFound("runtime not found") when the row is gone or the machine is not the caller's,
    Foreign.
    """
    answer, _ = await take_beat(
        conn,
        runtime_id=runtime_id,
        caller=caller,
        supports_batch_import=supports_batch_import,
    )
    return answer


async def take_beat(
    conn: Connection,
    *,
    runtime_id: str,
    caller: Caller,
    supports_batch_import: bool = False,
) -> tuple[Beat, list[Consequence]]:
    """As `beat`, with what follows: a runtime that comes back is news."""
    answers, consequences = await take_beats(conn, {runtime_id: supports_batch_import}, caller)
    answer = answers[runtime_id]
    if isinstance(answer, Exception):
        raise answer
    return answer, consequences


async def take_beats(
    conn: Connection, beating: Mapping[str, bool], caller: Caller
) -> tuple[dict[str, Beat | NotFound], list[Consequence]]:
    """Beats of many runtimes in one statement; the values say who takes imports in batches.

    A runtime that is gone, or foreign (Foreign), has the error for its answer.
    """
    ids = sorted(beating)
    rows = await conn.fetch(
        SQL.beat,
        ids,
        *caller.args,
        _WRITE_AFTER,
        _HAND_OUT_AGAIN,
        [IMPORTS if beating[one] else 1 for one in ids],
    )
    found = {row["id"]: row for row in rows}
    answers: dict[str, Beat | NotFound] = {}
    back: list[str] = []
    consequences: list[Consequence] = []
    for runtime_id in ids:
        try:
            row = seen(found.get(runtime_id), "runtime not found")
        except NotFound as error:
            answers[runtime_id] = error
            continue
        asked = _asked(row["requests"] or [], batch=beating[runtime_id])
        answers[runtime_id] = Beat(feature_flags=_FLAGS, **asked)
        if row["came_back"]:
            back.append(runtime_id)
            consequences.append(events.runtimes_changed(row["workspace_id"], action="online"))
    if back:
        consequences.append(Counted("runtime_ready", len(back)))
        consequences += await came_back(conn, back)
    return answers, consequences


def _asked(requests: list[dict[str, Any]], *, batch: bool) -> dict[str, Any]:
    """The requests as the fields of a beat; the first import stands in two places (01 §3.3)."""
    first = {request["kind"]: request for request in reversed(requests)}
    found: dict[str, Any] = {}
    if update := first.get("update"):
        version = update["params"]["target_version"]
        found["pending_update"] = PendingUpdate(id=update["id"], target_version=version)
    for kind, field in _PLAIN.items():
        if kind in first:
            found[field] = PendingRequest(id=first[kind]["id"])
    imports = [
        PendingImport(id=request["id"], skill_key=request["params"]["skill_key"])
        for request in requests
        if request["kind"] == "import"
    ]
    if imports:
        found["pending_local_skill_import"] = imports[0]
        found["pending_local_skill_imports"] = imports if batch else []
    return found
