"""What one agent sets in its checkout never reaches another's, nor the daemon's own git."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from daemon.repos.places import place_of
from tests.daemon.test_repos import OTHER, TASK, WORKSPACE, Trap, open_bench
from tests.support.git_repos import Remote, commit, git, make_remote

pytestmark = pytest.mark.together

THIRD = f"3{TASK[1:]}"


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return make_remote(tmp_path / "server")


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    (tmp_path / "trap").mkdir()
    return Trap(tmp_path / "trap")


def _attack(tree: Path, trap: Trap, remote: Remote, evil: Remote) -> None:
    """Everything an agent can set with plain git in the directory it was given."""
    hooks = trap.folder / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-checkout", "reference-transaction", "pre-commit", "post-commit", "pre-push"):
        shutil.copy(trap.command(f"hook-{name}", "true"), hooks / name)
        own = tree / git(tree, "rev-parse", "--git-path", f"hooks/{name}")
        own.parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(hooks / name, own)
    (tree / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    attributes = tree / git(tree, "rev-parse", "--git-path", "info/attributes")
    attributes.parent.mkdir(exist_ok=True)
    attributes.write_text("* filter=evil diff=evil\n")
    more = trap.folder / "more"
    more.write_text(f"[core]\n\tfsmonitor = {trap.command('included', 'true')}\n")
    settings = {
        "alias.status": f"!{trap.command('alias', 'true')}",
        "core.editor": trap.command("editor", "true"),
        "core.pager": trap.command("pager"),
        "core.fsmonitor": trap.command("fsmonitor", "true"),
        "core.sshCommand": trap.command("ssh", "false"),
        "core.gitProxy": trap.command("proxy", "false"),
        "core.alternateRefsCommand": trap.command("alternates", "true"),
        "credential.helper": f"!{trap.command('helper', 'true')}",
        "diff.external": trap.command("diff", "true"),
        "diff.evil.textconv": trap.command("textconv"),
        "filter.evil.clean": trap.command("clean"),
        "filter.evil.smudge": trap.command("smudge"),
        "filter.evil.process": trap.command("process", "false"),
        "merge.evil.driver": trap.command("merge", "false"),
        "gpg.program": trap.command("gpg", "false"),
        "commit.gpgSign": "true",
        "include.path": str(more),
        "uploadpack.packObjectsHook": trap.command("pack"),
        "remote.origin.uploadpack": trap.command("uploadpack", "git-upload-pack"),
        "remote.origin.receivepack": trap.command("receivepack", "git-receive-pack"),
        "remote.origin.promisor": "true",
        "remote.origin.partialclonefilter": "blob:none",
        f"url.{evil.url}.insteadOf": remote.url,
        f"url.{evil.url}.pushInsteadOf": remote.url,
        "user.name": "A",
        "core.bare": "true",
        "core.worktree": "/",
        "extensions.worktreeConfig": "true",
        "extensions.partialClone": "origin",
        "core.repositoryformatversion": "1",
        "core.hooksPath": str(hooks),
    }
    for name, value in settings.items():
        git(tree, "config", name, value, check=False)
    config = tree / git(tree, "rev-parse", "--git-path", "config", check=False)
    for file in trap.folder.glob("*.ran"):
        file.unlink()
    assert config.parts


async def test_nothing_one_agent_sets_is_seen_by_another_or_the_daemon(
    tmp_path: Path, remote: Remote, trap: Trap
) -> None:
    evil = make_remote(tmp_path / "evil")
    evil.push("evil", "evil")
    async with open_bench(tmp_path, remote) as bench:
        before = (await bench.check_out(task=OTHER, place="b")).path
        tree = (await bench.check_out(place="a")).path
        (tree / "work.txt").write_text("work of A")
        _attack(tree, trap, remote, evil)

        # B goes on where it is, and C starts anew
        right = remote.push("right", "right")
        for place, task in (("b", OTHER), ("c", THIRD)):
            done = await bench.check_out(task=task, place=place)
            assert git(done.path, "rev-parse", "HEAD") == right
            assert git(done.path, "status", "--porcelain") == ""
            mine = commit(done.path, "mine.txt", place)
            git(done.path, "fetch", "-q")
            git(done.path, "push", "-q")
            assert git(remote.path, "rev-parse", done.branch) == mine
            assert git(done.path, "config", "user.name", check=False) == ""
        assert git(before, "remote", "get-url", "origin") == remote.url
        assert trap.sprung() == [], "something of A's ran for B"

        # the daemon keeps A's work, moves A's checkout and looks after the clone
        again = await bench.check_out(place="a")
        [clone] = bench.clones.all()
        assert git(clone, "show", f"{again.saved}:work.txt") == "work of A"
        moved = await bench.check_out("main", place="a")
        assert (moved.path / "right").read_text() == "right"
        assert not (moved.path / "work.txt").exists()
        await bench.clones.prune(clone)
        await bench.clones.tidy(clone)
        assert trap.sprung() == [], "something of A's ran in the daemon's git"


async def test_a_clone_that_was_changed_is_mended_and_says_so(
    tmp_path: Path, remote: Remote, trap: Trap
) -> None:
    """On a machine where nothing keeps an agent from the daemon's files."""
    evil = make_remote(tmp_path / "evil")
    async with open_bench(tmp_path, remote) as bench:
        await bench.check_out(place="a")
        [clone] = bench.clones.all()
        git(clone, "config", f"url.{evil.url}.insteadOf", remote.url)
        git(clone, "config", "core.fsmonitor", trap.command("fsmonitor", "true"))
        git(clone, "config", "extensions.worktreeConfig", "true")
        (clone / "config.worktree").write_text("[core]\n\tbare = false\n")
        (clone / "objects" / "info" / "alternates").write_text(f"{evil.path}/objects\n")
        (clone / "hooks").mkdir(exist_ok=True)
        hook = clone / "hooks" / "reference-transaction"
        shutil.copy(trap.command("hook", "true"), hook)
        right = remote.push("right", "right")
        done = await bench.check_out(task=OTHER, place="b")
        assert git(done.path, "rev-parse", "HEAD") == right
        assert trap.sprung() == []
        assert set(bench.clones.mended) == {clone}
        told = bench.clones.mended[clone]
        assert "its settings" in told
        assert "objects/info/alternates" in told
        assert "insteadOf" not in (clone / "config").read_text()


