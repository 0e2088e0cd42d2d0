"""Reclaiming on a real disk with real repositories: what goes, what stays, and what is kept of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from daemon.client import GcCheck, Rejected, Transient
from daemon.config import Config
from daemon.disk_usage import scan
from daemon.repos.clones import Clones
from daemon.repos.git import Git, git_environment
from daemon.repos.worktrees import CheckedOut, Wanted, check_out
from daemon.upkeep import reclaim as reclaim_module
from daemon.upkeep.reclaim import Pass, Reclaim, remove_tree, run_reclaim
from daemon.workdir.prepare import LiveRoots
from shared import times
from tests.support.fake_server import make_config
from tests.support.git_repos import Remote, commit, git, make_remote, remove

pytestmark = pytest.mark.together

WS = "11111111-1111-4111-8111-111111111111"
HOUR = 3600.0
DONE = GcCheck(status="done", updated_at="2020-01-01T00:00:00Z")
OPEN = GcCheck(status="in_progress", updated_at="2020-01-01T00:00:00Z")


@attrs.define
class FakeClient:
    """Answers gc-checks by path; an exception is raised."""

    answers: dict[str, GcCheck | Exception] = attrs.field(factory=dict)
    asked: list[str] = attrs.field(factory=list)

    async def gc_check(self, path: str) -> GcCheck:
        self.asked.append(path)
        await trio.lowlevel.checkpoint()
        answer = self.answers.get(path, OPEN)
        if isinstance(answer, Exception):
            raise answer
        return answer


@attrs.frozen
class Bench:
    reclaim: Reclaim
    client: FakeClient
    clones: Clones
    live: LiveRoots
    config: Config
    remote: Remote

    @property
    def root(self) -> Path:
        return self.config.workspaces_root

    def env(self, name: str, meta: dict[str, Any] | None, *, hours: float = 0) -> Path:
        """Make a task's directory with a file in it, last changed some hours ago."""
        env_root = self.root / WS / name
        (env_root / "workdir").mkdir(parents=True)
        (env_root / "workdir" / "file").write_text("x" * 1000)
        if meta is not None:
            ended = "2020-01-01T00:00:00Z"
            told = {"workspace_id": WS, "completed_at": ended, **meta}
            (env_root / ".gc_meta.json").write_text(json.dumps(told))
        self.age(env_root, hours)
        return env_root

    def age(self, env_root: Path, hours: float) -> None:
        moment = time.time() - hours * HOUR
        for path in (*env_root.rglob("*"), env_root):
            os.utime(path, (moment, moment), follow_symlinks=False)

    async def check_out(self, env_root: Path) -> CheckedOut:
        clone = await self.clones.refresh(WS, self.remote.url)
        wanted = Wanted(
            url=self.remote.url, ref="", parent=env_root / "workdir", agent_name="demo",
            task_id=env_root.name,
        )  # fmt: skip
        async with self.clones.hold(clone):
            return await check_out(self.clones, clone, wanted)

    def saved(self) -> list[str]:
        [clone] = self.clones.all()
        return git(clone, "for-each-ref", "--format=%(refname)", "refs/bullpen").split()

    def there(self) -> list[str]:
        folder = self.root / WS
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    async def run(self) -> Pass:
        done = await self.reclaim.run_once()
        assert not (self.root / reclaim_module.TRASH).exists()
        return done


@asynccontextmanager
async def open_bench(tmp_path: Path, **changes: Any) -> AsyncIterator[Bench]:
    config = make_config(tmp_path / "home", **changes)
    client, live = FakeClient(), LiveRoots()
    async with trio.open_nursery() as work:
        work.cancel_scope.deadline = trio.current_time() + 60
        env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
        clones = Clones(Git(env=git_environment(env)), config.workspaces_root, work)
        reclaim = Reclaim(config, client, clones, live)  # type: ignore[arg-type]
        remote = make_remote(tmp_path / "server")
        yield Bench(reclaim, client, clones, live, config, remote)
        work.cancel_scope.cancel()
    assert work.cancel_scope.deadline > trio.current_time(), "took too long"


def issue(name: str) -> dict[str, Any]:
    return {"kind": "issue", "issue_id": name}


