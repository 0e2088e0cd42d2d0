"""Keep the sign-in valid: ask the server every three days to extend the token's expiry.

The token's text never changes, so nothing else has to know. A server that is away is asked again in
an hour. A refusal is only told to the owner, because nothing here can repair it; a new sign-in is
taken over as it is made (`reload.py`). It ends by being cancelled.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio

from daemon.client import ApiError, Client, Transient

log = structlog.get_logger(__name__)

INTERVAL: Final = 72 * 3600.0
"""Seconds: the server extends a token only in its last week (spec 03 §21)."""


AGAIN: Final = 3600.0
"""Seconds until the next attempt after one that had no answer: a laptop may be away from its server
for most of a week and miss every third day."""


async def renew_token(client: Client) -> bool:
    """Ask once; never raises. False: there was no answer, and asking again may help."""
    try:
        renewal = await client.renew_token()
    except ApiError as error:
        if error.unauthorized:
            log.warning("the server refuses the token: run `bullpen login`")
        else:
            log.debug("token not renewed", error=str(error))
        return not isinstance(error, Transient)
    log.debug("token looked at", renewed=renewal.renewed, expires_at=renewal.expires_at)
    return True


async def run_renewal(client: Client) -> None:
    """Renew now and then every three days."""
    while True:
        answered = await renew_token(client)
        await trio.sleep(INTERVAL if answered else AGAIN)
