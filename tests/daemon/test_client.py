"""The client: what it sends, how long it waits, and what it makes of each answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.client import ApiError, Client, Rejected, Transient
from shared import __version__
from shared.wire.runtime import RegisterRequest
from shared.wire.task import (
    CompleteRequest,
    FailRequest,
    ModelUsage,
    ProgressRequest,
    SessionRequest,
    SkillRef,
    TaskMessage,
)
from tests.support.fake_server import client_of, make_config, open_fake_server
from tests.support.network import HANG, LOSE_REQUEST, LOSE_RESPONSE, REFUSE, answer, delay

pytestmark = pytest.mark.fast

CALLS: dict[str, tuple[float, Callable[[Client], Awaitable[Any]]]] = {
    # route: (seconds it may take, the call)
    "POST /api/tokens/current/renew": (15, lambda c: c.renew_token()),
    "GET /api/workspaces": (15, lambda c: c.workspaces()),
    "GET /api/daemon/workspaces/w/repos": (30, lambda c: c.repos("w")),
    "GET /api/daemon/workspaces/w/runtime-profiles": (30, lambda c: c.profiles("w")),
    "POST /api/daemon/register": (30, lambda c: c.register(RegisterRequest())),
    "POST /api/daemon/deregister": (5, lambda c: c.deregister(["r"])),
    "POST /api/daemon/heartbeat": (30, lambda c: c.heartbeat("r")),
    "POST /api/daemon/runtimes/r/tasks/claim": (30, lambda c: c.claim("r")),
    "POST /api/daemon/runtimes/r/recover-orphans": (30, lambda c: c.recover_orphans("r")),
    "POST /api/daemon/runtimes/r/models/m/result": (
        30,
        lambda c: c.report_result("r", "models/m", {"status": "failed"}),
    ),
    "POST /api/daemon/runtimes/r/tasks/t/prepare-lease": (10, lambda c: c.prepare_lease("r", "t")),
    "POST /api/daemon/runtimes/r/tasks/t/skill-bundles/resolve": (
        30,
        lambda c: c.resolve_bundles("r", "t", [SkillRef(id="s", source="workspace", hash="h")]),
    ),
    "POST /api/daemon/tasks/t/start": (30, lambda c: c.start("t")),
    "POST /api/daemon/tasks/t/wait-local-directory": (
        30,
        lambda c: c.wait_local_directory("t", "busy"),
    ),
    "GET /api/daemon/tasks/t/status": (30, lambda c: c.status("t")),
    "POST /api/daemon/tasks/t/progress": (30, lambda c: c.progress("t", ProgressRequest())),
    "POST /api/daemon/tasks/t/messages": (
        5,
        lambda c: c.messages("t", [TaskMessage(seq=1, type="text", content="x")]),
    ),
    "POST /api/daemon/tasks/t/session": (
        5,
        lambda c: c.session("t", SessionRequest(session_id="s")),
    ),
    "POST /api/daemon/tasks/t/usage": (30, lambda c: c.usage("t", [ModelUsage(model="m")])),
    "POST /api/daemon/tasks/t/complete": (30, lambda c: c.complete("t", CompleteRequest())),
    "POST /api/daemon/tasks/t/fail": (30, lambda c: c.fail("t", FailRequest(error="e"))),
}


@pytest.mark.parametrize("route", CALLS)
async def test_each_call_goes_where_it_should_and_ends_in_time(
    autojump_clock: MockClock, tmp_path: Path, route: str
) -> None:
    seconds, call = CALLS[route]
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_always(route, HANG)
        began = trio.current_time()
        with pytest.raises(Transient) as failure:
            await call(client)
        assert trio.current_time() - began == pytest.approx(seconds)
        assert failure.value.status == 0
        assert [str(call) for call in server.calls] == [route], "one attempt each"


async def test_headers(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        await client.workspaces()
        await client.renew_token()
        get, post = (call.headers for call in server.calls)
        for headers in (get, post):
            assert headers["authorization"] == "Bearer mul_" + "0" * 40
            assert headers["x-client-platform"] == "daemon"
            assert headers["x-client-version"] == __version__
            assert headers["x-client-os"] in ("linux", "macos", "windows")
            assert headers["x-client-capabilities"] == "skill-bundles-v1"
        assert post["content-type"] == "application/json"
        assert server.calls[1].body == {}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Rejected),
        (401, Rejected),
        (404, Rejected),
        (409, Rejected),
        (408, Transient),
        (429, Transient),
        (500, Transient),
        (503, Transient),
    ],
)
async def test_statuses_are_classified(
    autojump_clock: MockClock, tmp_path: Path, status: int, kind: type[ApiError]
) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_next("GET /api/workspaces", answer(status, '{"error":"why"}'))
        with pytest.raises(ApiError) as failure:
            await client.workspaces()
        assert type(failure.value) is kind
        assert failure.value.status == status
        assert failure.value.text == '{"error":"why"}'
        assert failure.value.unauthorized == (status == 401)


@pytest.mark.parametrize("fault", [REFUSE, LOSE_REQUEST, LOSE_RESPONSE, answer(200, "<html>")])
async def test_a_bad_network_is_transient(
    autojump_clock: MockClock, tmp_path: Path, fault: Any
) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_next("GET /api/workspaces", fault)
        with pytest.raises(Transient):
            await client.workspaces()


@pytest.mark.parametrize("route", CALLS)
async def test_a_page_in_the_way_is_no_answer(
    autojump_clock: MockClock, tmp_path: Path, route: str
) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_next(route, answer(200, "<html>sign in to this network</html>"))
        with pytest.raises(Transient):
            await CALLS[route][1](client)


@pytest.mark.parametrize(
    ("status", "text", "gone"),
    [
        (404, '{"error":"runtime not found"}', "runtime_gone"),
        (404, '{"error":"Runtime Not Found"}', "runtime_gone"),
        (404, '{"error":"task not found"}', "task_gone"),
        (404, '{"error":"workspace not found"}', "workspace_gone"),
        (404, '{"error":"not found"}', None),
        (500, '{"error":"runtime not found"}', None),
    ],
)
async def test_what_is_gone(
    autojump_clock: MockClock, tmp_path: Path, status: int, text: str, gone: str | None
) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_next("GET /api/workspaces", answer(status, text))
        with pytest.raises(ApiError) as failure:
            await client.workspaces()
        for name in ("runtime_gone", "task_gone", "workspace_gone"):
            assert getattr(failure.value, name) == (name == gone)


async def test_a_long_error_is_cut(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_next("GET /api/workspaces", answer(500, " " + "x" * 9000))
        with pytest.raises(Transient) as failure:
            await client.workspaces()
        assert failure.value.text == "x" * 4095


async def test_a_claim_is_read(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.runtimes["r"] = {"key": None}
        assert await client.claim("r") is None
        server.add_task("r", "t1", thread_name="Fix it")
        task = await client.claim("r")
        assert task is not None
        assert (task.id, task.thread_name, task.status) == ("t1", "Fix it", "dispatched")


async def test_uploads_do_not_hold_up_heartbeats(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_always("POST /api/daemon/tasks/.*", HANG)
        server.runtimes["r"] = {"key": None}

        async def upload(task_id: str) -> None:
            with pytest.raises(Transient):
                await client.usage(task_id, [ModelUsage(model="m")])

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(upload, f"t{number}")
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(0.001):
                assert (await client.heartbeat("r")).status == "ok"


async def test_a_cancelled_call_ends_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_next("GET /api/workspaces", delay(10))
        with trio.move_on_after(1) as scope:
            await client.workspaces()
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(1)
        assert await client.workspaces(), "the connection pool still works"
