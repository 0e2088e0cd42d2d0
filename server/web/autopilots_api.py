"""Endpoints for autopilots, their triggers and runs (spec 06 §15)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.dispatch import events, finish, schedule
from server.dispatch.autopilot import SQL, start_run
from server.errors import Forbidden, Invalid, NotFound, Unprocessable
from server.rights import Thing
from server.store.queries import Connection, Record
from server.store.wire_rows import wire
from server.web import auth
from server.web.answers import answer, nothing
from server.web.auth import Membership
from server.web.context import services
from server.web.fields import Fields
from server.web.projects_api import check_project
from server.web.unit import event, fields, path_id, query, read, write
from shared import times
from shared.wire.event import Event
from shared.wire.teamwork import Autopilot, AutopilotRun, AutopilotTrigger

STATUSES: Final = ("active", "paused", "archived")
MODES: Final = ("create_issue", "run_only")
ASSIGNEES: Final = ("agent", "squad")
KINDS: Final = ("schedule", "webhook")
PROVIDERS: Final = ("generic", "github")

MOST_SUBSCRIBERS: Final = 200
MOST_FILTERS: Final = 50
SHORTEST_SECRET: Final = 16
WEBHOOK_TOKEN: Final = "awt_"

_PLACEHOLDER: Final = re.compile(r"{{\s*(.*?)\s*}}")

_Follows = Sequence[Consequence]


# --- autopilots -----------------------------------------------------------------------------------


async def list_autopilots(request: Request) -> Response:
    """GET /api/autopilots: newest first; subscribers are left out of lists."""
    caller = await auth.workspace(request)
    status = query(request).text("status")
    rows = await read(request, partial(_listed, caller=caller, status=status))
    shown = [wire(Autopilot, row, subscribers=[]) for row in rows]
    return answer({"autopilots": shown, "total": len(shown)})


async def get_autopilot(request: Request) -> Response:
    """GET /api/autopilots/{id}: with its triggers."""
    caller = await auth.workspace(request)
    autopilot_id = path_id(request, "id", "autopilot id")

    async def unit(conn: Connection) -> dict[str, Any]:
        row = await known_autopilot(conn, caller, autopilot_id)
        secret = caller.may("autopilot.write", autopilot_thing(row))
        rows = await conn.fetch(SQL.list_triggers, autopilot_id)
        return {
            "autopilot": _shown(row),
            "triggers": [_trigger(request, row, secret=secret) for row in rows],
        }

    return answer(await read(request, unit))


async def create_autopilot(request: Request) -> Response:
    """POST /api/autopilots."""
    caller = await auth.workspace(request)
    sent = await fields(request)
    title = sent.required_text("title")
    kind = sent.one_of("assignee_type", ASSIGNEES, "agent")
    assignee_id = sent.id("assignee_id")
    if assignee_id is None:
        raise Invalid("assignee_id is required")
    if not sent.text("execution_mode"):
        raise Invalid("execution_mode is required")
    mode = sent.one_of("execution_mode", MODES, "")
    template = _template(sent)
    project_id = sent.id("project_id")
    subscribers = _subscribers(sent) or []

    async def unit(conn: Connection) -> tuple[Autopilot, _Follows]:
        await _check_assignee(conn, caller, kind, assignee_id)
        await _check_subscribers(conn, caller, subscribers)
        if project_id is not None:
            await check_project(conn, caller, project_id)
        autopilot_id = await conn.fetchval(
            SQL.create_autopilot,
            caller.workspace_id,
            title,
            sent.optional_text("description"),
            kind,
            assignee_id,
            mode,
            template,
            project_id,
            caller.actor.actor_type,
            caller.actor.actor_id,
            subscribers,
        )
        made = await known_autopilot(conn, caller, autopilot_id)
        return _shown(made), (_told(caller, "autopilot:created", made, autopilot=_shown(made)),)

    return answer(await write(request, unit), 201)


async def update_autopilot(request: Request) -> Response:
    """PATCH /api/autopilots/{id}: what was sent; null clears what may be empty."""
    caller = await auth.workspace(request)
    autopilot_id = path_id(request, "id", "autopilot id")
    sent = await fields(request)
    changes: dict[str, Any] = {}
    if sent.given("title"):
        changes["title"] = sent.required_text("title")
    if sent.sent("description"):
        changes["description"] = sent.optional_text("description")
    if sent.sent("issue_title_template"):
        changes["issue_title_template"] = _template(sent)
    if sent.sent("project_id"):
        changes["project_id"] = sent.id("project_id")
    if sent.given("status"):
        changes["status"] = sent.one_of("status", STATUSES, "")
    if sent.given("execution_mode"):
        changes["execution_mode"] = sent.one_of("execution_mode", MODES, "")
    if sent.given("assignee_type"):
        changes["assignee_type"] = sent.one_of("assignee_type", ASSIGNEES, "")
    if (assignee_id := sent.id("assignee_id")) is not None:
        changes["assignee_id"] = assignee_id
    elif "assignee_type" in changes:
        raise Invalid("assignee_id is required with assignee_type")
    subscribers = _subscribers(sent)

    async def unit(conn: Connection) -> tuple[Autopilot, _Follows]:
        before = await _locked(conn, caller, autopilot_id)
        if "assignee_id" in changes:
            kind = str(changes.get("assignee_type", before["assignee_type"]))
            await _check_assignee(conn, caller, kind, changes["assignee_id"])
        if changes.get("project_id") is not None:
            await check_project(conn, caller, changes["project_id"])
        await _check_subscribers(conn, caller, subscribers or [])
        await conn.execute(SQL.update_autopilot, autopilot_id, changes, subscribers)
        changed = await known_autopilot(conn, caller, autopilot_id)
        shown = _shown(changed)
        return shown, (_told(caller, "autopilot:updated", changed, autopilot=shown),)

    return answer(await write(request, unit))


async def delete_autopilot(request: Request) -> Response:
    """DELETE /api/autopilots/{id}: with its triggers, and its runs, which end now.

    Issues that its runs have made stay, and so does the work on them.
    """
    caller = await auth.workspace(request)
    autopilot_id = path_id(request, "id", "autopilot id")

    async def unit(conn: Connection) -> tuple[None, _Follows]:
        gone = await _locked(conn, caller, autopilot_id)
        stopped = await finish.cancel_autopilot(conn, autopilot_id)
        await conn.execute(SQL.delete_autopilot, autopilot_id)
        deleted = _told(caller, "autopilot:deleted", gone, autopilot_id=autopilot_id)
        return None, (*stopped, deleted)

    await write(request, unit)
    return nothing()


# --- runs -----------------------------------------------------------------------------------------


async def trigger_now(request: Request) -> Response:
    """POST /api/autopilots/{id}/trigger: run it now."""
    caller = await auth.workspace(request)
    autopilot_id = path_id(request, "id", "autopilot id")

    async def unit(conn: Connection) -> tuple[AutopilotRun, _Follows]:
        autopilot = await _locked(conn, caller, autopilot_id)
        if autopilot["status"] != "active":
            raise Invalid("autopilot is not active")
        run, told = await start_run(conn, autopilot, source="manual")
        assert run is not None
        return run, told

    return answer(await write(request, unit))


async def list_runs(request: Request) -> Response:
    """GET /api/autopilots/{id}/runs: newest first, without what triggered them."""
    caller = await auth.workspace(request)
    autopilot_id = path_id(request, "id", "autopilot id")
    limit, offset = query(request).page(limit=20, most=100)

    async def unit(conn: Connection) -> list[Record]:
        await known_autopilot(conn, caller, autopilot_id)
        return await conn.fetch(SQL.list_runs, autopilot_id, limit, offset)

    rows = await read(request, unit)
    shown = [wire(AutopilotRun, row, trigger_payload=None) for row in rows]
    return answer({"runs": shown, "total": len(shown)})


async def get_run(request: Request) -> Response:
    """GET /api/autopilots/{id}/runs/{runId}."""
    caller = await auth.workspace(request)
    autopilot_id = path_id(request, "id", "autopilot id")
    run_id = path_id(request, "run_id", "run id")

    async def unit(conn: Connection) -> AutopilotRun:
        await known_autopilot(conn, caller, autopilot_id)
        row = await conn.fetchrow(SQL.get_run, autopilot_id, run_id)
        if row is None:
            raise NotFound("autopilot run not found")
        return wire(AutopilotRun, row)

    return answer(await read(request, unit))


# --- triggers -------------------------------------------------------------------------------------


async def create_trigger(request: Request) -> Response:
    """POST /api/autopilots/{id}/triggers."""
    caller = await auth.workspace(request)
    autopilot_id = path_id(request, "id", "autopilot id")
    sent = await fields(request)
    if not sent.text("kind"):
        raise Invalid("kind is required")
    kind = sent.one_of("kind", KINDS, "")
    timezone = sent.text("timezone") or "UTC"
    expression = sent.required_text("cron_expression") if kind == "schedule" else None
    following = _next(expression, timezone)
    values = (
        kind,
        expression,
        timezone,
        sent.optional_text("label"),
        sent.one_of("provider", PROVIDERS, "generic"),
        _filters(sent) or None,
        following,
        _webhook_token() if kind == "webhook" else None,
    )

    async def unit(conn: Connection) -> tuple[AutopilotTrigger, _Follows]:
        autopilot = await _locked(conn, caller, autopilot_id)
        row = await conn.fetchrow(SQL.create_trigger, autopilot_id, *values)
        assert row is not None
        return _trigger(request, row), _retriggered(request, caller, autopilot, row)

    return answer(await write(request, unit), 201)


async def update_trigger(request: Request) -> Response:
    """PATCH /api/autopilots/{id}/triggers/{tid}: what was sent."""
    sent = await fields(request)
    changes: dict[str, Any] = {}
    if sent.given("enabled"):
        changes["enabled"] = sent.flag("enabled")
    for key in ("cron_expression", "timezone"):
        if sent.given(key):
            changes[key] = sent.required_text(key)
    if sent.sent("label"):
        changes["label"] = sent.text("label")
    if sent.given("event_filters"):
        changes["event_filters"] = _filters(sent)
    return await _retrigger(request, changes)


async def rotate_token(request: Request) -> Response:
    """POST …/triggers/{tid}/rotate-webhook-token: the old address is dead at once."""
    return await _retrigger(request, {"webhook_token": _webhook_token()}, only="webhook")


async def set_secret(request: Request) -> Response:
    """PUT …/triggers/{tid}/signing-secret: what callers must sign with; empty: nothing."""
    sent = await fields(request)
    if not sent.sent("signing_secret"):  # a slip of the pen must not open the door
        raise Invalid("signing_secret is required; an empty one lets calls come unsigned")
    secret = sent.text("signing_secret")
    if secret and len(secret) < SHORTEST_SECRET:
        raise Invalid(f"signing_secret must have at least {SHORTEST_SECRET} characters")
    return await _retrigger(request, {"signing_secret": secret}, only="webhook")


async def delete_trigger(request: Request) -> Response:
    """DELETE /api/autopilots/{id}/triggers/{tid}."""
    caller = await auth.workspace(request)
    autopilot_id = path_id(request, "id", "autopilot id")
    trigger_id = path_id(request, "trigger_id", "trigger id")

    async def unit(conn: Connection) -> tuple[None, _Follows]:
        autopilot = await _locked(conn, caller, autopilot_id)
        if await conn.fetchval(SQL.delete_trigger, autopilot_id, trigger_id) is None:
            raise NotFound("autopilot trigger not found")
        about = {"autopilot_id": autopilot_id, "trigger_id": trigger_id}
        told = _told(caller, "autopilot:updated", autopilot, **about)
        return None, (told,)

    await write(request, unit)
    return nothing()


async def _retrigger(request: Request, changes: dict[str, Any], *, only: str = "") -> Response:
    caller = await auth.workspace(request)
    autopilot_id = path_id(request, "id", "autopilot id")
    trigger_id = path_id(request, "trigger_id", "trigger id")

    async def unit(conn: Connection) -> tuple[AutopilotTrigger, _Follows]:
        autopilot = await _locked(conn, caller, autopilot_id)
        before = await conn.fetchrow(SQL.lock_trigger, autopilot_id, trigger_id)
        if before is None:
            raise NotFound("autopilot trigger not found")
        if only and before["kind"] != only:
            raise Invalid(f"only {only} triggers have this")
        expression = changes.get("cron_expression", before["cron_expression"])
        timezone = str(changes.get("timezone", before["timezone"]))
        following = _next(expression if before["kind"] == "schedule" else None, timezone)
        row = await conn.fetchrow(SQL.update_trigger, trigger_id, changes, following)
        assert row is not None
        return _trigger(request, row), _retriggered(request, caller, autopilot, row)

    return answer(await write(request, unit))


def _retriggered(request: Request, caller: Membership, autopilot: Record, row: Record) -> _Follows:
    shown = _trigger(request, row, secret=False)
    about = {"autopilot_id": row["autopilot_id"], "trigger": shown}
    return (_told(caller, "autopilot:updated", autopilot, **about),)


def _trigger(request: Request, row: Record, *, secret: bool = True) -> AutopilotTrigger:
    """A trigger as it is shown; its webhook's address is a secret, and not for events."""
    token = row["webhook_token"] if secret else None
    path = f"/api/webhooks/autopilots/{token}" if token else None
    base = services(request).config.public_url
    signing = row["signing_secret"]
    return wire(
        AutopilotTrigger,
        row,
        # as the kind speaks: a webhook has no zone, a schedule no provider
        timezone=row["timezone"] if row["kind"] == "schedule" else None,
        provider=row["provider"] if row["kind"] == "webhook" else None,
        webhook_token=token,
        webhook_path=path,
        webhook_url=f"{base}{path}" if path and base else None,
        has_signing_secret=bool(signing),
        signing_secret_hint=signing[-4:] if signing else None,
    )


