"""What every endpoint for daemons begins and ends with (spec 01 §2.5).

The caller's right to a row is checked by the statement that reads the row: one look-up less, and
never out of date.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from starlette.requests import HTTPConnection, Request

from server.consequences import Consequence
from server.errors import Invalid
from server.store import tasks
from server.store.queries import Connection, Record
from server.store.tasks import Caller
from server.web import auth
from server.web.auth import Actor
from server.web.context import Services, services
from shared.ids import DAEMON_TOKEN, InvalidId, canonical_id

Unit = Callable[[Connection], Awaitable[tuple[Any, list[Consequence]]]]


async def daemon_caller(request: HTTPConnection) -> Caller:
    """Who calls, as the statements want it."""
    return caller_of(await auth.daemon(request))


def caller_of(actor: Actor) -> Caller:
    """The same of an actor the daemons' entrance let in."""
    if actor.token_kind == DAEMON_TOKEN:
        return Caller(
            user_id=actor.user_id or None,
            workspace_id=actor.workspace_id,
            daemon_id=actor.daemon_id,
        )
    return Caller(user_id=actor.user_id or None)


async def see_task(request: Request) -> Record:
    """The task of the path."""
    caller = await daemon_caller(request)
    task_id = path_id(request, "task_id")
    unit = partial(tasks.see_task, task_id=task_id, caller=caller)
    return await services(request).database.read(unit)


async def change(request: Request, unit: Unit, *, one_statement: bool = False) -> Any:
    """Run the unit, tell its consequences, return its value."""
    parts: Services = services(request)
    value, told = await parts.database.write(unit, one_statement=one_statement)
    parts.hub.announce(told)
    return value


def path_id(request: Request, name: str) -> str:
    """An id of the path. Raises Invalid."""
    return canonical(request.path_params[name], f"invalid {name}")


def canonical(text: str, error: str) -> str:
    """The canonical form of an id. Raises Invalid with that text."""
    try:
        return canonical_id(text)
    except InvalidId:
        raise Invalid(error) from None


def offers(request: Request, capability: str) -> bool:
    """Whether the daemon says that it can do something beyond the protocol's oldest form."""
    offered = request.headers.get("x-client-capabilities", "").split(",")
    return capability in {name.strip() for name in offered}
