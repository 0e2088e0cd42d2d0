"""The pages a command line sends people to: a first workspace, an invitation (spec 06 §2.6).

Plain forms, like signing in: an error stands on the page it belongs to. Who is not signed in does
that first and comes back.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from server.errors import DomainError, Forbidden, Invalid
from server.store.queries import Record
from server.web import answers, auth, members_api, team_api
from server.web.context import services
from server.web.fields import Fields
from server.web.pages import shell
from server.web.pages.login import form_of
from server.web.unit import path_id

_APART: Final = re.compile(r"[^a-z0-9]+")
_LONGEST_SLUG: Final = 40


async def onboarding(_: Request) -> Response:
    """GET /onboarding: there is nothing to go through; the board, or a first workspace."""
    return RedirectResponse("/", 303)


async def new_workspace(request: Request) -> Response:
    """GET and POST /workspaces/new: a form, what comes of it, and the caller's invitations."""
    form = await form_of(request) if request.method == "POST" else {}
    try:
        actor = await auth.human(request, proof=form.get("proof") if form else None)
    except DomainError:
        return _sign_in_first(request)
    problem: DomainError | None = None
    name = form.get("name", "").strip()
    slug = form.get("slug", "").strip() or _slug(name)
    if form:
        try:
            if name and not slug:
                raise Invalid(
                    "no address can be made of this name; give the name in addresses, too"
                )
            body = Fields({"name": name, "slug": slug})
            made = await team_api.make_workspace(request, actor.user_id, body)
        except DomainError as error:
            problem = error
        else:
            return RedirectResponse(f"/{made.slug}/issues", 303)
    slug = form.get("slug", "").strip()  # not what was made of a name that is about to change
    return _page(
        request, "workspace_new.html", problem, name=name, slug=slug, email=actor.email,
        invitations=await _invitations(request, actor),
    )  # fmt: skip


async def invitation(request: Request) -> Response:
    """GET and POST /invite/{id}: what one is invited to; joining it, or not."""
    invitation_id = path_id(request, "id", "invitation id")
    form = await form_of(request) if request.method == "POST" else {}
    try:
        actor = await auth.human(request, proof=form.get("proof") if form else None)
    except DomainError:
        return _sign_in_first(request)
    rows = await _invitations(request, actor, invitation_id)
    problem: DomainError | None = None
    if form and rows:
        try:
            if form.get("answer") == "decline":
                await members_api.refuse(request, actor)
                return RedirectResponse("/", 303)
            await members_api.join(request, actor)
        except DomainError as error:
            problem = error
        else:
            return RedirectResponse(f"/{rows[0]['workspace_slug']}/issues", 303)
    if not rows or rows[0]["status"] != "pending":
        return shell.problem(
            "No such invitation",
            f"It was taken back, has been answered, or is for somebody else than {actor.email}.",
            404,
        )
    return _page(request, "invite.html", problem, invitation=rows[0])


def _slug(name: str) -> str:
    """What a name is in addresses; "" when nothing of it can be."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return _APART.sub("-", plain).strip("-")[:_LONGEST_SLUG].rstrip("-")


async def _invitations(
    request: Request, actor: auth.Actor, only: str | None = None
) -> list[Record]:
    """The caller's pending invitations, or the one named, whatever became of it."""
    return await services(request).database.read(
        lambda conn: conn.fetch(
            members_api.SQL.list_invitations, None, actor.user_id, actor.email, only
        )
    )


def _page(request: Request, template: str, problem: DomainError | None, **values: Any) -> Response:
    session = request.cookies.get(auth.AUTH_COOKIE, "")
    text = "" if problem is None else f"{problem.text[:1].upper()}{problem.text[1:]}."
    status = 200 if problem is None else answers.status_of(problem)
    proof = auth.mint_csrf(session)
    return shell.page(template, status=status, page="login", problem=text, proof=proof, **values)


def _sign_in_first(request: Request) -> Response:
    if request.method == "POST":
        raise Forbidden("the form did not come from this page, or you have signed out; try again")
    return RedirectResponse(f"/login?next={quote(request.url.path)}", 303)


routes: list[BaseRoute] = [
    Route("/onboarding", onboarding),
    Route("/workspaces/new", new_workspace, methods=["GET", "POST"]),
    Route("/invite/{id}", invitation, methods=["GET", "POST"]),
]
