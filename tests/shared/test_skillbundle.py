"""Skill bundles: the protocol's test vectors, and what is refused (spec 01 §3.7)."""

from __future__ import annotations

import attrs
import pytest

from shared.skillbundle import (
    InvalidBundle,
    check,
    clash,
    hash_of,
    is_safe_path,
    make_bundle,
    path_fault,
    ref_of,
)
from shared.wire.task import SkillBundle, SkillFile

pytestmark = pytest.mark.fast


def bundle(
    source: str, skill_id: str, name: str, description: str, content: str, **files: str
) -> str:
    listed = [SkillFile(path=path.replace("_", "."), content=text) for path, text in files.items()]
    return hash_of(
        SkillBundle(
            source=source,
            id=skill_id,
            name=name,
            description=description,
            content=content,
            files=listed,
        )
    )


def test_the_vectors_of_the_protocol() -> None:
    assert bundle("workspace", "skill-1", "deploy", "", "main") == (
        "sha256:b83948ff81671da9ad2125bf2aa6adb5dcb2dbda53affbdff848130c30eeec19"
    )
    both = "sha256:33e66181e0c3f20ddd25e788217aa60776a46852beebe562ef6621b543e84fd4"
    assert bundle("workspace", "skill-1", "deploy", "", "main", b_md="b", a_md="a") == both
    assert bundle("workspace", "skill-1", "deploy", "", "main", a_md="a", b_md="b") == both
    assert bundle("builtin", "builtin:demo", "demo", "", "héllo\n") == (
        "sha256:3549c30d46b9e1eb01c80230ed06b626f410e8144ce3425cb92c41e758eabd64"
    )


def deploy() -> SkillBundle:
    return make_bundle(
        skill_id="11111111-2222-3333-4444-555555555555",
        name="deploy",
        description="Deploy safely",
        content="main content",
        files={"rules.md": "rules"},
    )


def test_a_bundle_made_here() -> None:
    made = deploy()
    assert made.hash == "sha256:4106b70fa75058794b96e0003592358d923d67b78ea969e25a1f3539e5aba156"
    assert made.size_bytes == 17
    digest = "sha256:6c621d1a05138a7888d37d9269a9da8e2e11e4aced2f6cfd24b05ab1b9e61bb0"
    ref = ref_of(made)
    assert (ref.file_count, ref.files) == (
        1,
        [SkillFile(path="rules.md", sha256=digest, size_bytes=5)],
    )
    check(made, ref)


@pytest.mark.parametrize(
    "change",
    [
        {"content": "other"},
        {"hash": "sha256:0"},
        {"id": "x"},
        {"source": "builtin"},
        {"size_bytes": 18},
    ],
)
def test_a_bundle_that_is_not_what_was_meant(change: dict[str, object]) -> None:
    made = deploy()
    with pytest.raises(InvalidBundle):
        check(attrs.evolve(made, **change), ref_of(made))


@pytest.mark.parametrize(
    "path", ["", ".", "..", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a\\b", "a\0"]
)
def test_paths_that_are_refused(path: str) -> None:
    assert not is_safe_path(path)
    broken = make_bundle(skill_id="i", name="n", description="", content="", files={path: "x"})
    with pytest.raises(InvalidBundle):
        check(broken, ref_of(broken))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("x" * 300, "file name too long"),
        (f"docs/{'é' * 128}.md", "file name too long"),
        ("/".join(["part"] * 200), "file path too long"),
    ],
)
def test_a_name_no_file_system_takes_is_refused_and_says_why(path: str, why: str) -> None:
    assert why in path_fault(path)
    assert len(path_fault(path)) < 250
    broken = make_bundle(skill_id="i", name="n", description="", content="", files={path: "x"})
    with pytest.raises(InvalidBundle, match=why):
        check(broken, ref_of(broken))


def test_a_file_cannot_be_a_directory_too() -> None:
    broken = make_bundle(
        skill_id="i", name="n", description="", content="", files={"a": "x", "a/b/c": "y"}
    )
    with pytest.raises(InvalidBundle, match="'a' is a file, and a directory of 'a/b/c'"):
        check(broken, ref_of(broken))
    assert clash(["a", "ab/c", "/x"]) == ""


def test_paths_that_are_not() -> None:
    assert is_safe_path("é" * 127)
    assert all(is_safe_path(path) for path in ("a", "a/b.md", "..a", "a..b/c"))
