"""The table of rights walked on the real server: every route, every actor, own and others' objects.

What is expected is computed here from the table's rows alone, not by the functions that the server
asks; requests are real and what they write is taken back. Everything in the workspace belongs to an
ordinary member, the maker; once with an agent that all may use, once with a private one. Agents are
walked three times, by their owners' roles: what is the maker's, and what is their own work. A route
without an entry fails, and so does an answer that shows what is private to who may not read it.
`pytest -s` prints the size. Events are walked in test_rights_events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import pytest
from starlette.routing import WebSocketRoute

from server.rights import TABLE, Agents, Machines, People, Rule
from server.rights_map import ROUTES
from server.store.queries import Connection
from server.web import routes
from shared.ids import hash_token, mint_token
from tests.server.test_every_route import flat
from tests.server.test_rights import RIGHTS, key
from tests.support.api import Api, Caller, open_api
from tests.support.furnished import Things, body_of, furnish, path_of
from tests.support.rehearsal import rehearse
from tests.support.rows import (
    insert,
    make_agent,
    make_comment,
    make_issue,
    make_runtime,
    make_task,
    make_token,
    make_user,
)

pytestmark = pytest.mark.postgres

PEOPLE: Final = ("owner", "admin", "maker", "peer", "outsider", "nobody")
AGENTS: Final = ("agent of owner", "agent of admin", "agent of peer")
MACHINES: Final = ("machine own", "machine other")

_PEOPLE: Final = {
    People.EVERYONE: PEOPLE,
    People.USERS: ("owner", "admin", "maker", "peer", "outsider"),
    People.MEMBERS: ("owner", "admin", "maker", "peer"),
    People.MANAGERS: ("owner", "admin", "maker"),
    People.ADMINS: ("owner", "admin"),
    People.OWNERS: ("owner",),
    People.SELF: ("maker",),
    People.HOLDER: ("maker",),
    People.NOBODY: (),
}

BESIDES: Final = {
    "POST /api/daemon/register": "machine.act",
    "POST /api/agents": "runtime.use",
    "POST /api/autopilots": "agent.use",
    "POST /api/chat/sessions": "agent.use",
    "POST /api/issues/quick-create": "agent.use",
    "POST /api/issues/{}/rerun": "agent.use",
    "POST /api/issues/{}/tasks/{}/cancel": "run.read",
    "POST /api/tasks/{}/cancel": "run.read",
    "DELETE /api/attachments/{}": "attachment.read",
    "GET /api/agents/{}": "agent.use",
    "GET /api/agents/{}/tasks": "agent.use",
    "GET /api/agents/{}/skills": "agent.use",
}
"""A second right that a route asks for, of another thing that its path or body names."""

OWN_LIST: Final = frozenset(
    {
        *("GET /api/sessions", "DELETE /api/sessions"),
        *("GET /api/tokens", "GET /api/invitations", "GET /api/chat/sessions"),
        *("GET /api/chat/pending-tasks", "GET /api/inbox", "GET /api/inbox/unread-count"),
        *("POST /api/inbox/archive-all", "POST /api/inbox/archive-all-read"),
        *("POST /api/inbox/archive-completed", "POST /api/inbox/mark-all-read"),
        *("GET /api/notification-preferences", "PUT /api/notification-preferences"),
        *("GET /api/pins", "POST /api/pins", "PUT /api/pins/reorder"),
    }
)
"""What names no object: everybody it is open to finds their own there, and nobody else's."""

FILTERED: Final = frozenset(
    {"GET /api/agents", "GET /api/autopilots", "GET /api/agent-task-snapshot"}
)
"""Lists that leave out what the caller may not see: what they show is looked at."""

ELSEWHERE: Final = {
    "PUT /api/agents/{id}/env": "also by whose machine it runs on; test_rights",
    "POST /api/issues/batch-update": "skips what may not be changed; test_attack_agents",
    "POST /api/daemon/claims": "answers for each runtime by itself; test_attack_machines",
    "POST /api/daemon/deregister": "passes over what is not the caller's; test_attack_machines",
    "POST /api/upload-file": "no JSON; test_attachments",
    "POST /api/issues/{id}/squad-evaluated": "for a squad's leader in its task; test_squads",
    "POST /api/tokens/current/renew": "about the token itself; test_api_team",
    "DELETE /api/tokens/{id}": "of another nothing happens, without a word; test_api_team",
    "POST /auth/send-code": "before there is a caller; test_codes",
    "POST /auth/verify-code": "before there is a caller; test_codes",
    "POST /login/code": "a form before there is a caller; test_login",
    "POST /login/verify": "a form before there is a caller; test_login",
    "POST /login/cli": "a form with a proof of its own; test_login",
    "GET /workspaces/new": "a page that leads to signing in; test_login",
    "POST /workspaces/new": "a form with a proof of its own; test_login",
    "GET /invite/{id}": "a page that leads to signing in; test_login",
    "POST /invite/{id}": "a form with a proof of its own; test_login",
    "GET /auth/link/{code}": "the code is the right; test_auth",
    "DELETE /api/sessions/{id}": "another's is not there; test_attack_door",
    "GET /auth/sessions": "a page of the caller's own; test_login",
    "POST /auth/sessions": "a form with a proof of its own; test_login",
    "GET /metrics": "asks for a token of its own; test_metrics",
    "GET /health/realtime": "asks for a token of its own; test_metrics",
    "POST /api/webhooks/autopilots/{token}": "the address is the right; test_rights",
    "GET /api/invitations/{id}": "the outsider is invited; test_rights",
    "POST /api/invitations/{id}/accept": "the outsider is invited; test_rights",
    "POST /api/invitations/{id}/decline": "the outsider is invited; test_rights",
    "GET /static/{version}/{name}": "a file by its name; test_pages",
}

