"""Agents and repositories on a real server: checked out, worked on, found again, never lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.repos.hooks import CO_AUTHOR
from shared.ids import short_id
from tests.support.bullpen import Bullpen, start_up, wait_for
from tests.support.git_repos import Remote, git, make_remote

pytestmark = pytest.mark.together

URL = "https://git.example.test/org/app.git"
"""What the workspace calls the remote; git is told where it really is."""

COMMIT = "git -c user.name=A -c user.email=a@example.test commit -q -m"


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Remote:
    return make_remote(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def bullpen(tmp_path_factory: pytest.TempPathFactory, remote: Remote) -> Iterator[Bullpen]:
    folder = tmp_path_factory.mktemp("repos")
    config = folder / "gitconfig"
    config.write_text(
        f'[url "file://{remote.path.parent}/"]\n\tinsteadOf = {URL.rpartition("/")[0]}/\n'
    )
    env = {
        "GIT_CONFIG_GLOBAL": str(config),
        # Below /tmp, of which agents have their own.
        "BULLPEN_AGENT_PATHS": f"{config}:{remote.path.parent}",
    }
    with start_up(folder / "home", env=env) as started:
        with started.api() as api:
            told = {"repos": [{"url": URL}]}
            path = f"/api/workspaces/{started.told['workspace_id']}"
            api.patch(path, json=told).raise_for_status()
        yield started


def tool_output(bullpen: Bullpen, task: Any) -> str:
    rows = bullpen.messages(task["id"])
    return "\n".join(row.get("output") or "" for row in rows if row["type"] == "tool_result")


def runs_done(bullpen: Bullpen, issue: Any, count: int) -> list[Any]:
    def probe() -> list[Any] | None:
        rows = bullpen.tasks(issue["id"])
        done = len(rows) == count and rows[0]["status"] in {"completed", "failed"}
        return rows if done else None

    return wait_for(f"{count} runs", probe)


def test_an_agents_work_is_found_by_the_next_task_and_never_lost(
    bullpen: Bullpen, remote: Remote
) -> None:
    checkout = f"bullpen repo checkout {URL}"
    script = (
        f'demo: sh cd "$({checkout})" && echo mine > work.txt && git add -A && {COMMIT} Work\n'
        "demo: sh echo edited >> app/README; echo loose > app/loose.txt\n"
        f"demo: sh {checkout} 2>&1\n"
        "demo: sh env\n"
    )
    issue = bullpen.create_issue("Change the code", script)
    [first] = runs_done(bullpen, issue, 1)
    said = tool_output(bullpen, first)
    assert first["status"] == "completed", said
    tree = Path(first["work_dir"]) / "app"
    assert tree.is_dir(), said + bullpen.logs()
    branch = f"agent/demo/{short_id(first['id'])}"
    assert git(tree, "symbolic-ref", "--short", "HEAD") == branch
    assert git(tree, "log", "--format=%s") == "Work\nChange README"
    assert CO_AUTHOR in git(tree, "log", "-1", "--format=%B")
    assert (tree / "README").read_text() == "one\nedited\n"
    assert "left as it is" in said
    assert "kept: `git stash apply refs/bullpen/" in said
    assert "MULTICA_CHECKOUT_SECRET=[REDACTED" in said

    meta = json.loads((tree.parents[1] / ".gc_meta.json").read_text())
    assert (meta["kind"], meta["issue_id"]) == ("issue", issue["id"])
    assert meta["completed_at"]

    again = (
        f"demo: sh {checkout} && cat app/work.txt app/loose.txt && git -C app log -1 --format=%s"
    )
    bullpen.cli("issue", "comment", "add", issue["identifier"], "--content", again)
    second, _ = runs_done(bullpen, issue, 2)
    said = tool_output(bullpen, second)
    assert second["work_dir"] == first["work_dir"]
    assert f"{tree}\nmine\nloose\nWork" in said
    assert (tree / "README").read_text() == "one\nedited\n"

    fresh = f"demo: sh {checkout} --ref main 2>&1 && git -C app push 2>&1"
    bullpen.cli("issue", "comment", "add", issue["identifier"], "--content", fresh)
    third, *_ = runs_done(bullpen, issue, 3)
    assert (tree / "README").read_text() == "one\n"
    assert not (tree / "work.txt").exists()
    mine = f"agent/demo/{short_id(third['id'])}"
    assert remote.branches() == [mine, "main"]
    [saved] = git(tree, "for-each-ref", "--format=%(refname)", f"refs/bullpen/{branch}").split()
    assert git(tree, "show", f"{saved}:README") == "one\nedited"
    assert git(tree, "show", f"{saved}:loose.txt") == "loose"
    assert git(tree, "show", f"{branch}:work.txt") == "mine"
    assert f"{URL}: `{saved}`" in (tree.parent / "AGENTS.md").read_text(), "the agent was told"
    told = bullpen.cli("repo", "kept").stdout
    assert f"task {short_id(first['id'])}, branch {branch}" in told
    assert saved in told

    told = json.loads(bullpen.cli("daemon", "disk-usage", "--output", "json").stdout)
    [clone] = told["clones"]
    assert (clone["state"], clone["worktrees"], clone["saved_refs"]) == ("ready", 1, 1)
    [task] = [row for row in told["tasks"] if row["path"] == str(tree.parents[1])]
    assert (task["kind"], task["worktrees"]) == ("issue", 1)


def test_a_projects_ref_is_where_its_agents_start(bullpen: Bullpen, remote: Remote) -> None:
    there = remote.push("released.txt", "1.0", branch="release/1")
    with bullpen.api() as api:
        agents = api.get("/api/agents").raise_for_status().json()
        resource = {
            "resource_type": "github_repo",
            "resource_ref": {"url": URL, "ref": "release/1"},
        }
        project = api.post("/api/projects", json={"title": "Release", "resources": [resource]})
        body = {
            "title": "Patch the release",
            "description": f'demo: sh cd "$(bullpen repo checkout {URL})" && git rev-parse HEAD',
            "project_id": project.raise_for_status().json()["id"],
            "assignee_type": "agent",
            "assignee_id": agents[0]["id"],
        }
        issue = api.post("/api/issues", json=body).raise_for_status().json()
    [run] = runs_done(bullpen, issue, 1)
    assert run["status"] == "completed"
    assert there in tool_output(bullpen, run)
    assert (Path(run["work_dir"]) / "app" / "released.txt").read_text() == "1.0"


def test_only_a_tasks_own_command_checks_out(bullpen: Bullpen) -> None:
    outside = bullpen.cli("repo", "checkout", URL, check=False)
    assert outside.returncode != 0
    assert "inside a task" in outside.stderr

    door = json.loads((bullpen.home / "secrets" / "daemon.json").read_text())
    work = next((bullpen.home / "workspaces").rglob("workdir"), bullpen.home)
    request = {
        "url": URL,
        "workspace_id": bullpen.told["workspace_id"],
        "workdir": str(work),
        "agent_name": "demo",
        "task_id": "",
    }
    url = f"http://127.0.0.1:{door['port']}/repo/checkout"
    for headers in ({}, {"Authorization": f"Bearer {door['secret']}"}):
        answer = httpx.post(url, json=request, headers=headers, trust_env=False)
        assert answer.status_code == 401
    issue = bullpen.create_issue(
        "Look elsewhere",
        "demo: sh bullpen repo checkout https://example.test/not/ours 2>&1\n"
        f"demo: sh cd / && bullpen repo checkout {URL} 2>&1\n"
        f"demo: sh MULTICA_CHECKOUT_SECRET= bullpen repo checkout {URL} 2>&1\n"
        f"demo: sh bullpen repo checkout {URL} --ref no-such 2>&1\n",
    )
    [run] = runs_done(bullpen, issue, 1)
    said = tool_output(bullpen, run)
    assert "repo is not configured for this workspace" in said
    assert "workdir is not in this task's directory" in said
    assert "unauthorized" in said
    assert "no branch, tag or commit 'no-such'" in said
    assert door["secret"] not in said
    assert not (Path(run["work_dir"]) / "app").exists()
