"""The server as the daemon sees it: one method per endpoint, one attempt per call.

Every call ends within its own deadline, and everything that can go wrong is an ApiError that says
whether trying again could help. Retrying is the business of those who know what a repetition
means. Heartbeats, claims and status polls have their own connections, so that uploads never make
a healthy daemon look dead; neither pool has a limit of its own, because a contended httpcore pool
loses connections when requests are cancelled (trio-notes §2.11).
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import attrs
import httpx
import trio

from daemon.config import Config
from shared import __version__, codec
from shared.wire.runtime import (
    SKILL_BUNDLES,
    Beat,
    DeregisterRequest,
    HeartbeatRequest,
    ProfilesReply,
    RegisterReply,
    RegisterRequest,
    ReposReply,
    RuntimeProfile,
    Workspace,
)
from shared.wire.task import (
    ClaimedTask,
    ClaimReply,
    CompleteRequest,
    FailRequest,
    MessagesRequest,
    ModelUsage,
    ProgressRequest,
    RecoverReply,
    ResolveRequest,
    ResolveResponse,
    SessionRequest,
    SkillBundle,
    SkillRef,
    StatusReply,
    Task,
    TaskMessage,
    UsageRequest,
    WaitRequest,
)

T = TypeVar("T")

CALL: Final = 30.0
"""Seconds a call may take unless a tighter deadline is stated (spec 01 §1.4)."""
RENEW: Final = 15.0
LIST: Final = 15.0
LEASE: Final = 10.0
MESSAGES: Final = 5.0
SESSION: Final = 5.0
DEREGISTER: Final = 5.0

ERROR_TEXT: Final = 4096
"""Bytes kept of an error body."""

KEEP_ALIVE: Final = 4.0
"""Seconds a connection is kept unused: less than servers do (5 s is usual), or they race us."""

_BULK_CALLS: Final = 64
"""Uploads at a time: three for each of the default 20 tasks, above it they only queue."""

_SYSTEMS: Final = {"darwin": "macos", "win32": "windows", "linux": "linux"}


class ApiError(Exception):
    """A call failed. `status` is 0 when no answer was had; `text` is the body's first part."""

    def __init__(self, call: str, status: int, text: str) -> None:
        super().__init__(f"{call}: {status} {text}" if status else f"{call}: {text}")
        self.call = call
        self.status = status
        self.text = text

    def _says(self, phrase: str) -> bool:
        return self.status == 404 and phrase in self.text.lower()

    @property
    def runtime_gone(self) -> bool:
        return self._says("runtime not found")

    @property
    def task_gone(self) -> bool:
        return self._says("task not found")

    @property
    def workspace_gone(self) -> bool:
        return self._says("workspace not found")

    @property
    def unauthorized(self) -> bool:
        return self.status == 401


class Transient(ApiError):
    """Trying again may help: no answer, an unreadable one, 5xx, 408 or 429."""


class Rejected(ApiError):
    """Trying the same again is useless: any other 4xx."""


SIGN_IN: Final = (401, 403)
"""Refusals of this daemon, not of what it asked: they pass when it is signed in again."""


@attrs.frozen(kw_only=True)
class GcCheck:
    """Issues and chats tell `updated_at`, runs and tasks `completed_at`."""

    status: str
    updated_at: str = ""
    completed_at: str = ""


@attrs.frozen(kw_only=True)
class Renewal:
    """`expires_at` is empty for a token that never expires."""

    expires_at: str = ""
    renewed: bool = False


