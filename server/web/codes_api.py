"""Signing in by a code sent to one's e-mail address (spec 06 §2.3).

A code counts for whoever asked for it: the browser that got a nonce with the answer, or, for clients
without cookies, the address they call from. So a stranger can neither try somebody else's code nor
use up its guesses, nor make it useless by asking for another.
Without a mail server the code stands in the server's log: whoever reads that owns the machine.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import timedelta
from typing import Final

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.config import Config
from server.errors import Forbidden, Invalid, TooMany, Unavailable
from server.mail import MailError
from server.store.people import user_of
from server.store.queries import Connection, Record, load
from server.web import address, auth
from server.web.answers import answer
from server.web.context import services
from server.web.limits import peer_of
from server.web.members_api import EMAIL, LONGEST_EMAIL
from server.web.unit import fields
from shared.ids import hash_token
from shared.wire.team import User

log = structlog.get_logger(__name__)

SQL: Final = load("codes")

LIFE: Final = timedelta(minutes=10)
PAUSE: Final = timedelta(seconds=60)
"""Between two codes for one address."""

MOST_PER_HOUR: Final = 10
"""Codes one peer may have sent to an address."""

MOST_FROM_ALL: Final = 30
"""Codes all peers together may have sent to an address: nobody's mailbox is to be flooded."""

MOST_GUESSES: Final = 5
"""Wrong guesses a code bears from the asker, and again from others at the asker's address. With
MOST_FROM_ALL that is 300 guesses at a million codes in an hour, from three addresses at least."""

ASKER_COOKIE: Final = "bullpen_asker"
_NONCE: Final = re.compile(r"[A-Za-z0-9_-]{22}")

_FORM_TYPES: Final = frozenset(
    {"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"}
)
"""What a page of another site can send without being allowed to."""

_SUBJECT: Final = "Your sign-in code"
_TEXT: Final = """Your Bullpen sign-in code is {code}

It is valid for ten minutes. If you did not ask for it, ignore this mail.
"""


class CodeOut(TooMany):
    """The address has a code that is hardly a minute old."""


async def send_code(request: Request) -> Response:
    """POST /auth/send-code: a code to the address, or into the log where there is no mail."""
    sent = await fields(request)
    nonce = nonce_of(request)
    mailed = await send(request, sent.required_text("email"), nonce)
    said = answer({"message": "the code was sent" if mailed else "the code is in the server's log"})
    remember(request, said, nonce)
    return said


def nonce_of(request: Request) -> str:
    """What the asker is known by: the nonce their browser has, or a new one for `remember`."""
    kept = request.cookies.get(ASKER_COOKIE, "")
    return kept if _NONCE.fullmatch(kept) else secrets.token_urlsafe(16)


def remember(request: Request, response: Response, nonce: str) -> None:
    """Have the browser keep the nonce for as long as a code is valid."""
    response.set_cookie(
        ASKER_COOKIE,
        nonce,
        max_age=int(LIFE.total_seconds()),
        path=address.here("/"),
        secure=address.is_secure(request),
        httponly=True,
        samesite="strict",
    )


async def send(request: Request, mailbox: str, nonce: str) -> bool:
    """Make a code for an address and a nonce; whether it was mailed rather than logged.

    Raises Invalid, Forbidden, CodeOut, TooMany, Unavailable.
    """
    parts = services(request)
    email, peer = _email(mailbox), peer_of(request, parts.config)
    parts.limits.send_code.spend(peer)
    code = f"{secrets.randbelow(10**6):06}"

    async def unit(conn: Connection) -> str:
        await _check_newcomer(conn, parts.config, email)
        await conn.execute(SQL.lock_address, email)
        sent = await conn.fetchrow(SQL.sent, email, PAUSE, peer)
        assert sent is not None
        if sent["wait"] > 0:
            raise CodeOut("a code was sent a moment ago", after=sent["wait"])
        if sent["peers"] >= MOST_PER_HOUR or sent["hour"] >= MOST_FROM_ALL:
            raise TooMany("too many codes for this address; try again later", after=3600)
        kept = _hash(parts.config, email, code)
        code_id = await conn.fetchval(SQL.add_code, email, kept, LIFE, hash_token(nonce), peer)
        return str(code_id)

    code_id = await parts.database.write(unit)
    if not parts.mailer.is_set_up:
        log.warning("no mail server is set up; the sign-in code", email=email, sign_in_code=code)
        return False
    try:
        await parts.mailer.send(email, _SUBJECT, _TEXT.format(code=code))
    except MailError:
        failed = True
    else:
        failed = False
    if failed:  # it does not count against the next
        await parts.database.write(lambda conn: conn.execute(SQL.drop_code, code_id))
        raise Unavailable("the code could not be sent; try again later")
    return True


