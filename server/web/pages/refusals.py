"""Refusals and faults as a person's browser shows them: a page that says what is wrong.

Programs get the API's own answers. Whoever asks for HTML outside `/api/` is a person.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server import errors
from server.web import answers
from server.web.pages import shell

Handler = Callable[[Request, Exception], Awaitable[Response]]

_HEADINGS: Final = {
    403: "Not allowed",
    404: "Not here",
    405: "Not here",
    429: "Too many requests",
    503: "Busy just now",
}


def _for_people(handler: Handler) -> Handler:
    """The same answer, as a page for who looks at pages."""

    async def handle(request: Request, error: Exception) -> Response:
        answered = await handler(request, error)
        if not _is_person(request):
            return answered
        page = shell.problem(
            _HEADINGS.get(answered.status_code, "That did not work"),
            _text(error, answered.status_code),
            answered.status_code,
        )
        if (after := answered.headers.get("retry-after")) is not None:
            page.headers["retry-after"] = after
        return page

    return handle


def _is_person(request: Request) -> bool:
    path = request.url.path
    return "text/html" in request.headers.get("accept", "") and not path.startswith("/api/")


def _text(error: Exception, status: int) -> str:
    if isinstance(error, errors.DomainError):
        return f"{error.text[:1].upper()}{error.text[1:]}."
    if isinstance(error, HTTPException) and status in {404, 405}:
        return "There is no such page."
    return "Something went wrong in Bullpen. Its log says what; try again in a moment."


HANDLERS: Final[Mapping[Any, Handler]] = {
    kind: _for_people(handler) for kind, handler in answers.HANDLERS.items()
}
