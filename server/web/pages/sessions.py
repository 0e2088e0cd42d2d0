"""The page of a person's own sessions: where they are signed in, and the way to end it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from server.errors import DomainError
from server.store import sessions
from server.store.queries import Connection
from server.web import auth, body
from server.web.context import services
from server.web.pages import shell
from server.web.session_api import end, shown
from shared.ids import InvalidId, canonical_id

KINDS = {
    "link": "Browser, by a link",
    "code": "Browser, by a code",
    "command_line": "Command line",
}


async def show(request: Request) -> Response:
    """GET /auth/sessions."""
    try:
        actor = await auth.human(request)
    except DomainError:
        return RedirectResponse("/login?next=/auth/sessions", 303)
    rows = await services(request).database.read(partial(sessions.list_open, user_id=actor.user_id))
    return shell.page(
        "sessions.html",
        page="login",
        sessions=[shown(row, actor) for row in rows],
        kinds=KINDS,
        proof=auth.mint_csrf(request.cookies.get(auth.AUTH_COOKIE, "")),
    )


async def sign_out(request: Request) -> Response:
    """POST /auth/sessions: end the session named in the form, or all of them."""
    sent = parse_qs((await body.read(request)).decode("utf-8", "replace"), max_num_fields=5)
    form = {name: values[0] for name, values in sent.items()}
    try:
        actor = await auth.human(request, proof=form.get("proof", ""))
    except DomainError:
        return RedirectResponse("/login?next=/auth/sessions", 303)
    unit: Callable[[Connection], Awaitable[tuple[str, ...]]]
    wanted = form.get("session", "")
    if wanted == "all":
        unit = partial(sessions.close_all, user_id=actor.user_id)
    else:
        try:
            session_id = canonical_id(wanted)
        except InvalidId:
            return RedirectResponse("/auth/sessions", 303)
        unit = partial(sessions.close_one, user_id=actor.user_id, session_id=session_id)
    ended = await end(request, unit)
    if actor.token_hash not in ended:
        return RedirectResponse("/auth/sessions", 303)
    response = RedirectResponse("/login", 303)
    auth.clear_cookies(request, response)
    return response


routes: list[BaseRoute] = [
    Route("/auth/sessions", show),
    Route("/auth/sessions", sign_out, methods=["POST"]),
]
