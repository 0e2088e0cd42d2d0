"""The way in: where "/" leads, and what to do when not signed in."""

from __future__ import annotations

import re
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from server.errors import DomainError
from server.store import people
from server.store.queries import Connection
from server.web import auth
from server.web.context import services
from server.web.pages import shell

_OWN: Final = re.compile(r"/(?![/\\])[\x21-\x7e]*")
"""A browser takes "//", "/\\" and a slash behind a tab for another server's name."""


async def home(request: Request) -> Response:
    """GET /: the board of the caller's first workspace."""
    try:
        actor = await auth.human(request)
    except DomainError:
        return RedirectResponse("/login", 303)

    async def unit(conn: Connection) -> str | None:
        workspaces = await people.workspaces_of(conn, actor.user_id)
        return workspaces[0].slug if workspaces else None

    slug = await services(request).database.read(unit)
    if slug is None:
        return shell.problem(
            "No workspace yet", "Nobody has added you to a workspace. Ask its owner to.", 200
        )
    return RedirectResponse(f"/{slug}/issues", 303)


async def login(request: Request) -> Response:
    """GET /login: how to get a link. The script goes on to `next` if a session is there after all.

    That happens when a link is followed from another site: the session cookie is `SameSite=Strict`
    and is not sent with the redirect, but it is with the page's own requests.
    """
    asked = request.query_params
    return shell.page(
        "login.html", page="login", next=own_path(asked.get("next", "/")),
        spent=asked.get("spent") == "1",
    )  # fmt: skip


def own_path(text: str) -> str:
    """Return the text if it can only lead to a page of this server, else "/"."""
    return text if _OWN.fullmatch(text) else "/"


routes: list[BaseRoute] = [Route("/", home), Route("/login", login)]
