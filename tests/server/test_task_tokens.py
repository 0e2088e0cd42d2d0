"""What an agent's token can never do, on any route: whoever calls with it acts for its task alone.

The agent's owner also owns another workspace and has chats, an inbox, tokens and pins: their texts
carry a mark, and no answer to the agent may show it. Every route is called, with ids of here and of
there, with the bodies that people's calls have in test_rights; writes are looked at and taken back.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from server.store.queries import Connection
from server.web import routes
from tests.server.test_every_route import flat
from tests.server.test_rights import RIGHTS, key
from tests.support.api import Api, Caller, open_api
from tests.support.furnished import Things, body_of, furnish, path_of
from tests.support.rehearsal import Rehearsal, rehearse
from tests.support.rows import World, insert, make_agent, make_runtime

pytestmark = pytest.mark.postgres

CREDENTIAL = re.compile(
    r"\b(?:mul|mat|mdt)_[0-9a-zA-Z]{20,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.|/auth/link/"
)

PEOPLES = (
    *("app_user", "member", "workspace_invitation", "personal_access_token", "daemon_token"),
    *("sign_in_link", "verification_code", "task_token", "workspace", "runtime_profile"),
    *("chat_session", "chat_message", "inbox_item", "pinned_item", "notification_preference"),
)
"""Tables that only people change. The counter of issues, in `workspace`, is left out."""

SECRETS = ("HEREMARK chat", "HEREMARK said", "HEREMARK news", "HEREMARK token")

GOES_ALONG = {"DELETE /api/issues/{id}": {"inbox_item", "task_token"}}
"""What is about an issue goes with it, and whoever may write issues may delete them."""

OWN = {"POST /api/issues/{}/squad-evaluated": {"outcome": "action", "reason": "x"}}
"""Bodies of what only agents call."""


@attrs.frozen
class Cast:
    api: Api
    agent: Caller
    here: Things
    there: Things


@asynccontextmanager
async def open_cast() -> AsyncIterator[Cast]:
    async with open_api() as api:
        owner = api.world.user_id

        async def unit(conn: Connection) -> tuple[Things, Things]:
            here = await furnish(conn, api.world, owner, "HEREMARK")
            other = await insert(
                conn, "workspace", name="THEREMARK", slug="there", issue_prefix="THR"
            )
            await insert(conn, "member", workspace_id=other, user_id=owner, role="owner")
            runtime = await make_runtime(conn, other, owner)
            agent = await make_agent(conn, other, runtime, owner_id=owner)
            there = World(
                user_id=owner,
                workspace_id=other,
                slug="there",
                runtime_id=runtime,
                agent_id=agent,
                token="",
            )
            return here, await furnish(conn, there, owner, "THEREMARK")

        here, there = await api.run(unit)
        agent = await api.agent(issue_id=here["issues"])
        yield Cast(api, agent, here, there)


def bodies() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {key(route): [body] for route, body in OWN.items()}
    for route, _, body in RIGHTS:
        found.setdefault(key(route), []).append(body)
    return found


def requests(things: Things) -> Iterator[tuple[str, str, str, Any]]:
    """Every route with every body known for it: (route, method, path, body)."""
    known = bodies()
    for method, template in sorted(set(flat(list(routes._table())))):
        route = f"{method} {template}"
        for body in known.get(key(route), [...]):
            sent = ... if body in (None, ...) else body_of(body, things)
            yield route, method, path_of(template, things), sent


def look_at_peoples(workspace_id: str) -> Any:
    """A look that sees the state of what is people's, and of everything in another workspace."""

    async def look(conn: Connection) -> list[Any]:
        seen: list[Any] = []
        for table in PEOPLES:
            row = "to_jsonb(t) - 'issue_counter'"
            statement = (
                f"select md5(string_agg(({row})::text, '' order by ({row})::text)) from {table} t"
            )
            seen.append((table, await conn.fetchval(statement)))
        for row in await conn.fetch(
            "select table_name from information_schema.columns where column_name = 'workspace_id'"
            " and table_schema = 'public' order by 1"
        ):
            table = row["table_name"]
            statement = (
                f"select md5(string_agg(t::text, '' order by t::text)) from {table} t"
                " where workspace_id = $1"
            )
            seen.append((f"there: {table}", await conn.fetchval(statement, workspace_id)))
        return seen

    return look


