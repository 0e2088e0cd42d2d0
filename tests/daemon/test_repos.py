"""Checkouts on real repositories: what agents get, and that nothing they made is ever lost."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
import trio

from daemon.repos import git as git_module
from daemon.repos import hooks, snapshots
from daemon.repos.checkouts import CheckedOut, Wanted, check_out, lender_of
from daemon.repos.clones import Clones
from daemon.repos.git import Git, GitError, git_environment
from daemon.repos.mirror import Mirror, open_mirror
from daemon.repos.places import place_of
from tests.support.git_repos import Remote, commit, copy, git, make_remote, remove, unpack

pytestmark = pytest.mark.together

WORKSPACE = "ws"
TASK = "0a1b2c3d-0000-4000-8000-00000a1b2c3d"
OTHER = "99999999-0000-4000-8000-000000000002"
BRANCH = "agent/demo-one/0a1b2c3d"


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return make_remote(tmp_path / "server")


@attrs.frozen
class Bench:
    clones: Clones
    remote: Remote
    work: Path

    async def clone(self) -> Path:
        return await self.clones.refresh(WORKSPACE, self.remote.url)

    async def check_out(self, ref: str = "", *, task: str = TASK, place: str = "") -> CheckedOut:
        clone = await self.clone()
        parent = self.work / place
        parent.mkdir(parents=True, exist_ok=True)
        wanted = Wanted(
            url=self.remote.url, ref=ref, parent=parent, agent_name="Demo One!", task_id=task,
            env_root=self.work,
        )  # fmt: skip
        async with self.clones.hold(clone):
            return await check_out(self.clones, clone, wanted)

    async def old_worktree(self, place: str, branch: str) -> Path:
        """What versions before this one made: a worktree of the clone."""
        clone = await self.clone()
        tree = self.work / place / "app"
        words = ("worktree", "add", "-q", "--no-track", "-b", branch, str(tree), "origin/main")
        git(clone, *words)
        return tree

    @asynccontextmanager
    async def mirror(self, tree: Path, git: Git | None = None) -> AsyncIterator[Mirror]:
        place = place_of(tree)
        assert place is not None
        [clone] = self.clones.all()
        lender = lender_of(self.clones, place)
        made = open_mirror(git or self.clones.git, place, clone.parent, lender=lender)
        async with made as mirror:
            yield mirror

    async def save(self, tree: Path, git: Git | None = None) -> str:
        [clone] = self.clones.all()
        async with self.mirror(tree, git) as mirror:
            return (await snapshots.save(mirror, clone))[0]

    def saved(self) -> list[str]:
        [clone] = self.clones.all()
        return git(clone, "for-each-ref", "--format=%(refname)", "refs/bullpen").split()


@asynccontextmanager
async def open_bench(tmp_path: Path, remote: Remote) -> AsyncIterator[Bench]:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    async with trio.open_nursery() as work:
        work.cancel_scope.deadline = trio.current_time() + 60
        clones = Clones(Git(env=git_environment(env)), tmp_path / "root", work)
        yield Bench(clones, remote, tmp_path / "work")
        work.cancel_scope.cancel()
    assert work.cancel_scope.deadline > trio.current_time(), "took too long"
    assert len(clones.locks) == 0, "a lock was left behind"


async def test_a_checkout_is_a_worktree_on_a_branch_of_its_own(
    tmp_path: Path, remote: Remote
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        done = await bench.check_out()
        assert done == CheckedOut(path=bench.work / "app", branch=BRANCH)
        assert (done.path / "README").read_text() == "one\n"
        assert git(done.path, "status", "--porcelain", "--branch") == f"## {BRANCH}"
        [clone] = bench.clones.all()
        assert clone.parent == tmp_path / "root" / ".repos" / WORKSPACE
        assert git(clone, "for-each-ref", "refs/heads") == "", "nothing of an agent's is there"
        assert git(done.path, "for-each-ref", "--format=%(refname)", "refs/heads") == (
            f"refs/heads/{BRANCH}"
        ), "the server's branches must not be heads here"
        git_dir = done.path / ".git"
        assert git_dir.is_dir()
        assert not [path for path in (git_dir / "objects").rglob("*") if path.suffix == ".pack"]


async def test_an_agent_pushes_without_saying_where_to(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        done = await bench.check_out()
        commit(done.path, "new.txt", "x")
        git(done.path, "push", "-q")
        assert BRANCH in remote.branches()
        async with bench.mirror(done.path) as mirror:
            assert (await snapshots.look(mirror)).ahead == 0


async def test_what_was_pushed_meanwhile_is_fetched(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        await bench.check_out()
        second = remote.push("README", "two\n")
        done = await bench.check_out(task=OTHER, place="other")
        assert git(done.path, "rev-parse", "HEAD") == second
        again = await bench.check_out()  # a clean worktree that is behind comes along
        assert git(again.path, "rev-parse", "HEAD") == second
        assert again.branch == BRANCH
        assert bench.saved() == []


async def test_a_changed_default_branch_is_noticed(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        await bench.check_out()
        tip = remote.push("README", "trunk\n", "trunk")
        git(remote.path, "symbolic-ref", "HEAD", "refs/heads/trunk")
        done = await bench.check_out(task=OTHER, place="other")
        assert git(done.path, "rev-parse", "HEAD") == tip


@pytest.mark.parametrize("kind", ["branch", "tag", "commit", "pull"])
async def test_refs(tmp_path: Path, remote: Remote, kind: str) -> None:
    tip = remote.push("README", "dev\n", "dev/x")
    names = {"branch": "dev/x", "tag": "v1", "commit": tip, "pull": "refs/pull/1/head"}
    async with open_bench(tmp_path, remote) as bench:
        await bench.clone()
        git(remote.path, "tag", "v1", tip)
        git(remote.path, "update-ref", "refs/pull/1/head", tip)
        done = await bench.check_out(names[kind])
        assert git(done.path, "rev-parse", "HEAD") == tip
        assert done.branch == BRANCH


@pytest.mark.parametrize("ref", ["nowhere", "--upload-pack=x", "-b", "deadbeef"])
async def test_a_ref_there_is_not(tmp_path: Path, remote: Remote, ref: str) -> None:
    async with open_bench(tmp_path, remote) as bench:
        with pytest.raises(GitError, match="no branch, tag or commit"):
            await bench.check_out(ref)
        assert list(bench.work.iterdir()) == []
        [clone] = bench.clones.all()
        assert git(clone, "branch", "--list") == "", "no branch may leak"


async def test_repositories_one_cannot_start_from(tmp_path: Path) -> None:
    empty = tmp_path / "server" / "empty.git"
    git(tmp_path, "init", "-q", "--bare", str(empty))
    async with open_bench(tmp_path, Remote(empty, empty)) as bench:
        with pytest.raises(GitError, match="empty"):
            await bench.check_out()
    async with open_bench(tmp_path, Remote(tmp_path / "missing", empty)) as bench:
        with pytest.raises(GitError, match="does not appear to be a git repository"):
            await bench.check_out()
        assert not list((tmp_path / "root" / ".repos").glob("*/*missing*"))


async def test_what_is_in_the_way_is_left_alone(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        mine = bench.work / "app"
        mine.mkdir(parents=True)
        (mine / "file").write_text("mine")
        with pytest.raises(GitError, match="in the way"):
            await bench.check_out()
        assert (mine / "file").read_text() == "mine"
        [clone] = bench.clones.all()
        assert git(clone, "branch", "--list") == ""


async def test_two_repositories_of_one_name_stand_side_by_side(
    tmp_path: Path, remote: Remote
) -> None:
    twin = make_remote(tmp_path / "elsewhere")
    async with open_bench(tmp_path, remote) as bench:
        await bench.check_out()
        other = await attrs.evolve(bench, remote=twin).check_out()
        assert other.path == bench.work / "app-2"
        assert (await attrs.evolve(bench, remote=twin).check_out()).path == other.path


# -- nothing is lost


async def test_a_repeated_checkout_leaves_work_where_it_is_and_keeps_a_copy(
    tmp_path: Path, remote: Remote
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        mine = commit(tree, "done.txt", "committed")
        (tree / "README").write_text("edited")
        (tree / "new.txt").write_text("untracked")
        (tree / "ignored.txt").write_text("ignored")
        remote.push("README", "two\n")

        again = await bench.check_out()
        assert (again.path, again.branch) == (tree, BRANCH)
        assert "left as it is" in again.note
        assert git(tree, "rev-parse", "HEAD") == mine
        assert (tree / "README").read_text() == "edited"
        assert (tree / "new.txt").read_text() == "untracked"
        assert git(tree, "status", "--porcelain") == " M README\n?? new.txt"
        assert bench.saved() == [again.saved]
        assert git(tree, "show", f"{again.saved}:new.txt") == "untracked"

        # the same work once more is kept once; a task of the same issue finds it, too
        assert (await bench.check_out()).saved == again.saved
        assert (await bench.check_out(task=OTHER)).branch == BRANCH
        assert bench.saved() == [again.saved]


async def test_another_start_keeps_everything_first(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        mine = commit(tree, "done.txt", "committed")
        (tree / "README").write_text("staged")
        git(tree, "add", "README")
        (tree / "README").write_text("edited")
        (tree / "folder").mkdir()
        (tree / "folder" / "new.txt").write_text("untracked")
        (tree / "ignored.txt").write_text("ignored")

        again = await bench.check_out("main")
        assert again.branch == f"{BRANCH}-2", "the branch with commits of its own stays"
        assert git(tree, "status", "--porcelain") == ""
        assert not (tree / "done.txt").exists()
        assert (tree / "ignored.txt").read_text() == "ignored"
        assert git(tree, "rev-parse", BRANCH) == mine

        git(tree, "checkout", "-q", BRANCH)
        git(tree, "stash", "apply", "--index", again.saved)
        assert (tree / "README").read_text() == "edited"
        assert git(tree, "show", ":README") == "staged"
        assert (tree / "folder" / "new.txt").read_text() == "untracked"


async def test_commits_off_any_branch_are_kept(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        git(tree, "checkout", "-q", "--detach")
        mine = commit(tree, "done.txt", "committed")
        again = await bench.check_out("main")
        assert git(tree, "rev-parse", again.saved) == mine
        assert again.saved.startswith("refs/bullpen/detached/")
        assert again.branch == BRANCH
        # and one comes back to it by its name
        back = await bench.check_out(again.saved, task=OTHER)
        assert git(back.path, "rev-parse", "HEAD") == mine


async def test_a_merge_with_conflicts_is_kept(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        commit(tree, "README", "mine\n")
        remote.push("README", "theirs\n")
        git(tree, "fetch", "-q")
        git(tree, "merge", "-q", "origin/main", check=False)
        assert "<<<<<<<" in (tree / "README").read_text()
        again = await bench.check_out("main")
        assert (tree / "README").read_text() == "theirs\n"
        assert "<<<<<<<" in git(tree, "show", f"{again.saved}:README")


async def test_an_ignored_file_is_not_overwritten(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        (tree / "ignored.txt").write_text("only copy")
        (tree / "README").write_text("edited")
        git(remote.seed, "checkout", "-q", "main")
        (remote.seed / "ignored.txt").write_text("theirs")
        git(remote.seed, "add", "-f", "ignored.txt")
        git(remote.seed, "commit", "-q", "-m", "Track it")
        git(remote.seed, "push", "-q", "origin", "main")
        with pytest.raises(GitError, match="kept as refs/bullpen/"):
            await bench.check_out("main")
        assert (tree / "ignored.txt").read_text() == "only copy"
        assert git(tree, "show", f"{bench.saved()[0]}:README") == "edited"


async def test_what_cannot_be_kept_is_not_touched(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        (tree / "README").write_text("edited")
        git(tree, "init", "-q", "inner")  # without a commit git can keep nothing of it
        with pytest.raises(GitError):
            await bench.check_out("main")
        assert (tree / "README").read_text() == "edited"


async def test_a_task_whose_checkout_was_removed_starts_anew(
    tmp_path: Path, remote: Remote
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        remove(tree)
        assert (await bench.check_out()).branch == BRANCH
        assert (tree / "README").read_text() == "one\n"


async def test_a_second_place_gets_a_branch_beside_the_first(
    tmp_path: Path, remote: Remote
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        await bench.check_out()
        assert (await bench.check_out(place="two")).branch == f"{BRANCH}-2"
        assert (await bench.check_out(place="three")).branch == f"{BRANCH}-3"


# -- together and cut short


async def test_two_checkouts_of_a_new_repository_at_once(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        found: list[CheckedOut] = []

        async def one(number: int) -> None:
            task = f"{number}{TASK[1:]}"
            found.append(await bench.check_out(task=task, place=f"at{number}"))

        async with trio.open_nursery() as both:
            for number in range(4):
                both.start_soon(one, number)
        assert len({done.branch for done in found}) == 4
        assert all((done.path / "README").exists() for done in found)
        assert len(bench.clones.all()) == 1


def _slow_git(tmp_path: Path, word: str, *, after: bool = False) -> dict[str, str]:
    """A `git` that waits before (or after) `word` for a file called `go` and notes its runs."""
    folder = tmp_path / "slow"
    folder.mkdir()
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True)
    script = folder / "git"
    first = f'{real.stdout.strip()} "$@"' if after else ":"
    script.write_text(
        f"""#!/bin/sh
