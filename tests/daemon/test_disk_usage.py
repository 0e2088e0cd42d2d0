"""`bullpen daemon disk-usage`: what it counts, what it says, and how."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from daemon.cli.disk_usage import age_text, size_text
from daemon.cli.root import root as root_command
from daemon.cli.settings import Settings
from daemon.disk_usage import roots_of_profiles, scan
from shared.home import Home

pytestmark = pytest.mark.fast

WS = "11111111-1111-4111-8111-111111111111"
TASK = "22222222-2222-4222-8222-222222222222"
OTHER = "33333333-3333-4333-8333-333333333333"


def fill(root: Path, task: str = TASK, size: int = 1000) -> Path:
    """A task's directory with a file, an artifact of 500 bytes and a checkout of 10."""
    env_root = root / WS / task
    work = env_root / "workdir"
    (work / "node_modules" / "x").mkdir(parents=True)
    (work / "file").write_bytes(b"x" * size)
    (work / "node_modules" / "x" / "y").write_bytes(b"x" * 500)
    (work / "app").mkdir()
    (work / "app" / ".git").write_bytes(b"x" * 10)
    (work / "link").symlink_to(root)
    os.link(work / "file", work / "same")
    return env_root


def test_the_scan(tmp_path: Path) -> None:
    root = tmp_path / "workspaces"
    env_root = fill(root)
    (env_root / ".gc_meta.json").write_text(
        '{"kind":"issue","completed_at":"2026-01-01T00:00:00Z"}'
    )
    meta = (env_root / ".gc_meta.json").stat().st_size
    fill(root, OTHER, 10)
    clones = root / ".repos" / WS
    for name in ("a.git", "a.git.damaged-1", ".b.git.12.new"):
        (clones / name / "refs" / "bullpen" / "x").mkdir(parents=True)
        (clones / name / "refs" / "bullpen" / "x" / "1").write_bytes(b"x" * 41)
    (clones / "a.git" / "packed-refs").write_text(
        "# pack\nabc refs/bullpen/x/1\nabc refs/bullpen/y/2\n"
    )
    (clones / "a.git" / "worktrees" / "app").mkdir(parents=True)
    (clones / "2222-mine.bundle").write_bytes(b"x" * 4)
    (root / ".skill-cache").mkdir()
    (root / ".skill-cache" / "x").write_bytes(b"x" * 5)
    (root / ".trash").mkdir()
    (root / ".trash" / "old").write_bytes(b"x" * 7)
    (root / ".reclaim.json").write_text(
        json.dumps({"at": "2026-01-02T00:00:00Z", "kept": {f"{WS}/{TASK}": "its issue is open"},
                    })
    )  # fmt: skip
    journals = tmp_path / "journals"
    journals.mkdir()
    (journals / "t.jsonl").write_bytes(b"x" * 3)

    report = scan(root, ("node_modules",), journals=journals, wall=lambda: 1767225600 + 90)
    first, second = report.tasks
    assert (first.kind, first.age_seconds, first.worktrees) == ("issue", 90, 1)
    assert first.size_bytes == 1000 + 500 + 10 + meta, "a file with two names counts once"
    assert first.artifact_size_bytes == 500
    assert (first.kept, second.kept) == ("its issue is open", "")
    assert (second.kind, second.task_short) == ("unknown", "33333333")
    assert report.total_size_bytes == first.size_bytes + second.size_bytes
    assert report.workspaces[0].artifact_ratio == 1000 / report.total_size_bytes
    states = {clone.name: (clone.state, clone.saved_refs) for clone in report.clones}
    assert states == {
        "a.git": ("ready", 2), "a.git.damaged-1": ("damaged", 1), ".b.git.12.new": ("unfinished", 1)
    }  # fmt: skip
    [ready] = [clone for clone in report.clones if clone.state == "ready"]
    assert ready.worktrees == 1
    assert (report.bundle_count, report.bundle_size_bytes) == (1, 4)
    assert (report.trash_size_bytes, report.journal_count, report.journal_size_bytes) == (7, 1, 3)
    parts = report.total_size_bytes + report.total_clone_size_bytes + 4 + 7 + 3 + 5
    assert report.grand_total_bytes == parts


