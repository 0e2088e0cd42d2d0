"""The daemon's endpoints over HTTP: a task's whole life, replays, and every kind of bad request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx
import pytest
import trio

from server.consequences import Consequence
from server.database import Database
from server.dispatch import enqueue, heartbeat
from server.store.queries import Connection
from server.store.tasks import SQL, Caller
from shared.ids import DAEMON_TOKEN, hash_token, mint_token, new_id
from shared.wire.event import Event
from tests.support.postgres import open_test_database
from tests.support.rows import World, insert, make_comment, make_issue, make_task, make_world
from tests.support.server import open_server
from tests.support.statements import counted

pytestmark = pytest.mark.postgres


@attrs.frozen(kw_only=True)
class Rig:
    """A server, its world, the world's daemon as a client, and what the hub was told."""

    database: Database
    world: World
    http: httpx.AsyncClient
    anonymous: httpx.AsyncClient
    told: list[Consequence]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [c.payload for c in self.told if isinstance(c, Event) and c.type == kind]

    async def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        answer = await self.http.post(f"/api/daemon{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    async def get(self, path: str, status: int = 200) -> Any:
        answer = await self.http.get(f"/api/daemon{path}")
        assert answer.status_code == status, answer.text
        return answer.json()

    async def assign(self) -> str:
        """An assigned issue; returns its id."""
        issue = await self.database.write(lambda conn: make_issue(conn, self.world))
        await self.database.write(lambda conn: enqueue.issue_created(conn, issue, self.world.actor))
        return issue.id

    async def claim(self) -> dict[str, Any]:
        answer = await self.post(f"/runtimes/{self.world.runtime_id}/tasks/claim", {})
        task: dict[str, Any] = answer["task"]
        assert task is not None
        return task

    async def running(self) -> dict[str, Any]:
        await self.assign()
        task = await self.claim()
        await self.post(f"/tasks/{task['id']}/start", {})
        return task


@asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    async with open_test_database() as (database, _), open_server(database) as server:
        world = await make_world(database)
        told: list[Consequence] = []
        server.services.hub.observe(told.append)
        async with server.client(world.token) as http:
            yield Rig(database=database, world=world, http=http, anonymous=server.http, told=told)


async def test_a_tasks_life() -> None:
    async with open_rig() as rig:
        issue_id = await rig.assign()
        runtime = rig.world.runtime_id
        pending = await rig.get(f"/runtimes/{runtime}/tasks/pending")
        assert [(task["status"], task["issue_id"]) for task in pending] == [("queued", issue_id)]

        task = await rig.claim()
        path = f"/tasks/{task['id']}"
        assert task["auth_token"].startswith("mat_")
        assert (await rig.post(f"/runtimes/{runtime}/tasks/claim", {})) == {"task": None}
        leased = await rig.post(f"/runtimes/{runtime}{path}/prepare-lease", {})
        assert leased["status"] == "dispatched"
        assert "auth_token" not in leased
        assert "agent" not in leased
        parked = await rig.post(f"{path}/wait-local-directory", {"reason": " busy "})
        assert parked["status"] == "waiting_local_directory"
        assert (await rig.post(f"{path}/start", {}))["status"] == "running"
        assert await rig.get(f"{path}/status") == {"status": "running"}

        await rig.post(f"{path}/progress", {"summary": "Launching claude", "step": 1, "total": 2})
        assert rig.events("task:progress") == [
            {"task_id": task["id"], "summary": "Launching claude", "step": 1, "total": 2}
        ]
        kept = await rig.database.read(
            lambda conn: conn.fetchval("select progress from agent_task_queue")
        )
        assert kept == {"summary": "Launching claude", "step": 1, "total": 2}

        answer = await rig.http.post(f"/api/daemon{path}/session", json={"session_id": "s"})
        assert (answer.status_code, answer.content) == (204, b"")
        usage = {"provider": "", "model": "opus", "input_tokens": 3, "output_tokens": 5}
        await rig.post(f"{path}/usage", {"usage": [usage | {"input_tokens": 1}, usage]})
        await rig.post(f"{path}/usage", {"usage": [usage | {"provider": "Claude"}]})
        rows = await rig.database.read(lambda conn: conn.fetch("select * from task_usage"))
        assert [(r["provider"], r["model"], r["input_tokens"]) for r in rows] == [
            ("claude", "opus", 3)
        ]

        done = await rig.post(f"{path}/complete", {"output": "Did it.", "branch_name": "x"})
        assert done["status"] == "completed"
        assert done["result"]["output"] == "Did it."
        assert done["kind"] == "direct"
        check = await rig.get(f"{path}/gc-check")
        assert check["status"] == "completed"
        assert check["completed_at"] > "2000"
        assert (await rig.get(f"/issues/{issue_id}/gc-check"))["status"] == "todo"
        for kind in ("dispatch", "waiting_local_directory", "running", "completed"):
            assert len(rig.events(f"task:{kind}")) == 1, kind
        payload = rig.events("task:running")[0]
        assert payload == {
            "task_id": task["id"],
            "agent_id": rig.world.agent_id,
            "issue_id": issue_id,
            "status": "running",
        }


async def test_repeated_calls_after_lost_answers() -> None:
    async with open_rig() as rig:
        task = await rig.running()
        path = f"/tasks/{task['id']}"
        again = await rig.post(f"{path}/start", {})
        assert again["status"] == "running"
        assert len(rig.events("task:running")) == 1
        for _ in range(3):
            done = await rig.post(f"{path}/complete", {"output": "x"})
            assert done["status"] == "completed"
        assert (await rig.post(f"{path}/fail", {"error": "late"}))["status"] == "completed"
        assert len(rig.events("task:completed")) == 1
        refused = await rig.post(f"{path}/start", {}, status=400)
        assert refused == {"error": "start task: no rows in result set"}
        refused = await rig.post(f"{path}/wait-local-directory", {}, status=400)
        assert refused == {"error": "mark task waiting_local_directory: no rows in result set"}
        refused = await rig.post(
            f"/runtimes/{rig.world.runtime_id}{path}/prepare-lease", {}, status=400
        )
        assert refused == {"error": "extend task prepare lease: no rows in result set"}


async def test_the_task_token_ends_with_the_task() -> None:
    async with open_rig() as rig:
        task = await rig.running()
        headers = {"authorization": f"Bearer {task['auth_token']}"}
        assert (await rig.anonymous.get("/api/me", headers=headers)).status_code == 200
        await rig.post(f"/tasks/{task['id']}/complete", {"output": "x"})
        assert (await rig.anonymous.get("/api/me", headers=headers)).status_code == 401


async def test_messages_are_stored_and_told_once() -> None:
    async with open_rig() as rig:
        task = await rig.running()
        path = f"/tasks/{task['id']}/messages"
        batch = [
            {"seq": 1, "type": "tool_use", "tool": "Bash", "input": {"command": "pytest"}},
            {"seq": 2, "type": "tool_result", "tool": "Bash", "output": "3 passed"},
        ]
        assert await rig.post(path, {"messages": batch}) == {"status": "ok"}
        batch.append({"seq": 3, "type": "text", "content": "All green."})
        await rig.post(path, {"messages": batch})
        assert [event["seq"] for event in rig.events("task:message")] == [1, 2, 3]
        assert rig.events("task:message")[0]["input"] == {"command": "pytest"}
        rows = await rig.get(path)
        assert [row["seq"] for row in rows] == [1, 2, 3]
        assert rows[2]["content"] == "All green."
        assert rows[2]["issue_id"] == task["issue_id"]
        assert "tool" not in rows[2]
        assert [row["seq"] for row in await rig.get(f"{path}?since=2")] == [3]
        assert await rig.get(f"{path}?since=x", status=400) == {"error": "invalid since parameter"}

        await rig.post(f"/tasks/{task['id']}/complete", {"output": "x"})
        late = [{"seq": 4, "type": "text", "content": "late"}]
        await rig.post(path, {"messages": late})
        assert [event["seq"] for event in rig.events("task:message")] == [1, 2, 3, 4]
        assert await rig.post(path, {"messages": []}) == {"status": "ok"}
        assert await rig.post(path, {"messages": None}) == {"status": "ok"}


async def test_a_batch_sent_from_several_places_at_once_is_stored_once() -> None:
    async with open_rig() as rig:
        task = await rig.running()
        batch = {"messages": [{"seq": n, "type": "text", "content": "x"} for n in range(1, 21)]}

        async def send() -> None:
            await rig.post(f"/tasks/{task['id']}/messages", batch)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(send)
        assert sorted(event["seq"] for event in rig.events("task:message")) == list(range(1, 21))


async def test_messages_survive_what_postgres_cannot_store() -> None:
    async with open_rig() as rig:
        task = await rig.running()
        path = f"/tasks/{task['id']}/messages"
        secret = "ghp_" + "a" * 36
        raw = (
            '{"messages":[{"seq":1,"type":"tool_result","output":"a\\u0000b \\ud800 '
            + secret
            + '"},{"seq":2,"type":"tool_use","input":{"deep":{"list":["\\u0000'
            + secret
            + '"]}, "n": NaN}}]}'
        )
        answer = await rig.http.post(f"/api/daemon{path}", content=raw)
        assert answer.status_code == 200, answer.text
        rows = await rig.get(path)
        assert rows[0]["output"] == "ab \ufffd [REDACTED GITHUB TOKEN]"
        assert rows[1]["input"] == {"deep": {"list": ["[REDACTED GITHUB TOKEN]"]}, "n": None}


async def test_statements_of_the_hot_paths() -> None:
    async with open_rig() as rig:
        task = await rig.running()
        who = (rig.world.user_id, None)
        # asyncpg looks a type up when a connection first meets it.
        one = {rig.world.runtime_id: True}
        await rig.database.write(
            lambda conn: heartbeat.take_beats(conn, one, Caller(user_id=who[0]))
        )
        _, sent = await counted(
            rig.database,
            lambda conn: heartbeat.take_beat(
                conn, runtime_id=rig.world.runtime_id, caller=Caller(user_id=who[0])
            ),
        )
        assert sent == [heartbeat.SQL.beat]
        many = {rig.world.runtime_id: True, new_id(): False, new_id(): False}
        _, sent = await counted(
            rig.database,
            lambda conn: heartbeat.take_beats(conn, many, Caller(user_id=who[0])),
        )
        assert sent == [heartbeat.SQL.beat], "however many runtimes"
        row = {"seq": 1, "type": "text", "content": "x"}
        _, sent = await counted(
            rig.database, lambda conn: conn.fetch(SQL.add_messages, task["id"], *who, [row])
        )
        assert sent == [SQL.add_messages]


@pytest.mark.spec("01 §3.1", "POST /api/daemon/register")
@pytest.mark.spec("01 §3.4", "GET /api/daemon/workspaces/{id}/repos")
async def test_registering() -> None:
    async with open_rig() as rig:
        world = rig.world

        async def prepare(conn: Connection) -> tuple[str, str, str]:
            await conn.execute(
                "update workspace set repos = $1, settings = $2",
                [{"url": "https://example.test/a.git"}],
                {"github_enabled": True},
            )
            profiles = [
                await insert(
                    conn,
                    "runtime_profile",
                    workspace_id=world.workspace_id,
                    display_name=name,
                    protocol_family="codex",
                    command_name=name,
                    enabled=name != "off",
                )
                for name in ("acme", "broken", "off")
            ]
            old = await insert(
                conn,
                "agent_runtime",
                workspace_id=world.workspace_id,
                daemon_id="MBP.local",
                name="old",
                provider="claude",
                owner_id=world.user_id,
            )
            await conn.execute("update agent set runtime_id = $1", old)
            await make_task(conn, world, runtime_id=old)
            await insert(
                conn,
                "chat_session",
                workspace_id=world.workspace_id,
                agent_id=world.agent_id,
                creator_id=world.user_id,
                session_id="left off",
                runtime_id=old,
            )
            return profiles[0], profiles[1], profiles[2]

        acme, broken, off = await rig.database.write(prepare)
        request = {
            "workspace_id": world.workspace_id,
            "daemon_id": " d-1 ",
            "legacy_daemon_ids": ["mbp.LOCAL", "mbp"],
            "device_name": "mbp.local",
            "cli_version": "0.3.28",
            "launched_by": "",
            "runtimes": [
                {"name": "", "type": " Claude ", "version": "2.1", "status": "online"},
                {"name": "Acme", "type": "x", "version": "1", "profile_id": acme},
            ],
            "failed_profiles": [
                {"profile_id": broken, "command_name": "broken", "reason": " "},
                {"profile_id": new_id(), "command_name": "?", "reason": ""},
            ],
        }
        first = await rig.post("/register", request)
        claude, custom = first["runtimes"]
        assert claude["name"] == "claude (mbp.local)"
        assert claude["provider"] == "claude"
        assert claude["device_info"] == "mbp.local · 2.1"
        assert claude["metadata"] == {"version": "2.1", "cli_version": "0.3.28", "launched_by": ""}
        assert claude["owner_id"] == world.user_id
        assert claude["status"] == "online"
        assert claude["launch_header"] == "claude (stream-json)"
        assert (custom["provider"], custom["profile_id"]) == ("codex", acme)
        assert first["repos"] == [{"url": "https://example.test/a.git"}]
        assert len(first["repos_version"]) == 64
        assert first["settings"] == {"github_enabled": True}
        assert first["capabilities"] == [
            "claim-many-v1",
            "beat-many-v1",
            "unique-rows-v1",
            "machine-reports-v1",
        ]

        again = await rig.post("/register", request)
        assert [r["id"] for r in again["runtimes"]] == [claude["id"], custom["id"]]
        rows = await rig.database.read(
            lambda conn: conn.fetch("select * from agent_runtime where daemon_id = 'd-1'")
        )
        by_profile = {row["profile_id"]: row for row in rows}
        assert by_profile[None]["legacy_daemon_id"] == "MBP.local"
        assert by_profile[broken]["status"] == "offline"
        assert by_profile[broken]["metadata"]["runtime_profile_registration_error"] is True
        # The machine's earlier identity is gone; what it had is here.
        assert not await rig.database.read(
            lambda conn: conn.fetchval("select count(*) from agent_runtime where name = 'old'")
        )
        task = await rig.post(f"/runtimes/{claude['id']}/tasks/claim", {})
        assert task["task"]["runtime_id"] == claude["id"]
        chat = await rig.database.read(lambda conn: conn.fetchrow("select * from chat_session"))
        assert (chat["session_id"], chat["runtime_id"]) == ("left off", claude["id"])
        assert len(rig.events("daemon:register")) == 2

        def wanting(**changes: Any) -> dict[str, Any]:
            return request | changes

        one = {"type": "claude"}
        for body, status, error in [
            (wanting(daemon_id=" "), 400, "daemon_id is required"),
            (wanting(workspace_id=None), 400, "workspace_id is required"),
            (
                wanting(runtimes=None, failed_profiles=None),
                400,
                "at least one runtime or failed profile is required",
            ),
            (wanting(workspace_id="x"), 400, "invalid workspace_id"),
            (wanting(runtimes=[one | {"profile_id": "x"}]), 400, "invalid profile_id"),
            (
                wanting(runtimes=[one | {"profile_id": world.user_id}]),
                400,
                f"unknown runtime profile: {world.user_id}",
            ),
            (
                wanting(runtimes=[one | {"profile_id": off}]),
                409,
                f"runtime profile is disabled: {off}",
            ),
            (wanting(workspace_id=new_id()), 404, "workspace not found"),
            (wanting(runtimes="x"), 400, "invalid request body"),
        ]:
            assert await rig.post("/register", body, status=status) == {"error": error}

        profiles = await rig.get(f"/workspaces/{world.workspace_id}/runtime-profiles")
        names = [profile["display_name"] for profile in profiles["runtime_profiles"]]
        assert sorted(names) == ["acme", "broken"]
        repos = await rig.get(f"/workspaces/{world.workspace_id}/repos")
        assert repos["repos_version"] == first["repos_version"]


@pytest.mark.spec("01 §3.2", "POST /api/daemon/deregister")
async def test_signing_off_and_beating() -> None:
    async with open_rig() as rig:
        stranger = await make_world(rig.database)
        mine = rig.world.runtime_id
        ids = [mine, stranger.runtime_id, new_id()]
        assert await rig.post("/deregister", {"runtime_ids": ids}) == {"status": "ok"}
        assert rig.events("daemon:register") == [{"action": "deregister"}]
        rows = await rig.database.read(
            lambda conn: conn.fetch("select id, status from agent_runtime")
        )
        statuses = {row["id"]: row["status"] for row in rows}
        assert statuses == {mine: "offline", stranger.runtime_id: "online"}
        for body, error in [
            ({"runtime_ids": None}, "runtime_ids is required"),
            ({"runtime_ids": [mine, "x"]}, "invalid runtime_ids"),
            ({"runtime_ids": "x"}, "invalid request body"),
        ]:
            assert await rig.post("/deregister", body, status=400) == {"error": error}

        beat = await rig.post("/heartbeat", {"runtime_id": mine, "supports_batch_import": True})
        assert beat == {
            "status": "ok",
            "feature_flags": {"version": 1, "flags": {"runtime_brief_slim": "off"}},
        }
        assert rig.events("daemon:register")[-1] == {"action": "online"}
        for body, status, error in [
            ({}, 400, "runtime_id is required"),
            ({"runtime_id": "x"}, 400, "invalid runtime_id"),
            ({"runtime_id": 1}, 400, "invalid request body"),
            ({"runtime_id": new_id()}, 404, "runtime not found"),
            ({"runtime_id": stranger.runtime_id}, 404, "not found"),
        ]:
            assert await rig.post("/heartbeat", body, status=status) == {"error": error}

        async def seen_at(conn: Connection) -> Any:
            return await conn.fetchval("select last_seen_at from agent_runtime where id = $1", mine)

        before = await rig.database.read(seen_at)
        await rig.post("/heartbeat", {"runtime_id": mine})
        assert await rig.database.read(seen_at) == before
        await rig.database.write(
            lambda conn: conn.execute(
                "update agent_runtime set last_seen_at = now() - interval '41 s'"
            )
        )
        await rig.post("/heartbeat", {"runtime_id": mine})
        assert await rig.database.read(seen_at) > before


async def test_orphans_are_recovered() -> None:
    async with open_rig() as rig:
        await rig.running()
        path = f"/runtimes/{rig.world.runtime_id}/recover-orphans"
        assert await rig.post(path, {}) == {"orphaned": 1, "retried": 1}
        assert await rig.post(path, {}) == {"orphaned": 0, "retried": 0}
        assert rig.events("task:failed")[0]["failure_reason"] == "runtime_recovery"
        assert (await rig.claim())["attempt"] == 2


async def test_a_runtime_without_an_owner() -> None:
    async with open_rig() as rig:
        await rig.assign()
        await rig.database.write(
            lambda conn: conn.execute("update agent_runtime set owner_id=null")
        )
        path = f"/runtimes/{rig.world.runtime_id}/tasks/claim"
        # Nobody's machine answers to nobody: its daemon registers again, and then it has an owner.
        answer = await rig.post(path, {}, status=404)
        assert answer == {"error": "runtime not found"}


TASK_CALLS: list[tuple[str, str, Any]] = [
    ("GET", "status", None),
    ("POST", "start", {}),
    ("POST", "wait-local-directory", {}),
    ("POST", "progress", {"summary": "x"}),
    ("POST", "messages", {"messages": [{"seq": 1, "type": "text"}]}),
    ("GET", "messages", None),
    ("POST", "session", {"session_id": "s"}),
    ("POST", "usage", {"usage": []}),
    ("POST", "complete", {}),
    ("POST", "fail", {}),
    ("GET", "gc-check", None),
]

RUNTIME_CALLS: list[tuple[str, str]] = [
    ("POST", "tasks/claim"),
    ("GET", "tasks/pending"),
    ("POST", "recover-orphans"),
]


async def test_wrong_ids_and_foreign_rows() -> None:
    async with open_rig() as rig:
        stranger = await make_world(rig.database)
        foreign = await rig.database.write(lambda conn: make_task(conn, stranger))
        foreign_issue = await rig.database.write(lambda conn: make_issue(conn, stranger))
        for method, call, body in TASK_CALLS:
            for task_id, status, error in [
                ("x", 400, "invalid task_id"),
                (new_id(), 404, "task not found"),
                (foreign, 404, "not found"),
            ]:
                answer = await rig.http.request(
                    method, f"/api/daemon/tasks/{task_id}/{call}", json=body
                )
                got = (answer.status_code, answer.json())
                assert got == (status, {"error": error}), (call, task_id)
        for method, call in RUNTIME_CALLS:
            for runtime_id, status, error in [
                ("x", 400, "invalid runtime_id"),
                (new_id(), 404, "runtime not found"),
                (stranger.runtime_id, 404, "not found"),
            ]:
                answer = await rig.http.request(method, f"/api/daemon/runtimes/{runtime_id}/{call}")
                got = (answer.status_code, answer.json())
                assert got == (status, {"error": error}), (call, runtime_id)
        for issue_id, status, error in [
            ("x", 400, "invalid issue_id"),
            (new_id(), 404, "issue not found"),
            (foreign_issue.id, 404, "not found"),
        ]:
            answer = await rig.get(f"/issues/{issue_id}/gc-check", status=status)
            assert answer == {"error": error}
        for where, status, error in [
            ("x", 400, "invalid workspace_id"),
            (new_id(), 404, "not found"),
            (stranger.workspace_id, 404, "not found"),
        ]:
            answer = await rig.get(f"/workspaces/{where}/repos", status=status)
            assert answer == {"error": error}
        task = await rig.running()
        path = f"/tasks/{task['id']}/prepare-lease"
        for runtime_id, error in [
            (new_id(), "runtime not found"),
            (stranger.runtime_id, "not found"),
        ]:
            answer = await rig.post(f"/runtimes/{runtime_id}{path}", {}, status=404)
            assert answer == {"error": error}
        untouched = await rig.database.read(lambda conn: conn.fetchrow(SQL.get_task, foreign))
        assert untouched is not None
        assert untouched["status"] == "queued"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        (
            b'{"messages": 1, "usage": 1, "output": 1, "error": 1, "summary": 1, "session_id": 1,'
            b' "reason": 1}'
        ),
    ],
)
async def test_bad_bodies(body: bytes) -> None:
    async with open_rig() as rig:
        task = await rig.running()
        for method, call, _ in TASK_CALLS:
            if method == "GET" or call == "start":
                continue
            if call == "wait-local-directory" and not body:
                continue  # it may be left out there
            answer = await rig.http.post(f"/api/daemon/tasks/{task['id']}/{call}", content=body)
            got = (answer.status_code, answer.json())
            assert got == (400, {"error": "invalid request body"}), call


