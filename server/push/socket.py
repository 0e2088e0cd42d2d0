"""The browser's websocket: events of one workspace and one user (spec 01 §5).

Opened by a page (cookie) or another client (a token in the first frame, within ten seconds). It
never tells more than its user may see: subscriptions are authorised, a revoked token or a lost
membership closes it. Commands are answered by a worker beside the reader; a peer that sends faster
than they can be answered is closed.
"""

from __future__ import annotations

import ipaddress
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import structlog
import trio
from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from server.errors import DomainError, Forbidden, Invalid, NotFound, Unauthenticated
from server.push.hub import POLICY, TRY_AGAIN, Peer
from server.push.peer import close, control_of, run_peer
from server.store import access
from server.store.access import Seat
from server.web import auth
from server.web.answers import PLAIN, status_of
from server.web.auth import Actor
from server.web.context import Services, services
from shared import codec, ids
from shared.wire import frame
from shared.wire.frame import Frame

log = structlog.get_logger(__name__)

OUTBOX: Final = 256
"""Frames (spec 01 §5.3)."""

_COMMANDS: Final = 64
"""Unanswered commands of one page; a page subscribes to a handful of things."""

_AUTH_LIMIT: Final = 10.0
_MAX_MESSAGE: Final = 64 * 1024
"""Bytes; commands and tokens are short."""

_SCOPES: Final = frozenset({"workspace", "user", "task", "chat"})

_LOCAL_DEVELOPMENT: Final = (
    "http://localhost:3000",
    "http://localhost:5173",
    "http://localhost:5174",
)


async def browser_socket(websocket: WebSocket) -> None:
    """GET /ws."""
    parts = services(websocket)
    try:
        _check_origin(websocket)
        actor = await _cookie_actor(websocket)
        workspace = await _workspace(websocket, actor)
    except DomainError as error:
        body = codec.encode({"error": error.text}) + b"\n"
        await websocket.send_denial_response(Response(body, status_of(error), media_type=PLAIN))
        return
    control_of(websocket).max_message = _MAX_MESSAGE
    await websocket.accept()
    if actor is None:
        admitted = await _first_frame(websocket, parts, workspace)
        if admitted is None:
            return
        actor, workspace_id = admitted
    else:
        workspace_id = workspace
    await _serve(websocket, parts, actor, workspace_id)


# --- handshake ------------------------------------------------------------------------------------


def _check_origin(websocket: WebSocket) -> None:
    """Refuse pages of other sites: they would carry our cookie (spec 01 §5.1)."""
    origin = websocket.headers.get("origin")
    if origin is None:
        return
    parts = services(websocket)
    host = urlsplit(origin).netloc.lower()
    if host and host == websocket.headers.get("host", "").lower():
        return
    forwarded = websocket.headers.get("x-forwarded-host", "").split(",")[0].strip().lower()
    if forwarded and host == forwarded and _from_proxy(websocket, parts):
        return
    config = parts.config
    allowed = config.allowed_origins or (
        (config.public_url,) if config.public_url else _LOCAL_DEVELOPMENT
    )
    if origin.rstrip("/") not in allowed:
        raise Forbidden("origin not allowed")


def _from_proxy(websocket: WebSocket, parts: Services) -> bool:
    try:
        peer = ipaddress.ip_address(websocket.client.host if websocket.client else "")
    except ValueError:
        return False
    return any(peer in network for network in parts.config.trusted_proxies)


async def _cookie_actor(websocket: WebSocket) -> Actor | None:
    """Who the cookie stands for; None without one. A wrong cookie is final."""
    cookie = websocket.cookies.get(auth.AUTH_COOKIE, "")
    if not cookie:
        return None
    return await auth.actor_of_session(services(websocket), cookie)


async def _workspace(websocket: WebSocket, actor: Actor | None) -> str:
    """The workspace's id, of which an actor already known is a member; or `slug:<slug>`."""
    parts = services(websocket)
    workspace_id = websocket.query_params.get("workspace_id", "")
    slug = websocket.query_params.get("workspace_slug", "")
    if not workspace_id and not slug:
        raise Invalid("workspace_id or workspace_slug required")
    if workspace_id:
        try:
            workspace_id = ids.canonical_id(workspace_id)
        except ids.InvalidId:
            raise NotFound("workspace not found") from None
    elif not await parts.database.read(partial(access.workspace_exists, slug=slug)):
        raise NotFound("workspace not found")
    if actor is None:
        return workspace_id or f"slug:{slug}"
    return (await _member_of(parts, actor, workspace_id or f"slug:{slug}")).workspace_id


async def _member_of(parts: Services, actor: Actor, workspace: str) -> Seat:
    slug = workspace.removeprefix("slug:") if workspace.startswith("slug:") else ""
    found = await auth.membership_of(
        parts, actor.user_id, workspace_id="" if slug else workspace, slug=slug
    )
    if found is None:
        raise Forbidden("not a member of this workspace")
    return found


