"""A scripted model of the server, in the test's process and on its virtual clock.

It keeps just enough state to tell right from wrong: which runtimes exist and when they were last
heard of, which tasks are where, every transcript row by seq. Each request is recorded with its
time. Any route can be made to fail, once or for good, in every way a network can (`Fault`).
"""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import httpx
import trio
import trio_websocket

from daemon.client import Client, open_client
from daemon.config import Config
from daemon.wakeups import HANDSHAKE
from shared.home import Home
from shared.wire.runtime import BEAT_MANY, CLAIM_MANY, UNIQUE_ROWS
from shared.wire.task import ACTIVE, CANCELLED, COMPLETED, DISPATCHED, FAILED, QUEUED, RUNNING
from tests.support.network import Fault, MemoryTransport, Reply, json_reply, memory_websocket

WORKSPACE = "11111111-1111-4111-8111-111111111111"


def uid(name: str) -> str:
    """A stable UUID for a readable name."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def make_config(home: Path, **changes: Any) -> Config:
    """A daemon's configuration for tests: everything default, home in a temporary directory."""
    values: dict[str, Any] = {
        "home": Home(home),
        "server_url": "http://server",
        "token": "mul_" + "0" * 40,
        "daemon_id": uid("daemon"),
        "machine_key": "k" * 40,
        "device_name": "box",
        "workspaces_root": home / "workspaces",
        "min_free_disk": 0,
        "gc_enabled": False,  # it works on disk, in threads
        **changes,
    }
    return Config(**values)


@attrs.frozen
class Call:
    """One request as it reached the network, `at` on Trio's clock; `status` 0 if unanswered."""

    at: float
    method: str
    path: str
    body: Any
    headers: dict[str, str] = attrs.field(repr=False)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def matches(self, route: str) -> bool:
        """Whether the regular expression matches `METHOD /path` or `METHOD /path BODY`."""
        whole = f"{self} {json.dumps(self.body)}"
        return bool(re.fullmatch(route, str(self)) or re.fullmatch(route, whole))


@attrs.define
class FakeTask:
    """One row of the queue; `claimed` is the payload a claim answers with."""

    id: str
    runtime_id: str
    status: str = QUEUED
    claimed: dict[str, Any] = attrs.field(factory=dict)
    rows: dict[int, dict[str, Any]] = attrs.field(factory=dict)
    usage: dict[tuple[str, str], dict[str, Any]] = attrs.field(factory=dict)
    session: dict[str, Any] = attrs.field(factory=dict)
    result: dict[str, Any] | None = None
    deliveries: int = 0
    failure_reason: str = ""
    presumed: bool = False
    doubled: list[int] = attrs.field(factory=list)
    """What came twice while the server did not say that it keeps one row for each number."""
    replaced: bool = False
    """A new attempt has begun, so a task that was given up cannot be taken back."""

    @property
    def seqs(self) -> list[int]:
        return sorted(self.rows)


