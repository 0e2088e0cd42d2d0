"""Requests whose writes are looked at and then taken back: the next one finds everything as it was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from server.store.queries import Connection
from tests.support.api import Api

Look = Callable[[Connection], Awaitable[Any]]


class _TakenBack(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


@attrs.define
class Rehearsal:
    """`seen` is what the look saw after each write since it was last cleared."""

    seen: list[Any] = attrs.field(factory=list)


def rehearse(api: Api, look: Look | None = None) -> Rehearsal:
    """From now on every unit that writes is rolled back; `look` sees what it wrote before."""
    rehearsal = Rehearsal()
    write = api.database.write

    async def taken_back(unit: Any, **how: Any) -> Any:
        async def run(conn: Any) -> Any:
            value = await unit(conn)
            if look is not None:
                rehearsal.seen.append(await look(conn))
            raise _TakenBack(value)

        try:
            await write(run, **(how | {"one_statement": False}))
        except _TakenBack as done:
            return done.value
        raise AssertionError("nothing was taken back")

    api.database.write = taken_back  # type: ignore[method-assign]
    return rehearsal
