"""Endpoints for skills and for which agent has which (spec 06 §12)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.errors import Conflict, Invalid, NotFound
from server.rights import Thing
from server.store import skills
from server.store.queries import Connection
from server.web import auth
from server.web.agents_api import agent_event, managed_agent, usable_agent
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.fields import Fields, text_of
from server.web.unit import event, fields, path_id, read, write
from shared.skillbundle import clash, path_fault
from shared.wire.teamwork import FullSkill, SkillFileRow, SkillSummary

LARGEST_FILE: Final = 1024 * 1024
LARGEST_SKILL: Final = 8 * 1024 * 1024
"""Bytes, files included."""
MOST_FILES: Final = 128
MOST_SKILLS: Final = 200
"""Skills of one agent."""
LONGEST_NAME: Final = 255

_MAIN: Final = "skill.md"

_Told = Sequence[Consequence]


async def list_skills(request: Request) -> Response:
    """GET /api/skills."""
    caller = await auth.workspace(request)
    return answer(
        await read(request, partial(skills.list_skills, workspace_id=caller.workspace_id))
    )


async def get_skill(request: Request) -> Response:
    """GET /api/skills/{id}: with its files."""
    caller = await auth.workspace(request)
    skill_id = path_id(request, "id", "skill id")
    return answer(await read(request, partial(_known, caller=caller, skill_id=skill_id)))


async def create_skill(request: Request) -> Response:
    """POST /api/skills."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    values: dict[str, Any] = {
        "name": _name(sent),
        "description": sent.text("description"),
        "content": _content(sent.text("content")),
        "config": sent.object("config"),
    }
    files = _files(sent) or {}
    _check_together(values["content"], files)

    async def unit(conn: Connection) -> tuple[FullSkill, _Told]:
        made = await skills.create_skill(
            conn, caller.workspace_id, caller.actor.user_id, values, files
        )
        if made is None:
            raise _taken(str(values["name"]))
        return made, (skill_event(caller, "skill:created", made),)

    return answer(await write(request, unit), 201)


async def update_skill(request: Request) -> Response:
    """PUT /api/skills/{id}: what was sent; files, when sent, replace all."""
    caller = await auth.workspace(request)
    skill_id = path_id(request, "id", "skill id")
    sent = await fields(request)
    changes: dict[str, Any] = {}
    if sent.given("name"):
        changes["name"] = _name(sent)
    if sent.given("description"):
        changes["description"] = sent.text("description")
    if sent.given("content"):
        changes["content"] = _content(sent.text("content"))
    if sent.given("config"):
        changes["config"] = sent.object("config")
    files = _files(sent)
    _check_together(changes.get("content", ""), files or {})

    async def unit(conn: Connection) -> tuple[FullSkill, _Told]:
        before = await managed_skill(conn, caller, skill_id)
        changed = await skills.update_skill(conn, skill_id, changes, files)
        if changed is None:
            raise _taken(str(changes.get("name", before.name)))
        return changed, (skill_event(caller, "skill:updated", changed),)

    return answer(await write(request, unit))


async def delete_skill(request: Request) -> Response:
    """DELETE /api/skills/{id}."""
    caller = await auth.workspace(request)
    skill_id = path_id(request, "id", "skill id")

    async def unit(conn: Connection) -> tuple[None, _Told]:
        await managed_skill(conn, caller, skill_id)
        await conn.execute(skills.SQL.delete_skill, skill_id)
        return None, (event(caller, "skill:deleted", skill_id=skill_id),)

    await write(request, unit)
    return nothing()


async def list_files(request: Request) -> Response:
    """GET /api/skills/{id}/files."""
    caller = await auth.workspace(request)
    skill_id = path_id(request, "id", "skill id")

    async def unit(conn: Connection) -> list[SkillFileRow]:
        return (await _known(conn, caller, skill_id)).files

    return answer(await read(request, unit))


async def put_file(request: Request) -> Response:
    """PUT /api/skills/{id}/files: write one file."""
    caller = await auth.workspace(request)
    skill_id = path_id(request, "id", "skill id")
    sent = await fields(request)
    path = _path(sent.text("path"))
    if path.lower() == _MAIN:
        raise Invalid("SKILL.md is the skill's content; change it with the skill")
    content = _file_content(path, sent.text("content"))

    async def unit(conn: Connection) -> tuple[SkillFileRow, _Told]:
        await managed_skill(conn, caller, skill_id)
        known = {file.path: file.content for file in await skills.list_files(conn, skill_id)}
        _check_together("", known | {path: content})
        written = await skills.put_file(conn, skill_id, path, content)
        shown = await _known(conn, caller, skill_id)
        return written, (skill_event(caller, "skill:updated", shown),)

    return answer(await write(request, unit))


async def delete_file(request: Request) -> Response:
    """DELETE /api/skills/{id}/files/{fileId}."""
    caller = await auth.workspace(request)
    skill_id = path_id(request, "id", "skill id")
    file_id = path_id(request, "file_id", "file id")

    async def unit(conn: Connection) -> tuple[None, _Told]:
        await managed_skill(conn, caller, skill_id)
        if await conn.fetchval(skills.SQL.delete_file, skill_id, file_id) is None:
            raise NotFound("skill file not found")
        shown = await _known(conn, caller, skill_id)
        return None, (skill_event(caller, "skill:updated", shown),)

    await write(request, unit)
    return nothing()


