"""Ids as people see them: ids of the same minute must be told apart."""

from __future__ import annotations

import pytest

from shared.ids import new_id, short_id, short_ids

pytestmark = pytest.mark.fast

SAME_MINUTE = [
    "019ad5c1-7a10-7c3e-9b7d-2f7a61c0d9e1",
    "019ad5c1-7a10-7d55-8a11-90cc11aa22bb",
    "019ad5c1-8b00-7000-8000-000000000001",
]


def test_an_id_alone_shows_what_is_random_in_it() -> None:
    assert short_id(SAME_MINUTE[0]) == "61c0d9e1"
    assert len({short_id(one) for one in SAME_MINUTE}) == 3


def test_ids_in_a_table_are_as_long_as_it_takes() -> None:
    shown = short_ids(SAME_MINUTE)
    assert len(set(shown.values())) == 3
    assert all(full.startswith(short) for full, short in shown.items())
    assert shown[SAME_MINUTE[0]] == "019ad5c1-7a10-7c"
    ordinary = [new_id() for _ in range(3)]
    assert short_ids(ordinary) == {one: one[:8] for one in ordinary}
    assert short_ids([ordinary[0], ordinary[0]]) == {ordinary[0]: ordinary[0][:8]}
    assert short_ids([]) == {}
