"""What can be wrong with a request, as exceptions that any layer of the server may raise.

Only `web/answers.py` knows their status codes. The text is what the caller is told. Everything
else that is raised is a defect or a broken database and becomes a 500 that says nothing.
"""

from __future__ import annotations

from typing import Any


class DomainError(Exception):
    """The request cannot be carried out; `extra` goes into the answer beside `error`."""

    def __init__(self, text: str, **extra: Any) -> None:
        super().__init__(text)
        self.text = text
        self.extra = extra


class Invalid(DomainError):
    """The request itself is wrong, or the state does not allow it (400)."""


class Unauthenticated(DomainError):
    """No credential, or one that is not valid (401)."""


class Forbidden(DomainError):
    """Known, but not allowed (403)."""


class NotFound(DomainError):
    """The row does not exist (404).

    `runtime not found`, `task not found` and `workspace not found` are protocol: daemons act on
    them (spec 01 §1.5). Raise them only when the row is really absent.
    """


class Foreign(NotFound):
    """The row exists in a workspace the caller may not see (404, an inert text)."""

    def __init__(self) -> None:
        super().__init__("not found")


class Conflict(DomainError):
    """Somebody or something else is in the way (409)."""


class Gone(DomainError):
    """It was there once, and the time for it is over (410)."""


class TooLarge(DomainError):
    """The body exceeds the limit (413)."""


class Unsupported(DomainError):
    """Not of a kind that can be shown (415)."""


class Unprocessable(DomainError):
    """Well-formed, but it cannot be done now (422)."""


class TooMany(DomainError):
    """Slow down (429); `after`: seconds until it makes sense to try again."""

    def __init__(self, text: str, *, after: float = 60.0, **extra: Any) -> None:
        super().__init__(text, **extra)
        self.after = after


class BadGateway(DomainError):
    """Somebody else's server, asked on the caller's behalf, did not do its part (502).

    The code tells it from the 502 of a proxy whose server, this one, is away.
    """

    def __init__(self, text: str, **extra: Any) -> None:
        super().__init__(text, code="upstream_unavailable", **extra)


class Unavailable(DomainError):
    """A part this needs is away for the moment (503)."""
