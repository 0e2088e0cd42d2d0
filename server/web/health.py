"""Whether the server lives, whether it is ready, and its counters (spec 01 §3.21, 02 §11.5)."""

from __future__ import annotations

import hmac
import ipaddress
from typing import Any, Final

import attrs
import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
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

REGISTRY: Final = CollectorRegistry()
REQUESTS: Final = Counter(
    "bullpen_http_requests", "Requests answered.", ["method", "status"], registry=REGISTRY
)
FRAMES: Final = Counter(
    "bullpen_socket_frames_received", "Websocket frames received.", ["socket"], registry=REGISTRY
)
SOCKETS: Final = Gauge("bullpen_sockets_open", "Open websockets.", ["socket"], registry=REGISTRY)
BEATS: Final = Counter(
    "bullpen_socket_heartbeats", "Heartbeats taken over websockets.", ["result"], registry=REGISTRY
)
EVICTIONS: Final = Gauge(
    "bullpen_socket_evictions", "Websockets closed because they did not keep up.", registry=REGISTRY
)
RELAYED: Final = Counter(
    "bullpen_relay_messages",
    "Consequences told between processes.",
    ["direction"],
    registry=REGISTRY,
)
RELAY_GAPS: Final = Counter(
    "bullpen_relay_resyncs", "Times every socket was sent to catch up.", registry=REGISTRY
)


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
    """GET /metrics: the counters, for this machine or with the configured token."""
    if not _may_measure(request):
        return PlainTextResponse("404 page not found\n", 404)
    EVICTIONS.set(services(request).hub.evictions)
    return Response(generate_latest(REGISTRY), headers={"content-type": CONTENT_TYPE_LATEST})


def _may_measure(request: Request) -> bool:
    token = services(request).config.metrics_token
    if token:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), token.encode())
    if "x-forwarded-for" in request.headers or "forwarded" in request.headers:
        return False
    try:
        return ipaddress.ip_address(request.client.host if request.client else "").is_loopback
    except ValueError:
        return False


routes: list[BaseRoute] = [
    Route("/health", health, methods=["GET"]),
    Route("/healthz", ready, methods=["GET"]),
    Route("/readyz", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
]
