"""The client: what it sends, how long it waits, and what it makes of each answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.client import ApiError, Client, Foreign, Rejected, Transient
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
            assert "skill-bundles-v1" in headers["x-client-capabilities"].split(",")
        assert post["content-type"] == "application/json"
        assert server.calls[1].body == {}


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "invalid request body", Rejected),
        (401, "invalid token", Rejected),
        (404, "task not found", Rejected),
        (400, "complete task: no rows in result set", Rejected),
        (404, "runtime not found", Foreign),
        (404, "not found", Foreign),
        (400, "why", Foreign),
        (403, "blocked by policy", Foreign),
        (408, "why", Transient),
        (429, "why", Transient),
        (500, "task not found", Transient),
        (503, "why", Transient),
    ],
)
async def test_only_the_words_of_the_call_refuse_it(
    autojump_clock: MockClock, tmp_path: Path, status: int, text: str, kind: type[ApiError]
) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_next(".*/complete", answer(status, json.dumps({"error": text})))
        with pytest.raises(ApiError) as failure:
            await client.complete("t", CompleteRequest())
        assert type(failure.value) is kind
        assert failure.value.status == status
        assert text in failure.value.text
        assert failure.value.final == (kind is Rejected and status != 401)
        assert failure.value.unauthorized == (status == 401)
        assert failure.value.task_gone == (text == "task not found" and status == 404)


STRANGERS = {
    "the router of another program": answer(404, "404 page not found\n"),
    "a proxy's page": answer(404, "<html><h1>404 Not Found</h1></html>"),
    "a gateway's envelope": answer(404, '{"message":"no Route matched with those values"}'),
    "another API's envelope": answer(404, '{"error":"no such path"}'),
    "another API's error object": answer(400, '{"error":{"message":"task not found"}}'),
    "a login page": answer(401, "<html>sign in</html>"),
    "a wall": answer(403, "forbidden"),
    "a wrong method": answer(405),
    "an empty conflict": answer(409),
    "a redirect": answer(302),
    "a redirect that keeps the method": answer(308),
    "an empty success": answer(200),
    "a success of nothing": answer(200, "null"),
    "a success of {}": answer(200, "{}"),
    "a success of another kind": answer(200, '{"message":"accepted"}'),
    "a success in another shape": answer(200, '[{"status":"ok"}]'),
    "a page": answer(200, "<html>sign in to this network</html>"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("route", CALLS)
async def test_a_stranger_is_an_outage_and_is_told(
    autojump_clock: MockClock, tmp_path: Path, route: str, stranger: str
) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_next(route, STRANGERS[stranger])
        with pytest.raises(Transient) as failure:
            await CALLS[route][1](client)
        assert not failure.value.final
        assert not failure.value.gone
        assert not failure.value.unauthorized
        assert route in client.problem
        await trio.sleep(100)
        assert client.problem == "", "it may be over"


async def test_the_row_of_another_task_is_no_answer(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_next(".*/complete", answer(200, '{"id":"u","status":"completed"}'))
        with pytest.raises(Foreign):
            await client.complete("t", CompleteRequest())


async def test_a_task_that_is_gone_needs_a_second_look(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        assert await client.surely_gone("t")
        server.fail_next("GET /api/workspaces", answer(401, '{"error":"invalid token"}'))
        assert not await client.surely_gone("t"), "not the server that knows us"
        server.add_task("r", "t")
        assert not await client.surely_gone("t"), "it is there after all"


async def test_a_server_without_its_database_refuses_no_token_for_good(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    refused = answer(401, '{"error":"invalid token"}')
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_always("GET /api/workspaces", refused)
        assert await client.surely_unauthorized()
        server.fail_always("GET /readyz", answer(503, '{"status":"not_ready"}'))
        assert not await client.surely_unauthorized()
        server.fail_always("GET /readyz", answer(404, "404 page not found"))
        assert await client.surely_unauthorized(), "an older server has no such page"


@pytest.mark.parametrize("fault", [REFUSE, LOSE_REQUEST, LOSE_RESPONSE, answer(200, "<html>")])
async def test_a_bad_network_is_transient(
    autojump_clock: MockClock, tmp_path: Path, fault: Any
) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_next("GET /api/workspaces", fault)
        with pytest.raises(Transient):
            await client.workspaces()


@pytest.mark.parametrize(
    ("route", "status", "text", "gone"),
    [
        (".*/claim", 404, "runtime not found", "runtime_gone"),
        (".*/claim", 404, "Runtime Not Found", "runtime_gone"),
        (".*/status", 404, "task not found", "task_gone"),
        (".*/register", 404, "workspace not found", "workspace_gone"),
        (".*/claim", 404, "not found", None),
        (".*/claim", 404, "task not found", None),
        (".*/claim", 500, "runtime not found", None),
    ],
)
async def test_what_is_gone(
    autojump_clock: MockClock,
    tmp_path: Path,
    *,
    route: str,
    status: int,
    text: str,
    gone: str | None,
) -> None:
    calls = {
        ".*/claim": lambda c: c.claim("r"),
        ".*/status": lambda c: c.status("t"),
        ".*/register": lambda c: c.register(RegisterRequest()),
    }
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_next(route, answer(status, json.dumps({"error": text})))
        with pytest.raises(ApiError) as failure:
            await calls[route](client)
        assert failure.value.gone == (gone is not None)
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