# --- rules ----------------------------------------------------------------------------------------


async def _listed(conn: Connection, caller: Membership, status: str | None) -> list[Record]:
    gate = caller.caller.gate
    return await conn.fetch(SQL.list_autopilots, caller.workspace_id, status, None, gate)


async def known_autopilot(conn: Connection, caller: Membership, autopilot_id: str) -> Record:
    """Return an autopilot that the caller may read."""
    gate = caller.caller.gate
    row = await conn.fetchrow(SQL.list_autopilots, caller.workspace_id, None, autopilot_id, gate)
    if row is None:
        raise NotFound("autopilot not found")
    thing = autopilot_thing(row)
    caller.check(attrs.evolve(thing, mine=row["open"]), "autopilot.read")
    return row


async def _locked(conn: Connection, caller: Membership, autopilot_id: str) -> Record:
    row = await conn.fetchrow(SQL.lock_autopilot, caller.workspace_id, autopilot_id)
    if row is None:
        raise NotFound("autopilot not found")
    caller.check(autopilot_thing(row))
    return row


def autopilot_thing(row: Record) -> Thing:
    """An autopilot as the table of rights knows it: of a private agent, its owner's and its maker's."""
    whose = row["whose"]
    return Thing(
        kind="private" if whose["private"] else "",
        people=tuple(whose["people"]),
        agents=tuple(whose["agents"]),
    )


