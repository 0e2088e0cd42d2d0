"""The life of a task as data: which change is possible from which status (spec 02 §2.2).

The SQL of each change repeats its row of this table as a guard; a test compares the two against a
real database, status by status. Pure.
"""

from __future__ import annotations

from typing import Final

import attrs

from shared.wire.task import (
    ACTIVE,
    CANCELLED,
    COMPLETED,
    DISPATCHED,
    FAILED,
    QUEUED,
    RUNNING,
    WAITING_LOCAL_DIRECTORY,
)


@attrs.frozen
class Change:
    """One kind of change: the statuses it is possible from and the one it leads to."""

    sources: frozenset[str]
    target: str


CLAIM: Final = Change(frozenset({QUEUED}), DISPATCHED)
REDELIVER: Final = Change(frozenset({DISPATCHED}), DISPATCHED)
PARK: Final = Change(frozenset({DISPATCHED}), WAITING_LOCAL_DIRECTORY)
START: Final = Change(frozenset({DISPATCHED, WAITING_LOCAL_DIRECTORY}), RUNNING)
COMPLETE: Final = Change(frozenset({RUNNING}), COMPLETED)
FAIL: Final = Change(ACTIVE - {QUEUED}, FAILED)
EXPIRE: Final = Change(frozenset({QUEUED}), FAILED)
CANCEL: Final = Change(ACTIVE, CANCELLED)

CHANGES: Final = {
    "claim": CLAIM,
    "redeliver": REDELIVER,
    "park": PARK,
    "start": START,
    "complete": COMPLETE,
    "fail": FAIL,
    "expire": EXPIRE,
    "cancel": CANCEL,
}

ADOPT: Final = Change(frozenset({FAILED}), COMPLETED)
"""The one way back, for a task that is `presumed` to have failed: its daemon reports after all, and
its new attempt has not started. What it reports may also be another failure."""

GO_ON: Final = Change(frozenset({FAILED}), RUNNING)
"""The same, for a daemon that comes back before its agent is done."""

PREPARING: Final = START.sources
"""The daemon has the task, and its agent does not run yet: what a prepare lease protects."""

LEASE: Final = 45.0
REDELIVER_AFTER: Final = 90.0
TOKEN_LIFE: Final = 24 * 3600.0
DISPATCH_TIMEOUT: Final = 300.0
RUNNING_TIMEOUT: Final = 9000.0
QUEUE_TIMEOUT: Final = 7200.0
"""Seconds, spec 02 §12."""
