"""What single providers need besides: codex's home, cursor's servers, the file of each."""

from __future__ import annotations

import json
import os
import tomllib
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from daemon.workdir.brief import brief_file
from daemon.workdir.codex_home import make_codex_home, safe_config
from daemon.workdir.errors import PrepareError
from daemon.workdir.local import LocalDirectory
from daemon.workdir.prepare import LiveRoots, Prepared, choose, giving_back, prepare
from shared.wire.task import ClaimedTask, Skill, SkillFile, TaskAgent
from tests.support.fake_server import WORKSPACE, uid

pytestmark = pytest.mark.fast

SKILLS = [Skill(name="Deploy", content="ours", files=[SkillFile(path="a.md", content="a")])]

WHERE = {
    "claude": ("CLAUDE.md", ".claude/skills"),
    "codebuddy": ("CLAUDE.md", ".claude/skills"),
    "codex": ("AGENTS.md", "../codex-home/skills"),
    "copilot": ("AGENTS.md", ".github/skills"),
    "opencode": ("AGENTS.md", ".opencode/skills"),
    "openclaw": ("AGENTS.md", "skills"),
    "hermes": ("AGENTS.md", ".agent_context/skills"),
    "pi": ("AGENTS.md", ".pi/skills"),
    "cursor": ("AGENTS.md", ".cursor/skills"),
    "kimi": ("AGENTS.md", ".kimi/skills"),
    "kiro": ("AGENTS.md", ".kiro/skills"),
    "qoder": ("AGENTS.md", ".qoder/skills"),
    "antigravity": ("AGENTS.md", ".agents/skills"),
}


def task_of(name: str = "task", *, mcp: Any = None, **fields: Any) -> ClaimedTask:
    agent = TaskAgent(id="a", name="A", skills=SKILLS, mcp_config=mcp)
    return ClaimedTask(id=uid(name), workspace_id=WORKSPACE, agent=agent, **fields)


def made(root: Path, provider: str, task: ClaimedTask, env: dict[str, str]) -> Prepared:
    return prepare(task, "direct", provider, choose(task, root, LiveRoots()), env)


@pytest.mark.parametrize("provider", WHERE)
def test_each_provider_finds_its_brief_and_skills(tmp_path: Path, provider: str) -> None:
    file, folder = WHERE[provider]
    assert brief_file(provider) == file
    env = {"HOME": str(tmp_path / "home")}
    ready = made(tmp_path, provider, task_of(), env)
    skill = ready.layout.work_dir / folder / "deploy"
    assert (skill / "SKILL.md").read_text() == "---\nname: deploy\n---\n\nours"
    assert (skill / "a.md").read_text() == "a"
    everywhere = [path for path in ready.layout.env_root.rglob("SKILL.md") if path.is_file()]
    assert len(everywhere) == 1


# -- codex


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A user's codex home."""
    folder = tmp_path / "codex"
    (folder / "skills/mine/nested").mkdir(parents=True)
    (folder / "skills/mine/SKILL.md").write_text("mine")
    (folder / "skills/mine/run.sh").write_text("#!/bin/sh\n")
    (folder / "skills/mine/run.sh").chmod(0o755)
    (folder / "skills/mine/link").symlink_to("/etc/passwd")
    (folder / "skills/mine/nested/link").symlink_to("/etc")
    (folder / "skills/deploy").mkdir()
    (folder / "skills/deploy/SKILL.md").write_text("the user's of the same name")
    (folder / "skills/.system").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/SKILL.md").write_text("linked")
    (folder / "skills/linked").symlink_to(tmp_path / "elsewhere")
    (folder / "auth.json").write_text('{"token": "x"}')
    (folder / "config.toml").write_text(CONFIG)
    (folder / "instructions.md").write_text("be brief")
    return folder


CONFIG = """
model = "o5"  # mine
sandbox_mode = "read-only"
features = {multi_agent = true, web = true}
sandbox_workspace_write.writable_roots = ["/data"]
sandbox_workspace_write.network_access = false

[profiles.careful]
sandbox_mode = "read-only"

[[skills.config]]
path = "/x"

[mcp_servers."a.b"]
command = "c"
env = {KEY = "a\\u007fb\\n\\"q\\""}
"""


