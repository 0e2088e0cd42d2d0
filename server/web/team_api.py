"""Endpoints for the caller's account, tokens and workspaces (spec 06 §2.4, §2.5, §4; 01 §2.6).

An agent inside a task carries its owner's user id, so everything personal and every setting is
refused to it here, except reading who it works for and the workspace it works in (02 §4.12
[trap]).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence, TokensRevoked
from server.errors import Conflict, Invalid, NotFound, Unauthenticated
from server.rights import WIDER
from server.store import credentials as credentials_store
from server.store import people
from server.store.queries import Connection
from server.web import agents_api, auth, repository, runtimes_api
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.context import services
from server.web.fields import Fields
from server.web.unit import event, fields, path_id, read, write
from shared.ids import PERSONAL_TOKEN, TOKEN_PREFIX_LENGTH, hash_token, mint_token
from shared.times import stamp, try_stamp
from shared.wire.team import AccessToken, FullWorkspace, Renewal, User

LANGUAGES: Final = ("en", "zh-Hans", "ko", "ja")
LONGEST_PROFILE: Final = 2000
LONGEST_NAME: Final = 255
LONGEST_PREFIX: Final = 16
LONGEST_LIFE: Final = 36_500
"""Days until a token ends; a century, so that the date can always be written."""

_SLUG: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_SCP: Final = re.compile(r"(?:[^\s@/:]+@)?[^\s/:]+:[^\s]+")
RESERVED_SLUGS: Final = frozenset(
    [
        "login",
        "logout",
        "signin",
        "signout",
        "signup",
        "auth",
        "oauth",
        "callback",
        "invite",
        "invitations",
        "verify",
        "reset",
        "password",
        "onboarding",
        "api",
        "admin",
        "multica",
        "www",
        "new",
        "home",
        "homepage",
        "dashboard",
        "help",
        "about",
        "pricing",
        "changelog",
        "docs",
        "support",
        "status",
        "legal",
        "privacy",
        "terms",
        "security",
        "contact",
        "contact-sales",
        "blog",
        "careers",
        "press",
        "download",
        "usecases",
        "profile",
        "account",
        "billing",
        "notifications",
        "search",
        "members",
        "issues",
        "projects",
        "autopilots",
        "agents",
        "squads",
        "inbox",
        "my-issues",
        "usage",
        "runtimes",
        "skills",
        "settings",
        "workspaces",
        "teams",
        "v1",
        "v2",
        "graphql",
        "webhooks",
        "sdk",
        "tokens",
        "cli",
        "health",
        "readyz",
        "healthz",
        "ws",
        "metrics",
        "ping",
        "postmaster",
        "abuse",
        "noreply",
        "webmaster",
        "hostmaster",
        "mail",
        "ftp",
        "static",
        "cdn",
        "assets",
        "public",
        "files",
        "uploads",
    ]
)
"""Path segments the pages and the API use or may use one day (06 §4.1)."""


# --- the caller -----------------------------------------------------------------------------------


async def get_me(request: Request) -> Response:
    """GET /api/me: the account behind the credential."""
    actor = await auth.user(request)
    return answer(_known(await read(request, partial(people.get_user, user_id=actor.user_id))))


async def update_me(request: Request) -> Response:
    """PATCH /api/me: name, avatar_url, language, timezone, profile_description."""
    actor = await auth.human(request)
    changes = _profile(await fields(request))

    async def unit(conn: Connection) -> tuple[User, Sequence[Consequence]]:
        return _known(await people.update_user(conn, actor.user_id, changes)), ()

    return answer(await write(request, unit))


def _known(user: User | None) -> User:
    if user is None:
        raise NotFound("user not found")
    return user


def _profile(sent: Fields) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if sent.given("name"):
        changes["name"] = _name(sent)
    if sent.given("avatar_url"):
        changes["avatar_url"] = sent.text("avatar_url")
    if sent.given("language"):
        changes["language"] = sent.one_of("language", LANGUAGES, "")
    if sent.given("profile_description"):
        description = sent.text("profile_description")
        if len(description) > LONGEST_PROFILE:
            raise Invalid(f"profile_description must be at most {LONGEST_PROFILE} characters")
        changes["profile_description"] = description
    if sent.given("timezone"):
        changes["timezone"] = _zone(sent.text("timezone"))
    return changes


def _zone(name: str) -> str | None:
    if not name:
        return None
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise Invalid("invalid timezone: expected an IANA name") from None
    return name


def _name(sent: Fields) -> str:
    name = sent.required_text("name")
    if len(name) > LONGEST_NAME:
        raise Invalid(f"name must be at most {LONGEST_NAME} characters")
    return name


# --- tokens ---------------------------------------------------------------------------------------


async def create_token(request: Request) -> Response:
    """POST /api/tokens: mint a personal token; its text is in this answer and nowhere else."""
    actor = await auth.human(request)
    sent = await fields(request)
    name = _name(sent)
    days = sent.whole("expires_in_days", low=1, high=LONGEST_LIFE)
    token = mint_token(PERSONAL_TOKEN)

    async def unit(conn: Connection) -> tuple[AccessToken, Sequence[Consequence]]:
        made = await people.create_token(
            conn,
            user_id=actor.user_id,
            token_hash=hash_token(token),
            token_prefix=token[:TOKEN_PREFIX_LENGTH],
            name=name,
            expires_in_days=days,
        )
        return attrs.evolve(made, token=token), ()

    return answer(await write(request, unit), 201)


async def list_tokens(request: Request) -> Response:
    """GET /api/tokens: the caller's tokens that were not revoked."""
    actor = await auth.human(request)
    return answer(await read(request, partial(people.list_tokens, user_id=actor.user_id)))


