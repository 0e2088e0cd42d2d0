"""A request that takes long is logged with where its time went."""

from __future__ import annotations

import pytest
import trio
from structlog.testing import capture_logs

from server import stages
from server.web import routes
from tests.support.api import open_api

pytestmark = pytest.mark.postgres


async def test_slow_requests_say_where_their_time_went(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_api() as api:
        with capture_logs() as quick:
            await api.owner.get("/api/issues")
        assert [entry for entry in quick if entry["event"] == "slow request"] == []
        monkeypatch.setattr(routes, "SLOW", 0.0)
        with capture_logs() as slow:
            await api.owner.get("/api/issues", status="todo")
        (entry,) = [entry for entry in slow if entry["event"] == "slow request"]
        assert (entry["method"], entry["path"], entry["status"]) == ("GET", "/api/issues", 200)
        assert set(entry["stages_ms"]) == {"crossing", "waiting for a connection", "statements"}
        assert entry["total_ms"] >= entry["stages_ms"]["crossing"] >= 0


async def test_requests_at_once_do_not_count_each_others_time() -> None:
    async with open_api() as api:
        seen: list[dict[str, float]] = []

        async def one(seconds: float) -> None:
            record = stages.begin()
            await api.run(lambda conn: conn.execute(f"select pg_sleep({seconds})"))
            seen.append(record)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 0.0)
            nursery.start_soon(one, 0.3)
        short, long = sorted(record["statements"] for record in seen)
        assert seen[0] is not seen[1]
        assert short < long
        assert long >= 0.3
