"""When a schedule is due: five cron fields in a time zone (spec 02 §3.10). Pure.

Of the plans that were missed only the latest counts, and none that is older than a day. Where clocks
are put forward a plan in the gap comes at its end; where they are put back it comes once.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from server.errors import Invalid

REPLAY: Final = timedelta(hours=24)

_MOST: Final = 2000
"""Plans looked at in a day: one a minute, and some to spare."""


def check(expression: str, timezone: str) -> None:
    """Raise Invalid, saying what is wrong, unless it is a schedule.

    `?` in the day fields means any, as some write it.
    """
    if len(expression.split()) != 5:
        raise Invalid(
            "cron_expression must have five fields: minute, hour, day of month, month, day of week"
        )
    try:
        next_after(expression, timezone, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise Invalid(f"invalid cron_expression: {error}") from None
    except StopIteration:
        raise Invalid("cron_expression never comes true") from None


def next_after(expression: str, timezone: str, moment: datetime) -> datetime:
    """The first plan after a moment, in UTC."""
    found: datetime = next(_plans(expression, moment.astimezone(zone(timezone))))
    return found.astimezone(UTC)


def latest_due(expression: str, timezone: str, anchor: datetime, now: datetime) -> datetime | None:
    """The latest plan after `anchor` that is due and not older than a day; None without one."""
    start = max(anchor, now - REPLAY)
    latest = None
    for plan in islice(_plans(expression, start.astimezone(zone(timezone))), _MOST):
        if plan > now:
            break
        latest = plan.astimezone(UTC)
    return latest


def _plans(expression: str, start: datetime) -> CronSim:
    fields = expression.split()
    for day in (2, 4):
        if len(fields) == 5 and fields[day] == "?":
            fields[day] = "*"
    return CronSim(" ".join(fields), start)


def zone(name: str) -> ZoneInfo:
    """The time zone of that name. Raises Invalid."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Invalid(f"{name!r} is not a time zone; use a name such as Europe/Paris") from None