REQUESTS: Final = {
    "models": "models",
    "ping": "ping",
    "update": "update",
    "local-skills": "local_skills",
    "import": "import",
}
"""What was asked of a machine: the word of its path, and its kind."""

_TASK: Final = "POST /api/daemon/tasks/{task_id}"
_RUNTIME: Final = "POST /api/daemon/runtimes/{runtime_id}"

DAEMONS: Final = {
    "POST /api/daemon/register": {
        "workspace_id": "{workspaces}",
        "daemon_id": "{daemon}",
        "device_name": "m",
        "runtimes": [{"name": "Claude", "type": "claude", "version": "1", "status": "online"}],
    },
    "POST /api/daemon/deregister": {"runtime_ids": ["{runtimes}"]},
    "POST /api/daemon/heartbeat": {"runtime_id": "{runtimes}"},
    "POST /api/daemon/claims": {"runtimes": [{"runtime_id": "{runtimes}", "slots": 1}]},
    f"{_RUNTIME}/tasks/claim": {},
    f"{_RUNTIME}/recover-orphans": {},
    f"{_RUNTIME}/usage": {"entries": []},
    f"{_RUNTIME}/tasks/{{task_id}}/prepare-lease": {},
    f"{_RUNTIME}/tasks/{{task_id}}/skill-bundles/resolve": {"skills": []},
    f"{_TASK}/start": {},
    f"{_TASK}/go-on": {},
    f"{_TASK}/wait-local-directory": {"reason": "x"},
    f"{_TASK}/progress": {"summary": "x"},
    f"{_TASK}/messages": {"messages": [{"seq": 1, "type": "text", "content": "x"}]},
    f"{_TASK}/session": {"session_id": "x", "work_dir": "/x"},
    f"{_TASK}/usage": {"usage": []},
    f"{_TASK}/complete": {"output": "x"},
    f"{_TASK}/fail": {"error": "x"},
    f"{_TASK}/cancel-ack": {},
    f"{_RUNTIME}/models/{{request_id}}/result": {"status": "completed", "models": []},
    f"{_RUNTIME}/ping/{{request_id}}/result": {"status": "completed"},
    f"{_RUNTIME}/update/{{request_id}}/result": {"status": "completed"},
    f"{_RUNTIME}/local-skills/{{request_id}}/result": {"status": "completed", "skills": []},
    f"{_RUNTIME}/local-skills/import/{{request_id}}/result": {"status": "failed", "error": "x"},
}
"""What daemons send."""

KINDS: Final = ("", "private")


def row_of(right: str, kind: str) -> Rule:
    name, _, action = right.partition(".")
    found = {(rule.object, rule.action): rule for rule in TABLE}
    if name == "usage":
        kind = ""  # left out of lists and sums: what is shown is looked at instead
    return found.get((f"{kind} {name}".strip(), action)) or found[name, action]


def allows(rule: Rule, who: str, *, own_work: bool) -> bool:
    """Whether a row lets somebody do it; `own_work`: an agent, with what it made and works on."""
    if who in PEOPLE:
        return who in _PEOPLE[rule.people]
    if who in MACHINES:
        everyone = rule.people is People.EVERYONE
        own = rule.machines is Machines.OWN and who == "machine own"
        return everyone or own or rule.machines is Machines.HERE
    return rule.agents is Agents.ALL or (rule.agents is Agents.WORK and own_work)


