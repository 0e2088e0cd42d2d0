"""Skills by reference: fetched once, kept by hash, never believed unread."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from trio.testing import MockClock as Clock

from daemon.client import Rejected, Transient
from daemon.workdir import bundles
from daemon.workdir.bundles import BundleCache
from daemon.workdir.errors import PrepareError
from shared import codec
from shared.skillbundle import hash_of, make_bundle, ref_of
from shared.wire.task import COMPLETED, FAILED, ClaimedTask, SkillBundle, SkillRef, TaskAgent
from tests.daemon.tasks_support import open_bench
from tests.support.fake_server import WORKSPACE, uid
from tests.support.network import answer

pytestmark = pytest.mark.fast


def bundle(name: str = "deploy", content: str = "héllo\n") -> SkillBundle:
    files = {"b.md": "b", "a/ü.md": "a"}
    return make_bundle(skill_id=uid(name), name=name, description="d", content=content, files=files)


class Server:
    """The server's side of one call; `answers` are given first, then what is asked for."""

    def __init__(self, *have: SkillBundle) -> None:
        self.have = {each.id: each for each in have}
        self.faults: list[Exception] = []
        self.asked: list[list[str]] = []

    async def resolve_bundles(
        self, runtime_id: str, task_id: str, refs: Sequence[SkillRef]
    ) -> list[SkillBundle]:
        self.asked.append([ref.name for ref in refs])
        if self.faults:
            raise self.faults.pop(0)
        return [self.have[ref.id] for ref in refs if ref.id in self.have]


def task_with(*wanted: SkillBundle) -> ClaimedTask:
    agent = TaskAgent(id="a", skill_refs=[ref_of(each) for each in wanted])
    return ClaimedTask(id=uid("t"), workspace_id=WORKSPACE, agent=agent)


def files_in(root: Path) -> list[Path]:
    return list(root.rglob("bundle.json"))


async def names_of(cache: BundleCache, task: ClaimedTask) -> list[str]:
    filled = await cache.fill("r", task)
    assert filled.agent is not None
    assert filled.agent.skills is not None
    return [f"{skill.name}:{skill.content}" for skill in filled.agent.skills]


def cache_of(server: Server, root: Path) -> BundleCache:
    return BundleCache(server, root)  # type: ignore[arg-type]


async def test_only_what_is_missing_is_fetched_in_one_call(tmp_path: Path) -> None:
    one, two, three = bundle("one"), bundle("two"), bundle("three")
    server = Server(one, two, three)
    cache = cache_of(server, tmp_path)
    await cache.fill("r", task_with(two))
    names = await names_of(cache_of(server, tmp_path), task_with(one, two, three))
    assert names == ["one:héllo\n", "two:héllo\n", "three:héllo\n"]
    assert server.asked == [["two"], ["one", "three"]]
    await cache.fill("r", task_with(one, two, three))
    assert len(server.asked) == 2
    path = cache.path_of(WORKSPACE, "workspace", one.id, one.hash)
    expected = tmp_path / ".skill-cache/v1" / WORKSPACE / "workspace" / one.id
    assert path == expected / one.hash.replace(":", "_") / "bundle.json"
    assert codec.decode(path.read_bytes(), SkillBundle) == one
    assert path.stat().st_mode & 0o777 == 0o644


DAMAGES = {
    "empty": b"",
    "torn": b'{"id":"x',
    "no UTF-8": b'{"id":"\xff"}',
    "another document": b"[]",
    "a surrogate": b'{"id":"\\ud800","source":"workspace","hash":"x"}',
}


@pytest.mark.parametrize("damage", [*DAMAGES, "other content", "other skill", "a directory"])
async def test_a_damaged_file_is_fetched_again(tmp_path: Path, damage: str) -> None:
    good = bundle()
    server = Server(good)
    cache = cache_of(server, tmp_path)
    await cache.fill("r", task_with(good))
    path = cache.path_of(WORKSPACE, good.source, good.id, good.hash)
    match damage:
        case "other content":
            path.write_bytes(codec.encode(attrs.evolve(good, content="evil")))
        case "other skill":
            other = attrs.evolve(bundle("other"), id=good.id)
            path.write_bytes(codec.encode(attrs.evolve(other, hash=hash_of(other))))
        case "a directory":
            path.unlink()
            path.mkdir()
        case _:
            path.write_bytes(DAMAGES[damage])
    assert await names_of(cache, task_with(good)) == ["deploy:héllo\n"]
    assert len(server.asked) == 2
    if damage != "a directory":
        assert codec.decode(path.read_bytes(), SkillBundle) == good


async def test_a_newer_version_is_taken_and_kept_as_what_it_is(tmp_path: Path) -> None:
    old, new = bundle(), bundle(content="newer")
    server = Server(new)
    cache = cache_of(server, tmp_path)
    assert await names_of(cache, task_with(old)) == ["deploy:newer"]
    assert await names_of(cache, task_with(old)) == ["deploy:newer"]
    assert len(server.asked) == 2, "it is not the old one"
    assert await names_of(cache, task_with(new)) == ["deploy:newer"]
    assert len(server.asked) == 2


