"""The server's application in this process, on a database of its own, with a small cast of callers.

Requests go straight into the application, so a test of the API needs no port and no server task.
An answer of 500 fails the test wherever it comes from.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs
import httpx

from server.config import from_environment
from server.consequences import Consequence
from server.database import Database
from server.push.hub import Hub
from server.store.queries import Connection
from server.web.context import Services
from server.web.routes import make_app
from shared.ids import TASK_TOKEN, hash_token, mint_token
from shared.wire.event import Event
from tests.support.postgres import open_test_database
from tests.support.rows import World, insert, make_task, make_token, make_user, make_world


@attrs.define
class Caller:
    """Somebody with a token; every call is JSON in, JSON out."""

    user_id: str
    token: str
    client: httpx.AsyncClient

    async def call(self, method: str, path: str, body: Any = ..., **options: Any) -> httpx.Response:
        """Send a request; `body` is sent as JSON unless left out."""
        if body is not ...:
            options["content"] = json.dumps(body)  # escapes what UTF-8 cannot carry
        return await self.client.request(method, path, **options)

    async def get(self, path: str, **params: Any) -> Any:
        """Return the JSON of a 200."""
        return await self.ok(200, "GET", path, params=params)

    async def ok(self, status: int, method: str, path: str, body: Any = ..., **options: Any) -> Any:
        """Return the JSON of an answer with exactly that status."""
        response = await self.call(method, path, body, **options)
        assert response.status_code == status, response.text
        return response.json() if response.content else None

    async def refused(self, status: int, method: str, path: str, body: Any = ...) -> str:
        """Return the error text of an answer with exactly that status."""
        response = await self.call(method, path, body)
        assert response.status_code == status, response.text
        answer = response.json()
        assert isinstance(answer["error"], str)
        assert answer["error"]
        return str(answer["error"])


@attrs.define
class Api:
    """The application, its parts, and who calls it.

    `owner` owns the workspace, its runtime and its agent; `member` is an ordinary member;
    `stranger` owns another workspace.
    """

    database: Database
    hub: Hub
    world: World
    elsewhere: World
    app: Any
    stack: AsyncExitStack
    told: list[Consequence] = attrs.field(factory=list)
    owner: Caller = attrs.field(init=False)
    member: Caller = attrs.field(init=False)
    stranger: Caller = attrs.field(init=False)

    async def caller(self, user_id: str, token: str, workspace_id: str) -> Caller:
        """Make a caller with a token, in a workspace."""
        client = await self.stack.enter_async_context(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(self.app),
                base_url="http://127.0.0.1",
                headers={"authorization": f"Bearer {token}", "x-workspace-id": workspace_id},
                event_hooks={"response": [_never_500]},
            )
        )
        return Caller(user_id, token, client)

    async def agent(self, **task: Any) -> Caller:
        """Make a caller that is the world's agent inside a running task; columns of the task."""
        world = self.world
        token = mint_token(TASK_TOKEN)

        async def unit(conn: Connection) -> str:
            task_id = await make_task(conn, world, **({"status": "running"} | task))
            await conn.execute(
                "insert into task_token (token_hash, task_id, agent_id, workspace_id, user_id,"
                " expires_at) values ($1, $2, $3, $4, $5, now() + interval '1 day')",
                hash_token(token),
                task_id,
                world.agent_id,
                world.workspace_id,
                world.user_id,
            )
            return task_id

        await self.database.write(unit)
        return await self.caller(world.user_id, token, world.workspace_id)

    async def run(self, unit: Any) -> Any:
        """Run a unit of work."""
        return await self.database.write(unit)

    async def fetch(self, statement: str, *args: Any) -> list[Any]:
        """Read rows."""
        return await self.database.read(lambda conn: conn.fetch(statement, *args))

    def events(self, kind: str = "") -> list[Event]:
        """Return the events told so far, of one type or all."""
        return [e for e in self.told if isinstance(e, Event) and kind in {"", e.type}]


async def _never_500(response: httpx.Response) -> None:
    if response.status_code == 500:
        await response.aread()
        request = response.request
        raise AssertionError(f"{request.method} {request.url}: 500 for {request.content[:500]!r}")


@asynccontextmanager
async def open_api(**settings: str) -> AsyncIterator[Api]:
    """Open the application on a fresh database; settings are variables of the environment."""
    async with open_test_database(pool_size=10) as (database, _), AsyncExitStack() as stack:
        world, elsewhere = await make_world(database), await make_world(database)

        async def join(conn: Connection) -> tuple[str, str]:
            user_id = await make_user(conn, "Mo")
            await insert(
                conn, "member", workspace_id=world.workspace_id, user_id=user_id, role="member"
            )
            return user_id, await make_token(conn, user_id)

        member_id, member_token = await database.write(join)
        hub = Hub()
        config = from_environment({"BULLPEN_JWT_SECRET": "x" * 40} | settings, home="/nonexistent")
        app = make_app(Services(config=config, database=database, hub=hub))
        api = Api(database, hub, world, elsewhere, app, stack)
        hub.observe(api.told.append)
        here = world.workspace_id
        api.owner = await api.caller(world.user_id, world.token, here)
        api.member = await api.caller(member_id, member_token, here)
        api.stranger = await api.caller(elsewhere.user_id, elsewhere.token, elsewhere.workspace_id)
        yield api
