"""Events for browsers: what happened, who did it, and who may hear of it (spec 01 §5.3)."""

from __future__ import annotations

from typing import Any

import attrs

from shared import codec


@attrs.frozen(kw_only=True)
class Event:
    """One thing that happened in a workspace.

    Who hears it is who may read what it is about. `users`: to whom that belongs; `kind`: what makes
    it a case of its own ("private", "chat"). The routing fields are not part of the frame.
    """

    type: str
    payload: dict[str, Any]
    workspace_id: str
    actor_type: str = "system"
    actor_id: str = ""
    users: tuple[str, ...] | None = None
    kind: str = ""


def write(event: Event) -> str:
    """Write the event as the frame a browser gets."""
    return codec.encode(
        {
            "type": event.type,
            "payload": event.payload,
            "actor_type": event.actor_type,
            "actor_id": event.actor_id,
        }
    ).decode()
