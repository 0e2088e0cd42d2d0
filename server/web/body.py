"""Reading request bodies: the size limit and one flat error (spec 01 §0)."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import trio
from starlette.requests import Request

from server.errors import Invalid, TooLarge
from server.web.context import services
from shared import codec

T = TypeVar("T")

_INVALID: Final = "invalid request body"

_LINGER_BYTES: Final = 64 * 1024 * 1024
_LINGER_SECONDS: Final = 2.0
"""How much of a body that is too large is read and thrown away before answering: a peer that still
writes when the connection closes loses the answer."""


async def read(request: Request) -> bytes:
    """The whole body. Raises TooLarge, and Invalid when the client left before its end."""
    limit = services(request).config.max_body
    body = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Invalid(_INVALID)
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            body.clear()
            if more:
                await _linger(request)
            raise TooLarge("request body too large")
    return bytes(body)


async def _linger(request: Request) -> None:
    size = 0
    with trio.move_on_after(_LINGER_SECONDS):
        while size < _LINGER_BYTES:
            message = await request.receive()
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                return


async def decode(request: Request, kind: type[T], *, cut: bool = False) -> T:
    """The body as a `kind`; with `cut` what is nested too deeply is cut, not refused.

    Raises Invalid, TooLarge.
    """
    try:
        return codec.decode(await read(request), kind, cut=cut)
    except codec.TooDeep as error:
        raise Invalid(f"{_INVALID}: {error}") from None
    except codec.DecodeError as error:
        raise Invalid(_INVALID) from error


async def load(request: Request) -> dict[str, Any]:
    """The body as a plain object; `null` counts as an empty one. Raises Invalid, TooLarge."""
    try:
        value = codec.loads(await read(request))
    except codec.TooDeep as error:
        raise Invalid(f"{_INVALID}: {error}") from None
    except codec.DecodeError as error:
        raise Invalid(_INVALID) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid(_INVALID)
    return value
