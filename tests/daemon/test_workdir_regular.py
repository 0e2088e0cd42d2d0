"""Pipes where files are expected: whoever left them, nobody waits for what will never come."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.workdir.meta import META, read_meta
from daemon.workdir.prepare import LiveRoots, choose, prepare, write_brief
from daemon.workdir.regular import read_regular
from daemon.workdir.sidecars import clean_up
from shared.wire.task import ClaimedTask
from tests.daemon.test_workdir_borrowed import Ground
from tests.support.fake_server import WORKSPACE, uid
from tests.support.repositories import make_repository

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    """End a read that waits, instead of waiting with it."""

    def late(*_: Any) -> None:
        raise TimeoutError("waited for a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 10)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    assert read_regular(tmp_path / "file") == b"x" * 100_000
    for name in ("pipe", "link", "."):
        with pytest.raises(OSError, match="not a regular file"):
            read_regular(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nothing")


def test_a_pipe_in_place_of_the_brief_leaves_it_to_the_prompt(tmp_path: Path) -> None:
    task = ClaimedTask(id=uid("task"), issue_id=uid("issue"), workspace_id=WORKSPACE)
    chosen = choose(task, tmp_path, LiveRoots())
    prepare(task, "direct", "claude", chosen)
    os.mkfifo(chosen.layout.work_dir / "CLAUDE.md")
    assert not write_brief(chosen, "claude", "brief")


def test_a_pipe_in_place_of_what_we_noted_is_nothing_noted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / META)
    assert read_meta(tmp_path) is None
    os.mkfifo(tmp_path / "manifest")
    clean_up(tmp_path / "manifest", below=tmp_path)


def test_a_users_directory_is_given_back_around_a_pipe(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "project")
    (folder / ".git/info/exclude").unlink(missing_ok=True)
    ground = Ground(folder=folder, root=tmp_path / "root", records=tmp_path / "records")

    def act() -> None:
        (folder / "CLAUDE.md").unlink(missing_ok=True)
        os.mkfifo(folder / "CLAUDE.md")
        (folder / ".git/info/exclude").unlink()
        os.mkfifo(folder / ".git/info/exclude")

    ground.run(act=act)
    assert (folder / "CLAUDE.md").is_fifo()
    assert not list(ground.records.iterdir())
