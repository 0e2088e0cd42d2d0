"""When a provider's quota comes back, read from what an agent program says of it.

The programs put it in prose: a moment ("resets Mar 3, 5pm (Europe/Berlin)"), a time of day ("try
again at 5:03 PM"), a number of seconds since 1970 ("usage limit reached|1754089200") or a wait
("try again in 3 hours 20 minutes"). Pure.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

LONGEST: Final = timedelta(days=35)
"""A monthly quota and some days; what lies further ahead was misread."""

_GRACE: Final = timedelta(minutes=10)
"""A time of day this little in the past is today's: it was written before it was read."""

_MARGIN: Final = timedelta(seconds=30)
"""Clocks differ; an attempt that comes too early costs another park."""

_EPOCH: Final = re.compile(r"limit reached\s*\|\s*(\d{10})(?:\d{3})?\b", re.IGNORECASE)

_UNIT: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_AMOUNT: Final = (
    r"\d+(?:\.\d+)?\s*(?:days?|hours?|hrs?|minutes?|mins?|seconds?|secs?|[dhms])(?![a-z])"
)
_WAIT: Final = re.compile(
    r"(?:try again|retry|retry after|resets?|available|reset after|come back)\s*(?:in|after|:)?\s*"
    rf"((?:{_AMOUNT}[\s,]*(?:and\s+)?)+)",
    re.IGNORECASE,
)
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([dhms])", re.IGNORECASE)

_MONTHS: Final = [
    "jan",
    "feb",
    "mar",
    "apr",
    "may",
    "jun",
    "jul",
    "aug",
    "sep",
    "oct",
    "nov",
    "dec",
]
_MOMENT: Final = re.compile(
    r"(?:resets?|try again|available|until)\s*(?:at|on)?\s*"
    rf"(?:(?P<month>{'|'.join(_MONTHS)})[a-z]*\.?\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?"
    r"(?:,?\s+(?P<year>\d{4}))?,?\s+(?:at\s+)?)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?(?!\d|\.\d)\s*(?P<half>am|pm)?"
    r"(?:\s*\((?P<zone>[A-Za-z_]+(?:/[A-Za-z_+\-0-9]+)*)\))?",
    re.IGNORECASE,
)
_ISO: Final = re.compile(
    r"(?:resets?|try again|available|until)\D{0,12}"
    r"(\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)",
    re.IGNORECASE,
)


def reset_time(text: str, now: datetime) -> datetime | None:
    """Return when the quota a message speaks of is back, or None when it does not say.

    `now` is aware; its zone is taken for the times of day that name none. The answer is in UTC,
    later than `now`, and never further ahead than LONGEST.
    """
    found = _epoch(text) or _iso(text, now) or _wait(text, now) or _moment(text, now)
    if found is None or not now - _GRACE <= found <= now + LONGEST:
        return None
    return max(found, now).astimezone(UTC) + _MARGIN


def _epoch(text: str) -> datetime | None:
    match = _EPOCH.search(text)
    return None if match is None else datetime.fromtimestamp(int(match[1]), UTC)


def _iso(text: str, now: datetime) -> datetime | None:
    match = _ISO.search(text)
    if match is None:
        return None
    try:
        found = datetime.fromisoformat(match[1])
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=now.tzinfo)


def _wait(text: str, now: datetime) -> datetime | None:
    match = _WAIT.search(text)
    if match is None:
        return None
    seconds = sum(float(n) * _UNIT[unit.lower()] for n, unit in _PART.findall(match[1]))
    return now + timedelta(seconds=min(seconds, LONGEST.total_seconds() * 2))


def _moment(text: str, now: datetime) -> datetime | None:
    for match in _MOMENT.finditer(text):
        if match["half"] is None and match["minute"] is None:
            continue  # a bare number is no time of day
        hour = int(match["hour"])
        if match["half"] is not None:
            hour = hour % 12 + (12 if match["half"].lower() == "pm" else 0)
        here = now.astimezone(_zone(match["zone"], now))
        try:
            found = here.replace(
                hour=hour, minute=int(match["minute"] or 0), second=0, microsecond=0
            )
            if match["month"] is None:
                return found if found >= now - _GRACE else found + timedelta(days=1)
            found = found.replace(
                month=_MONTHS.index(match["month"].lower()) + 1,
                day=int(match["day"]),
                year=int(match["year"] or found.year),
            )
            if match["year"] is None and found < now - timedelta(days=180):
                found = found.replace(year=found.year + 1)  # said in December of January
        except ValueError:
            continue
        return found
    return None


def _zone(name: str | None, now: datetime) -> tzinfo:
    if name is not None:
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            pass
    assert now.tzinfo is not None
    return now.tzinfo
