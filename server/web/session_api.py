"""Signing in and out, and what a page may know before it (spec 06 §2.3).

A browser is signed in by a link: an authenticated caller (the command line, after `bullpen up`)
mints it, whoever opens it first gets the session. It works once and for ten minutes.
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from server.store import access
from server.web import auth
from server.web.answers import answer, nothing
from server.web.context import services
from shared import times
from shared.ids import hash_token

LINK_LIFE: Final = timedelta(minutes=10)


async def make_link(request: Request) -> Response:
    """POST /auth/link: a link that signs a browser in as the caller."""
    actor = await auth.human(request)
    parts = services(request)
    code = secrets.token_urlsafe(32)
    expires_at = times.now() + LINK_LIFE
    await parts.database.write(
        partial(
            access.add_link,
            code_hash=hash_token(code),
            user_id=actor.user_id,
            expires_at=expires_at,
        )
    )
    base = parts.config.public_url or f"{request.url.scheme}://{request.url.netloc}"
    return answer({"url": f"{base}/auth/link/{code}", "expires_at": times.stamp(expires_at)})


async def open_link(request: Request) -> Response:
    """GET /auth/link/{code}: the session cookies, and on to the pages."""
    if request.method == "HEAD":  # a preview must not spend the link
        return nothing()
    parts = services(request)
    code_hash = hash_token(request.path_params["code"])
    row = await parts.database.write(partial(access.spend_link, code_hash=code_hash))
    if row is None:
        return RedirectResponse("/login?spent=1", 303)  # says so, or goes on if signed in already
    session = auth.mint_session(parts.config, str(row["user_id"]), row["email"], row["name"])
    response = RedirectResponse("/", 303)
    auth.set_cookies(response, parts.config, session)
    return response


async def logout(request: Request) -> Response:
    """POST /auth/logout: forget the browser's session."""
    response = answer({"message": "logged out"})
    auth.clear_cookies(response, services(request).config)
    return response


async def cli_token(request: Request) -> Response:
    """POST /api/cli-token: a fresh session for a command line that a browser signs in."""
    actor = await auth.human(request)
    parts = services(request)
    row = await parts.database.read(partial(access.user, user_id=actor.user_id))
    if row is None:
        raise auth.UserUnauthenticated("invalid token")
    session = auth.mint_session(parts.config, actor.user_id, row["email"], row["name"])
    return answer({"token": session})


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
    Route("/api/cli-token", cli_token, methods=["POST"]),
    Route("/api/config", public_config, methods=["GET"]),
]
