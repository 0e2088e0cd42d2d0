"""The two side duties of one task, each a child of its nursery that ends with it.

`watch_cancel` asks the server every few seconds whether the task still counts and, if not, cancels
the scope it was given. `keep_lease` keeps a task that is not started yet from being redelivered.
Neither ever fails the task: a server that does not answer changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import trio

from daemon.client import ApiError
from shared.supervise import every
from shared.wire.task import TERMINAL

if TYPE_CHECKING:
    from daemon.client import Client

log = structlog.get_logger(__name__)

CANCEL_POLL: Final = 5.0
"""Seconds between looks at the task's status: how long a user's cancel may go unheeded."""

LEASE_REFRESH: Final = 15.0
"""Seconds between renewals of a lease of 45."""


async def stopped_by_server(client: Client, task_id: str) -> str:
    """Say why the server no longer wants the task run; "" while it does or cannot be asked.

    "gone" needs a second look. A task it only gave up because this machine was out of reach is taken back, unless another
    attempt has begun.
    """
    try:
        told = await client.status(task_id)
    except ApiError as error:
        sure = error.task_gone and await client.surely_gone(task_id)
        return "gone" if sure else ""
    if told.presumed and await _goes_on(client, task_id):
        return ""
    return told.status if told.status in TERMINAL else ""


async def _goes_on(client: Client, task_id: str) -> bool:
    """Take a task back; True also when the server could not be asked, and will be again."""
    try:
        await client.go_on(task_id)
    except ApiError as error:
        return not error.final
    log.info("task goes on after all", task_id=task_id)
    return True


async def watch_cancel(client: Client, task_id: str, server_stop: trio.CancelScope) -> None:
    """Cancel `server_stop` once the server has ended the task, and end (spec 03 §13.4)."""
    while True:
        await trio.sleep(CANCEL_POLL)
        reason = await stopped_by_server(client, task_id)
        if reason:
            log.info("task ended by the server", task_id=task_id, status=reason)
            server_stop.cancel(reason=reason)
            return


@asynccontextmanager
async def keep_lease(client: Client, runtime_id: str, task_id: str) -> AsyncIterator[None]:
    """Renew the task's lease while the block runs (spec 03 §19); failures are only logged."""

    async def renew() -> None:
        try:
            await client.prepare_lease(runtime_id, task_id)
        except ApiError as error:
            log.info("lease not renewed", task_id=task_id, error=str(error))

    async with trio.open_nursery() as keeper:
        # the claim itself set the first lease
        keeper.start_soon(partial(every, LEASE_REFRESH, renew, first=LEASE_REFRESH))
        yield
        keeper.cancel_scope.cancel(reason="prepared")
