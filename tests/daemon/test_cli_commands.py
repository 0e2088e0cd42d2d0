"""Whole command lines against a fake server: requests, output, exit codes, no traceback ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.cli import root
from daemon.cli.settings import Settings

pytestmark = pytest.mark.fast

WORKSPACE = "11111111-1111-4111-8111-111111111111"
ISSUE = "22222222-2222-4222-8222-222222222222"
AGENT = "33333333-3333-4333-8333-333333333333"
TASK = "44444444-4444-4444-8444-444444444444"
COMMENT = "55555555-5555-4555-8555-555555555555"
TOKEN = "mul_" + "a" * 40

AN_ISSUE = {
    "id": ISSUE,
    "identifier": "BUL-1",
    "title": "A \x1b[31mred\x1b[0m title",
    "status": "todo",
    "priority": "none",
    "assignee_type": "agent",
    "assignee_id": AGENT,
    "creator_type": "member",
    "creator_id": WORKSPACE,
    "start_date": None,
    "due_date": None,
    "description": "text",
}
A_TASK = {"id": TASK, "agent_id": AGENT, "status": "completed", "error": None}
A_COMMENT = {
    "id": COMMENT,
    "author_type": "system",
    "author_id": WORKSPACE,
    "content": "hello",
    "created_at": "2026-01-01T00:00:00Z",
}
ANSWERS: dict[tuple[str, str], Any] = {
    ("GET", f"/api/issues/{ISSUE}"): AN_ISSUE,
    ("GET", "/api/issues/BUL-1"): AN_ISSUE,
    ("PUT", f"/api/issues/{ISSUE}"): AN_ISSUE,
    ("POST", "/api/issues"): AN_ISSUE,
    ("GET", "/api/issues"): {"issues": [AN_ISSUE], "total": 3},
    ("GET", "/api/agents"): [{"id": AGENT, "name": "demo", "runtime_id": "r", "status": "idle"}],
    ("GET", "/api/runtimes"): [],
    ("GET", f"/api/workspaces/{WORKSPACE}/members"): [],
    ("GET", f"/api/issues/{ISSUE}/task-runs"): [A_TASK],
    ("GET", f"/api/issues/{ISSUE}/comments"): [A_COMMENT],
    ("POST", f"/api/issues/{ISSUE}/comments"): A_COMMENT,
    ("POST", f"/api/comments/{COMMENT}/resolve"): A_COMMENT,
    ("DELETE", f"/api/comments/{COMMENT}/resolve"): A_COMMENT,
    ("POST", f"/api/tasks/{TASK}/cancel"): A_TASK,
    ("POST", f"/api/issues/{ISSUE}/rerun"): A_TASK,
    ("GET", "/api/me"): {"id": WORKSPACE, "name": "You", "email": "y@x"},
    ("GET", "/api/workspaces"): [{"id": WORKSPACE, "name": "Bullpen", "slug": "bullpen"}],
    ("POST", "/auth/link"): {"url": "http://h/auth/link/abc", "expires_at": "soon"},
}

Respond = Callable[[httpx.Request], httpx.Response]


class Bench:
    """Runs command lines; `requests` are those the server saw."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self.capsys = capsys
        self.requests: list[httpx.Request] = []
        self.respond: Respond = self.ordinary
        self.env = {
            "BULLPEN_HOME": str(home),
            "BULLPEN_SERVER_URL": "http://h",
            "BULLPEN_TOKEN": TOKEN,
            "BULLPEN_WORKSPACE_ID": WORKSPACE,
        }

    def ordinary(self, request: httpx.Request) -> httpx.Response:
        answer = ANSWERS.get((request.method, request.url.path))
        if answer is None:
            return httpx.Response(404, json={"error": "not found"})
        return httpx.Response(200, json=answer)

    def run(self, *words: str) -> tuple[int, str, str]:
        def handle(request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            return self.respond(request)

        settings = Settings(env=self.env, transport=httpx.MockTransport(handle))
        code = root.run(words, settings)
        out, err = self.capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    def body(self) -> Any:
        return json.loads(self.requests[-1].content)


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


def test_create_assigns_by_name(bench: Bench) -> None:
    code, out, _ = bench.run("issue", "create", "--title", "T", "--assignee", "demo")
    assert code == 0
    assert json.loads(out) == AN_ISSUE
    assert out.startswith("{\n  ")
    assert bench.body() == {"title": "T", "assignee_type": "agent", "assignee_id": AGENT}


def test_files_are_attached(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "shot.png"
    file.write_bytes(b"png")

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/upload-file":
            assert b'filename="shot.png"' in request.content
            assert ISSUE.encode() in request.content
            return httpx.Response(200, json={"id": AGENT})
        return bench.ordinary(request)

    bench.respond = respond
    code, _, _ = bench.run(
        "issue", "comment", "add", "BUL-1", "--content", "x", "--attachment", str(file)
    )
    assert code == 0
    assert bench.body() == {"content": "x", "attachment_ids": [AGENT]}
    words = ("issue", "create", "--title", "t", "--attachment-id", TASK, "--attachment", str(file))
    code, _, _ = bench.run(*words)
    assert code == 0
    made = next(each for each in bench.requests[::-1] if each.url.path == "/api/issues")
    assert json.loads(made.content)["attachment_ids"] == [TASK]
    assert bench.requests[-1].url.path == "/api/upload-file"


def test_a_file_is_attached_to_what_a_task_is_about(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_bytes(b"log")

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/upload-file":
            assert b'name="task_id"' in request.content
            assert TASK.encode() in request.content
            return httpx.Response(200, json={"id": AGENT})
        return bench.ordinary(request)

    bench.respond = respond
    code, out, _ = bench.run("attachment", "upload", str(file), "--task", TASK)
    assert (code, json.loads(out)) == (0, {"id": AGENT})
    for words in ((), ("--task", TASK, "--issue", "BUL-1")):
        code, _, err = bench.run("attachment", "upload", str(file), *words)
        assert code == 1
        assert "give one of --issue, --comment and --task" in err


def test_a_file_that_cannot_be_sent_keeps_a_comment_back_but_not_an_issue(bench: Bench) -> None:
    missing = ("--attachment", "/nowhere/a.png")
    code, _, err = bench.run("issue", "comment", "add", "BUL-1", "--content", "x", *missing)
    assert code == 1
    assert "cannot read /nowhere/a.png" in err
    assert all(each.method == "GET" for each in bench.requests)
    code, _, err = bench.run("issue", "create", "--title", "t", *missing)
    assert code == 0
    assert "not attached" in err


def test_headers(bench: Bench) -> None:
    bench.run("issue", "get", "BUL-1")
    headers = bench.requests[0].headers
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["x-workspace-id"] == WORKSPACE
    assert headers["x-client-platform"] == "cli"
    assert {"x-client-version", "x-client-os"} <= set(headers)
    assert "x-agent-id" not in headers


def test_inside_a_task_the_agent_is_named_and_the_owners_token_is_refused_unsent(
    bench: Bench,
) -> None:
    bench.env |= {
        "MULTICA_AGENT_ID": AGENT,
        "MULTICA_TASK_ID": TASK,
        "MULTICA_SERVER_URL": "http://h",
        "MULTICA_WORKSPACE_ID": WORKSPACE,
        "MULTICA_TOKEN": TOKEN,
    }
    code, _, err = bench.run("issue", "get", "BUL-1")
    assert (code, bench.requests) == (1, [])
    assert "mat_" in err
    bench.env["MULTICA_TOKEN"] = "mat_" + "b" * 40
    assert bench.run("issue", "get", "BUL-1")[0] == 0
    headers = bench.requests[0].headers
    assert headers["authorization"] == f"Bearer mat_{'b' * 40}"
    assert (headers["x-agent-id"], headers["x-task-id"]) == (AGENT, TASK)
    for words in (["login", "--token", TOKEN], ["config", "set", "server_url", "http://x"]):
        code, _, err = bench.run(*words)
        assert code == 1
        assert "inside a task" in err
    assert not (bench.home / "secrets" / "config.json").exists()


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (400, 5, "the server's words"),
        (422, 5, "the server's words"),
        (401, 3, "not signed in"),
        (403, 3, "the server's words"),
        (404, 4, "not found"),
        (409, 1, "the server's words"),
        (413, 1, "too large"),
        (429, 1, "slow down"),
        (500, 1, "HTTP 500"),
        (302, 1, "HTTP 302"),
    ],
)
def test_exit_codes(bench: Bench, status: int, code: int, told: str) -> None:
    bench.respond = lambda _: httpx.Response(status, json={"error": "the server's words"})
    got, out, err = bench.run("issue", "get", "BUL-1")
    assert (got, out) == (code, "")
    assert told in err
    assert err.count("\n") == 1
    if status == 500:
        assert "words" not in err


def test_debug_says_more_without_the_token(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.respond = lambda _: httpx.Response(500, text=f"token={TOKEN}")
    settings = Settings(env=bench.env, transport=httpx.MockTransport(bench.respond))
    assert root.run(["issue", "get", "BUL-1", "--debug"], settings) == 1
    err = capsys.readouterr().err
    assert "GET /api/issues/BUL-1 -> 500" in err
    assert TOKEN not in err


def fail_with(error: Exception) -> Respond:
    def respond(_: httpx.Request) -> httpx.Response:
        raise error

    return respond


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.ReadError("gone")]
)
def test_a_server_that_cannot_be_reached_is_exit_2(bench: Bench, error: Exception) -> None:
    bench.respond = fail_with(error)
    code, _, err = bench.run("issue", "list")
    assert code == 2
    assert err.count("\n") == 1
    assert len(bench.requests) == 1, "a person gets one prompt attempt"


