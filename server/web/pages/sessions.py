"""The page of a person's own sessions: where they are signed in, and the way to end it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import attrs
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from server.errors import DomainError
from server.store import sessions
from server.store.queries import Connection
from server.web import auth
from server.web.context import services
from server.web.pages import shell
from server.web.pages.login import form_of
from server.web.session_api import end, shown
from shared.ids import InvalidId, canonical_id

_KINDS: Final = {"link": "by a link", "code": "by a code", "command_line": "a command line"}

_BROWSERS: Final = (
    (r"Edg(?:e|A|iOS)?/", "Edge"),
    (r"OPR/", "Opera"),
    (r"Firefox/|FxiOS/", "Firefox"),
    (r"Chrom(?:e|ium)/|CriOS/", "Chrome"),
    (r"Version/.*Safari/", "Safari"),
)
"""The first that fits: each but Firefox also claims to be those below it."""

_SYSTEMS: Final = (
    (r"Android", "Android"),
    (r"iPhone", "iPhone"),
    (r"iPad", "iPad"),
    (r"Windows", "Windows"),
    (r"Mac OS X|Macintosh", "macOS"),
    (r"CrOS", "ChromeOS"),
    (r"Linux|X11", "Linux"),
)


@attrs.frozen(kw_only=True)
class Row:
    """A session (`session_api.shown`) and the words for it."""

    session: dict[str, Any]
    device: str
    kind: str


def device(user_agent: str) -> str:
    """Say in a few words what a program called itself: "Firefox on Windows"."""

    def first(names: tuple[tuple[str, str], ...]) -> str:
        return next((name for pattern, name in names if re.search(pattern, user_agent)), "")

    browser, system = first(_BROWSERS), first(_SYSTEMS)
    if browser and system:
        return f"{browser} on {system}"
    if browser or not user_agent:
        return browser or "A program without a name"
    return user_agent[:60]


def _row(session: dict[str, Any]) -> Row:
    return Row(
        session=session,
        device=device(session["user_agent"]),
        kind=_KINDS.get(session["kind"], session["kind"]),
    )


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
        rows=[_row(shown(row, actor)) for row in rows],
        proof=auth.mint_csrf(request.cookies.get(auth.AUTH_COOKIE, "")),
    )


async def sign_out(request: Request) -> Response:
    """POST /auth/sessions: end the session named in the form, or all of them."""
    form = await form_of(request)
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
