"""What the failure of a task means: whether to try again, and when. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import attrs

from shared import failure
from shared.quota import LONGEST, reset_time
from shared.times import fine_stamp, parse_stamp

_PATIENCE: Final = timedelta(minutes=1)
_LONGEST_PATIENCE: Final = timedelta(hours=6)

_CLOSED_ISSUE: Final = frozenset({"done", "cancelled"})


@attrs.frozen(kw_only=True)
class Failure:
    """Why a task is failed, and what the daemon knew of its agent.

    `presumed`: the server concluded it from silence. The agent may have done its work all the same.
    """

    error: str
    reason: str
    session_id: str = ""
    work_dir: str = ""
    presumed: bool = False
    resets_at: str = ""
    """When the quota it failed of is back, if its daemon knows."""


RECOVERED: Final = Failure(
    error="daemon restarted while task was in flight",
    reason=failure.RUNTIME_RECOVERY,
    presumed=True,
)


def resume_at(why: Failure, now: datetime, *, attempt: int = 1) -> datetime | None:
    """Return when a new attempt has a chance, for a failure of the provider's quota only.

    Providers that promise a second or two break the promise: each attempt waits at least four
    times as long as the one before, from a minute up.
    """
    if why.reason != failure.QUOTA:
        return None
    found = _told(why.resets_at, now) or reset_time(why.error, now)
    if found is None:
        return None
    patience: timedelta = min(_PATIENCE * 4 ** (attempt - 1), _LONGEST_PATIENCE)
    return max(found, now + patience)


def _told(resets_at: str, now: datetime) -> datetime | None:
    """The moment a daemon names; None for none, and for one that cannot be meant."""
    try:
        found = parse_stamp(resets_at) if resets_at else None
    except (ValueError, OverflowError):
        return None
    return found if found is not None and found <= now + LONGEST + _PATIENCE else None


def decide_retry(row: Mapping[str, Any], reason: str, *, quota_returns: bool = False) -> bool:
    """Tell whether a failed task gets a new attempt (spec 02 §6).

    Unlike the reference's, it brings no archived agent and no closed issue back to life, and a
    quota that comes back at a known time is worth waiting for.
    """
    return (
        (reason in failure.RETRYABLE or quota_returns)
        and row["attempt"] < row["max_attempts"]
        and row["autopilot_run_id"] is None
        and (row["issue_id"] is not None or row["chat_session_id"] is not None)
        and row["issue_status"] not in _CLOSED_ISSUE
        and not row["agent_archived"]
    )


def decide(
    row: Mapping[str, Any], why: Failure, now: datetime, *, adopt: bool = False
) -> dict[str, Any]:
    """What is to happen to one task that fails, as the statement `fail` reads it."""
    returns = resume_at(why, now, attempt=row["attempt"])
    retry = decide_retry(row, why.reason, quota_returns=returns is not None)
    return {
        "id": row["id"],
        "error": why.error,
        "reason": why.reason,
        "session_id": why.session_id,
        "work_dir": why.work_dir,
        "comment": "" if retry else why.error,
        "retry": retry,
        "fresh": failure.spoils_session(why.reason, why.error),
        "resume_at": None if returns is None or not retry else fine_stamp(returns),
        "presumed": why.presumed,
        "adopt": adopt,
    }
