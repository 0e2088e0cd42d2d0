"""Named SQL statements, read once from the `.sql` files of this folder, and the types of storage.

A statement starts at a line `-- name: claim`; the comment lines after it say what it is for and
are not sent. `{own r}` in one stands for the caller's right to the machine of the row `r`, `{here
w.id}` for the caller's right to the workspace of that id: the same words in every statement that a
daemon's request ends in, with the caller in $2 and $3 (`Caller.args`). Storage functions take a `Connection` first: it is asyncpg's, seen through what they
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
_RIGHT = re.compile(r"\{(own|here) ([\w.]+)\}")
_COMMENT = re.compile(r"^\s*--.*$\n?", re.MULTILINE)


_MEMBER = """($3::text[] is null or {workspace} = ($3::text[])[1]::uuid)
    and ($2::uuid is null or exists (select from member own_member
        where own_member.workspace_id = {workspace} and own_member.user_id = $2::uuid))"""

_RIGHTS = {
    "here": f"(case when {_MEMBER} then true end)",
    "own": f"""(case when {_MEMBER}
    then ($3::text[] is null or coalesce({{row}}.daemon_id = ($3::text[])[2], false))
        and ($2::uuid is null or coalesce({{row}}.owner_id = $2::uuid, false)) end)""",
}
"""True, or for `own` false where the caller is at home but the machine is somebody else's; null for
strangers to the workspace. A machine's token stands for its maker (in $2) at that one machine."""


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
        statement = _COMMENT.sub("", text[head.end() : end]).strip().rstrip(";").rstrip()
        queries[name] = _RIGHT.sub(_right, statement)
    return queries


def _right(named: re.Match[str]) -> str:
    """The condition a short form stands for."""
    row = named[2]
    workspace = row if named[1] == "here" else f"{row}.workspace_id"
    return _RIGHTS[named[1]].format(row=row, workspace=workspace)


def load(name: str) -> Queries:
    """Read `<name>.sql`."""
    return parse((FOLDER / f"{name}.sql").read_text(encoding="utf-8"))
