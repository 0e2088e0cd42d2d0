"""The first start: someone to be, somewhere to work, and a token for the command line.

Runs after the migrations, in one transaction; later starts find what is there. The token is made
anew at each start that asks for one and is known only to whoever asked.
"""

from __future__ import annotations

from typing import Final

import attrs

from server.store.queries import Connection, load
from shared import ids

SQL = load("setup")

WORKSPACE_NAME: Final = "Bullpen"
WORKSPACE_SLUG: Final = "bullpen"
ISSUE_PREFIX: Final = "BUL"

TOKEN_NAME: Final = "bullpen up"


@attrs.frozen(kw_only=True)
class Setup:
    """What the first start made, or a later one found."""

    token: str = attrs.field(repr=False)
    user_id: str
    workspace_id: str
    workspace_slug: str


async def set_up(conn: Connection, *, email: str, name: str) -> Setup:
    """Make or find the user and their workspace, and mint a personal token.

    Tokens of earlier starts are revoked: nobody has them any more but by accident. Browsers that were
    signed in with one stay so, as if with the new one.
    """
    user_id = await conn.fetchval(SQL.user, email, name)
    workspace = await conn.fetchrow(SQL.workspace_of, user_id)
    if workspace is None:
        workspace = await conn.fetchrow(
            SQL.make_workspace, WORKSPACE_NAME, WORKSPACE_SLUG, ISSUE_PREFIX
        )
        assert workspace is not None
        await conn.execute(SQL.make_owner, workspace["id"], user_id)
    token = ids.mint_token(ids.PERSONAL_TOKEN)
    retired = await conn.fetch(SQL.revoke_tokens, user_id, TOKEN_NAME)
    token_id = await conn.fetchval(
        SQL.make_token,
        user_id,
        ids.hash_token(token),
        token[: ids.TOKEN_PREFIX_LENGTH],
        TOKEN_NAME,
    )
    await conn.execute(SQL.hand_on_sessions, [row["id"] for row in retired], token_id)
    return Setup(
        token=token,
        user_id=str(user_id),
        workspace_id=str(workspace["id"]),
        workspace_slug=workspace["slug"],
    )
