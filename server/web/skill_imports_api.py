"""Endpoints that bring skills in from code hosts (spec 06 §12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server import code_hosts
from server.consequences import Consequence
from server.errors import BadGateway, Conflict, Forbidden
from server.store import skills
from server.store.queries import Connection
from server.web import auth
from server.web.answers import answer
from server.web.skills_api import managed_skill, skill_event
from server.web.unit import fields, query, write

WAYS: Final = ("fail", "overwrite", "rename", "skip")
LAST_COPY: Final = 51


async def import_skill(request: Request) -> Response:
    """POST /api/skills/import: a skill of a public repository, as it is there now."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    source = code_hosts.parse_source(sent.required_text("url"))
    way = sent.one_of("on_conflict", WAYS, "fail") if sent.given("on_conflict") else None
    found = await code_hosts.fetch_skill(source)
    values: dict[str, Any] = {
        "name": found.name,
        "description": found.description,
        "content": found.content,
        "config": {"origin": {"type": "github", "url": source.url, "skipped": found.skipped}},
    }

    async def unit(conn: Connection) -> tuple[tuple[int, Any], Sequence[Consequence]]:
        taken = await conn.fetch(
            skills.SQL.named_like, caller.workspace_id, found.name, f"{found.name}-"
        )
        existing = next((row for row in taken if row["name"] == found.name), None)
        beside = {} if existing is None else {"existing_skill": _brief(existing)}
        if existing is not None and way in (None, "fail"):
            text = f"a skill named {found.name!r} already exists in this workspace"
            if way is None:
                raise Conflict(text, **beside)
            return (409, {"status": "conflict", "reason": text, **beside}), ()
        if existing is not None and way == "skip":
            return (200, {"status": "skipped", **beside}), ()
        if existing is not None and way == "overwrite":
            try:
                await managed_skill(conn, caller, existing["id"])
            except Forbidden as error:
                return (403, {"status": "failed", "reason": error.text, **beside}), ()
            made = await skills.update_skill(conn, existing["id"], values, found.files)
            status, code = "updated", 200
        else:
            names = {row["name"] for row in taken}
            copies = (f"{found.name}-{number}" for number in range(2, LAST_COPY + 1))
            free = (
                found.name if existing is None else next((n for n in copies if n not in names), "")
            )
            made = None
            if free:
                made = await skills.create_skill(
                    conn, caller.workspace_id, caller.actor.user_id, values | {"name": free},
                    found.files,
                )  # fmt: skip
            status, code = "created", 201
        if made is None:
            raise Conflict(f"a skill named {found.name!r} already exists in this workspace")
        told = (skill_event(caller, f"skill:{status}", made),)
        return (code, made if way is None else {"status": status, "skill": made, **beside}), told

    code, body = await write(request, unit)
    return answer(body, code)


async def search_skills(request: Request) -> Response:
    """GET /api/skills/search: this server asks no public catalogue, and says so."""
    await auth.workspace(request)
    query(request).text("q")
    raise BadGateway(
        "this server asks no public catalogue of skills; import one by its address:"
        " bullpen skill import https://github.com/owner/repository/tree/branch/directory"
    )


def _brief(row: Any) -> dict[str, Any]:
    return {"id": row["id"], "name": row["name"], "created_by": row["created_by"]}


routes: list[BaseRoute] = [
    Route("/api/skills/import", import_skill, methods=["POST"]),
    Route("/api/skills/search", search_skills, methods=["GET"]),
]
