"""Pages of other origins (spec 06 §1)."""

from __future__ import annotations

import pytest

from tests.support.api import open_api

pytestmark = pytest.mark.postgres

PAGES = "https://pages.example.org"
WANTED = {"access-control-request-method": "PUT", "access-control-request-headers": "x-csrf-token"}


@pytest.mark.spec("06 §1")
async def test_an_allowed_page_may_call_and_read() -> None:
    async with open_api(BULLPEN_ALLOWED_ORIGINS=PAGES) as api:
        asked = await api.owner.call("OPTIONS", "/api/issues", headers={"origin": PAGES} | WANTED)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == PAGES
        assert asked.headers["access-control-allow-credentials"] == "true"
        assert "PUT" in asked.headers["access-control-allow-methods"]
        assert "X-CSRF-Token" in asked.headers["access-control-allow-headers"]
        assert asked.headers["access-control-max-age"] == "300"
        for path, status in (("/api/issues", 200), ("/api/issues/x", 404)):
            answer = await api.owner.call("GET", path, headers={"origin": PAGES})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == PAGES
            assert answer.headers["vary"] == "Origin"
            assert "X-Total-Count" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    ("allowed", "origin"), [("", PAGES), (PAGES, "https://evil.example.org"), (PAGES, "null")]
)
async def test_other_pages_may_not(allowed: str, origin: str) -> None:
    async with open_api(BULLPEN_ALLOWED_ORIGINS=allowed) as api:
        for method in ("GET", "OPTIONS"):
            headers = {"origin": origin} | WANTED
            answer = await api.owner.call(method, "/api/issues", headers=headers)
            assert not [name for name in answer.headers if name.startswith("access-control-")]
