"""Repositories within a task's directory: submodules are checked out, and nothing in any is lost."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from daemon.repos.checkouts import CheckedOut, Wanted, check_out
from daemon.repos.clones import Clones
from daemon.repos.git import Git, git_environment
from daemon.repos.keeping import Keeper
from daemon.repos.kept import Owner, bundles
from tests.support.git_repos import Remote, commit, git, make_remote, remove

pytestmark = pytest.mark.together

WS = "11111111-1111-4111-8111-111111111111"
TASK = "0a1b2c3d-0000-4000-8000-000000000001"
LOCAL = ("-c", "protocol.file.allow=always")


@attrs.frozen
class Bench:
    clones: Clones
    env_root: Path

    async def check_out(self, remote: Remote, *, submodules: bool = True) -> CheckedOut:
        clone = await self.clones.refresh(WS, remote.url)
        parent = self.env_root / "workdir"
        parent.mkdir(parents=True, exist_ok=True)
        wanted = Wanted(
            url=remote.url, ref="", parent=parent, agent_name="a", task_id=TASK,
            env_root=self.env_root, submodules=submodules,
        )  # fmt: skip
        async with self.clones.hold(clone):
            return await check_out(self.clones, clone, wanted)

    async def keep(self, *, at_last: bool) -> tuple[list[str], list[str]]:
        """Return what stands in the way of the directory's going, and what was kept of it."""
        saved: list[str] = []
        keeper = Keeper(self.clones, self.env_root, Owner(task_id=TASK, issue_id="i"), saved)
        return await keeper.keep(at_last=at_last), saved

    def bundles(self) -> list[Path]:
        return [each.place for each in bundles(self.clones.folder / WS)]


@asynccontextmanager
async def open_bench(tmp_path: Path) -> AsyncIterator[Bench]:
    config = tmp_path / "gitconfig"
    config.write_text('[protocol "file"]\n\tallow = always\n')
    env = {**os.environ, "GIT_CONFIG_GLOBAL": str(config)}
    async with trio.open_nursery() as work:
        work.cancel_scope.deadline = trio.current_time() + 60
        clones = Clones(Git(env=git_environment(env)), tmp_path / "root", work)
        yield Bench(clones, (tmp_path / "root" / WS / TASK).resolve())
        work.cancel_scope.cancel()
    assert work.cancel_scope.deadline > trio.current_time(), "took too long"


def _with_submodules(tmp_path: Path) -> Remote:
    """A repository with one submodule, which has one itself."""
    inner, sub = make_remote(tmp_path / "inner", "inner"), make_remote(tmp_path / "sub", "sub")
    git(sub.seed, *LOCAL, "submodule", "--quiet", "add", inner.url, "deep/inner")
    sub.push("a.txt", "a")
    remote = make_remote(tmp_path / "server", "super")
    git(remote.seed, *LOCAL, "submodule", "--quiet", "add", sub.url, "libs/sub")
    remote.push("two", "two")
    return remote


async def test_submodules_are_checked_out_recursively(tmp_path: Path) -> None:
    remote = _with_submodules(tmp_path)
    async with open_bench(tmp_path) as bench:
        done = await bench.check_out(remote)
        assert done.note == ""
        assert (done.path / "libs" / "sub" / "a.txt").read_text() == "a"
        assert (done.path / "libs/sub/deep/inner/README").read_text() == "one\n"
        assert git(done.path, "status", "--porcelain") == ""
        sub = done.path / "libs" / "sub"
        assert Path(git(sub, "rev-parse", "--absolute-git-dir")).is_relative_to(done.path)


async def test_submodules_can_be_left_out_or_fail_and_then_it_says_so(tmp_path: Path) -> None:
    remote = _with_submodules(tmp_path)
    async with open_bench(tmp_path) as bench:
        done = await bench.check_out(remote, submodules=False)
        assert list((done.path / "libs" / "sub").iterdir()) == []
        assert "submodules are not checked out" in done.note
        remove(done.path)
        remove(tmp_path / "sub")
        done = await bench.check_out(remote)
        assert (done.path / "two").read_text() == "two"
        assert "not all submodules are checked out" in done.note


