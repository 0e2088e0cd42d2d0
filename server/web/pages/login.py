"""The way in: where "/" leads, signing in by a mailed code, and signing a command line in.

Everything here is plain forms: each step is a page, an error stands on the page it belongs to. The
script only counts down until another code may be asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import attrs
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from server.errors import DomainError, Forbidden
from server.store import people
from server.store.queries import Connection
from server.web import address, answers, auth, body, codes_api, session_api
from server.web.context import services
from server.web.fields import text_of
from server.web.pages import shell
from server.web.security import security_policy

_OWN: Final = re.compile(r"/(?![/\\])[\x21-\x7e]*")
"""A browser takes "//", "/\\" and a slash behind a tab for another server's name."""

_CALLBACK: Final = re.compile(
    r"http://(?:localhost|127\.0\.0\.1)(?::[0-9]{1,5})?/[A-Za-z0-9._~/-]*(?:\?[A-Za-z0-9._~&=%-]*)?"
)
"""Where a command line may listen: this very machine. Written out rather than parsed, because a
browser must not read another host out of it than we do."""

_STATE: Final = re.compile(r"[A-Za-z0-9._~-]{8,128}")

_DOOR: Final = "bullpen_door"
"""A cookie the sign-in page leaves behind. It never comes with a form of another site, which could
otherwise sign a browser in as somebody else."""


async def home(request: Request) -> Response:
    """GET /: the board of the caller's first workspace, or the way to one."""
    try:
        actor = await auth.human(request)
    except DomainError:
        return RedirectResponse("/login", 303)

    async def unit(conn: Connection) -> str | None:
        workspaces = await people.workspaces_of(conn, actor.user_id)
        return workspaces[0].slug if workspaces else None

    slug = await services(request).database.read(unit)
    if slug is None:
        return RedirectResponse("/workspaces/new", 303)
    return RedirectResponse(f"/{slug}/issues", 303)


async def login(request: Request) -> Response:
    """GET /login: how to get in, or, with `cli_callback`, whether a command line may (spec 06 §2.6).

    The script goes on to `next` if a session is there after all. That happens when a link is
    followed from another site: the session cookie is `SameSite=Strict` and is not sent with that
    request, but it is with the page's own.
    """
    asked = request.query_params
    wish = None
    if "cli_callback" in asked:
        wish = _Wish(callback=asked["cli_callback"], state=asked.get("cli_state", ""))
        if not wish.is_allowed:
            return _no_such_wish()
    after = own_path(asked.get("next", "/")) if wish is None else wish.path
    try:
        actor = await auth.human(request)
    except DomainError:
        return _address_step(request, _Step(after=after), spent=asked.get("spent") == "1")
    if wish is None:
        return RedirectResponse(after, 303)
    user = await services(request).database.read(partial(people.get_user, user_id=actor.user_id))
    assert user is not None  # signed in
    session = request.cookies.get(auth.AUTH_COOKIE, "")
    return shell.page(
        "login_cli.html",
        page="login",
        headers={"Content-Security-Policy": security_policy(wish.origin)},
        user=user,
        wish=wish,
        proof=auth.mint_csrf(session),
    )


async def ask_code(request: Request) -> Response:
    """POST /login/code: send a code to the address, then ask for it."""
    form = await form_of(request)
    step = _Step(after=own_path(form.get("next", "/")), email=form.get("email", "").strip())
    try:
        _check_door(request)
        await codes_api.send(request, step.email, nonce := codes_api.nonce_of(request))
    except codes_api.CodeOut as error:
        return _code_step(request, attrs.evolve(step, error=error, wait=error.after))
    except DomainError as error:
        return _address_step(request, attrs.evolve(step, error=error))
    asked = _code_step(request, attrs.evolve(step, wait=codes_api.PAUSE.total_seconds()))
    codes_api.remember(request, asked, nonce)
    return asked


async def try_code(request: Request) -> Response:
    """POST /login/verify: with the right code the session cookies, and on to `next`."""
    form = await form_of(request)
    step = _Step(after=own_path(form.get("next", "/")), email=form.get("email", "").strip())
    try:
        _check_door(request)
        _, session = await codes_api.verify(request, step.email, form.get("code", ""))
    except DomainError as error:
        return _code_step(request, attrs.evolve(step, error=error))
    response = RedirectResponse(step.after, 303)
    auth.set_cookies(request, response, session)
    return response


