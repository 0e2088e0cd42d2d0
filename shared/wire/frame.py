"""Websocket frames: the envelope both sockets share and the types of the daemon's one (spec 01 §4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from shared import codec

HEARTBEAT: Final = "daemon:heartbeat"
HEARTBEAT_ACK: Final = "daemon:heartbeat_ack"
TASK_AVAILABLE: Final = "daemon:task_available"
PROFILES_CHANGED: Final = "daemon:runtime_profiles_changed"

_TOGETHER: Final = 90
"""Runtimes one frame may name: UUIDs, quotes and commas take 39 bytes each."""


@attrs.frozen(kw_only=True)
class Frame:
    """One text frame. A payload that is absent or null reads as an empty object."""

    type: str
    payload: dict[str, Any] = attrs.field(factory=dict)


def read(data: bytes | str) -> Frame:
    """Read a frame. Raises codec.DecodeError."""
    return codec.decode(data, Frame)


def write(kind: str, payload: Any) -> str:
    """Write a frame as JSON text."""
    return codec.encode({"type": kind, "payload": payload}).decode()


def heartbeat(runtime_id: str) -> str:
    return write(HEARTBEAT, {"runtime_id": runtime_id, "supports_batch_import": True})


def heartbeats(runtime_ids: Sequence[str]) -> list[str]:
    """The beats of many runtimes in as few frames as the server's limit of 4096 bytes allows."""
    return [
        write(HEARTBEAT, {"runtime_ids": list(some), "supports_batch_import": True})
        for start in range(0, len(runtime_ids), _TOGETHER)
        if (some := runtime_ids[start : start + _TOGETHER])
    ]


def task_available(runtime_id: str, task_id: str) -> str:
    return write(TASK_AVAILABLE, {"runtime_id": runtime_id, "task_id": task_id})


def profiles_changed(workspace_id: str, profile_id: str = "") -> str:
    payload = {"workspace_id": workspace_id}
    if profile_id:
        payload["runtime_profile_id"] = profile_id
    return write(PROFILES_CHANGED, payload)
