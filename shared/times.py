"""Timestamps as they stand on the wire (spec 01 §0): forms A, B and C, and "no value". Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

NO_TIME: Final = "0001-01-01T00:00:00Z"
"""What form C says for "no value"."""

_FORM = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:[.,](\d{1,9}))?([Zz]|[+-]\d\d:?\d\d)$"
)


def now() -> datetime:
    """Return the wall-clock time, for values that are shown or stored; never for durations."""
    return datetime.now(UTC)


def stamp(moment: datetime) -> str:
    """Form A: RFC 3339, second precision, UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None, microsecond=0).isoformat() + "Z"


def try_stamp(moment: datetime | None) -> str | None:
    """Form A, or None for no value."""
    return None if moment is None else stamp(moment)


def fine_stamp(moment: datetime) -> str:
    """Forms B and C: RFC 3339 in UTC with fractional seconds, trailing zeros trimmed."""
    moment = moment.astimezone(UTC).replace(tzinfo=None)
    whole = moment.replace(microsecond=0).isoformat()
    fraction = f".{moment.microsecond:06d}".rstrip("0").rstrip(".")
    return f"{whole}{fraction}Z"


def fine_stamp_or_none_value(moment: datetime | None) -> str:
    """Form C: as `fine_stamp`, with the year 1 for no value."""
    return NO_TIME if moment is None else fine_stamp(moment)


def parse_stamp(text: str) -> datetime:
    """Read any form: 0 to 9 fractional digits, any offset. Raises ValueError otherwise."""
    match = _FORM.match(text.strip())
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    day, clock, fraction, offset = match.groups()
    micros = (fraction or "0")[:6].ljust(6, "0")
    zone = "+00:00" if offset in "Zz" else offset
    return datetime.fromisoformat(f"{day}T{clock}.{micros}{zone}")
