"""When a provider's quota comes back, read from what an agent program says of it.

The programs put it in prose: a moment ("resets Mar 3, 5pm (Europe/Berlin)"), a time of day ("try
again at 5:03 PM"), a number of seconds since 1970 ("usage limit reached|1754089200"), a wait ("try
again in 3 hours 20 minutes") or a piece of the provider's answer ("retryDelay": "33s"). Pure but for
the zone of the machine, which is meant where a text names none.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

LONGEST: Final = timedelta(days=35)
"""A monthly quota and some days; what lies further ahead was misread."""

_GRACE: Final = timedelta(minutes=10)
"""A time of day this little in the past is today's: it was written before it was read."""

_MARGIN: Final = timedelta(seconds=30)
"""Clocks differ; an attempt that comes too early costs another park."""

_EPOCH: Final = re.compile(
    r"(?:limit reached\s*\|\s*|reset\w*[\"']?\s*[:=]\s*[\"']?)(\d{10})(?:\d{3})?(?!\d)",
    re.IGNORECASE,
)

_UNIT: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_AMOUNT: Final = (
    r"\d{1,9}(?:\.\d{1,9})?\s?(?:days?|hours?|hrs?|minutes?|mins?|seconds?|secs?|[dhms])(?![a-z])"
)
_WAIT: Final = re.compile(
    r"(?:try again|retry|reset\w*|available|come back|retrydelay|wait)[\"']?\s{0,3}"
    rf"(?:in|after|-after|:)?[\"':\s]{{0,4}}((?:{_AMOUNT}[\s,]{{0,3}}(?:and\s)?)+)",
    re.IGNORECASE,
)
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([dhms])", re.IGNORECASE)
_SECONDS: Final = re.compile(
    r"(?:retry-after(?P<ms>-ms)?|resets?_in_seconds)[\"']?\s{0,3}[:=]\s{0,3}[\"']?(\d{1,9})"
    r"(?![\d.:])",
    re.IGNORECASE,
)

_MONTHS: Final = (
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
)  # fmt: skip
_WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_ZONES: Final = {
    "pt": "America/Los_Angeles", "pst": "America/Los_Angeles", "pdt": "America/Los_Angeles",
    "pacific": "America/Los_Angeles", "et": "America/New_York", "est": "America/New_York",
    "edt": "America/New_York", "eastern": "America/New_York",
}  # fmt: skip
"""What providers write instead of a zone's name."""

_MOMENT: Final = re.compile(
    r"\b(?:resets?|try again|available|until|ends|renews?)\b(?:\s(?:at|on|by))?\s*"
    rf"(?:(?P<weekday>{'|'.join(_WEEKDAYS)})[a-z]*,?\s+(?:at\s+)?)?"
    r"(?P<tomorrow>tomorrow,?\s+(?:at\s+)?)?"
    rf"(?:(?P<month>{'|'.join(_MONTHS)})[a-z]*\.?\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b"
    r"(?:,?\s+(?P<year>\d{4}))?"
    r"|(?P<us_month>\d{1,2})/(?P<us_day>\d{1,2})/(?P<us_year>\d{4}))?,?\s*(?:at\s+)?"
    r"(?:(?P<hour>\d{1,2})(?::(?P<minute>\d{2})(?::\d{2})?)?(?![\d/]|\.\d)"
    r"(?:\s?(?P<half>[ap])\.?m\b\.?)?|(?P<word>midnight|noon))?"
    r"\s*\(?(?P<zone>[A-Z][A-Za-z_]+/[A-Za-z_+\-0-9/]+"
    r"|(?:UTC|GMT)(?P<offset>[+-]\d{1,2})?\b|\b(?:P[SD]?T|E[SD]?T|Pacific|Eastern)\b)?",
    re.IGNORECASE,
)
_ISO: Final = re.compile(
    r"(?:reset\w*|try again|available|until)\D{0,12}"
    r"(\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?)",
    re.IGNORECASE,
)

_READ: Final = 16 * 1024
"""Characters of a text that are looked at; what a provider says of its quota is short."""


