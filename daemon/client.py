"""The server as the daemon sees it: one method per endpoint, one attempt per call.

Every call ends within its own deadline, and everything that can go wrong is an ApiError that says
whether trying again could help; what counts as the server's answer is in `answers.py`. Retrying is the business of those who know what a repetition
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

from daemon import answers
from daemon.answers import SIGN_IN, ApiError, Foreign, Rejected, Shape, Transient, Words
from daemon.config import Config
from daemon.runtimes.offers import Offers
from shared import __version__, codec
from shared.mailbox import Nudge
from shared.wire.runtime import (
    REPOSITORY_ACCESS,
    SKILL_BUNDLES,
    Beat,
    DayUsage,
    DeregisterRequest,
    HeartbeatRequest,
    ProfilesReply,
    RegisterReply,
    RegisterRequest,
    ReposReply,
    RuntimeProfile,
    UsageReport,
    Workspace,
)
from shared.wire.task import (
    ClaimedTask,
    ClaimManyReply,
    ClaimManyRequest,
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

__all__ = [
    "SIGN_IN",
    "ApiError",
    "Client",
    "Foreign",
    "GcCheck",
    "Rejected",
    "Renewal",
    "Transient",
    "identity_headers",
    "open_client",
]

T = TypeVar("T")

CALL: Final = 30.0
"""Seconds a call may take unless a tighter deadline is stated (spec 01 §1.4)."""
RENEW: Final = 15.0
LIST: Final = 15.0
LEASE: Final = 10.0
MESSAGES: Final = 5.0
SESSION: Final = 5.0
DEREGISTER: Final = 5.0

KEEP_ALIVE: Final = 4.0
"""Seconds a connection is kept unused: less than servers do (5 s is usual), or they race us."""

_BULK_CALLS: Final = 64
"""Uploads at a time: three for each of the default 20 tasks, above it they only queue."""

_STRANGE_FOR: Final = 90.0
"""Seconds a stranger's answer is told: above the longest wait between two attempts of a call."""

_READINESS_KEPT: Final = 3.5
"""Seconds after which a server's word on its own readiness is a fresh one (spec 01 §3.21)."""

_SYSTEMS: Final = {"darwin": "macos", "win32": "windows", "linux": "linux"}


@attrs.frozen(kw_only=True)
class GcCheck:
    """Issues and chats tell `updated_at`, runs and tasks `completed_at`."""

    status: str
    updated_at: str = ""
    completed_at: str = ""


@attrs.frozen(kw_only=True)
class StoredMessage:
    """What is read of a transcript row the server has."""

    seq: int


@attrs.frozen(kw_only=True)
class Renewal:
    """`expires_at` is empty for a token that never expires."""

    expires_at: str = ""
    renewed: bool = False


