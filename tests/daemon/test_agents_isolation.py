"""What isolated agents see, as a plan, and what is said where a machine cannot isolate them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.agents import isolation, probing
from daemon.agents.isolation import Isolation, Unsafe, View, hidden_of, plan
from daemon.agents.probing import find_isolation
from daemon.config import ConfigError, load_config
from shared.home import Home

pytestmark = pytest.mark.fast


def steps(place: Path, view: View, **more: object) -> list[tuple[str, str, str]]:
    hidden = hidden_of(Home(place / "home"), place / "home" / "workspaces")
    machine = Isolation(backend="namespaces", hidden=hidden, **more)  # type: ignore[arg-type]
    made = plan(machine, view, cwd=place, program="/bin/sh", env={"PATH": "/bin"})
    return [(kind, source, where) for kind, source, where in made]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    own = (tmp_path / "home" / "workspaces" / "w" / "t").resolve()
    (own / "tmp").mkdir(parents=True)
    (tmp_path / "home" / "secrets").mkdir()
    return own


def test_what_is_put_back_comes_after_what_hides_it(tmp_path: Path, task: Path) -> None:
    made = steps(tmp_path, View(own=(task,), tmp=task / "tmp"))
    home = os.path.realpath(tmp_path / "home")
    assert made[0] == ("bind", "/", "/")
    hides = made.index(("tmpfs", "755", home))
    assert made.index(("bind", str(task / "tmp"), "/tmp")) < hides
    assert made.index(("bind", str(tmp_path.resolve()), str(tmp_path.resolve()))) < hides
    assert made.index(("bind", str(task), str(task))) > hides
    assert all(not where.startswith(f"{home}/secrets") for _, _, where in made)


def test_a_link_in_a_tasks_place_leads_nowhere(tmp_path: Path, task: Path) -> None:
    (task / "tmp").rmdir()
    (task / "tmp").symlink_to(tmp_path / "home" / "secrets")
    with pytest.raises(Unsafe, match="is a link"):
        steps(tmp_path, View(own=(task,), tmp=task / "tmp"))
    with pytest.raises(Unsafe, match="may not see"):
        steps(tmp_path, View(own=(tmp_path / "home",)))


def test_paths_let_in_are_never_bullpens(tmp_path: Path, task: Path) -> None:
    fine = tmp_path / "fine"
    fine.mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "home" / "secrets")
    paths = (fine, link, tmp_path, tmp_path / "home" / "secrets" / "config.json")
    made = steps(tmp_path, View(own=(task,)), paths=paths)
    assert ("bind", str(fine), str(fine)) in made
    assert not any("secrets" in source for _, source, _ in made)


def test_the_same_directory_at_another_place_is_hidden_too(
    tmp_path: Path, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    mirror.symlink_to(tmp_path)  # stands for a second mount: the same files by another path
    mounts = [
        isolation._Mount("8:1", "/", "/", "ext4"),
        isolation._Mount("8:1", str(tmp_path), str(mirror), "ext4"),
        isolation._Mount("8:1", str(tmp_path / "home" / "secrets"), "/mnt/inner", "ext4"),
        isolation._Mount("0:9", "/", "/jail/proc", "proc"),
    ]
    monkeypatch.setattr(isolation, "_mounts", lambda: mounts)
    hidden = isolation._with_aliases([tmp_path / "home"], mounts)
    assert hidden == [str(tmp_path / "home"), f"{mirror}/home", "/mnt/inner"]
    assert ("tmpfs", "", "/jail/proc") in steps(tmp_path, View(own=(task,)))


def test_a_home_above_peoples_homes_is_hidden_by_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    hidden = hidden_of(Home(tmp_path), tmp_path / "workspaces")
    assert tmp_path not in hidden
    assert tmp_path / "secrets" in hidden
    assert tmp_path / "journals" in hidden


async def test_off_and_other_systems_say_so() -> None:
    off = await find_isolation("off")
    assert not off.is_on
    assert "BULLPEN_AGENT_ISOLATION" in off.problem
    mac = await find_isolation("auto", platform="darwin")
    assert not mac.is_on
    assert mac.problem.startswith("agents can read Bullpen's secrets")
    assert "no namespaces" in mac.problem


async def test_a_system_that_refuses_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> str:
        return "unshare: Operation not permitted"

    monkeypatch.setattr(probing, "_try", refuse)
    monkeypatch.setattr(probing, "_KNOBS", (("kernel/ostype", "Linux", "0"),))
    found = await find_isolation("auto", env={"PATH": "/nowhere"}, platform="linux")
    assert not found.is_on
    assert "Operation not permitted" in found.problem
    assert found.problem.endswith("install bubblewrap, or run `sysctl kernel.ostype=0`")


def test_the_settings_are_checked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"token": "mul_x"}')
    env = {"BULLPEN_HOME": str(tmp_path)}
    config = load_config(
        {**env, "BULLPEN_AGENT_ISOLATION": "Required", "BULLPEN_AGENT_PATHS": "/a:/b"}
    )
    assert config.agent_isolation == "required"
    assert config.agent_paths == (Path("/a"), Path("/b"))
    with pytest.raises(ConfigError, match=r"BULLPEN_AGENT_ISOLATION.*auto, required, off"):
        load_config({**env, "BULLPEN_AGENT_ISOLATION": "yes"})
    with pytest.raises(ConfigError, match=r"BULLPEN_AGENT_PATHS.*absolute"):
        load_config({**env, "BULLPEN_AGENT_PATHS": "a"})
