"""What is provably the server's answer, and what only came from its address. ◇

A proxy, a captive portal, a half-started deployment or another program on the port answers too, and
believing it would end tasks, drop what was reported and delete journals. So every call has here the
words the protocol has for it (spec 01 §2.4, §2.5, §3): a refusal counts when its body is the error
envelope with a text that belongs to that call, an answer counts when it is what the call returns.
Everything else is an outage, whatever its status code says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import attrs

from shared import codec

T = TypeVar("T")

ERROR_TEXT: Final = 4096
"""Bytes kept of an error body."""

_SHOWN: Final = 200
"""Characters of a stranger's page that are shown."""


class ApiError(Exception):
    """A call failed. `status` is 0 when no answer was had; `text` says why.

    The `gone` properties are true only for the protocol's own words about the very object the call
    was about. Even they can come from a server that is not the right one (a database restored,
    another one behind the same name): take a second look before anything is ended by them
    (`Client.surely_gone`).
    """

    def __init__(self, call: str, status: int, text: str) -> None:
        super().__init__(f"{call}: {status} {text}" if status else f"{call}: {text}")
        self.call = call
        self.status = status
        self.text = text

    def _says(self, phrase: str) -> bool:
        return isinstance(self, Rejected) and self.status == 404 and _begins(self.text, phrase)

    @property
    def gone(self) -> bool:
        """Whether the server says that what the call was about does not exist.

        `not found` alone is none of it: that is also what a look that failed reads like.
        """
        return isinstance(self, Rejected) and self.status == 404 and self.text != "not found"

    @property
    def runtime_gone(self) -> bool:
        return self._says("runtime not found")

    @property
    def task_gone(self) -> bool:
        return self._says("task not found")

    @property
    def workspace_gone(self) -> bool:
        return self._says("workspace not found")

    @property
    def unauthorized(self) -> bool:
        """Whether the server itself does not accept the token. It may only be its database."""
        return isinstance(self, Rejected) and self.status == 401

    @property
    def too_large(self) -> bool:
        """Whether less of the same may pass; anybody on the way may have such a limit."""
        return self.status == 413

    @property
    def final(self) -> bool:
        """Whether the server has refused for good what was asked, and not who asked."""
        return isinstance(self, Rejected) and self.status not in SIGN_IN


class Transient(ApiError):
    """Trying again may help: no answer, none of the server's, 5xx, 408 or 429."""


class Foreign(Transient):
    """Something answered that is not provably the server."""


class Rejected(ApiError):
    """The server's own refusal; `text` is what its envelope says, `{"error": text}`."""


SIGN_IN: Final = (401, 403)
"""Refusals of this daemon, not of what it asked: they pass when it is signed in again."""


# -- refusals

Words = Mapping[int, tuple[str, ...]]
"""What a call's refusals begin with, by status."""


def words(*tables: Words) -> Words:
    """Put tables together."""
    whole: dict[int, tuple[str, ...]] = {}
    for table in tables:
        for status, phrases in table.items():
            whole[status] = whole.get(status, ()) + phrases
    return whole


_ANY: Final[Words] = {
    400: ("invalid request body",),
    401: (
        "missing authorization",
        "invalid authorization format",
        "invalid daemon token",
        "invalid token",
        "invalid claims",
        "token is no longer valid",
        "token does not belong to caller",
    ),
}
RUNTIME: Final[Words] = {
    400: ("invalid runtime_id", "runtime_id is required"),
    404: ("runtime not found",),
}
TASK: Final[Words] = {400: ("invalid task_id",), 404: ("task not found",)}
WORKSPACE: Final[Words] = {404: ("workspace not found",)}
NOTHING: Final[Words] = {}

