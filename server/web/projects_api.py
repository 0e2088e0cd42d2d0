"""Endpoints for projects and their resources (spec 06 §14, 02 §1.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.errors import Conflict, Forbidden, Invalid, NotFound
from server.rights import Thing
from server.store import agents, credentials, projects
from server.store.conflicts import unless_taken
from server.store.queries import Connection
from server.store.wire_rows import wire
from server.web import auth, repository
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.fields import Fields
from server.web.unit import event, fields, path_id, query, read, write
from shared.ids import machine_key
from shared.wire.teamwork import FoundProject, Project, Resource
from shared.wire.work import PRIORITIES

STATUSES: Final = ("planned", "in_progress", "paused", "completed", "cancelled")
LEADS: Final = ("member", "agent")
MOST_RESOURCES: Final = 100

REPOSITORY: Final = "github_repo"
DIRECTORY: Final = "local_directory"

_REF_KEYS: Final = {
    REPOSITORY: ("url", "default_branch_hint", "ref"),
    DIRECTORY: ("local_path", "daemon_id", "label"),
}

_URL: Final = re.compile(r"(https?|ssh|git)://[^\s/]+/\S+|([\w.-]+@)?[\w.-]+:(?!//)\S+", re.ASCII)
_PATH: Final = re.compile(r"/|\\\\|[A-Za-z]:[\\/]")

_Told = Sequence[Consequence]


async def list_projects(request: Request) -> Response:
    """GET /api/projects: newest first."""
    caller = await auth.workspace(request)
    asked = query(request)
    unit = partial(
        projects.list_projects,
        workspace_id=caller.workspace_id,
        status=asked.text("status"),
        priority=asked.text("priority"),
    )
    found = await read(request, unit)
    return answer({"projects": found, "total": len(found)})


async def search_projects(request: Request) -> Response:
    """GET /api/projects/search."""
    caller = await auth.workspace(request)
    asked = query(request)
    phrase = (asked.text("q") or "").strip()
    if not phrase:
        raise Invalid("q is required")
    limit, offset = asked.page(limit=20, most=50)
    pattern = "%" + re.sub(r"([\\%_])", r"\\\1", phrase) + "%"
    unit = partial(projects.list_projects, workspace_id=caller.workspace_id, pattern=pattern)
    found = await read(request, unit)
    if not asked.flag("include_closed"):
        found = [one for one in found if one.status not in {"completed", "cancelled"}]
    shown = [_hit(one, phrase) for one in found[offset : offset + limit]]
    return answer({"projects": shown, "total": len(found)})


def _hit(project: Project, phrase: str) -> FoundProject:
    known = {field.name: getattr(project, field.name) for field in attrs.fields(Project)}
    if phrase.lower() in project.title.lower():
        return FoundProject(**known, match_source="title")
    text = project.description or ""
    start = max(text.lower().find(phrase.lower()) - 40, 0)
    snippet = text[start : start + 120 + len(phrase)]
    return FoundProject(**known, match_source="description", matched_snippet=snippet)


async def get_project(request: Request) -> Response:
    """GET /api/projects/{id}."""
    caller = await auth.workspace(request)
    project_id = path_id(request, "id", "project id")
    return answer(await read(request, partial(_known, caller=caller, project_id=project_id)))


async def create_project(request: Request) -> Response:
    """POST /api/projects: with its resources, or not at all."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    title = sent.required_text("title")
    values = _changes(sent)
    given = sent.value("resources")
    resources = _resources(given)
    status = sent.one_of("status", STATUSES, "planned")
    priority = sent.one_of("priority", PRIORITIES, "none")

    async def unit(conn: Connection) -> tuple[Project, _Told]:
        await _check_lead(conn, caller, values.get("lead_type"), values.get("lead_id"))
        project_id = await conn.fetchval(
            projects.SQL.create_project,
            caller.workspace_id,
            title,
            values.get("description"),
            values.get("icon"),
            status,
            priority,
            values.get("lead_type"),
            values.get("lead_id"),
            sent.day("start_date"),
            sent.day("due_date"),
        )
        added = await _attach(conn, caller, project_id, resources)
        made = await _known(conn, caller, project_id)
        told: list[Consequence] = [event(caller, "project:created", project=made)]
        told += [_attached(caller, project_id, one) for one in added]
        return attrs.evolve(made, resources=added if given is not None else None), told

    return answer(await write(request, unit), 201)


