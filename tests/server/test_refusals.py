"""Refusals and faults: pages for people, the API's answers for programs."""

from __future__ import annotations

import pytest

from tests.support.api import open_api

pytestmark = pytest.mark.postgres

PERSON = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_people_get_pages_and_programs_what_they_always_got() -> None:
    async with open_api() as api:
        client = api.owner.client
        for path, status, words in (
            ("/nowhere/at/all", 404, "There is no such page."),
            ("/invite/nonsense", 400, "nvitation id"),
            ("/login/code", 405, "There is no such page."),
        ):
            page = await client.get(path, headers=PERSON)
            assert page.status_code == status, path
            assert page.headers["content-type"].startswith("text/html"), path
            assert "default-src" in page.headers["content-security-policy"]
            assert words in page.text
            plain = await client.get(path)
            assert plain.status_code == status, path
            assert "html" not in plain.headers.get("content-type", ""), path
        api_error = await client.get("/api/issues/nowhere", headers=PERSON)
        assert api_error.headers["content-type"] == "application/json"
