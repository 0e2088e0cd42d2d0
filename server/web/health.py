"""Whether the server lives, whether it is ready, and its counters (spec 01 §3.21, 02 §11.5)."""

from __future__ import annotations

import hmac
from typing import Any, Final

import attrs
import trio
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from server.web.answers import answer
from server.web.context import services

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

READY_FOR: Final = 3.0
"""Seconds a readiness verdict is kept (spec 02 §11.6)."""

PING_LIMIT: Final = 2.0


@attrs.define(eq=False)
class _Verdict:
    """The last readiness answer; changed by whoever asks after it has grown old."""

    at: float = float("-inf")
    value: dict[str, Any] = attrs.field(factory=dict)


async def health(_: Request) -> Response:
    """GET /health: the process answers."""
    return answer({"status": "ok"})


async def ready(request: Request) -> Response:
    """GET /readyz, /healthz: the database answers and is migrated; 503 otherwise."""
    state = request.app.state
    verdict: _Verdict = getattr(state, "readiness", None) or _Verdict()
    state.readiness = verdict
    if trio.current_time() - verdict.at >= READY_FOR:
        verdict.at = trio.current_time()
        verdict.value = await _check(request)
    return answer(verdict.value, 200 if verdict.value["status"] == "ok" else 503)


async def _check(request: Request) -> dict[str, Any]:
    checks = {"db": "error", "migrations": "unknown"}
    with trio.move_on_after(PING_LIMIT):
        try:
            await services(request).database.read(lambda conn: conn.fetchval("select 1"))
            # The server migrates before it listens, so a database that answers is up to date.
            checks = {"db": "ok", "migrations": "ok"}
        except Exception:  # noqa: BLE001 - any failure means the same: not ready
            checks["db"] = "error"
    ok = checks["db"] == "ok"
    return {"status": "ok" if ok else "not_ready", "checks": checks}


async def metrics(request: Request) -> Response:
    """GET /metrics: the counters, for who has the configured token; without one there are none."""
    if (refused := _refused(request)) is not None:
        return refused
    text = await services(request).metrics.text()
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


async def realtime(request: Request) -> Response:
    """GET /health/realtime: the numbers of the websockets of this process."""
    if (refused := _refused(request)) is not None:
        return refused
    hub = services(request).hub
    tally = hub.tally
    return answer(
        {
            "open": tally.open,
            "opened": tally.opened,
            "closed": tally.closed,
            "frames_received": tally.frames,
            "heartbeats": tally.beats,
            "wakeups": tally.wakeups,
            "relayed": tally.relayed,
            "resyncs": tally.resyncs,
            "evictions": hub.evictions,
            "topics": len(hub.topics),
        }
    )


def _refused(request: Request) -> Response | None:
    """Why these numbers are not shown; None with the token.

    Without a configured token nobody sees them, this machine's processes neither: agents are some.
    """
    token = services(request).config.metrics_token
    if not token:
        return PlainTextResponse("404 page not found\n", 404)
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if hmac.compare_digest(given.encode(), token.encode()):
        return None
    return PlainTextResponse("unauthorized", 401, {"WWW-Authenticate": "Bearer"})


routes: list[BaseRoute] = [
    Route("/health", health, methods=["GET"]),
    Route("/health/realtime", realtime, methods=["GET"]),
    Route("/healthz", ready, methods=["GET"]),
    Route("/readyz", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
]