def task_environment(bench: Bench) -> None:
    bench.env |= {
        "MULTICA_TASK_ID": TASK,
        "MULTICA_SERVER_URL": "http://h",
        "MULTICA_WORKSPACE_ID": WORKSPACE,
        "MULTICA_TOKEN": "mat_" + "b" * 40,
    }


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Virtual time for the client's waiting; what it slept."""
    slept: list[float] = []
    monkeypatch.setattr("daemon.cli.api.time.monotonic", lambda: sum(slept))
    monkeypatch.setattr("daemon.cli.api.time.sleep", slept.append)
    return slept


def test_an_agent_waits_for_a_server_that_restarts(bench: Bench, waits: list[float]) -> None:
    task_environment(bench)
    failures: list[Any] = [httpx.ConnectError("refused"), httpx.ConnectError("refused"), 503]

    def respond(request: httpx.Request) -> httpx.Response:
        if failures:
            failure = failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return httpx.Response(failure)
        return bench.ordinary(request)

    bench.respond = respond
    assert bench.run("issue", "get", "BUL-1")[0] == 0
    assert len(waits) == 3


@pytest.mark.parametrize("away", [401, 502, 503, 504, httpx.ConnectError("refused")])
def test_an_agent_waits_for_hours_if_it_has_to(
    bench: Bench, waits: list[float], away: int | Exception
) -> None:
    """401 is what a server of the protocol answers while its database is away."""
    task_environment(bench)

    def respond(request: httpx.Request) -> httpx.Response:
        if sum(waits) > 1800:
            return bench.ordinary(request)
        if isinstance(away, Exception):
            raise away
        return httpx.Response(away, json={"error": "invalid token"})

    bench.respond = respond
    code, _, err = bench.run("issue", "get", "BUL-1")
    assert code == 0
    assert 50 <= err.count("waiting for http://h") <= 60, "a line now and then"