async def test_a_repository_that_borrows_from_somebody_elses_is_not_read(
    tmp_path: Path, remote: Remote
) -> None:
    """The daemon may read what an agent may not: it must not fetch that for it."""
    private = tmp_path / "private"
    git(tmp_path, "init", "-q", str(private))
    secret = commit(private, "secret", "s")
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        place = place_of(tree)
        assert place is not None
        alternates = place.common / "objects" / "info" / "alternates"
        alternates.write_text(f"{alternates.read_text()}{private}/.git/objects\n")
        (place.common / "refs" / "heads" / "theirs").write_text(f"{secret}\n")
        done = await bench.check_out()
        assert "borrows objects from had been changed and is mended" in done.note
        [clone] = bench.clones.all()
        assert git(clone, "cat-file", "-t", secret, check=False) == ""
        assert str(private) not in alternates.read_text()


async def test_links_lead_no_file_of_the_daemons_elsewhere(tmp_path: Path, remote: Remote) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    async with open_bench(tmp_path, remote) as bench:
        tree = (await bench.check_out()).path
        for name in ("refs/bullpen", "hooks", "info"):
            path = tree / ".git" / name
            shutil.rmtree(path, ignore_errors=True)
            path.symlink_to(outside)
        (tree / "new.txt").write_text("x")
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            await bench.check_out()
        assert list(outside.iterdir()) == []


async def test_no_object_goes_that_a_checkout_borrows(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        tip = remote.push("big", "b" * 1000, "topic")
        tree = (await bench.check_out("topic")).path
        kept = (await bench.check_out("topic", task=OTHER, place="kept")).path
        (kept / "new.txt").write_text("kept")
        saved = await bench.save(kept)
        # the server forgets the branch, the clone hears of it, and years pass
        git(remote.path, "update-ref", "-d", "refs/heads/topic")
        [clone] = bench.clones.all()
        git(clone, "update-ref", "-d", "refs/remotes/origin/topic")
        for path in clone.rglob("*"):
            os.utime(path, (1, 1))
        monkeypatch.setattr("daemon.repos.clones._PACKS", -1)
        await bench.clones.prune(clone)
        await bench.clones.tidy(clone)
        git(tree, "gc", "-q", "--prune=now")
        assert git(tree, "rev-parse", "HEAD") == tip
        git(tree, "fsck", "--full", "--connectivity-only")
        assert (tree / "big").read_text() == git(tree, "show", "HEAD:big")
        assert git(clone, "show", f"{saved}:new.txt") == "kept"
        assert bench.clones.path(WORKSPACE, remote.url) == clone


async def test_worktrees_of_an_older_version_become_checkouts(
    tmp_path: Path, remote: Remote, trap: Trap
) -> None:
    async with open_bench(tmp_path, remote) as bench:
        branch = "agent/demo-one/0a1b2c3d"
        tree = await bench.old_worktree("", branch)
        mine = commit(tree, "done.txt", "committed")
        (tree / "README").write_text("staged")
        git(tree, "add", "README")
        (tree / "README").write_text("edited")
        git(tree, "config", "core.fsmonitor", trap.command("fsmonitor", "true"))
        [clone] = bench.clones.all()

        done = await bench.check_out()
        assert (done.path, done.branch) == (tree, branch)
        assert (tree / ".git").is_dir()
        assert git(tree, "rev-parse", "HEAD") == mine
        assert git(tree, "show", ":README") == "staged"
        assert (tree / "README").read_text() == "edited"
        assert git(clone, "show", f"{done.saved}:README") == "edited"
        git(tree, "commit", "-q", "-m", "Another")
        git(tree, "push", "-q")
        assert branch in remote.branches()
        assert trap.sprung() == []
        assert list((clone / "worktrees").glob("*")) == []