async def verify_code(request: Request) -> Response:
    """POST /auth/verify-code: a session for the right code; the first makes the account.

    What a form of another site may have sent gets no cookies: nobody is to sign a browser in as
    somebody else (JSON cannot be sent from elsewhere without asking first).
    """
    sent = await fields(request)
    user, session = await verify(request, sent.required_text("email"), sent.text("code"))
    response = answer({"token": session, "user": user})
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _FORM_TYPES:
        auth.set_cookies(request, response, session)
    return response


async def verify(request: Request, mailbox: str, code: str) -> tuple[User, str]:
    """The user of an address whose newest code this is, made if need be, and a session for them.

    Raises Invalid, Forbidden, TooMany.
    """
    parts = services(request)
    email, code = _email(mailbox), "".join(code.split())
    peer, asker = peer_of(request, parts.config), hash_token(nonce_of(request))
    parts.limits.verify_code.spend(peer)

    async def unit(conn: Connection) -> tuple[User, bool, str] | None:
        right = await conn.fetchval(
            SQL.try_code, email, _hash(parts.config, email, code), MOST_GUESSES, asker, peer
        )
        if not right:
            return None  # not raised: the guess has to be counted
        await _check_newcomer(conn, parts.config, email)
        row, made = await _account(conn, email)
        session = await auth.open_session(
            conn,
            parts.config,
            {"user_id": row["id"], "email": row["email"], "name": row["name"]},
            kind="code",
            user_agent=auth.user_agent(request),
        )
        return user_of(row), made, session

    found = await parts.database.write(unit)
    if found is None:
        raise Invalid("invalid or expired code")
    user, made, session = found
    if made:
        parts.metrics.count("signup")
    return user, session


async def _account(conn: Connection, email: str) -> tuple[Record, bool]:
    """The user of an address, and whether they are new."""
    row = await conn.fetchrow(SQL.account, email)
    if row is not None:
        return row, False
    row = await conn.fetchrow(SQL.add_account, email, email.partition("@")[0])
    made = row is not None
    if row is None:  # another request made it meanwhile
        row = await conn.fetchrow(SQL.account, email)
    assert row is not None
    return row, made


async def _check_newcomer(conn: Connection, config: Config, email: str) -> None:
    """Whether this address may have an account here. Raises Forbidden."""
    row = await conn.fetchrow(SQL.newcomer, email)
    assert row is not None
    if not row["known"] and not row["invited"] and not may_sign_up(config, email):
        raise Forbidden("this address has no account here, and sign-up is not open to it")


def may_sign_up(config: Config, email: str) -> bool:
    """Whether somebody nobody invited may make an account. A list closes the door to all others."""
    if email in config.allowed_emails or email.rpartition("@")[2] in config.allowed_email_domains:
        return True
    return config.allow_signup and not config.allowed_emails and not config.allowed_email_domains


def _email(mailbox: str) -> str:
    email = mailbox.strip().lower()
    if not EMAIL.fullmatch(email) or len(email) > LONGEST_EMAIL:
        raise Invalid("email must be an e-mail address")
    return email


def _hash(config: Config, email: str, code: str) -> str:
    """What is kept of a code: keyed, since six digits are quickly tried."""
    message = f"sign-in-code|{email}|{code}".encode()
    return hmac.new(config.jwt_secret.encode(), message, hashlib.sha256).hexdigest()


routes: list[BaseRoute] = [
    Route("/auth/send-code", send_code, methods=["POST"]),
    Route("/auth/verify-code", verify_code, methods=["POST"]),
]
