"""Keep the sign-in valid: ask the server every three days to extend the token's expiry.

The token's text never changes, so nothing else has to know. A refusal is only told to the owner,
because nothing here can repair it. It ends by being cancelled.
"""

from __future__ import annotations

from typing import Final

import structlog

from daemon.client import ApiError, Client
from shared.supervise import every

log = structlog.get_logger(__name__)

INTERVAL: Final = 72 * 3600.0
"""Seconds: the server extends a token only in its last week (spec 03 §21)."""


async def renew_token(client: Client) -> None:
    """Ask once; never raises."""
    try:
        renewal = await client.renew_token()
    except ApiError as error:
        if error.unauthorized:
            log.warning("the server refuses the token: run `bullpen login`, then restart")
        else:
            log.debug("token not renewed", error=str(error))
    else:
        log.debug("token looked at", renewed=renewal.renewed, expires_at=renewal.expires_at)


async def run_renewal(client: Client) -> None:
    """Renew now and then every three days."""

    async def renew() -> None:
        await renew_token(client)

    await every(INTERVAL, renew)