@attrs.frozen(kw_only=True)
class Walk:
    """One request to make: what for, and with which things."""

    route: str
    right: str
    method: str
    path: str
    body: Any
    kind: str
    own_work: bool

    def expected(self, who: str) -> bool:
        rights = [self.right, *([BESIDES[key(self.route)]] if key(self.route) in BESIDES else ())]
        found = []
        for right in rights:
            kind = "private" if right.startswith("runtime.") else self.kind
            rule = row_of(right, "" if self.route in FILTERED else kind)
            if key(self.route) in OWN_LIST and rule.people is People.SELF:
                rule = attrs.evolve(rule, people=People.MEMBERS)
            if key(self.route) in OWN_LIST and rule.people is People.HOLDER:
                rule = attrs.evolve(rule, people=People.USERS)
            found.append(allows(rule, who, own_work=self.own_work))
        return all(found)


@attrs.frozen
class Cast:
    api: Api
    things: dict[str, Things]
    work: dict[str, Things]
    callers: dict[str, Caller]


@asynccontextmanager
async def open_cast() -> AsyncIterator[Cast]:
    async with open_api() as api:
        here = api.world.workspace_id

        async def unit(conn: Connection) -> tuple[Any, Any, Any]:
            ids = {"owner": api.world.user_id}
            tokens: dict[str, str] = {}
            for who, role in (("admin", "admin"), ("peer", "member"), ("maker", "member")):
                ids[who] = await make_user(conn, who)
                await insert(conn, "member", workspace_id=here, user_id=ids[who], role=role)
                tokens[who] = await make_token(conn, ids[who])
            things: dict[str, Any] = {
                "": await furnish(conn, api.world, ids["maker"], "OPENMARK"),
                "private": await furnish(conn, api.world, ids["maker"], "PRIVMARK"),
            }
            await conn.execute(
                "update agent set visibility = 'private' where name like 'PRIVMARK%'"
            )
            for kind in KINDS:
                of = dict(things[kind])
                for place, name in REQUESTS.items():
                    of[place] = f"{kind}{name}"
                    await conn.execute(
                        "insert into runtime_request (id, runtime_id, kind, status, params, expires_at,"
                        " run_limit) values ($1, $2, $3, 'pending', $4,"
                        " now() + interval '1 hour', '1 hour')",
                        of[place], of["runtimes"], name, {"skill_key": "x", "action": "", "target_version": "9.9.9"},
                    )  # fmt: skip
                things[kind] = of
            things["private"] = dict(things["private"]) | {
                "attachments": await insert(
                    conn, "attachment", workspace_id=here, uploader_type="member",
                    chat_session_id=things["private"]["sessions"], uploader_id=ids["maker"],
                    filename="a.txt", url="", content_type="text/plain", size_bytes=1,
                )
            }  # fmt: skip
            work = {}
            for who in AGENTS:
                work[who], tokens[who] = await at_work(conn, api, ids[who.split(" of ")[1]])
            daemon_id = await conn.fetchval(
                "select daemon_id from agent_runtime where id = $1", things[""]["runtimes"]
            )
            for kind in KINDS:
                things[kind] = {**things[kind], "daemon": daemon_id}
                things[kind]["autopilot-runs"] = things[kind]["runs"]
                things[kind]["chat-sessions"] = things[kind]["sessions"]
            for of in things.values():
                # the maker's machine worked for the chat and for the autopilot's run
                for about in ({"chat_session_id": of["sessions"], "initiator_id": ids["maker"]},
                              {"autopilot_run_id": of["runs"]}):  # fmt: skip
                    await make_task(
                        conn, api.world, agent_id=of["agents"], runtime_id=of["runtimes"],
                        status="completed", **about,
                    )  # fmt: skip
            for who, bound in (("machine own", daemon_id), ("machine other", "other")):
                tokens[who] = mint_token("mdt_")
                await conn.execute(
                    "insert into daemon_token (workspace_id, daemon_id, token_hash, expires_at)"
                    " values ($1, $2, $3, now() + interval '1 day')",
                    here, bound, hash_token(tokens[who]),
                )  # fmt: skip
            return things, work, tokens

        things, work, tokens = await api.run(unit)
        callers = {who: await api.caller("", token, here) for who, token in tokens.items()}
        callers["owner"] = api.owner
        callers["outsider"] = api.stranger
        callers["outsider"].client.headers["x-workspace-id"] = here
        callers["nobody"] = await api.caller("", "", here)
        del callers["nobody"].client.headers["authorization"]
        yield Cast(api, things, work, callers)


