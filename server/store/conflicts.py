"""A write that collides with a row that is already there, as a value instead of an exception."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import asyncpg

T = TypeVar("T")


async def unless_taken(writing: Awaitable[T]) -> T | None:
    """Await a write; None when a unique index refused it. The transaction is lost then."""
    try:
        return await writing
    except asyncpg.UniqueViolationError:
        return None
