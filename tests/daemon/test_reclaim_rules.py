"""What becomes of a directory: the table of spec 03 §24, row by row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from daemon.upkeep.reclaim_rules import Known, Limits, decide, span
from daemon.workdir.meta import CHAT, ISSUE, QUICK, RUN, Meta
from shared.times import fine_stamp

pytestmark = pytest.mark.fast

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HOUR = 3600.0
LIMITS = Limits(
    ttl=24 * HOUR, orphan=72 * HOUR, artifacts=12 * HOUR, patterns=frozenset({"node_modules"})
)
NEW, OLD = 1 * HOUR, 100 * HOUR


def ago(hours: float) -> str:
    return fine_stamp(NOW - timedelta(hours=hours))


def meta(kind: str, *, ended: float | None = 30, **more: Any) -> Meta:
    name = {ISSUE: "issue_id", CHAT: "chat_session_id", RUN: "autopilot_run_id"}.get(
        kind, "task_id"
    )
    completed = "" if ended is None else ago(ended)
    return Meta(**{name: "x", "kind": kind, "completed_at": completed, **more})


def known(status: str, hours: float = 30) -> Known:
    return Known(status=status, updated_at=ago(hours))


MISSING = Known(missing=True)
DELETED = Known(missing=True, gone_for_good=True)
FAILED = Known(failed="500")

TABLE = [
    # nothing known of it
    (None, None, NEW, "keep"),
    (None, None, OLD, "remove"),
    (meta("new kind"), None, NEW, "keep"),
    (meta("new kind"), None, OLD, "remove"),
    (meta(ISSUE, issue_id=""), None, OLD, "remove"),
    (meta(ISSUE, issue_id=""), None, NEW, "keep"),
    # the server cannot be asked
    *[(meta(kind), FAILED, OLD, "keep") for kind in (ISSUE, CHAT, RUN, QUICK)],
    # the server does not know it, or does not show it
    (meta(ISSUE), MISSING, NEW, "keep"),
    (meta(ISSUE), MISSING, OLD, "remove"),
    (meta(RUN), MISSING, NEW, "keep"),
    (meta(QUICK), MISSING, OLD, "remove"),
    (meta(CHAT), DELETED, NEW, "remove"),
    (meta(CHAT), MISSING, NEW, "keep"),
    (meta(CHAT), MISSING, OLD, "remove"),
    (meta(ISSUE), DELETED, NEW, "keep"),
    # issues
    (meta(ISSUE), known("done"), NEW, "remove"),
    (meta(ISSUE), known("cancelled"), NEW, "remove"),
    (meta(ISSUE), known("done", 23), NEW, "artifacts"),
    (meta(ISSUE), known("in_progress"), OLD, "artifacts"),
    (meta(ISSUE, ended=11), known("in_progress"), OLD, "keep"),
    (meta(ISSUE, ended=None), known("in_progress"), OLD, "keep"),
    (meta(ISSUE, ended=None), known("done"), NEW, "remove"),
    (meta(ISSUE), Known(status="done"), OLD, "keep"),
    (meta(ISSUE), Known(status="done", updated_at="0001-01-01T00:00:00Z"), OLD, "keep"),
    # chats
    (meta(CHAT), known("archived"), NEW, "remove"),
    (meta(CHAT), known("archived", 23), NEW, "keep"),
    (meta(CHAT), known("active", 1000), OLD, "keep"),
    # runs and quick creates go at once
    *[(meta(RUN), Known(status=status), NEW, "remove")
      for status in ("completed", "failed", "skipped", "issue_created")],
    *[(meta(RUN), Known(status=status), OLD, "keep") for status in ("pending", "running")],
    *[(meta(QUICK), Known(status=status), NEW, "remove")
      for status in ("completed", "failed", "cancelled")],
    (meta(QUICK), Known(status="running"), OLD, "keep"),
    # a directory of the user's own never goes
    (meta(ISSUE, local_directory=True), known("done"), OLD, "artifacts"),
    (meta(ISSUE, local_directory=True), MISSING, OLD, "keep"),
    (meta(RUN, local_directory=True), Known(status="failed"), OLD, "artifacts"),
]  # fmt: skip


@pytest.mark.parametrize(("about", "said", "idle", "action"), TABLE)
def test_the_table(about: Meta | None, said: Known | None, idle: float, action: str) -> None:
    decision = decide(about, said, idle=idle, now=NOW, limits=LIMITS)
    assert decision.action == action
    assert decision.why


@pytest.mark.parametrize("off", [{"artifacts": 0.0}, {"patterns": frozenset()}])
def test_artifacts_can_be_switched_off(off: dict[str, Any]) -> None:
    limits = attrs.evolve(LIMITS, **off)
    said = known("in_progress")
    assert decide(meta(ISSUE), said, idle=OLD, now=NOW, limits=limits).action == "keep"


def test_reasons_are_for_people() -> None:
    why = decide(meta(ISSUE), known("done", 5), idle=OLD, now=NOW, limits=LIMITS).why
    assert why == "its issue is done for only 5 h"
    assert [span(s) for s in (5, 200, 7300, 400_000)] == ["5 s", "3 min", "2 h", "4 d"]
