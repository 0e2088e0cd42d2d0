"""The middle of every endpoint of the user API: one unit of work, then its consequences.

A unit is asyncio-flavoured and runs in one transaction; a writing one returns its value and what
follows from it, which is told only after the commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from starlette.requests import Request

from server.consequences import Consequence
from server.rights import NOTHING, Thing
from server.store.queries import Connection
from server.web import body
from server.web.auth import Membership
from server.web.context import services
from server.web.fields import Fields, Query, id_of
from shared import codec
from shared.wire.event import Event

T = TypeVar("T")

Change = Callable[[Connection], Awaitable[tuple[T, Sequence[Consequence]]]]


async def read(request: Request, unit: Callable[[Connection], Awaitable[T]]) -> T:
    """Run a unit that changes nothing."""
    return await services(request).database.read(unit)


async def write(request: Request, unit: Change[T]) -> T:
    """Run a unit that changes something, tell what follows, and return its value."""
    parts = services(request)
    value, consequences = await parts.database.write(unit)
    parts.hub.announce(consequences)
    return value


async def fields(request: Request) -> Fields:
    """Return the members of the body; `null` counts as an empty object."""
    return Fields(await body.load(request))


async def optional_fields(request: Request) -> Fields:
    """As `fields`, where there may be no body at all."""
    declared = request.headers.get("content-length")
    empty = declared == "0" or (declared is None and "transfer-encoding" not in request.headers)
    return Fields({}) if empty else await fields(request)


def query(request: Request) -> Query:
    """Return the parameters of the query string."""
    return Query(request.query_params)


def path_id(request: Request, name: str, called: str = "") -> str:
    """Return an id from the path; a malformed one is Invalid."""
    return id_of(request.path_params[name], called or name)


def wrote(author_type: str, author_id: str) -> Thing:
    """Return a thing that belongs to the member or agent who wrote it."""
    if author_type == "agent":
        return Thing(agents=(author_id,))
    return Thing(people=(author_id,)) if author_type == "member" else NOTHING


def event(caller: Membership, kind: str, **payload: object) -> Event:
    """Say what the caller did in the workspace."""
    return Event(
        type=kind,
        payload=codec.unstructure(payload),
        workspace_id=caller.workspace_id,
        actor_type=caller.actor.actor_type,
        actor_id=caller.actor.actor_id,
    )