@pytest.mark.parametrize(("patience", "most"), [({}, 3600), ({"BULLPEN_TASK_PATIENCE": "20s"}, 20)])
def test_an_agents_patience_ends(
    bench: Bench, waits: list[float], patience: dict[str, str], most: float
) -> None:
    task_environment(bench)
    bench.env |= patience
    bench.respond = fail_with(httpx.ConnectError("refused"))
    assert bench.run("issue", "get", "BUL-1")[0] == 2
    assert most - 10 < sum(waits) <= most


def test_a_bug_of_the_server_is_not_waited_out(bench: Bench, waits: list[float]) -> None:
    task_environment(bench)
    bench.respond = lambda _: httpx.Response(500, json={"error": "internal error"})
    assert bench.run("issue", "get", "BUL-1")[0] == 1
    assert 40 < sum(waits) <= 60


STRANGERS = (
    httpx.Response(404, text="404 page not found"),
    httpx.Response(403, html="<h1>Blocked</h1>"),
    httpx.Response(302, headers={"Location": "http://portal.test/"}),
    httpx.Response(200, html="<h1>Sign in to the network</h1>"),
)
"""What a proxy or a portal answers in the server's place."""


@pytest.mark.parametrize("answer", STRANGERS, ids=lambda a: str(a.status_code))
def test_an_agent_waits_a_minute_when_a_stranger_answers(
    bench: Bench, waits: list[float], answer: httpx.Response
) -> None:
    task_environment(bench)
    bench.respond = lambda request: answer if sum(waits) < 30 else bench.ordinary(request)
    assert bench.run("issue", "get", "BUL-1")[0] == 0
    waits.clear()
    bench.respond = lambda _: answer
    assert bench.run("issue", "get", "BUL-1")[0] != 0
    assert 40 < sum(waits) <= 60
    waits.clear()
    del bench.env["MULTICA_TASK_ID"]
    assert bench.run("issue", "get", "BUL-1")[0] != 0
    assert waits == [], "a person is told at once"


