"""Rows as wire values: columns go into the fields of the same name.

Times become form A (spec 01 §0), dates their ISO form; everything else is as the connection reads
it. What a field is called and what its column is called differ nowhere but where a function says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, TypeVar

import attrs

from shared.times import stamp

T = TypeVar("T")


def wire(kind: type[T], row: Mapping[str, Any], **given: Any) -> T:
    """Make a value of an attrs class from a row; `given` wins, and fields of neither keep theirs."""
    names = [field.name for field in attrs.fields(kind)]  # type: ignore[arg-type]
    columns = set(row.keys())
    found = {name: _plain(row[name]) for name in names if name in columns and name not in given}
    return kind(**found, **given)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return stamp(value)
    if isinstance(value, date):
        return value.isoformat()
    return value
