"""Answers: values to JSON, errors to status codes. The only module that knows the codes.

Whatever is not a DomainError is a defect or a broken database: it is logged with its traceback and
the caller learns nothing but that it happened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from server import errors
from shared import codec

log = structlog.get_logger(__name__)

_STATUS: Final[tuple[tuple[type[errors.DomainError], int], ...]] = (
    (errors.Invalid, 400),
    (errors.Unauthenticated, 401),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Gone, 410),
    (errors.TooLarge, 413),
    (errors.Unsupported, 415),
    (errors.Unprocessable, 422),
    (errors.TooMany, 429),
    (errors.BadGateway, 502),
    (errors.Unavailable, 503),
)

PLAIN: Final = "text/plain; charset=utf-8"
"""What the user-auth layer calls its JSON (spec 01 §0)."""


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer of attrs or plain values, ending with a newline."""
    return Response(codec.encode(value) + b"\n", status, headers, "application/json")


def nothing() -> Response:
    """204, no body."""
    return Response(status_code=204)


def status_of(error: errors.DomainError) -> int:
    """The status code an error is answered with."""
    return next((code for kind, code in _STATUS if isinstance(error, kind)), 400)


def error_answer(error: errors.DomainError) -> Response:
    """The error envelope; `plain` errors carry the same text as text/plain (spec 01 §0)."""
    body = codec.encode({"error": error.text, **error.extra}) + b"\n"
    media = PLAIN if getattr(error, "plain", False) else "application/json"
    return Response(body, status_of(error), _when_to_retry(error), media)


def _when_to_retry(error: errors.DomainError) -> dict[str, str] | None:
    if isinstance(error, errors.TooMany):
        return {"retry-after": str(max(1, math.ceil(error.after)))}
    return {"retry-after": "1"} if isinstance(error, errors.Unavailable) else None


async def domain_error(_: Request, error: Exception) -> Response:
    """Exception handler for DomainError."""
    assert isinstance(error, errors.DomainError)
    return error_answer(error)


async def http_error(_: Request, error: Exception) -> Response:
    """Exception handler for what the router raises: unknown route, wrong method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return PlainTextResponse("404 page not found\n", 404)
    if error.status_code == 405:
        return Response(status_code=405, headers=error.headers)
    return answer({"error": str(error.detail)}, error.status_code)


async def internal_error(_: Request, __: Exception) -> Response:
    """What a caller is told of a defect; Starlette raises it again, and the frame logs it."""
    return answer({"error": "internal error"}, 500)


HANDLERS: Final[Mapping[Any, Callable[[Request, Exception], Any]]] = {
    errors.DomainError: domain_error,
    HTTPException: http_error,
    Exception: internal_error,
}