def test_the_settings_are_made_safe_and_otherwise_kept() -> None:
    config = safe_config(tomllib.loads(CONFIG), {}, "linux")
    assert tomllib.loads(tomlkit.dumps(config)) == {
        "model": "o5",
        "sandbox_mode": "workspace-write",
        "sandbox_workspace_write": {"writable_roots": ["/data"], "network_access": True},
        "features": {"multi_agent": False, "web": True, "memories": False},
        "memories": {"generate_memories": False, "use_memories": False},
        "profiles": {"careful": {"sandbox_mode": "read-only"}},
        "mcp_servers": {"a.b": {"command": "c", "env": {"KEY": 'a\x7fb\n"q"'}}},
    }
    assert safe_config(config, {}, "linux") == config, "safe twice is safe once"
    asked = {"BULLPEN_CODEX_MULTI_AGENT": "1", "BULLPEN_CODEX_MEMORY": "1"}
    free = safe_config(tomllib.loads(CONFIG), asked, "linux")
    assert free["features"] == {"multi_agent": True, "web": True}
    assert "memories" not in free
    mac = safe_config(tomllib.loads(CONFIG), {}, "darwin")
    assert mac["sandbox_mode"] == "danger-full-access"
    assert "sandbox_workspace_write" not in mac


def test_a_codex_home(tmp_path: Path, shared: Path) -> None:
    env = {"CODEX_HOME": str(shared)}
    ready = made(tmp_path / "root", "codex", task_of(), env)
    home = ready.layout.codex_home
    assert ready.variables == {"CODEX_HOME": str(home)}
    assert (home / "sessions").resolve() == shared / "sessions"
    assert (home / "auth.json").resolve() == shared / "auth.json"
    assert (home / "plugins/cache").resolve() == shared / "plugins/cache"
    assert (home / "instructions.md").read_text() == "be brief"
    assert tomllib.loads((home / "config.toml").read_text())["model"] == "o5"
    assert (home / "config.toml").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (home / "skills").iterdir()) == ["deploy", "linked", "mine"]
    assert "ours" in (home / "skills/deploy/SKILL.md").read_text()
    assert (home / "skills/linked/SKILL.md").read_text() == "linked"
    assert not (home / "skills/linked").is_symlink()
    assert (home / "skills/mine/run.sh").stat().st_mode & 0o111, "scripts can still be run"
    assert not (home / "skills/mine/link").is_symlink()
    assert not (home / "skills/mine/nested/link").is_symlink()
    assert (ready.layout.work_dir / ".agent_context/skills").is_dir()


def test_a_codex_home_is_refreshed(tmp_path: Path, shared: Path) -> None:
    env = {"CODEX_HOME": str(shared)}
    home = tmp_path / "home"
    make_codex_home(home, SKILLS, env)
    (home / "auth.json").unlink()
    (home / "auth.json").write_text("a stale copy")
    (home / "sessions").unlink()
    (home / "sessions").symlink_to(tmp_path)
    (home / "skills/left").mkdir()
    (shared / "instructions.md").unlink()
    (shared / "config.toml").write_text("not = toml =")
    make_codex_home(home, SKILLS, env)
    assert (home / "auth.json").readlink() == shared / "auth.json"
    assert (home / "sessions").readlink() == shared / "sessions"
    assert not (home / "skills/left").exists()
    assert not (home / "instructions.md").exists()
    assert tomllib.loads((home / "config.toml").read_text())["sandbox_mode"]
    (home / "sessions").unlink()
    (home / "sessions").mkdir()
    (shared / "auth.json").unlink()
    make_codex_home(home, SKILLS, env)
    assert not (home / "sessions").is_symlink(), "it has sessions of its own"
    assert not os.path.lexists(home / "auth.json")