async def test_numbers_out_of_range() -> None:
    async with open_rig() as rig:
        task = await rig.running()
        path = f"/tasks/{task['id']}"
        for seq in (-1, 2**31, 10**30):
            body = {"messages": [{"seq": seq, "type": "text"}]}
            await rig.post(f"{path}/messages", body, status=400)
        usage = {"model": "m", "input_tokens": 10**30, "output_tokens": -5}
        assert await rig.post(f"{path}/usage", {"usage": [usage]}) == {"status": "ok"}
        progress = {"summary": "x\0", "step": 10**30}
        assert await rig.post(f"{path}/progress", progress) == {"status": "ok"}
        assert await rig.get(f"{path}/messages?since={10**30}", status=400)
        refused = await rig.post(f"{path}/session", {}, status=400)
        assert refused == {"error": "session_id or work_dir required"}


async def test_which_tokens_open_the_door() -> None:
    async with open_rig() as rig:
        world = rig.world
        stranger = await make_world(rig.database)
        task = await rig.running()
        tokens = [mint_token(DAEMON_TOKEN) for _ in range(3)]

        async def store(conn: Connection) -> None:
            for token, where, life in zip(
                tokens,
                (world.workspace_id, stranger.workspace_id, world.workspace_id),
                ("1 hour", "1 hour", "-1 hour"),
                strict=True,
            ):
                await conn.execute(
                    "insert into daemon_token (workspace_id, daemon_id, token_hash, expires_at)"
                    " select $1, daemon_id, $2, now() + $3::text::interval"
                    " from agent_runtime where id = $4",
                    where,
                    hash_token(token),
                    life,
                    world.runtime_id,
                )

        await rig.database.write(store)
        path = f"/api/daemon/tasks/{task['id']}/status"
        mine, foreign, expired = tokens
        for header, status, error in [
            (None, 401, "missing authorization header"),
            ("Basic x", 401, "invalid authorization format"),
            (f"Bearer {mine}", 200, None),
            (f"Bearer {foreign}", 404, "not found"),
            (f"Bearer {expired}", 401, "invalid daemon token"),
            (f"Bearer {task['auth_token']}", 401, "invalid token"),
            ("Bearer mul_" + "0" * 40, 401, "invalid token"),
            ("Bearer nonsense", 401, "invalid token"),
        ]:
            headers = {} if header is None else {"authorization": header}
            answer = await rig.anonymous.get(path, headers=headers)
            assert answer.status_code == status, header
            if error is not None:
                assert answer.json() == {"error": error}, header