async def update_project(request: Request) -> Response:
    """PUT /api/projects/{id}: what was sent; null clears what may be empty."""
    caller = await auth.workspace(request)
    project_id = path_id(request, "id", "project id")
    sent = await fields(request)
    changes = _changes(sent)
    if sent.given("title"):
        changes["title"] = sent.required_text("title")
    if sent.given("status"):
        changes["status"] = sent.one_of("status", STATUSES, "")
    if sent.given("priority"):
        changes["priority"] = sent.one_of("priority", PRIORITIES, "")

    async def unit(conn: Connection) -> tuple[Project, _Told]:
        before = await conn.fetchrow(projects.SQL.lock_project, caller.workspace_id, project_id)
        if before is None:
            raise NotFound("project not found")
        if {"lead_type", "lead_id"} & set(changes):
            kind = changes.get("lead_type", before["lead_type"])
            await _check_lead(conn, caller, kind, changes.get("lead_id", before["lead_id"]))
        await conn.execute(projects.SQL.update_project, project_id, changes)
        changed = await _known(conn, caller, project_id)
        return changed, (event(caller, "project:updated", project=changed),)

    return answer(await write(request, unit))


async def delete_project(request: Request) -> Response:
    """DELETE /api/projects/{id}: its issues stay, without a project."""
    caller = await auth.workspace(request)
    project_id = path_id(request, "id", "project id")

    async def unit(conn: Connection) -> tuple[None, _Told]:
        await _locked(conn, caller, project_id)
        await conn.execute(projects.SQL.delete_project, project_id)
        await credentials.keep(conn, caller.workspace_id, {})
        return None, (event(caller, "project:deleted", project_id=project_id),)

    await write(request, unit)
    return nothing()


async def list_resources(request: Request) -> Response:
    """GET /api/projects/{id}/resources."""
    caller = await auth.workspace(request)
    project_id = path_id(request, "id", "project id")

    async def unit(conn: Connection) -> list[Resource]:
        await _known(conn, caller, project_id)
        return await projects.list_resources(conn, project_id)

    found = await read(request, unit)
    return answer({"resources": found, "total": len(found)})


async def add_resource(request: Request) -> Response:
    """POST /api/projects/{id}/resources."""
    caller = await auth.workspace(request)
    project_id = path_id(request, "id", "project id")
    sent = await fields(request)
    wanted = _resource(
        {
            "resource_type": sent.text("resource_type"),
            "resource_ref": sent.value("resource_ref"),
            "label": sent.text("label"),
            "position": sent.whole("position", low=0),
        }
    )

    async def unit(conn: Connection) -> tuple[Resource, _Told]:
        await _locked(conn, caller, project_id)
        (added,) = await _attach(conn, caller, project_id, [wanted])
        return added, (_attached(caller, project_id, added),)

    return answer(await write(request, unit), 201)


async def update_resource(request: Request) -> Response:
    """PUT /api/projects/{id}/resources/{rid}: what was sent; the type stays."""
    caller = await auth.workspace(request)
    project_id = path_id(request, "id", "project id")
    resource_id = path_id(request, "resource_id", "resource id")
    sent = await fields(request)
    changes: dict[str, Any] = {}
    if sent.sent("label"):
        changes["label"] = sent.text("label")
    if (position := sent.whole("position", low=0)) is not None:
        changes["position"] = position
    ref = sent.value("resource_ref")

    async def unit(conn: Connection) -> tuple[Resource, _Told]:
        await _locked(conn, caller, project_id)
        row = await conn.fetchrow(projects.SQL.lock_resource, project_id, resource_id)
        if row is None:
            raise NotFound("project resource not found")
        if ref is not None:
            changes["resource_ref"] = _ref(row["resource_type"], ref)
            await _keep_password(conn, caller, [_password(ref)])
            kind, named = row["resource_type"], changes["resource_ref"]
            await _check_directory(conn, caller, project_id, kind, named, resource_id=resource_id)
        written = await unless_taken(
            conn.fetchrow(projects.SQL.update_resource, resource_id, changes)
        )
        if written is None:
            raise _attached_already()
        changed = wire(Resource, written)
        told = event(caller, "project_resource:updated", resource=changed, project_id=project_id)
        return changed, (told,)

    return answer(await write(request, unit))


