"""When the token's renewal is asked for, and what its answers lead to."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from daemon.upkeep.renewal import AGAIN, INTERVAL, run_renewal
from tests.support.fake_server import client_of, make_config, open_fake_server
from tests.support.network import Fault, answer

pytestmark = pytest.mark.fast

RENEW = "POST /api/tokens/current/renew"


@pytest.mark.parametrize(
    ("fault", "interval"),
    [
        (None, INTERVAL),
        (answer(401, '{"error":"invalid token"}'), INTERVAL),
        (answer(404, "404 page not found"), AGAIN),
        (answer(503), AGAIN),
    ],
)
async def test_every_three_days_or_in_an_hour(
    autojump_clock: MockClock, tmp_path: Path, fault: Fault | None, interval: float
) -> None:
    async with open_fake_server() as server, client_of(server, make_config(tmp_path)) as client:
        server.fail_always(RENEW, fault)
        with trio.move_on_after(2.5 * interval):
            await run_renewal(client)
        times = server.times(RENEW)
        assert times[0] == 0
        assert [b - a for a, b in pairwise(times)] == [pytest.approx(interval, abs=0.1)] * 2