async def let_command_line_in(request: Request) -> Response:
    """POST /login/cli: hand the command line that listens on this machine a session of its own."""
    form = await form_of(request)
    wish = _Wish(callback=form.get("cli_callback", ""), state=form.get("cli_state", ""))
    if not wish.is_allowed:
        return _no_such_wish()
    try:
        actor = await auth.human(request, proof=form.get("proof", ""))
    except DomainError:  # signed out meanwhile, or as somebody else: the page shows how it is now
        return RedirectResponse(wish.path, 303)
    session = await session_api.session_for_command_line(request, actor)
    return RedirectResponse(wish.answer(session), 303, {"Cache-Control": "no-store"})


@attrs.frozen(kw_only=True)
class _Wish:
    """A command line that wants to be signed in: where it listens, and its own secret word."""

    callback: str
    state: str = attrs.field(repr=False)

    @property
    def is_allowed(self) -> bool:
        return bool(_CALLBACK.fullmatch(self.callback) and _STATE.fullmatch(self.state))

    @property
    def origin(self) -> str:
        parts = urlsplit(self.callback)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def path(self) -> str:
        """Where the page for this wish is."""
        return "/login?" + urlencode({"cli_callback": self.callback, "cli_state": self.state})

    def answer(self, session: str) -> str:
        sign = "&" if "?" in self.callback else "?"
        return self.callback + sign + urlencode({"token": session, "state": self.state})


@attrs.frozen(kw_only=True)
class _Step:
    """How far somebody is.

    `after` is where they go once signed in, `wait` the seconds until they may ask for another code.
    """

    after: str
    email: str = ""
    wait: float = 0.0
    error: DomainError | None = None

    @property
    def status(self) -> int:
        return 200 if self.error is None else answers.status_of(self.error)

    @property
    def problem(self) -> str:
        """The error as a sentence."""
        if self.error is None:
            return ""
        text = self.error.text
        return f"{text[:1].upper()}{text[1:]}."


def _address_step(request: Request, step: _Step, *, spent: bool = False) -> Response:
    return _show(request, "address", step, spent=spent)


def _code_step(request: Request, step: _Step) -> Response:
    return _show(
        request, "code", step, wait=math.ceil(step.wait), again=f"/login?next={quote(step.after)}"
    )


def _show(
    request: Request, stage: str, step: _Step, *, spent: bool = False, **more: Any
) -> Response:
    parts = services(request)
    response = shell.page(
        "login.html", status=step.status, page="login", stage=stage, at=step, spent=spent,
        mailed=parts.mailer.is_set_up, **more,
    )  # fmt: skip
    response.set_cookie(
        _DOOR,
        "1",
        path=address.here("/login"),
        secure=address.is_secure(request),
        httponly=True,
        samesite="strict",
    )
    return response


def _no_such_wish() -> Response:
    return shell.problem(
        "No command line there",
        "This link cannot sign a command line in: it must lead to this very machine. Run bullpen"
        " login again, and open the link it prints.",
        400,
    )


def _check_door(request: Request) -> None:
    if _DOOR not in request.cookies:
        raise Forbidden("the form did not come from this page, or cookies are off; try again")


async def form_of(request: Request) -> Mapping[str, str]:
    """The fields of a plain form, the first of each name."""
    raw = (await body.read(request)).decode("utf-8", "replace")
    try:
        sent = parse_qs(raw, keep_blank_values=True, max_num_fields=20)
    except ValueError:
        return {}
    return {name: text_of(values[0]) for name, values in sent.items()}


def own_path(text: str) -> str:
    """Return the text if it can only lead to a page of this server, else "/"."""
    return text if _OWN.fullmatch(text) else "/"


routes: list[BaseRoute] = [
    Route("/", home),
    Route("/login", login),
    Route("/login/code", ask_code, methods=["POST"]),
    Route("/login/verify", try_code, methods=["POST"]),
    Route("/login/cli", let_command_line_in, methods=["POST"]),
]