async def delete_resource(request: Request) -> Response:
    """DELETE /api/projects/{id}/resources/{rid}."""
    caller = await auth.workspace(request)
    project_id = path_id(request, "id", "project id")
    resource_id = path_id(request, "resource_id", "resource id")

    async def unit(conn: Connection) -> tuple[None, _Told]:
        await _locked(conn, caller, project_id)
        if await conn.fetchval(projects.SQL.delete_resource, project_id, resource_id) is None:
            raise NotFound("project resource not found")
        await credentials.keep(conn, caller.workspace_id, {})
        told = event(
            caller, "project_resource:deleted", project_id=project_id, resource_id=resource_id
        )
        return None, (told,)

    await write(request, unit)
    return nothing()


# --- rules ----------------------------------------------------------------------------------------


async def check_project(conn: Connection, caller: Membership, project_id: str) -> None:
    """Raise Invalid unless it is a project here; it stays until the transaction ends."""
    if await conn.fetchval(projects.SQL.hold_project, caller.workspace_id, project_id) is None:
        raise Invalid("project not found")


async def _known(conn: Connection, caller: Membership, project_id: str) -> Project:
    found = await projects.get_project(conn, caller.workspace_id, project_id)
    if found is None:
        raise NotFound("project not found")
    return found


async def _locked(conn: Connection, caller: Membership, project_id: str) -> None:
    row = await conn.fetchrow(projects.SQL.lock_project, caller.workspace_id, project_id)
    if row is None:
        raise NotFound("project not found")


async def _check_lead(
    conn: Connection, caller: Membership, kind: str | None, lead_id: str | None
) -> None:
    if (kind is None) != (lead_id is None):
        raise Invalid("lead_type and lead_id must be given together")
    if kind is not None and not await conn.fetchval(
        projects.SQL.leads, caller.workspace_id, kind, lead_id
    ):
        raise Invalid(f"lead_id does not name {'an' if kind == 'agent' else 'a'} {kind} here")
    if kind == "agent" and lead_id is not None:
        found = await agents.get_agent(conn, caller.workspace_id, lead_id, caller.caller)
        assert found is not None
        caller.check(found[1], "agent.use")


async def _attach(
    conn: Connection, caller: Membership, project_id: str, wanted: Sequence[Mapping[str, Any]]
) -> list[Resource]:
    machines = [
        machine_key(one["resource_ref"]["daemon_id"])
        for one in wanted
        if one["resource_type"] == DIRECTORY
    ]
    if len(set(machines)) < len(machines):
        raise _one_directory()
    for one in wanted:
        kind, ref = one["resource_type"], one["resource_ref"]
        await _check_directory(conn, caller, project_id, kind, ref)
    await _keep_password(conn, caller, [one.get("password") for one in wanted])
    rows = [{key: one[key] for key in one if key != "password"} for one in wanted]
    added = await projects.add_resources(
        conn, caller.workspace_id, project_id, caller.actor.user_id, rows
    )
    if len(added) < len(wanted):
        raise _attached_already()
    return added


async def _keep_password(
    conn: Connection, caller: Membership, given: Sequence[tuple[str, str] | None]
) -> None:
    """Keep passwords that came in addresses; only those who run the workspace replace one."""
    found = dict(one for one in given if one is not None)
    if not found:
        return
    caller.check(right="repository password.set")
    if not caller.may("repository password.replace"):
        for url, userinfo in found.items():
            if await credentials.is_other(conn, caller.workspace_id, url, userinfo):
                raise Forbidden(
                    f"{url} has another password here already: an owner or admin can change it"
                )
    await credentials.keep(conn, caller.workspace_id, found)


async def _check_directory(
    conn: Connection,
    caller: Membership,
    project_id: str,
    kind: str,
    ref: Mapping[str, Any],
    *,
    resource_id: str | None = None,
) -> None:
    """A directory is named by who owns its machine, and each project has one there at most."""
    if kind != DIRECTORY:
        return
    machine = await conn.fetchrow(
        projects.SQL.machine_named, caller.workspace_id, ref["daemon_id"], caller.actor.user_id
    )
    if machine is None:
        raise Invalid("daemon_id names no machine of this workspace: start its daemon first")
    owner = caller.actor.user_id if machine["theirs"] else None
    caller.check(Thing(people=(owner,)), "runtime.name directory")
    if await conn.fetchval(projects.SQL.directory_of, project_id, ref["daemon_id"], resource_id):
        raise _one_directory()


