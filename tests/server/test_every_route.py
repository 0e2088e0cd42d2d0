"""No route of the application answers 500, whoever calls it with whatever.

The routes are taken from the application itself, so a new one is covered on the day it appears.
What is sent is drawn from a seeded generator; the seed stands in the failing test's message.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.routing import BaseRoute, Mount, Route

from server.web import routes
from tests.support.api import Api, open_api
from tests.support.rows import make_comment, make_issue, make_task

pytestmark = pytest.mark.postgres

ROUNDS = 4
"""Requests per route, method and caller."""

_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**400,
    1.5,
    "",
    " ",
    "x",
    "\0",
    "\ud800",
    "a" * 5000,
    "2026-13-45",
    "00000000-0000-0000-0000-000000000000",
    "not-a-uuid",
    "'; drop table issue; --",
    "%00",
    [],
    [None],
    ["\0"],
    [[]],
    {},
    {"\0": "\0"},
    {"a": {"b": [1]}},
)

_RAW = (b"", b"{", b"null", b"[]", b"7", b'"x"', b"\xff\xfe\x00", b"[" * 20_000, b"{}{}")


def flat(found: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Every (method, path) of the application that carries an endpoint of ours."""
    for route in found:
        if isinstance(route, Route):
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield method, route.path
        elif isinstance(route, Mount) and route.routes:
            for method, path in flat(list(route.routes)):
                yield method, route.path + path


def field_names() -> list[str]:
    """Names that request bodies use, from the wire classes: hostile values must hit real fields."""
    import attrs

    from shared.wire import runtime, task

    names = {"title", "content", "status", "assignee_id", "assignee_type", "issue_ids", "updates"}
    for module in (runtime, task):
        for kind in vars(module).values():
            if isinstance(kind, type) and attrs.has(kind):
                names |= {field.name for field in attrs.fields(kind)}
    return sorted(names)


class Draw:
    """Draws requests. One seed, one sequence."""

    def __init__(self, seed: int, ids: list[str]) -> None:
        self._random = random.Random(seed)
        self._ids = ids
        self._names = field_names()

    def path(self, template: str) -> str:
        def fill(_: re.Match[str]) -> str:
            return self._random.choice(
                [
                    *self._ids,
                    *self._ids,
                    "x",
                    "%00",
                    "%F0%28",
                    "0",
                    "BUL-1",
                    "BUL-99999999999999",
                    "-",
                ]
            )

        return re.sub(r"{[^}]+}", fill, template)

    def query(self) -> dict[str, str]:
        names = (
            "limit",
            "offset",
            "since",
            "status",
            "sort",
            "days",
            "before",
            "thread",
            "q",
            "tz",
        )
        values = ("", "-1", "0", "9" * 30, "x", "\0", "2026-01-01T00:00:00Z", "nan", "%")
        count = self._random.randrange(3)
        return {self._random.choice(names): self._random.choice(values) for _ in range(count)}

    def body(self) -> bytes:
        if self._random.random() < 0.2:
            return self._random.choice(_RAW)
        value = {self._random.choice(self._names): self._value() for _ in range(6)}
        return json.dumps(value).encode()

    def _value(self) -> Any:
        if self._random.random() < 0.3:
            return self._random.choice(self._ids)
        if self._random.random() < 0.1:
            return [{self._random.choice(self._names): self._random.choice(_VALUES)}]
        return self._random.choice(_VALUES)


async def known_ids(api: Api) -> list[str]:
    async def unit(conn: Any) -> list[str]:
        issue = await make_issue(conn, api.world)
        await conn.execute("update workspace set issue_counter = 1000000")
        return [
            issue.id,
            api.world.workspace_id,
            api.world.agent_id,
            api.world.runtime_id,
            api.world.user_id,
            api.elsewhere.agent_id,
            await make_comment(conn, issue, api.world.user_id, "x"),
            await make_task(conn, api.world, issue_id=issue.id),
        ]

    ids: list[str] = await api.run(unit)
    return ids


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_nothing_sent_to_any_route_is_a_500(seed: int) -> None:
    async with open_api() as api:
        draw = Draw(seed, await known_ids(api))
        everyone = {"owner": api.owner, "stranger": api.stranger, "agent": await api.agent()}
        found = sorted(set(flat(list(routes._table()))))
        assert len(found) > 60, "the routes were not found"
        for method, template in found:
            for who, caller in everyone.items():
                for _ in range(ROUNDS if who == "owner" else 1):
                    path, query, body = draw.path(template), draw.query(), draw.body()
                    answer = await caller.client.request(method, path, params=query, content=body)
                    said = f"seed {seed}: {who} {method} {path} {query} {body[:300]!r}"
                    assert answer.status_code < 500 or answer.status_code in (502, 503), said
                    if answer.status_code >= 400 and path.startswith("/api/"):
                        assert answer.json()["error"], said
