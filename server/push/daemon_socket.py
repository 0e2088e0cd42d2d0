"""The daemon's websocket: heartbeats in, acks and hints out (spec 01 §4).

One socket covers all runtimes of a daemon. The reader notes whose heartbeat came; the worker takes
everything noted so far in one crossing and one transaction, so a daemon with twenty runtimes costs
one. Whatever goes wrong with a beat is silence: the daemon falls back to HTTP.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import attrs
import structlog
import trio
from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from server.consequences import Consequence
from server.dispatch.heartbeat import take_beats
from server.errors import DomainError, Foreign, Invalid
from server.push.peer import control_of, run_peer
from server.store import access
from server.store.queries import Connection
from server.store.tasks import seen
from server.web import auth
from server.web.answers import error_answer
from server.web.auth import Actor
from server.web.context import Services, services
from server.web.daemon_calls import caller_of
from shared import codec, ids
from shared.mailbox import Nudge
from shared.wire import frame
from shared.wire.runtime import Beat

log = structlog.get_logger(__name__)

OUTBOX: Final = 16
MAX_MESSAGE: Final = 4096
"""Frames and bytes (spec 01 §4.5)."""

_MAX_RUNTIMES: Final = 500
"""Runtimes of one socket; a machine has a handful."""

_GATHER: Final = 0.01
"""Seconds to wait for more heartbeats after the first: a daemon sends all of its at once."""


async def daemon_socket(websocket: WebSocket) -> None:
    """GET /api/daemon/ws?runtime_ids=a,b,c."""
    parts = services(websocket)
    try:
        actor = await auth.daemon(websocket)
        runtimes = await _authorised(parts, actor, _wanted(websocket))
    except DomainError as error:
        await websocket.send_denial_response(error_answer(error))
        return
    except Exception:
        log.exception("runtimes of a daemon socket could not be loaded")
        body = codec.encode({"error": "failed to load runtime"}) + b"\n"
        await websocket.send_denial_response(Response(body, 500, media_type="application/json"))
        return
    control_of(websocket).max_message = MAX_MESSAGE
    await websocket.accept()
    await _serve(websocket, parts, actor, runtimes)


def _wanted(websocket: WebSocket) -> list[str]:
    """The runtime ids asked for, in canonical form and once each. Raises Invalid."""
    query = websocket.query_params
    given = [*query.getlist("runtime_ids"), *query.getlist("runtime_id")]
    named = [name for text in given for part in text.split(",") if (name := part.strip())]
    if not named:
        raise Invalid("runtime_ids required")
    if len(named) > _MAX_RUNTIMES:
        raise Invalid("too many runtime_ids")
    try:
        return list(dict.fromkeys(ids.canonical_id(name) for name in named))
    except ids.InvalidId:
        raise Invalid("invalid runtime_id") from None


async def _authorised(parts: Services, actor: Actor, wanted: list[str]) -> dict[str, str]:
    """Workspace by runtime id. One bad id refuses the connection (spec 01 §4.1)."""
    unit = partial(access.runtimes_for_socket, runtime_ids=wanted, caller=caller_of(actor))
    found = {str(row["id"]): row for row in await parts.database.read(unit)}
    for runtime_id in wanted:
        seen(found.get(runtime_id), "runtime not found")
    return {runtime_id: str(row["workspace_id"]) for runtime_id, row in found.items()}


@attrs.define(eq=False)
class _Beats:
    """Heartbeats not taken yet, by runtime: a second one of the same runtime adds nothing.

    The reader notes, the worker takes.
    """

    runtimes: frozenset[str]
    noted: dict[str, bool] = attrs.field(factory=dict)
    nudge: Nudge = attrs.field(factory=Nudge)

    def note(self, text: str) -> None:
        """Note a heartbeat; anything else is ignored by the protocol."""
        try:
            message = frame.read(text)
        except codec.DecodeError:
            return
        if message.type != frame.HEARTBEAT:
            return
        # Ours: one frame may name all of a daemon's runtimes; each is answered for itself.
        many = message.payload.get("runtime_ids")
        named = [message.payload.get("runtime_id"), *(many if isinstance(many, list) else ())]
        for runtime_id in named:
            if isinstance(runtime_id, str) and runtime_id in self.runtimes:
                self.noted[runtime_id] = message.payload.get("supports_batch_import") is True
                self.nudge.nudge()

    def take(self) -> dict[str, bool]:
        taken, self.noted = self.noted, {}
        return taken


async def _serve(
    websocket: WebSocket, parts: Services, actor: Actor, runtimes: dict[str, str]
) -> None:
    beats = _Beats(frozenset(runtimes))
    with parts.hub.open_peer(max(OUTBOX, 2 * len(runtimes))) as peer:
        for runtime_id in runtimes:
            peer.subscribe(f"runtime:{runtime_id}")
        for workspace_id in set(runtimes.values()):
            peer.subscribe(f"profiles:{workspace_id}")
            peer.subscribe(f"member:{workspace_id}:{actor.user_id}")
        if actor.token_hash:
            peer.subscribe(f"token:{actor.token_hash}")

        async def work() -> None:
            while True:
                await beats.nudge.wait()
                await trio.sleep(_GATHER)
                for answer in await _answer(parts, actor, beats.take()):
                    # An ack may be lost: the daemon then beats over HTTP (spec 01 §4.5).
                    peer.outbox.try_put(frame.write(frame.HEARTBEAT_ACK, answer))

        await run_peer(websocket, peer, name="daemon", take=beats.note, work=work)


async def _answer(parts: Services, actor: Actor, noted: dict[str, bool]) -> list[Beat]:
    """The acks of a round of heartbeats; none for those that could not be taken."""
    unit: Any = partial(_take_all, actor=actor, noted=noted)
    try:
        acks, consequences = await parts.database.write(unit)
    except Exception as error:  # noqa: BLE001 - whatever it is, silence is the protocol's answer
        log.warning("heartbeats were not taken", count=len(noted), error=str(error))
        parts.hub.tally.beats["failed"] += len(noted)
        return []
    parts.hub.announce(consequences)
    parts.hub.tally.beats["taken"] += len(acks)
    return list(acks)


async def _take_all(
    conn: Connection, actor: Actor, noted: dict[str, bool]
) -> tuple[list[Beat], list[Consequence]]:
    """One statement for all runtimes."""
    answers, consequences = await take_beats(conn, noted, caller_of(actor))
    acks: list[Beat] = []
    for runtime_id, answer in answers.items():
        if isinstance(answer, Beat):
            acks.append(attrs.evolve(answer, runtime_id=runtime_id))
        elif not isinstance(answer, Foreign):
            acks.append(Beat(runtime_id=runtime_id, status="runtime_gone", runtime_gone=True))
    return acks, consequences


routes: list[BaseRoute] = [WebSocketRoute("/api/daemon/ws", daemon_socket)]
