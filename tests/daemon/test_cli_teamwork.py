"""The commands for autopilots, attachments, the inbox and chats, against a fake server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.cli import chat_group
from tests.daemon.test_cli_commands import AGENT, ANSWERS, TOKEN, WORKSPACE, Bench, task_environment

pytestmark = pytest.mark.fast

PILOT = "66666666-6666-4666-8666-666666666666"
TRIGGER = "77777777-7777-4777-8777-777777777777"
FILE = "88888888-8888-4888-8888-888888888888"
ITEM = "99999999-9999-4999-8999-999999999999"
CHAT = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa"
USER = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
SAID = "cccccccc-cccc-4ccc-8ccc-cccccccccccc"

A_PILOT = {
    "id": PILOT,
    "title": "Nightly",
    "status": "active",
    "execution_mode": "run_only",
    "subscribers": [],
}
A_SCHEDULE = {
    "id": TRIGGER,
    "kind": "schedule",
    "enabled": True,
    "label": "mornings",
    "cron_expression": "0 9 * * *",
    "timezone": None,
}
A_WEBHOOK = A_SCHEDULE | {"kind": "webhook", "webhook_path": "/api/webhooks/autopilots/awt_x"}
A_RUN = {
    "id": ITEM,
    "status": "skipped",
    "source": "manual",
    "triggered_at": "2026-01-01T00:00:00Z",
    "failure_reason": "assignee's runtime is offline",
}
NEWS = {
    "id": ITEM,
    "read": False,
    "type": "mentioned",
    "title": "Look",
    "issue_id": None,
    "created_at": "2026-01-01T00:00:00Z",
}
A_CHAT = {
    "id": CHAT,
    "agent_id": AGENT,
    "title": "About it",
    "has_unread": True,
    "updated_at": "2026-01-01T00:00:00Z",
}
MINE = {"id": SAID, "role": "user", "content": "hi", "created_at": "2026-01-01T00:00:00Z"}
THEIRS = MINE | {"id": ITEM, "role": "assistant", "content": "hello \x1b[31mthere"}

PILOT_PATH = f"/api/autopilots/{PILOT}"
TRIGGER_PATH = f"{PILOT_PATH}/triggers/{TRIGGER}"
CHAT_PATH = f"/api/chat/sessions/{CHAT}"

HERE: dict[tuple[str, str], Any] = {
    ("GET", "/api/autopilots"): {"autopilots": [A_PILOT], "total": 1},
    ("POST", "/api/autopilots"): A_PILOT,
    ("GET", PILOT_PATH): {"autopilot": A_PILOT, "triggers": [A_SCHEDULE]},
    ("PATCH", PILOT_PATH): A_PILOT,
    ("DELETE", PILOT_PATH): {},
    ("POST", f"{PILOT_PATH}/trigger"): A_RUN,
    ("GET", f"{PILOT_PATH}/runs"): {"runs": [A_RUN], "total": 1},
    ("POST", f"{PILOT_PATH}/triggers"): A_WEBHOOK,
    ("PATCH", TRIGGER_PATH): A_SCHEDULE,
    ("DELETE", TRIGGER_PATH): {},
    ("POST", f"{TRIGGER_PATH}/rotate-webhook-token"): A_WEBHOOK,
    ("GET", f"/api/workspaces/{WORKSPACE}/members"): [{"user_id": USER, "name": "Dana"}],
    ("GET", "/api/projects"): {"projects": [{"id": SAID, "title": "Big"}], "total": 1},
    ("GET", f"/api/attachments/{FILE}"): {
        "id": FILE,
        "filename": "../../Bild ü.png",
        "download_url": f"/api/attachments/{FILE}/download",
    },
    ("GET", "/api/inbox"): [NEWS, NEWS | {"id": SAID, "read": True}],
    ("POST", f"/api/inbox/{ITEM}/read"): NEWS,
    ("POST", f"/api/inbox/{ITEM}/archive"): NEWS,
    ("POST", "/api/inbox/mark-all-read"): {"count": 2},
    ("POST", "/api/inbox/archive-all-read"): {"count": 1},
    ("GET", "/api/chat/sessions"): [A_CHAT],
    ("POST", "/api/chat/sessions"): A_CHAT,
    ("PATCH", CHAT_PATH): A_CHAT,
    ("DELETE", CHAT_PATH): {},
    ("POST", f"{CHAT_PATH}/messages"): {"message_id": SAID, "task_id": ITEM},
    ("POST", f"{CHAT_PATH}/read"): {},
    ("GET", f"{CHAT_PATH}/messages/page"): {"messages": [THEIRS | {"id": FILE}, MINE, THEIRS]},
}


@pytest.fixture
def bench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Bench:
    for route, answer in HERE.items():
        monkeypatch.setitem(ANSWERS, route, answer)
    return Bench(tmp_path, capsys)


@pytest.mark.parametrize(
    ("words", "method", "path", "body"),
    [
        (
            "autopilot create --title T --agent demo --mode run_only --subscriber dana --project big",
            "POST",
            "/api/autopilots",
            {
                "title": "T",
                "assignee_id": AGENT,
                "execution_mode": "run_only",
                "project_id": SAID,
                "subscribers": [{"user_type": "member", "user_id": USER}],
            },
        ),
        (
            "autopilot update nightly --status paused --clear-subscribers --project=",
            "PATCH",
            PILOT_PATH,
            {"status": "paused", "subscribers": [], "project_id": None},
        ),
        (
            f"autopilot update {PILOT} --agent demo",
            "PATCH",
            PILOT_PATH,
            {"assignee_type": "agent", "assignee_id": AGENT},
        ),
        ("autopilot trigger Nightly", "POST", f"{PILOT_PATH}/trigger", None),
        (
            "autopilot trigger-add nightly --cron 0_9_*_*_1 --timezone Europe/Berlin",
            "POST",
            f"{PILOT_PATH}/triggers",
            {"kind": "schedule", "cron_expression": "0 9 * * 1", "timezone": "Europe/Berlin"},
        ),
        (
            "autopilot trigger-add nightly --kind webhook --label x",
            "POST",
            f"{PILOT_PATH}/triggers",
            {"kind": "webhook", "label": "x"},
        ),
        (
            f"autopilot trigger-update nightly {TRIGGER[:6]} --enabled false",
            "PATCH",
            TRIGGER_PATH,
            {"enabled": False},
        ),
        (
            "autopilot trigger-rotate-url nightly mornings -y",
            "POST",
            f"{TRIGGER_PATH}/rotate-webhook-token",
            None,
        ),
        (f"inbox read {ITEM}", "POST", f"/api/inbox/{ITEM}/read", None),
        (f"inbox archive {ITEM}", "POST", f"/api/inbox/{ITEM}/archive", None),
        ("inbox read-all", "POST", "/api/inbox/mark-all-read", None),
        ("inbox archive-all --read", "POST", "/api/inbox/archive-all-read", None),
        (
            "chat new demo --title Hm",
            "POST",
            "/api/chat/sessions",
            {"agent_id": AGENT, "title": "Hm"},
        ),
        ("chat rename About --title New", "PATCH", CHAT_PATH, {"title": "New"}),
        ("chat send About --content hi", "POST", f"{CHAT_PATH}/messages", {"content": "hi"}),
    ],
)
def test_bodies(bench: Bench, words: str, method: str, path: str, body: Any) -> None:
    code, _, err = bench.run(
        *(word.replace("_", " ") if "*" in word else word for word in words.split())
    )
    assert code == 0, err
    last = bench.requests[-1]
    assert (last.method, last.url.path) == (method, path)
    assert bench.body() == body


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ("autopilot delete nightly", PILOT_PATH),
        (f"autopilot trigger-delete nightly {TRIGGER}", TRIGGER_PATH),
        (f"chat delete {CHAT}", CHAT_PATH),
    ],
)
def test_deleting(bench: Bench, words: str, path: str) -> None:
    assert bench.run(*words.split())[0] == 0
    assert (bench.requests[-1].method, bench.requests[-1].url.path) == ("DELETE", path)


@pytest.mark.parametrize(
    "words",
    [
        "autopilot create --title T --agent demo",
        "autopilot create --title T --agent demo --mode sometimes",
        "autopilot update x --clear-subscribers --subscriber dana",
        "autopilot trigger-add x",
        "autopilot trigger-update x y",
        "autopilot runs x --limit 0",
        "attachment download abc",
        "inbox read abc",
        "chat send x",
    ],
)
def test_bad_input_is_told_locally(bench: Bench, words: str) -> None:
    code, _, err = bench.run(*words.split())
    assert code == 1
    assert err.startswith("error: ")
    assert bench.requests == []


def test_lists_are_the_servers_in_json_and_readable_in_tables(bench: Bench) -> None:
    _, out, _ = bench.run("autopilot", "list", "--output", "json")
    assert json.loads(out) == HERE["GET", "/api/autopilots"]
    _, out, _ = bench.run("autopilot", "list", "--status", "active")
    assert bench.requests[-1].url.params["status"] == "active"
    assert out.splitlines()[0].split() == (
        ["ID", "TITLE", "STATUS", "EXECUTION_MODE", "LAST_RUN_STATUS", "NEXT_RUN_AT"]
    )
    _, out, _ = bench.run("autopilot", "get", "nightly", "--output", "table")
    assert "0 9 * * * (UTC)" in out
    _, out, _ = bench.run("autopilot", "runs", "nightly", "--limit", "5")
    assert bench.requests[-1].url.params["limit"] == "5"
    assert "assignee's runtime is offline" in out
    _, out, _ = bench.run("inbox", "list", "--unread", "--full-id")
    assert (ITEM in out, SAID in out) == (True, False)
    _, out, _ = bench.run("chat", "list")
    assert "demo" in out


def test_a_webhooks_address_is_shown_whole(bench: Bench) -> None:
    words = ("autopilot", "trigger-add", "nightly", "--kind", "webhook", "--output", "table")
    _, out, _ = bench.run(*words)
    assert "http://h/api/webhooks/autopilots/awt_x" in out


def test_a_run_that_was_skipped_says_why(bench: Bench) -> None:
    _, _, err = bench.run("autopilot", "trigger", "nightly", "--output", "table")
    assert "skipped: assignee's runtime is offline" in err


def test_a_trigger_that_is_not_there_is_exit_4(bench: Bench) -> None:
    code, _, err = bench.run("autopilot", "trigger-delete", "nightly", "evenings")
    assert (code, TRIGGER in err) == (4, True)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_file_is_saved_under_its_own_name_and_nowhere_else(
    bench: Bench, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "elsewhere":
        shown = HERE["GET", f"/api/attachments/{FILE}"] | {"download_url": "https://store.x/f"}
        monkeypatch.setitem(ANSWERS, ("GET", f"/api/attachments/{FILE}"), shown)
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(("/download", "/f")):
            seen.append(request)
            return httpx.Response(200, content=b"\x89PNG")
        return bench.ordinary(request)

    bench.respond = respond
    folder = tmp_path / "deep" / "down"
    code, out, _ = bench.run("attachment", "download", FILE, "-o", str(folder))
    assert code == 0
    saved = folder / "Bild ü.png"
    assert json.loads(out) == {
        "id": FILE,
        "filename": "Bild ü.png",
        "path": str(saved.resolve()),
        "size": 4,
    }
    assert [path.name for path in folder.iterdir()] == [saved.name]
    assert saved.read_bytes() == b"\x89PNG"
    if where == "here":
        assert seen[0].headers["authorization"] == f"Bearer {TOKEN}"
    else:
        assert "authorization" not in seen[0].headers


def test_a_file_that_cannot_be_had_leaves_nothing_behind(bench: Bench, tmp_path: Path) -> None:
    code, _, err = bench.run("attachment", "download", FILE, "-o", str(tmp_path / "x"))
    assert (code, err) == (4, "error: not found\n")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize(
    "met", [503, 502, 404, httpx.ConnectError("refused"), httpx.ReadError("cut")]
)
def test_an_agent_waits_for_a_file_as_for_everything_else(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    met: int | Exception,
) -> None:
    task_environment(bench)
    waits: list[float] = []
    monkeypatch.setattr("daemon.cli.api.time.monotonic", lambda: sum(waits))
    monkeypatch.setattr("daemon.cli.api.time.sleep", waits.append)
    if where == "elsewhere":
        shown = HERE["GET", f"/api/attachments/{FILE}"] | {"download_url": "https://store.x/f"}
        monkeypatch.setitem(ANSWERS, ("GET", f"/api/attachments/{FILE}"), shown)
    asked = 0

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        if not request.url.path.endswith(("/download", "/f")):
            return bench.ordinary(request)
        asked += 1
        if asked > 3:
            return httpx.Response(200, content=b"\x89PNG")
        if isinstance(met, Exception):
            raise met
        return httpx.Response(met, text="404 page not found" if met == 404 else "")

    bench.respond = respond
    code, _, err = bench.run("attachment", "download", FILE, "-o", str(tmp_path))
    if (met, where) == (404, "elsewhere"):
        assert (code, waits) == (4, []), "who keeps files is believed"
        return
    assert (code, err) == (0, "")
    assert (tmp_path / "Bild ü.png").read_bytes() == b"\x89PNG"
    assert len(waits) == 3


@pytest.mark.parametrize(("where", "waited"), [("here", True), ("elsewhere", False)])
def test_an_agent_waits_out_401_of_the_server_and_not_of_a_store(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, waited: bool
) -> None:
    task_environment(bench)
    waits: list[float] = []
    monkeypatch.setattr("daemon.cli.api.time.monotonic", lambda: sum(waits))
    monkeypatch.setattr("daemon.cli.api.time.sleep", waits.append)
    if where == "elsewhere":
        shown = HERE["GET", f"/api/attachments/{FILE}"] | {"download_url": "https://store.x/f"}
        monkeypatch.setitem(ANSWERS, ("GET", f"/api/attachments/{FILE}"), shown)

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(("/download", "/f")):
            return httpx.Response(401)
        return bench.ordinary(request)

    bench.respond = respond
    assert bench.run("attachment", "download", FILE, "-o", str(tmp_path))[0] == 3
    assert (sum(waits) > 3000) == waited


def test_an_agent_waits_to_hand_over_a_file(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent, so it is sent again; what may have arrived is told instead."""
    task_environment(bench)
    waits: list[float] = []
    monkeypatch.setattr("daemon.cli.api.time.monotonic", lambda: sum(waits))
    monkeypatch.setattr("daemon.cli.api.time.sleep", waits.append)
    failures: list[Exception] = [httpx.ConnectError("refused"), httpx.ConnectError("refused")]
    (tmp_path / "a.txt").write_text("text")

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/upload-file":
            if failures:
                raise failures.pop()
            return httpx.Response(200, json={"id": FILE})
        return bench.ordinary(request)

    bench.respond = respond
    place = ("--comment", "6c6c6c6c-0000-4000-8000-000000000001")
    assert bench.run("attachment", "upload", str(tmp_path / "a.txt"), *place)[0] == 0
    assert len(waits) == 2
    failures.append(httpx.ReadError("cut"))
    code, _, err = bench.run("attachment", "upload", str(tmp_path / "a.txt"), *place)
    assert code == 2
    assert "may or may not have been made" in err


def test_waiting_for_an_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(chat_group.time, "sleep", waits.append)
    pending = [{"task_id": ITEM}, {"task_id": ITEM}, {}]

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/pending-task"):
            return httpx.Response(200, json=pending.pop(0))
        return bench.ordinary(request)

    bench.respond = respond
    code, out, _ = bench.run("chat", "send", CHAT, "--content", "hi", "--wait")
    assert code == 0
    assert len(waits) == 2
    assert out.count("hello") == 1
    assert "\x1b[31m" not in out
    code, out, _ = bench.run("chat", "messages", CHAT, "--output", "json")
    assert [message["content"] for message in json.loads(out)][1] == "hi"