REGISTER: Final = words(
    WORKSPACE,
    {
        400: (
            "daemon_id is required",
            "workspace_id is required",
            "at least one runtime or failed profile is required",
            "invalid workspace_id",
            "invalid profile_id",
            "unknown runtime profile:",
        ),
        409: ("runtime profile is disabled:",),
    },
)
DEREGISTER: Final[Words] = {400: ("runtime_ids is required", "invalid runtime_ids")}
RENEW: Final[Words] = {400: ("only personal access tokens can be renewed",)}
CLAIM_MANY: Final = words(RUNTIME, {400: ("runtimes must name", "slots must be")})
RESULT: Final = words(
    RUNTIME,
    {
        400: ("invalid status:", "the skill "),
        404: ("update not found", "request not found"),
    },
)
LEASE: Final = words(RUNTIME, TASK, {400: ("extend task prepare lease:",)})
RESOLVE: Final = words(
    RUNTIME,
    TASK,
    {
        400: ("invalid skill ref",),
        404: ("skill bundle not found",),
        409: ("task is not preparing",),
    },
)
START: Final = words(TASK, {400: ("start task:",)})
WAIT: Final = words(TASK, {400: ("mark task waiting_local_directory:",)})
GO_ON: Final = words(TASK, {400: ("go on with task:",)})
MESSAGES: Final = words(TASK, {400: ("invalid since parameter",)})
SESSION: Final = words(TASK, {400: ("session_id or work_dir required",)})
COMPLETE: Final = words(TASK, {400: ("complete task:",)})
CANCEL_ACK: Final = words(TASK, {400: ("task is not cancelled",)})
RUNTIME_USAGE: Final = words(
    RUNTIME,
    {
        400: (
            "entries may have",
            "invalid date",
            "provider and model are required",
            "token counts must",
        )
    },
)
FAIL: Final = words(TASK, {400: ("fail task:",)})
GC_CHECK: Final[Mapping[str, Words]] = {
    "issues": {400: ("invalid issue_id",), 404: ("issue not found",)},
    "chat-sessions": {400: ("invalid session_id",), 404: ("chat session not found",)},
    "autopilot-runs": {400: ("invalid run_id",), 404: ("autopilot run not found",)},
    "tasks": TASK,
}


def error_of(call: str, status: int, body: bytes, known: Words, *, location: str = "") -> ApiError:
    """Say what an answer that is no success means; `known` are the words of this call."""
    if 300 <= status < 400:
        where = f" to {location}" if location else ""
        return Foreign(call, status, f"not the server's answer: redirected{where}")
    text = body[:ERROR_TEXT].decode("utf-8", "replace").strip()
    if status >= 500 or status in (408, 429):
        return Transient(call, status, text)
    said = _envelope(body)
    if said is None:
        return Foreign(call, status, f"not the server's answer: {text[:_SHOWN]}".rstrip(": "))
    if any(_begins(said, phrase) for phrase in words(_ANY, known).get(status, ())):
        return Rejected(call, status, said)
    return Foreign(call, status, f"not what this call is refused with: {said[:_SHOWN]}")


def is_refusal(status: int | None, body: bytes | None) -> bool:
    """Whether a websocket's upgrade was refused by the server itself, and not by who stands for it."""
    return status is not None and status < 500 and _envelope(body or b"") is not None


def _envelope(body: bytes) -> str | None:
    """The text of `{"error": text}`; None for everything else."""
    try:
        value = codec.loads(body)
    except codec.DecodeError:
        return None
    said = value.get("error") if isinstance(value, dict) else None
    return said.strip() if isinstance(said, str) else None


def _begins(text: str, phrase: str) -> bool:
    return text.lower().startswith(phrase)


# -- successes

Shape = Callable[[Any], bool]
"""Whether a plain JSON value is what a call returns."""


@attrs.frozen
class Keys:
    """An object that has all these keys, `null` included; the protocol always writes them."""

    names: tuple[str, ...]

    def __call__(self, value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        there = {key.lower() for key in value}
        return all(name in there for name in self.names)


def keys(*names: str) -> Shape:
    return Keys(names)


def is_ok(value: Any) -> bool:
    """`{"status": "ok"}`, with or without more."""
    return isinstance(value, dict) and value.get("status") == "ok"


def has_status(value: Any) -> bool:
    """An object with a status in words."""
    return isinstance(value, dict) and isinstance(said := value.get("status"), str) and bool(said)


def is_list(value: Any) -> bool:
    return isinstance(value, list)


def row_of(task_id: str) -> Shape:
    """The row of that very task."""

    def fits(value: Any) -> bool:
        told = value.get("id") if isinstance(value, dict) else None
        return isinstance(told, str) and told.lower() == task_id.lower() and has_status(value)

    return fits


def value_of(call: str, body: bytes, kind: type[T] | Any, shape: Shape) -> T:
    """Read a success as a `kind`. Raises Foreign if it is not what the call returns."""
    try:
        plain = codec.loads(body)
        if shape(plain):
            decoded: T = codec.structure(plain, kind)
            return decoded
    except codec.DecodeError as error:
        raise Foreign(call, 0, f"unreadable answer: {error}") from error
    shown = body[:_SHOWN].decode("utf-8", "replace").strip()
    raise Foreign(call, 0, f"not what this call returns: {shown}")