async def test_what_is_over_goes_and_the_rest_is_explained(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.client.answers = {
            "issues/done": DONE,
            "issues/broken": Transient("GET", 500, "no database"),
            "issues/hidden": Rejected("GET", 404, "issue not found"),
            "chat-sessions/gone": Rejected("GET", 404, "chat session not found"),
            "chat-sessions/hidden": Rejected("GET", 404, "not found"),
        }
        bench.env("a-done", issue("done"))
        bench.env("b-open", issue("open"))
        bench.env("c-broken", issue("broken"), hours=1000)
        bench.env("d-hidden", issue("hidden"))
        bench.env("e-gone", {"kind": "chat", "chat_session_id": "gone"})
        bench.env("f-hidden", {"kind": "chat", "chat_session_id": "hidden"})
        bench.env("g-nobody", None)
        bench.env("h-old", None, hours=100)
        bench.env("i-live", issue("done"))
        (bench.root / ".skill-cache" / "v1").mkdir(parents=True)
        os.utime(bench.root / ".skill-cache" / "v1", (1, 1))
        (bench.root / WS / "j-link").symlink_to(tmp_path)
        with bench.live.hold(bench.root / WS / "i-live"):
            done = await bench.run()
        assert bench.there() == [
            "b-open", "c-broken", "d-hidden", "f-hidden", "g-nobody", "i-live", "j-link"
        ]  # fmt: skip
        reasons = {Path(name).name: why for name, why in done.kept.items()}
        assert reasons["b-open"] == "its issue is in_progress"
        assert "no database" in reasons["c-broken"]
        assert "does not show" in reasons["d-hidden"]
        assert "does not show" in reasons["f-hidden"]
        assert reasons["i-live"] == "a task works in it"
        assert (bench.root / ".skill-cache" / "v1").exists()
        told = json.loads((bench.root / reclaim_module.REPORT).read_text())
        assert told["kept"] == done.kept


async def test_an_emptied_workspace_goes(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.client.answers = {"issues/done": DONE}
        bench.env("done", issue("done"))
        await bench.run()
        assert not (bench.root / WS).exists()


async def test_work_is_kept_before_its_directory_goes(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.client.answers = {"issues/done": DONE}
        env_root = bench.env("0a1b2c3d", issue("done"))
        tree = (await bench.check_out(env_root)).path
        mine = commit(tree, "done.txt", "committed")
        (tree / "new.txt").write_text("untracked")
        done = await bench.run()
        assert bench.there() == []
        [saved] = bench.saved()
        assert done.saved == [f"{bench.clones.all()[0].name} {saved}"]
        [clone] = bench.clones.all()
        assert git(clone, "show", f"{saved}:new.txt") == "untracked"
        assert git(clone, "rev-parse", f"{saved}^1") == mine
        # now that a ref keeps it, neither worktree nor branch is needed
        assert git(clone, "branch", "--list") == ""
        assert git(clone, "worktree", "list").count("\n") == 0
        [use] = scan(bench.root, ()).clones
        assert (use.saved_refs, use.worktrees, use.unpushed_branches) == (1, 0, [])


async def test_pushed_work_is_not_kept_twice(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.client.answers = {"issues/done": DONE}
        env_root = bench.env("0a1b2c3d", issue("done"))
        tree = (await bench.check_out(env_root)).path
        commit(tree, "done.txt", "committed")
        git(tree, "push", "-q")
        await bench.run()
        assert (bench.there(), bench.saved()) == ([], [])


async def test_what_cannot_be_kept_stays_until_the_users_limit(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.client.answers = {"issues/done": DONE}
        own = bench.env("own", issue("done"))
        git(own / "workdir", "init", "-q", "mine")
        commit(own / "workdir" / "mine", "a", "a")
        fine = bench.env("fine", issue("done"))
        git(fine / "workdir", "clone", "-q", bench.remote.url, "copy")
        broken = bench.env("broken", issue("done"))
        tree = (await bench.check_out(broken)).path
        (tree / ".git").write_text("gitdir: /nowhere/at/all\n")
        done = await bench.run()
        assert bench.there() == ["broken", "own"]
        reasons = {Path(name).name: why for name, why in done.kept.items()}
        assert "mine: a repository of the agent's own has work" in reasons["own"]
        assert "it goes in 2 d" in reasons["own"]
        assert "repository is gone" in reasons["broken"]
        for env_root in (own, broken):
            bench.age(env_root, 80)
        await bench.run()
        assert bench.there() == []


async def test_artifacts_go_where_no_repository_wants_them(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        env_root = bench.env("0a1b2c3d", issue("open"))
        work = env_root / "workdir"
        tree = (await bench.check_out(env_root)).path
        outside = tmp_path / "outside"
        (outside / "node_modules").mkdir(parents=True)
        for place in (work / "site", tree, tree / "deep", tree / "tracked"):
            (place / "node_modules" / "x").mkdir(parents=True)
            (place / "node_modules" / "x" / "file").write_text("y" * 100)
        (work / "site" / ".git").mkdir()
        (work / "site" / ".git" / "node_modules").mkdir()
        git(tree, "add", "-f", "tracked/node_modules/x/file")
        (tree / ".next").mkdir()  # not ignored by this repository
        (work / "link").symlink_to(outside)
        (work / "dist").mkdir()
        (work / "dist" / "node_modules").symlink_to(outside / "node_modules")
        remove(work / "site" / ".git")
        done = await bench.run()
        assert done.artifacts == 3
        left = {str(path.relative_to(work)) for path in work.rglob("node_modules")}
        assert left == {"app/tracked/node_modules", "dist/node_modules"}
        assert (tree / ".next").is_dir()
        assert (outside / "node_modules").is_dir()
        assert (work / "file").exists()


async def test_a_task_that_comes_during_a_removal_gets_the_directory(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.client.answers = {"issues/done": DONE}
        env_root = bench.env("0a1b2c3d", issue("done"))
        tree = (await bench.check_out(env_root)).path
        (tree / "README").write_text("edited")
        began = trio.Event()
        real = reclaim_module.snapshots.save

        async def save(*args: Any) -> str:
            began.set()
            await trio.sleep_forever()
            return await real(*args)

        reclaim_module.snapshots.save = save
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.run)
                await began.wait()
                await bench.live.claim(env_root)
                with bench.live.hold(env_root):
                    assert (tree / "README").read_text() == "edited"
        finally:
            reclaim_module.snapshots.save = real
        assert bench.there() == ["0a1b2c3d"]


async def test_a_task_that_worked_there_meanwhile_changes_everything(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        env_root = bench.env("0a1b2c3d", issue("done"))

        class Late(FakeClient):
            async def gc_check(self, path: str) -> GcCheck:
                told = {"kind": "issue", "issue_id": "done", "workspace_id": WS}
                ended = {"completed_at": times.fine_stamp(times.now())}
                (env_root / ".gc_meta.json").write_text(json.dumps({**told, **ended}))
                await trio.lowlevel.checkpoint()
                return DONE

        reclaim = Reclaim(bench.config, Late(), bench.clones, bench.live)  # type: ignore[arg-type]
        done = await reclaim.run_once()
        assert list(done.kept.values()) == ["a task has just worked in it"]
        assert bench.there() == ["0a1b2c3d"]


async def test_the_loop_can_be_switched_off(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        # `gc_enabled` is off in tests' configurations: it returns instead of looping
        await run_reclaim(bench.config, bench.client, bench.clones, bench.live)  # type: ignore[arg-type]
        assert bench.client.asked == []


def test_read_only_trees_go(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_text("x")
    (tree / "a" / "b").chmod(0o555)
    (tree / "a").chmod(0o555)
    remove_tree(tree)
    assert not tree.exists()


async def test_a_clone_with_many_packs_is_tidied_without_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_bench(tmp_path) as bench:
        clone = await bench.clones.refresh(WS, bench.remote.url)
        monkeypatch.setattr("daemon.repos.clones._LOOSE", -1)
        async with bench.clones.hold(clone):
            await bench.clones.tidy(clone)
        assert len(list((clone / "objects" / "pack").glob("*.pack"))) == 1
        assert (await bench.check_out(bench.env("x", None))).path.is_dir()