@pytest.mark.parametrize("wrong", ["hash", "path", "absent", "size"])
async def test_what_is_wrong_fails_the_task_and_is_not_kept(tmp_path: Path, wrong: str) -> None:
    good = bundle()
    bad = good
    if wrong == "hash":
        bad = attrs.evolve(good, content="evil")
    elif wrong == "size":
        bad = attrs.evolve(good, size_bytes=3)
    elif wrong == "path":
        files = {"../../x": "evil"}
        bad = make_bundle(skill_id=good.id, name="n", description="", content="", files=files)
    server = Server(*([] if wrong == "absent" else [bad]))
    with pytest.raises(PrepareError):
        await cache_of(server, tmp_path).fill("r", task_with(good))
    assert files_in(tmp_path) == []


async def test_trouble_on_the_way_is_tried_again_and_a_refusal_is_not(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    good = bundle()
    server = Server(good)
    server.faults = [Transient("POST", 503, "x"), Transient("POST", 0, "lost")]
    assert await names_of(cache_of(server, tmp_path), task_with(good)) == ["deploy:héllo\n"]
    server = Server(good)
    server.faults = [Rejected("POST", 409, "task is not preparing")]
    with pytest.raises(PrepareError, match="not preparing"):
        await cache_of(server, tmp_path / "b").fill("r", task_with(good))
    server.faults = [Transient("POST", 503, "x")] * bundles.ATTEMPTS
    with pytest.raises(PrepareError, match="503"):
        await cache_of(server, tmp_path / "c").fill("r", task_with(good))


async def test_a_disk_that_takes_nothing_costs_only_the_next_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    good = bundle()
    server = Server(good)
    monkeypatch.setattr(tempfile, "mkstemp", full)
    cache = cache_of(server, tmp_path)
    assert await names_of(cache, task_with(good)) == ["deploy:héllo\n"]
    assert await names_of(cache, task_with(good)) == ["deploy:héllo\n"]
    assert len(server.asked) == 2


async def test_old_versions_nobody_uses_go(tmp_path: Path) -> None:
    old, used, new = bundle(content="1"), bundle(content="2"), bundle(content="3")
    server = Server()
    cache = cache_of(server, tmp_path)
    ages = {old.hash: bundles.UNUSED + 60, used.hash: 60.0}
    for each in (old, used):
        server.have[each.id] = each
        await cache.fill("r", task_with(each))
        path = cache.path_of(WORKSPACE, each.source, each.id, each.hash)
        os.utime(path, times=(time.time() - ages[each.hash],) * 2)
    server.have[new.id] = new
    await cache.fill("r", task_with(new))
    kept = {codec.decode(path.read_bytes(), SkillBundle).hash for path in files_in(tmp_path)}
    assert kept == {used.hash, new.hash}


def test_odd_names_stay_inside(tmp_path: Path) -> None:
    cache = cache_of(Server(), tmp_path)
    for odd in ("..", ".", "", "a/b", "a\0b", "builtin:x", "ü"):
        path = cache.path_of(odd, odd, odd, odd)
        assert path.resolve().is_relative_to(tmp_path.resolve())
        assert len(path.relative_to(tmp_path).parts) == 7


async def test_without_references_nothing_is_asked(tmp_path: Path) -> None:
    server = Server()
    task = ClaimedTask(id="t", agent=TaskAgent())
    assert await cache_of(server, tmp_path).fill("r", task) is task
    assert server.asked == []


# -- in a task


def claimed(*wanted: SkillBundle) -> dict[str, Any]:
    refs = [codec.unstructure(ref_of(each)) for each in wanted]
    return {"agent": {"id": uid("agent"), "name": "A", "instructions": "", "skill_refs": refs}}


async def test_a_task_has_its_skills_on_disk_before_it_starts(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    one, two = bundle("one"), bundle("two")
    async with open_bench(tmp_path) as bench:
        bench.server.bundles = {each.id: codec.unstructure(each) for each in (one, two)}
        task = await bench.run(bench.add("first", **claimed(one, two)))
        assert task.status == COMPLETED
        skills = bench.agents.runs[0].cwd / ".claude/skills"
        assert sorted(path.name for path in skills.iterdir()) == ["one", "two"]
        assert (skills / "one/a/ü.md").read_text() == "a"
        assert "- one: d" in (bench.agents.runs[0].cwd / "CLAUDE.md").read_text()
        again = await bench.run(bench.add("second", **claimed(two, one)))
        assert again.status == COMPLETED
        assert bench.server.count(".*/skill-bundles/resolve") == 1


async def test_a_task_without_its_skills_fails(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        refused = answer(404, '{"error":"skill bundle not found"}')
        bench.server.fail_always(".*/skill-bundles/resolve", refused)
        task = await bench.run(bench.add(**claimed(bundle())))
        assert task.status == FAILED
        assert bench.agents.runs == []
        assert task.result is not None
        assert "skill bundle not found" in task.result["error"]
