"""When a quota comes back, in the words of the programs that ran into it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.failure import QUOTA, classify
from shared.quota import LONGEST, reset_time

pytestmark = pytest.mark.fast

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 3, 2, 15, 20, tzinfo=BERLIN)
MARGIN = timedelta(seconds=30)


def berlin(month: int, day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, month, day, hour, minute, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Claude AI usage limit reached|1772470800", datetime.fromtimestamp(1772470800, UTC)),
        ("Claude AI usage limit reached|1772470800000", datetime.fromtimestamp(1772470800, UTC)),
        ("You've hit your limit · resets 5pm (Europe/Berlin)", berlin(3, 2, 17)),
        ("You\u2019ve hit your limit · resets 5:30pm", berlin(3, 2, 17, 30)),
        ("5-hour usage limit reached ∙ resets 3pm", berlin(3, 3, 15)),
        ("5-hour usage limit reached ∙ resets 3:15pm", berlin(3, 2, 15, 20)),
        ("You've hit your limit · resets 12am (America/New_York)", berlin(3, 3, 6)),
        ("Weekly usage limit reached ∙ resets Mar 5 at 9am", berlin(3, 5, 9)),
        ("Usage limit, resets Mar 5, 9:30pm (Europe/Berlin)", berlin(3, 5, 21, 30)),
        (
            "You've hit your usage limit. Upgrade to Pro or try again in 3 hours 20 minutes.",
            NOW + timedelta(hours=3, minutes=20),
        ),
        (
            "You've hit your usage limit. Try again in 2 days 1 hour and 5 minutes.",
            NOW + timedelta(days=2, hours=1, minutes=5),
        ),
        ("You've hit your usage limit. Try again at 5:03 PM.", berlin(3, 2, 17, 3)),
        ("usage limit … try again at Mar 9th, 2026 5:03 PM.", berlin(3, 9, 17, 3)),
        (
            "You have exhausted your quota. Your quota will reset after 14h27m44s.",
            NOW + timedelta(hours=14, minutes=27, seconds=44),
        ),
        ("quota exceeded, please retry in 33.5s", NOW + timedelta(seconds=33.5)),
        ("quota exceeded; resets at 2026-03-02T18:00:00Z", datetime(2026, 3, 2, 18, tzinfo=UTC)),
        ("monthly usage limit: resets on 2026-04-01 00:00", berlin(4, 1, 0)),
        ("You've hit your session limit · resets 11:10pm (Europe/Madrid)", berlin(3, 2, 23, 10)),
        ("You've hit your weekly limit · resets Mar 5, 7am (Europe/Zurich)", berlin(3, 5, 7)),
        ("You've hit your Opus limit · resets 5pm (Europe/Berlin)", berlin(3, 2, 17)),
        ("5-hour limit reached ∙ resets 6pm", berlin(3, 2, 18)),
        ("You're out of extra usage · resets 9pm (America/Toronto)", berlin(3, 3, 3)),
        ("You've reached your Fable limit; your limit will reset at 17:00.", berlin(3, 2, 17)),
        ("Weekly limit reached. Resets Thursday at 9:00 AM", berlin(3, 5, 9)),
        ("Limit reached · resets Monday, 9am", berlin(3, 9, 9)),
        ("Your limit resets tomorrow at 9am", berlin(3, 3, 9)),
        ("daily limit reached; resets at midnight Pacific time", berlin(3, 3, 9)),
        ("daily limit exceeded, resets at 00:00 UTC", berlin(3, 3, 1)),
        ("request limit: resets 18:00 (UTC+2)", berlin(3, 2, 17)),
        (
            "Your usage limits will reset when your monthly cycle ends on 3/14/2026.",
            berlin(3, 14, 0),
        ),
        ("You've hit your usage limit. Try again on Mar 2", berlin(3, 3, 0)),
        (
            '{"type":"usage_limit_reached","message":"quota","resets_at":1772470800}',
            datetime.fromtimestamp(1772470800, UTC),
        ),
        ('quota exceeded: {"resets_in_seconds": 900}', NOW + timedelta(minutes=15)),
        ('RESOURCE_EXHAUSTED quota, "retryDelay": "33s"', NOW + timedelta(seconds=33)),
        ("quota exceeded (Retry-After: 3600)", NOW + timedelta(hours=1)),
        ("quota exceeded; retry-after-ms=90000", NOW + timedelta(seconds=90)),
        ("Suggested retry after 1s.. (quota)", NOW + timedelta(seconds=1)),
        (
            "Sorry, you have been rate-limited. Please wait 2 hours 5 minutes before trying again.",
            NOW + timedelta(hours=2, minutes=5),
        ),
    ],
)
def test_when_it_comes_back(text: str, expected: datetime) -> None:
    assert classify(text) == QUOTA
    assert reset_time(text, NOW, BERLIN) == expected.astimezone(UTC) + MARGIN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Quota exceeded. Check your plan and billing details.",
        "You exceeded your current quota, please check your plan and billing details.",
        "Credit balance is too low",
        "usage limit; try again later",
        "try again in 99999 days",
        "resets 25:99pm",
        "resets Feb 31 at 9am",
        "usage limit reached|9999999999",
        "resets 5",
        "resets 15pm",
        "connection reset by peer",
        "the limit may be reset by your admin",
        "resets at 2026-13-45T99:00:00Z",
    ],
)
def test_what_does_not_say(text: str) -> None:
    assert reset_time(text, NOW, BERLIN) is None


def test_december_speaks_of_january() -> None:
    now = datetime(2026, 12, 30, 12, 0, tzinfo=UTC)
    found = reset_time("usage limit, resets Jan 2 at 9am", now, UTC)
    assert found == datetime(2027, 1, 2, 9, tzinfo=UTC) + MARGIN


def test_it_is_never_past_nor_far() -> None:
    for text in ("resets 3:15pm", "retry in 0s", "usage limit reached|1772461200"):
        found = reset_time(text, NOW, BERLIN)
        assert found is None or NOW < found <= NOW + LONGEST + MARGIN


def test_a_time_without_a_zone_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 11, 30, 14, 17, tzinfo=UTC)  # 06:17 in Los Angeles
    text = "You've hit your usage limit. Try again at 11:30 PM."
    try:
        monkeypatch.setenv("TZ", "America/Los_Angeles")
        time.tzset()
        assert reset_time(text, now) == datetime(2026, 12, 1, 7, 30, tzinfo=UTC) + MARGIN
    finally:
        monkeypatch.undo()
        time.tzset()


def test_summer_time_ends_between_now_and_then() -> None:
    now = datetime(2026, 10, 24, 20, 0, tzinfo=BERLIN)
    found = reset_time("usage limit, resets Oct 25, 9am", now, BERLIN)
    assert found == datetime(2026, 10, 25, 8, 0, tzinfo=UTC) + MARGIN


@given(st.text(alphabet='resets at on in limit 0123456789:/apm()-TZ|"', max_size=60))
def test_no_text_raises(text: str) -> None:
    found = reset_time(f"limit resets {text}", NOW, BERLIN)
    assert found is None or NOW < found <= NOW + LONGEST + MARGIN