def test_the_servers_own_refusal_is_told_an_agent_at_once(bench: Bench, waits: list[float]) -> None:
    task_environment(bench)
    for answer in (
        httpx.Response(404, json={"error": "issue not found"}),
        httpx.Response(413, html="<h1>Too large</h1>"),
    ):
        bench.respond = lambda _, answer=answer: answer
        assert bench.run("issue", "get", "BUL-1")[0] != 0
    assert waits == []


@pytest.mark.parametrize("body", [{}, {"issues": [{}], "total": 1}])
def test_an_answer_that_lacks_something_is_the_servers_fault(
    bench: Bench, body: dict[str, Any]
) -> None:
    bench.respond = lambda _: httpx.Response(200, json=body)
    code, _, err = bench.run("issue", "list")
    assert code == 1
    assert "is it a Bullpen server?" in err
    assert "defect" not in err


def test_a_third_party_that_is_away_is_told_at_once_in_the_servers_words(
    bench: Bench, waits: list[float]
) -> None:
    task_environment(bench)
    told = {"error": "github.com could not be reached", "code": "upstream_unavailable"}
    bench.respond = lambda _: httpx.Response(502, json=told)
    code, _, err = bench.run("skill", "import", "https://github.com/a/b")
    assert code == 1
    assert "github.com could not be reached" in err
    assert waits == []


def test_a_person_is_told_at_once(bench: Bench, waits: list[float]) -> None:
    bench.respond = lambda _: httpx.Response(401, json={"error": "invalid token"})
    assert bench.run("issue", "get", "BUL-1")[0] == 3
    assert waits == []


def test_what_may_have_been_made_is_told_once_the_server_is_back(
    bench: Bench, waits: list[float]
) -> None:
    task_environment(bench)

    def respond(request: httpx.Request) -> httpx.Response:
        if request.method == "POST" or sum(waits) < 100:
            raise httpx.ReadError("cut")
        return httpx.Response(200, json={"status": "ok"})

    ordinary = bench.ordinary

    def mostly(request: httpx.Request) -> httpx.Response:
        if request.method == "GET" and "readyz" not in str(request.url):
            return ordinary(request)
        return respond(request)

    bench.respond = mostly
    code, _, err = bench.run("issue", "comment", "add", "BUL-1", "--content", "x")
    assert code == 2
    assert "may or may not" in err
    assert [request.method for request in bench.requests].count("POST") == 1
    assert sum(waits) >= 100


