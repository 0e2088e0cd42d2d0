"""Whose a directory is, and that a reclaim and a task never have one at the same time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from daemon.workdir.meta import Meta, meta_of, noting, read_meta
from daemon.workdir.prepare import LiveRoots, PrepareError, places
from shared import codec
from shared.wire.task import ClaimedTask

pytestmark = pytest.mark.fast

WS = "11111111-1111-4111-8111-111111111111"
TASK = "22222222-2222-4222-8222-222222222222"
PRIOR = "33333333-3333-4333-8333-333333333333"


def claimed(**more: Any) -> ClaimedTask:
    return codec.structure({"id": TASK, "workspace_id": WS, **more}, ClaimedTask)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"issue_id": "i"}, {"kind": "issue", "issue_id": "i"}),
        ({"chat_session_id": "c", "issue_id": "i"}, {"kind": "chat", "chat_session_id": "c"}),
        (
            {"autopilot_run_id": "r", "issue_id": "i"},
            {"kind": "autopilot_run", "autopilot_run_id": "r"},
        ),
        ({"quick_create_prompt": "x"}, {"kind": "quick_create", "task_id": TASK}),
        ({}, None),
    ],
)
def test_what_is_noted(tmp_path: Path, task: dict[str, Any], told: dict[str, Any] | None) -> None:
    path = tmp_path / ".gc_meta.json"
    with noting(tmp_path, claimed(**task)):
        if told is None:
            assert not path.exists()
            return
        assert json.loads(path.read_text()) == {**told, "workspace_id": WS, "completed_at": ""}
    ended = json.loads(path.read_text())
    assert ended.pop("completed_at").endswith("Z")
    assert ended == {**told, "workspace_id": WS}
    assert read_meta(tmp_path) == Meta(**{**told, "workspace_id": WS,
                                          "completed_at": read_meta(tmp_path).completed_at})  # fmt: skip  # type: ignore[union-attr]


def test_a_users_directory_is_noted_as_one(tmp_path: Path) -> None:
    with noting(tmp_path, claimed(issue_id="i"), local_directory=True):
        noted = read_meta(tmp_path)
    assert noted is not None
    assert noted.local_directory


def test_a_directory_that_went_is_not_noted(tmp_path: Path) -> None:
    root = tmp_path / "gone"
    root.mkdir()
    with noting(root, claimed(issue_id="i")):
        (root / ".gc_meta.json").unlink()
        root.rmdir()
    assert not root.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": 5}'])
def test_what_cannot_be_read_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / ".gc_meta.json").write_text(content)
    assert read_meta(tmp_path) is None
    assert meta_of(claimed()) is None


def test_places() -> None:
    root = Path("/root")
    own = root / WS / TASK
    prior = root / WS / PRIOR
    assert places(claimed(), root) == [own]
    assert places(claimed(prior_work_dir=f"{prior}/workdir"), root) == [prior, own]
    assert places(claimed(prior_work_dir="/home/me"), root) == [own]


async def test_a_reclaim_takes_nothing_a_task_has(autojump_clock: MockClock) -> None:
    live, root = LiveRoots(), Path("/r")

    async def work() -> str:
        await trio.lowlevel.checkpoint()
        return "removed"

    with live.hold(root):
        assert await live.reclaim(root, work) is None
    assert await live.reclaim(root, work) == "removed"


async def test_a_task_calls_a_reclaim_off(autojump_clock: MockClock) -> None:
    live, root, removed = LiveRoots(), Path("/r"), []

    async def work() -> str:
        await trio.sleep(100)
        removed.append(root)
        return "removed"

    async def reclaim() -> None:
        assert await live.reclaim(root, work) is None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reclaim)
        await wait_all_tasks_blocked()
        assert await live.reclaim(root, work) is None, "one at a time"
        await live.claim(Path("/other"))
        assert trio.current_time() == autojump_clock.current_time()
        await live.claim(root, root)
        with live.hold(root), pytest.raises(PrepareError), live.hold(root):
            pass
    assert removed == []
    assert await live.reclaim(root, work) == "removed"


async def test_a_task_waits_for_a_removal_that_cannot_be_called_off(
    autojump_clock: MockClock,
) -> None:
    live, root, order = LiveRoots(), Path("/r"), []

    async def work() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)
        order.append("removed")
        return ""

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.reclaim, root, work)
        await wait_all_tasks_blocked()
        await live.claim(root)
        order.append("claimed")
    assert order == ["removed", "claimed"]
