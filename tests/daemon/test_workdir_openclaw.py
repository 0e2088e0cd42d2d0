"""The configuration of an openclaw task, from what a stand-in for the program says of the user's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from daemon.workdir.errors import PrepareError
from daemon.workdir.layout import Layout
from daemon.workdir.openclaw_config import OpenClaw, gateway_of, provide_openclaw
from shared.wire.task import TaskAgent

pytestmark = pytest.mark.together  # it starts programs


class Stand:
    """A program that answers `config …` as told: the words -> what it prints, or a failure."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.active = folder / "user/openclaw.json"
        self.active.parent.mkdir()
        self.layout = Layout(env_root=folder / "env")
        self.layout.env_root.mkdir()
        self.answers: dict[str, str] = {"file": f"echo noise; echo '{self.active}'"}
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder / "user")}

    def run(self, **agent: Any) -> dict[str, str]:
        cases = "\n".join(f"'{words}') {what} ;;" for words, what in self.answers.items())
        program = self.folder / "openclaw"
        script = (
            f'#!/bin/sh\nshift\ncase "$*" in\n{cases}\n*) echo "No value at $*" >&2; exit 1;;\n'
        )
        program.write_text(script + "esac\n")
        program.chmod(0o755)
        openclaw = OpenClaw(path=str(program), env=self.env)
        return trio.run(provide_openclaw, openclaw, self.layout, TaskAgent(**agent))

    @property
    def config(self) -> Any:
        path = self.layout.env_root / "openclaw-config.json"
        assert path.stat().st_mode & 0o777 == 0o600
        return json.loads(path.read_text())


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def test_a_fresh_install_includes_nothing(stand: Stand) -> None:
    variables = stand.run()
    work_dir = str(stand.layout.work_dir)
    assert stand.config == {"agents": {"defaults": {"workspace": work_dir}}}
    assert set(variables) == {"OPENCLAW_CONFIG_PATH"}


def test_the_users_configuration_is_included_and_its_agents_work_here(stand: Stand) -> None:
    stand.active.write_text("{}")
    stand.answers["file"] = "echo '~/openclaw.json'"
    agents = [{"id": "main", "workspace": "/elsewhere", "model": "m"}]
    stand.answers["get agents.list --json"] = f"echo '{json.dumps(agents)}'"
    stand.env["OPENCLAW_INCLUDE_ROOTS"] = f"/more:{stand.active.parent}::"
    variables = stand.run()
    work_dir = str(stand.layout.work_dir)
    assert stand.config == {
        "$include": [str(stand.active)],
        "agents": {
            "defaults": {"workspace": work_dir},
            "list": [{"id": "main", "workspace": work_dir, "model": "m"}],
        },
    }
    assert variables["OPENCLAW_INCLUDE_ROOTS"] == f"{stand.active.parent}:/more"


@pytest.mark.parametrize("rest", [{}, {"timeout": 5}])
def test_managed_servers_take_the_users_place(stand: Stand, rest: dict[str, int]) -> None:
    stand.active.write_text("{}")
    users = {"mcp": {"servers": {"users": {}}, **rest}, "models": {"a": 1}}
    stand.answers["get --json"] = f"echo '{json.dumps(users)}'"
    servers = {"fetch": {"command": "uvx"}}
    variables = stand.run(mcp_config={"mcpServers": servers})
    snapshot = stand.layout.env_root / "openclaw-user-snapshot.json"
    kept = {"models": {"a": 1}, **({"mcp": rest} if rest else {})}
    assert json.loads(snapshot.read_text()) == kept
    assert snapshot.stat().st_mode & 0o777 == 0o600
    assert stand.config["$include"] == [str(snapshot)]
    assert stand.config["mcp"] == {"servers": servers}
    assert "OPENCLAW_INCLUDE_ROOTS" not in variables
    stand.answers["get --json"] = "true"
    stand.run(mcp_config={"mcpServers": {}})
    assert "$include" not in stand.config
    assert stand.config["mcp"] == {"servers": {}}, "none is managed too"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("file", "echo relative/path"),
        ("file", "true"),
        ("file", "echo /"),
        ("file", "exit 3"),
        ("get agents.list --json", "echo '{torn'"),
        ("get agents.list --json", "echo broken >&2; exit 1"),
        ("get agents.list --json", "echo 5"),
        ("get --json", "echo '[]'"),
    ],
)
def test_half_a_configuration_is_none(stand: Stand, words: str, answer: str) -> None:
    stand.active.write_text("{}")
    stand.answers["get --json"] = "echo '{}'"
    stand.answers[words] = answer
    with pytest.raises(PrepareError):
        stand.run(mcp_config={"mcpServers": {}})
    assert not (stand.layout.env_root / "openclaw-config.json").exists()


@pytest.mark.parametrize("mcp", [[], {"mcpServers": 5}, {"mcpServers": {"a": {"args": []}}}])
def test_servers_that_are_none(stand: Stand, mcp: Any) -> None:
    with pytest.raises(PrepareError):
        stand.run(mcp_config=mcp)


def test_a_missing_and_a_silent_program(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.workdir.openclaw_config.ANSWER_WITHIN", 0.2)
    stand.answers["file"] = "exec sleep 60"
    with pytest.raises(PrepareError, match="no answer"):
        stand.run()
    openclaw = OpenClaw(path=str(stand.folder / "none"), env=stand.env)
    with pytest.raises(PrepareError):
        trio.run(provide_openclaw, openclaw, stand.layout, None)


def test_a_gateway_only_in_gateway_mode(stand: Stand) -> None:
    gateway = {"host": "h", "port": 18789, "token": "secret", "tls": True}
    stand.run(runtime_config={"mode": "gateway", "gateway": gateway})
    auth = {"mode": "token", "token": "secret"}
    assert stand.config["gateway"] == {"host": "h", "port": 18789, "tls": True, "auth": auth}
    for other in (None, [], {"mode": "local", "gateway": gateway}, {"gateway": gateway}):
        assert gateway_of(other) == {}
    assert gateway_of({"mode": "gateway", "gateway": {"port": 0, "tls": False}}) == {}
    assert gateway_of({"mode": "gateway", "gateway": "x"}) == {}