class Client:
    """The endpoints of spec 01 §3. Every method raises Transient or Rejected, and nothing else."""

    def __init__(self, control: httpx.AsyncClient, bulk: httpx.AsyncClient) -> None:
        self._control = control
        self._bulk = bulk
        self._bulk_limit = trio.CapacityLimiter(_BULK_CALLS)

    # -- this daemon

    def use_token(self, token: str) -> None:
        """Sign every call from now on with this token."""
        for connections in (self._control, self._bulk):
            connections.headers["Authorization"] = f"Bearer {token}"

    async def renew_token(self) -> Renewal:
        return await self._post("/api/tokens/current/renew", {}, Renewal, deadline=RENEW)

    async def workspaces(self) -> list[Workspace]:
        return await self._get("/api/workspaces", list[Workspace], deadline=LIST)

    async def repos(self, workspace_id: str) -> ReposReply:
        return await self._get(f"/api/daemon/workspaces/{workspace_id}/repos", ReposReply)

    async def gc_check(self, path: str) -> GcCheck:
        """Ask how a directory's owner is doing; `path` is e.g. `issues/{id}` (spec 01 §3.14)."""
        return await self._get(f"/api/daemon/{path}/gc-check", GcCheck)

    async def profiles(self, workspace_id: str) -> list[RuntimeProfile]:
        path = f"/api/daemon/workspaces/{workspace_id}/runtime-profiles"
        return (await self._get(path, ProfilesReply)).runtime_profiles

    async def register(self, request: RegisterRequest) -> RegisterReply:
        return await self._post("/api/daemon/register", request, RegisterReply)

    async def deregister(self, runtime_ids: Sequence[str]) -> None:
        request = DeregisterRequest(runtime_ids=list(runtime_ids))
        await self._post("/api/daemon/deregister", request, None, deadline=DEREGISTER)

    # -- one runtime

    async def heartbeat(self, runtime_id: str) -> Beat:
        request = HeartbeatRequest(runtime_id=runtime_id, supports_batch_import=True)
        return await self._post("/api/daemon/heartbeat", request, Beat)

    async def claim(self, runtime_id: str) -> ClaimedTask | None:
        """Take the runtime's next task. An answer that is lost is redelivered after 90 s."""
        path = f"/api/daemon/runtimes/{runtime_id}/tasks/claim"
        return (await self._post(path, {}, ClaimReply)).task

    async def recover_orphans(self, runtime_id: str) -> RecoverReply:
        """Fail every task in flight on the runtime: only while this process holds none of them."""
        path = f"/api/daemon/runtimes/{runtime_id}/recover-orphans"
        return await self._post(path, {}, RecoverReply)

    async def report_result(self, runtime_id: str, path: str, result: dict[str, Any]) -> None:
        """Answer a pending request; `path` is e.g. `models/{id}` (spec 01 §3.16 to §3.19)."""
        await self._post(f"/api/daemon/runtimes/{runtime_id}/{path}/result", result, None)

    # -- one task

    async def prepare_lease(self, runtime_id: str, task_id: str) -> None:
        path = f"/api/daemon/runtimes/{runtime_id}/tasks/{task_id}/prepare-lease"
        await self._post(path, {}, None, deadline=LEASE)

    async def resolve_bundles(
        self, runtime_id: str, task_id: str, refs: Sequence[SkillRef]
    ) -> list[SkillBundle]:
        """Fetch skills whole while their task is being prepared; changed ones as they are now."""
        path = f"/api/daemon/runtimes/{runtime_id}/tasks/{task_id}/skill-bundles/resolve"
        request = ResolveRequest(skills=list(refs))
        return (await self._post(path, request, ResolveResponse, bulk=True)).bundles

    async def start(self, task_id: str) -> Task:
        return await self._post(_task(task_id, "start"), {}, Task)

    async def wait_local_directory(self, task_id: str, reason: str) -> None:
        request = WaitRequest(reason=reason)
        await self._post(_task(task_id, "wait-local-directory"), request, None)

    async def status(self, task_id: str) -> StatusReply:
        return await self._get(_task(task_id, "status"), StatusReply)

    async def go_on(self, task_id: str) -> None:
        """Take back a task that the server had given up with this machine (ours)."""
        await self._post(_task(task_id, "go-on"), {}, None)

    async def progress(self, task_id: str, request: ProgressRequest) -> None:
        await self._post(_task(task_id, "progress"), request, None, bulk=True)

    async def messages(self, task_id: str, messages: Sequence[TaskMessage]) -> None:
        request = MessagesRequest(messages=list(messages))
        path = _task(task_id, "messages")
        await self._post(path, request, None, deadline=MESSAGES, bulk=True)

    async def session(self, task_id: str, request: SessionRequest) -> None:
        await self._post(_task(task_id, "session"), request, None, deadline=SESSION, bulk=True)

    async def usage(self, task_id: str, usage: Sequence[ModelUsage]) -> None:
        request = UsageRequest(usage=list(usage))
        await self._post(_task(task_id, "usage"), request, None, bulk=True)

    async def complete(self, task_id: str, request: CompleteRequest) -> Task:
        """Report success. Answers the row as it is now: a wrong state is not an error."""
        return await self._post(_task(task_id, "complete"), request, Task, bulk=True)

    async def fail(self, task_id: str, request: FailRequest) -> Task:
        """Report failure. Answers the row as it is now: a wrong state is not an error."""
        return await self._post(_task(task_id, "fail"), request, Task, bulk=True)

    # -- how

    async def _get(self, path: str, kind: type[T], *, deadline: float = CALL) -> T:
        body = await self._call("GET", path, None, deadline=deadline, bulk=False)
        return _decode(f"GET {path}", body, kind)

    async def _post(
        self,
        path: str,
        request: Any,
        kind: type[T] | None,
        *,
        deadline: float = CALL,
        bulk: bool = False,
    ) -> T:
        """Post and read the answer as `kind`; None takes any JSON, or nothing.

        A page that something between us and the server put in the way is no answer: believing it
        would lose what was sent.
        """
        body = await self._call("POST", path, request, deadline=deadline, bulk=bulk)
        if kind is not None:
            return _decode(f"POST {path}", body, kind)
        if body.strip():
            _decode(f"POST {path}", body, Any)
        return None  # type: ignore[return-value]

    async def _call(
        self, method: str, path: str, request: Any, *, deadline: float, bulk: bool
    ) -> bytes:
        call = f"{method} {path}"
        content = None if request is None else codec.encode(request)
        headers = None if request is None else {"Content-Type": "application/json"}
        try:
            with trio.fail_after(deadline):
                if bulk:
                    async with self._bulk_limit:
                        answer = await self._bulk.request(
                            method, path, content=content, headers=headers
                        )
                else:
                    answer = await self._control.request(
                        method, path, content=content, headers=headers
                    )
        except trio.TooSlowError as error:
            raise Transient(call, 0, f"no answer within {deadline:g} s") from error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise Transient(call, 0, str(error) or type(error).__name__) from error
        if answer.status_code < 400:
            return answer.content
        text = answer.content[:ERROR_TEXT].decode("utf-8", "replace").strip()
        transient = answer.status_code >= 500 or answer.status_code in (408, 429)
        raise (Transient if transient else Rejected)(call, answer.status_code, text)


