"""Structured logging for server, daemon and command line: one set-up, one redaction.

Lines go to stderr; people at a terminal get colours, everything else gets one JSON object a line.
Secrets are redacted in every value, however deep it lies, including tracebacks; inside `hiding` also
those that are known by value, in all that the task and its children log. Logging never raises: a line
that cannot be rendered is told as far as it goes, one that cannot be written (a full disk, a closed
pipe) is counted, and the next that can be says how many are missing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TextIO

import attrs
import structlog

from shared.redact import Redactor
from shared.system import FULL

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
    writer = Writer(out)
    _writers[:] = [writer]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _Rendering(
                (
                    structlog.processors.add_log_level,
                    structlog.processors.TimeStamper(fmt="iso", utc=True),
                    structlog.processors.StackInfoRenderer(),
                    structlog.processors.format_exc_info,
                    _redact_strings,
                    structlog.dev.ConsoleRenderer()
                    if writer.pretty
                    else structlog.processors.JSONRenderer(default=_shown),
                )
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    logging.raiseExceptions = False  # the standard library's own way never to raise
    logging.basicConfig(level=logging.WARNING, stream=out, force=True)


@attrs.define(eq=False)
class Writer:
    """Writes lines to a stream and never raises. Changed by the lines it writes."""

    stream: TextIO | None
    """None where the process has no stderr at all."""
    missing: int = 0
    """Lines that could not be written since the last that could."""
    full: bool = False
    """Whether the last was not written because the disk is full."""

    @property
    def pretty(self) -> bool:
        """Whether a person reads at a terminal."""
        try:
            return self.stream is not None and self.stream.isatty()
        except (OSError, ValueError):
            return False

    def msg(self, message: str) -> None:
        """Write a line."""
        if self.missing and not self._write(
            f'{{"event": "log lines are missing", "level": "warning", "count": {self.missing}}}'
        ):
            self.missing += 1
            return
        self.missing = 0
        if not self._write(message):
            self.missing = 1

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg

    def _write(self, message: str) -> bool:
        try:
            if self.stream is None:
                return False
            self.stream.write(message + "\n")
            self.stream.flush()
        except Exception as error:  # noqa: BLE001 - whatever it is: nobody works for the log
            self.full = isinstance(error, OSError) and error.errno in FULL
            return False
        self.full = False
        return True


_writers: Final[list[Writer]] = []
"""The one in use, once there is one. Changed by `set_up`."""


def is_disk_full() -> bool:
    """Whether the log's last line was not written because its disk is full."""
    return any(writer.full for writer in _writers)


@attrs.frozen(eq=False)
class _Rendering:
    """The processors that make a line of a record; a record that breaks one is told in short."""

    processors: Sequence[structlog.typing.Processor]

    def __call__(self, logger: Any, method: str, record: structlog.typing.EventDict) -> str:
        event = record.get("event", "")
        value: Any = record
        try:
            for processor in self.processors:
                value = processor(logger, method, value)
            return str(value)
        except structlog.DropEvent:
            raise
        except Exception as error:  # noqa: BLE001 - a value that cannot be shown must not end a task
            said = redacted(event) if isinstance(event, str) else ""
            return f"{method}: {said} (the rest cannot be shown: {type(error).__name__})"


def _shown(value: object) -> str:
    return redacted(str(value))


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
