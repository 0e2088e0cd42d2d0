"""`bullpen auth sessions` and signing out everywhere, against a server that only remembers."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from daemon.cli import root
from daemon.cli.settings import Settings

pytestmark = pytest.mark.fast

ONE = {
    "id": "11111111-1111-4111-8111-111111111111",
    "kind": "command_line",
    "current": False,
    "user_agent": "python-httpx\x1b[31m",
    "personal_token": None,
    "created_at": "2026-01-01T00:00:00Z",
    "last_used_at": "2026-01-02T00:00:00Z",
    "expires_at": "2026-02-01T00:00:00Z",
}


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def settings(tmp_path: Path, asked: list[str]) -> Settings:
    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        if request.method == "GET":
            return httpx.Response(200, json={"sessions": [ONE]})
        if request.url.path.endswith("/api/sessions"):
            return httpx.Response(200, json={"ended": 1})
        known = request.url.path.endswith(ONE["id"])
        return httpx.Response(204 if known else 404, json={"error": "session not found"})

    env = {
        "BULLPEN_HOME": str(tmp_path),
        "BULLPEN_SERVER_URL": "http://h/below",
        "BULLPEN_TOKEN": "mul_" + "a" * 40,
    }
    return Settings(env=env, transport=httpx.MockTransport(handle))


def test_sessions_are_listed(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(("auth", "sessions"), settings) == 0
    out = capsys.readouterr().out
    assert ONE["id"] in out
    assert "command line" in out
    assert "\x1b" not in out
    assert root.run(("auth", "sessions", "--output", "json"), settings) == 0
    assert json.loads(capsys.readouterr().out) == [ONE]


def test_one_is_ended_or_all(
    settings: Settings, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert root.run(("auth", "sessions", "--end", str(ONE["id"])), settings) == 0
    assert root.run(("auth", "sessions", "--end", "a/../b"), settings) != 0
    assert root.run(("auth", "logout", "--everywhere"), settings) == 0
    assert "ended 1 session; personal access tokens stay" in capsys.readouterr().err
    assert asked[0] == f"DELETE /below/api/sessions/{ONE['id']}"
    assert asked[-1] == "DELETE /below/api/sessions"