def _shown(row: Record) -> Autopilot:
    return wire(Autopilot, row, last_run_status=None)


def _told(caller: Membership, kind: str, whose: Record, /, **payload: Any) -> Event:
    """Tell who may read the autopilot."""
    return attrs.evolve(event(caller, kind, **payload), **events.autopilot_whose(whose))


async def _check_assignee(
    conn: Connection, caller: Membership, kind: str, assignee_id: str
) -> None:
    gate = caller.caller.gate
    who = await conn.fetchrow(SQL.assignee, caller.workspace_id, kind, assignee_id, gate)
    if who is None:
        raise Invalid(f"assignee_id does not name {'an' if kind == 'agent' else 'a'} {kind} here")
    if who["squad_archived"] or who["archived"]:
        leader = kind == "squad" and not who["squad_archived"]
        raise Unprocessable(
            "the squad's leader is archived" if leader else f"the {kind} is archived"
        )
    if not who["open"]:
        raise Forbidden("you do not have access to this agent")


async def _check_subscribers(conn: Connection, caller: Membership, user_ids: Sequence[str]) -> None:
    known = await conn.fetchval(SQL.members_among, caller.workspace_id, list(user_ids))
    if known != len(user_ids):
        raise Invalid("subscribers must be members of the workspace")


def _template(sent: Fields) -> str | None:
    template = sent.optional_text("issue_title_template")
    for name in _PLACEHOLDER.findall(template or ""):
        if name != "date":
            raise Invalid(f"issue_title_template knows only {{{{date}}}}, not {{{{{name}}}}}")
    return _PLACEHOLDER.sub("{{date}}", template) if template else None


