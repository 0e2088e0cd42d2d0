"""How deep values may be nested, and what becomes of deeper ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared import codec
from shared.depth import CUT, DEEPEST, cut, is_deeper
from shared.wire.task import MessagesRequest

pytestmark = pytest.mark.fast


def nested(levels: int, *, lists: bool = False) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value] if lists else {"a": value}
    return value


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 99, 100, 101, 323, 900])
def test_the_bound(levels: int, lists: bool) -> None:
    value = nested(levels, lists=lists)
    assert is_deeper(value) == (levels > DEEPEST)
    assert not is_deeper(value, levels)
    assert is_deeper(value, levels - 1)
    kept = cut(value)
    assert (kept == value) == (levels <= DEEPEST)
    assert not is_deeper(kept)
    assert (CUT in json.dumps(kept)) == (levels > DEEPEST)


def test_what_is_no_container_has_no_depth() -> None:
    assert not is_deeper("x", 0)
    assert is_deeper([], 0)
    assert cut(None) is None


@pytest.mark.parametrize("levels", [101, 323, 400, 5000, 200_000])
def test_bodies_that_are_too_deep_are_refused_in_one_flat_error(levels: int) -> None:
    with pytest.raises(codec.DecodeError):
        codec.loads("[" * levels + "]" * levels)


@pytest.mark.parametrize("levels", [90, 323, 400, 900])
def test_a_transcript_is_cut_instead_and_can_be_written_again(levels: int) -> None:
    body = json.dumps({"messages": [{"seq": 1, "type": "tool_use", "input": nested(levels)}]})
    read = codec.decode(body, MessagesRequest, cut=True)
    assert (CUT.encode() in codec.encode(read)) == (levels > DEEPEST - 3)
