"""Skills on this machine: what is listed, what is read, and every limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.agents import local_skills
from daemon.agents.frontmatter import described
from daemon.agents.local_skills import SkillError, import_skill, list_skills
from shared import codec

pytestmark = pytest.mark.fast

HEAD = "---\nname: {name}\ndescription: What it does\n---\nbody\n"


def _skill(folder: Path, name: str = "", **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "SKILL.md").write_text(HEAD.format(name=name) if name else "no head\n")
    for path, text in files.items():
        file = folder / path.replace("__", "/").replace("_md", ".md")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def _keys(home: Path, provider: str = "claude", **env: str) -> list[str]:
    listed = list_skills(provider, home=home, env=env)
    assert listed is not None
    return [skill.key for skill in listed]


# -- listing


def test_a_list_says_what_the_protocol_wants(tmp_path: Path) -> None:
    skill = _skill(tmp_path / ".claude/skills/release/reporter", "Reporter", a_md="A", sub__b="B")
    (skill / "LICENSE.txt").write_text("no")
    [entry] = list_skills("claude", home=tmp_path, env={}) or []
    assert codec.unstructure(entry) == {
        "key": "release/reporter",
        "name": "Reporter",
        "description": "What it does",
        "source_path": "~/.claude/skills/release/reporter",
        "provider": "claude",
        "root": "provider",
        "file_count": 3,
    }


@pytest.mark.parametrize(
    ("provider", "place"),
    [
        ("claude", ".claude/skills"),
        ("codebuddy", ".claude/skills"),
        ("codex", ".codex/skills"),
        ("copilot", ".copilot/skills"),
        ("opencode", ".config/opencode/skills"),
        ("openclaw", ".openclaw/skills"),
        ("pi", ".pi/agent/skills"),
        ("cursor", ".cursor/skills"),
        ("kiro", ".kiro/skills"),
        ("antigravity", ".gemini/antigravity-cli/skills"),
    ],
)
def test_every_provider_has_its_place_and_shares_the_universal_one(
    tmp_path: Path, provider: str, place: str
) -> None:
    assert _keys(tmp_path, provider) == [], "a missing root is fine"
    _skill(tmp_path / place / "own", "Own")
    _skill(tmp_path / place / "both", "Provider's")
    _skill(tmp_path / ".agents/skills/both", "Universal's")
    _skill(tmp_path / ".agents/skills/any", "Any")
    listed = list_skills(provider, home=tmp_path, env={}) or []
    assert [(skill.key, skill.name, skill.root) for skill in listed] == [
        ("any", "Any", "universal"),
        ("both", "Provider's", "provider"),
        ("own", "Own", "provider"),
    ]


def test_codex_may_live_elsewhere(tmp_path: Path) -> None:
    _skill(tmp_path / "elsewhere/skills/a")
    assert _keys(tmp_path, "codex", CODEX_HOME=str(tmp_path / "elsewhere")) == ["a"]
    assert _keys(tmp_path, "codex") == []
    [entry] = (
        list_skills("codex", home=tmp_path / "x", env={"CODEX_HOME": str(tmp_path / "elsewhere")})
        or []
    )
    assert entry.source_path == str(tmp_path / "elsewhere/skills/a"), "outside of the home"


@pytest.mark.parametrize("provider", ["hermes", "kimi", "qoder", "demo", "unheard-of"])
def test_others_keep_none(tmp_path: Path, provider: str) -> None:
    assert list_skills(provider, home=tmp_path, env={}) is None
    with pytest.raises(SkillError, match="cannot be imported"):
        import_skill(provider, "a", home=tmp_path, env={})


def test_what_is_looked_into(tmp_path: Path) -> None:
    root = tmp_path / ".claude/skills"
    _skill(root / "1/2/3/deep")
    _skill(root / "1/2/3/4/too-deep")
    _skill(root / "skill")
    _skill(root / "skill/inner")
    _skill(root / ".hidden")
    _skill(root / "dir/.git/x")
    _skill(root / "LICENSE")
    (root / "file").write_text("")
    (root / "empty").mkdir()
    assert _keys(tmp_path) == ["1/2/3/deep", "skill"]


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    root = tmp_path / ".claude/skills"
    _skill(tmp_path / "work/mine", "Mine")
    root.mkdir(parents=True)
    (root / "linked").symlink_to(tmp_path / "work")
    (root / "again").symlink_to(tmp_path / "work")
    (tmp_path / "work/back").symlink_to(root)
    (tmp_path / "work/self").symlink_to(tmp_path / "work")
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".agents").mkdir()
    (tmp_path / ".agents/skills").symlink_to(root)
    listed = list_skills("claude", home=tmp_path, env={}) or []
    assert [(skill.key, skill.root) for skill in listed] == [("again/mine", "provider")]
    assert listed[0].source_path == "~/.claude/skills/again/mine", "as it is reached"


def test_a_root_that_cannot_be_read_fails_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir

    def refuse(path: Path) -> list[str]:
        if str(path).endswith(".claude/skills"):
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(SkillError, match="Permission denied"):
        list_skills("claude", home=tmp_path, env={})


def test_unreadable_and_oversized_skills_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / ".claude/skills"
    _skill(root / "good")
    (_skill(root / "big") / "SKILL.md").write_text("x" * (local_skills.LARGEST_FILE + 1))
    (root / "odd/SKILL.md").mkdir(parents=True)
    os.mkfifo(_skill(root / "pipe") / "SKILL.md.pipe")
    (root / "piped").mkdir()
    os.mkfifo(root / "piped/SKILL.md")
    many = {f"f{number}": "" for number in range(local_skills.MOST_FILES + 1)}
    _skill(root / "many", **many)
    assert _keys(tmp_path) == ["good", "pipe"]


# -- importing


def _import(home: Path, key: str) -> local_skills.ImportedSkill:
    return import_skill("claude", key, home=home, env={})


def test_an_import_brings_the_files_and_leaves_out_what_does_not_belong(tmp_path: Path) -> None:
    folder = _skill(tmp_path / ".claude/skills/a/b", "B", z="Z", sub__a="A", sub__SKILL_md="inner")
    (folder / "skill.MD").write_text("another case")
    (folder / ".env").write_text("secret")
    (folder / "sub/license").write_text("law")
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("x")
    (folder / "link").symlink_to("/etc/hostname")
    (folder / "linked").symlink_to("/etc")
    (folder / "huge").write_bytes(b"x" * (local_skills.LARGEST_FILE + 1))
    (folder / "bytes").write_bytes(b"\xff\xfe")
    skill = _import(tmp_path, " a/./b/ ")
    assert codec.unstructure(skill) == {
        "name": "B",
        "description": "What it does",
        "content": HEAD.format(name="B"),
        "source_path": "~/.claude/skills/a/b",
        "provider": "claude",
        "files": [
            {"path": "bytes", "content": "\ufffd\ufffd"},
            {"path": "sub/a", "content": "A"},
            {"path": "z", "content": "Z"},
        ],
    }


@pytest.mark.parametrize(
    "key", ["", "  ", ".", "..", "../x", "a/../../x", "/etc", "a/..", "x\0y", "..\\x"]
)
def test_keys_that_lead_elsewhere_are_refused(tmp_path: Path, key: str) -> None:
    _skill(tmp_path / ".claude/x")
    _skill(tmp_path / ".claude/skills")
    with pytest.raises(SkillError, match="no key"):
        _import(tmp_path, key)


def test_the_next_root_is_tried_only_where_nothing_is(tmp_path: Path) -> None:
    own, universal = tmp_path / ".claude/skills", tmp_path / ".agents/skills"
    for key in ("file", "bare", "absent", "file/below", "broken"):
        _skill(universal / key, "Universal's")
    own.mkdir(parents=True)
    (own / "file").write_text("no directory")
    (own / "bare").mkdir()
    for key in ("file", "bare", "absent", "file/below"):
        assert _import(tmp_path, key).name == "Universal's"
    (own / "broken").symlink_to(own / "broken")  # a loop: an error, and no substitute
    with pytest.raises(SkillError, match="symbolic links"):
        _import(tmp_path, "broken")
    with pytest.raises(SkillError, match="no skill 'nothing'"):
        _import(tmp_path, "nothing")


def test_limits_of_an_import(tmp_path: Path) -> None:
    root = tmp_path / ".claude/skills"
    many = {f"f{number:03}": "" for number in range(local_skills.MOST_FILES)}
    _skill(root / "many", **many)
    assert len(_import(tmp_path, "many").files) == 128
    (root / "many/one-more").write_text("")
    with pytest.raises(SkillError, match="more than 128 files"):
        _import(tmp_path, "many")
    largest = "x" * local_skills.LARGEST_FILE
    _skill(root / "heavy", **{f"f{number}": largest for number in range(7)})
    (root / "heavy/rest").write_text("y" * (local_skills.LARGEST_FILE - len("no head\n")))
    assert len(_import(tmp_path, "heavy").files) == 8
    (root / "heavy/rest").write_text("y" * (local_skills.LARGEST_FILE - len("no head\n") + 1))
    with pytest.raises(SkillError, match="larger than 8388608 bytes"):
        _import(tmp_path, "heavy")
    (root / "heavy/SKILL.md").write_text(largest + "x")
    with pytest.raises(SkillError, match=r"SKILL\.md is larger than 1048576 bytes"):
        _import(tmp_path, "heavy")


# -- what a skill says of itself: the values are PyYAML's


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("name: a\ndescription: b", ("a", "b")),
        ("name: \"a: b\"\ndescription: 'it''s'", ("a: b", "it's")),
        ("name: a\r\ndescription: b\r", ("a", "b")),
        ("name: a#b\ndescription: http://x.y/z # why", ("a#b", "http://x.y/z")),
        ("name: 1.10\ndescription: true", ("1.10", "true")),
        ("name: ~\ndescription: null", ("", "")),
        ("name:\ndescription:", ("", "")),
        ("name: x\ndescription: plain\n  goes on\n\n  para", ("x", "plain goes on\npara")),
        ("name: x\ndescription: >\n  a\n  b\n\n  c\n    d\n  e", ("x", "a b\nc\n  d\ne\n")),
        ("name: x\ndescription: >-\n  a\n  b", ("x", "a b")),
        ("name: x\ndescription: |\n  a\n    b\n\n  # c", ("x", "a\n  b\n\n# c\n")),
        ("name: x\ndescription: |-\n  a\n\n", ("x", "a")),
        ("description: |+\n  a\n\nname: x", ("x", "a\n\n")),
        ("description: |2\n    two more\n  x\nname: n", ("n", "  two more\nx\n")),
        ('name: x\ndescription: "multi\n  line \\\n  joined\\n\\u00e9"', ("x", "multi line joined\né")),
        ("name: x\ndescription: 'a\n\n  b'", ("x", "a\nb")),
        ("name: [a, b]\ndescription: {a: 1, b: [true, null]}", ('["a","b"]', '{"a":1,"b":[true,null]}')),
        ("name: x\ntools:\n- a\n- b: 1\n  c: 2\n- - y\ndescription: d", ("x", "d")),
        ('name: x\nhooks:\n  Pre:\n    - m: "B"\n      h:\n        - t: c\ndescription: d', ("x", "d")),
        ('{name: x, description: "y"}', ("x", "y")),
        ("# c\n\nname: x\n# d\ndescription: a, b [c] {d} - e", ("x", "a, b [c] {d} - e")),
        ("name: x\nnested:\n  description: no", ("x", "")),
        ("name: x\ndescription: Use when: foo", ("", "")),
        ("name: x\ndescription: - no", ("", "")),
        ('name: x\ndescription: "a" b', ("", "")),
        ("name: 'unclosed\ndescription: x", ("", "")),
        ("name: x\n description: y", ("", "")),
        ("\tname: x", ("", "")),
        ("name: x\ndescription: @foo", ("", "")),
        ("name: x\nargument-hint: [issue] [more]", ("", "")),
        ("- a\n- b", ("", "")),
        ("just text", ("", "")),
        ("name: " + "[" * 5000, ("", "")),
    ],
)  # fmt: skip
def test_what_a_skill_says_of_itself(head: str, expected: tuple[str, str]) -> None:
    assert described(f"---\n{head}\n---\nbody\nname: not this") == expected


@pytest.mark.parametrize("text", ["", "---\nname: x\n", "name: x\n---\n", " ---\nname: x\n---\n"])
def test_without_a_head_it_says_nothing(text: str) -> None:
    assert described(text) == ("", "")


def test_a_skill_without_a_name_has_its_directorys(tmp_path: Path) -> None:
    _skill(tmp_path / ".claude/skills/deep/reporter")
    assert _import(tmp_path, "deep/reporter").name == "reporter"