async def test_a_broken_database_is_never_a_404(error_log: Any) -> None:
    async with open_rig() as rig:
        task = await rig.running()
        await rig.database.write(lambda conn: conn.execute("alter table member rename to gone"))
        for path in (
            f"/tasks/{task['id']}/status",
            f"/runtimes/{rig.world.runtime_id}/tasks/pending",
        ):
            assert await rig.get(path, status=500) == {"error": "internal error"}
    error_log.records.clear()


async def test_a_comment_reaches_the_agent_with_its_context() -> None:
    async with open_rig() as rig:
        issue = await rig.database.write(lambda conn: make_issue(conn, rig.world))

        async def talk(conn: Connection) -> str:
            comment_id = await make_comment(conn, issue, rig.world.user_id, "please retry")
            await enqueue.comment_created(
                conn,
                issue,
                comment_id=comment_id,
                content="please retry",
                parent_id=None,
                actor=rig.world.actor,
            )
            return comment_id

        comment_id = await rig.database.write(talk)
        task = await rig.claim()
        assert task["kind"] == "comment"
        assert task["trigger_comment_id"] == task["trigger_thread_id"] == comment_id
        assert task["trigger_comment_content"] == "please retry"
        assert "new_comment_count" not in task
        assert "prior_session_id" not in task
