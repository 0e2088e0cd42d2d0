"""Counts the SQL statements of a unit, transaction control included."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from server.database import Database

T = TypeVar("T")


async def counted(database: Database, unit: Callable[[Any], Awaitable[T]]) -> tuple[T, list[str]]:
    """Run a unit as one write; return its value and the statements it sent, without begin/commit."""
    sent: list[str] = []

    async def run(conn: Any) -> T:
        with conn.query_logger(lambda record: sent.append(record.query)):
            return await unit(conn)

    return await database.write(run), sent
