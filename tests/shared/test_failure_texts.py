"""What real agent programs say when they fail, and the reason each text stands for (02 §7.2).

The texts were recorded from claude, codex, gemini, opencode and qwen against a fake provider.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from shared import failure
from shared.quota import reset_time

pytestmark = pytest.mark.fast

KEYS = "You can find your API key at https://platform.openai.com/account/api-keys."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Invalid API key · Fix external API key", failure.AUTH),
        (f"[API Error: 401 Incorrect API key provided: sk-fake***. {KEYS}]", failure.AUTH),
        (f"Incorrect API key provided: sk-fake***. {KEYS}", failure.AUTH),
        (f"Internal error: Incorrect API key provided: sk-fake***. {KEYS}", failure.AUTH),
        (
            (
                "API Error: Request rejected (429) · This request would exceed your account's rate "
                "limit. Please try again later."
            ),
            failure.CAPACITY,
        ),
        ("exceeded retry limit, last status: 429 Too Many Requests", failure.CAPACITY),
        (
            (
                "API Error: 529 Overloaded. This is a server-side issue, usually temporary — try again "
                "in a moment. If it persists, check your inference gateway (127.0.0.1:42419)."
            ),
            failure.CAPACITY,
        ),
        (
            (
                "429 Rate limit reached for fake-model in organization org-fake on requests per min "
                "(RPM): Limit 3, Used 3, Requested 1. Please try again in 1s."
            ),
            failure.CAPACITY,
        ),
        ("API call failed after 3 retries: HTTP 429: Rate limit reached", failure.CAPACITY),
        (
            (
                "Failed to get response from the AI model; retried 5 times (total retry wait time: "
                "11.09 seconds) Last error: 429 Rate limit reached for fake-model on requests per "
                "min (RPM): Limit 3, Used 3, Requested 1. Please try again in 1s."
            ),
            failure.CAPACITY,
        ),
        ("Rate limit reached. Please try again in 1s.; Retry-After: 1 seconds", failure.CAPACITY),
        ("got status: RESOURCE_EXHAUSTED", failure.CAPACITY),
        (
            "Sorry, you have been rate-limited. Please wait 2 hours 5 minutes before trying again.",
            failure.QUOTA,
        ),
        ("Rate limit reached, try again in 20 min", failure.QUOTA),
        ("You've hit your session limit · resets 11:10pm (Europe/Madrid)", failure.QUOTA),
        ("API error 429: You've hit your Opus limit · resets 3pm", failure.QUOTA),
        ("5-hour limit reached ∙ resets 6pm", failure.QUOTA),
        ("You've hit your monthly spend limit.", failure.QUOTA),
        ("You've reached your Fable limit", failure.QUOTA),
        ("You're out of extra usage · resets 9pm (America/Toronto)", failure.QUOTA),
        ("You have exceeded your rate limit", failure.CAPACITY),
        ("reached the iteration limit", failure.UNKNOWN),
        ("memory limit; read: connection reset by peer", failure.NETWORK),
        ("Credit balance is too low", failure.QUOTA),
        ("Quota exceeded. Check your plan and billing details.", failure.QUOTA),
        (
            (
                "You exceeded your current quota, please check your plan and billing details.\n"
                "Suggested retry after 1s.."
            ),
            failure.QUOTA,
        ),
        ("stream disconnected before completion: fake in-stream failure", failure.NETWORK),
        (
            (
                "stream disconnected before completion: Transport error: network error: error decoding "
                "response body"
            ),
            failure.NETWORK,
        ),
        ("[API Error: terminated (cause: other side closed)]", failure.NETWORK),
        ("[API Error: terminated]", failure.NETWORK),
        ("Model stream ended without a finish reason.", failure.EMPTY_OUTPUT),
        ("Internal error", failure.SERVER_ERROR),
        ("API Error: 400 fake: invalid request", failure.UNKNOWN),
    ],
)
def test_what_programs_say(text: str, reason: str) -> None:
    assert failure.classify(text) == reason


def test_none_of_them_but_one_says_when_to_come_back() -> None:
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    for text in ("Credit balance is too low", "Quota exceeded. Check your plan."):
        assert reset_time(text, now) is None
    assert reset_time("Suggested retry after 1s..", now) is not None


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        ("timeout", "whatever", "timeout"),
        ("agent_error.of_tomorrow", "whatever", "agent_error.of_tomorrow"),
        ("surrogates not allowed", "connection refused", failure.NETWORK),
        ("", "connection refused", failure.NETWORK),
        (failure.UNKNOWN, "You've hit your weekly limit", failure.QUOTA),
        (failure.CAPACITY, "API Error: 429 session limit, resets 6pm", failure.QUOTA),
        (failure.AUTH, "401; you've hit your weekly limit", failure.AUTH),
    ],
)
def test_a_reported_reason_is_a_name_or_none(given: str, error: str, reason: str) -> None:
    assert failure.reason_of(given, error) == reason


def test_all_reasons_have_the_form_of_one() -> None:
    constants = {
        value
        for name, value in vars(failure).items()
        if name.isupper() and isinstance(value, str) and not name.startswith("_")
    }
    assert constants == failure.REASONS
    assert all(failure.reason_of(name, "x") == name for name in failure.REASONS)
    assert failure.CONTEXT_OVERFLOW in failure.RESUME_UNSAFE
