"""A real machine's directories: a project that names one does not open it, its owner does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.bullpen import Bullpen, start_up

pytestmark = pytest.mark.together


def _run(bullpen: Bullpen, project_id: str, *statuses: str) -> dict[str, object]:
    words = ("issue", "create", "--title", "Look", "--assignee", "demo", "--project", project_id)
    script = ("--description", "demo:sh touch was-here\n", "--allow-duplicate", "--output", "json")
    issue = json.loads(bullpen.cli(*words, *script).stdout)
    done: dict[str, object] = bullpen.wait_for_task(issue["id"], *statuses)
    return done


def test_a_project_does_not_open_a_directory_its_machines_owner_does(tmp_path: Path) -> None:
    place = tmp_path / "private"
    (place / "src").mkdir(parents=True)
    with start_up(tmp_path / "home") as bullpen:
        daemon_id = (bullpen.home / "daemon.id").read_text().strip()
        words = ("project", "create", "--title", "P", "--output", "json")
        project_id = json.loads(bullpen.cli(*words).stdout)["id"]
        ref = {"local_path": str(place / "src"), "daemon_id": daemon_id}
        body = {"resource_type": "local_directory", "resource_ref": ref}
        with bullpen.api() as api:  # as a page does, or a server that means ill
            api.post(f"/api/projects/{project_id}/resources", json=body).raise_for_status()
        refused = _run(bullpen, project_id, "failed")
        assert refused["failure_reason"] == "local_directory_error"
        assert "bullpen daemon allow-dir" in str(refused["error"])
        assert not (place / "src" / "was-here").exists()

        assert "No directory" in bullpen.cli("daemon", "allow-dir").stdout
        bullpen.cli("daemon", "allow-dir", str(place))
        assert bullpen.cli("daemon", "allow-dir").stdout.strip() == str(place)
        _run(bullpen, project_id, "completed")
        assert (place / "src" / "was-here").exists()

        bullpen.cli("daemon", "allow-dir", "--remove", str(place))
        assert _run(bullpen, project_id, "failed")["failure_reason"] == "local_directory_error"
        for wrong in (("/",), (str(tmp_path / "none"),), ("--remove", str(place)), ("--remove",)):
            done = bullpen.cli("daemon", "allow-dir", *wrong, check=False)
            assert done.returncode != 0
            assert done.stderr.count("\n") == 1