def _subscribers(sent: Fields) -> list[str] | None:
    if not sent.given("subscribers"):
        return None
    given = sent.value("subscribers")
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise Invalid("invalid request body")
    if len(given) > MOST_SUBSCRIBERS:
        raise Invalid(f"subscribers may have at most {MOST_SUBSCRIBERS} items")
    found: dict[str, None] = {}
    for one in map(Fields, given):
        user_id = one.id("user_id")
        if one.text("user_type") != "member" or user_id is None:
            raise Invalid("a subscriber is {user_type: member, user_id}")
        found[user_id] = None
    return list(found)


def _filters(sent: Fields) -> list[dict[str, Any]]:
    given = sent.value("event_filters") or []
    if not isinstance(given, list) or len(given) > MOST_FILTERS:
        raise Invalid("invalid event_filters")
    found = []
    for one in given:
        if not isinstance(one, dict):
            raise Invalid("invalid event_filters")
        known = Fields(one)
        actions = known.texts("actions", most=MOST_FILTERS)
        name = {"event": known.required_text("event")}
        found.append(name | ({"actions": actions} if actions else {}))
    return found


def _next(expression: str | None, timezone: str) -> datetime | None:
    if expression is None:
        return None
    schedule.check(expression, timezone)
    return schedule.next_after(expression, timezone, times.now())


