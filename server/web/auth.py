"""Who is calling: from a token or a session cookie to an Actor (spec 01 §2, 06 §2 and §3).

Two entrances: people and agents on `/api` (`user`, `human`, `workspace`), daemons on `/api/daemon`
(`daemon`). Only a task's token makes an agent: what a client says about itself in headers
(`X-Agent-ID`, `X-Task-ID`) is not read anywhere. Each entrance looks its route up in the table of
rights and refuses who can never have the right; endpoints ask again with the facts of the thing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Literal

import attrs
import jwt
from starlette.requests import HTTPConnection
from starlette.responses import Response

from server import rights
from server.config import Config
from server.errors import Forbidden, Invalid, NotFound, Unauthenticated
from server.rights import NOTHING, Thing
from server.store import access
from server.store.access import Seat
from server.web.access import Identity, seconds_left
from server.web.context import Services, services
from shared import times
from shared.ids import (
    DAEMON_TOKEN,
    PERSONAL_TOKEN,
    TASK_TOKEN,
    InvalidId,
    canonical_id,
    hash_token,
    is_id,
)

TokenKind = Literal["mul_", "mat_", "mdt_", "jwt", "cookie"]

AUTH_COOKIE: Final = "multica_auth"
CSRF_COOKIE: Final = "multica_csrf"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CLOUD_TOKEN: Final = "mcn_"


class UserUnauthenticated(Unauthenticated):
    """As Unauthenticated, from the entrance for users, which calls its JSON plain text."""

    plain = True


class CsrfFailed(Forbidden):
    """A cookie came without the proof that our own page sent the request."""

    plain = True

    def __init__(self) -> None:
        super().__init__("CSRF validation failed")


@attrs.frozen(kw_only=True)
class Actor:
    """The caller. The bound ids are set for task and daemon tokens only.

    For `mdt_` there is no user: `user_id` and `email` are empty. For `mat_` it is the owner of the
    runtime, while `owner_id` owns the agent; `issue_id`, `parent_id` and `chat_id` say what its
    task is about.
    """

    user_id: str = ""
    email: str = ""
    token_kind: TokenKind
    token_hash: str = attrs.field(default="", repr=False)
    agent_id: str | None = None
    task_id: str | None = None
    workspace_id: str | None = None
    daemon_id: str | None = None
    owner_id: str | None = None
    issue_id: str | None = None
    parent_id: str | None = None
    chat_id: str | None = None

    @property
    def actor_type(self) -> str:
        return "member" if self.agent_id is None else "agent"

    @property
    def actor_id(self) -> str:
        return self.user_id if self.agent_id is None else self.agent_id


@attrs.frozen(kw_only=True)
class Membership:
    """The caller in a workspace. `role` is the user's, also when an agent acts (spec 06 §3.2).

    `right` is what the route asks for; `agents_may`, what the owner lets agents do besides.
    """

    actor: Actor
    workspace_id: str
    role: str
    agents_may: frozenset[str] = frozenset()
    right: str = ""

    @property
    def caller(self) -> rights.Caller:
        """The caller as the table of rights knows them."""
        return caller_of(self.actor, self.role, self.agents_may)

    def may(self, right: str, thing: Thing = NOTHING) -> bool:
        """Tell whether the caller has a right."""
        return rights.may(self.caller, right, thing)

    def check(self, thing: Thing = NOTHING, right: str = "") -> None:
        """Raise the table's refusal unless the caller has the route's right (or another)."""
        rights.check(self.caller, right or self.right, thing)


def caller_of(
    actor: Actor, role: str | None, agents_may: frozenset[str] = frozenset()
) -> rights.Caller:
    """An actor as the table of rights knows them. An agent stands behind its own owner."""
    return rights.Caller(
        user_id=actor.user_id if actor.owner_id is None else actor.owner_id,
        role=role,
        agent_id=actor.agent_id,
        task_id=actor.task_id,
        issue_id=actor.issue_id,
        daemon_id=actor.daemon_id,
        agents_may=agents_may,
    )


# --- entrances ------------------------------------------------------------------------------------


async def user(request: HTTPConnection, *, proof: str | None = None) -> Actor:
    """The person or agent calling. Raises UserUnauthenticated, CsrfFailed.

    `proof` is the CSRF proof of a plain form; scripts send theirs in a header.
    """
    token, cookie = _bearer(request), request.cookies.get(AUTH_COOKIE, "")
    if token:
        actor = await actor_of_token(services(request), token, machine_tokens=True)
        if actor.agent_id is not None:
            # As much as one could have; what it is in the workspace is asked there.
            _enter(caller_of(actor, "owner", rights.WIDER), right_of(request))
        return actor
    if not cookie:
        raise UserUnauthenticated("missing authorization")
    actor = await actor_of_session(services(request), cookie, "cookie")
    method = request.scope.get("method", "GET")
    if proof is None:
        proof = request.headers.get("x-csrf-token", "")
    if method not in _SAFE_METHODS and not csrf_valid(cookie, proof):
        raise CsrfFailed
    return actor


async def human(request: HTTPConnection, *, proof: str | None = None) -> Actor:
    """As `user`, but agents are refused: what makes or spends credentials is for people."""
    actor = await user(request, proof=proof)
    if actor.token_kind == TASK_TOKEN:
        raise Forbidden("this endpoint is only available to human actors")
    return actor


def right_of(request: HTTPConnection) -> str:
    """The right that the route of a request asks for; "" for a route without an entry."""
    known: dict[tuple[Any, str], str] = request.app.state.rights
    return known.get((request.scope.get("endpoint"), request.scope.get("method", "WS")), "")


def _enter(caller: rights.Caller, right: str) -> None:
    """Refuse who can never have the right, before anything is looked up."""
    if not right:
        raise Forbidden("no right is written down for this route")
    if not rights.can_ever(caller, right):
        raise rights.refusal(caller, right)


async def daemon(request: HTTPConnection) -> Actor:
    """The daemon calling; cookies and task tokens do not count here (spec 01 §2.4)."""
    header = request.headers.get("authorization")
    if not header:
        raise Unauthenticated("missing authorization header")
    if not header.startswith("Bearer "):
        raise Unauthenticated("invalid authorization format")
    token = header.removeprefix("Bearer ").strip()
    parts = services(request)
    try:
        if token.startswith(DAEMON_TOKEN):
            return await _daemon_token(parts, token)
        return await actor_of_token(parts, token, machine_tokens=False)
    except UserUnauthenticated as error:
        raise Unauthenticated(error.text) from None


async def workspace(request: HTTPConnection) -> Membership:
    """The caller in the workspace the request selects (spec 06 §3.1).

    Raises Invalid when it selects none, NotFound when the caller is no member of it.
    """
    actor = await user(request)
    if actor.workspace_id is not None:
        return await _member(request, actor, workspace_id=actor.workspace_id)
    query, headers = request.query_params, request.headers
    slug = query.get("workspace_slug") or headers.get("x-workspace-slug") or ""
    if slug:
        return await _member(request, actor, slug=slug)
    workspace_id = query.get("workspace_id") or headers.get("x-workspace-id") or ""
    if not workspace_id:
        raise Invalid("workspace_id or workspace_slug is required")
    return await _member(request, actor, workspace_id=_canonical(workspace_id))


async def workspace_by_id(request: HTTPConnection, workspace_id: str) -> Membership:
    """The caller in the workspace named in the path, by id only. Raises as `workspace`."""
    actor = await user(request)
    wanted = _canonical(workspace_id)
    if actor.workspace_id is not None and actor.workspace_id != wanted:
        raise Forbidden("task token is bound to a different workspace")
    return await _member(request, actor, workspace_id=wanted)


# --- tokens ---------------------------------------------------------------------------------------


async def actor_of_token(parts: Services, token: str, *, machine_tokens: bool) -> Actor:
    """The actor a personal token, a session or, where allowed, a task token stands for."""
    if token.startswith(PERSONAL_TOKEN):
        return await _stored(parts, token, "mul_", access.personal_token)
    if token.startswith(TASK_TOKEN) and machine_tokens:
        return await _stored(parts, token, "mat_", access.task_token)
    if token.startswith((TASK_TOKEN, DAEMON_TOKEN, _CLOUD_TOKEN)):
        raise UserUnauthenticated("invalid token")
    return await actor_of_session(parts, token, "jwt")


Find = Callable[..., Awaitable[Any | None]]


async def _stored(parts: Services, token: str, kind: TokenKind, find: Find) -> Actor:
    """The actor of a token that has a row."""
    token_hash = hash_token(token)

    async def look_up() -> Identity | None:
        row = await parts.database.read(partial(find, token_hash=token_hash))
        if row is None:
            return None
        if row.get("stale"):
            await parts.database.write(partial(access.personal_token_used, token_hash=token_hash))
        return Identity(
            user_id=str(row.get("user_id") or ""),
            email=row.get("email") or "",
            agent_id=_text(row.get("agent_id")),
            task_id=_text(row.get("task_id")),
            workspace_id=_text(row.get("workspace_id")),
            daemon_id=row.get("daemon_id"),
            owner_id=_text(row.get("owner_id")),
            issue_id=_text(row.get("issue_id")),
            parent_id=_text(row.get("parent_id")),
            chat_id=_text(row.get("chat_id")),
            expires_in=seconds_left(row["expires_at"]),
        )

    identity = await parts.access.identity(token_hash, look_up)
    if identity is None:
        raise UserUnauthenticated("invalid token")
    parts.metrics.users.note(identity.user_id)
    return _actor(identity, kind, token_hash)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


async def _daemon_token(parts: Services, token: str) -> Actor:
    try:
        return await _stored(parts, token, "mdt_", access.daemon_token)
    except UserUnauthenticated:
        raise Unauthenticated("invalid daemon token") from None


async def actor_of_session(parts: Services, token: str, kind: TokenKind = "cookie") -> Actor:
    """The actor a signed session stands for."""
    user_id = session_user(parts.config, token)

    async def look_up() -> Identity | None:
        row = await parts.database.read(lambda conn: access.user(conn, user_id))
        return None if row is None else Identity(user_id=str(row["user_id"]), email=row["email"])

    identity = await parts.access.identity(f"user:{user_id}", look_up)
    if identity is None:
        raise UserUnauthenticated("invalid token")
    parts.metrics.users.note(identity.user_id)
    return _actor(identity, kind, "")


def _actor(identity: Identity, kind: TokenKind, token_hash: str) -> Actor:
    return Actor(
        user_id=identity.user_id,
        email=identity.email,
        token_kind=kind,
        token_hash=token_hash,
        agent_id=identity.agent_id,
        task_id=identity.task_id,
        workspace_id=identity.workspace_id,
        daemon_id=identity.daemon_id,
        owner_id=identity.owner_id,
        issue_id=identity.issue_id,
        parent_id=identity.parent_id,
        chat_id=identity.chat_id,
    )


# --- sessions and CSRF ----------------------------------------------------------------------------


def mint_session(config: Config, user_id: str, email: str, name: str) -> str:
    """A signed session for a user, valid for the configured time (spec 01 §2.1)."""
    issued = int(times.now().timestamp())
    claims = {
        "sub": user_id,
        "email": email,
        "name": name,
        "iat": issued,
        "exp": issued + int(config.session_ttl),
    }
    return jwt.encode(claims, config.jwt_secret, algorithm="HS256")


def session_user(config: Config, token: str) -> str:
    """The user id a session is for. Raises UserUnauthenticated."""
    try:
        claims = jwt.decode(
            token,
            config.jwt_secret,
            algorithms=["HS256"],
            options={"require": ["exp"], "verify_iat": False, "verify_sub": False},
        )
    except jwt.PyJWTError:
        raise UserUnauthenticated("invalid token") from None
    subject = claims.get("sub")
    if not isinstance(subject, str) or not is_id(subject):
        raise UserUnauthenticated("invalid claims")
    return canonical_id(subject)


def mint_csrf(session: str) -> str:
    """The proof a page sends along with the cookie: a nonce and its keyed hash (spec 06 §2.2)."""
    nonce = secrets.token_bytes(16)
    return f"{nonce.hex()}.{_csrf_hash(session, nonce)}"


def csrf_valid(session: str, proof: str) -> bool:
    """Whether the proof was made for this session."""
    nonce_text, _, mac = proof.partition(".")
    try:
        nonce = bytes.fromhex(nonce_text)
    except ValueError:
        return False
    return len(nonce) == 16 and hmac.compare_digest(
        _csrf_hash(session, nonce).encode(), mac.encode()
    )


def _csrf_hash(session: str, nonce: bytes) -> str:
    return hmac.new(session.encode(), nonce, hashlib.sha256).hexdigest()


def set_cookies(response: Response, config: Config, session: str) -> None:
    """Sign a browser in: the session, unreadable to scripts, and the readable CSRF proof."""
    age = int(config.session_ttl)
    for name, value, http_only in (
        (AUTH_COOKIE, session, True),
        (CSRF_COOKIE, mint_csrf(session), False),
    ):
        response.set_cookie(
            name,
            value,
            max_age=age,
            path="/",
            secure=config.secure,
            httponly=http_only,
            samesite="strict",
        )


def clear_cookies(response: Response, config: Config) -> None:
    """Sign a browser out."""
    for name, http_only in ((AUTH_COOKIE, True), (CSRF_COOKIE, False)):
        response.delete_cookie(
            name, path="/", secure=config.secure, httponly=http_only, samesite="strict"
        )


# --- membership -----------------------------------------------------------------------------------


async def membership_of(
    parts: Services, user_id: str, *, workspace_id: str = "", slug: str = ""
) -> Seat | None:
    """A user's place in a workspace, through the cache; None for strangers."""
    ref = f"slug:{slug}" if slug else workspace_id
    unit = partial(access.membership, user_id=user_id, workspace_id=workspace_id, slug=slug)
    return await parts.access.membership(user_id, ref, lambda: parts.database.read(unit))


async def _member(
    request: HTTPConnection, actor: Actor, *, workspace_id: str = "", slug: str = ""
) -> Membership:
    parts = services(request)
    found = await membership_of(parts, actor.user_id, workspace_id=workspace_id, slug=slug)
    if found is None:
        raise NotFound("workspace not found")
    parts.metrics.workspaces.note(found.workspace_id)
    member = Membership(
        actor=actor,
        workspace_id=found.workspace_id,
        role=found.role,
        agents_may=found.agents_may,
        right=right_of(request),
    )
    _enter(member.caller, member.right)
    return member


def _canonical(workspace_id: str) -> str:
    try:
        return canonical_id(workspace_id)
    except InvalidId:
        raise Invalid("invalid workspace_id") from None


def _bearer(request: HTTPConnection) -> str:
    header = request.headers.get("authorization", "")
    return header.removeprefix("Bearer ").strip() if header.startswith("Bearer ") else ""
