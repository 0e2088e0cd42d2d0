"""Named SQL statements, read once from the `.sql` files of this folder, and the types of storage.

A statement starts at a line `-- name: claim`; the comment lines after it say what it is for and
are not sent. Storage functions take a `Connection` first: it is asyncpg's, seen through what they
may use of it, so that nothing outside `server/database.py` can hold or release one. Pure after
loading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

FOLDER = Path(__file__).parent

Record: TypeAlias = Mapping[str, Any]
"""A row. uuid columns are canonical strings, jsonb columns plain values, times aware datetimes."""

_HEAD = re.compile(r"^-- name: *(\w+) *$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*$\n?", re.MULTILINE)


class Connection(Protocol):
    """What a storage function may do with the connection it is given."""

    async def fetch(self, query: str, *args: Any) -> list[Record]: ...

    async def fetchrow(self, query: str, *args: Any) -> Record | None: ...

    async def fetchval(self, query: str, *args: Any) -> Any: ...

    async def execute(self, query: str, *args: Any) -> str: ...

    async def executemany(self, command: str, args: Iterable[Any]) -> None: ...

    def transaction(self) -> AbstractAsyncContextManager[Any]: ...


class Queries(dict[str, str]):
    """Statements by name; `SQL.claim` and `SQL["claim"]` are the same text."""

    def __getattr__(self, name: str) -> str:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no statement named {name!r}") from None


def parse(text: str) -> Queries:
    """Split a file into its statements. Raises ValueError for a name given twice."""
    queries = Queries()
    heads = list(_HEAD.finditer(text))
    for number, head in enumerate(heads):
        end = heads[number + 1].start() if number + 1 < len(heads) else len(text)
        name = head[1]
        if name in queries:
            raise ValueError(f"statement {name!r} is defined twice")
        queries[name] = _COMMENT.sub("", text[head.end() : end]).strip().rstrip(";").rstrip()
    return queries


def load(name: str) -> Queries:
    """Read `<name>.sql`."""
    return parse((FOLDER / f"{name}.sql").read_text(encoding="utf-8"))
