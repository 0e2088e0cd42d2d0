"""A repository that asks for a password, on a real server: the agent works in it, nobody reads it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.bullpen import start_up, wait_for
from tests.support.git_repos import git, make_remote
from tests.support.git_server import open_git_server

pytestmark = pytest.mark.together

PASSWORD = "pa55-of-bob"
COMMIT = "git -c user.name=A -c user.email=a@example.test commit -q -m"


def _files_with(folder: Path, text: bytes) -> list[str]:
    found = []
    for place, names, files in os.walk(folder):
        names[:] = [name for name in names if name != "postgres"]
        for name in files:
            path = Path(place) / name
            if path.is_file() and not path.is_symlink() and text in path.read_bytes():
                found.append(str(path))
    return found


def test_an_agent_fetches_and_pushes_and_the_password_is_nowhere(tmp_path: Path) -> None:
    remote = make_remote(tmp_path / "server")
    git(remote.path, "branch", "release")
    other = make_remote(tmp_path / "elsewhere", "other")
    log = tmp_path / "commands"
    real = shutil.which("git")
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "git"
    wrapper.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {log}\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    with (
        open_git_server(remote.path.parent, "bob", PASSWORD) as server,
        open_git_server(other.path.parent, "bob", PASSWORD) as elsewhere,
        start_up(tmp_path / "home", env=env) as bullpen,
    ):
        url = f"{server.url}/app.git"
        with bullpen.api() as api:
            path = f"/api/workspaces/{bullpen.told['workspace_id']}"
            given = url.replace("://", f"://bob:{PASSWORD}@")
            told = api.patch(path, json={"repos": [{"url": given, "ref": "release"}]})
            told.raise_for_status()
            assert told.json()["repos"] == [{"url": url, "ref": "release"}]
            assert PASSWORD not in api.get(path).text
        ask = f"{{ echo protocol=http; echo host={elsewhere.url[7:]}; echo path=other.git; }}"
        script = (
            f'demo: sh cd "$(bullpen repo checkout {url})" && echo mine > w && git add -A '
            f"&& {COMMIT} Work && git fetch 2>&1 && git push 2>&1 && cat .git/config\n"
            f"demo: sh {ask} | bullpen repo credential get 2>&1; echo end\n"
        )
        issue = bullpen.create_issue("Change the code", script)

        def ended() -> Any:
            rows = bullpen.tasks(issue["id"])
            return rows if rows and rows[0]["status"] in {"completed", "failed"} else None

        [run] = wait_for("the run", ended)
        rows = bullpen.messages(run["id"])
        said = "\n".join(str(row.get("output") or "") for row in rows)
        assert any(name.startswith("agent/demo/") for name in remote.branches()), said
        assert server.users
        assert elsewhere.users == []
        assert "repo is not configured for this workspace" in said
        assert "helper = !bullpen repo credential" in said
        assert PASSWORD not in str(rows)
        assert PASSWORD not in log.read_text()
        assert PASSWORD not in bullpen.logs()
        assert _files_with(bullpen.home, PASSWORD.encode()) == []
        tree = Path(run["work_dir"]) / "app"
        assert git(tree, "merge-base", "HEAD", "origin/release")
        # once the task has ended nobody is told anything
        assert git(tree, "fetch", check=False) == ""
