"""What a request says is done or refused with a text, never dropped (spec 06, and later fields).

For each thing that people make or change: the fields a request may have, documented here or sent by
newer command lines. A field is found again in what is read afterwards, or the request is refused.
"""

from __future__ import annotations

from typing import Any, Final

import attrs
import pytest

from tests.support.api import Api, open_api
from tests.support.rows import make_task

pytestmark = pytest.mark.postgres

REFUSED: Final = object()
"""The request is answered with 400 and the field's name."""

WORKSPACE: Final = [{"target_type": "workspace"}]


@attrs.frozen(kw_only=True)
class Kind:
    """A thing: how it is made and changed, and the field values that are tried one by one."""

    path: str
    base: dict[str, Any]
    change: str
    values: dict[str, Any]
    """By name: the value that is sent and found again, or (sent, found), or (sent, REFUSED)."""
    within: str = ""
    """The member of the answer that holds the thing, when it is read."""


def kinds(api: Api) -> dict[str, Kind]:
    agent = api.world.agent_id
    lead = {"lead_type": "member", "lead_id": api.member.user_id}
    given = {"assignee_type": "agent", "assignee_id": agent}
    return {
        "agents": Kind(
            path="/api/agents",
            base={"name": "Ada", "runtime_id": api.world.runtime_id},
            change="PUT",
            values={
                "name": "Bea",
                "description": "d",
                "instructions": "i",
                "avatar_url": "https://a.invalid/x.png",
                "runtime_config": {"k": 1},
                "custom_args": ["--x"],
                "mcp_config": {"mcpServers": {}},
                "model": "m",
                "thinking_level": "high",
                "visibility": "workspace",
                "max_concurrent_tasks": 3,
                "permission_mode": ("private", "private"),
                "permission_mode+invocation_targets": (["public_to", WORKSPACE], None),
                "invocation_targets": ([{"target_type": "member", "target_id": agent}], REFUSED),
                "service_tier": ("fast", REFUSED),
                "execution_mode": ("cloud", REFUSED),
            },
        ),
        "projects": Kind(
            path="/api/projects",
            base={"title": "P"},
            change="PUT",
            values={
                "title": "Q",
                "description": "d",
                "icon": "x",
                "status": "paused",
                "priority": "high",
                "lead_type+lead_id": (list(lead.values()), None),
                "start_date": "2026-01-02",
                "due_date": "2026-02-03",
            },
        ),
        "issues": Kind(
            path="/api/issues",
            base={"title": "I"},
            change="PUT",
            values={
                "title": "J",
                "description": "d",
                "status": "blocked",
                "priority": "low",
                "assignee_type+assignee_id": (list(given.values()), None),
                "stage": 2,
                "start_date": "2026-01-02",
                "due_date": "2026-02-03",
            },
        ),
        "autopilots": Kind(
            path="/api/autopilots",
            base={"title": "A", "assignee_id": agent, "execution_mode": "run_only"},
            change="PATCH",
            within="autopilot",
            values={
                "title": "B",
                "description": "d",
                "execution_mode": "create_issue",
                "issue_title_template": "T {{date}}",
            },
        ),
        "labels": Kind(
            path="/api/labels",
            base={"name": "l", "color": "#112233"},
            change="PUT",
            values={"name": "m", "color": "#445566"},
        ),
        "skills": Kind(
            path="/api/skills",
            base={"name": "s", "content": "c"},
            change="PUT",
            values={"name": "t", "description": "d", "content": "e", "config": {"k": 1}},
        ),
        "squads": Kind(
            path="/api/squads",
            base={"name": "s", "leader_id": agent},
            change="PUT",
            values={
                "name": "t",
                "description": "d",
                "instructions": "i",
                "avatar_url": "https://a.invalid/x.png",
            },
        ),
    }


NAMES: Final = ("agents", "projects", "issues", "autopilots", "labels", "skills", "squads")


@pytest.mark.parametrize("name", NAMES)
async def test_what_is_said_when_making_and_changing_is_kept(name: str) -> None:
    async with open_api() as api:
        kind = kinds(api)[name]
        made = await api.owner.ok(201, "POST", kind.path, kind.base)
        for number, (fields, value) in enumerate(kind.values.items()):
            sent, found = value if isinstance(value, tuple) else (value, value)
            names = fields.split("+")
            body = dict(zip(names, sent if len(names) > 1 else [sent], strict=True))
            wanted = body if found is None else {names[0]: found}
            again = {key: f"{text}{number}" for key, text in kind.base.items() if key in _UNIQUE}
            whole = kind.base | again | body
            if found is REFUSED:
                for status, method, path, all_of_it in (
                    (400, "POST", kind.path, whole),
                    (400, kind.change, f"{kind.path}/{made['id']}", body),
                ):
                    text = await api.owner.refused(status, method, path, all_of_it)
                    assert names[0] in text, text
                continue
            another = await api.owner.ok(201, "POST", kind.path, whole)
            if set(names) & _UNIQUE:
                body = {key: f"{text} changed" for key, text in body.items()}
            await api.owner.ok(200, kind.change, f"{kind.path}/{made['id']}", body)
            for thing, expected in (
                (another, wanted),
                (made, wanted if found is not None else body),
            ):
                shown = await api.owner.get(f"{kind.path}/{thing['id']}")
                shown = shown[kind.within] if kind.within else shown
                for key, this in expected.items():
                    if thing is made and key in _UNIQUE:
                        this = body[key]  # noqa: PLW2901
                    assert shown[key] == this, (key, "made" if thing is another else "changed")


_UNIQUE: Final = {"name", "title"}


async def test_permission_modes_and_visibility_are_the_same() -> None:
    async with open_api() as api:
        base = {"runtime_id": api.world.runtime_id}
        for number, (said, visibility) in enumerate(
            (
                ({}, "private"),
                ({"permission_mode": "private", "invocation_targets": []}, "private"),
                ({"permission_mode": "public_to", "invocation_targets": WORKSPACE}, "workspace"),
                ({"visibility": "workspace", "invocation_targets": WORKSPACE}, "workspace"),
            )
        ):
            body = base | {"name": f"a{number}"} | said
            made = await api.owner.ok(201, "POST", "/api/agents", body)
            assert made["visibility"] == visibility
            public = visibility == "workspace"
            assert made["permission_mode"] == ("public_to" if public else "private")
            assert made["invocation_targets"] == (WORKSPACE if public else [])
        for said in (
            {"permission_mode": "public_to"},
            {"permission_mode": "friends"},
            {"permission_mode": "private", "invocation_targets": WORKSPACE},
            {"permission_mode": "private", "visibility": "workspace"},
            {"invocation_targets": WORKSPACE},
            {"invocation_targets": "all"},
        ):
            await api.owner.refused(400, "POST", "/api/agents", base | {"name": "x"} | said)


async def test_a_file_for_a_task_belongs_to_what_the_task_is_about() -> None:
    async with open_api() as api:
        issue = await api.owner.ok(201, "POST", "/api/issues", {"title": "I"})
        task_id = await api.run(lambda conn: make_task(conn, api.world, issue_id=issue["id"]))
        bare = await api.run(lambda conn: make_task(conn, api.world))

        async def send(**place: str) -> Any:
            return await api.owner.client.post(
                "/api/upload-file", files={"file": ("x.txt", b"x")}, data=place
            )

        answer = await send(task_id=task_id)
        assert (answer.status_code, answer.json()["issue_id"]) == (200, issue["id"])
        assert (await send(task_id=bare)).status_code == 400
        assert (await send(task_id="00000000-0000-4000-8000-000000000000")).status_code == 403