def test_a_user_without_codex_and_skills_too_big(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    make_codex_home(home, [], {"HOME": str(tmp_path / "nobody")})
    assert list((home / "skills").iterdir()) == []
    monkeypatch.setattr("daemon.workdir.codex_home.SKILL_FILES", 1)
    make_codex_home(home, [], {"CODEX_HOME": str(shared)})
    assert sorted(path.name for path in (home / "skills").iterdir()) == ["deploy", "linked"]


VALUES = st.recursive(
    st.one_of(
        st.text(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.datetimes(),
        st.datetimes(timezones=st.just(UTC)),
        st.dates(),
        st.times(),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_what_is_written_reads_back_the_same(document: dict[str, Any]) -> None:
    assert tomllib.loads(tomlkit.dumps(document)) == document


# -- cursor

SERVERS = {"fetch": {"command": "uvx", "args": ["mcp-server-fetch"]}, "another": {"url": "u"}}


def test_cursors_servers_are_there_and_approved(tmp_path: Path) -> None:
    ready = made(tmp_path, "cursor", task_of(mcp={"mcpServers": SERVERS}), {})
    path = ready.layout.work_dir / ".cursor/mcp.json"
    assert json.loads(path.read_text()) == {"mcpServers": SERVERS}
    assert path.stat().st_mode & 0o777 == 0o600
    data = ready.layout.cursor_data
    assert ready.variables == {"CURSOR_DATA_DIR": str(data)}
    [project] = (data / "projects").iterdir()
    approvals = json.loads((project / "mcp-approvals.json").read_text())
    assert [text.rsplit("-", 1)[0] for text in approvals] == ["another", "fetch"]
    trusted = json.loads((project / ".workspace-trusted").read_text())
    assert trusted["workspacePath"] == str(ready.layout.work_dir)
    assert project.stat().st_mode & 0o777 == 0o700
    again = task_of("two", mcp={"mcpServers": {}}, prior_work_dir=str(ready.layout.work_dir))
    made(tmp_path, "cursor", again, {})
    assert json.loads(path.read_text()) == {"mcpServers": {}}, "none is managed too"
    last = task_of("three", prior_work_dir=str(ready.layout.work_dir))
    assert made(tmp_path, "cursor", last, {}).variables == {}
    assert not path.exists()


def test_the_approval_is_what_cursor_computes() -> None:
    from daemon.workdir.cursor_mcp import data_files

    files = data_files(Path("/tmp/work"), {"fetch": SERVERS["fetch"]})
    assert json.loads(files["projects/tmp-work/mcp-approvals.json"]) == ["fetch-b3a6127d3cbd8e52"]


@pytest.mark.parametrize(
    "mcp", [[], "x", {"mcpServers": []}, {"mcpServers": {" ": {}}}, {"mcpServers": {"a": 1}}]
)
def test_servers_that_are_none_fail_the_task(tmp_path: Path, mcp: Any) -> None:
    with pytest.raises(PrepareError):
        made(tmp_path, "cursor", task_of(mcp=mcp), {})


def test_the_users_own_servers_are_never_replaced(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / ".cursor").mkdir(parents=True)
    own = project / ".cursor/mcp.json"
    own.write_text("{}")
    task = task_of(mcp={"mcpServers": SERVERS})
    for folder in (project, project / "inside"):
        folder.mkdir(exist_ok=True)
        (project / ".git").mkdir(exist_ok=True)
        chosen = choose(task, tmp_path / "root", LiveRoots(), LocalDirectory(path=folder))
        with (
            giving_back(chosen, task.id, tmp_path / "records") as lent,
            pytest.raises(PrepareError),
        ):
            prepare(task, "direct", "cursor", lent, {})
    assert own.read_text() == "{}"
    own.unlink()
    chosen = choose(task, tmp_path / "root", LiveRoots(), LocalDirectory(path=project))
    with giving_back(chosen, task.id, tmp_path / "records") as lent:
        prepare(task, "direct", "cursor", lent, {})
        assert own.exists()
    assert not own.exists()
