"""A server that a proxy shows below a path: links, redirects, cookies, pages and sockets follow it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urljoin

import httpx
import pytest
import trio
from trio_websocket import open_websocket_url

from tests.support.postgres import open_test_database
from tests.support.reverse_proxy import ReverseProxy, open_reverse_proxy
from tests.support.rows import World, make_issue, make_world
from tests.support.server import RunningServer, open_server

pytestmark = pytest.mark.postgres

ROOT = "/tools/bullpen"


@asynccontextmanager
async def behind() -> AsyncIterator[tuple[ReverseProxy, RunningServer, World]]:
    async with (
        open_test_database() as (database, _),
        open_reverse_proxy(ROOT) as proxy,
        open_server(database, public_url=proxy.url) as server,
    ):
        proxy.target = int(server.url.rpartition(":")[2])
        yield proxy, server, await make_world(database)


@asynccontextmanager
async def browser(proxy: ReverseProxy, token: str) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that was signed in by a link."""
    async with httpx.AsyncClient(timeout=10) as client:
        owner = {"authorization": f"Bearer {token}"}
        made = (await client.post(f"{proxy.url}/auth/link", headers=owner)).json()
        assert made["url"].startswith(f"{proxy.url}/auth/link/")
        opened = await client.get(made["url"])
        assert (opened.status_code, opened.headers["location"]) == (303, f"{ROOT}/")
        cookies = opened.headers.get_list("set-cookie")
        assert len(cookies) == 2
        assert all(f"Path={ROOT}/;" in cookie + ";" for cookie in cookies)
        yield client


async def test_every_address_of_a_page_is_below_the_root_path() -> None:
    async with behind() as (proxy, server, world), browser(proxy, world.token) as client:
        text = 'see [the board](/somewhere) and `href="/x"` and "href="/y'
        issue = await server.services.database.write(
            lambda conn: make_issue(conn, world, title="One", description=text)
        )
        for path in (
            "", f"/{world.slug}/issues", f"/{world.slug}/issues/{issue.id}",
            f"/{world.slug}/agents", f"/{world.slug}/runtimes", "/auth/sessions", "/workspaces/new", f"/{world.slug}/issues/NO-99",
        ):  # fmt: skip
            page = await client.get(f"{proxy.url}{path or '/'}", follow_redirects=True)
            assert f'data-root="{ROOT}"' in page.text, path
            found = re.findall(r'\s(?:href|src|action)="(/[^"]*)"', page.text)
            assert len(found) >= 5, path
            for address in found:
                assert address.startswith(f"{ROOT}/"), (path, address)
                if address.startswith(f"{ROOT}/static/"):
                    assert (await client.get(urljoin(proxy.url, address))).status_code == 200
        assert proxy.refused == []


async def test_signing_out_and_in_leads_below_the_root_path() -> None:
    async with behind() as (proxy, _, world), browser(proxy, world.token) as client:
        proof = {"x-csrf-token": client.cookies["multica_csrf"]}
        assert (await client.post(f"{proxy.url}/auth/logout", headers=proof)).status_code == 200
        assert "multica_auth" not in client.cookies  # the path matched
        out = await client.get(f"{proxy.url}/{world.slug}/issues")
        assert out.headers["location"] == f"{ROOT}/login?next=/{world.slug}/issues"
        login = await client.get(urljoin(proxy.url, out.headers["location"]))
        assert f'action="{ROOT}/login/code"' in login.text
        assert f'name="next" value="/{world.slug}/issues"' in login.text
        assert proxy.refused == []


async def test_the_live_connection_goes_through_the_proxy() -> None:
    async with behind() as (proxy, _, world), browser(proxy, world.token) as client:
        url = f"{proxy.url}/ws?workspace_slug={world.slug}".replace("http:", "ws:")
        origin = proxy.url.removesuffix(ROOT)
        headers = [
            ("cookie", f"multica_auth={client.cookies['multica_auth']}"),
            ("origin", origin),
        ]
        with trio.fail_after(10):
            async with open_websocket_url(url, extra_headers=headers) as socket:
                await socket.send_message('{"type":"ping"}')
                assert await socket.get_message() == '{"type":"pong"}'
        config = (await client.get(f"{proxy.url}/api/config")).json()
        assert config["daemon_server_url"] == proxy.url
