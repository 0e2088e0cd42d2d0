"""Bytes become text once, and everything behind can store and send it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import codec, text

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (rb'"half \ud83d end"', "half \ufffd end"),
        (rb'"\ud83d\ude00 whole"', "\U0001f600 whole"),
        (rb'"\ude00\ud83d turned round"', "\ufffd\ufffd turned round"),
        (rb'"\ud83d\ud83d\ude00"', "\ufffd\U0001f600"),
        (rb'"\\ud83d is text"', "\\ud83d is text"),
        (rb'"\\\uD83D"', "\\\ufffd"),
        (rb'{"\ud800": ["\udfff"]}', {"\ufffd": ["\ufffd"]}),
        (b'"caf\xe9"', "caf\ufffd"),
        (b'"\xed\xa0\xbd"', "\ufffd\ufffd\ufffd"),
    ],
)
def test_what_is_no_text_is_replaced(data: bytes, value: object) -> None:
    assert text.read_json(data) == value
    assert codec.loads(data) == value


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner, max_size=4)))
def test_what_is_text_stays_as_it_is(value: object) -> None:
    for ascii_only in (True, False):
        data = json.dumps(value, ensure_ascii=ascii_only).encode()
        assert text.read_json(data) == value


@given(st.lists(st.sampled_from(["\\ud83d", "\\uDE00", "\\\\", "\\n", "ud83d", "x", "é"])))
def test_whatever_is_read_can_be_written(parts: list[str]) -> None:
    found = text.read_json(f'"{"".join(parts)}"'.encode())
    assert found.encode().decode() == found


def test_text_from_elsewhere_is_cleaned_too() -> None:
    assert text.clean("a\udc80b") == "a\ufffdb"
    assert text.clean("plain é") == "plain é"
