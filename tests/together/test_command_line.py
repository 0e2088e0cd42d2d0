"""The command line arranges a team on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bullpen import Bullpen, start_up

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def bullpen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bullpen]:
    with start_up(tmp_path_factory.mktemp("team") / "home") as started:
        yield started


def said(bullpen: Bullpen, *words: str) -> Any:
    return json.loads(bullpen.cli(*words, "--output", "json").stdout)


def test_labels(bullpen: Bullpen) -> None:
    made = said(bullpen, "label", "create", "--name", "Bug", "--color", "EF4444")
    assert made["color"] == "#ef4444"
    assert "Bug" in bullpen.cli("label", "list").stdout
    assert said(bullpen, "label", "update", "bug", "--color", "000000")["color"] == "#000000"
    assert said(bullpen, "label", "delete", "Bug") == {"id": made["id"], "deleted": True}
    missing = bullpen.cli("label", "get", "Bug", check=False)
    assert missing.returncode != 0
    assert "no label is called" in missing.stderr


def test_skills(bullpen: Bullpen, tmp_path: Path) -> None:
    text = tmp_path / "SKILL.md"
    text.write_text("Deploy\nwith care.")
    made = said(bullpen, "skill", "create", "--name", "deploy", "--content-file", str(text))
    assert made["content"] == "Deploy\nwith care."
    said(bullpen, "skill", "files", "upsert", "deploy", "--path", "a.md", "--content", "x")
    assert "a.md" in bullpen.cli("skill", "files", "list", "deploy").stdout
    changed = said(bullpen, "skill", "update", "deploy", "--description", "Careful")
    assert changed["description"] == "Careful"
    assert "deploy" in bullpen.cli("skill", "list").stdout
    given = said(bullpen, "agent", "skills", "set", "demo", "--skill-ids", "deploy")
    assert [skill["name"] for skill in given] == ["deploy"]
    assert "deploy" in bullpen.cli("agent", "skills", "list", "demo").stdout
    assert said(bullpen, "agent", "skills", "set", "demo", "--skill-ids", "") == []
    assert len(said(bullpen, "agent", "skills", "add", "demo", "--skill-ids", made["id"])) == 1
    assert said(bullpen, "skill", "delete", "deploy")["deleted"] is True


def test_projects(bullpen: Bullpen, tmp_path: Path) -> None:
    url = "https://example.test/web.git"
    made = said(bullpen, "project", "create", "--title", "Web", "--repo", url)
    assert made["resources"][0]["resource_ref"] == {"url": url}
    here = ("--local-path", str(tmp_path), "--label", "mine")
    added = said(bullpen, "project", "resource", "add", "Web", *here)
    assert str(tmp_path) in bullpen.cli("project", "resource", "list", "web").stdout
    bullpen.cli("project", "resource", "remove", "web", added["id"])
    assert said(bullpen, "project", "status", "web", "paused")["status"] == "paused"
    assert said(bullpen, "project", "update", "web", "--title", "Site")["title"] == "Site"
    assert "Site" in bullpen.cli("project", "list").stdout


def test_squads(bullpen: Bullpen) -> None:
    made = said(bullpen, "squad", "create", "--name", "Crew", "--leader", "demo")
    assert made["member_count"] == 1
    rows = said(bullpen, "squad", "member", "list", "crew")
    assert [row["role"] for row in rows] == ["leader"]
    me = said(bullpen, "user", "profile", "get")["id"]
    person = ("--member-id", me, "--role", "reviewer")
    said(bullpen, "squad", "member", "add", "crew", *person, "--type", "member")
    bullpen.cli("squad", "member", "remove", "crew", "--member-id", me, "--type", "member")
    said(bullpen, "squad", "update", "crew", "--instructions", "Be kind.")
    assert said(bullpen, "squad", "get", "crew")["instructions"] == "Be kind."
    assert said(bullpen, "squad", "delete", "crew")["deleted"] is True