def test_nothing_there(tmp_path: Path) -> None:
    report = scan(tmp_path / "missing", ())
    assert (report.tasks, report.total_artifact_ratio, report.grand_total_bytes) == ([], 0.0, 0)


def run(home: Path, *words: str, **env: str) -> tuple[int, str, str]:
    settings = Settings(env={"BULLPEN_HOME": str(home), **env})
    done = CliRunner().invoke(root_command, ["daemon", "disk-usage", *words], obj=settings)
    return done.exit_code, done.stdout, done.stderr


def test_the_command(tmp_path: Path) -> None:
    fill(tmp_path / "workspaces", size=4000)
    fill(tmp_path / "workspaces", OTHER, 1)
    fill(tmp_path / "profiles" / "work it" / "workspaces")
    code, out, err = run(tmp_path)
    assert code == 0
    assert "KEPT BECAUSE" in out
    assert "4.4 KiB" in out
    assert "bullpen --profile 'work it' daemon disk-usage" in err
    code, out, _ = run(tmp_path, "--output", "json", "--top", "1")
    told = json.loads(out)
    assert (len(told["tasks"]), told["total_task_count"]) == (1, 2)
    assert told["grand_total_bytes"] == told["total_size_bytes"]
    assert "Showing top 1 of 2" in run(tmp_path, "--top", "1")[1]
    assert "ARTIFACT %" in run(tmp_path, "--by-workspace")[1]
    code, out, _ = run(tmp_path, "--all-profiles", "--output", "json")
    told = json.loads(out)
    assert [each["profile"] for each in told["roots"]] == ["", "work it"]
    assert told["total_task_count"] == 3
    assert "[default]" in run(tmp_path, "--all-profiles")[1]
    elsewhere = tmp_path / "profiles" / "work it" / "workspaces"
    out = run(tmp_path, "--workspaces-root", str(elsewhere))[1]
    assert str(elsewhere) in out
    code, out, _ = run(tmp_path, BULLPEN_WORKSPACES_ROOT=str(elsewhere))
    assert str(elsewhere) in out
    (tmp_path / "config.json").write_text(
        json.dumps({"settings": {"BULLPEN_WORKSPACES_ROOT": str(elsewhere)}})
    )
    assert str(elsewhere) in run(tmp_path)[1], "the daemon's settings count here too"
    (tmp_path / "secrets" / "config.json").unlink()
    patterns = {"BULLPEN_GC_ARTIFACT_PATTERNS": "target, a/b"}
    assert json.loads(run(tmp_path, "--output", "json", **patterns)[1])["artifact_patterns"] == [
        "target"
    ]


@pytest.mark.parametrize(
    "words", [("--by-task", "--by-workspace"), ("--all-profiles", "--workspaces-root", "/x")]
)
def test_what_excludes_itself(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert run(tmp_path, *words)[0] != 0


def test_profiles_that_share_a_directory_count_once(tmp_path: Path) -> None:
    (tmp_path / "workspaces").mkdir()
    (tmp_path / "profiles" / "b").mkdir(parents=True)
    (tmp_path / "profiles" / "b" / "workspaces").symlink_to(tmp_path / "workspaces")
    (tmp_path / "profiles" / "a").mkdir()
    assert [name for name, _ in roots_of_profiles(Home(tmp_path))] == ["", "a"]


def test_texts() -> None:
    assert [size_text(n) for n in (0, 1023, 1536, 3 << 20, 5 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "3.0 MiB", "5.0 TiB"
    ]  # fmt: skip
    assert [age_text(n) for n in (0, 59, 61, 3700, 90000)] == [
        "0s", "59s", "1m 1s", "1h 1m", "1d 1h"
    ]  # fmt: skip
