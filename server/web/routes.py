"""The route table, and what surrounds every endpoint.

One Starlette application: the areas' routes concatenated, the error handlers, and a thin layer of
plain ASGI that takes a trailing slash off the path, adds the security headers, and turns what no
handler knows into a 500 that says nothing.
"""

from __future__ import annotations

import time
from typing import Any, Final

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import stages
from server.lanes import lane
from server.metrics import Metrics
from server.push import daemon_socket, socket
from server.rights_map import ROUTES
from server.web import (
    address,
    agent_env_api,
    attachments_api,
    autopilots_api,
    chat_api,
    claims_api,
    codes_api,
    evaluations_api,
    following_api,
    grouped_api,
    health,
    inbox_api,
    labels_api,
    machine_reports_api,
    machines_api,
    members_api,
    pages,
    pins_api,
    previews_api,
    profiles_api,
    projects_api,
    quick_create_api,
    reports_api,
    requests_api,
    session_api,
    skill_imports_api,
    skills_api,
    squads_api,
    task_api,
    team_api,
    usage_api,
    webhooks_api,
    work_api,
)
from server.web.context import Services
from server.web.pages import refusals
from server.web.security import security_policy

log = structlog.get_logger(__name__)

SLOW = 0.5
"""Seconds from which on a request is logged with where its time went."""

_HEADERS: Final = (
    (b"content-security-policy", security_policy().encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)

_CORS_ALWAYS: Final = (
    (b"vary", b"Origin"),
    (b"access-control-allow-credentials", b"true"),
    (
        b"access-control-expose-headers",
        b"X-Multica-Next-Before, X-Multica-Next-Before-Id, X-Total-Count",
    ),
)
_CORS_PREFLIGHT: Final = (
    (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE, OPTIONS"),
    (
        b"access-control-allow-headers",
        (
            b"Accept, Authorization, Content-Type, X-Workspace-ID, X-Workspace-Slug, X-Request-ID, "
            b"X-Agent-ID, X-Task-ID, X-CSRF-Token, X-Client-Platform, X-Client-Version, X-Client-OS"
        ),
    ),
    (b"access-control-max-age", b"300"),
)
"""What pages of other origins may do and read, where the settings allow them (spec 06 §1)."""


def _table() -> list[BaseRoute]:
    """Every route; the pages last, because their first word is a workspace's slug."""
    return [
        *health.routes,
        *session_api.routes,
        *codes_api.routes,
        *socket.routes,
        *daemon_socket.routes,
        *machine_reports_api.routes,
        *machines_api.routes,
        *claims_api.routes,
        *reports_api.routes,
        *requests_api.routes,
        *team_api.routes,
        *members_api.routes,
        *previews_api.routes,
        *evaluations_api.routes,
        *quick_create_api.routes,
        *grouped_api.routes,
        *work_api.routes,
        *agent_env_api.routes,
        *autopilots_api.routes,
        *attachments_api.routes,
        *chat_api.routes,
        *inbox_api.routes,
        *following_api.routes,
        *usage_api.routes,
        *webhooks_api.routes,
        *profiles_api.routes,
        *labels_api.routes,
        *pins_api.routes,
        *projects_api.routes,
        *skill_imports_api.routes,
        *skills_api.routes,
        *squads_api.routes,
        *task_api.routes,
        *pages.routes,
    ]


def make_app(services: Services) -> ASGIApp:
    """The application that serves every route of this server."""
    table = _table()
    app = Starlette(routes=table, exception_handlers=dict(refusals.HANDLERS))
    app.router.redirect_slashes = False
    app.state.services = services
    app.state.rights = _rights(table)
    return _Frame(app)


def _rights(table: list[BaseRoute]) -> dict[tuple[Any, str], str]:
    """The right of each route, by its endpoint and method: what a request knows of its route."""
    found = {}
    for route in table:
        if isinstance(route, Route):
            for method in route.methods or ():
                asked = "GET" if method == "HEAD" else method
                found[route.endpoint, method] = ROUTES.get(f"{asked} {route.path}", "")
        elif isinstance(route, WebSocketRoute):
            found[route.endpoint, "WS"] = ROUTES.get(f"WS {route.path}", "")
    return found


class _Frame:
    """The layer round the application. Holds no state of a request."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    @property
    def state(self) -> Any:
        return self._app.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            return  # no lifespan: resources are opened round the server
        path = scope["path"]
        address.ROOT.set(self._app.state.services.config.root_path)
        if len(path) > 1 and path.endswith("/"):
            scope = {**scope, "path": path.rstrip("/") or "/"}
        with lane("daemons" if path.startswith("/api/daemon/") else "people"):
            if scope["type"] == "websocket":
                await self._websocket(scope, receive, send)
            else:
                await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        status = 0
        began = time.perf_counter()
        spent = stages.begin()
        metrics: Metrics = self._app.state.services.metrics
        metrics.begun()

        async def send_framed(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                extra = [(name, value) for name, value in _HEADERS if name not in given]
                extra += cors
                if scope["path"].startswith("/api/") and b"cache-control" not in given:
                    extra.append((b"cache-control", b"no-store"))
                answered = [_placed(name, value) for name, value in message["headers"]]
                message = {**message, "headers": [*answered, *extra]}
                metrics.answered(
                    scope["method"] if scope["method"] in health.METHODS else "other",
                    message["status"],
                )
            await send(message)

        cors = self._cors(scope)
        try:
            if len(cors) > 1 and scope["method"] == "OPTIONS" and _asks_first(scope):
                allowed = Response(status_code=204)
                allowed.raw_headers.extend(_CORS_PREFLIGHT)
                await allowed(scope, receive, send_framed)
            else:
                await self._app(scope, receive, send_framed)
        except ClientDisconnect:
            return
        except Exception:
            log.exception("request failed", method=scope["method"], path=_shown(scope["path"]))
            if not started:
                raise
        finally:
            total = time.perf_counter() - began
            metrics.ended(_area(scope), total, spent)
            if total >= SLOW:
                log.warning(
                    "slow request",
                    method=scope["method"],
                    path=_shown(scope["path"]),
                    status=status,
                    total_ms=round(1000 * total),
                    stages_ms={name: round(1000 * seconds) for name, seconds in spent.items()},
                )

    def _cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """What lets a page of an allowed origin read the answer; nothing for all others."""
        allowed = self._app.state.services.config.allowed_origins
        if not allowed:
            return []
        origin = next((value for name, value in scope["headers"] if name == b"origin"), b"")
        if origin.decode("latin-1").lower() not in allowed:
            return [(b"vary", b"Origin")]
        return [(b"access-control-allow-origin", origin), *_CORS_ALWAYS]

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:
            log.exception("websocket failed", path=scope["path"])
            raise


def _placed(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """A redirect to a path of ours leads below the root path, as browsers see it."""
    if name.lower() == b"location" and value.startswith(b"/") and not value.startswith(b"//"):
        return name, address.here(value.decode("latin-1")).encode("latin-1")
    return name, value


def _asks_first(scope: Scope) -> bool:
    return any(name == b"access-control-request-method" for name, _ in scope["headers"])


def _area(scope: Scope) -> str:
    """The module that answered: few enough to count by."""
    endpoint = scope.get("endpoint")
    endpoint = getattr(endpoint, "func", endpoint)  # a partial
    return str(getattr(endpoint, "__module__", "")).rpartition(".")[2] or "none"


def _shown(path: str) -> str:
    """A path for the log, without the code of a sign-in link."""
    return "/auth/link/…" if path.startswith("/auth/link/") else path
