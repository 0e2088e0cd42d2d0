"""The door of real servers: sessions of several that were told no secret, and a log on a full disk."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.postgres import open_test_database
from tests.support.rows import make_world
from tests.support.server_process import start_server, start_servers
from tests.support.waiting import eventually

pytestmark = pytest.mark.together


def client(token: str = "") -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(headers=headers, trust_env=False, timeout=10)


async def test_servers_that_were_told_no_secret_share_sessions_and_their_end() -> None:
    async with open_test_database(pool_size=2) as (database, url):
        world = await make_world(database)
        with start_servers(2, url, {"BULLPEN_JWT_SECRET": ""}) as (one, two):
            async with client(world.token) as owner, client() as browser:
                made = (await owner.post(f"{one.url}/auth/link")).json()
                spent = await browser.get(two.url + urlsplit(made["url"]).path)
                assert spent.status_code == 303  # made by the one, spent at the other
                session = browser.cookies["multica_auth"]
            async with client(session) as copy:
                for server in (one, two):
                    assert (await copy.get(f"{server.url}/api/me")).json()["id"] == world.user_id
                assert (await copy.post(f"{one.url}/auth/logout")).status_code == 200
                assert (await copy.get(f"{one.url}/api/me")).status_code == 401

                async def dead() -> bool:
                    return (await copy.get(f"{two.url}/api/me")).status_code == 401

                await eventually(dead, seconds=5)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
async def test_a_server_whose_log_cannot_be_written_serves_on() -> None:
    settings = {"BULLPEN_ALLOW_SIGNUP": "true", "BULLPEN_LOG_LEVEL": "debug"}
    async with open_test_database(pool_size=2) as (database, url):
        world = await make_world(database)
        with start_server(url, settings, log_file=Path("/dev/full")) as server:
            async with client(world.token) as owner:
                for number in range(3):
                    body = {"email": f"{number}@example.org"}  # the code is a line of the log
                    sent = await owner.post(f"{server.url}/auth/send-code", json=body)
                    assert sent.status_code == 200
                assert (await owner.get(f"{server.url}/api/me")).json()["id"] == world.user_id
            assert server.process.poll() is None
