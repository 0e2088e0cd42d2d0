"""Endpoints that show work by who does it: groups of issues, favourite assignees (spec 06 §6.1)."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.errors import Invalid
from server.store import work
from server.store.queries import Connection, Record, load
from server.web import auth
from server.web.answers import answer
from server.web.fields import Query, id_of
from server.web.unit import query, read
from server.web.work_api import MOST_IDS, date_window, metadata_of, sorting

SQL: Final = load("grouped")

_ASSIGNEES: Final = frozenset({"member", "agent", "squad"})
_CREATORS: Final = frozenset({"member", "agent"})


async def list_grouped(request: Request) -> Response:
    """GET /api/issues/grouped: the first of each assignee's issues, and how many there are."""
    caller = await auth.workspace(request)
    asked = query(request)
    if asked.text("group_by") != "assignee":
        raise Invalid("invalid group_by: must be assignee")
    sort, descending = sorting(asked)
    limit, offset = asked.page(limit=50, most=100)
    order = f"{work.ORDERS[sort]} {'desc' if descending else 'asc'} nulls last,"
    assignee_types, assignee_ids = _pairs(asked, "assignee_filters", _ASSIGNEES)
    creator_types, creator_ids = _pairs(asked, "creator_filters", _CREATORS)

    async def unit(conn: Connection) -> list[Record]:
        return await conn.fetch(
            SQL.by_assignee.replace("/*order*/", order),
            caller.workspace_id,
            asked.words("statuses", most=MOST_IDS),
            asked.words("priorities", most=MOST_IDS),
            asked.words("assignee_types", most=MOST_IDS),
            asked.ids("assignee_ids", most=MOST_IDS),
            assignee_types,
            assignee_ids,
            asked.flag("include_no_assignee"),
            asked.ids("project_ids", most=MOST_IDS),
            asked.flag("include_no_project"),
            asked.ids("label_ids", most=MOST_IDS),
            creator_types,
            creator_ids,
            *date_window(asked),
            asked.flag("scheduled"),
            metadata_of(asked),
            *_one_group(asked),
            limit,
            offset,
        )

    return answer({"groups": _groups(await read(request, unit))})


def _pairs(
    asked: Query, name: str, kinds: frozenset[str]
) -> tuple[list[str] | None, list[str] | None]:
    """The types and the ids of `type:uuid,…`; two Nones when it does not filter."""
    words = asked.words(name, most=MOST_IDS)
    if words is None:
        return None, None
    found: list[tuple[str, str]] = []
    for word in words:
        kind, _, given = word.partition(":")
        if kind not in kinds:
            raise Invalid(f"invalid {name}: expected type:id")
        found.append((kind, id_of(given, name)))
    return [kind for kind, _ in found], [given for _, given in found]


def _one_group(asked: Query) -> tuple[bool, str | None, str | None]:
    """Whether only one group is wanted, and whose; `none` is the group of nobody."""
    kind, of = asked.text("group_assignee_type"), asked.id("group_assignee_id")
    if kind is None:
        if of is not None:
            raise Invalid("group_assignee_id needs group_assignee_type")
        return False, None, None
    if kind == "none":
        return True, None, None
    if kind not in _ASSIGNEES:
        raise Invalid("invalid group_assignee_type: must be member, agent, squad or none")
    return True, kind, of


def _groups(rows: list[Record]) -> list[dict[str, Any]]:
    groups: dict[tuple[str | None, str | None], dict[str, Any]] = {}
    for row in rows:
        kind, of = row["team_type"], row["team_id"]
        group = groups.setdefault(
            (kind, of),
            {
                "id": "assignee:unassigned" if of is None else f"assignee:{kind}:{of}",
                "assignee_type": kind,
                "assignee_id": of,
                "issues": [],
                "total": row["total"],
            },
        )
        if row["id"] is not None:
            group["issues"].append(work.issue_of(row, labels=row["labels"]))
    return list(groups.values())


async def assignee_frequency(request: Request) -> Response:
    """GET /api/assignee-frequency: whom the caller gives work to, most often first."""
    caller = await auth.workspace(request)
    actor = caller.actor
    rows = await read(
        request,
        lambda conn: conn.fetch(
            SQL.assignee_frequency, caller.workspace_id, actor.actor_type, actor.actor_id
        ),
    )
    return answer([dict(row) for row in rows])


routes: list[BaseRoute] = [
    Route("/api/issues/grouped", list_grouped, methods=["GET"]),
    Route("/api/assignee-frequency", assignee_frequency, methods=["GET"]),
]