async def test_commits_in_submodules_are_kept_as_bundles(tmp_path: Path) -> None:
    remote = _with_submodules(tmp_path)
    async with open_bench(tmp_path) as bench:
        tree = (await bench.check_out(remote)).path
        mine = {}
        for name in ("libs/sub", "libs/sub/deep/inner"):
            git(tree / name, "checkout", "-q", "-b", "mine")
            mine[name] = commit(tree / name, "mine.txt", name)
        (tree / "libs" / "sub" / "loose.txt").write_text("loose")
        unkept, saved = await bench.keep(at_last=False)
        assert len(unkept) == 2
        assert all("a repository of the agent's own has work" in text for text in unkept)
        unkept, saved = await bench.keep(at_last=True)
        assert unkept == []
        heads = "".join(
            git(tmp_path, "bundle", "list-heads", str(each)) for each in bench.bundles()
        )
        assert all(f"{each} refs/heads/mine" in heads for each in mine.values())
        assert "refs/bullpen/mine/" in heads, "files that were not committed"
        assert len([name for name in saved if name.endswith(".bundle")]) == 2


async def test_every_repository_whose_git_directory_goes_is_kept(tmp_path: Path) -> None:
    remote = make_remote(tmp_path / "server")
    async with open_bench(tmp_path) as bench:
        tree = (await bench.check_out(remote)).path
        work = tree.parent
        # branches and stashes of the checkout itself
        git(tree, "checkout", "-q", "-b", "side")
        side = commit(tree, "side.txt", "side")
        git(tree, "checkout", "-q", "-")
        linked = work / "linked"
        git(tree, "worktree", "add", "-q", "--detach", str(linked))
        (linked / "loose.txt").write_text("in a worktree of the checkout")
        # a repository of the agent's own with a worktree, one in it, a bare one
        own = work / "own"
        git(work, "init", "-q", "own")
        commit(own, "a", "a")
        git(own, "worktree", "add", "-q", "-b", "wt", str(work / "own-tree"))
        (work / "own-tree" / "b").write_text("b")
        git(own, "init", "-q", "nested")
        nested = commit(own / "nested", "n", "n")
        git(work, "clone", "-q", "--bare", str(own / "nested"), str(work / "bare.git"))
        git(work / "bare.git", "remote", "remove", "origin")
        bare = git(work / "bare.git", "rev-parse", "HEAD")
        # a clone of the checkout, which borrows as that does
        copied = work / "copy"
        git(work, "clone", "-q", "--shared", str(tree), str(copied))
        shared = commit(copied, "shared.txt", "shared")

        unkept, saved = await bench.keep(at_last=True)
        assert unkept == []
        [clone] = bench.clones.all()
        refs = git(clone, "for-each-ref", "--format=%(objectname) %(refname)", "refs/bullpen")
        assert f"{side} refs/bullpen/side/" in refs
        [loose] = [line.split(" ")[1] for line in refs.splitlines() if "/detached/" in line]
        assert git(clone, "show", f"{loose}:loose.txt") == "in a worktree of the checkout"
        heads = "".join(git(tree, "bundle", "list-heads", str(each)) for each in bench.bundles())
        for each in (nested, bare, shared):
            assert each in heads
        assert "refs/heads/wt" in heads
        assert "refs/bullpen/wt/" in heads
        assert saved


async def test_the_daemon_reads_for_nobody_what_is_elsewhere(tmp_path: Path) -> None:
    private = tmp_path / "private"
    git(tmp_path, "init", "-q", str(private))
    secret = commit(private, "secret", "s")
    async with open_bench(tmp_path) as bench:
        work = bench.env_root / "workdir"
        git(tmp_path, "init", "-q", str(work / "own"))
        own = work / "own" / ".git"
        (own / "objects" / "info" / "alternates").write_text(f"{private}/.git/objects\n")
        (own / "refs" / "heads" / "theirs").write_text(f"{secret}\n")
        git(tmp_path, "init", "-q", str(work / "linked"))
        packs = work / "linked" / ".git" / "objects" / "pack"
        packs.rmdir()
        packs.symlink_to(private / ".git" / "objects" / "pack")
        unkept, saved = await bench.keep(at_last=True)
        assert len(unkept) == 2
        assert saved == []
        assert bench.bundles() == []
