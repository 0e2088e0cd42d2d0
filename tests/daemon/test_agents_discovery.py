"""Finding agent programs among real files, slow ones and broken ones included."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from daemon.agents import discovery
from daemon.agents.discovery import discover, find_version, parse_shell_answer
from daemon.agents.launch import DRIVERS
from tests.support.processes import Watch, no_survivors

pytestmark = pytest.mark.together

Install = Callable[..., Path]


@pytest.fixture
def watch() -> Iterator[Watch]:
    with no_survivors() as found:
        yield found


@pytest.fixture
def bin_(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@pytest.fixture
def install(bin_: Path) -> Install:
    def write(name: str, body: str, folder: Path = bin_) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def env(bin_: Path, watch: Watch, tmp_path: Path) -> dict[str, str]:
    path = f"{bin_}{os.pathsep}/usr/bin{os.pathsep}/bin"
    return {"PATH": path, "HOME": str(tmp_path), "TEST_WORD": watch.word}


async def test_what_is_in_the_path_is_offered_with_its_version(
    install: Install, env: dict[str, str]
) -> None:
    path = install("claude", "echo '2.1.5 (Claude Code)'")
    (program,) = await discover(None, env)
    assert (program.provider, program.path) == ("claude", str(path))
    assert program.version == "2.1.5 (Claude Code)"


async def test_the_demo_is_offered_only_on_request(env: dict[str, str]) -> None:
    assert await discover(None, env) == []
    (program,) = await discover(("demo",), env)
    assert program.provider == "demo"
    assert await discover(("claude", "nonsense"), env) == []


async def test_a_program_without_a_driver_is_not_offered(
    install: Install, env: dict[str, str]
) -> None:
    assert "codex" not in DRIVERS
    install("codex", "echo 99.0.0")
    assert await discover(None, env) == []
    assert await discover(("codex",), env) == []


@pytest.mark.parametrize("body", ["echo 1.9.9", "echo 2.1.5; exit 3", "exec /no/such/file"])
async def test_old_and_broken_programs_are_not_offered(
    install: Install, env: dict[str, str], body: str
) -> None:
    install("claude", body)
    assert await discover(None, env) == []


async def test_a_program_that_hangs_is_given_up_and_killed(
    install: Install, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_PROBE_LIMIT", 0.3)
    install("claude", "sleep 60 & sleep 60")
    with trio.fail_after(5):
        assert await discover(None, env) == []


async def test_a_program_that_does_not_answer_is_not_asked_at_every_look(
    install: Install, env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    install("claude", f"echo x >> {count}; exit 1")
    assert await discover(None, env) == []
    assert await discover(None, env) == []
    assert count.read_text() == "x\n"
    monkeypatch.setattr(discovery, "_silent", {})  # some minutes later
    assert await discover(None, env) == []
    assert count.read_text() == "x\nx\n"
    install("claude", "echo 2.3.0; : repaired")
    assert len(await discover(None, env)) == 1, "a changed file is asked at once"


async def test_programs_are_asked_together_but_not_all_at_once(
    install: Install, env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits until two are at work, and says how many it saw."""
    monkeypatch.setattr(discovery, "_PROBES", 2)
    monkeypatch.setattr(discovery, "DRIVERS", dict.fromkeys(("claude", "pi", "kimi", "hermes")))
    running, seen = tmp_path / "running", tmp_path / "seen"
    running.mkdir()
    for name in ("claude", "pi", "kimi", "hermes"):
        install(
            name,
            f"touch {running}/{name}; n=0\n"
            f"while [ $(ls {running} | wc -l) -lt 2 ] && [ $n -lt 50 ]; do n=$((n+1)); sleep 0.05; done\n"
            f"ls {running} | wc -l >> {seen}; sleep 0.2; rm {running}/{name}; echo 2.9.9",
        )
    found = await discover(None, env)
    assert len(found) == 4
    assert max(int(line) for line in seen.read_text().split()) == 2


async def test_a_child_that_holds_the_pipe_does_not_matter(
    install: Install, env: dict[str, str]
) -> None:
    install("claude", "sleep 60 & echo 2.2.0")
    with trio.fail_after(5):
        (program,) = await discover(None, env)
    assert program.version == "2.2.0"


async def test_a_version_is_asked_for_once_per_file(
    install: Install, env: dict[str, str], tmp_path: Path
) -> None:
    count = tmp_path / "count"
    install("claude", f"echo x >> {count}; echo 2.3.0")
    await discover(None, env)
    await discover(None, env)
    assert count.read_text() == "x\n"
    install("claude", f"echo x >> {count}; echo 2.3.10")
    (program,) = await discover(None, env)
    assert program.version == "2.3.10"


async def test_a_pinned_path_is_never_replaced_by_another_program(
    install: Install, env: dict[str, str], tmp_path: Path
) -> None:
    install("claude", "echo 2.0.0")
    elsewhere = install("my-claude", "echo 2.4.0", tmp_path)
    (program,) = await discover(None, env | {"BULLPEN_CLAUDE_PATH": str(elsewhere)})
    assert program.path == str(elsewhere)
    assert await discover(None, env | {"BULLPEN_CLAUDE_PATH": str(tmp_path / "gone")}) == []


async def test_the_login_shell_is_asked_for_what_the_path_lacks(
    install: Install, env: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "only in the shell"
    folder.mkdir()
    path = install("claude", "echo 2.5.0", folder)
    (tmp_path / ".bash_profile").write_text(
        f"echo welcome; PATH='{folder}':$PATH; alias claude='echo no'; claude() {{ echo no; }}\n"
        "sleep 60 &\n"
    )
    with trio.fail_after(10):
        (program,) = await discover(None, env | {"SHELL": "/bin/bash"})
    assert program.path == str(path)
    assert await discover(None, env | {"SHELL": "/usr/bin/python3"}) == []


async def test_a_login_shell_that_hangs_is_given_up(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_SHELL_LIMIT", 0.3)
    (tmp_path / ".bash_profile").write_text("sleep 60\n")
    with trio.fail_after(5):
        assert await discover(None, env | {"SHELL": "/bin/bash"}) == []


def test_the_shells_chatter_is_ignored() -> None:
    output = "welcome\nclaude\t/bin/sh\nclaude\trelative\nother\t/bin/sh\nclaude\t/no/such/file\n"
    assert parse_shell_answer(output, ["claude"]) == {"claude": "/bin/sh"}


async def test_a_custom_program_is_asked_for_its_version_once(tmp_path: Path) -> None:
    """Whether it tells or not; when its file changes it is asked again."""
    program = tmp_path / "acme"

    def write(script: str) -> None:
        program.write_text(f"#!/bin/sh\necho x >> {tmp_path}/starts\n{script}\n")
        program.chmod(0o755)

    def starts() -> int:
        return len((tmp_path / "starts").read_text().splitlines())

    env = {"PATH": os.environ["PATH"]}
    assert await find_version(str(program), env) == ""
    write("exit 3")
    for _ in range(3):
        assert await find_version(str(program), env) == ""
    assert starts() == 1
    write("echo banner; echo acme 1.2.3")
    for _ in range(3):
        assert await find_version(str(program), env) == "acme 1.2.3"
    assert starts() == 2
