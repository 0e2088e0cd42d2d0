"""A user's directory is byte for byte as it was: real repositories, edits, links and crashes."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from daemon.workdir import borrowed
from daemon.workdir.borrowed import give_back, sweep
from daemon.workdir.brief import BEGIN, END
from daemon.workdir.errors import PrepareError
from daemon.workdir.local import (
    LocalDirectory,
    LocalDirectoryError,
    check_directory,
    find_excludes,
    named_directory,
)
from daemon.workdir.prepare import (
    LiveRoots,
    Prepared,
    choose,
    giving_back,
    prepare,
    write_brief,
)
from shared.wire.task import ClaimedTask, ProjectResource, Skill, SkillFile, TaskAgent
from tests.support.fake_server import WORKSPACE, uid
from tests.support.repositories import git, make_repository, picture

pytestmark = pytest.mark.together

CRASHED: list[ExitStack] = []
"""What was never left: let go of, its blocks would end in order after all."""

NOBODY = 65534

PROVIDERS = (
    "claude",
    "codebuddy",
    "codex",
    "copilot",
    "opencode",
    "openclaw",
    "hermes",
    "pi",
    "cursor",
    "kimi",
    "kiro",
    "qoder",
    "antigravity",
)

SKILLS = [
    Skill(name="Deploy", content="how", files=[SkillFile(path="bin/run.sh", content="x")]),
    Skill(name="Deploy", content="other"),
]


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


class Countdown:
    """Kills after so many steps."""

    left = 0

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


@attrs.frozen(kw_only=True)
class Ground:
    """A user's directory and a daemon's places."""

    folder: Path
    root: Path
    records: Path

    def local(self) -> LocalDirectory:
        path = check_directory(self.folder)

        async def excludes() -> LocalDirectory:
            found = await find_excludes(path, os.environ)
            return LocalDirectory(path=path, excludes=found)

        return trio.run(excludes)

    def enter(
        self,
        stack: ExitStack,
        provider: str = "claude",
        *,
        name: str = "task",
        skills: list[Skill] | None = None,
        local: LocalDirectory | None = None,
        check_brief: bool = True,
    ) -> Prepared:
        agent = TaskAgent(id="a", name="A", skills=SKILLS if skills is None else skills)
        task = ClaimedTask(
            id=uid(name),
            workspace_id=WORKSPACE,
            issue_id=uid("issue"),
            agent=agent,
            project_id="p",
            prior_work_dir=str(self.folder),
        )
        chosen = choose(task, self.root, LiveRoots(), local or self.local())
        chosen = stack.enter_context(giving_back(chosen, task.id, self.records))
        chosen = prepare(task, "direct", provider, chosen)
        assert write_brief(chosen, provider, "first") or not check_brief
        return chosen

    def run(self, provider: str = "claude", act: Callable[[], object] = lambda: None) -> None:
        with ExitStack() as stack:
            chosen = self.enter(stack, provider)
            write_brief(chosen, provider, "second")
            act()

    def crash(self, act: Callable[[], object] = lambda: None) -> None:
        """End a run as `kill -9` does: nothing is given back."""
        stack = ExitStack()
        chosen = self.enter(stack)
        write_brief(chosen, "claude", "second")
        act()
        CRASHED.append(stack.pop_all())


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    folder = make_repository(tmp_path / "project")
    return Ground(folder=folder, root=tmp_path / "root", records=tmp_path / "records")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_nothing_is_left_by_any_provider_and_git_sees_nothing_meanwhile(
    ground: Ground, provider: str
) -> None:
    before, status = picture(ground.folder), git(ground.folder, "status", "--porcelain")
    seen = []

    def look() -> None:
        seen.append(git(ground.folder, "status", "--porcelain"))

    for _ in range(2):
        ground.run(provider, look)
        assert picture(ground.folder) == before
        assert git(ground.folder, "status", "--porcelain") == status
    assert seen == [status, status]
    assert list(ground.records.iterdir()) == []


def test_what_the_agent_finds(ground: Ground) -> None:
    with ExitStack() as stack:
        chosen = ground.enter(stack)
        assert chosen.layout.work_dir == ground.folder
        assert not (chosen.layout.env_root / "workdir").exists()
        assert (ground.folder / ".claude/skills/deploy/SKILL.md").exists()
        assert (ground.folder / ".claude/skills/deploy-multica/SKILL.md").exists()
        assert (ground.folder / ".multica/project/resources.json").exists()
        assert BEGIN in (ground.folder / "CLAUDE.md").read_bytes()


CONTENTS = [
    b"",
    b"# Rules",
    b"# Rules\n",
    b"# Rules\n\n\n\n",
    b"a\r\nb\r\n",
    b"a\r\nb",
    b"\xef\xbb\xbfwith a BOM\n",
    b"\xff\xfe\x00 no UTF-8 \x80",
    b"mine\n\n" + BEGIN + b"\ncommitted by somebody\n" + END + b"\nbehind\n",
    BEGIN + b"\ntorn by another program",
]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("how", ["run", "crash"])
def test_an_existing_file_gets_its_bytes_mode_and_time_back(
    ground: Ground, content: bytes, how: str
) -> None:
    path = ground.folder / "CLAUDE.md"
    path.write_bytes(content)
    path.chmod(0o640)
    os.utime(path, ns=(1_600_000_000_000_000_000, 1_600_000_000_123_456_789))
    before, status = picture(ground.folder), git(ground.folder, "status", "--porcelain")
    seen = []
    if how == "run":
        ground.run(act=lambda: seen.append(path.read_bytes()))
    else:
        ground.crash(lambda: seen.append(path.read_bytes()))
        assert picture(ground.folder) != before
        assert sweep(ground.records) == 1
    assert b"second" in seen[0]
    assert picture(ground.folder) == before
    assert git(ground.folder, "status", "--porcelain") == status


def test_every_instant_of_a_crash_is_repaired(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ground.folder / "CLAUDE.md").write_bytes(b"mine, no newline")
    before = picture(ground.folder)
    step = Countdown()
    pwrite, write, os_open, mkdir = os.pwrite, os.write, os.open, os.mkdir

    def torn_pwrite(handle: int, data: bytes, offset: int) -> int:
        step()
        return pwrite(handle, data[: len(data) // 2 + 1], offset)

    def torn_write(handle: int, data: bytes) -> int:
        step()
        return write(handle, data[: len(data) // 2 + 1])

    def slow_open(*args: Any, **kwargs: Any) -> int:
        step()
        return os_open(*args, **kwargs)

    def slow_mkdir(*args: Any, **kwargs: Any) -> None:
        step()
        mkdir(*args, **kwargs)

    local = ground.local()
    for limit in range(500):
        step.left, done = limit, False
        stack = ExitStack()
        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(os, "pwrite", torn_pwrite)
            patch.setattr(os, "write", torn_write)
            patch.setattr(os, "open", slow_open)
            patch.setattr(os, "mkdir", slow_mkdir)
            chosen = ground.enter(stack, local=local)
            write_brief(chosen, "claude", "another, and longer than the first")
            done = True
        CRASHED.append(stack.pop_all())
        sweep(ground.records)
        assert picture(ground.folder) == before, limit
        assert not list(ground.records.glob("*.json"))
        if done:
            assert limit > 50
            return
    raise AssertionError("it never came to its end")


def test_the_users_own_edits_survive(ground: Ground) -> None:
    path = ground.folder / "CLAUDE.md"
    path.write_bytes(b"old rule")

    def edit() -> None:
        content = path.read_bytes()
        path.write_bytes(content.replace(b"old rule", b"new rule") + b"added at the end\n")
        (ground.folder / "main.py").write_text("changed\n")
        exclude = ground.folder / ".git/info/exclude"
        exclude.write_bytes(b"*.mine\n" + exclude.read_bytes() + b"*.too\n")

    exclude = (ground.folder / ".git/info/exclude").read_bytes()
    ground.run(act=edit)
    assert path.read_bytes() == b"new rule\nadded at the end\n"
    assert (ground.folder / "main.py").read_text() == "changed\n"
    now = (ground.folder / ".git/info/exclude").read_bytes()
    assert now == b"*.mine\n" + exclude + b"*.too\n"
    path.write_bytes(b"old rule")
    ground.crash(edit)
    sweep(ground.records)
    assert path.read_bytes() == b"new rule\nadded at the end\n"


def test_edits_between_two_briefs_survive(ground: Ground) -> None:
    path = ground.folder / "CLAUDE.md"
    path.write_bytes(b"rule\n")
    with ExitStack() as stack:
        chosen = ground.enter(stack)
        path.write_bytes(b"a better " + path.read_bytes())
        write_brief(chosen, "claude", "second")
    assert path.read_bytes() == b"a better rule\n"


def test_a_file_that_was_ours_alone_stays_with_what_the_user_put_in(ground: Ground) -> None:
    path = ground.folder / "CLAUDE.md"
    ground.run(act=lambda: path.write_bytes(path.read_bytes() + b"remember this\n"))
    assert path.read_bytes() == b"remember this\n"
    path.unlink()
    ground.run(act=path.unlink)
    assert not path.exists()


def test_what_was_changed_in_our_files_is_kept_elsewhere(ground: Ground) -> None:
    before = picture(ground.folder)

    def act() -> None:
        (ground.folder / ".agent_context/issue_context.md").write_text("my notes")
        (ground.folder / ".claude/skills/deploy/cache").write_text("by-product")

    ground.run(act=act)
    assert picture(ground.folder) == before
    kept = next(ground.root.rglob("kept"))
    assert (kept / ".agent_context/issue_context.md").read_text() == "my notes"
    assert (kept / ".claude/skills/deploy/cache").read_text() == "by-product"


def test_the_users_files_beside_ours_stay(ground: Ground) -> None:
    def act() -> None:
        (ground.folder / ".agent_context/mine").write_text("x")
        (ground.folder / ".claude/skills/own").mkdir()
        (ground.folder / ".claude/skills/own/SKILL.md").write_text("x")

    ground.run(act=act)
    assert (ground.folder / ".agent_context/mine").exists()
    assert not (ground.folder / ".agent_context/issue_context.md").exists()
    assert [path.name for path in (ground.folder / ".claude/skills").iterdir()] == ["own"]


def test_files_that_were_there_are_not_touched(ground: Ground) -> None:
    (ground.folder / ".agent_context").mkdir()
    (ground.folder / ".agent_context/issue_context.md").write_text("the user's")
    (ground.folder / ".claude/skills/deploy").mkdir(parents=True)
    (ground.folder / ".claude/skills/deploy/SKILL.md").write_text("the user's")
    before = picture(ground.folder)
    seen = []
    ground.run(
        act=lambda: seen.append(
            sorted(p.name for p in (ground.folder / ".claude/skills").iterdir())
        )
    )
    assert seen == [["deploy", "deploy-multica", "deploy-multica-2"]]
    assert picture(ground.folder) == before


def test_a_linked_worktree_uses_the_exclude_file_git_reads(ground: Ground, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git(ground.folder, "worktree", "add", "-q", str(tree), "-b", "other")
    main, linked = picture(ground.folder), picture(tree)
    there = attrs.evolve(ground, folder=tree)
    seen: list[str] = []
    there.run(act=lambda: seen.append(git(tree, "status", "--porcelain")))
    assert seen == [""]
    assert picture(tree) == linked
    assert picture(ground.folder) == main


def test_two_worktrees_share_one_exclude_file_in_any_order(ground: Ground, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git(ground.folder, "worktree", "add", "-q", str(tree), "-b", "other")
    exclude = ground.folder / ".git/info/exclude"
    other = attrs.evolve(ground, folder=tree)
    for content in (None, b"", b"no newline", b"*.o\n"):
        exclude.unlink(missing_ok=True)
        if content is not None:
            exclude.write_bytes(content)
        for first_out in (0, 1):
            stacks = [ExitStack(), ExitStack()]
            ground.enter(stacks[0], name="one")
            other.enter(stacks[1], name="two")
            assert git(tree, "status", "--porcelain") == ""
            stacks[first_out].close()
            stacks[1 - first_out].close()
            assert (exclude.read_bytes() if exclude.exists() else None) == content


def test_a_submodule_and_a_directory_inside_a_make_repository(
    ground: Ground, tmp_path: Path
) -> None:
    library = make_repository(tmp_path / "library")
    git(ground.folder, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(library))
    inside = ground.folder / "odd [name]* "
    inside.mkdir()
    (inside / "f").write_text("x")
    git(ground.folder, "add", ".")
    git(ground.folder, "commit", "-q", "-m", "more")
    before = picture(ground.folder)

    def look_into(seen: list[str]) -> None:
        seen.append(git(ground.folder, "status", "--porcelain"))

    for folder in (ground.folder / "library", inside):
        seen: list[str] = []
        there = attrs.evolve(ground, folder=folder)
        there.run(act=partial(look_into, seen))
        assert seen == [""], folder
        assert picture(ground.folder) == before


def test_without_git_and_without_an_info_directory(ground: Ground, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    there = attrs.evolve(ground, folder=plain)
    assert there.local().excludes is None
    there.run()
    assert picture(plain) == {}
    (ground.folder / ".git/info/exclude").unlink()
    (ground.folder / ".git/info").rmdir()
    before = picture(ground.folder)
    ground.run()
    assert picture(ground.folder) == before


def test_a_link_inside_the_directory_is_written_through(ground: Ground) -> None:
    (ground.folder / "AGENTS.md").write_bytes(b"rules")
    (ground.folder / "CLAUDE.md").symlink_to("AGENTS.md")
    before = picture(ground.folder)
    seen = []
    ground.run(act=lambda: seen.append((ground.folder / "AGENTS.md").read_bytes()))
    assert b"second" in seen[0]
    assert picture(ground.folder) == before


def _commit_everything(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "all")


def _stash_everything(folder: Path) -> None:
    (folder / "main.py").write_text("changed\n")
    git(folder, "stash", "push", "-q", "--include-untracked")


def _switch(folder: Path) -> None:
    git(folder, "switch", "-q", "other")


def _rebase(folder: Path) -> None:
    git(folder, "switch", "-q", "-c", "mine")
    (folder / "mine").write_text("")
    _commit_everything(folder)
    git(folder, "rebase", "-q", "--onto", "other", "main")


def _start_over(folder: Path) -> None:
    git(folder, "reset", "-q", "--hard")
    git(folder, "clean", "-q", "-fd")


def _delete(folder: Path) -> None:
    (folder / "CLAUDE.md").unlink(missing_ok=True)


def _link(folder: Path) -> None:
    _delete(folder)
    (folder / "CLAUDE.md").symlink_to("main.py")


def _write_more(folder: Path) -> None:
    with (folder / "CLAUDE.md").open("a") as file:
        file.write("the agent's own line\n")
    git(folder, "add", "CLAUDE.md", check=False)
    git(folder, "commit", "-q", "--allow-empty", "-m", "more")


ACTS = (_commit_everything, _stash_everything, _switch, _rebase, _start_over, _delete, _link,
        _write_more)  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("tracked", [True, False])
def test_nothing_an_agent_does_with_git_takes_ours_along(
    ground: Ground, act: Callable[[Path], None], tracked: bool
) -> None:
    folder = ground.folder
    git(folder, "switch", "-q", "-c", "other")
    if tracked:
        (folder / "CLAUDE.md").write_text("other rules\n")
        git(folder, "add", "CLAUDE.md")
    git(folder, "commit", "-q", "--allow-empty", "-m", "other")
    git(folder, "switch", "-q", "main")
    (folder / "CLAUDE.md").write_text("rules\n")
    if tracked:
        git(folder, "add", "CLAUDE.md")
        git(folder, "commit", "-q", "-m", "rules")
    exclude = (folder / ".git/info/exclude").read_bytes()
    status = git(folder, "status", "--porcelain")
    with ExitStack() as stack:
        chosen = ground.enter(stack, check_brief=False)
        if tracked:
            assert git(folder, "status", "--porcelain") == status, "nothing of git's has changed"
        act(folder)
        write_brief(chosen, "claude", "second")
    everything = git(folder, "log", "--all", "-p", "--full-history", "-m", "--format=%H")
    assert BEGIN.decode() not in everything
    assert "SKILL.md" not in everything
    assert "the agent's own line" in everything or act is not _write_more or not tracked
    for path in folder.rglob("*"):
        if path.is_file() and ".git" not in path.parts:
            assert BEGIN not in path.read_bytes(), path
            assert path.name != "SKILL.md"
    assert (folder / ".git/info/exclude").read_bytes() == exclude
    if act not in (_switch, _rebase, _delete, _link, _write_more):
        assert (folder / "CLAUDE.md").read_text() == "rules\n"
    if act is _write_more:
        assert (folder / "CLAUDE.md").read_text() == "rules\nthe agent's own line\n"
    assert list(ground.records.iterdir()) == []


def test_links_that_lead_out_are_not_followed(ground: Ground, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "CLAUDE.md").write_text("for all my projects")
    (elsewhere / "skills").mkdir()
    (ground.folder / "CLAUDE.md").symlink_to(elsewhere / "CLAUDE.md")
    (ground.folder / ".agents").symlink_to(elsewhere)
    (ground.folder / ".multica").symlink_to(elsewhere / "nothing")
    before, outside = picture(ground.folder), picture(elsewhere)
    agent = TaskAgent(id="a", name="A", skills=SKILLS)
    task = ClaimedTask(id=uid("t"), workspace_id=WORKSPACE, agent=agent, project_id="p")
    with ExitStack() as stack:
        chosen = choose(task, ground.root, LiveRoots(), ground.local())
        chosen = stack.enter_context(giving_back(chosen, task.id, ground.records))
        chosen = prepare(task, "direct", "antigravity", chosen)
        assert chosen.skills_in == ".agent_context/skills"
        assert (ground.folder / ".agent_context/skills/deploy/SKILL.md").exists()
        assert not write_brief(chosen, "claude", "brief"), "it must be told in another way"
        assert picture(elsewhere) == outside
    assert picture(ground.folder) == before
    assert picture(elsewhere) == outside


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become somebody else")
def test_a_read_only_file_is_lent_and_read_only_again(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # open to somebody else, as tmp_path is not
        root = Path(folder)
        path = root / "CLAUDE.md"
        path.write_bytes(b"rules")
        path.chmod(0o444)
        os.chown(root, NOBODY, NOBODY)
        os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            loan = borrowed.Borrowed(root / "records", "t", root, tmp_path)
            assert loan.write_brief("CLAUDE.md", "brief")
            assert path.stat().st_mode & 0o777 == 0o444
            assert BEGIN in path.read_bytes()
            assert give_back(loan.path)
        finally:
            os.seteuid(0)
        assert path.read_bytes() == b"rules"
        assert path.stat().st_mode & 0o777 == 0o444


def test_a_directory_deleted_meanwhile_is_nobodys_problem(ground: Ground, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git(ground.folder, "worktree", "add", "-q", str(tree), "-b", "other")
    main = picture(ground.folder)

    def delete() -> None:
        subprocess.run(["rm", "-rf", str(tree)], check=True)

    attrs.evolve(ground, folder=tree).run(act=delete)
    assert not tree.exists()
    assert picture(ground.folder) == main
    assert list(ground.records.iterdir()) == []


def test_a_disk_that_is_not_there_is_waited_for(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = picture(ground.folder)
    ground.crash()
    disk, away = ground.folder, ground.folder.with_name("away")
    [record] = ground.records.iterdir()
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "root": str(disk / "mounted/project")}))
    disk.rename(away)
    sweep(ground.records)
    assert record.exists()
    away.rename(disk)
    record.write_text(json.dumps(told))
    sweep(ground.records)
    assert picture(ground.folder) == before
    later = time.time() + borrowed.PATIENCE + 1
    record.write_text(json.dumps({**told, "root": "/nowhere/at/all"}))
    monkeypatch.setattr(time, "time", lambda: later)
    sweep(ground.records)
    assert not record.exists(), "not for ever"


def test_another_directory_in_its_place_loses_nothing(ground: Ground) -> None:
    ground.crash()
    ground.folder.rename(ground.folder.with_name("old"))
    (ground.folder / ".agent_context").mkdir(parents=True)
    (ground.folder / ".agent_context/issue_context.md").write_text("somebody's")
    sweep(ground.records)
    assert (ground.folder / ".agent_context/issue_context.md").read_text() == "somebody's"


def test_a_damaged_record_stops_nothing(ground: Ground, error_log: Any) -> None:
    before = picture(ground.folder)
    ground.crash()
    (ground.records / "00.json").write_text("{torn")
    (ground.records / ".01.json.x7").write_text("{never renamed")
    sweep(ground.records)
    error_log.expect("record of a borrowed directory unreadable")
    assert [path.name for path in ground.records.iterdir()] == ["00.json"]
    assert picture(ground.folder) == before


def test_the_next_task_first_puts_right_what_was_left(ground: Ground) -> None:
    before = picture(ground.folder)
    ground.crash()
    with ExitStack() as stack:
        ground.enter(stack, name="next")
        assert (ground.folder / "CLAUDE.md").read_bytes().count(BEGIN) == 1
        folders = sorted(path.name for path in (ground.folder / ".claude/skills").iterdir())
        assert folders == ["deploy", "deploy-multica"]
    assert picture(ground.folder) == before


def test_a_failed_preparation_leaves_nothing(ground: Ground) -> None:
    before = picture(ground.folder)
    bad = Skill(name="s", content="x", files=[SkillFile(path="a", content="1")] * 2)
    with ExitStack() as stack, pytest.raises(PrepareError):
        ground.enter(stack, skills=[bad])
    clash = [SkillFile(path="a", content="1"), SkillFile(path="a/b", content="1")]
    with ExitStack() as stack, pytest.raises(PrepareError):
        ground.enter(stack, skills=[Skill(name="s", content="x", files=clash)])
    assert picture(ground.folder) == before


# -- which directory, and whether


def resource(path: Any = "/src", daemon_id: Any = "D") -> ProjectResource:
    ref = {"local_path": path, "daemon_id": daemon_id}
    return ProjectResource(resource_type="local_directory", resource_ref=ref)


def task_with(*resources: ProjectResource) -> ClaimedTask:
    return ClaimedTask(id="t", project_resources=list(resources))


def test_the_directory_of_this_machine_is_taken() -> None:
    repo = ProjectResource(resource_type="github_repo", resource_ref={"url": "u"})
    assert named_directory(task_with(repo, resource(), resource("/b", "E")), "d") == Path("/src")
    assert named_directory(task_with(resource("/b", "E")), "D") is None
    assert named_directory(task_with(), "D") is None
    assert named_directory(task_with(resource()), "") is None


@pytest.mark.parametrize(
    "resources",
    [
        [resource(), resource("/other")],
        [resource("relative")],
        [resource("")],
        [resource("  ")],
        [resource("/a\0b")],
        [resource(None)],
        [resource(daemon_id=5)],
        [resource("/b", "E"), resource("/c", " ")],
    ],
)
def test_what_is_not_clear_is_an_error(resources: list[ProjectResource]) -> None:
    with pytest.raises(LocalDirectoryError) as caught:
        named_directory(task_with(*resources), "D")
    assert caught.value.reason == "local_directory_error"


def test_a_directory_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    good = home / "src"
    good.mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(good)
    (tmp_path / "to-home").symlink_to(home)
    (tmp_path / "to-root").symlink_to("/")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert check_directory(good) == good.resolve()
    assert check_directory(tmp_path / "link") == good.resolve()
    assert list(good.iterdir()) == [], "nothing is left of the look"
    for bad in (
        *("/", "/home", "/tmp", "/usr/", "/usr/../etc", home, tmp_path / "missing"),
        *(tmp_path / "file", tmp_path / "to-home", tmp_path / "to-root", tmp_path / "circle"),
    ):
        with pytest.raises(LocalDirectoryError):
            check_directory(Path(bad))
    with pytest.raises(LocalDirectoryError, match="own"):
        check_directory(good, (home,))


def test_a_directory_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LocalDirectoryError, match="written"):
        check_directory(tmp_path)
