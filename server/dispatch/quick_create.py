"""How a quick-create ends: with an issue or without, and who asked is told (spec 02 §2.3, §2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from server.consequences import Consequence
from server.dispatch import events
from server.dispatch.outcome import Ended
from server.store.queries import Connection, load
from shared.wire.event import Event

SQL: Final = load("quick_create")


async def settle_quick_creates(conn: Connection, ended: Sequence[Ended]) -> list[Consequence]:
    """Settler of tasks without an issue, a chat or an autopilot; cancelled ones need no word."""
    rows = [
        {"task_id": one.id, "error": "" if one.completed else one.text}
        for one in ended
        if one.retry is None and one.status != "cancelled" and one.before["context"]
    ]
    if not rows:
        return []
    result = await conn.fetchrow(SQL.finish, rows)
    assert result is not None
    workspace_id = ended[0].task["workspace_id"]
    told: list[Consequence] = [
        Event(type="subscriber:added", payload=row, workspace_id=workspace_id)
        for row in result["followers"]
    ]
    told += [events.inbox_new(item) for item in result["items"]]
    return told