class Client:
    """The endpoints of spec 01 §3. Every method raises Transient or Rejected, and nothing else.

    `back` is nudged by the first call that is answered after one that was not.
    """

    def __init__(self, control: httpx.AsyncClient, bulk: httpx.AsyncClient) -> None:
        self._control = control
        self._bulk = bulk
        self._bulk_limit = trio.CapacityLimiter(_BULK_CALLS)
        self.offers = Offers()
        self.back = Nudge()
        self._away = False  # whether the last call was not answered by the server
        self._stranger: tuple[float, str, str] | None = None  # when, which call, what it said

    @property
    def problem(self) -> str:
        """What answers in the server's place, in a sentence for people; "" if nothing does."""
        if self._stranger is None or trio.current_time() - self._stranger[0] > _STRANGE_FOR:
            return ""
        return f"something answers in the server's place: {self._stranger[2]}"

    # -- this daemon

    def use_token(self, token: str) -> None:
        """Sign every call from now on with this token."""
        for connections in (self._control, self._bulk):
            connections.headers["Authorization"] = f"Bearer {token}"

    async def renew_token(self) -> Renewal:
        path, shape = "/api/tokens/current/renew", answers.keys("expires_at", "renewed")
        return await self._post(path, {}, Renewal, shape, answers.RENEW, deadline=RENEW)

    async def workspaces(self) -> list[Workspace]:
        """List what this daemon's owner is a member of."""
        kind = list[Workspace]
        return await self._get(
            "/api/workspaces", kind, answers.is_list, answers.NOTHING, deadline=LIST
        )

    async def repos(self, workspace_id: str) -> ReposReply:
        path = f"/api/daemon/workspaces/{workspace_id}/repos"
        shape = answers.keys("repos", "repos_version")
        return await self._get(path, ReposReply, shape, answers.WORKSPACE)

    async def gc_check(self, path: str) -> GcCheck:
        """Ask how a directory's owner is doing; `path` is e.g. `issues/{id}` (spec 01 §3.14).

        The error's `gone` says that the very owner asked about does not exist.
        """
        known = answers.GC_CHECK.get(path.split("/", 1)[0], answers.NOTHING)
        return await self._get(f"/api/daemon/{path}/gc-check", GcCheck, answers.has_status, known)

    async def profiles(self, workspace_id: str) -> list[RuntimeProfile]:
        path = f"/api/daemon/workspaces/{workspace_id}/runtime-profiles"
        shape = answers.keys("runtime_profiles")
        return (await self._get(path, ProfilesReply, shape, answers.NOTHING)).runtime_profiles

    async def register(self, request: RegisterRequest) -> RegisterReply:
        shape = answers.keys("runtimes")
        path = "/api/daemon/register"
        return await self._post(path, request, RegisterReply, shape, answers.REGISTER)

    async def deregister(self, runtime_ids: Sequence[str]) -> None:
        request = DeregisterRequest(runtime_ids=list(runtime_ids))
        path, known = "/api/daemon/deregister", answers.DEREGISTER
        await self._tell(path, request, known, deadline=DEREGISTER, bulk=False)

    async def surely_unauthorized(self) -> bool:
        """Take the second look at a refused token: a server without its database refuses all.

        False while the server says that it is not ready, or does not say anything.
        """
        await trio.sleep(_READINESS_KEPT)
        try:
            await self._get("/readyz", Any, answers.is_ok, answers.NOTHING)
        except ApiError as error:
            if not 400 <= error.status < 500:  # not every server has such a page
                return False
        try:
            await self.workspaces()
        except ApiError as error:
            return error.unauthorized
        return False

    # -- one runtime

    async def heartbeat(self, runtime_id: str) -> Beat:
        request = HeartbeatRequest(runtime_id=runtime_id, supports_batch_import=True)
        path = "/api/daemon/heartbeat"
        return await self._post(path, request, Beat, answers.has_status, answers.RUNTIME)

    async def claim(self, runtime_id: str) -> ClaimedTask | None:
        """Take the runtime's next task. An answer that is lost is redelivered after 90 s."""
        path = f"/api/daemon/runtimes/{runtime_id}/tasks/claim"
        shape = answers.keys("task")
        return (await self._post(path, {}, ClaimReply, shape, answers.RUNTIME)).task

    async def claim_many(self, request: ClaimManyRequest) -> ClaimManyReply:
        """Take tasks for many runtimes at once, where the server offers it (`CLAIM_MANY`)."""
        path, shape = "/api/daemon/claims", answers.keys("claims")
        return await self._post(path, request, ClaimManyReply, shape, answers.CLAIM_MANY)

    async def recover_orphans(self, runtime_id: str) -> RecoverReply:
        """Fail every task in flight on the runtime: only while this process holds none of them."""
        path = f"/api/daemon/runtimes/{runtime_id}/recover-orphans"
        shape = answers.keys("orphaned", "retried")
        return await self._post(path, {}, RecoverReply, shape, answers.RUNTIME)

    async def report_result(self, runtime_id: str, path: str, result: dict[str, Any]) -> None:
        """Answer a pending request; `path` is e.g. `models/{id}` (spec 01 §3.16 to §3.19)."""
        whole = f"/api/daemon/runtimes/{runtime_id}/{path}/result"
        await self._tell(whole, result, answers.RESULT, bulk=False)

    # -- one task

    async def prepare_lease(self, runtime_id: str, task_id: str) -> None:
        path = f"/api/daemon/runtimes/{runtime_id}/tasks/{task_id}/prepare-lease"
        shape = answers.row_of(task_id)
        await self._post(path, {}, Task, shape, answers.LEASE, deadline=LEASE)

    async def resolve_bundles(
        self, runtime_id: str, task_id: str, refs: Sequence[SkillRef]
    ) -> list[SkillBundle]:
        """Fetch skills whole while their task is being prepared; changed ones as they are now."""
        path = f"/api/daemon/runtimes/{runtime_id}/tasks/{task_id}/skill-bundles/resolve"
        request, shape = ResolveRequest(skills=list(refs)), answers.keys("bundles")
        reply = await self._post(path, request, ResolveResponse, shape, answers.RESOLVE, bulk=True)
        return reply.bundles

    async def start(self, task_id: str) -> Task:
        return await self._row(task_id, "start", {}, answers.START)

    async def wait_local_directory(self, task_id: str, reason: str) -> None:
        request = WaitRequest(reason=reason)
        await self._row(task_id, "wait-local-directory", request, answers.WAIT)

    async def status(self, task_id: str) -> StatusReply:
        path = _task(task_id, "status")
        return await self._get(path, StatusReply, answers.has_status, answers.TASK)

    async def surely_gone(self, task_id: str) -> bool:
        """Take the second look at a task the server says it does not know.

        True only if it is the server we are registered with, because it knows our token and lists
        our workspaces, and says it again.
        """
        try:
            await self.workspaces()
            await self.status(task_id)
        except ApiError as error:
            return error.task_gone
        return False

    async def go_on(self, task_id: str) -> None:
        """Take back a task that the server had given up with this machine (ours)."""
        await self._row(task_id, "go-on", {}, answers.GO_ON)

    async def progress(self, task_id: str, request: ProgressRequest) -> None:
        await self._tell(_task(task_id, "progress"), request, answers.TASK)

    async def messages(self, task_id: str, messages: Sequence[TaskMessage]) -> None:
        request = MessagesRequest(messages=list(messages))
        path = _task(task_id, "messages")
        await self._tell(path, request, answers.MESSAGES, deadline=MESSAGES)

    async def stored_seqs(self, task_id: str, since: int) -> list[int]:
        """Return the numbers of the transcript's rows after `since` that the server has."""
        path = f"{_task(task_id, 'messages')}?since={since}"
        rows = await self._get(
            path,
            list[StoredMessage],
            answers.is_list,
            answers.MESSAGES,
            deadline=MESSAGES,
            bulk=True,
        )
        return [row.seq for row in rows]

    async def session(self, task_id: str, request: SessionRequest) -> None:
        path = _task(task_id, "session")
        await self._tell(path, request, answers.SESSION, deadline=SESSION, empty=True)

    async def usage(self, task_id: str, usage: Sequence[ModelUsage]) -> None:
        request = UsageRequest(usage=list(usage))
        await self._tell(_task(task_id, "usage"), request, answers.TASK)

    async def acknowledge_cancel(self, task_id: str) -> None:
        """Say that the agent of a cancelled task has stopped (ours, `MACHINE_REPORTS`)."""
        await self._tell(_task(task_id, "cancel-ack"), {}, answers.CANCEL_ACK, bulk=False)

    async def runtime_usage(self, runtime_id: str, entries: Sequence[DayUsage]) -> None:
        """Replace what is known of the days and models named (ours, `MACHINE_REPORTS`)."""
        path = f"/api/daemon/runtimes/{runtime_id}/usage"
        await self._tell(path, UsageReport(entries=list(entries)), answers.RUNTIME_USAGE)

    async def complete(self, task_id: str, request: CompleteRequest) -> Task:
        """Report success. Answers the row as it is now: a wrong state is not an error."""
        return await self._row(task_id, "complete", request, answers.COMPLETE, bulk=True)

    async def fail(self, task_id: str, request: FailRequest) -> Task:
        """Report failure. Answers the row as it is now: a wrong state is not an error."""
        return await self._row(task_id, "fail", request, answers.FAIL, bulk=True)

    # -- how

    async def _get(
        self,
        path: str,
        kind: type[T],
        shape: Shape,
        known: Words,
        *,
        deadline: float = CALL,
        bulk: bool = False,
    ) -> T:
        answer = await self._call("GET", path, None, known, deadline=deadline, bulk=bulk)
        return self._read(f"GET {path}", answer.content, kind, shape)

    async def _post(
        self,
        path: str,
        request: Any,
        kind: type[T],
        shape: Shape,
        known: Words,
        *,
        deadline: float = CALL,
        bulk: bool = False,
    ) -> T:
        answer = await self._call("POST", path, request, known, deadline=deadline, bulk=bulk)
        return self._read(f"POST {path}", answer.content, kind, shape)

    async def _row(
        self, task_id: str, what: str, request: Any, known: Words, *, bulk: bool = False
    ) -> Task:
        """Post what the server answers with the row of the task."""
        shape = answers.row_of(task_id)
        return await self._post(_task(task_id, what), request, Task, shape, known, bulk=bulk)

    async def _tell(
        self,
        path: str,
        request: Any,
        known: Words,
        *,
        deadline: float = CALL,
        bulk: bool = True,
        empty: bool = False,
    ) -> None:
        """Post what the server only acknowledges; with `empty` also by 204."""
        answer = await self._call("POST", path, request, known, deadline=deadline, bulk=bulk)
        if not (empty and answer.status_code == 204):
            self._read(f"POST {path}", answer.content, Any, answers.is_ok)

    def _read(self, call: str, body: bytes, kind: type[T] | Any, shape: Shape) -> T:
        try:
            value: T = answers.value_of(call, body, kind, shape)
        except Foreign as error:
            self._met(error)
            raise
        if self._stranger is not None and self._stranger[1] == call:
            self._stranger = None
        return value

    def _met(self, error: Foreign) -> None:
        self._stranger = (trio.current_time(), error.call, str(error))

    async def _call(
        self,
        method: str,
        path: str,
        request: Any,
        known: Words,
        *,
        deadline: float,
        bulk: bool,
    ) -> httpx.Response:
        try:
            answer = await self._ask(method, path, request, known, deadline=deadline, bulk=bulk)
        except Transient:
            self._away = True
            raise
        except Rejected:
            self._answered()
            raise
        self._answered()
        return answer

    def _answered(self) -> None:
        if self._away:
            self._away = False
            self.back.nudge()

    async def _ask(
        self,
        method: str,
        path: str,
        request: Any,
        known: Words,
        *,
        deadline: float,
        bulk: bool,
    ) -> httpx.Response:
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
        status = answer.status_code
        if 200 <= status < 300:
            return answer
        location = answer.headers.get("location", "")
        refusal = answers.error_of(call, status, answer.content, known, location=location)
        if isinstance(refusal, Foreign):
            self._met(refusal)
        raise refusal


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
        "X-Client-Capabilities": f"{SKILL_BUNDLES},{REPOSITORY_ACCESS}",
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
            # a redirect is no answer: behind it may be anybody, and POST becomes GET on the way
            follow_redirects=False,
            # a proxy for the world at large is no way to a server on this machine
            trust_env=not _is_local(config.server_url),
        )

    async with pool() as control, pool() as bulk:
        yield Client(control, bulk)


def _task(task_id: str, what: str) -> str:
    return f"/api/daemon/tasks/{task_id}/{what}"


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