def _webhook_token() -> str:
    return WEBHOOK_TOKEN + secrets.token_urlsafe(32)


_ONE: Final = "/api/autopilots/{id}"
_TRIGGER: Final = f"{_ONE}/triggers/{{trigger_id}}"

routes: list[BaseRoute] = [
    Route("/api/autopilots", list_autopilots, methods=["GET"]),
    Route("/api/autopilots", create_autopilot, methods=["POST"]),
    Route(_ONE, get_autopilot, methods=["GET"]),
    Route(_ONE, update_autopilot, methods=["PATCH"]),
    Route(_ONE, delete_autopilot, methods=["DELETE"]),
    Route(f"{_ONE}/trigger", trigger_now, methods=["POST"]),
    Route(f"{_ONE}/runs", list_runs, methods=["GET"]),
    Route(f"{_ONE}/runs/{{run_id}}", get_run, methods=["GET"]),
    Route(f"{_ONE}/triggers", create_trigger, methods=["POST"]),
    Route(_TRIGGER, update_trigger, methods=["PATCH"]),
    Route(_TRIGGER, delete_trigger, methods=["DELETE"]),
    Route(f"{_TRIGGER}/rotate-webhook-token", rotate_token, methods=["POST"]),
    Route(f"{_TRIGGER}/signing-secret", set_secret, methods=["PUT"]),
]
