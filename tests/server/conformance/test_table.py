"""docs/protocol.md says what the tests say."""

from __future__ import annotations

import re

import pytest

from tests.server.conformance import table

pytestmark = pytest.mark.fast


def test_the_page_is_the_one_that_would_be_made_now() -> None:
    assert table.PAGE.read_text() == table.page(), (
        "run `python -m tests.server.conformance.table` and commit docs/protocol.md"
    )


def test_every_mark_names_an_endpoint_there_is() -> None:
    known = {table.key(row.name) for row in table.catalogue()}
    known |= {table.key(name) for name in table.implemented()}
    unknown = [
        f"{mark.place}: {mark.endpoint}"
        for mark in table.marks()
        if re.match(r"[A-Z]+ /", mark.endpoint) and table.key(mark.endpoint) not in known
    ]
    assert unknown == []
