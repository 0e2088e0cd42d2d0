"""Counts the SQL statements of a unit, transaction control included."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from server.database import Database

T = TypeVar("T")


async def counted(database: Database, unit: Callable[[Any], Awaitable[T]]) -> tuple[T, list[str]]:
    """Run a unit as one write; return its value and the statements it sent, without begin/commit."""
    sent: list[str] = []

    async def run(conn: Any) -> T:
        with conn.query_logger(lambda record: sent.append(record.query)):
            return await unit(conn)

    return await database.write(run), sent


@contextmanager
def watched(database: Database) -> Iterator[list[str]]:
    """Yield the statements of all writes meanwhile, without begin/commit."""
    sent: list[str] = []
    write = database.write

    async def watching(unit: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        async def run(conn: Any) -> Any:
            with conn.query_logger(lambda record: sent.append(record.query)):
                return await unit(conn)

        return await write(run, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "write", watching)
        yield sent
