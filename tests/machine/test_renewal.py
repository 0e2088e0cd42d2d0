"""A daemon keeps its sign-in for as long as it is used: the token is renewed when it falls due.

Server, database and daemon are started again with their calendar shifted by months.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shared.home import Home, write_private
from tests.support.bullpen import CLI, Bullpen, start_up, wait_for
from tests.support.shifted import in_days, library

pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif("not sys.platform.startswith('linux')", reason="libfaketime"),
]

LIFE = 90
"""Days a token is made for here."""


class Laptop:
    """A machine whose daemon signs in with a token that ends."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def status(self, env: Mapping[str, str]) -> str:
        """What the daemon says of itself, asked on today's date: the shift stops Python's sleep."""
        done = subprocess.run(
            [*CLI, "daemon", "status", "--output", "json"],
            env={name: value for name, value in env.items() if name != "LD_PRELOAD"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        told: dict[str, Any] = json.loads(done.stdout)
        return str(told["status"])

    @contextmanager
    def daemon(self, server: Bullpen) -> Iterator[None]:
        """A daemon of the server's day that has started."""
        config = Home(self.home).config_file
        told = json.loads(config.read_text())
        config.write_text(json.dumps(told | {"server_url": server.told["url"]}))
        env = server.env | {
            "BULLPEN_HOME": str(self.home),
            "BULLPEN_DAEMON_PORT": "0",
            "BULLPEN_AGENTS": "demo",
        }
        with subprocess.Popen([sys.executable, "-P", "-m", "daemon"], env=env) as process:
            try:
                wait_for("the daemon", lambda: self.status(env) == "running")
                yield
            finally:
                process.terminate()


@pytest.fixture
def preloaded() -> Path:
    found = library()
    if found is None:
        pytest.skip("needs libfaketime")
    return found


def ends(server: Bullpen) -> datetime:
    with server.api() as api:
        rows = api.get("/api/tokens").raise_for_status().json()
    [token] = [row for row in rows if row["name"] == "laptop"]
    return datetime.fromisoformat(token["expires_at"])


def test_a_token_is_renewed_when_it_falls_due(tmp_path: Path, preloaded: Path) -> None:
    laptop = Laptop(tmp_path / "laptop")
    laptop.home.mkdir()
    home = tmp_path / "home"
    with start_up(home) as server:
        with server.api() as api:
            body = {"name": "laptop", "expires_in_days": LIFE}
            token = api.post("/api/tokens", json=body).raise_for_status().json()["token"]
        signed_in = {"server_url": server.told["url"], "token": token}
        write_private(Home(laptop.home).config_file, json.dumps(signed_in))
        first = ends(server)
        with laptop.daemon(server):
            assert ends(server) == first, "not due yet"

    with start_up(home, env=in_days(LIFE - 6, preloaded)) as server, laptop.daemon(server):
        wait_for("the renewal", lambda: ends(server) > first)
        assert ends(server) - first > timedelta(days=60)

    later = in_days(LIFE + 10, preloaded)
    with start_up(home, env=later) as server, laptop.daemon(server), server.api() as api:
        machines = api.get("/api/runtimes").raise_for_status().json()
        here = {row["daemon_id"] for row in machines if row["status"] == "online"}
        assert len(here) == 2, "the laptop still signs in, past the first end"


def test_a_token_that_was_not_used_ends(tmp_path: Path, preloaded: Path) -> None:
    home = tmp_path / "home"
    with start_up(home) as server, server.api() as api:
        body = {"name": "laptop", "expires_in_days": LIFE}
        token = api.post("/api/tokens", json=body).raise_for_status().json()["token"]
    with start_up(home, env=in_days(LIFE + 10, preloaded)) as server, server.api() as api:
        refused = api.get("/api/me", headers={"Authorization": f"Bearer {token}"})
        assert refused.status_code == 401
