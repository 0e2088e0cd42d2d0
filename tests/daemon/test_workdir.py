"""Layout, preparation, reuse, skills and context files of working directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from daemon.agents.frontmatter import with_frontmatter
from daemon.workdir.brief import BEGIN, END, without_block, written_brief
from daemon.workdir.context import render_context, render_resources
from daemon.workdir.errors import PrepareError
from daemon.workdir.layout import LayoutError, layout_of, layout_of_prior
from daemon.workdir.meta import noting
from daemon.workdir.prepare import (
    SHORT,
    LiveRoots,
    choose,
    keep_whole,
    prepare,
    short_path,
    write_brief,
)
from daemon.workdir.sidecars import clean_up
from daemon.workdir.skills import SkillError, check_path, slug
from shared.wire.task import ClaimedTask, ProjectResource, Skill, SkillFile, TaskAgent
from tests.support.fake_server import WORKSPACE, uid

pytestmark = pytest.mark.fast


def task_of(name: str = "task", *, skills: list[Skill] | None = None, **fields: Any) -> ClaimedTask:
    agent = TaskAgent(id="a", name="A", skills=skills)
    values = {"issue_id": uid("issue"), "workspace_id": WORKSPACE, "agent": agent, **fields}
    return ClaimedTask(id=uid(name), **values)


def made(root: Path, task: ClaimedTask, provider: str = "claude") -> Path:
    chosen = choose(task, root, LiveRoots())
    prepare(task, "direct", provider, chosen)
    return chosen.layout.work_dir


# -- layout


def test_ids_that_share_their_beginning_do_not_share_a_directory(tmp_path: Path) -> None:
    one = layout_of(tmp_path, WORKSPACE, "01890000-0000-7000-8000-000000000001")
    two = layout_of(tmp_path, WORKSPACE, "01890000-0000-7000-8000-000000000002")
    assert one.env_root != two.env_root
    assert one.env_root.parent == tmp_path / WORKSPACE


@pytest.mark.parametrize("bad", ["", "..", "../x", "a/b", "/etc", "x\0"])
def test_what_is_no_id_names_no_directory(tmp_path: Path, bad: str) -> None:
    with pytest.raises(LayoutError):
        layout_of(tmp_path, bad, uid("t"))
    with pytest.raises(LayoutError):
        layout_of(tmp_path, WORKSPACE, bad)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "relative/workdir",
        "{root}/{ws}/x/other",
        "{root}/{ws}/workdir",
        "{root}/other/x/workdir",
        "{root}/{ws}/x/y/workdir",
        "{root}/{ws}/../{ws}/x/workdir",
        "/home/u/project/workdir",
    ],
)
def test_only_a_directory_that_is_provably_ours_is_reused(tmp_path: Path, path: str) -> None:
    given = path.format(root=tmp_path, ws=WORKSPACE)
    assert layout_of_prior(tmp_path, WORKSPACE, given) is None


def test_our_own_prior_directory_is_found(tmp_path: Path) -> None:
    own = layout_of(tmp_path, WORKSPACE, uid("t"))
    assert layout_of_prior(tmp_path, WORKSPACE, str(own.work_dir)) == own


def test_a_link_in_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "project"
    elsewhere.mkdir()
    link = tmp_path / "root" / WORKSPACE / "x" / "workdir"
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    chosen = choose(task_of(prior_work_dir=str(link)), tmp_path / "root", LiveRoots())
    assert not chosen.reused


def test_a_live_root_lets_nobody_else_in(tmp_path: Path) -> None:
    live = LiveRoots()
    with live.hold(tmp_path):
        assert tmp_path in live
        with pytest.raises(PrepareError, match="in use"), live.hold(tmp_path):
            pass
        assert tmp_path in live
    assert tmp_path not in live


# -- prepare and reuse


def test_a_fresh_directory_has_everything(tmp_path: Path) -> None:
    work_dir = made(tmp_path, task_of())
    assert sorted(path.name for path in work_dir.parent.iterdir()) == [
        ".multica_sidecar_manifest.json",
        "logs",
        "output",
        "tmp",
        "workdir",
    ]
    assert uid("issue") in (work_dir / ".agent_context/issue_context.md").read_text()


def test_a_redelivered_task_starts_clean(tmp_path: Path) -> None:
    work_dir = made(tmp_path, task_of())
    (work_dir / "half").write_text("x")
    made(tmp_path, task_of())
    assert not (work_dir / "half").exists()


def test_reuse_keeps_the_work_and_renews_our_files(tmp_path: Path) -> None:
    skills = [Skill(name="Deploy", content="old", files=[SkillFile(path="a.md", content="a")])]
    work_dir = made(tmp_path, task_of("one", skills=skills))
    write_brief(choose(task_of("one"), tmp_path, LiveRoots()), "claude", "old brief")
    (work_dir / "repo").mkdir()
    (work_dir / "repo" / "main.py").write_text("work")
    (work_dir / ".claude/skills/mine").mkdir()
    second = task_of(
        "two",
        issue_id=uid("other"),
        prior_work_dir=str(work_dir),
        skills=[Skill(name="Deploy", content="new")],
    )
    assert made(tmp_path, second) == work_dir
    assert (work_dir / "repo" / "main.py").read_text() == "work"
    assert (work_dir / ".claude/skills/mine").is_dir()
    assert uid("other") in (work_dir / ".agent_context/issue_context.md").read_text()
    folders = sorted(path.name for path in (work_dir / ".claude/skills").iterdir())
    assert folders == ["deploy", "mine"], "no second copy under another name"
    assert "new" in (work_dir / ".claude/skills/deploy/SKILL.md").read_text()
    assert not (work_dir / ".claude/skills/deploy/a.md").exists()


def test_reuse_by_another_provider_takes_the_old_brief_away(tmp_path: Path) -> None:
    first = choose(task_of("one"), tmp_path, LiveRoots())
    prepare(task_of("one"), "direct", "claude", first)
    write_brief(first, "claude", "brief")
    (first.layout.work_dir / "AGENTS.md").write_text("the user's own")
    again = task_of("two", prior_work_dir=str(first.layout.work_dir))
    made(tmp_path, again, provider="demo")
    assert not (first.layout.work_dir / "CLAUDE.md").exists()
    write_brief(first, "demo", "brief")
    content = (first.layout.work_dir / "AGENTS.md").read_bytes()
    assert content.startswith(b"the user's own\n\n" + BEGIN)


def test_files_that_are_there_are_left_alone(tmp_path: Path) -> None:
    first = task_of("one")
    work_dir = made(tmp_path, first)
    (work_dir.parent / ".multica_sidecar_manifest.json").unlink()
    (work_dir / ".agent_context/issue_context.md").write_text("the user's")
    made(tmp_path, task_of("two", prior_work_dir=str(work_dir)))
    assert (work_dir / ".agent_context/issue_context.md").read_text() == "the user's"


def test_a_manifest_reaches_no_further_than_the_directory(tmp_path: Path) -> None:
    work_dir = tmp_path / "env" / "workdir"
    work_dir.mkdir(parents=True)
    precious = tmp_path / "precious"
    precious.write_text("x")
    manifest = tmp_path / "env" / "manifest.json"
    files = [str(precious), f"{work_dir}/../../precious", 5]
    manifest.write_text(json.dumps({"files": files, "dirs": [str(tmp_path)]}))
    clean_up(manifest, below=work_dir)
    assert precious.exists()
    manifest.write_text("{damaged")
    clean_up(manifest, below=work_dir)


def test_a_long_tmpdir_gets_a_short_name(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 60)
    folder.mkdir()
    with short_path(folder) as short:
        assert len(str(short)) < SHORT
        (short / "f").write_text("x")
        assert (folder / "f").exists()
    assert not short.is_symlink()
    assert (folder / "f").exists()
    with short_path(Path("/tmp")) as same:
        assert same == Path("/tmp")


# -- the brief in its file


@pytest.mark.parametrize(
    "before", [b"", b" \n", b"a", b"a\n", b"a\n\n\n", b"a\r\nb\r\n", b"\xff\xfe"]
)
def test_the_files_own_bytes_survive_any_number_of_briefs(before: bytes) -> None:
    content = before
    for brief in ("first\n\n", "second", "third"):
        content = written_brief(content, brief)
        assert content.count(BEGIN) == 1
        assert (
            content
            == before + b"\n\n" + BEGIN + b"\n" + brief.strip().encode() + b"\n" + END + b"\n"
        )
    assert without_block(content) == before


def test_a_file_that_was_only_ours_goes() -> None:
    content = written_brief(None, "x")
    assert content == BEGIN + b"\nx\n" + END + b"\n"
    assert without_block(content) is None


def test_a_block_without_its_end_is_repaired() -> None:
    torn = b"mine\n\n" + BEGIN + b"\nhalf"
    assert without_block(written_brief(torn, "whole")) == b"mine"


def test_text_behind_the_block_and_a_stray_end_stay() -> None:
    content = END + b"\n" + BEGIN + b"\nold\n" + END + b"\nafter"
    assert written_brief(content, "new") == END + b"\n" + BEGIN + b"\nnew\n" + END + b"\nafter"


# -- skills


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Deploy Safely!", "deploy-safely"), ("  --x--  ", "x"), ("日本語", "skill"), ("", "skill")],
)
def test_slugs(name: str, expected: str) -> None:
    assert slug(name) == expected


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../../x", "..", ".", "a\\b", "C:/x", "a\0"]
)
def test_a_skill_stays_in_its_directory(tmp_path: Path, path: str) -> None:
    with pytest.raises(SkillError):
        check_path("s", path)
    skill = Skill(name="s", content="x", files=[SkillFile(path=path, content="x")])
    with pytest.raises(PrepareError):
        made(tmp_path, task_of(skills=[skill]))


@pytest.mark.parametrize(
    ("paths", "why"),
    [(["x" * 300], "file name too long in 'xxx"), (["a", "a/b"], "'a' is a file, and a directory")],
)
def test_a_skill_that_cannot_be_written_says_why(
    tmp_path: Path, paths: list[str], why: str
) -> None:
    files = [SkillFile(path=path, content="x") for path in paths]
    with pytest.raises(PrepareError, match=f"skill 's' cannot be written: {why}"):
        made(tmp_path, task_of(skills=[Skill(name="s", content="x", files=files)]))


def test_a_skill_cannot_replace_its_own_text(tmp_path: Path) -> None:
    files = [
        SkillFile(path="a/../skill.md", content="no"),
        SkillFile(path="docs/SKILL.md", content="ok"),
    ]
    work_dir = made(tmp_path, task_of(skills=[Skill(name="s", content="yes", files=files)]))
    assert "yes" in (work_dir / ".claude/skills/s/SKILL.md").read_text()
    assert (work_dir / ".claude/skills/s/docs/SKILL.md").read_text() == "ok"


def test_two_skills_of_one_name_get_two_directories(tmp_path: Path) -> None:
    skills = [Skill(name="S", content=str(n)) for n in range(3)]
    work_dir = made(tmp_path, task_of(skills=skills), provider="demo")
    folders = sorted(path.name for path in (work_dir / ".agent_context/skills").iterdir())
    assert folders == ["s", "s-multica", "s-multica-2"]


BLOCK = '---\nname: s\ndescription: "a \\"b\\" c"\n---\n\n'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text", BLOCK + "text"),
        ("---\nname: own\n---\ntext", "---\nname: own\n---\ntext"),
        ("---\nallowed: x\n---\ntext", "---\nname: s\nallowed: x\n---\ntext"),
        ("---\nallowed: x\nname:\n---\nt", "---\nname: s\nallowed: x\n---\nt"),
        ("---\nname: ''\n---\nt", "---\nname: s\n---\nt"),
        ("---\r\na: x\r\n---\r\nt", "---\r\nname: s\r\na: x\r\n---\r\nt"),
        ("---\nnever closed", BLOCK + "---\nnever closed"),
        ("---\nname: x\n----\n--- x\n", BLOCK + "---\nname: x\n----\n--- x\n"),
        (" ---\nname: own\n---\nx", BLOCK + " ---\nname: own\n---\nx"),
        ("---\r\nname: own\r\n---\r\nx", "---\r\nname: own\r\n---\r\nx"),
        ("---\nname: own\ndescription: use: it\n---\ntext", BLOCK + "text"),
        ("---\nname: own\n---", "---\nname: own\n---"),
    ],
)
def test_frontmatter(content: str, expected: str) -> None:
    assert with_frontmatter(content, name="s", description='a "b"\nc') == expected


GOOD = [
    "name: x",
    "name: x\ndescription: plain, with (signs) - and 'quotes' http://x.test/a:b",
    'name: "x: y"\ndescription: "a \\" b" # why',
    "name: 'it''s'\nallowed-tools: Bash(multica *)",
    "name: x\nallowed-tools:\n  - Bash\n  - Read",
    "name: x\nallowed-tools:\n- Bash",
    "name: x\ndescription: |\n  use: it\n  @home\nmore: yes",
    "name: x\ndescription: >-\n  folded: text",
    "name: x\nmeta:\n  a: b\n  c: {d: e}",
    "name: x\ntools: [a, b]",
    "name: x\ntools: [\n  a,\n]",
    "# about\nname: x\n\nlicense: MIT # : free",
    "name: x\ndescription: long\n  goes on",
    "user-invocable: false\nname: x",
]
BAD = [
    "name: x\ndescription: use: it",
    "name: x\ndescription: it ends so:",
    'name: x\ndescription: "never closed',
    'name: x\ndescription: "closed" and more',
    "name: x\ndescription: 'it's'",
    "name: x\ndescription: @me",
    "name: x\ndescription: `code`",
    "name: x\ntools: [a",
    "name: x\n\tindented: y",
    "name: x\njust words",
    "name: x\ndescription: *unknown",
    "name: x\ndescription: %d",
    "",
    "# only a remark",
]


@pytest.mark.parametrize("block", GOOD)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_sound_blocks_stay(block: str, end: str) -> None:
    text = f"---\n{block}\n---\nx".replace("\n", end)
    assert with_frontmatter(text, name="s", description="d") in {
        text,
        text.replace(f"---{end}", f"---{end}name: s{end}", 1),
    }


@pytest.mark.parametrize("block", BAD)
def test_broken_blocks_do_not(block: str) -> None:
    text = f"---\n{block}\n---\nx"
    assert (
        with_frontmatter(text, name="s", description="d")
        == '---\nname: s\ndescription: "d"\n---\n\nx'
    )


def test_long_names_fit_and_stay_apart(tmp_path: Path) -> None:
    skills = [Skill(name="word " * 100 + end, content="x") for end in "ab"]
    work_dir = made(tmp_path, task_of(skills=skills))
    folders = sorted(path.name for path in (work_dir / ".claude/skills").iterdir())
    assert [len(folder.encode()) <= 255 for folder in folders] == [True, True]
    assert folders[1] == f"{folders[0]}-multica"


def test_reuse_leaves_no_second_copy_although_the_agent_wrote_into_the_first(
    tmp_path: Path,
) -> None:
    skills = [Skill(name="Deploy", content="x")]
    work_dir = made(tmp_path, task_of("one", skills=skills))
    (work_dir / ".claude/skills/deploy/cache").write_text("x")
    made(tmp_path, task_of("two", skills=skills, prior_work_dir=str(work_dir)))
    assert [path.name for path in (work_dir / ".claude/skills").iterdir()] == ["deploy"]
    again = task_of("three", skills=skills, prior_work_dir=str(work_dir))
    made(tmp_path, again, provider="kimi")
    assert not (work_dir / ".claude").exists(), "another provider's are gone"
    assert (work_dir / ".kimi/skills/deploy/SKILL.md").exists()


def test_a_link_made_by_the_agent_does_not_lead_the_clean_up_out(tmp_path: Path) -> None:
    skills = [Skill(name="Deploy", content="x")]
    work_dir = made(tmp_path / "root", task_of("one", skills=skills))
    precious = tmp_path / "precious"
    (precious / "skills/deploy").mkdir(parents=True)
    (precious / "skills/deploy/SKILL.md").write_text("the user's")
    shutil.rmtree(work_dir / ".claude")
    (work_dir / ".claude").symlink_to(precious)
    made(tmp_path / "root", task_of("two", prior_work_dir=str(work_dir)))
    assert (precious / "skills/deploy/SKILL.md").read_text() == "the user's"


# -- context files


@pytest.mark.parametrize("provider", ["claude", "codex"])
def test_no_link_of_an_agents_leads_what_we_write_elsewhere(tmp_path: Path, provider: str) -> None:
    precious = tmp_path / "precious"
    (precious / "folder").mkdir(parents=True)
    text = written_brief(b"mine", "somebody's")
    for name in ("brief", "other", "meta", "manifest", "folder/config.toml"):
        (precious / name).write_bytes(text)
    root = tmp_path / "root"
    first = task_of()
    work_dir = made(root, first, provider)
    env_root = work_dir.parent
    own, other = ("CLAUDE.md", "AGENTS.md") if provider == "claude" else ("AGENTS.md", "CLAUDE.md")
    for path, target in (
        (work_dir / own, "brief"),
        (work_dir / other, "other"),
        (env_root / ".gc_meta.json", "meta"),
        (env_root / ".multica_sidecar_manifest.json", "manifest"),
        (env_root / "codex-home", "folder"),
        (env_root / "tmp", "folder"),
        (env_root / "output", "folder"),
    ):
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(precious / target)
    again = task_of("again", prior_work_dir=str(work_dir))
    chosen = choose(again, root, LiveRoots())
    assert chosen.reused
    env = {"CODEX_HOME": str(tmp_path / "none")}
    with noting(env_root, again):
        chosen = prepare(again, "direct", provider, chosen, env)
        assert write_brief(chosen, provider, "the brief")
    for name in ("brief", "other", "meta", "manifest", "folder/config.toml"):
        assert (precious / name).read_bytes() == text, name
    assert b"the brief" in (work_dir / own).read_bytes()
    assert not (env_root / "tmp").is_symlink()


def test_a_whole_result_is_kept_in_the_tasks_own_directory(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "task").mkdir()
    output = tmp_path / "task" / "output"
    output.symlink_to(tmp_path / "precious")
    assert keep_whole(output / "result.md", "the agent's words")
    assert not list((tmp_path / "precious").iterdir())
    assert (output / "result.md").read_text() == "the agent's words"


def test_a_link_within_the_directory_is_the_agents_way_of_having_one_file(tmp_path: Path) -> None:
    work_dir = made(tmp_path, task_of())
    (work_dir / "AGENTS.md").write_text("ours\n")
    (work_dir / "CLAUDE.md").symlink_to("AGENTS.md")
    chosen = choose(task_of("again", prior_work_dir=str(work_dir)), tmp_path, LiveRoots())
    assert write_brief(chosen, "claude", "the brief")
    assert (work_dir / "CLAUDE.md").is_symlink()
    assert (work_dir / "AGENTS.md").read_text().startswith("ours\n")


def test_handoff_notes_are_quoted_on_every_line() -> None:
    text = render_context(task_of(handoff_note="do\nthis\r\nonly"), "direct", ["deploy"])
    assert "> do\n> this\n> only" in text
    assert "Skills: deploy" in text


def test_every_kind_has_its_own_context() -> None:
    chat = render_context(task_of(issue_id="", chat_session_id="c1"), "chat", [])
    assert "c1" in chat
    assert "issue get" not in chat
    pilot = task_of(
        issue_id="",
        autopilot_run_id="r1",
        autopilot_id="p1",
        autopilot_title="Nightly",
        autopilot_trigger_payload={"a": 1},
    )
    text = render_context(pilot, "autopilot", [])
    assert '"a": 1' in text
    assert "bullpen autopilot get p1" in text
    quick = render_context(task_of(quick_create_prompt="a\nb"), "quick_create", [])
    assert "> a\n> b" in quick
    comment = render_context(task_of(trigger_comment_id="c9"), "comment", [])
    assert "c9" in comment


def test_resources_are_written_only_for_projects(tmp_path: Path) -> None:
    assert render_resources(task_of()) is None
    resource = ProjectResource(id="r", resource_type="github_repo", resource_ref={"url": "u"})
    task = task_of(project_id="p", project_title="T", project_resources=[resource])
    document = json.loads((made(tmp_path, task) / ".multica/project/resources.json").read_text())
    assert document == {
        "project_id": "p",
        "project_title": "T",
        "resources": [{"id": "r", "resource_type": "github_repo", "resource_ref": {"url": "u"}}],
    }
