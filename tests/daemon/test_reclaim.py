"""Reclaiming on a real disk with real repositories: what goes, what stays, and what is kept of it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from daemon.cli.root import run as run_command
from daemon.cli.settings import Settings
from daemon.client import Foreign, GcCheck, Rejected, Transient
from daemon.config import Config
from daemon.disk_usage import scan
from daemon.repos import clones as clones_module
from daemon.repos import keeping
from daemon.repos.checkouts import CheckedOut, Wanted, check_out
from daemon.repos.clones import Clones
from daemon.repos.git import Git, git_environment
from daemon.repos.kept import Owner, bundles, kept_for_issue, list_kept
from daemon.upkeep import reclaim as reclaim_module
from daemon.upkeep.reclaim import Pass, Reclaim, remove_tree, run_reclaim
from daemon.workdir.prepare import LiveRoots
from shared import times
from tests.support.fake_server import make_config, uid
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
    names: set[str] = attrs.field(factory=set)

    @property
    def root(self) -> Path:
        return self.config.workspaces_root

    def at(self, name: str) -> Path:
        """Where the task of this name has its directory."""
        self.names.add(name)
        return self.root / WS / uid(name)

    def env(self, name: str, meta: dict[str, Any] | None, *, hours: float = 0) -> Path:
        """Make a task's directory with a file in it, last changed some hours ago."""
        env_root = self.at(name)
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
            task_id=env_root.name, env_root=env_root,
        )  # fmt: skip
        async with self.clones.hold(clone):
            return await check_out(self.clones, clone, wanted)

    async def at_time(self, wall: float, *, ttl: float | None = None) -> Pass:
        """A pass at another time, perhaps with another limit for kept work."""
        config = self.config if ttl is None else attrs.evolve(self.config, gc_kept_ttl=ttl)
        client: Any = self.client
        return await Reclaim(config, client, self.clones, self.live, wall=lambda: wall).run_once()

    def reasons(self, done: Pass) -> dict[str, str]:
        names = {uid(name): name for name in self.names}
        return {names[Path(path).name]: why for path, why in done.kept.items()}

    def saved(self) -> list[str]:
        [clone] = self.clones.all()
        return git(clone, "for-each-ref", "--format=%(refname)", "refs/bullpen").split()

    def there(self) -> list[str]:
        names = {uid(name): name for name in self.names}
        folder = self.root / WS
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(names.get(path.name, path.name) for path in found)

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
        bench.at("j-link").symlink_to(tmp_path)
        for place in (bench.root / WS / "users", bench.root / "users" / uid("x"), bench.root / "u"):
            place.mkdir(parents=True)
            os.utime(place, (1, 1))
        with bench.live.hold(bench.at("i-live")):
            first = await bench.run()
            assert "it goes only if" in bench.reasons(first)["e-gone"]
            done = await bench.at_time(time.time() + 601)
        assert bench.there() == [
            "b-open", "c-broken", "d-hidden", "f-hidden", "g-nobody", "i-live", "j-link", "users"
        ]  # fmt: skip
        assert (bench.root / "users" / uid("x")).exists(), "it is not ours"
        assert (bench.root / "u").exists()
        reasons = bench.reasons(done)
        assert reasons["b-open"] == "its issue is in_progress"
        assert "no database" in reasons["c-broken"]
        assert "does not show" in reasons["d-hidden"]
        assert "could not be asked" in reasons["f-hidden"], "whose it is was not looked at"
        assert reasons["i-live"] == "a task works in it"
        assert (bench.root / ".skill-cache" / "v1").exists()
        told = json.loads((bench.root / reclaim_module.REPORT).read_text())
        assert told["kept"] == done.kept


