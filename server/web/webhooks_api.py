"""The public entry for webhooks that start autopilots, and the record of calls (spec 06 §15).

Whoever knows a trigger's address may call it; with a signing secret they must also sign. Calls are
counted per trigger in Postgres, so that several servers count together, and per peer in the process.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.consequences import Consequence
from server.dispatch.autopilot import SQL as AUTOPILOTS
from server.dispatch.autopilot import start_run
from server.errors import Conflict, Invalid, NotFound, TooLarge, TooMany
from server.store.queries import Connection, Record, load
from server.web import auth, body
from server.web.answers import answer
from server.web.autopilots_api import autopilot_thing, known_autopilot
from server.web.context import services
from server.web.fields import json_of, text_of
from server.web.limits import peer_of
from server.web.unit import path_id, query, read, write
from shared import codec, times
from shared.times import stamp, try_stamp

SQL: Final = load("webhooks")

LARGEST: Final = 256 * 1024
PER_MINUTE: Final = 60

_TOKEN: Final = re.compile(r"awt_[A-Za-z0-9_-]{43}")
_ACTION_KEYS: Final = ("action", "state", "conclusion", "status")

_Told = Sequence[Consequence]
_Said = tuple[dict[str, Any], int]


async def receive(request: Request) -> Response:
    """POST /api/webhooks/autopilots/{token}: start the autopilot, once per delivery."""
    token = request.path_params["token"]
    parts = services(request)
    parts.limits.webhook.spend(peer_of(request, parts.config))
    raw = await body.read(request)
    if len(raw) > LARGEST:
        raise TooLarge("webhook body too large")
    if not _TOKEN.fullmatch(token):
        raise NotFound("webhook not found")
    try:
        given = codec.loads(raw)
    except codec.DecodeError:
        given = None
    if not isinstance(given, dict | list):
        raise Invalid("webhook body must be a JSON object or array")
    given = json_of(given, "body")
    headers = request.headers

    async def unit(conn: Connection) -> tuple[_Said, _Told]:
        trigger = await conn.fetchrow(SQL.trigger_by_token, token)
        if trigger is None:
            raise NotFound("webhook not found")
        if await conn.fetchval(SQL.recent, trigger["id"]) >= PER_MINUTE:
            raise TooMany("too many calls; try again in a minute")
        envelope = _envelope(headers, given)
        key, kind = _key(headers, trigger["provider"]), text_of(headers.get("content-type", ""))
        call = _Call(trigger, envelope, raw, content_type=kind, key=key)
        signature = _signature(headers, raw, trigger["signing_secret"])
        if signature in {"missing", "invalid"}:
            delivery_id = await call.record(conn, "rejected", signature, f"signature {signature}")
            said = {"status": "rejected", "delivery_id": delivery_id, "reason": signature}
            return (said, 401), ()
        if reason := _ignored(trigger, envelope):
            await call.record(conn, "ignored", signature, reason)
            return ({"status": "ignored", "reason": reason}, 200), ()
        delivery_id = await call.record(conn, "dispatched", signature)
        if delivery_id is None:
            return (await call.duplicate(conn), 200), ()
        return await _dispatch(conn, trigger, envelope, delivery_id)

    said, status = await write(request, unit)
    services(request).metrics.delivery(said["status"])
    return answer(said, status)


async def _dispatch(
    conn: Connection, trigger: Record, envelope: dict[str, Any], delivery_id: str
) -> tuple[_Said, _Told]:
    autopilot = await conn.fetchrow(
        AUTOPILOTS.lock_autopilot, trigger["workspace_id"], trigger["autopilot_id"]
    )
    assert autopilot is not None
    run, told = await start_run(
        conn, autopilot, source="webhook", trigger=trigger, payload=envelope
    )
    assert run is not None
    await conn.execute(SQL.link, delivery_id, run.id)
    if run.status == "skipped":
        said = {
            "status": "skipped",
            "delivery_id": delivery_id,
            "run_id": run.id,
            "reason": run.failure_reason,
        }
    else:
        said = {
            "status": "accepted",
            "delivery_id": delivery_id,
            "run_id": run.id,
            "autopilot_id": run.autopilot_id,
            "trigger_id": trigger["id"],
        }
    return (said, 200), told


class _Call:
    """One call, as it is put on record."""

    def __init__(
        self,
        trigger: Record,
        envelope: Mapping[str, Any],
        raw: bytes,
        *,
        content_type: str,
        key: str = "",
        replayed: str | None = None,
    ) -> None:
        self._trigger = trigger
        self._key = key
        self._row = (
            trigger["workspace_id"],
            trigger["autopilot_id"],
            trigger["id"],
            trigger["provider"],
            envelope["event"],
        )
        self._content_type = content_type[:200]
        self._raw = raw
        self._replayed = replayed

    async def record(
        self, conn: Connection, status: str, signature: str, error: str = ""
    ) -> str | None:
        """Put it on record; None when its key has been taken before."""
        made: str | None = await conn.fetchval(
            SQL.record,
            *self._row,
            self._key,
            signature,
            status,
            self._content_type,
            self._raw,
            error,
            self._replayed,
        )
        return made

    async def duplicate(self, conn: Connection) -> dict[str, Any]:
        earlier = await conn.fetchrow(SQL.earlier, self._trigger["id"], self._key)
        said: dict[str, Any] = {"status": "duplicate"}
        if earlier is not None:
            said["delivery_id"] = earlier["id"]
            if earlier["autopilot_run_id"]:
                said["run_id"] = earlier["autopilot_run_id"]
        return said


async def replay(request: Request) -> Response:
    """POST /api/autopilots/{id}/deliveries/{did}/replay: what came then, as if it came now.

    It is a delivery of its own, without a key: to repeat it is what is wanted. What was refused for
    its signature stays refused.
    """
    caller = await auth.workspace(request)
    autopilot_id = path_id(request, "id", "autopilot id")
    delivery_id = path_id(request, "delivery_id", "delivery id")

    async def unit(conn: Connection) -> tuple[_Said, _Told]:
        caller.check(autopilot_thing(await known_autopilot(conn, caller, autopilot_id)))
        row = await conn.fetchrow(SQL.read_call, autopilot_id, delivery_id)
        if row is None:
            raise NotFound("delivery not found")
        if row["signature_status"] in {"missing", "invalid"} or row["raw_body"] is None:
            raise Conflict("this delivery was rejected; it cannot be replayed")
        trigger = await conn.fetchrow(SQL.trigger_by_id, row["trigger_id"])
        assert trigger is not None
        envelope = _again(row)
        call = _Call(
            trigger,
            envelope,
            row["raw_body"],
            content_type=row["content_type"] or "",
            replayed=delivery_id,
        )
        signature = row["signature_status"]
        if reason := _ignored(trigger, envelope):
            made = await call.record(conn, "ignored", signature, reason)
            return ({"status": "ignored", "delivery_id": made, "reason": reason}, 200), ()
        made = await call.record(conn, "dispatched", signature)
        assert made is not None
        return await _dispatch(conn, trigger, envelope, made)

    said, status = await write(request, unit)
    services(request).metrics.delivery(said["status"])
    return answer(said, status)


# --- reading a call -------------------------------------------------------------------------------


def _envelope(headers: Mapping[str, str], given: Any) -> dict[str, Any]:
    """What happened, in one shape whoever says it."""
    name, payload = _event(headers, given)
    request = {"receivedAt": stamp(times.now())}
    if kind := headers.get("content-type"):
        request["contentType"] = text_of(kind)
    return {"event": name, "eventPayload": payload, "request": request}


def _again(row: Record) -> dict[str, Any]:
    """The envelope of a call on record; when it is received is now."""
    given = json_of(codec.loads(row["raw_body"]), "body")
    said = given if isinstance(given, dict) else {}
    payload = said.get("eventPayload", given) if said.get("event") == row["event"] else given
    request = {"receivedAt": stamp(times.now())}
    if row["content_type"]:
        request["contentType"] = row["content_type"]
    return {"event": row["event"], "eventPayload": payload, "request": request}


def _event(headers: Mapping[str, str], given: Any) -> tuple[str, Any]:
    said = given if isinstance(given, dict) else {}
    if isinstance(said.get("event"), str) and said["event"]:
        return said["event"], said.get("eventPayload", given)
    for header, prefix in (("x-github-event", "github"), ("x-gitlab-event", "gitlab")):
        if name := text_of(headers.get(header, "")):
            action = said.get("action")
            suffix = f".{action}" if isinstance(action, str) and action else ""
            return f"{prefix}.{name}{suffix}", given
    if name := text_of(headers.get("x-event-type", "")):
        return name, given
    for key in ("type", "action"):
        if isinstance(said.get(key), str) and said[key]:
            return said[key], given
    return "webhook.received", given


def _key(headers: Mapping[str, str], provider: str) -> str:
    names = ("x-github-delivery", "idempotency-key")
    ordered = names if provider == "github" else tuple(reversed(names))
    return next((text_of(headers[name])[:255] for name in ordered if headers.get(name)), "")


def _signature(headers: Mapping[str, str], raw: bytes, secret: str | None) -> str:
    if not secret:
        return "not_required"
    sent = headers.get("x-hub-signature-256", "")
    if not sent:
        return "missing"
    wanted = "sha256=" + hmac.new(secret.encode(), raw, hashlib.sha256).hexdigest()
    return "valid" if hmac.compare_digest(wanted.encode(), sent.encode()) else "invalid"


def _ignored(trigger: Record, envelope: Mapping[str, Any]) -> str:
    if not trigger["enabled"]:
        return "trigger_disabled"
    if trigger["autopilot_status"] != "active":
        return f"autopilot_{trigger['autopilot_status']}"
    filters = trigger["event_filters"]
    if filters and not any(_matches(one, envelope) for one in filters):
        return "event_filtered"
    return ""


def _matches(wanted: Mapping[str, Any], envelope: Mapping[str, Any]) -> bool:
    """Whether an event passes a filter: by its name without the provider, and by its action."""
    name = re.sub(r"^(github|gitlab)\.", "", envelope["event"])
    plain, _, suffix = name.partition(".")
    if wanted["event"] not in {name, plain, envelope["event"]}:
        return False
    if not wanted.get("actions"):
        return True
    payload = envelope["eventPayload"]
    said = payload if isinstance(payload, dict) else {}
    actions = [suffix, *(said.get(key) for key in _ACTION_KEYS)]
    return any(action in wanted["actions"] for action in actions if isinstance(action, str))


# --- the record -----------------------------------------------------------------------------------


async def list_deliveries(request: Request) -> Response:
    """GET /api/autopilots/{id}/deliveries: newest first, without bodies."""
    caller = await auth.workspace(request)
    autopilot_id = path_id(request, "id", "autopilot id")
    limit, offset = query(request).page(limit=20, most=100)

    async def unit(conn: Connection) -> list[Record]:
        await known_autopilot(conn, caller, autopilot_id)
        return await conn.fetch(SQL.list_calls, autopilot_id, limit, offset)

    rows = await read(request, unit)
    return answer({"deliveries": [_delivery(row) for row in rows], "total": len(rows)})


async def get_delivery(request: Request) -> Response:
    """GET /api/autopilots/{id}/deliveries/{did}: with its body."""
    caller = await auth.workspace(request)
    autopilot_id = path_id(request, "id", "autopilot id")
    delivery_id = path_id(request, "delivery_id", "delivery id")

    async def unit(conn: Connection) -> Record:
        await known_autopilot(conn, caller, autopilot_id)
        row = await conn.fetchrow(SQL.read_call, autopilot_id, delivery_id)
        if row is None:
            raise NotFound("delivery not found")
        return row

    row = await read(request, unit)
    text = (row["raw_body"] or b"").decode("utf-8", "replace")
    return answer(_delivery(row) | {"raw_body": text})


def _delivery(row: Record) -> dict[str, Any]:
    plain = {
        key: row[key]
        for key in (
            *("id", "autopilot_id", "trigger_id", "provider", "event", "dedupe_key"),
            *("signature_status", "status", "attempt_count", "content_type"),
            *("autopilot_run_id", "replayed_from_id", "error"),
        )
    }
    return plain | {
        "received_at": stamp(row["received_at"]),
        "last_attempt_at": try_stamp(row["last_attempt_at"]),
        "created_at": stamp(row["created_at"]),
    }


routes: list[BaseRoute] = [
    Route("/api/webhooks/autopilots/{token}", receive, methods=["POST"]),
    Route("/api/autopilots/{id}/deliveries", list_deliveries, methods=["GET"]),
    Route("/api/autopilots/{id}/deliveries/{delivery_id}", get_delivery, methods=["GET"]),
    Route("/api/autopilots/{id}/deliveries/{delivery_id}/replay", replay, methods=["POST"]),
]