async def _first_frame(
    websocket: WebSocket, parts: Services, workspace: str
) -> tuple[Actor, str] | None:
    """Admit by the first frame. Otherwise say why, close, and return None."""
    error = "auth timeout or read error"
    with trio.move_on_after(_AUTH_LIMIT):
        try:
            error, actor = "invalid token", await _token_actor(websocket, parts)
            workspace_id = (await _member_of(parts, actor, workspace)).workspace_id
            await websocket.send_text(codec.encode({"type": "auth_ack"}).decode())
            return actor, workspace_id
        except DomainError as refused:
            error = refused.text
        except WebSocketDisconnect:
            return None
        except KeyError:
            error = "expected auth message as first frame"
    try:
        await websocket.send_text(codec.encode({"error": error}).decode())
    except WebSocketDisconnect:
        return None
    await close(websocket, POLICY, "not authenticated")
    return None


async def _token_actor(websocket: WebSocket, parts: Services) -> Actor:
    text = await websocket.receive_text()
    try:
        first = frame.read(text)
    except codec.DecodeError:
        first = Frame(type="")
    if first.type != "auth":
        raise Unauthenticated("expected auth message as first frame")
    token = first.payload.get("token")
    return await auth.actor_of_token(
        parts, token if isinstance(token, str) else "", machine_tokens=False
    )


# --- the open socket ------------------------------------------------------------------------------


async def _serve(websocket: WebSocket, parts: Services, actor: Actor, workspace_id: str) -> None:
    commands, todo = trio.open_memory_channel[Frame](_COMMANDS)
    with parts.hub.open_peer(OUTBOX) as peer:
        peer.subscribe(f"workspace:{workspace_id}")
        peer.subscribe(f"user:{actor.user_id}")
        peer.subscribe(f"member:{workspace_id}:{actor.user_id}")
        if actor.token_hash:
            peer.subscribe(f"token:{actor.token_hash}")
        # Asked only now: a change of role from here on is heard by the hub.
        seat = await auth.membership_of(parts, actor.user_id, workspace_id=workspace_id)
        if seat is None:
            await close(websocket, POLICY, "no longer a member")
            return
        peer.rank(workspace_id, seat.role)

        def take(text: str) -> None:
            try:
                commands.send_nowait(frame.read(text))
            except codec.DecodeError:
                pass  # ignored by the protocol
            except trio.WouldBlock:
                peer.close(TRY_AGAIN, "too many commands")

        async def work() -> None:
            async for command in todo:
                reply = await _reply(parts, peer, actor, workspace_id, command)
                if reply is not None:
                    peer.outbox.try_put(reply)

        await run_peer(websocket, peer, name="browser", take=take, work=work)


async def _reply(
    parts: Services, peer: Peer, actor: Actor, workspace_id: str, command: Frame
) -> str | None:
    """Answer a command; None for what the protocol ignores (spec 01 §5.2)."""
    if command.type == "ping":
        return codec.encode({"type": "pong"}).decode()
    if command.type not in {"subscribe", "unsubscribe"}:
        return None
    scope, key = command.payload.get("scope"), command.payload.get("id")
    if not isinstance(scope, str) or not isinstance(key, str) or not scope or not key:
        return _refusal(command.type, scope, key, "invalid payload")
    if command.type == "unsubscribe":
        if scope in _SCOPES:  # and not from what closes the socket
            peer.unsubscribe(f"{scope}:{key}")
        return frame.write("unsubscribe_ack", {"scope": scope, "id": key})
    error = await _forbidden(parts, actor, workspace_id, scope, key)
    if error is not None:
        return _refusal("subscribe", scope, key, error)
    peer.subscribe(f"{scope}:{key}")
    return frame.write("subscribe_ack", {"scope": scope, "id": key})


def _refusal(kind: str, scope: object, key: object, error: str) -> str:
    payload = {
        "scope": scope if isinstance(scope, str) else "",
        "id": key if isinstance(key, str) else "",
        "error": error,
    }
    return frame.write(f"{kind}_error", payload)


async def _forbidden(
    parts: Services, actor: Actor, workspace_id: str, scope: str, key: str
) -> str | None:
    """Why the actor may not subscribe, or None."""
    if scope == "workspace":
        return None if key == workspace_id else "forbidden"
    if scope == "user":
        return None if key == actor.user_id else "forbidden"
    if scope == "chat":
        return "forbidden"  # sessions come with the chat
    if scope != "task":
        return "unknown_scope"
    if not ids.is_id(key):
        return "forbidden"
    try:
        task = await parts.database.read(partial(access.task_workspace, task_id=key))
        if task is None or task["issue_id"] is None:
            return "forbidden"
        found = await auth.membership_of(
            parts, actor.user_id, workspace_id=str(task["workspace_id"])
        )
    except Exception as error:  # noqa: BLE001 - whatever the database raises: the peer is told so
        log.warning("subscription could not be checked", error=str(error))
        return "lookup_failed"
    return None if found is not None else "forbidden"


routes: list[BaseRoute] = [WebSocketRoute("/ws", browser_socket)]
