"""Endpoints for an issue's metadata: a small flat map that agents keep notes in (spec 06 §5.1).

Each key is written by one conditional statement, so two writers of different keys lose nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.errors import Invalid
from server.store import work
from server.store.queries import Connection
from server.web import auth
from server.web.answers import answer
from server.web.auth import Membership
from server.web.issue_changes import existing, work_thing
from server.web.unit import event, fields, read, write
from shared.wire.work import Issue

_KEY: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.-]{0,63}")

_Changed = tuple[dict[str, Any], Sequence[Consequence]]


async def get_metadata(request: Request) -> Response:
    """GET /api/issues/{id}/metadata."""
    caller = await auth.workspace(request)

    async def unit(conn: Connection) -> dict[str, Any]:
        found = await work.get_issue(conn, caller.workspace_id, request.path_params["id"])
        return existing(found).metadata

    return answer({"metadata": await read(request, unit)})


async def set_metadata(request: Request) -> Response:
    """PUT /api/issues/{id}/metadata/{key}: a string, a number or a boolean."""
    caller = await auth.workspace(request)
    key = _key(request)
    value = (await fields(request)).value("value")
    if not isinstance(value, str | int | float):
        raise Invalid("value must be a string, a number or a boolean")

    async def unit(conn: Connection) -> _Changed:
        issue = await _locked(conn, caller, request)
        metadata = await work.set_metadata(conn, issue.id, key, value)
        if metadata is None:
            raise Invalid(
                f"metadata may have at most {work.METADATA_KEYS} keys "
                f"and {work.METADATA_BYTES} bytes"
            )
        return metadata, (_told(caller, issue, metadata),)

    return answer({"metadata": await write(request, unit)})


async def delete_metadata(request: Request) -> Response:
    """DELETE /api/issues/{id}/metadata/{key}: a key that is absent is fine."""
    caller = await auth.workspace(request)
    key = _key(request)

    async def unit(conn: Connection) -> _Changed:
        issue = await _locked(conn, caller, request)
        metadata = await work.delete_metadata(conn, issue.id, key) or {}
        return metadata, (_told(caller, issue, metadata),)

    return answer({"metadata": await write(request, unit)})


async def _locked(conn: Connection, caller: Membership, request: Request) -> Issue:
    ref = request.path_params["id"]
    issue = existing(await work.lock_issue(conn, caller.workspace_id, ref))
    caller.check(work_thing(caller, issue))
    return issue


def _key(request: Request) -> str:
    key: str = request.path_params["key"]
    if not _KEY.fullmatch(key):
        raise Invalid("invalid metadata key")
    return key


def _told(caller: Membership, issue: Issue, metadata: dict[str, Any]) -> Consequence:
    return event(caller, "issue_metadata:changed", issue_id=issue.id, metadata=metadata)


routes: list[BaseRoute] = [
    Route("/api/issues/{id}/metadata", get_metadata, methods=["GET"]),
    Route("/api/issues/{id}/metadata/{key}", set_metadata, methods=["PUT"]),
    Route("/api/issues/{id}/metadata/{key}", delete_metadata, methods=["DELETE"]),
]