case " $* " in *" {word} "*)
  {first}
  echo run >> {folder}/runs
  while [ ! -e {folder}/go ]; do sleep 0.05; done ;;
esac
exec {real.stdout.strip()} "$@"
"""
    )
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


async def _until(condition: Any) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - another process makes it true
            await trio.sleep(0.02)


async def test_who_comes_during_a_fetch_shares_it_and_nobody_holds_the_lock(
    tmp_path: Path, remote: Remote
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        clone = await bench.clone()
    slow = Git(env=git_environment(_slow_git(tmp_path, "fetch")))
    runs = tmp_path / "slow" / "runs"
    async with open_bench(tmp_path, remote) as bench:
        bench.clones.git = slow
        async with trio.open_nursery() as several:
            for number in range(3):
                task = f"{number}{TASK[1:]}"
                several.start_soon(lambda t=task, n=number: bench.check_out(task=t, place=f"a{n}"))
            await _until(runs.exists)
            with trio.fail_after(1):
                async with bench.clones.hold(clone):  # a fetch must not keep anybody out
                    pass
            (tmp_path / "slow" / "go").touch()
    assert runs.read_text().splitlines() == ["run"]


async def test_a_fetch_goes_on_when_who_asked_leaves(tmp_path: Path, remote: Remote) -> None:
    slow = Git(env=git_environment(_slow_git(tmp_path, "fetch")))
    runs = tmp_path / "slow" / "runs"
    async with open_bench(tmp_path, remote) as bench:
        bench.clones.git = slow
        async with trio.open_nursery() as asker:
            asker.start_soon(bench.check_out)
            await _until(runs.exists)
            asker.cancel_scope.cancel()
        (tmp_path / "slow" / "go").touch()
        await bench.check_out()
    assert runs.read_text().splitlines()[0] == "run"
    assert len(runs.read_text().splitlines()) == 1, "the clone was begun again"


@pytest.mark.parametrize("after", [False, True])
async def test_a_cancelled_checkout_leaves_nothing_half_done(
    tmp_path: Path, remote: Remote, after: bool
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        clone = await bench.clone()
        real = bench.clones.git
        bench.clones.git = Git(env=git_environment(_slow_git(tmp_path, "read-tree", after=after)))
        async with trio.open_nursery() as asker:
            asker.start_soon(bench.check_out)
            await _until((tmp_path / "slow" / "runs").exists)
            asker.cancel_scope.cancel()
        assert not (bench.work / "app").exists()
        assert list(clone.parent.iterdir()) == [clone]
        assert len(bench.clones.locks) == 0
        bench.clones.git = real
        assert (await bench.check_out()).branch == BRANCH


async def test_a_daemon_killed_while_cloning_is_no_obstacle(tmp_path: Path, remote: Remote) -> None:
    slow = Git(env=git_environment(_slow_git(tmp_path, "fetch")))
    async with open_bench(tmp_path, remote) as bench:
        bench.clones.git = slow
        async with trio.open_nursery() as asker:
            asker.start_soon(bench.check_out)
            await _until((tmp_path / "slow" / "runs").exists)
            left = next((tmp_path / "root" / ".repos" / WORKSPACE).glob(".*.new"))
            half = copy(left, left.with_name(".copy.new"))
            (tmp_path / "slow" / "go").touch()
            asker.cancel_scope.cancel()
    async with open_bench(tmp_path, remote) as bench:
        assert (await bench.check_out()).branch == BRANCH
        bench.clones.remove_unfinished()
        assert half in set(half.parent.iterdir()), "somebody may still be at it"
        os.utime(half, (1, 1))
        bench.clones.remove_unfinished()
        assert half not in set(half.parent.iterdir())


async def test_a_command_that_is_cut_leaves_no_process(tmp_path: Path, remote: Remote) -> None:
    env = _slow_git(tmp_path, "fetch")
    slow = Git(env=git_environment(env))
    async with open_bench(tmp_path, remote) as bench:
        clone = await bench.clone()
        with pytest.raises(GitError, match=r"git fetch took longer than 0\.3 s"):
            await slow.clone(clone, "fetch", "origin", deadline=0.3, guarded=True)
    me = psutil.Process()
    left = [p for p in me.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    assert left == []


async def test_no_pipe_stays_open_when_a_command_outlives_its_shield(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_module, "_BURY", 0.0)
    monkeypatch.setattr(git_module, "_ASK", 0.0)
    children = []
    start = git_module._start

    async def started(*args: Any, **more: Any) -> Any:
        children.append(await start(*args, **more))
        return children[-1]

    monkeypatch.setattr(git_module, "_start", started)
    with pytest.raises(GitError, match="took longer"):
        await Git(env=dict(os.environ)).at(
            tmp_path, "-c", "alias.wait=!sleep 20", "wait", tree=tmp_path, deadline=0.1
        )
    [child] = children
    streams = (child.process.stdin, child.process.stdout, child.process.stderr)
    assert [stream.fileno() for stream in streams] == [-1, -1, -1]
    with trio.fail_after(5):
        await child.process.wait()


async def test_a_lock_file_of_a_killed_git_goes_when_it_is_old(
    tmp_path: Path, remote: Remote
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        [clone] = bench.clones.all()
        tip = remote.push("README", "two\n")
        locks = [clone / "refs/remotes/origin/main.lock", clone / "config.lock"]
        locks.append(clone / "worktrees" / "app" / "index.lock")
        for lock in locks:
            lock.parent.mkdir(parents=True, exist_ok=True)
            lock.touch()
            os.utime(lock, (time.time() - 3600,) * 2)
        again = await bench.check_out()
        assert git(again.path, "rev-parse", "HEAD") == tip
        assert tree == again.path


async def test_a_damaged_clone_is_made_anew_and_kept_and_its_checkouts_go_on(
    tmp_path: Path, remote: Remote, error_log: Any
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        (tree / "README").write_text("edited")
        [clone] = bench.clones.all()
        (clone / "HEAD").unlink()
        again = await bench.check_out()
        error_log.expect("clone is damaged")
        assert again.path == tree
        assert (tree / "README").read_text() == "edited"
        assert git(tree, "log", "--format=%s") == "Change README"
        assert git(tree, "show", f"{again.saved}:README") == "edited"
        assert [path.name for path in bench.clones.all()] == [clone.name]
        assert len(list(clone.parent.glob("*.damaged-*"))) == 1


async def test_a_checkout_that_lost_its_repository_is_moved_aside(
    tmp_path: Path, remote: Remote
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        (tree / "README").write_text("edited")
        (tree / ".git" / "HEAD").unlink()
        again = await bench.check_out()
        assert (again.path / "README").read_text() == "one\n"
        assert again.path == tree
        [aside] = bench.work.glob("app.kept-*")
        assert (aside / "README").read_text() == "edited"
        assert str(aside) in again.note


async def test_a_clone_that_lost_its_objects_gets_them_again(
    tmp_path: Path, remote: Remote
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        clone = await bench.clone()
        for path in (clone / "objects").rglob("*"):
            if path.is_file():
                path.unlink()
        assert (await bench.check_out()).branch == BRANCH


async def test_a_clone_that_lost_some_objects_is_made_anew(
    tmp_path: Path, remote: Remote, error_log: Any
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        clone = await bench.clone()
        unpack(clone)
        tree = git(clone, "rev-parse", "origin/main^{tree}")
        (clone / "objects" / tree[:2] / tree[2:]).unlink()
        with pytest.raises(GitError) as raised:
            await bench.check_out()
        assert raised.value.code is not None, "the desk would not look at the clone"
        await bench.clones.refresh(WORKSPACE, remote.url, suspect=True)
        error_log.expect("clone is damaged")
        assert (await bench.check_out()).branch == BRANCH


async def test_without_the_server_an_old_clone_is_good_enough(
    tmp_path: Path, remote: Remote
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        await bench.clone()
        remote.path.rename(tmp_path / "away")
        assert (await bench.check_out()).branch == BRANCH


# -- hooks and excludes


async def test_the_co_author_is_named_once_while_the_workspace_wants_it(
    tmp_path: Path, remote: Remote
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        hooks.arrange(tree, co_author=True)
        commit(tree, "a.txt", "a", "One")
        git(tree, "commit", "-q", "--amend", "--no-edit")
        assert git(tree, "log", "-1", "--format=%B").count(hooks.CO_AUTHOR) == 1
        hooks.arrange(tree, co_author=False)
        commit(tree, "b.txt", "b", "Two")
        assert hooks.CO_AUTHOR not in git(tree, "log", "-1", "--format=%B")

        hook = tree / ".git" / "hooks" / "prepare-commit-msg"
        hook.write_text("#!/bin/sh\n# mine\n")
        for wanted in (True, False):
            hooks.arrange(tree, co_author=wanted)
            assert "# mine" in hook.read_text()


async def test_our_files_are_not_offered_for_a_commit(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        for _ in range(2):
            hooks.arrange(tree, co_author=False)
        (tree / ".agent_context").mkdir()
        (tree / ".agent_context" / "x").write_text("x")
        (tree / "CLAUDE.md").write_text("work like any other")
        assert git(tree, "status", "--porcelain") == "?? CLAUDE.md"
        assert (tree / ".git" / "info" / "exclude").read_text().count(".agent_context") == 1


# -- upkeep


async def test_branches_go_only_when_their_commits_are_elsewhere(
    tmp_path: Path, remote: Remote
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        pushed = await bench.old_worktree("pushed", "agent/demo/0a1b2c3d")
        commit(pushed, "a.txt", "a")
        git(pushed, "push", "-q")
        lost = await bench.old_worktree("lost", "agent/demo/99999999")
        commit(lost, "b.txt", "b")
        await bench.old_worktree("used", "agent/demo/5a1b2c3d")
        git(pushed, "checkout", "-q", "--detach")
        stray = commit(pushed, "c.txt", "c")
        for tree in (pushed, lost):
            remove(tree)
        [clone] = bench.clones.all()
        [kept] = await bench.clones.prune(clone)
        assert kept.startswith("refs/bullpen/agent/demo/99999999/")
        heads = git(clone, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()
        assert sorted(heads) == ["agent/demo/5a1b2c3d", "agent/demo/99999999"]
        assert stray in {git(clone, "rev-parse", ref) for ref in bench.saved()}
        assert await bench.clones.prune(clone) == [], "nothing is kept twice"
        heads = git(clone, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()
        assert heads == ["agent/demo/5a1b2c3d"], "a ref keeps what the branch had"


async def test_hooks_of_the_repository_do_not_run_for_the_daemon(
    tmp_path: Path, remote: Remote
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        clone = await bench.clone()
        hook = clone / "hooks" / "post-checkout"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        hook.chmod(0o755)
        await bench.check_out()
        assert not (tmp_path / "ran").exists()


@attrs.frozen
class Trap:
    """A command for git's configuration that leaves a trace when it is run."""

    folder: Path

    def command(self, name: str, does: str = "cat") -> str:
        script = self.folder / f"{name}.sh"
        script.write_text(f"#!/bin/sh\ntouch '{self.folder}/{name}.ran'\nexec {does}\n")
        script.chmod(0o755)
        return str(script)

    def sprung(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.ran"))


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    (tmp_path / "trap").mkdir()
    return Trap(tmp_path / "trap")


def _set_traps(tree: Path, trap: Trap) -> None:
    """What an agent can write into a repository so that another's git runs it."""
    for key, does in (
        ("filter.evil.clean", "cat"),
        ("filter.evil.smudge", "cat"),
        ("filter.late.process", "false"),
        ("core.fsmonitor", "true"),
        ("core.sshCommand", "false"),
        ("core.hooksPath", "false"),
        ("diff.external", "true"),
        ("core.pager", "cat"),
        ("core.editor", "true"),
    ):
        git(tree, "config", key, trap.command(key, does))
    (tree / ".gitattributes").write_text("*.txt filter=evil\n*.late filter=late\n")
    (tree / "a.txt").write_text("a")
    (tree / "b.late").write_text("b")


async def test_nothing_that_an_agent_configures_runs_for_the_daemon(
    tmp_path: Path, remote: Remote, trap: Trap
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        _set_traps(tree, trap)
        sub = tree / "sub"
        git(tree, "init", "-q", "sub")
        commit(sub, "f", "f")
        git(tree, "-c", "core.fsmonitor=false", "add", "sub")
        git(sub, "config", "filter.sub.clean", trap.command("sub"))
        (sub / ".git" / "info" / "attributes").write_text("f filter=sub\n")
        (sub / "f").write_text("g")
        for file in trap.folder.glob("*.ran"):
            file.unlink()
        saved = await bench.save(tree)
        [clone] = bench.clones.all()
        assert git(clone, "show", f"{saved}:a.txt") == "a"
        assert git(clone, "show", f"{saved}:b.late") == "b"
        assert trap.sprung() == []
        await bench.check_out("main")
        await bench.check_out(task=OTHER, place="other")
        assert trap.sprung() == []


async def test_filters_of_the_user_do_run(tmp_path: Path, remote: Remote, trap: Trap) -> None:
    (tmp_path / "global").write_text(
        f'[filter "mine"]\n\tclean = {trap.command("mine", "tr a-z A-Z")}\n'
    )
    env = git_environment({**os.environ, "GIT_CONFIG_GLOBAL": str(tmp_path / "global")})
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        git(tree, "config", "filter.mine.clean", trap.command("theirs"))
        (tree / ".gitattributes").write_text("*.txt filter=mine\n")
        (tree / "a.txt").write_text("loud")
        saved = await bench.save(tree, Git(env=env))
        [clone] = bench.clones.all()
        assert git(clone, "show", f"{saved}:a.txt") == "LOUD"
        assert trap.sprung() == ["mine"]


async def test_a_clone_fetches_from_where_it_should_whatever_agents_set(
    tmp_path: Path, remote: Remote, trap: Trap
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        evil = make_remote(tmp_path / "evil")
        wrong = evil.push("evil", "evil")
        git(tree, "config", f"url.{evil.url}.insteadOf", remote.url)
        git(tree, "config", "remote.origin.uploadpack", trap.command("pack", "git-upload-pack"))
        git(tree, "config", "protocol.ext.allow", "always")
        git(tree, "config", "credential.helper", f"!{trap.command('helper')}")
        extra = tmp_path / "more"
        extra.write_text(f'[url "{evil.url}"]\n\tinsteadOf = {remote.url}\n')
        git(tree, "config", "include.path", str(extra))
        git(tree, "config", "user.name", "the agent's own")
        right = remote.push("right", "right")
        clone = await bench.clone()
        assert git(clone, "rev-parse", "refs/remotes/origin/main") == right != wrong
        assert trap.sprung() == []
        assert git(tree, "config", "user.name") == "the agent's own"


@pytest.mark.parametrize(
    "ref", ["+refs/heads/main:refs/bullpen/agent/x/1", "main:refs/heads/agent/x", "^main", "a..b"]
)
async def test_a_ref_is_no_refspec(tmp_path: Path, remote: Remote, ref: str) -> None:
    async with open_bench(tmp_path, remote) as bench:
        clone = await bench.clone()
        before = git(clone, "for-each-ref")
        with pytest.raises(GitError, match=r"branch, tag or commit"):
            await bench.check_out(ref)
        assert git(clone, "for-each-ref") == before


async def test_a_repository_elsewhere_is_not_looked_into(tmp_path: Path, remote: Remote) -> None:
    home = tmp_path / "private"
    home.mkdir()
    (home / "secret").write_text("s")
    async with open_bench(tmp_path, remote) as bench:
        own = tmp_path / "own"
        git(tmp_path, "init", "-q", str(own))
        git(own, "config", "core.worktree", str(home))
        (own / "mine").write_text("m")
        place = place_of(own)
        assert place is not None
        async with open_mirror(bench.clones.git, place, tmp_path) as mirror:
            saved, _ = await snapshots.save(mirror, mirror.dir)
            listed = await mirror.run("ls-tree", "-r", "--name-only", saved)
        assert listed.split() == ["mine"]


async def test_clones_are_their_owners_alone(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        await bench.clone()
        assert bench.clones.folder.stat().st_mode & 0o077 == 0


async def test_addresses_that_run_commands_are_refused(tmp_path: Path, remote: Remote) -> None:
    async with open_bench(tmp_path, remote) as bench:
        for url in (f"ext::sh -c 'touch {tmp_path}/ran'", "--upload-pack=x", "a\nb", "fd::3"):
            with pytest.raises(GitError):
                await bench.clones.refresh(WORKSPACE, url)
        assert not (tmp_path / "ran").exists()