def test_a_comment_that_may_have_been_made_is_not_made_twice(
    bench: Bench, waits: list[float]
) -> None:
    task_environment(bench)

    def respond(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            raise httpx.ReadError("cut")
        return bench.ordinary(request)

    bench.respond = respond
    code, _, err = bench.run("issue", "comment", "add", "BUL-1", "--content", "x")
    assert code == 2
    assert "may or may not" in err
    assert [request.method for request in bench.requests].count("POST") == 1
    assert waits == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["isue"],
        ["issue", "nonsense"],
        ["issue", "get"],
        ["issue", "get", "1", "2"],
        ["issue", "list", "--limit", "x"],
        ["issue", "list", "--nonsense"],
        ["issue", "list", "--status", "nonsense"],
        ["issue", "create"],
        ["issue", "create", "--title", "  "],
        ["issue", "create", "--title", "x", "--priority", "huge"],
        ["issue", "create", "--title", "x", "--due-date", "tomorrow"],
        ["issue", "update", "BUL-1"],
        ["issue", "status", "BUL-1", "finished"],
        ["issue", "assign", "BUL-1"],
        ["issue", "assign", "BUL-1", "--to", "demo", "--unassign"],
        ["issue", "comment", "add", "BUL-1"],
        ["issue", "comment", "add", "BUL-1", "--content", "x", "--parent", "short"],
        ["issue", "comment", "list", "BUL-1", "--tail", "3"],
        ["issue", "comment", "list", "BUL-1", "--before", "2026-01-01T00:00:00Z"],
        ["issue", "comment", "list", "BUL-1", "--roots-only", "--recent", "1"],
        ["issue", "comment", "delete", "abc"],
        ["issue", "cancel-task", "abcd"],
        ["agent", "create", "--name", "x"],
        ["agent", "create", "--name", "x", "--runtime-id", "r", "--custom-args", "{}"],
        ["config", "set", "token", "x"],
        ["up", "--agents", "nonsense"],
        ["up", "--agents", ","],
        ["up", "--port", "70000"],
        ["login"],
        ["login", "--token", "eyJhbGciOi"],
    ],
    ids=" ".join,
)
def test_bad_input_is_told_locally(bench: Bench, words: list[str]) -> None:
    code, _, err = bench.run(*words)
    assert code == (1 if words else 0)
    assert not words or err.startswith("error: ")
    assert bench.requests == []


def test_a_slip_in_a_command_is_corrected(bench: Bench) -> None:
    assert "bullpen issue" in bench.run("isue", "list")[2]


def test_tables_cannot_be_used_to_write_to_the_terminal(bench: Bench) -> None:
    code, out, err = bench.run("issue", "list")
    assert code == 0
    assert "\x1b" not in out
    header, row = out.splitlines()
    assert header.split("  ")[0] == "KEY"
    assert row.startswith("BUL-1")
    assert "demo" in row
    assert "--offset 50" in err


def test_a_hostile_server_cannot_write_to_the_terminal(bench: Bench) -> None:
    """Neither by a notice nor by JSON, whose own rules let the C1 controls pass."""
    evil = {**AN_ISSUE, "identifier": "\x1b]0;pwn\x07\x9b2J", "title": "\x9b31m\x7f"}
    bench.respond = lambda request: httpx.Response(200, json=evil)
    for output in ("table", "json"):
        words = ("issue", "create", "--title", "x", "--output", output)
        code, out, err = bench.run(*words)
        assert code == 0
        assert not {"\x1b", "\x07", "\x7f", "\x9b"} & set(out + err)
    assert json.loads(out)["title"] == evil["title"]