async def delete_token(request: Request) -> Response:
    """DELETE /api/tokens/{id}: revoke one; it is dead at once, everywhere."""
    actor = await auth.human(request)
    token_id = path_id(request, "id", "token id")

    async def unit(conn: Connection) -> tuple[None, Sequence[Consequence]]:
        revoked = await people.revoke_token(conn, actor.user_id, token_id)
        return None, (TokensRevoked(revoked),) if revoked else ()

    await write(request, unit)
    return nothing()


async def renew_token(request: Request) -> Response:
    """POST /api/tokens/current/renew: extend the calling token in its last week (01 §2.6)."""
    actor = await auth.user(request)
    if actor.token_kind != PERSONAL_TOKEN:
        raise Invalid("only personal access tokens can be renewed")

    async def unit(conn: Connection) -> tuple[Renewal, Sequence[Consequence]]:
        extended = await people.renew_token(conn, actor.user_id, actor.token_hash)
        if extended is not None:
            return Renewal(expires_at=stamp(extended), renewed=True), ()
        state = await people.find_token(conn, actor.token_hash)
        if state is None or not state.valid:
            raise Unauthenticated("token is no longer valid")
        if state.user_id != actor.user_id:
            raise Unauthenticated("token does not belong to caller")
        return Renewal(expires_at=try_stamp(state.expires_at) or ""), ()

    return answer(await write(request, unit))


# --- workspaces -----------------------------------------------------------------------------------


async def list_workspaces(request: Request) -> Response:
    """GET /api/workspaces: the caller's, oldest first; an agent sees the one it works in."""
    actor = await auth.user(request)
    unit = partial(people.workspaces_of, user_id=actor.user_id, only=actor.workspace_id)
    return answer(await read(request, unit))


async def create_workspace(request: Request) -> Response:
    """POST /api/workspaces: a new one, owned by the caller."""
    actor = await auth.human(request)
    return answer(await make_workspace(request, actor.user_id, await fields(request)), 201)


async def make_workspace(request: Request, user_id: str, sent: Fields) -> FullWorkspace:
    """Make a workspace of a user's. Raises Invalid, Conflict."""
    name = _name(sent)
    slug = _slug(sent)
    letters = "".join(c for c in name if c.isascii() and c.isalpha())
    prefix = _prefix(sent) or letters[:3].upper() or "WS"
    description, context = sent.optional_text("description"), sent.optional_text("context")

    async def unit(conn: Connection) -> tuple[FullWorkspace, Sequence[Consequence]]:
        made = await people.create_workspace(
            conn,
            owner_id=user_id,
            name=name,
            slug=slug,
            description=description,
            context=context,
            issue_prefix=prefix,
        )
        if made is None:
            raise Conflict("a workspace with this slug already exists")
        return made, ()

    made = await write(request, unit)
    services(request).metrics.count("workspace_created")
    return made


async def get_workspace(request: Request) -> Response:
    """GET /api/workspaces/{id}."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    unit = partial(people.get_workspace, workspace_id=caller.workspace_id)
    return answer(_existing(await read(request, unit)))


async def update_workspace(request: Request) -> Response:
    """PUT or PATCH /api/workspaces/{id}: what was sent; the slug never changes."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    sent = await fields(request)
    changes, credentials = _settings(sent), _credentials(sent)
    if credentials:
        caller.check(right="repository password.replace")

    async def unit(conn: Connection) -> tuple[FullWorkspace, Sequence[Consequence]]:
        written = dict(changes)
        if "settings" in written:
            before = _existing(await people.get_workspace(conn, caller.workspace_id))
            written["settings"] = _kept(caller, before.settings, written["settings"])
        changed = _existing(await people.update_workspace(conn, caller.workspace_id, written))
        if credentials is not None:
            await credentials_store.keep(conn, caller.workspace_id, credentials)
        return changed, (event(caller, "workspace:updated", workspace=changed),)

    return answer(await write(request, unit))