async def open_rehearsal(cast: Cast) -> tuple[Rehearsal, list[Any]]:
    look = look_at_peoples(cast.there["workspaces"])
    before = await cast.api.run(look)
    return rehearse(cast.api, look), before


def touched(rehearsal: Rehearsal, before: list[Any]) -> set[str]:
    """The tables that what was looked at differs in."""
    changed = {
        name
        for seen in rehearsal.seen
        for (name, was), (_, now) in zip(before, seen, strict=True)
        if was != now
    }
    rehearsal.seen.clear()
    return changed


PUBLIC = ("/auth/send-code", "/auth/verify-code", "/api/webhooks/")
"""Anybody may call these, with whatever they hold."""


async def test_on_no_route_does_an_agent_touch_what_is_peoples() -> None:
    async with open_cast() as cast:
        rehearsal, before = await open_rehearsal(cast)
        wrong: list[str] = []
        fine = 0
        for route, method, path, body in requests(cast.here):
            if any(public in route for public in PUBLIC):
                continue
            answer = await cast.agent.call(method, path, body)
            fine += answer.status_code < 300
            changed = touched(rehearsal, before) - GOES_ALONG.get(route, set())
            if changed:
                wrong.append(f"{route}: {answer.status_code} changes {sorted(changed)}")
            if CREDENTIAL.search(answer.text):
                wrong.append(f"{route}: shows a credential: {answer.text[:200]}")
            shown = [secret for secret in SECRETS if secret in answer.text]
            wrong += [f"{route}: shows {secret!r}" for secret in shown]
            if path.startswith("/api/daemon/") and answer.status_code != 401:
                wrong.append(f"{route}: {answer.status_code} for an agent")
        assert not wrong, "\n".join(wrong)
        assert fine > 60, "the token itself did not work"


@pytest.mark.parametrize("named", ["in the path", "by header", "by query"])
async def test_no_route_leads_to_another_workspace(named: str) -> None:
    async with open_cast() as cast:
        rehearsal, before = await open_rehearsal(cast)
        there = cast.there["workspaces"]
        options: dict[str, Any] = {}
        if named == "by header":
            options["headers"] = {"x-workspace-id": there, "x-workspace-slug": "there"}
        elif named == "by query":
            options["params"] = {"workspace_id": there, "workspace_slug": "there"}
        wrong: list[str] = []
        for route, method, path, body in requests(cast.there):
            if any(public in route for public in PUBLIC):
                continue
            answer = await cast.agent.call(method, path, body, **options)
            shown = answer.text.replace(path, "")
            if "THEREMARK" in shown:
                wrong.append(f"{route}: {answer.status_code} shows {shown[:200]}")
            if changed := {name for name in touched(rehearsal, before) if "there" in name}:
                wrong.append(f"{route}: {answer.status_code} changes {sorted(changed)}")
        assert not wrong, "\n".join(wrong)


async def test_credentials_are_refused_by_name() -> None:
    async with open_cast() as cast:
        here, agent = cast.here, cast.agent
        for method, path in (
            ("GET", "/api/tokens"),
            ("POST", "/api/tokens"),
            ("DELETE", f"/api/tokens/{here['tokens']}"),
            ("POST", "/api/cli-token"),
            ("POST", "/auth/link"),
            ("POST", f"/api/workspaces/{here['workspaces']}/daemon-tokens"),
            ("POST", f"/api/workspaces/{here['workspaces']}/members"),
            ("PATCH", f"/api/workspaces/{here['workspaces']}/members/{here['members']}"),
            ("DELETE", f"/api/workspaces/{here['workspaces']}/members/{here['members']}"),
            ("POST", f"/api/workspaces/{here['workspaces']}/leave"),
            ("GET", "/api/inbox"),
            ("GET", "/api/chat/sessions"),
            ("GET", f"/api/chat/sessions/{here['sessions']}/messages"),
            ("GET", "/api/invitations"),
        ):
            answer = await agent.call(method, path, {})
            assert answer.status_code == 403, f"{method} {path}: {answer.status_code}"
        assert await agent.refused(400, "POST", "/api/tokens/current/renew")  # the protocol's
