"""Signing in and out, a person's sessions, and what a page may know before it (spec 06 §2.3).

A browser is signed in by a link: an authenticated caller (the command line, after `bullpen up`)
mints it, whoever opens it first gets the session. It works once and for ten minutes. Every session
is a row: it ends at once when it is ended, here and in other processes.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from server.consequences import TokensRevoked
from server.errors import DomainError, NotFound
from server.store import access, sessions
from server.store.queries import Connection, Record
from server.web import address, auth
from server.web.answers import answer, nothing
from server.web.auth import Actor
from server.web.context import services
from server.web.unit import path_id
from shared import times
from shared.ids import hash_token

LINK_LIFE: Final = timedelta(minutes=10)


async def make_link(request: Request) -> Response:
    """POST /auth/link: a link that signs a browser in as the caller."""
    actor = await auth.human(request)
    parts = services(request)
    code = secrets.token_urlsafe(32)
    expires_at = times.now() + LINK_LIFE
    kept = await parts.database.write(
        partial(
            sessions.add_link,
            code_hash=hash_token(code),
            user_id=actor.user_id,
            expires_at=expires_at,
            made_with=actor.token_hash,
        ),
        one_statement=True,
    )
    if not kept:
        raise auth.UserUnauthenticated("invalid token")
    url = f"{address.base_url(request)}/auth/link/{code}"
    return answer({"url": url, "expires_at": times.stamp(expires_at)})


async def open_link(request: Request) -> Response:
    """GET /auth/link/{code}: the session cookies, and on to the pages."""
    if request.method == "HEAD":  # a preview must not spend the link
        return nothing()
    parts = services(request)
    code_hash = hash_token(request.path_params["code"])

    async def unit(conn: Connection) -> str | None:
        row = await sessions.spend_link(conn, code_hash)
        if row is None:
            return None
        return await auth.open_session(
            conn,
            parts.config,
            row,
            kind="link",
            user_agent=auth.user_agent(request),
            personal_token_id=row["personal_token_id"],
        )

    session = await parts.database.write(unit)
    if session is None:
        return RedirectResponse("/login?spent=1", 303)  # says so, or goes on if signed in already
    response = RedirectResponse("/", 303)
    auth.set_cookies(request, response, session)
    return response


async def logout(request: Request) -> Response:
    """POST /auth/logout: end the session that the request carries, and forget it in the browser."""
    token = auth.session_of(request)
    response = answer({"message": "logged out"})
    auth.clear_cookies(request, response)
    try:
        auth.session_user(services(request).config, token)
    except DomainError:
        return response  # no session: a personal token is revoked on purpose, or not at all
    await end(request, partial(sessions.close, token_hash=hash_token(token)))
    return response


async def end(
    request: Request, unit: Callable[[Connection], Awaitable[tuple[str, ...]]]
) -> tuple[str, ...]:
    """End the sessions a unit deletes: in this process now, in others within a moment."""
    parts = services(request)
    hashes = await parts.database.write(unit, one_statement=True)
    if hashes:
        parts.hub.announce((TokensRevoked(hashes),))
    return hashes


async def list_sessions(request: Request) -> Response:
    """GET /api/sessions: the caller's open sessions, the last used first."""
    actor = await auth.human(request)
    rows = await services(request).database.read(partial(sessions.list_open, user_id=actor.user_id))
    return answer({"sessions": [shown(row, actor) for row in rows]})


def shown(row: Record, actor: Actor) -> dict[str, Any]:
    """A session as its person sees it."""
    return {
        "id": row["id"],
        "kind": row["kind"],
        "current": row["token_hash"] == actor.token_hash,
        "user_agent": row["user_agent"],
        "personal_token": row["personal_token"],
        "created_at": times.stamp(row["created_at"]),
        "last_used_at": times.stamp(row["last_used_at"]),
        "expires_at": times.stamp(row["expires_at"]),
    }


async def end_session(request: Request) -> Response:
    """DELETE /api/sessions/{id}: end one of the caller's sessions."""
    actor = await auth.human(request)
    session_id = path_id(request, "id", "session id")
    unit = partial(sessions.close_one, user_id=actor.user_id, session_id=session_id)
    if not await end(request, unit):
        raise NotFound("session not found")
    return nothing()


async def end_sessions(request: Request) -> Response:
    """DELETE /api/sessions: sign out everywhere; personal tokens stay, they are no sessions."""
    actor = await auth.human(request)
    ended = await end(request, partial(sessions.close_all, user_id=actor.user_id))
    response = answer({"ended": len(ended)})
    auth.clear_cookies(request, response)
    return response


async def cli_token(request: Request) -> Response:
    """POST /api/cli-token: a fresh session for a command line that a browser signs in."""
    actor = await auth.human(request)
    return answer({"token": await session_for_command_line(request, actor)})


async def session_for_command_line(request: Request, actor: Actor) -> str:
    """A session for the caller's command line; it ends with the personal token at its beginning."""
    parts = services(request)

    async def unit(conn: Connection) -> str:
        row = await access.user(conn, actor.user_id)
        if row is None:
            raise auth.UserUnauthenticated("invalid token")
        return await auth.open_session(
            conn,
            parts.config,
            row,
            kind="command_line",
            user_agent=auth.user_agent(request),
            made_with=actor.token_hash,
        )

    return await parts.database.write(unit)


async def public_config(request: Request) -> Response:
    """GET /api/config: what anybody may know of this server."""
    config = services(request).config
    url = config.public_url
    value = {
        "cdn_domain": "",
        "allow_signup": config.allow_signup,
        "posthog_key": "",
        "posthog_host": "",
        "analytics_environment": "",
    }
    if url:
        value |= {"daemon_server_url": url, "daemon_app_url": url}
    return answer(value)


routes: list[BaseRoute] = [
    Route("/auth/link", make_link, methods=["POST"]),
    Route("/auth/link/{code}", open_link, methods=["GET"]),
    Route("/auth/logout", logout, methods=["POST"]),
    Route("/api/sessions", list_sessions, methods=["GET"]),
    Route("/api/sessions", end_sessions, methods=["DELETE"]),
    Route("/api/sessions/{id}", end_session, methods=["DELETE"]),
    Route("/api/cli-token", cli_token, methods=["POST"]),
    Route("/api/config", public_config, methods=["GET"]),
]