class FakeServer:
    """The model. `open_fake_server` makes one; tests read and change its fields directly."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._always: dict[str, Fault] = {}
        self.transport = MemoryTransport(nursery, self._handle, self._next_fault)
        self.workspaces: dict[str, str] = {WORKSPACE: "Bullpen"}
        self.profiles: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.runtimes: dict[str, dict[str, Any]] = {}
        self.tasks: dict[str, FakeTask] = {}
        self.bundles: dict[str, dict[str, Any]] = {}
        self.calls: list[Call] = []
        self.beats: list[tuple[float, str, str]] = []
        self.deregistered: list[tuple[float, tuple[str, ...]]] = []
        self.recovered: list[str] = []
        self.pending: dict[str, dict[str, Any]] = defaultdict(dict)
        self.results: dict[str, dict[str, Any]] = {}
        self.sockets: list[_Socket] = []
        self.handshakes: list[tuple[float, tuple[str, ...]]] = []
        self.refuse_sockets: int | None = None
        self.refusal = b'{"error":"runtime not found"}'
        self.stall_sockets = False
        self.capabilities: list[str] = []
        self.frames: list[dict[str, Any]] = []
        self.answer_beats = True
        self._generation = 0
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = [
            (method, re.compile(pattern + "$"), handler)
            for method, pattern, handler in (
                ("POST", "/api/tokens/current/renew", self._renew),
                ("GET", "/readyz", self._ready),
                ("GET", "/api/workspaces", self._workspaces),
                ("GET", "/api/daemon/workspaces/([^/]+)/runtime-profiles", self._profiles),
                ("GET", "/api/daemon/workspaces/([^/]+)/repos", self._repos),
                ("POST", "/api/daemon/register", self._register),
                ("POST", "/api/daemon/deregister", self._deregister),
                ("POST", "/api/daemon/heartbeat", self._heartbeat),
                ("POST", "/api/daemon/claims", self._claim_many),
                ("POST", "/api/daemon/runtimes/([^/]+)/tasks/claim", self._claim),
                ("POST", "/api/daemon/runtimes/([^/]+)/recover-orphans", self._recover),
                ("POST", "/api/daemon/runtimes/[^/]+/tasks/([^/]+)/prepare-lease", self._lease),
                ("POST", "/api/daemon/runtimes/[^/]+/tasks/.+/skill-bundles/resolve", self._skills),
                ("POST", "/api/daemon/runtimes/([^/]+)/(.+)/result", self._result),
                ("POST", "/api/daemon/runtimes/([^/]+)/usage", self._local_usage),
                ("GET", "/api/daemon/tasks/([^/]+)/status", self._status),
                ("GET", "/api/daemon/tasks/([^/]+)/messages", self._stored),
                ("POST", "/api/daemon/tasks/([^/]+)/([a-z-]+)", self._task_call),
            )
        ]

    # -- what tests do

    def fail_next(self, route: str, *faults: Fault) -> None:
        """Let the next requests that match the regular expression go wrong (`Call.matches`)."""
        self._faults[route].extend(faults)

    def fail_always(self, route: str, fault: Fault | None) -> None:
        """Let every request that matches go wrong, until called with None."""
        if fault is None:
            self._always.pop(route, None)
        else:
            self._always[route] = fault

    def count(self, route: str) -> int:
        return len(self.requests(route))

    def requests(self, route: str) -> list[Call]:
        """The requests that match the regular expression, in order."""
        return [call for call in self.calls if call.matches(route)]

    def times(self, route: str) -> list[float]:
        return [call.at for call in self.requests(route)]

    def runtime_id(self, provider: str, workspace_id: str = WORKSPACE) -> str:
        """The id of the one runtime of a provider."""
        [found] = [
            key
            for key, row in self.runtimes.items()
            if row["provider"] == provider and row["workspace_id"] == workspace_id
        ]
        return found

    def delete_runtime(self, runtime_id: str) -> None:
        """Lose a runtime's row: registering again makes a new one with a new id."""
        del self.runtimes[runtime_id]

    def add_task(self, runtime_id: str, task_id: str = "", **claimed: Any) -> FakeTask:
        """Queue a task; `claimed` adds to the claim payload."""
        task_id = task_id or str(uuid.uuid4())
        payload = {
            "id": task_id,
            "agent_id": uid("agent"),
            "runtime_id": runtime_id,
            "issue_id": uid("issue"),
            "workspace_id": WORKSPACE,
            "kind": "direct",
            "agent": {"id": uid("agent"), "name": "Agent", "instructions": ""},
            "auth_token": "mat_" + "0" * 40,
            **claimed,
        }
        task = self.tasks[task_id] = FakeTask(task_id, runtime_id, claimed=payload)
        return task

    async def push(self, kind: str, payload: Any) -> None:
        """Send a frame to every open daemon socket."""
        for socket in tuple(self.sockets):
            await socket.send(json.dumps({"type": kind, "payload": payload}))

    def wake(self, runtime_id: str) -> None:
        """Announce a task to whoever listens for the runtime."""
        payload = {"runtime_id": runtime_id, "task_id": "t"}
        self._nursery.start_soon(self.push, "daemon:task_available", payload)

    def drop_sockets(self) -> None:
        """Cut every open websocket without a word."""
        for socket in tuple(self.sockets):
            socket.scope.cancel()

    def connect(
        self, url: str, headers: list[tuple[bytes, bytes]]
    ) -> AbstractAsyncContextManager[Any]:
        """Stand in for `daemon.wakeups.connect`."""
        return self._connect(url, headers)

    # -- the network's side

    def _next_fault(self, request: httpx.Request) -> Fault | None:
        call = Call(
            at=trio.current_time(),
            method=request.method,
            path=request.url.path,
            body=json.loads(request.content) if request.content else None,
            headers=dict(request.headers),
        )
        self.calls.append(call)
        for route, faults in self._faults.items():
            if faults and call.matches(route):
                return faults.popleft()
        for route, fault in self._always.items():
            if call.matches(route):
                return fault
        return None

    async def _handle(self, request: httpx.Request) -> Reply:
        await trio.lowlevel.checkpoint()
        body = json.loads(request.content) if request.content else None
        for method, pattern, handler in self._routes:
            match = pattern.match(request.url.path)
            if match and method == request.method:
                return handler(body, *match.groups())
        return json_reply({"error": "no such route in the fake server"}, 501)

    @asynccontextmanager
    async def _connect(
        self, url: str, headers: list[tuple[bytes, bytes]]
    ) -> AsyncIterator[trio_websocket.WebSocketConnection]:
        parts = urlsplit(url)
        ids = tuple(parse_qs(parts.query)["runtime_ids"][0].split(","))
        self.handshakes.append((trio.current_time(), ids))
        await trio.lowlevel.checkpoint()
        if self.stall_sockets:  # taken, and not answered: cut by the deadline of `wakeups.connect`
            await trio.sleep(HANDSHAKE)
            raise trio.TooSlowError
        if self.refuse_sockets is not None:
            raise trio_websocket.ConnectionRejected(self.refuse_sockets, (), self.refusal)
        socket = _Socket(
            self, ids, {name.decode().lower(): value.decode() for name, value in headers}
        )
        path = f"{parts.path}?{parts.query}"
        async with memory_websocket(socket.serve, self._nursery, path, headers) as connection:
            yield connection

    # -- the server's side

    def _local_usage(self, body: Any, runtime_id: str) -> Reply:
        if runtime_id not in self.runtimes:
            return json_reply({"error": "runtime not found"}, 404)
        return json_reply({"status": "ok"})

    def _renew(self, body: Any) -> Reply:
        return json_reply({"expires_at": "", "renewed": False})

    def _ready(self, body: Any) -> Reply:
        return json_reply({"status": "ok", "checks": {"db": "ok", "migrations": "ok"}})

    def _workspaces(self, body: Any) -> Reply:
        return json_reply(
            [
                {"id": key, "name": name, "slug": name.lower()}
                for key, name in self.workspaces.items()
            ]
        )

    def _profiles(self, body: Any, workspace_id: str) -> Reply:
        rows = self.profiles[workspace_id]
        return json_reply({"workspace_id": workspace_id, "runtime_profiles": rows})

    def _repos(self, body: Any, workspace_id: str) -> Reply:
        return json_reply({"workspace_id": workspace_id, "repos": [], "repos_version": ""})

    def _register(self, body: Any) -> Reply:
        if body["workspace_id"] not in self.workspaces:
            return json_reply({"error": "workspace not found"}, 404)
        rows = [self._upsert(body, spec) for spec in body["runtimes"]]
        told = {"runtimes": rows, "repos": [], "repos_version": "e3", "settings": None}
        return json_reply(told | ({"capabilities": self.capabilities} if self.capabilities else {}))

    def _upsert(self, body: Any, spec: dict[str, Any]) -> dict[str, Any]:
        profile = spec.get("profile_id", "")
        key = (body["workspace_id"], body["daemon_id"], profile or spec["type"])
        for row in self.runtimes.values():
            if row["key"] == key:
                row.update(name=spec["name"], status="online")
                return _public(row)
        self._generation += 1
        runtime_id = uid(f"{key}{self._generation}")
        row = self.runtimes[runtime_id] = {
            "id": runtime_id,
            "key": key,
            "workspace_id": body["workspace_id"],
            "provider": spec["type"],
            "name": spec["name"],
            "status": "online",
            "profile_id": profile or None,
        }
        return _public(row)

    def _deregister(self, body: Any) -> Reply:
        ids = tuple(body["runtime_ids"])
        self.deregistered.append((trio.current_time(), ids))
        for runtime_id in ids:
            if runtime_id in self.runtimes:
                self.runtimes[runtime_id]["status"] = "offline"
        return json_reply({"status": "ok"})

    def beat(self, runtime_id: str, way: str) -> dict[str, Any] | None:
        """Note a beat; None if there is no such runtime."""
        if runtime_id not in self.runtimes:
            return None
        self.beats.append((trio.current_time(), runtime_id, way))
        return {"status": "ok", **self.pending.pop(runtime_id, {})}

    def _heartbeat(self, body: Any) -> Reply:
        told = self.beat(body["runtime_id"], "http")
        return json_reply({"error": "runtime not found"}, 404) if told is None else json_reply(told)

    def _claim(self, body: Any, runtime_id: str) -> Reply:
        if runtime_id not in self.runtimes:
            return json_reply({"error": "runtime not found"}, 404)
        for task in self.tasks.values():
            if task.runtime_id == runtime_id and task.status == QUEUED:
                task.status = DISPATCHED
                task.deliveries += 1
                return json_reply({"task": {**task.claimed, "status": DISPATCHED}})
        return json_reply({"task": None})

    def _claim_many(self, body: Any) -> Reply:
        """As our server does: one task each in rounds, at most `slots` in all."""
        if CLAIM_MANY not in self.capabilities:
            return Reply(404, b"404 page not found")
        left, room = body["slots"], {row["runtime_id"]: row["slots"] for row in body["runtimes"]}
        given: dict[str, dict[str, Any]] = {key: {"runtime_id": key, "tasks": []} for key in room}
        hungry = list(room)
        while hungry and left:
            key = hungry.pop(0)
            told = json.loads(self._claim({}, key).body)
            if "error" in told:
                given[key]["error"] = told["error"]
            elif told["task"] is not None:
                given[key]["tasks"].append(told["task"])
                left -= 1
                if len(given[key]["tasks"]) < room[key]:
                    hungry.append(key)
        return json_reply({"claims": list(given.values())})

    def redeliver(self, task_id: str) -> None:
        """Let the next claim hand a dispatched task out again, as after a lost answer."""
        self.tasks[task_id].status = QUEUED

    def _recover(self, body: Any, runtime_id: str) -> Reply:
        if runtime_id not in self.runtimes:
            return json_reply({"error": "runtime not found"}, 404)
        self.recovered.append(runtime_id)
        orphans = [
            task
            for task in self.tasks.values()
            if task.runtime_id == runtime_id and task.status in ACTIVE - {QUEUED}
        ]
        for task in orphans:
            task.status, task.failure_reason = FAILED, "runtime_recovery"
        return json_reply({"orphaned": len(orphans), "retried": 0})

    def _result(self, body: Any, runtime_id: str, what: str) -> Reply:
        self.results[what] = body
        return json_reply({"status": "ok"})

    def _lease(self, body: Any, task_id: str) -> Reply:
        task = self.tasks.get(task_id)
        if task is None:
            return json_reply({"error": "task not found"}, 404)
        if task.status not in (DISPATCHED, "waiting_local_directory"):
            return json_reply({"error": "extend task prepare lease: no rows in result set"}, 400)
        return self._row(task)

    def _skills(self, body: Any) -> Reply:
        found = [self.bundles.get(ref["id"]) for ref in body["skills"]]
        if None in found:
            return json_reply({"error": "skill bundle not found"}, 404)
        return json_reply({"bundles": found})

    def _status(self, body: Any, task_id: str) -> Reply:
        task = self.tasks.get(task_id)
        if task is None:
            return json_reply({"error": "task not found"}, 404)
        told: dict[str, Any] = {"status": task.status}
        if task.presumed and task.status == FAILED:
            told["presumed"] = True
        return json_reply(told)

    def _stored(self, body: Any, task_id: str) -> Reply:
        task = self.tasks.get(task_id)
        if task is None:
            return json_reply({"error": "task not found"}, 404)
        return json_reply([task.rows[seq] for seq in task.seqs])

    def _task_call(self, body: Any, task_id: str, what: str) -> Reply:
        task = self.tasks.get(task_id)
        if task is None:
            return json_reply({"error": "task not found"}, 404)
        match what:
            case "start":
                if task.status not in (DISPATCHED, "waiting_local_directory"):
                    return json_reply({"error": "start task: no rows in result set"}, 400)
                task.status = RUNNING
                return self._row(task)
            case "wait-local-directory":
                if task.status != DISPATCHED:
                    text = "mark task waiting_local_directory: no rows in result set"
                    return json_reply({"error": text}, 400)
                task.status = "waiting_local_directory"
                return self._row(task)
            case "messages":
                for row in body["messages"]:
                    if row["seq"] in task.rows and UNIQUE_ROWS not in self.capabilities:
                        task.doubled.append(row["seq"])
                    task.rows.setdefault(row["seq"], row)
                return json_reply({"status": "ok"})
            case "cancel-ack":
                if task.status != "cancelled":
                    return json_reply({"error": "task is not cancelled"}, 400)
                return json_reply({"status": "ok"})
            case "session":
                task.session |= body
                return Reply(204, b"")
            case "usage":
                for row in body["usage"]:
                    task.usage[row["provider"], row["model"]] = row
                return json_reply({"status": "ok"})
            case "go-on":
                if task.status != RUNNING and not (task.presumed and not task.replaced):
                    return json_reply({"error": "go on with task: no rows in result set"}, 400)
                task.status = RUNNING
                return self._row(task)
            case "complete":
                if task.status == RUNNING:
                    task.status, task.result = COMPLETED, body
                return self._row(task)
            case "fail":
                if task.status in ACTIVE - {QUEUED}:
                    task.status, task.result = FAILED, body
                    task.failure_reason = body.get("failure_reason", "")
                return self._row(task)
            case "progress":
                return json_reply({"status": "ok"})
        return json_reply({"error": "no such route in the fake server"}, 501)

    def give_up(self, task_id: str) -> None:
        """Fail a task because its machine has been silent for too long."""
        task = self.tasks[task_id]
        task.status, task.failure_reason, task.presumed = FAILED, "runtime_offline", True

    def cancel_task(self, task_id: str) -> None:
        """A user cancels the task."""
        self.tasks[task_id].status = CANCELLED

    def _row(self, task: FakeTask) -> Reply:
        return json_reply(
            {"id": task.id, "runtime_id": task.runtime_id, "status": task.status, "kind": "direct"}
        )


