"""Users, workspaces, members and personal access tokens.

Functions of the asyncio island: they take a connection first, run inside the caller's
transaction, return values ready for the wire, and decide nothing. A row that is not there is
None (spec 02 §1.1, 06 §2.4 to §4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs

from server.store.agents import list_agents, list_runtimes
from server.store.queries import Connection, Record, load
from shared.times import stamp, try_stamp
from shared.wire.team import AccessToken, FullWorkspace, Member, User

__all__ = [
    "SQL",
    "TokenState",
    "create_token",
    "create_workspace",
    "find_token",
    "get_user",
    "get_workspace",
    "list_agents",
    "list_members",
    "list_runtimes",
    "list_tokens",
    "members_among",
    "renew_token",
    "revoke_token",
    "update_user",
    "update_workspace",
    "user_of",
    "workspaces_of",
]

SQL = load("people")


@attrs.frozen(kw_only=True)
class TokenState:
    """What the database knows of one personal token."""

    user_id: str
    expires_at: datetime | None
    valid: bool


async def get_user(conn: Connection, user_id: str) -> User | None:
    """Return the user, or None when the account is gone."""
    row = await conn.fetchrow(SQL.get_user, user_id)
    return None if row is None else user_of(row)


async def update_user(conn: Connection, user_id: str, changes: Mapping[str, Any]) -> User | None:
    """Write the given columns and no others; None when the account is gone."""
    row = await conn.fetchrow(SQL.update_user, user_id, dict(changes))
    return None if row is None else user_of(row)


async def workspaces_of(
    conn: Connection, user_id: str, *, only: str | None = None
) -> list[FullWorkspace]:
    """Return the user's workspaces, oldest first (at most 1000); `only` keeps one of them."""
    rows = await conn.fetch(SQL.workspaces_of, user_id, only)
    return [_workspace(row) for row in rows]


async def get_workspace(conn: Connection, workspace_id: str) -> FullWorkspace | None:
    """Return the workspace, whoever asks: the caller has checked membership."""
    row = await conn.fetchrow(SQL.get_workspace, workspace_id)
    return None if row is None else _workspace(row)


async def create_workspace(
    conn: Connection,
    *,
    owner_id: str,
    name: str,
    slug: str,
    description: str | None,
    context: str | None,
    issue_prefix: str,
) -> FullWorkspace | None:
    """Make a workspace owned by the user; None when the slug is taken."""
    row = await conn.fetchrow(
        SQL.create_workspace, name, slug, description, context, issue_prefix, owner_id
    )
    return None if row is None else _workspace(row)


async def update_workspace(
    conn: Connection, workspace_id: str, changes: Mapping[str, Any]
) -> FullWorkspace | None:
    """Write the given columns and no others; None when it is gone."""
    row = await conn.fetchrow(SQL.update_workspace, workspace_id, dict(changes))
    return None if row is None else _workspace(row)


async def list_members(conn: Connection, workspace_id: str) -> list[Member]:
    """Return the people of a workspace, oldest first (at most 1000)."""
    return [_member(row) for row in await conn.fetch(SQL.list_members, workspace_id)]


async def members_among(conn: Connection, workspace_id: str, user_ids: Sequence[str]) -> set[str]:
    """Return those of the users who belong to the workspace now."""
    rows = await conn.fetch(SQL.members_among, workspace_id, user_ids)
    return {row["user_id"] for row in rows}


async def create_token(
    conn: Connection,
    *,
    user_id: str,
    token_hash: str,
    token_prefix: str,
    name: str,
    expires_in_days: int | None,
) -> AccessToken:
    """Store a token by its hash; None days = it never ends."""
    row = await conn.fetchrow(
        SQL.create_token, user_id, token_hash, token_prefix, name, expires_in_days
    )
    assert row is not None
    return _token(row)


async def list_tokens(conn: Connection, user_id: str) -> list[AccessToken]:
    """Return the user's tokens that were not revoked, newest first (at most 1000)."""
    return [_token(row) for row in await conn.fetch(SQL.list_tokens, user_id)]


async def revoke_token(conn: Connection, user_id: str, token_id: str) -> str | None:
    """Revoke one of the user's tokens; return its hash, or None when there was nothing to do."""
    found: str | None = await conn.fetchval(SQL.revoke_token, token_id, user_id)
    return found


async def renew_token(conn: Connection, user_id: str, token_hash: str) -> datetime | None:
    """Extend a token in its last week by 90 days; None when it is not in its last week."""
    extended: datetime | None = await conn.fetchval(SQL.renew_token, token_hash, user_id)
    return extended


async def find_token(conn: Connection, token_hash: str) -> TokenState | None:
    """Return what a token is now."""
    row = await conn.fetchrow(SQL.find_token, token_hash)
    if row is None:
        return None
    return TokenState(user_id=row["user_id"], expires_at=row["expires_at"], valid=row["valid"])


def user_of(row: Record) -> User:
    """A row of app_user as callers see it."""
    return User(
        id=row["id"],
        name=row["name"],
        email=row["email"],
        avatar_url=row["avatar_url"],
        language=row["language"],
        timezone=row["timezone"],
        onboarded_at=try_stamp(row["onboarded_at"]),
        onboarding_questionnaire=row["onboarding_questionnaire"],
        profile_description=row["profile_description"],
        created_at=stamp(row["created_at"]),
        updated_at=stamp(row["updated_at"]),
    )


def _workspace(row: Record) -> FullWorkspace:
    return FullWorkspace(
        id=row["id"],
        name=row["name"],
        slug=row["slug"],
        description=row["description"],
        context=row["context"],
        settings=row["settings"],
        repos=row["repos"],
        issue_prefix=row["issue_prefix"],
        avatar_url=row["avatar_url"],
        created_at=stamp(row["created_at"]),
        updated_at=stamp(row["updated_at"]),
    )


def _member(row: Record) -> Member:
    return Member(
        id=row["id"],
        workspace_id=row["workspace_id"],
        user_id=row["user_id"],
        role=row["role"],
        created_at=stamp(row["created_at"]),
        name=row["name"],
        email=row["email"],
        avatar_url=row["avatar_url"],
    )


def _token(row: Record) -> AccessToken:
    return AccessToken(
        id=row["id"],
        name=row["name"],
        token_prefix=row["token_prefix"],
        expires_at=try_stamp(row["expires_at"]),
        last_used_at=try_stamp(row["last_used_at"]),
        created_at=stamp(row["created_at"]),
    )
