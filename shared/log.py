"""Structured logging for server, daemon and command line: one set-up, one redaction.

Lines go to stderr; people at a terminal get colours, everything else gets one JSON object a line.
Secrets are redacted in every string value, including tracebacks.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, TextIO

import structlog

from shared.redact import redact

LEVELS: Final = ("debug", "info", "warning", "error")


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
    return {
        key: redact(value) if isinstance(value, str) else value for key, value in record.items()
    }