def test_json_list_says_how_much_there_is(bench: Bench) -> None:
    out = bench.run("issue", "list", "--output", "json", "--metadata", "pr=7")[1]
    told = json.loads(out)
    assert (told["total"], told["limit"], told["offset"], told["has_more"]) == (3, 50, 0, True)
    assert json.loads(bench.requests[0].url.params["metadata"]) == {"pr": 7}


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (
            ["issue", "update", "1", "--parent", "", "--title", "N"],
            {"parent_issue_id": None, "title": "N"},
        ),
        (["issue", "update", "1", "--description", r"a\nb"], {"description": "a\nb"}),
        (["issue", "assign", "1", "--unassign"], {"assignee_type": None, "assignee_id": None}),
        (
            ["issue", "assign", "1", "--to", "@Demo"],
            {"assignee_type": "agent", "assignee_id": AGENT},
        ),
        (["issue", "status", "1", "done"], {"status": "done"}),
        (["issue", "comment", "add", "1", "--content", "hi"], {"content": "hi"}),
        (["issue", "comment", "resolve", COMMENT], None),
        (["issue", "rerun", "1"], {}),
        (["issue", "cancel-task", TASK[:6], "--issue", "1"], {}),
        (["issue", "cancel-task", TASK], {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bodies(bench: Bench, words: list[str], body: Any) -> None:
    bench.respond = lambda request: (
        httpx.Response(200, json=AN_ISSUE)
        if request.url.path.endswith("/ISSUE-1")
        else bench.ordinary(request)
    )
    assert bench.run(*words)[0] == 0
    assert bench.body() == body


def test_complete_threads_are_read_folded(bench: Bench) -> None:
    bench.run("issue", "comment", "list", "BUL-1")
    assert dict(bench.requests[1].url.params) == {"fold": "true"}
    bench.requests.clear()
    bench.run("issue", "comment", "list", "BUL-1", "--full", "--recent", "2")
    assert dict(bench.requests[1].url.params) == {"recent": "2"}


def test_the_next_page_is_told_on_stderr(bench: Bench) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        answer = bench.ordinary(request)
        answer.headers["X-Multica-Next-Before"] = "T"
        answer.headers["X-Multica-Next-Before-Id"] = COMMENT
        return answer

    bench.respond = respond
    _, out, err = bench.run(
        "issue", "comment", "list", "BUL-1", "--recent", "1", "--output", "json"
    )
    assert json.loads(out) == [A_COMMENT]
    assert err == f"Next thread cursor: --before T --before-id {COMMENT}\n"


def test_login_remembers_and_logout_forgets(bench: Bench) -> None:
    config = bench.home / "secrets" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"unknown": 1, "workspace_id": "old"}')
    assert bench.run("login", "--token", TOKEN)[0] == 0
    told = json.loads(config.read_text())
    assert told == {
        "unknown": 1,
        "server_url": "http://h",
        "token": TOKEN,
        "workspace_id": WORKSPACE,
    }
    assert TOKEN not in "".join(bench.run("config", "show", "--output", "json")[1:])
    assert bench.run("auth", "logout")[0] == 0
    assert json.loads(config.read_text()) == {key: told[key] for key in told if key != "token"}


def test_a_bad_token_is_exit_3_and_changes_nothing(bench: Bench) -> None:
    bench.respond = lambda _: httpx.Response(401, json={"error": "x"})
    assert bench.run("login", "--token", TOKEN)[0] == 3
    assert not (bench.home / "secrets" / "config.json").exists()
    code, _, err = bench.run("auth", "status")
    assert code == 0
    assert "no longer valid" in err


def test_persistent_options_may_stand_anywhere(bench: Bench) -> None:
    other = "66666666-6666-4666-8666-666666666666"
    bench.run("issue", "get", "BUL-1", "--workspace-id", other, "--server-url=http://other")
    assert bench.requests[0].url.host == "other"
    assert bench.requests[0].headers["x-workspace-id"] == other


def test_link_version_and_help(bench: Bench) -> None:
    assert bench.run("link")[1] == "http://h/auth/link/abc\n"
    assert json.loads(bench.run("version", "--output", "json")[1])["version"]
    assert bench.run("--version")[0] == 0
    for words in (["-h"], ["issue", "-h"], ["issue", "create", "--help"], ["up", "-h"]):
        code, out, _ = bench.run(*words)
        assert code == 0
        assert out.startswith("Usage: ")


def test_what_is_no_bullpen_server_is_one_clear_line(bench: Bench) -> None:
    bench.respond = lambda _: httpx.Response(200, text="<html>")
    code, _, err = bench.run("issue", "get", "BUL-1")
    assert code == 1
    assert "is it a Bullpen server" in err


def test_watch_shows_each_message_once_and_ends_with_the_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.cli.watch.time.sleep", lambda _: None)
    messages = [
        {"seq": 1, "type": "thinking", "content": "hm"},
        {"seq": 2, "type": "tool_use", "tool": "Bash", "input": {"command": "ls"}},
        {"seq": 3, "type": "tool_result", "tool": "Bash", "output": "a\nb"},
        {"seq": 4, "type": "text", "content": "done\x1b[2J"},
    ]
    looks = 0

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal looks
        if request.url.path.endswith("/messages"):
            looks += 1
            if looks == 2:
                raise httpx.ReadError("cut")
            since = int(request.url.params.get("since", 0))
            upto = 2 if looks == 1 else 4
            return httpx.Response(200, json=[m for m in messages if since < m["seq"] <= upto])
        if request.url.path.endswith("/task-runs"):
            status = "completed" if looks >= 3 else "running"
            return httpx.Response(200, json=[{**A_TASK, "status": status}])
        return bench.ordinary(request)

    bench.respond = respond
    code, out, err = bench.run("watch", "BUL-1")
    assert code == 0
    assert [out.count(text) for text in ("hm", "Bash ls", "a\n", "done")] == [1, 1, 1, 1]
    assert "\x1b" not in out
    assert "is running" in err
    assert "is completed" in err
