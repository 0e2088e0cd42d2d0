"""The commands for one's own machine: what it allows, and giving it to somebody else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.allowed import allowed_directories, is_allowed
from daemon.identity import load_daemon_id
from shared.home import Home
from tests.daemon.test_cli_commands import AGENT, ANSWERS, TASK, WORKSPACE, Bench

pytestmark = pytest.mark.fast

RUNTIME = "66666666-6666-4666-8666-666666666666"
PROJECT = "77777777-7777-4777-8777-777777777777"
MO = {"user_id": TASK, "name": "Mo", "email": "mo@example.test"}


@pytest.fixture
def bench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Bench:
    moved = {
        "runtimes": [{"id": RUNTIME, "name": "Claude (box)"}],
        "agents_given": [],
        "agents_waiting": [{"id": AGENT, "name": "Ann", "owner_id": WORKSPACE}],
        "directories_removed": [{"id": TASK, "local_path": "/src"}],
        "tasks_stopped": 2,
    }
    for route, answer in {
        ("POST", f"/api/runtimes/{RUNTIME}/hand-over"): moved,
        ("GET", "/api/runtimes"): [{"id": RUNTIME, "name": "Claude (box)"}],
        ("GET", f"/api/workspaces/{WORKSPACE}/members"): [MO],
        ("POST", f"/api/projects/{PROJECT}/resources"): {"id": TASK},
    }.items():
        monkeypatch.setitem(ANSWERS, route, answer)
    return Bench(tmp_path / "home", capsys)


@pytest.mark.parametrize("heir", ["mo", "MO@example.test", TASK])
def test_a_machine_is_handed_over(bench: Bench, heir: str) -> None:
    words = ("runtime", "hand-over", "claude (box)", "--to", heir, "--with-agents")
    code, _, err = bench.run(*words)
    assert code == 0, err
    assert bench.body() == {
        "user_id": TASK,
        "include_agents": True,
        "include_directories": False,
    }
    for said in ("belongs to Mo now", "Ann", "/src", "queued again: 2"):
        assert said in err
    code, _, err = bench.run("runtime", "hand-over", RUNTIME, "--to", "nobody")
    assert code != 0
    assert err.count("\n") == 1


@pytest.mark.parametrize("ref", ["big box", "claude (box)", "66660001"])
def test_a_runtime_is_known_by_the_name_its_owner_gave_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ref: str
) -> None:
    full = "66666666-6666-7666-8666-666666660001"
    row = {"id": full, "name": "Claude (box)", "custom_name": "Big box", "provider": "claude"}
    row |= {"runtime_mode": "local", "status": "online", "last_seen_at": None}
    monkeypatch.setitem(ANSWERS, ("GET", "/api/runtimes"), [row])
    monkeypatch.setitem(ANSWERS, ("DELETE", f"/api/runtimes/{full}"), {})
    code, shown, err = bench.run("runtime", "list")
    assert code == 0, err
    assert "Big box" in shown
    code, _, err = bench.run("runtime", "delete", ref)
    assert code == 0, err


def test_directories_are_allowed_listed_and_removed(bench: Bench, tmp_path: Path) -> None:
    place, link = tmp_path / "a b", tmp_path / "link"
    place.mkdir()
    link.symlink_to(place)
    assert bench.run("daemon", "allow-dir", str(link))[0] == 0
    home = Home(bench.home)
    assert allowed_directories(home) == (place,)
    assert home.directories_file.stat().st_mode & 0o777 == 0o600
    _, out, _ = bench.run("daemon", "allow-dir", "--output", "json")
    assert json.loads(out) == {"allowed": [str(place)]}
    place.rmdir()
    assert bench.run("daemon", "allow-dir", "--remove", str(place))[0] == 0
    assert allowed_directories(home) == ()
    for words in (("/",), (str(place),), ("--remove", str(place)), ("--remove",)):
        code, _, err = bench.run("daemon", "allow-dir", *words)
        assert code != 0
        assert err.count("\n") == 1
    home.directories_file.write_text("[1]")
    code, _, err = bench.run("daemon", "allow-dir")
    assert code != 0
    assert "directories.json" in err


def test_an_agent_allows_nothing(bench: Bench, tmp_path: Path) -> None:
    bench.env |= {"MULTICA_TASK_ID": TASK, "MULTICA_TOKEN": "mat_" + "0" * 40}
    assert bench.run("daemon", "allow-dir", str(tmp_path))[0] != 0
    words = ("project", "resource", "add", PROJECT, "--local-path", str(tmp_path))
    assert bench.run(*words)[0] != 0
    assert not Home(bench.home).directories_file.exists()


def test_naming_a_directory_of_this_machine_allows_it(bench: Bench, tmp_path: Path) -> None:
    home = Home(bench.home)
    words = ("project", "resource", "add", PROJECT, "--local-path", str(tmp_path))
    code, _, err = bench.run(*words)
    assert code != 0
    assert "--daemon-id" in err
    daemon_id = load_daemon_id(home)
    assert bench.run(*words)[0] == 0
    ref = {"local_path": str(tmp_path), "daemon_id": daemon_id}
    assert bench.body() == {"resource_type": "local_directory", "resource_ref": ref}
    assert allowed_directories(home) == (tmp_path,)
    # on another machine its owner has to say so there
    elsewhere = ("project", "resource", "add", PROJECT, "--local-path", "/src", "--daemon-id", "d2")
    code, _, err = bench.run(*elsewhere)
    assert code == 0
    assert "bullpen daemon allow-dir /src" in err
    assert allowed_directories(home) == (tmp_path,)
    # what the server refuses is not allowed either
    ANSWERS.pop(("POST", f"/api/projects/{PROJECT}/resources"))
    other = tmp_path / "other"
    other.mkdir()
    assert bench.run(*words[:-1], str(other))[0] != 0
    assert allowed_directories(home) == (tmp_path,)


def test_what_is_inside_an_allowed_directory_is_allowed() -> None:
    allowed = (Path("/home/u/src"),)
    assert is_allowed(Path("/home/u/src"), allowed)
    assert is_allowed(Path("/home/u/src/a/b"), allowed)
    assert not is_allowed(Path("/home/u"), allowed)
    assert not is_allowed(Path("/home/u/src-2"), allowed)
    assert not is_allowed(Path("/home/u/src"), ())