def identity_headers() -> dict[str, str]:
    """The headers that say what is calling, on HTTP and on the websocket (spec 01 §1.3)."""
    return {
        "X-Client-Platform": "daemon",
        "X-Client-Version": __version__,
        "X-Client-OS": _SYSTEMS.get(sys.platform, sys.platform),
    }


@asynccontextmanager
async def open_client(
    config: Config, *, transport: httpx.AsyncBaseTransport | None = None
) -> AsyncIterator[Client]:
    """Open the connections to the configured server; `transport` replaces the network in tests."""
    headers = {
        "Authorization": f"Bearer {config.token}",
        **identity_headers(),
        "X-Client-Capabilities": SKILL_BUNDLES,
    }

    def pool() -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=config.server_url,
            headers=headers,
            transport=transport,
            timeout=httpx.Timeout(CALL, connect=10.0),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE
            ),
            follow_redirects=True,
            # a proxy for the world at large is no way to a server on this machine
            trust_env=not _is_local(config.server_url),
        )

    async with pool() as control, pool() as bulk:
        yield Client(control, bulk)


def _task(task_id: str, what: str) -> str:
    return f"/api/daemon/tasks/{task_id}/{what}"


def _decode(call: str, body: bytes, kind: type[T] | Any) -> T:
    try:
        decoded: T = codec.decode(body, kind)
    except codec.DecodeError as error:
        raise Transient(call, 0, f"unreadable answer: {error}") from error
    return decoded


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
