"""Structured logging for server, daemon and command line: one set-up, one redaction.

Lines go to stderr; people at a terminal get colours, everything else gets one JSON object a line.
Secrets are redacted in every value, however deep it lies, including tracebacks; inside `hiding` also
those that are known by value, in all that the task and its children log.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TextIO

import structlog

from shared.redact import Redactor

LEVELS: Final = ("debug", "info", "warning", "error")


_redactor: ContextVar[Redactor] = ContextVar("redactor", default=Redactor())  # noqa: B039 - frozen


@contextmanager
def hiding(redactor: Redactor) -> Iterator[None]:
    """Redact what this task, and tasks it starts, log inside the block with this redactor."""
    token = _redactor.set(redactor)
    try:
        yield
    finally:
        _redactor.reset(token)


def redacted(text: str) -> str:
    """Return a text as it would be logged here; to be asked for before the text is cut."""
    return _redactor.get().text(text)


def set_up(level: str = "info", stream: TextIO | None = None) -> None:
    """Configure logging for the whole process; `level` is one of LEVELS."""
    out = sys.stderr if stream is None else stream
    pretty = out.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _redact_strings,
            structlog.dev.ConsoleRenderer()
            if pretty
            else structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=out, force=True)


def _number(level: str) -> int:
    name = level.lower()
    if name not in LEVELS:
        raise ValueError(f"unknown log level {level!r}; one of {', '.join(LEVELS)}")
    return int(getattr(logging, name.upper()))


def _redact_strings(
    _: Any, __: str, record: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    redactor = _redactor.get()
    return {key: redactor.value(_plain(value)) for key, value in record.items()}


_DEEPEST: Final = 12
"""Nesting of what is logged; nobody reads what lies deeper, and logging must not fail of it."""


def _plain(value: Any, depth: int = 0) -> Any:
    """A value as it will be written, so that nothing in it is written unseen."""
    if depth > _DEEPEST:
        return "…"
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(member, depth + 1) for key, member in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(member, depth + 1) for member in value]
    return str(value)
