"""Reading what callers send, field by field: bodies where "absent" and "null" differ, and queries.

Whatever comes out can be stored: text without NUL, lone surrogates replaced (as every JSON reader
of the protocol does), numbers that are finite and in range, canonical ids. Everything else is an
Invalid that names the field. Pure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime, time
from typing import Any, Final

from starlette.datastructures import QueryParams

from server.errors import Invalid
from shared.ids import InvalidId, canonical_id
from shared.text import clean
from shared.times import parse_stamp

LARGEST_INT: Final = 2**31 - 1
"""What an `int` column holds."""

_DEEPEST: Final = 64
"""Nesting of stored JSON; far above honest values, far below what any reader's stack bears."""

_MALFORMED: Final = "invalid request body"


def text_of(value: str) -> str:
    """Return text that can be stored: no NUL, lone surrogates replaced as JSON readers do."""
    return clean(value).replace("\0", "")


def json_of(value: Any, name: str, depth: int = 0) -> Any:
    """Return a JSON value that can be stored."""
    if depth > _DEEPEST:
        raise Invalid(f"{name} is nested too deeply")
    if isinstance(value, str):
        return text_of(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise Invalid(f"{name} contains a number that is out of range")
    if isinstance(value, list):
        return [json_of(item, name, depth + 1) for item in value]
    if isinstance(value, dict):
        return {text_of(key): json_of(item, name, depth + 1) for key, item in value.items()}
    return value


def id_of(value: str, name: str) -> str:
    """Return the canonical form of an id. Raises Invalid."""
    try:
        return canonical_id(value)
    except InvalidId:
        raise Invalid(f"invalid {name}") from None


def moment_of(value: str, name: str) -> datetime:
    """Return an RFC 3339 instant in UTC. Raises Invalid."""
    try:
        return parse_stamp(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Invalid(f"invalid {name}: expected an RFC 3339 time") from None


def day_of(value: str, name: str) -> date | None:
    """Return a calendar date; empty means none; an instant must be midnight UTC (06 §1)."""
    if not value.strip():
        return None
    try:
        if len(value) == 10:
            return date.fromisoformat(value)
        moment = parse_stamp(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Invalid(f"invalid {name}: expected YYYY-MM-DD") from None
    if moment.time() != time():
        raise Invalid(f"invalid {name}: expected YYYY-MM-DD")
    return moment.date()


LONGEST_LINE: Final = 1000
"""Characters of a name or a title."""


class Fields:
    """The members of a JSON object; keys match without regard to case (01 §0)."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._values = {key.lower(): value for key, value in body.items()}

    def sent(self, name: str) -> bool:
        """Tell whether the key is there, `null` included."""
        return name in self._values

    def given(self, name: str) -> bool:
        """Tell whether the key is there with a value."""
        return self._values.get(name) is not None

    def text(self, name: str, default: str = "") -> str:
        """Return a string; absent and null are the default."""
        return text_of(self._get(name, str, default))

    def optional_text(self, name: str) -> str | None:
        """Return a string, or None for absent and null."""
        return self.text(name) if self.given(name) else None

    def required_text(self, name: str, longest: int = LONGEST_LINE) -> str:
        """Return a string that is not blank, without blanks round it: a name, a title.

        Lists have a hundred of them in one answer, so they are no place for megabytes.
        """
        value = self.text(name).strip()
        if not value:
            raise Invalid(f"{name} is required")
        if len(value) > longest:
            raise Invalid(f"{name} must be at most {longest} characters")
        return value

    def one_of(self, name: str, allowed: Collection[str], default: str) -> str:
        """Return one of the allowed strings; absent, null and empty are the default."""
        value = self.text(name) or default
        if value not in allowed:
            raise Invalid(f"invalid {name}: must be one of {', '.join(allowed)}")
        return value

    def refuse(self, name: str, why: str, *harmless: Any) -> None:
        """Raise Invalid if the field says something that this server does not do.

        Nothing said (absent, null, empty, false) is fine, and so are the `harmless` values.
        """
        value = self._values.get(name)
        if value and value not in harmless:
            raise Invalid(f"{name} is not supported: {why}")

    def flag(self, name: str) -> bool:
        """Return a boolean; absent and null are false."""
        return bool(self._get(name, bool, False))

    def whole(self, name: str, *, low: int, high: int = LARGEST_INT) -> int | None:
        """Return an integer in range, or None for absent and null."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise Invalid(_MALFORMED)
        if not low <= value <= high:
            raise Invalid(f"{name} must be between {low} and {high}")
        return value

    def number(self, name: str) -> float:
        """Return a finite number."""
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Invalid(_MALFORMED)
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise Invalid(f"{name} is out of range")
        return found

    def id(self, name: str) -> str | None:
        """Return a canonical id, or None for absent, null and empty."""
        value = self.text(name)
        return id_of(value, name) if value else None

    def ids(self, name: str, *, most: int) -> list[str]:
        """Return canonical ids, without repeats, in the order given."""
        return list(dict.fromkeys(id_of(item, name) for item in self.texts(name, most=most)))

    def texts(self, name: str, *, most: int) -> list[str]:
        """Return an array of strings; absent and null are empty."""
        value = self._get(name, list, [])
        if not all(isinstance(item, str) for item in value):
            raise Invalid(_MALFORMED)
        if len(value) > most:
            raise Invalid(f"{name} may have at most {most} items")
        return [text_of(item) for item in value]

    def day(self, name: str) -> date | None:
        """Return a calendar date; absent, null and empty are None."""
        return day_of(self.text(name), name)

    def object(self, name: str) -> dict[str, Any]:
        """Return a JSON object; absent and null are empty."""
        value: dict[str, Any] = json_of(self._get(name, dict, {}), name)
        return value

    def value(self, name: str) -> Any:
        """Return any JSON value; absent is None."""
        return json_of(self._values.get(name), name)

    def _get(self, name: str, kind: type, default: Any) -> Any:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise Invalid(_MALFORMED)
        return value


class Query:
    """The parameters of a query string; an empty one counts as absent."""

    def __init__(self, params: QueryParams) -> None:
        self._params = params

    def text(self, *names: str) -> str | None:
        """Return the first of the spellings that is there."""
        for name in names:
            value = self._params.get(name, "")
            if value:
                return text_of(value)
        return None

    def flag(self, *names: str) -> bool:
        """Tell whether the parameter is literally `true`."""
        return self.text(*names) == "true"

    def strict_flag(self, *names: str) -> bool:
        """As `flag`, but anything else than `true` and `false` is refused."""
        value = self.text(*names)
        if value not in {None, "true", "false"}:
            raise Invalid(f"{names[0]} must be true or false")
        return value == "true"

    def id(self, *names: str) -> str | None:
        """Return a canonical id."""
        value = self.text(*names)
        return None if value is None else id_of(value, names[0])

    def ids(self, name: str, *, most: int) -> list[str] | None:
        """Return canonical ids from a comma-separated list."""
        parts = self.words(name, most=most)
        return None if parts is None else [id_of(part, name) for part in parts]

    def words(self, name: str, *, most: int) -> list[str] | None:
        """Return the items of a comma-separated list."""
        value = self.text(name)
        if value is None:
            return None
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if len(parts) > most:
            raise Invalid(f"{name} may have at most {most} items")
        return parts

    def page(self, *, limit: int, most: int) -> tuple[int, int]:
        """Return limit and offset; what makes no sense is the default (06 §6.1)."""
        wanted = _digits(self.text("limit"))
        return min(wanted or limit, most), _digits(self.text("offset"))

    def whole(self, name: str, *, low: int) -> int | None:
        """Return an integer of at least `low`; one too large for a column is the largest."""
        value = self.text(name)
        if value is None:
            return None
        try:
            number = int(value) if len(value) <= 20 and value.isascii() else None
        except ValueError:
            number = None
        if number is None or number < low:
            raise Invalid(f"invalid {name}: expected a number of at least {low}")
        return min(number, LARGEST_INT)

    def moment(self, *names: str) -> datetime | None:
        """Return an instant."""
        value = self.text(*names)
        # A "+" that was not escaped has become a blank.
        return None if value is None else moment_of(value.replace(" ", "+"), names[0])

    def object(self, name: str) -> dict[str, Any] | None:
        """Return a JSON object."""
        value = self.text(name)
        if value is None:
            return None
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Invalid(f"invalid {name}: expected a JSON object")
        checked: dict[str, Any] = json_of(found, name)
        return checked


def _digits(value: str | None) -> int:
    if value is None or not value.isascii() or not value.isdigit():
        return 0
    return min(int(value[:18]), LARGEST_INT)
