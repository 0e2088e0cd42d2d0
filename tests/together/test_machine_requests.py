"""What people ask of a machine, and a runtime profile of their own: server, daemon and programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.agents import demo
from tests.support.bullpen import Bullpen, start_up, wait_for

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def bullpen(place: Path) -> Iterator[Bullpen]:
    """A machine with two of its own programs in its PATH, one of which speaks claude's protocol."""
    programs, heard = place / "bin", place / "heard"
    programs.mkdir()
    heard.mkdir()
    (programs / "acme-claude").write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "acme 7.8.9"; exit; fi\n'
        f'echo "$@" >> {heard}/words\n'
        f'exec "{sys.executable}" -I "{demo.__file__}"\n'
    )
    (programs / "acme-claude").chmod(0o755)
    skill = place / "home" / ".agents/skills/release/notes"
    skill.mkdir(parents=True)
    (skill / "SKILL.md").write_text(
        "---\nname: Notes\ndescription: >-\n  Release\n  notes\n---\nx\n"
    )
    (skill / "style.md").write_text("short")
    env = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(place / "home"),
        "BULLPEN_DAEMON_HEARTBEAT_INTERVAL": "500ms",
        "MULTICA_DEMO_PACE": "0",
        "BULLPEN_AGENT_PATHS": str(heard),
    }
    with start_up(place / "bullpen", env=env) as running:
        yield running


def _ask(bullpen: Bullpen, runtime_id: str, path: str, **body: Any) -> Any:
    """Ask a machine for something; returns the request once it has ended."""
    with bullpen.api() as api:
        url = f"/api/runtimes/{runtime_id}/{path}"
        asked = api.post(url, json=body).raise_for_status().json()

        def ended() -> Any:
            told = api.get(f"{url}/{asked['id']}").raise_for_status().json()
            return told if told["status"] not in {"pending", "running"} else None

        return wait_for(f"the answer to {path}", ended, seconds=60)


def _runtimes(bullpen: Bullpen) -> dict[str, Any]:
    with bullpen.api() as api:
        rows = api.get("/api/runtimes").raise_for_status().json()
    return {row["provider"] if not row["profile_id"] else row["profile_id"]: row for row in rows}


def test_a_machine_answers_what_it_is_asked(bullpen: Bullpen) -> None:
    runtime_id = _runtimes(bullpen)["demo"]["id"]
    ping = _ask(bullpen, runtime_id, "ping")
    assert ping["status"] == "completed", ping
    assert "demo agent" in ping["output"]
    assert 0 < ping["duration_ms"] < 60_000
    models = _ask(bullpen, runtime_id, "models")
    assert (models["status"], models["supported"]) == ("completed", False), models
    update = _ask(bullpen, runtime_id, "update", target_version="v9.9.9")
    assert update["status"] == "failed", update


def test_a_runtime_profile_of_ones_own_runs_tasks_by_its_command(
    bullpen: Bullpen, place: Path
) -> None:
    told = bullpen.told
    with bullpen.api() as api:
        profile = api.post(
            f"/api/workspaces/{told['workspace_id']}/runtime-profiles",
            json={
                "display_name": "Acme",
                "protocol_family": "claude",
                "command_name": "acme-claude",
                "fixed_args": ["--team", "blue"],
            },
        )
        profile.raise_for_status()
        profile_id = profile.json()["id"]
        runtime = wait_for(
            "the profile's runtime", lambda: _runtimes(bullpen).get(profile_id), seconds=10
        )
        assert runtime["metadata"]["version"] == "acme 7.8.9"
        agent = {"name": "acme", "runtime_id": runtime["id"]}
        api.post("/api/agents", json=agent).raise_for_status()
    issue = bullpen.create_issue("Try the profile", assignee="acme")
    bullpen.wait_for_task(issue["id"], "completed")
    [words] = (place / "heard" / "words").read_text().splitlines()
    assert words.startswith("--team blue -p --output-format stream-json")

    models = _ask(bullpen, runtime["id"], "models")
    assert models["status"] == "completed", models
    assert [model["id"] for model in models["models"] if model.get("default")] == [
        "claude-sonnet-4-6"
    ]
    skills = _ask(bullpen, runtime["id"], "local-skills")
    assert skills["skills"] == [
        {
            "key": "release/notes",
            "name": "Notes",
            "description": "Release notes",
            "source_path": "~/.agents/skills/release/notes",
            "provider": "claude",
            "root": "universal",
            "file_count": 2,
        }
    ], skills
    imported = _ask(bullpen, runtime["id"], "local-skills/import", skill_key="release/notes")
    assert imported["status"] == "completed", imported
    with bullpen.api() as api:
        made = api.get(f"/api/skills/{imported['skill']['id']}").raise_for_status().json()
    assert made["name"] == "Notes"
    assert [(file["path"], file["content"]) for file in made["files"]] == [("style.md", "short")]

    with bullpen.api() as api:  # drift: other arguments, noticed at once
        url = f"/api/workspaces/{told['workspace_id']}/runtime-profiles/{profile_id}"
        api.patch(url, json={"fixed_args": ["--team", "red"]}).raise_for_status()
    issue = bullpen.create_issue("Try it again", assignee="acme")
    bullpen.wait_for_task(issue["id"], "completed")
    assert (place / "heard" / "words").read_text().splitlines()[-1].startswith("--team red -p ")
