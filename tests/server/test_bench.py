"""The bench runs the statements the server runs, with all their parameters."""

from __future__ import annotations

import re

import pytest

from bench.ceiling import claim_script

pytestmark = pytest.mark.fast


def test_the_claims_script_fills_every_parameter() -> None:
    assert not re.search(r"\$\d", claim_script(("r1", "r2"), "u"))