async def test_a_strangers_404_removes_nothing(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        foreign = Foreign("GET gc-check", 404, "not the server's answer: 404 page not found")
        bench.client.answers = {"issues/open": foreign, "chat-sessions/c": foreign}
        bench.env("issue", issue("open"), hours=1000)
        bench.env("chat", {"kind": "chat", "chat_session_id": "c"}, hours=1000)
        now = time.time()
        for later in (0.0, 3600.0, 7200.0):
            done = await bench.at_time(now + later)
            assert done.removed == []
        assert bench.there() == ["chat", "issue"]
        assert "could not be asked" in bench.reasons(done)["issue"]


async def test_what_the_server_does_not_show_goes_on_the_second_look_a_few_at_a_time(
    tmp_path: Path,
) -> None:
    async with open_bench(tmp_path) as bench:
        names = [f"gone{number}" for number in range(7)]
        absent = Rejected("GET gc-check", 404, "issue not found")
        bench.client.answers = {f"issues/{name}": absent for name in names}
        for name in names:
            bench.env(name, issue(name), hours=1000)
        now = time.time()
        first = await bench.at_time(now)
        assert first.removed == []
        assert "it goes only if that is so in" in bench.reasons(first)["gone0"]
        assert (await bench.at_time(now + 300)).removed == [], "another daemon's first look, too"
        # the server knows one of them again: it was being restored
        bench.client.answers["issues/gone0"] = OPEN
        await bench.at_time(now + 500)
        bench.client.answers["issues/gone0"] = absent
        second = await bench.at_time(now + 700)
        assert len(second.removed) == 5
        reasons = bench.reasons(second)
        assert "it goes only if" in reasons.pop("gone0")
        [why] = reasons.values()
        assert "only 5 of these go at a time: `bullpen daemon reclaim --all`" in why
        reclaim = Reclaim(
            bench.config, bench.client, bench.clones, bench.live, wall=lambda: now + 1400
        )  # type: ignore[arg-type]
        reclaim.all_absent = True
        await reclaim.run_once()
        assert bench.there() == []


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
        assert (use.saved_refs, use.worktrees) == (1, 0)


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
        remove(tree / ".git")
        (tree / ".git").write_text("gitdir: /nowhere/at/all\n")
        done = await bench.run()
        assert bench.there() == ["broken", "own"]
        reasons = bench.reasons(done)
        assert "mine: a repository of the agent's own has work" in reasons["own"]
        assert "it goes in 2 d" in reasons["own"]
        assert "repository is gone" in reasons["broken"]
        for env_root in (own, broken):
            bench.age(env_root, 80)
        done = await bench.run()
        assert bench.there() == []
        [name] = done.saved
        made = bench.clones.folder / WS / name
        [found] = bundles(made.parent)
        assert found.owner == Owner(task_id=own.name, issue_id="done")
        person = tmp_path / "person"
        person.mkdir()
        do(person, found.way_back)
        [checkout] = person.iterdir()
        assert (checkout / "a").read_text() == "a"


async def test_uncommitted_work_of_an_own_repository_is_in_its_bundle(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.client.answers = {"issues/done": DONE}
        env_root = bench.env("own", issue("done"))
        git(env_root / "workdir", "clone", "-q", bench.remote.url, "copy")
        tree = env_root / "workdir" / "copy"
        commit(tree, "mine.txt", "mine")
        git(tree, "stash", "push", "-q", "--include-untracked", check=False)
        (tree / "new.txt").write_text("untracked")
        bench.age(env_root, 80)
        await bench.run()
        assert bench.there() == []
        [found] = bundles(bench.clones.folder / WS)
        assert "refs/kept" in found.way_back, "what the server has is not in it"
        person = tmp_path / "person"
        git(tmp_path, "clone", "-q", bench.remote.url, str(person))
        do(person, found.way_back)
        [ref] = git(person, "for-each-ref", "--format=%(refname)", "refs/kept/bullpen").split()
        assert git(person, "show", f"{ref}:new.txt") == "untracked"
        assert git(person, "show", f"{ref}:mine.txt") == "mine"


async def test_a_repository_elsewhere_is_not_written_to(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.client.answers = {"issues/done": DONE}
        theirs = tmp_path / "theirs"
        git(tmp_path, "init", "-q", str(theirs))
        commit(theirs, "private", "private")
        env_root = bench.env("own", issue("done"))
        git(theirs, "worktree", "add", "-q", "--detach", str(env_root / "workdir" / "tree"))
        (env_root / "workdir" / "tree" / "new").write_text("new")
        bench.age(env_root, 80)
        before = git(theirs, "for-each-ref")
        await bench.run()
        assert bench.there() == []
        assert git(theirs, "for-each-ref") == before
        assert bundles(bench.clones.folder / WS) == []


async def test_kept_work_is_found_and_brought_back(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.client.answers = {"issues/done": DONE}
        for name, touch in (("0a1b2c3d", True), ("1a1b2c3d", False)):
            env_root = bench.env(name, issue("done"))
            tree = (await bench.check_out(env_root)).path
            commit(tree, f"{name}.txt", "committed")
            if touch:
                (tree / "new.txt").write_text("untracked")
        await bench.run()
        [clone] = bench.clones.all()
        found = await list_kept(bench.clones.git, clone)
        assert {each.kind for each in found} == {"files", "commits"}
        assert {each.owner.issue_id for each in found} == {"done"}
        assert {each.owner.task_id for each in found} == {uid("0a1b2c3d"), uid("1a1b2c3d")}
        person = tmp_path / "person"
        git(tmp_path, "clone", "-q", bench.remote.url, str(person))
        for each in found:
            do(person, each.way_back)
        assert (person / "new.txt").read_text() == "untracked"
        assert "1a1b2c3d.txt" in git(person, "ls-tree", "--name-only", "kept-" + next(
            each.commit[:8] for each in found if each.kind == "commits"))  # fmt: skip
        told = kept_for_issue(bench.clones.folder / WS, "done", [bench.remote.url])
        assert [(bench.remote.url, ref) for ref in sorted(bench.saved(), key=_when)] == told
        assert kept_for_issue(bench.clones.folder / WS, "other", [bench.remote.url]) == []
        (clone / "bullpen" / "x").mkdir()
        (clone / "bullpen" / "x" / "`rm`.json").write_text('{"issue_id": "done"}')
        (clone / "bullpen" / "x" / "20260101T000000Z-aa.json").write_text('{"issue_id": "done"}')
        assert kept_for_issue(bench.clones.folder / WS, "done", [bench.remote.url]) == told


async def test_the_command_lists_kept_work_and_lets_it_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_bench(tmp_path) as bench:

        async def call(*words: str) -> tuple[int, str, str]:
            env = {"BULLPEN_WORKSPACES_ROOT": str(bench.root), "PATH": os.environ["PATH"]}
            made = Settings(env={**env, "BULLPEN_HOME": str(tmp_path / "h")})
            code = await trio.to_thread.run_sync(run_command, ["repo", "kept", *words], made)
            return code, *capsys.readouterr()

        assert "Nothing is kept" in (await call())[2]
        bench.client.answers = {"issues/done": DONE}
        env_root = bench.env("0a1b2c3d", issue("done"))
        tree = (await bench.check_out(env_root)).path
        (tree / "new.txt").write_text("untracked")
        own = bench.env("own", issue("done"))
        git(own / "workdir", "init", "-q", "mine")
        commit(own / "workdir" / "mine", "a", "a")
        bench.age(own, 80)
        await bench.run()
        code, out, _ = await call()
        assert code == 0
        assert f"changed files of task {env_root.name[-8:]}, branch agent/demo/" in out
        assert "git stash apply FETCH_HEAD" in out
        assert f"{own.name[-8:]}-mine: a repository of task {own.name[-8:]}" in out
        told = json.loads((await call("--output", "json"))[1])
        assert {each["task_id"] for each in told} == {env_root.name, own.name}
        for wrong in ("re", "refs/bullpen/nothing", "mine"):
            code, _, err = await call("--drop", wrong)
            assert code == 1
            assert "nothing is kept as" in err
        ref = next(each["ref"] for each in told if each["ref"])
        assert (await call("--drop", ref, "--drop", own.name[-8:]))[0] == 0
        assert bench.saved() == []
        assert bundles(bench.clones.folder / WS) == []
        assert "Nothing is kept" in (await call())[2]


def _when(ref: str) -> str:
    return ref.rpartition("/")[2]


def do(folder: Path, command: str) -> None:
    """Run a command of ours as a person would."""
    nobody = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_COMMITTER_NAME": "P", "GIT_AUTHOR_NAME": "P"}
    mail = {"GIT_COMMITTER_EMAIL": "p@example.test", "GIT_AUTHOR_EMAIL": "p@example.test"}
    subprocess.run(
        ["/bin/sh", "-ec", command], cwd=folder, env={**os.environ, **nobody, **mail}, check=True
    )


async def test_kept_work_and_unused_clones_go_when_they_are_old(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.client.answers = {"issues/done": DONE}
        env_root = bench.env("0a1b2c3d", issue("done"))
        tree = (await bench.check_out(env_root)).path
        commit(tree, "a.txt", "committed")
        git(tree, "branch", "of-the-agent")
        git(tree, "branch", "published", "origin/main")
        (tree / "b.txt").write_text("stashed")
        git(tree, "stash", "push", "-q", "--include-untracked")
        [clone] = bench.clones.all()
        aside = clone.with_name(f"{clone.name}.damaged-20200101T000000Z-ab")
        aside.mkdir()
        done = await bench.run()
        assert done.expired == [aside.name]
        before = bench.saved()
        assert len(before) == 2, "commits and the stash"
        assert (await bench.run()).expired == [], "it is not old enough"
        late = time.time() + 29 * 24 * HOUR
        assert (await bench.at_time(late)).expired == []
        later = time.time() + 31 * 24 * HOUR
        never = await bench.at_time(later, ttl=0)
        assert (never.expired, bench.saved()) == ([], before)
        used = bench.env("1a1b2c3d", issue("open"))
        await bench.check_out(used)
        gone = (await bench.at_time(later)).expired
        assert gone == [f"{clone.name} {ref}" for ref in before], "a checkout borrows the rest"
        assert not list((clone / "bullpen").rglob("*.json"))
        remove(used)
        assert (await bench.at_time(later)).expired == [clone.name]
        assert bench.clones.all() == []


async def test_a_clone_that_is_asked_for_again_stays(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        clone = await bench.clones.refresh(WS, bench.remote.url)
        for path in (clone, *clone.iterdir()):
            os.utime(path, (1.6e9, 1.6e9))
        os.utime(clone / "objects" / "pack", (1.6e9, 1.6e9))
        await bench.clones.refresh(WS, bench.remote.url)
        assert (await bench.run()).expired == []
        os.utime(clone / "bullpen-used", (1.6e9, 1.6e9))
        assert (await bench.run()).expired == [clone.name]


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
        real = keeping.snapshots.save

        async def save(*args: Any, **more: Any) -> Any:
            began.set()
            await trio.sleep_forever()
            return await real(*args, **more)

        keeping.snapshots.save = save
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.run)
                await began.wait()
                await bench.live.claim(env_root)
                with bench.live.hold(env_root):
                    assert (tree / "README").read_text() == "edited"
        finally:
            keeping.snapshots.save = real
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


async def test_walks_through_directories_do_not_hold_the_daemon_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked = []

    def in_a_thread(module: Any, name: str) -> None:
        do = getattr(module, name)

        def look(*args: Any, **more: Any) -> Any:
            assert threading.current_thread() is not threading.main_thread(), name
            walked.append(name)
            return do(*args, **more)

        monkeypatch.setattr(module, name, look)

    names = ("env_roots", "last_change", "artifacts", "remove_tree")
    for name in names:
        in_a_thread(reclaim_module, name)
    in_a_thread(keeping, "places_below")
    in_a_thread(clones_module, "remove_stale_locks")
    async with open_bench(tmp_path) as bench:
        bench.client.answers = {"issues/done": DONE, "issues/open": OPEN}
        env_root = bench.env("done", issue("done"))
        await bench.check_out(env_root)
        made = bench.env("open", issue("open"))
        (made / "workdir" / "node_modules").mkdir()
        await bench.run()
        assert bench.there() == ["open"]
    assert set(walked) == {*names, "places_below", "remove_stale_locks"}


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