async def agent_skills(request: Request) -> Response:
    """GET /api/agents/{id}/skills."""
    caller = await auth.workspace(request)
    agent_id = path_id(request, "id", "agent id")

    async def unit(conn: Connection) -> list[SkillSummary]:
        await usable_agent(conn, caller, agent_id)
        return await skills.agent_skills(conn, agent_id)

    return answer(await read(request, unit))


async def set_agent_skills(request: Request) -> Response:
    """PUT /api/agents/{id}/skills: these and no others."""
    return await _give(request, keep=False)


async def add_agent_skills(request: Request) -> Response:
    """POST /api/agents/{id}/skills/add: these too."""
    return await _give(request, keep=True)


async def _give(request: Request, *, keep: bool) -> Response:
    caller = await auth.workspace(request)
    agent_id = path_id(request, "id", "agent id")
    sent = await fields(request)
    if keep and not sent.given("skill_ids"):
        raise Invalid("skill_ids is required")
    skill_ids = sent.ids("skill_ids", most=MOST_SKILLS)

    async def unit(conn: Connection) -> tuple[list[SkillSummary], _Told]:
        agent = (await managed_agent(conn, caller, agent_id)).shown
        given = await skills.give_skills(conn, caller.workspace_id, agent_id, skill_ids, keep=keep)
        if given is None:
            raise NotFound("skill not found")
        return given, (agent_event(caller, "agent:status", agent, agent_id=agent_id, skills=given),)

    return answer(await write(request, unit))


# --- rules ----------------------------------------------------------------------------------------


async def _known(conn: Connection, caller: Membership, skill_id: str) -> FullSkill:
    found = await skills.get_skill(conn, caller.workspace_id, skill_id)
    if found is None:
        raise NotFound("skill not found")
    return found


async def managed_skill(conn: Connection, caller: Membership, skill_id: str) -> SkillSummary:
    found = await skills.lock_skill(conn, caller.workspace_id, skill_id)
    if found is None:
        raise NotFound("skill not found")
    caller.check(Thing(people=(found.created_by,)))
    return found


def _taken(name: str) -> Conflict:
    return Conflict(f"a skill named {name!r} already exists in this workspace")


def skill_event(caller: Membership, kind: str, skill: FullSkill) -> Consequence:
    """What everybody in the workspace hears of a skill."""
    return event(caller, kind, skill=skill)


# --- bodies ---------------------------------------------------------------------------------------


def _name(sent: Fields) -> str:
    name = sent.required_text("name")
    if len(name) > LONGEST_NAME:
        raise Invalid(f"name must be at most {LONGEST_NAME} characters")
    return name


def _content(text: str) -> str:
    return _file_content("SKILL.md", text)


def _file_content(path: str, text: str) -> str:
    if len(text.encode()) > LARGEST_FILE:
        raise Invalid(f"{path} must be at most {LARGEST_FILE} bytes")
    return text


def _path(text: str) -> str:
    path = text.strip()
    if not path:
        raise Invalid("path is required")
    if fault := path_fault(path):
        raise Invalid(fault)
    return path


def _files(sent: Fields) -> dict[str, str] | None:
    """The files of a body by path; None when absent or null. SKILL.md among them is ignored."""
    if not sent.given("files"):
        return None
    given = sent.value("files")
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise Invalid("invalid request body")
    if len(given) > MOST_FILES:
        raise Invalid(f"a skill may have at most {MOST_FILES} files")
    found: dict[str, str] = {}
    for item in given:
        path, content = item.get("path"), item.get("content") or ""
        if not isinstance(path, str) or not isinstance(content, str):
            raise Invalid("invalid request body")
        if path.strip().lower() != _MAIN:
            path = _path(path)
            found[path] = _file_content(path, text_of(content))
    return found


def _check_together(content: str, files: dict[str, str]) -> None:
    if fault := clash(files):
        raise Invalid(fault)
    if len(files) > MOST_FILES:
        raise Invalid(f"a skill may have at most {MOST_FILES} files")
    size = len(content.encode()) + sum(len(text.encode()) for text in files.values())
    if size > LARGEST_SKILL:
        raise Invalid(f"a skill must be at most {LARGEST_SKILL} bytes, files included")


routes: list[BaseRoute] = [
    Route("/api/skills", list_skills, methods=["GET"]),
    Route("/api/skills", create_skill, methods=["POST"]),
    Route("/api/skills/{id}", get_skill, methods=["GET"]),
    Route("/api/skills/{id}", update_skill, methods=["PUT"]),
    Route("/api/skills/{id}", delete_skill, methods=["DELETE"]),
    Route("/api/skills/{id}/files", list_files, methods=["GET"]),
    Route("/api/skills/{id}/files", put_file, methods=["PUT"]),
    Route("/api/skills/{id}/files/{file_id}", delete_file, methods=["DELETE"]),
    Route("/api/agents/{id}/skills", agent_skills, methods=["GET"]),
    Route("/api/agents/{id}/skills", set_agent_skills, methods=["PUT"]),
    Route("/api/agents/{id}/skills/add", add_agent_skills, methods=["POST"]),
]
