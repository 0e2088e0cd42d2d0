"""Who may change what, by role: every mutating route of the user API (spec 06 §3.4).

The table is complete: a route that is not in it fails the first test. Everything in the workspace
belongs to an ordinary member, the maker (m); the others are its owner (o), an admin (a), another
member (p, for peer) and a stranger (s), who owns another workspace and has been invited.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from server.store.queries import Connection
from server.web import routes
from tests.server.test_every_route import flat
from tests.support.api import Api, Caller, open_api
from tests.support.furnished import Things, body_of, furnish, path_of
from tests.support.rehearsal import rehearse
from tests.support.rows import insert, make_token, make_user

pytestmark = pytest.mark.postgres

MEMBERS = "oapm"
ADMINS = "oa"
MANAGERS = "oam"
MAKER = "m"
ALL = "oapms"

TITLE = {"title": "new"}
NAME = {"name": "new"}
AGENT = {"name": "new", "runtime_id": "{runtimes}"}
EMOJI = {"emoji": "+"}
SQUAD_MEMBER = {"member_type": "member", "member_id": "{maker}", "role": "x"}
PROFILE = {"display_name": "new", "protocol_family": "claude", "command_name": "x"}

RIGHTS: tuple[tuple[str, str, Any], ...] = (
    ("POST /api/agents", MAKER, AGENT),
    ("PUT /api/agents/{id}", MANAGERS, {"description": "x"}),
    ("POST /api/agents/{id}/archive", MANAGERS, None),
    ("POST /api/agents/{archived_agent}/restore", MANAGERS, None),
    ("POST /api/agents/{id}/cancel-tasks", MANAGERS, None),
    ("PUT /api/agents/{id}", MAKER, {"custom_args": ["--x"]}),
    ("PUT /api/agents/{id}", MAKER, {"mcp_config": {"mcpServers": {}}}),
    ("PUT /api/agents/{id}", MAKER, {"runtime_config": {"x": 1}}),
    ("PUT /api/agents/{id}/env", MAKER, {"custom_env": {"A": "b"}}),
    ("PUT /api/agents/{id}/skills", MANAGERS, {"skill_ids": ["{skills}"]}),
    ("POST /api/agents/{id}/skills/add", MANAGERS, {"skill_ids": ["{skills}"]}),
    ("DELETE /api/attachments/{id}", MANAGERS, None),
    (
        "POST /api/autopilots",
        MEMBERS,
        TITLE | {"assignee_id": "{agents}", "execution_mode": "run_only"},
    ),
    ("PATCH /api/autopilots/{id}", MEMBERS, TITLE),
    ("DELETE /api/autopilots/{id}", MEMBERS, None),
    ("POST /api/autopilots/{id}/deliveries/{delivery_id}/replay", MEMBERS, None),
    ("POST /api/autopilots/{id}/trigger", MEMBERS, None),
    (
        "POST /api/autopilots/{id}/triggers",
        MEMBERS,
        {"kind": "schedule", "cron_expression": "0 0 * * *"},
    ),
    ("PATCH /api/autopilots/{id}/triggers/{trigger_id}", MEMBERS, {"enabled": False}),
    ("DELETE /api/autopilots/{id}/triggers/{trigger_id}", MEMBERS, None),
    ("POST /api/autopilots/{id}/triggers/{trigger_id}/rotate-webhook-token", MEMBERS, None),
    (
        "PUT /api/autopilots/{id}/triggers/{trigger_id}/signing-secret",
        MEMBERS,
        {"signing_secret": "s" * 16},
    ),
    ("POST /api/webhooks/autopilots/{token}", ALL, {"event": "x"}),
    ("POST /api/chat/sessions", MEMBERS, {"agent_id": "{agents}"}),
    ("PATCH /api/chat/sessions/{id}", MAKER, TITLE),
    ("DELETE /api/chat/sessions/{id}", MAKER, None),
    ("POST /api/chat/sessions/{id}/messages", MAKER, {"content": "x"}),
    ("POST /api/chat/sessions/{id}/read", MAKER, None),
    ("PUT /api/comments/{id}", MANAGERS, {"content": "x"}),
    ("DELETE /api/comments/{id}", MANAGERS, None),
    ("POST /api/comments/{id}/reactions", MEMBERS, EMOJI),
    ("DELETE /api/comments/{id}/reactions", MEMBERS, EMOJI),
    ("POST /api/comments/{id}/resolve", MEMBERS, None),
    ("DELETE /api/comments/{id}/resolve", MEMBERS, None),
    ("POST /api/inbox/archive-all", MEMBERS, None),
    ("POST /api/inbox/archive-all-read", MEMBERS, None),
    ("POST /api/inbox/archive-completed", MEMBERS, None),
    ("POST /api/inbox/mark-all-read", MEMBERS, None),
    ("POST /api/inbox/{id}/archive", MAKER, None),
    ("POST /api/inbox/{id}/read", MAKER, None),
    ("PUT /api/notification-preferences", MEMBERS, {"preferences": {"comments": "muted"}}),
    ("POST /api/pins", MEMBERS, {"item_type": "issue", "item_id": "{issues}"}),
    ("PUT /api/pins/reorder", MEMBERS, {"pin_ids": ["{pin}"]}),
    ("DELETE /api/pins/{item_type}/{item_id}", MAKER, None),
    ("POST /api/invitations/{id}/accept", "s", None),
    ("POST /api/invitations/{id}/decline", "s", None),
    ("POST /api/issues", MEMBERS, TITLE),
    ("POST /api/issues/batch-delete", MEMBERS, {"issue_ids": []}),
    ("POST /api/issues/batch-update", MEMBERS, {"issue_ids": [], "updates": TITLE}),
    ("POST /api/issues/preview-trigger", MEMBERS, {"issue_ids": ["{issues}"]}),
    ("POST /api/issues/quick-create", MEMBERS, {"agent_id": "{agents}", "prompt": "x"}),
    ("PUT /api/issues/{id}", MEMBERS, TITLE),
    ("DELETE /api/issues/{id}", MEMBERS, None),
    ("POST /api/issues/{id}/comments", MEMBERS, {"content": "x"}),
    ("POST /api/issues/{id}/comments/trigger-preview", MEMBERS, {"content": "x"}),
    ("POST /api/issues/{id}/labels", MEMBERS, {"label_id": "{labels}"}),
    ("DELETE /api/issues/{id}/labels/{label_id}", MEMBERS, None),
    ("PUT /api/issues/{id}/metadata/{key}", MEMBERS, {"value": 1}),
    ("DELETE /api/issues/{id}/metadata/{key}", MEMBERS, None),
    ("POST /api/issues/{id}/reactions", MEMBERS, EMOJI),
    ("DELETE /api/issues/{id}/reactions", MEMBERS, EMOJI),
    ("POST /api/issues/{id}/rerun", MEMBERS, {}),
    ("POST /api/issues/{id}/subscribe", MEMBERS, {}),
    ("POST /api/issues/{id}/unsubscribe", MEMBERS, {}),
    ("POST /api/issues/{id}/tasks/{task_id}/cancel", MEMBERS, {}),
    ("POST /api/tasks/{id}/cancel", MEMBERS, {}),
    ("POST /api/labels", MEMBERS, NAME | {"color": "ffffff"}),
    ("PUT /api/labels/{id}", MEMBERS, NAME),
    ("DELETE /api/labels/{id}", MEMBERS, None),
    ("POST /api/projects", MEMBERS, TITLE),
    ("PUT /api/projects/{id}", MEMBERS, TITLE),
    ("DELETE /api/projects/{id}", ADMINS, None),
    (
        "POST /api/projects/{id}/resources",
        MEMBERS,
        {"resource_type": "github_repo", "resource_ref": {"url": "https://x.org/new"}},
    ),
    ("PUT /api/projects/{id}/resources/{resource_id}", MEMBERS, {"label": "x"}),
    ("DELETE /api/projects/{id}/resources/{resource_id}", MEMBERS, None),
    ("PATCH /api/runtimes/{id}", MANAGERS, {"visibility": "private"}),
    ("PATCH /api/runtimes/{id}", MAKER, {"visibility": "public"}),
    ("POST /api/runtimes/{idle_runtime}/hand-over", MANAGERS, {"user_id": "{other}"}),
    ("DELETE /api/runtimes/{idle_runtime}", MANAGERS, None),
    (
        "POST /api/runtimes/{id}/archive-agents-and-delete",
        MANAGERS,
        {"expected_active_agent_ids": ["{agents}"]},
    ),
    ("POST /api/runtimes/{id}/local-skills", MAKER, {}),
    ("POST /api/runtimes/{id}/local-skills/import", MAKER, {"skill_key": "x"}),
    ("POST /api/runtimes/{id}/models", MAKER, {}),
    ("POST /api/runtimes/{id}/ping", MAKER, {}),
    ("POST /api/runtimes/{id}/update", MAKER, {"target_version": "9.9.10"}),
    ("POST /api/skills", MEMBERS, NAME),
    ("PUT /api/skills/{id}", MANAGERS, NAME),
    ("DELETE /api/skills/{id}", MANAGERS, None),
    ("PUT /api/skills/{id}/files", MANAGERS, {"path": "b.md", "content": "x"}),
    ("DELETE /api/skills/{id}/files/{file_id}", MANAGERS, None),
    ("POST /api/squads", ADMINS, NAME | {"leader_id": "{agents}"}),
    ("PUT /api/squads/{id}", ADMINS, NAME),
    ("DELETE /api/squads/{id}", ADMINS, None),
    (
        "POST /api/squads/{id}/members",
        ADMINS,
        {"member_type": "member", "member_id": "{other}", "role": "x"},
    ),
    ("DELETE /api/squads/{id}/members", ADMINS, SQUAD_MEMBER),
    ("PATCH /api/squads/{id}/members/role", ADMINS, SQUAD_MEMBER),
    ("PATCH /api/workspaces/{id}", ADMINS, NAME),
    ("PUT /api/workspaces/{id}", ADMINS, NAME),
    ("DELETE /api/workspaces/{id}", "o", None),
    ("POST /api/workspaces/{id}/leave", MEMBERS, None),
    ("POST /api/workspaces/{id}/members", ADMINS, {"email": "new@x.org"}),
    ("PATCH /api/workspaces/{id}/members/{member_id}", ADMINS, {"role": "admin"}),
    ("PATCH /api/workspaces/{id}/members/{member_id}", "o", {"role": "owner"}),
    ("PATCH /api/workspaces/{id}/members/{second_owner}", "o", {"role": "member"}),
    ("DELETE /api/workspaces/{id}/members/{member_id}", ADMINS, None),
    ("DELETE /api/workspaces/{id}/members/{second_owner}", "o", None),
    ("DELETE /api/workspaces/{id}/invitations/{invitation_id}", ADMINS, None),
    ("POST /api/workspaces/{id}/daemon-tokens", ADMINS, {"daemon_id": "x"}),
    ("DELETE /api/workspaces/{id}/daemon-tokens/{token_id}", ADMINS, None),
    ("POST /api/workspaces/{id}/runtime-profiles", ADMINS, PROFILE),
    ("PUT /api/workspaces/{id}/runtime-profiles/{profile_id}", ADMINS, {"enabled": False}),
    ("PATCH /api/workspaces/{id}/runtime-profiles/{profile_id}", ADMINS, {"enabled": False}),
    ("DELETE /api/workspaces/{id}/runtime-profiles/{profile_id}", ADMINS, None),
    # about the caller alone
    ("PATCH /api/me", ALL, NAME),
    ("POST /api/tokens", ALL, NAME),
    ("POST /api/tokens/current/renew", ALL, None),
    ("DELETE /api/tokens/{id}", ALL, None),  # of another: nothing happens (see test_api_team)
    ("POST /api/cli-token", ALL, None),
    ("POST /api/workspaces", ALL, NAME | {"slug": "new-one"}),
    ("POST /auth/link", ALL, None),
    ("POST /auth/logout", ALL, None),
    ("DELETE /api/sessions", ALL, None),
)

ELSEWHERE = {
    "POST /api/skills/import": "asks a code host first, as making a skill; test_skills",
    "POST /api/upload-file": "no JSON; test_attachments",
    "POST /api/issues/{id}/squad-evaluated": "for a squad's leader in its task only; test_squads",
    "POST /auth/send-code": "before there is a caller; test_codes",
    "POST /auth/verify-code": "before there is a caller; test_codes",
    "POST /login/code": "a form before there is a caller; test_login",
    "POST /login/verify": "a form before there is a caller; test_login",
    "POST /auth/sessions": "a form with a proof of its own; test_login",
    "DELETE /api/sessions/{id}": "the caller's own; test_attack_door",
    "POST /login/cli": "a form with a proof of its own; test_login",
    "POST /workspaces/new": "a form with a proof of its own; test_login",
    "POST /invite/{id}": "a form with a proof of its own; test_login",
}


def key(route: str) -> str:
    return re.sub(r"{[^}]*}", "{}", route)


def test_every_mutating_route_has_its_rights() -> None:
    here = {
        key(f"{method} {path}")
        for method, path in flat(list(routes._table()))
        if method != "GET" and not path.startswith("/api/daemon/")
    }
    known = {key(route) for route, _, _ in RIGHTS} | {key(route) for route in ELSEWHERE}
    assert here == known


@attrs.frozen
class Cast:
    api: Api
    things: Things
    callers: dict[str, Caller]


@asynccontextmanager
async def open_cast() -> AsyncIterator[Cast]:
    async with open_api() as api:
        here = api.world.workspace_id

        async def unit(conn: Connection) -> tuple[Things, dict[str, tuple[str, str]]]:
            people: dict[str, tuple[str, str]] = {}
            rows: dict[str, str] = {}
            for letter, role in (("a", "admin"), ("p", "member"), ("m", "member"), ("O", "owner")):
                user_id = await make_user(conn, letter)
                rows[letter] = await insert(
                    conn, "member", workspace_id=here, user_id=user_id, role=role
                )
                people[letter] = (user_id, await make_token(conn, user_id))
            things = dict(await furnish(conn, api.world, people["m"][0], "MARK"))
            things["second_owner"] = rows["O"]
            await conn.execute(
                "update workspace_invitation set invitee_email = (select email from app_user"
                " where id = $1), invitee_user_id = $1",
                api.stranger.user_id,
            )
            return things, people

        things, people = await api.run(unit)
        callers = {
            letter: await api.caller(user_id, token, here)
            for letter, (user_id, token) in people.items()
        }
        callers |= {"o": api.owner, "s": api.stranger}
        yield Cast(api, things, callers)


async def test_rights_are_those_of_the_role() -> None:
    async with open_cast() as cast:
        rehearse(cast.api)
        wrong: list[str] = []
        for route, allowed, body in RIGHTS:
            method, path = route.split(" ")
            url = path_of(path, cast.things)
            for letter in ALL:
                caller = cast.callers[letter]
                if letter == "s" and allowed != "s":
                    # strangers point at the workspace as if it were theirs
                    caller.client.headers["x-workspace-id"] = cast.things["workspaces"]
                sent = ... if body is None else body_of(body, cast.things)
                answer = await caller.call(method, url, sent)
                fine = answer.status_code < 400
                refused = answer.status_code in {401, 403, 404}
                if fine != (letter in allowed) or refused == fine:
                    wrong.append(f"{letter} {route}: {answer.status_code} {answer.text[:150]}")
        assert not wrong, "\n".join(wrong)
