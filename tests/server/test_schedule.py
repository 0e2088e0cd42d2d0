"""When schedules are due, across time zones and changes of the clock."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from server.dispatch.schedule import check, latest_due, next_after
from server.errors import Invalid

pytestmark = pytest.mark.fast


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_the_next_plan_is_in_the_schedules_own_zone() -> None:
    assert next_after("0 9 * * 1", "UTC", at("2026-11-21T00:00")) == at("2026-11-23T09:00")
    assert next_after("0 9 * * *", "America/New_York", at("2026-11-21T00:00")) == at(
        "2026-11-21T14:00"
    )


def test_where_the_clock_jumps() -> None:
    # 02:30 does not exist on 29 March 2026 in Paris, and exists twice on 25 October.
    spring = next_after("30 2 * * *", "Europe/Paris", at("2026-03-28T12:00"))
    assert spring == at("2026-03-29T01:00")
    autumn = next_after("30 2 * * *", "Europe/Paris", at("2026-10-24T12:00"))
    assert autumn in {at("2026-10-25T00:30"), at("2026-10-25T01:30")}
    assert next_after("30 2 * * *", "Europe/Paris", autumn) == at("2026-10-26T01:30")


def test_of_missed_plans_only_the_latest_counts_and_none_of_yesterday() -> None:
    now = at("2026-11-21T12:00")
    assert latest_due("*/5 * * * *", "UTC", at("2026-11-21T10:01"), now) == now
    assert latest_due("0 11 * * *", "UTC", at("2026-11-20T10:00"), now) == at("2026-11-21T11:00")
    assert latest_due("0 11 * * *", "UTC", at("2026-11-21T11:00"), now) is None
    assert latest_due("0 11 19 * *", "UTC", at("2026-11-01T00:00"), now) is None


@pytest.mark.parametrize(
    ("expression", "zone"),
    [
        ("", "UTC"),
        ("* * * *", "UTC"),
        ("* * * * * *", "UTC"),
        ("@daily", "UTC"),
        ("61 * * * *", "UTC"),
        ("0 0 30 2 *", "UTC"),
        ("0 9 * * *", "Mars/Base"),
        ("0 9 * * *", "../etc/passwd"),
    ],
)
def test_what_is_no_schedule(expression: str, zone: str) -> None:
    with pytest.raises(Invalid):
        check(expression, zone)
