"""Rights reached by a detour: what a caller may not do to a thing, done to what carries it."""

from __future__ import annotations

import pytest

from server.store.queries import Connection
from tests.support.api import Api, open_api
from tests.support.rows import insert, make_issue

pytestmark = pytest.mark.postgres


async def file_of_the_owner(api: Api) -> tuple[str, str]:
    """An issue and a file in it that the workspace's owner uploaded."""

    async def unit(conn: Connection) -> tuple[str, str]:
        issue = await make_issue(conn, api.world)
        file = await insert(
            conn, "attachment", workspace_id=api.world.workspace_id, issue_id=issue.id,
            uploader_type="member", uploader_id=api.world.user_id, filename="a", url="",
            content_type="text/plain", size_bytes=1,
        )  # fmt: skip
        return issue.id, file

    return await api.run(unit)


async def test_a_file_of_anothers_survives_the_comment_that_carries_it() -> None:
    async with open_api() as api:
        issue, file = await file_of_the_owner(api)
        await api.member.refused(403, "DELETE", f"/api/attachments/{file}")
        path = f"/api/issues/{issue}/comments"
        root = await api.member.ok(201, "POST", path, {"content": "mine"})
        body = {"content": "look", "parent_id": root["id"], "attachment_ids": [file]}
        reply = await api.member.ok(201, "POST", path, body)
        assert [each["id"] for each in reply["attachments"]] == [file]
        await api.member.ok(204, "DELETE", f"/api/comments/{root['id']}")
        (kept,) = await api.owner.get(f"/api/issues/{issue}/attachments")
        assert (kept["id"], kept["issue_id"], kept["comment_id"]) == (file, issue, None)


async def test_ones_own_file_goes_with_ones_comment() -> None:
    async with open_api() as api:
        issue, file = await file_of_the_owner(api)
        body = {"content": "look", "attachment_ids": [file]}
        made = await api.owner.ok(201, "POST", f"/api/issues/{issue}/comments", body)
        await api.owner.ok(204, "DELETE", f"/api/comments/{made['id']}")
        assert await api.owner.get(f"/api/issues/{issue}/attachments") == []


async def test_names_and_titles_are_lines() -> None:
    """A list has a hundred titles in one answer; with megabytes in each a member stops the server."""
    async with open_api() as api:
        long = "x" * 1001
        issue = await api.member.ok(201, "POST", "/api/issues", {"title": long[1:]})
        path = f"/api/issues/{issue['id']}"
        for method, where in (("POST", "/api/issues"), ("PUT", path), ("POST", "/api/projects")):
            told = await api.member.refused(400, method, where, {"title": long})
            assert told == "title must be at most 1000 characters"