class _Socket:
    """The server's end of one daemon websocket."""

    def __init__(
        self, server: FakeServer, runtime_ids: tuple[str, ...], headers: dict[str, str]
    ) -> None:
        self._server = server
        self.ids = runtime_ids
        self.headers = headers
        self._connection: trio_websocket.WebSocketConnection | None = None
        self.scope = trio.CancelScope()

    async def serve(self, connection: trio_websocket.WebSocketConnection) -> None:
        self._connection = connection
        self._server.sockets.append(self)
        try:
            with self.scope:
                while True:
                    await self._take(json.loads(await connection.get_message()))
        finally:
            self._server.sockets.remove(self)

    async def send(self, text: str) -> None:
        assert self._connection is not None
        with suppress(trio_websocket.ConnectionClosed):
            await self._connection.send_message(text)

    async def _take(self, received: dict[str, Any]) -> None:
        assert received["type"] == "daemon:heartbeat"
        payload = received["payload"]
        self._server.frames.append(payload)
        many = payload.get("runtime_ids", []) if BEAT_MANY in self._server.capabilities else []
        for runtime_id in [payload.get("runtime_id"), *many]:
            if runtime_id in self.ids and self._server.answer_beats:
                await self._acknowledge(runtime_id)

    async def _acknowledge(self, runtime_id: str) -> None:
        told = self._server.beat(runtime_id, "ws")
        if told is None:
            told = {"status": "runtime_gone", "runtime_gone": True}
        payload = {"runtime_id": runtime_id, **told}
        await self.send(json.dumps({"type": "daemon:heartbeat_ack", "payload": payload}))


def _public(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "key"}


@asynccontextmanager
async def open_fake_server() -> AsyncIterator[FakeServer]:
    """Run the model for a test; what its handlers still do is cancelled at the end."""
    async with trio.open_nursery() as nursery:
        yield FakeServer(nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_of(server: FakeServer, config: Config) -> AsyncIterator[Client]:
    """A client whose network is the model's."""
    async with open_client(config, transport=server.transport) as client:
        yield client