async def list_members(request: Request) -> Response:
    """GET /api/workspaces/{id}/members."""
    caller = await auth.workspace_by_id(request, request.path_params["id"])
    unit = partial(people.list_members, workspace_id=caller.workspace_id)
    return answer(await read(request, unit))


def _existing(workspace: FullWorkspace | None) -> FullWorkspace:
    if workspace is None:
        raise NotFound("workspace not found")
    return workspace


def _slug(sent: Fields) -> str:
    slug = sent.required_text("slug").lower()
    if len(slug) > LONGEST_NAME or not _SLUG.fullmatch(slug):
        raise Invalid("slug may hold lower-case letters, digits and single dashes between them")
    if slug in RESERVED_SLUGS:
        raise Invalid("this slug is reserved")
    return slug


def _prefix(sent: Fields) -> str:
    prefix = sent.text("issue_prefix").strip().upper()
    if len(prefix) > LONGEST_PREFIX:
        raise Invalid(f"issue_prefix must be at most {LONGEST_PREFIX} characters")
    return prefix


def _settings(sent: Fields) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if sent.given("name"):
        changes["name"] = _name(sent)
    for key in ("description", "context", "avatar_url"):
        if sent.given(key):
            changes[key] = sent.text(key)
    if sent.given("settings"):
        changes["settings"] = sent.object("settings")
    if sent.given("repos"):
        changes["repos"] = _repos(sent.value("repos"))
    if prefix := _prefix(sent):
        changes["issue_prefix"] = prefix
    return changes


def _kept(caller: Membership, before: dict[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
    """The settings that were sent; what agents may do besides stays unless an owner changes it."""
    if "agents_may" not in sent:
        return sent | {key: before[key] for key in ("agents_may",) if key in before}
    wanted = sent["agents_may"]
    if not isinstance(wanted, list) or any(name not in WIDER for name in map(str, wanted)):
        raise Invalid(f"agents_may must be an array of: {', '.join(sorted(WIDER))}")
    if wanted != before.get("agents_may", []):
        caller.check(right="workspace.widen agents")
    return sent


def _repos(value: Any) -> list[dict[str, str]]:
    """Return the repositories with known keys only, the first of each URL."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Invalid("repos must be an array of objects")
    found: dict[str, dict[str, str]] = {}
    for item in value:
        repo = Fields(item)
        url, _ = repository.split(repo.required_text("url"))
        if not _is_repo_url(url):
            raise Invalid(f"invalid repository url: {url}")
        entry = {"url": url}
        if ref := repository.ref_of(repo.text("ref")):
            entry["ref"] = ref
        if description := repo.text("description"):
            entry["description"] = description
        found.setdefault(url, entry)
    return list(found.values())


def _credentials(sent: Fields) -> dict[str, str] | None:
    """What stood before the hosts of the repositories sent; None if none were sent."""
    if not sent.given("repos"):
        return None
    found = (repository.split(Fields(item).required_text("url")) for item in sent.value("repos"))
    return {url: userinfo for url, userinfo in found if userinfo}


def _is_repo_url(url: str) -> bool:
    if "://" not in url:
        return _SCP.fullmatch(url) is not None
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https", "ssh", "git"} and bool(parts.hostname)
    except ValueError:
        return False


routes: list[BaseRoute] = [
    Route("/api/me", get_me, methods=["GET"]),
    Route("/api/me", update_me, methods=["PATCH"]),
    Route("/api/tokens", list_tokens, methods=["GET"]),
    Route("/api/tokens", create_token, methods=["POST"]),
    Route("/api/tokens/current/renew", renew_token, methods=["POST"]),
    Route("/api/tokens/{id}", delete_token, methods=["DELETE"]),
    Route("/api/workspaces", list_workspaces, methods=["GET"]),
    Route("/api/workspaces", create_workspace, methods=["POST"]),
    Route("/api/workspaces/{id}", get_workspace, methods=["GET"]),
    Route("/api/workspaces/{id}", update_workspace, methods=["PUT", "PATCH"]),
    Route("/api/workspaces/{id}/members", list_members, methods=["GET"]),
    *agents_api.routes,
    *runtimes_api.routes,
]