def reset_time(text: str, now: datetime, zone: tzinfo | None = None) -> datetime | None:
    """Return when the quota a message speaks of is back, or None when it does not say.

    `now` is aware; `zone` is meant by times that name none, None for the machine's own. The answer
    is in UTC, later than `now`, and never further ahead than LONGEST.
    """
    text = text[:_READ]
    found = _epoch(text) or _iso(text, zone) or _wait(text, now) or _moment(text, now, zone)
    return None if found is None else plausible(found, now)


def plausible(found: datetime, now: datetime) -> datetime | None:
    """Return when to try again if a quota comes back at `found`; None if that cannot be meant."""
    if not now - _GRACE <= found <= now + LONGEST:
        return None
    return max(found, now).astimezone(UTC) + _MARGIN


def _epoch(text: str) -> datetime | None:
    match = _EPOCH.search(text)
    return None if match is None else datetime.fromtimestamp(int(match[1]), UTC)


def _iso(text: str, zone: tzinfo | None) -> datetime | None:
    match = _ISO.search(text)
    if match is None:
        return None
    try:
        found = datetime.fromisoformat(match[1])
    except ValueError:
        return None
    return found if found.tzinfo is not None else _aware(found, zone)


def _wait(text: str, now: datetime) -> datetime | None:
    if match := _WAIT.search(text):
        seconds = sum(float(n) * _UNIT[unit.lower()] for n, unit in _PART.findall(match[1]))
    elif match := _SECONDS.search(text):
        seconds = int(match[2]) / (1000 if match["ms"] else 1)
    else:
        return None
    return now + timedelta(seconds=min(seconds, LONGEST.total_seconds() * 2))


def _moment(text: str, now: datetime, zone: tzinfo | None) -> datetime | None:
    for match in _MOMENT.finditer(text):
        try:
            found = _named(match, now, zone)
        except ValueError:
            continue
        if found is not None:
            return found
    return None


def _named(match: re.Match[str], now: datetime, zone: tzinfo | None) -> datetime | None:
    """The moment that a text names. Raises ValueError for one that there is not."""
    zone = _zone(match, zone)
    here = now.astimezone(zone).replace(tzinfo=None)
    dated = match["month"] or match["us_month"]
    clock = _clock(match)
    if clock is None and not dated:
        return None
    hour, minute = clock or (0, 0)
    found = here.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if dated:
        year = match["year"] or match["us_year"]
        month = int(match["us_month"] or 0) or _MONTHS.index(dated.lower()) + 1
        found = found.replace(
            month=month, day=int(match["day"] or match["us_day"]), year=int(year or found.year)
        )
        if not year and found < here - timedelta(days=180):
            found = found.replace(year=found.year + 1)  # said in December of January
        if clock is None and found.date() == here.date():
            found += timedelta(days=1)  # some time today
    elif match["weekday"]:
        found += timedelta(days=(_WEEKDAYS.index(match["weekday"].lower()) - here.weekday()) % 7)
        if found < here - _GRACE:
            found += timedelta(days=7)
    elif match["tomorrow"] or found < here - _GRACE:
        found += timedelta(days=1)
    return _aware(found, zone)


def _clock(match: re.Match[str]) -> tuple[int, int] | None:
    """Hour and minute; None for none, or for a bare number, which is no time of day."""
    if match["word"]:
        return (12 if match["word"].lower() == "noon" else 0), 0
    if match["hour"] is None or not (match["half"] or match["minute"]):
        return None
    hour, minute = int(match["hour"]), int(match["minute"] or 0)
    if match["half"]:
        if not 1 <= hour <= 12:
            raise ValueError(f"no hour of half a day: {hour}")
        hour = hour % 12 + (12 if match["half"].lower() == "p" else 0)
    return hour, minute


def _zone(match: re.Match[str], default: tzinfo | None) -> tzinfo | None:
    name = match["zone"]
    if not name:
        return default
    if name[:3].upper() in {"UTC", "GMT"}:
        return timezone(timedelta(hours=int(match["offset"] or 0)))
    try:
        return ZoneInfo(_ZONES.get(name.lower(), name))
    except (KeyError, ValueError, OSError):
        return default


def _aware(wall: datetime, zone: tzinfo | None) -> datetime:
    """A time on the wall as a moment; summer time is the zone's or the machine's business."""
    return wall.astimezone(UTC) if zone is None else wall.replace(tzinfo=zone)