async def at_work(conn: Connection, api: Api, owner: str) -> tuple[Things, str]:
    """An agent of the owner at work on an issue it made, with a comment and a file of its own."""
    world = api.world
    runtime = await make_runtime(conn, world.workspace_id, owner)
    agent = await make_agent(conn, world.workspace_id, runtime, owner_id=owner)
    issue = await make_issue(
        conn, world, assignee_id=agent, creator_type="agent", creator_id=agent,
        metadata={"note": 1},
    )  # fmt: skip
    comment = await make_comment(conn, issue, agent, "said", author_type="agent")
    attachment = await insert(
        conn, "attachment", workspace_id=world.workspace_id, issue_id=issue.id,
        uploader_type="agent", uploader_id=agent, filename="a.txt", url="",
        content_type="text/plain", size_bytes=1,
    )  # fmt: skip
    await conn.execute("insert into attachment_content values ($1, 'x')", attachment)
    task = await make_task(
        conn, world, agent_id=agent, runtime_id=runtime, issue_id=issue.id, status="running"
    )
    token = mint_token("mat_")
    await conn.execute(
        "insert into task_token (token_hash, task_id, agent_id, workspace_id, user_id, expires_at)"
        " values ($1, $2, $3, $4, $5, now() + interval '1 day')",
        hash_token(token), task, agent, world.workspace_id, owner,
    )  # fmt: skip
    return {
        "agents": agent,
        "issues": issue.id,
        "comments": comment,
        "attachments": attachment,
        "tasks": task,
        "runtimes": runtime,
    }, token


def calls() -> dict[str, tuple[str, Any]]:
    """The path and the body that test_rights knows for a writing route."""
    found: dict[str, tuple[str, Any]] = {}
    for route, _, body in RIGHTS:
        found.setdefault(key(route), (route, body))
    found["POST /api/issues/batch-delete"] = (
        "POST /api/issues/batch-delete",
        {"issue_ids": ["{issues}"]},
    )
    for route, body in DAEMONS.items():
        found[key(route)] = (route, body)
    return found


def entries() -> dict[str, str]:
    """Every route of the application as the map names it, websockets too."""
    table = list(routes._table())
    found = {f"{method} {path}": path for method, path in flat(table)}
    found |= {f"WS {one.path}": one.path for one in table if isinstance(one, WebSocketRoute)}
    return found


def walks(kind: str, things: Things, *, own_work: bool = False) -> Iterator[Walk]:
    known = calls()
    special = {rule.object.removeprefix("private ") for rule in TABLE if "private " in rule.object}
    for route in sorted(entries()):
        right = ROUTES[route]
        name = right.partition(".")[0]
        if route in ELSEWHERE or route.startswith("WS "):
            continue
        if kind and name not in special and key(route) not in BESIDES:
            continue
        template, body = known.get(key(route), (route, None))
        method, path = template.split(" ")
        yield Walk(
            route=route,
            right=right,
            method=method,
            path=path_of(path.replace("{slug:slug}", things["slug"]), things),
            body=... if body is None else body_of(body, things),
            kind=kind,
            own_work=own_work,
        )


def test_every_route_has_its_right_and_every_right_its_row() -> None:
    assert set(entries()) == set(ROUTES)
    assert {ROUTES[route] for route in ROUTES} <= {
        f"{rule.object.removeprefix(kind)}.{rule.action}"
        for rule in TABLE
        for kind in ("", "private ", "chat ")
    }
    rows = [(rule.object, rule.action) for rule in TABLE]
    assert len(rows) == len(set(rows))


async def test_the_server_does_what_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_cast() as cast:
        slug = {"slug": cast.api.world.slug}
        work = {who: {**cast.things[""], **slug, **cast.work[who]} for who in AGENTS}
        rehearse(cast.api)
        wrong: list[str] = []
        count, walked = 0, set[str]()

        async def walk(one: Walk, who: str) -> None:
            nonlocal count
            count += 1
            walked.add(one.route)
            answer = await cast.callers[who].call(one.method, one.path, one.body)
            wanted, status = one.expected(who), answer.status_code
            refused = status in {401, 403, 404} or status == 303
            if row_of(one.right, "").people is People.EVERYONE:
                refused = status in {401, 403}  # a page may lead on to where one belongs
            if wanted == refused:
                what = f"{who}{' at work' if one.own_work else ''}: {one.kind} {one.route}"
                wrong.append(f"{what}: {status}, not {wanted}: {answer.text[:120]!r}")
            if one.kind and not allows(row_of("run.read", one.kind), who, own_work=False):
                shown = [each for each in private if each in answer.text]
                if shown:
                    wrong.append(f"{who}: {one.route} shows {shown}: {answer.text[:300]!r}")

        private = ("PRIVMARK agent", "PRIVMARK autopilot", cast.things["private"]["webhook"])
        for kind in KINDS:
            things = {**cast.things[kind], **slug}
            for one in walks(kind, things):
                for who in (*PEOPLE, *AGENTS, *MACHINES):
                    await walk(one, who)
        for who in AGENTS:
            for one in walks("", work[who], own_work=True):
                await walk(one, who)
        with capsys.disabled():
            print(
                f"\nwalked {len(walked)} routes x {len(PEOPLE + AGENTS + MACHINES)} actors x"
                f" {len(KINDS) + 1} sets of objects: {count} requests"
            )
        assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
