"""Where the time of a request goes, for the log of slow ones.

`begin` opens a record for whatever runs in this context from here on, the asyncio side of a crossing
included; `stage` adds to it. Without a record it does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_record: ContextVar[dict[str, float] | None] = ContextVar("stages", default=None)


def begin() -> dict[str, float]:
    """Open a record; returns it, with seconds by stage."""
    record: dict[str, float] = {}
    _record.set(record)
    return record


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the block's time as this stage's."""
    record = _record.get()
    if record is None:
        yield
        return
    started = time.perf_counter()
    try:
        yield
    finally:
        record[name] = record.get(name, 0.0) + time.perf_counter() - started