def _one_directory() -> Conflict:
    return Conflict("the project already has a local directory on that machine")


def _attached_already() -> Conflict:
    return Conflict("this resource is already attached to the project")


def _attached(caller: Membership, project_id: str, resource: Resource) -> Consequence:
    return event(caller, "project_resource:created", resource=resource, project_id=project_id)


# --- bodies ---------------------------------------------------------------------------------------


def _changes(sent: Fields) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key in ("description", "icon"):
        if sent.sent(key):
            changes[key] = sent.optional_text(key)
    if sent.sent("lead_type"):
        changes["lead_type"] = (
            sent.one_of("lead_type", LEADS, "") if sent.text("lead_type") else None
        )
    if sent.sent("lead_id"):
        changes["lead_id"] = sent.id("lead_id")
    for key in ("start_date", "due_date"):
        if sent.sent(key):
            day = sent.day(key)
            changes[key] = None if day is None else day.isoformat()
    return changes


def _resources(given: Any) -> list[dict[str, Any]]:
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise Invalid("invalid request body")
    if len(given) > MOST_RESOURCES:
        raise Invalid(f"resources may have at most {MOST_RESOURCES} items")
    return [
        _resource(
            {
                "resource_type": one.get("resource_type"),
                "resource_ref": one.get("resource_ref"),
                "label": one.get("label") or "",
                "position": one.get("position"),
            }
        )
        for one in given
    ]


def _password(ref: Any) -> tuple[str, str] | None:
    """A repository's address and what stood before its host, if anything did."""
    url = ref.get("url") if isinstance(ref, dict) else None
    if not isinstance(url, str):
        return None
    shown, userinfo = repository.split(url)
    return (shown, userinfo) if userinfo else None


def _resource(one: dict[str, Any]) -> dict[str, Any]:
    position = one["position"]
    whole = isinstance(position, int) and not isinstance(position, bool)
    if not isinstance(one["label"], str) or (position is not None and not whole):
        raise Invalid("invalid request body")
    if position is not None and not 0 <= position < 2**31:
        raise Invalid("position is out of range")
    ref = one["resource_ref"]
    return one | {"resource_ref": _ref(one["resource_type"], ref), "password": _password(ref)}


def _ref(kind: Any, ref: Any) -> dict[str, Any]:
    """The checked reference of a resource: only what the type knows."""
    if not isinstance(kind, str) or kind not in _REF_KEYS:
        raise Invalid(f"resource_type must be {REPOSITORY} or {DIRECTORY}")
    if not isinstance(ref, dict):
        raise Invalid("resource_ref must be an object")
    known = _REF_KEYS[kind]
    if not all(isinstance(ref.get(key) or "", str) for key in known):
        raise Invalid("invalid request body")
    found = {key: text for key in known if (text := (ref.get(key) or "").strip())}
    if kind == REPOSITORY:
        shown, _ = repository.split(found.get("url", ""))
        found["url"] = shown
        repository.ref_of(found.get("ref", ""))
        if not _URL.fullmatch(found.get("url", "")):
            raise Invalid("url must be an http, https, ssh or git address, or user@host:path")
        return found
    if not _PATH.match(found.get("local_path", "")):
        raise Invalid("local_path must be an absolute path")
    if "daemon_id" not in found:
        raise Invalid("daemon_id is required")
    return found


routes: list[BaseRoute] = [
    Route("/api/projects", list_projects, methods=["GET"]),
    Route("/api/projects", create_project, methods=["POST"]),
    Route("/api/projects/search", search_projects, methods=["GET"]),
    Route("/api/projects/{id}", get_project, methods=["GET"]),
    Route("/api/projects/{id}", update_project, methods=["PUT"]),
    Route("/api/projects/{id}", delete_project, methods=["DELETE"]),
    Route("/api/projects/{id}/resources", list_resources, methods=["GET"]),
    Route("/api/projects/{id}/resources", add_resource, methods=["POST"]),
    Route("/api/projects/{id}/resources/{resource_id}", update_resource, methods=["PUT"]),
    Route("/api/projects/{id}/resources/{resource_id}", delete_resource, methods=["DELETE"]),
]
