"""Attached files (spec 06 §9)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Caller, open_api
from tests.support.rows import insert, make_issue

pytestmark = pytest.mark.postgres

NOBODY = "00000000-0000-4000-8000-000000000000"


async def send(
    caller: Caller, name: str = "notes.txt", data: bytes = b"hello", status: int = 200, **place: str
) -> Any:
    answer = await caller.client.post(
        "/api/upload-file", files={"file": (name, data)}, data=dict(place)
    )
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.spec("06 §9", "POST /api/upload-file")
@pytest.mark.spec("06 §9", "GET /api/attachments/{id}")
@pytest.mark.spec("06 §9", "GET /api/attachments/{id}/download")
@pytest.mark.spec("06 §6.1", "GET /api/issues/{id}/attachments")
async def test_a_file_goes_up_and_comes_down() -> None:
    async with open_api() as api:
        issue = await api.run(lambda conn: make_issue(conn, api.world))
        made = await send(api.member, "../dir/Bild ü.png", b"\x89PNG", issue_id=issue.id)
        path = f"/api/attachments/{made['id']}"
        assert made == {
            "id": made["id"],
            "workspace_id": api.world.workspace_id,
            "issue_id": issue.id,
            "comment_id": None,
            "chat_session_id": None,
            "chat_message_id": None,
            "uploader_type": "member",
            "uploader_id": api.member.user_id,
            "filename": "Bild ü.png",
            "url": f"{path}/download",
            "download_url": f"{path}/download",
            "markdown_url": f"{path}/download",
            "content_type": "image/png",
            "size_bytes": 4,
            "created_at": made["created_at"],
        }
        assert await api.owner.get(path) == made
        assert await api.owner.get(f"/api/issues/{issue.id}/attachments") == [made]
        del api.owner.client.headers["x-workspace-id"]  # the row says whose it is
        answer = await api.owner.call("GET", f"{path}/download")
        assert (answer.status_code, answer.content) == (200, b"\x89PNG")
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-disposition"] == "inline; filename*=UTF-8''Bild%20%C3%BC.png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert await api.stranger.refused(404, "GET", f"{path}/download")


async def test_what_could_run_in_a_page_is_only_downloaded() -> None:
    async with open_api() as api:
        for name in ("x.html", "x.svg", "x.unknown"):
            made = await send(api.member, name, b"<script>")
            answer = await api.member.call("GET", made["download_url"])
            assert answer.headers["content-disposition"].startswith("attachment"), name
            assert "sandbox" in answer.headers["content-security-policy"]


@pytest.mark.spec("06 §9", "GET /api/attachments/{id}/content")
@pytest.mark.spec("06 §9", "DELETE /api/attachments/{id}")
async def test_previews_and_deleting() -> None:
    async with open_api() as api:
        made = await send(api.member, "a.json", b'{"a": 1}')
        path = f"/api/attachments/{made['id']}"
        answer = await api.owner.call("GET", f"{path}/content")
        assert (answer.text, answer.headers["x-original-content-type"]) == (
            '{"a": 1}',
            "application/json",
        )
        image = await send(api.owner, "a.png", b"x")
        assert await api.owner.refused(415, "GET", f"/api/attachments/{image['id']}/content")
        assert await api.member.refused(403, "DELETE", f"/api/attachments/{image['id']}")
        await api.owner.ok(204, "DELETE", path)
        assert await api.owner.refused(404, "GET", path)
        assert len(await api.fetch("select from attachment_content")) == 1


async def test_files_find_their_issue_and_comment() -> None:
    async with open_api() as api:
        loose = [await send(api.member, f"{n}.txt") for n in range(2)]
        body = {"title": "x", "attachment_ids": [loose[0]["id"], NOBODY]}
        issue = await api.member.ok(201, "POST", "/api/issues", body)
        path = f"/api/issues/{issue['id']}"
        said = await api.member.ok(
            201, "POST", f"{path}/comments", {"content": "see", "attachment_ids": [loose[1]["id"]]}
        )
        listed = await api.member.get(f"{path}/attachments")
        assert [(one["issue_id"], one["comment_id"]) for one in listed] == [
            (issue["id"], None),
            (None, said["id"]),
        ]
        third = await send(api.member, "3.txt")
        await api.member.ok(200, "PUT", path, {"attachment_ids": [third["id"]]})
        assert len(await api.member.get(f"{path}/attachments")) == 3


async def test_uploads_that_are_refused() -> None:
    async with open_api() as api:
        await send(api.member, data=b"x" * (25 * 1024 * 1024 + 1), status=400)
        await send(api.member, status=403, issue_id=NOBODY)
        await send(api.member, status=403, comment_id=NOBODY)
        await send(api.member, status=400, issue_id="x")
        assert await api.member.refused(400, "POST", "/api/upload-file", {"file": "x"})
        world = api.world
        chat = await api.run(
            lambda conn: insert(
                conn,
                "chat_session",
                workspace_id=world.workspace_id,
                agent_id=world.agent_id,
                creator_id=api.member.user_id,
            )
        )
        made = await send(api.member, chat_session_id=chat)
        await send(api.owner, status=403, chat_session_id=chat)
        path = f"/api/attachments/{made['id']}"
        assert (await api.member.get(path))["chat_session_id"] == chat
        assert await api.owner.refused(404, "GET", path)


@pytest.mark.spec("06 §5", "GET /api/issues/{id}")
@pytest.mark.spec("06 §7.1", "GET /api/issues/{id}/comments")
@pytest.mark.spec("06 §7.6", "GET /api/issues/{id}/timeline")
async def test_issues_and_comments_show_what_hangs_on_them() -> None:
    async with open_api(BULLPEN_PUBLIC_URL="https://pen.example.org") as api:
        file = await send(api.member)
        issue = await api.member.ok(
            201, "POST", "/api/issues", {"title": "x", "attachment_ids": [file["id"]]}
        )
        path = f"/api/issues/{issue['id']}"
        assert [one["id"] for one in issue["attachments"]] == [file["id"]]
        assert issue["attachments"][0]["markdown_url"] == (
            f"https://pen.example.org/api/attachments/{file['id']}/download"
        )
        bare = await api.member.ok(201, "POST", "/api/issues", {"title": "y"})
        assert not {"attachments", "reactions"} & set(bare)
        later = [await send(api.member, f"{n}.txt") for n in range(2)]
        ids = [one["id"] for one in later]
        said = await api.member.ok(
            201, "POST", f"{path}/comments", {"content": "see", "attachment_ids": ids}
        )
        assert [one["id"] for one in said["attachments"]] == ids
        assert api.events("comment:created")[-1].payload["comment"] == said
        plain = await api.owner.ok(201, "POST", f"{path}/comments", {"content": "ok"})
        assert (plain["attachments"], plain["reactions"]) == ([], [])
        comment = f"/api/comments/{said['id']}"
        liked = await api.owner.ok(201, "POST", f"{comment}/reactions", {"emoji": "+"})
        loved = await api.owner.ok(201, "POST", f"{path}/reactions", {"emoji": "*"})
        shown = await api.member.get(path)
        assert shown["reactions"] == [loved]
        assert [one["id"] for one in shown["attachments"]] == [file["id"], *ids]
        first, second = await api.member.get(f"{path}/comments")
        assert first["reactions"] == [liked]
        assert first["attachments"] == said["attachments"]
        assert (second["reactions"], second["attachments"]) == ([], [])
        entries = {one["id"]: one for one in await api.member.get(f"{path}/timeline")}
        assert entries[said["id"]]["reactions"] == [liked]
        assert entries[said["id"]]["attachments"] == said["attachments"]
        assert not {"attachments", "reactions"} & set(entries[plain["id"]])
        for method in ("POST", "DELETE"):
            answer = await api.member.ok(200, method, f"{comment}/resolve")
            assert answer["reactions"] == [liked]


@pytest.mark.spec("06 §7.3", "PUT /api/comments/{id}")
async def test_editing_a_comment_replaces_its_files() -> None:
    async with open_api() as api:
        issue = await api.member.ok(201, "POST", "/api/issues", {"title": "x"})
        path = f"/api/issues/{issue['id']}"
        files = [(await send(api.member, f"{n}.txt"))["id"] for n in range(3)]
        body = {"content": "see", "attachment_ids": files[:2]}
        said = await api.member.ok(201, "POST", f"{path}/comments", body)
        comment = f"/api/comments/{said['id']}"
        same = await api.member.ok(200, "PUT", comment, {"content": "see"})
        assert [one["id"] for one in same["attachments"]] == files[:2]
        assert api.events("comment:updated") == []
        body = {"content": "see", "attachment_ids": files[1:]}
        changed = await api.member.ok(200, "PUT", comment, body)
        assert [one["id"] for one in changed["attachments"]] == files[1:]
        assert api.events("comment:updated")[0].payload == {"comment": changed}
        loose = await api.member.get(f"/api/attachments/{files[0]}")
        assert (loose["issue_id"], loose["comment_id"]) == (issue["id"], None)
