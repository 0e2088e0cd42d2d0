"""The skills that come with the server keep their contract, and name only commands there are."""

from __future__ import annotations

import re

import click
import pytest

from daemon.cli import root
from server.dispatch import builtin_skills
from shared.skillbundle import is_safe_path
from shared.wire.task import SkillBundle

pytestmark = pytest.mark.fast

HEAD = re.compile(
    r'---\nname: (?P<name>[a-z-]+)\ndescription: "(?P<description>[^"\\\n]{1,1024})"\n'
    r"user-invocable: false\nallowed-tools: Bash\(bullpen \*\), Bash\(multica \*\)[^\n]*\n---\n\n"
)


@pytest.mark.parametrize("bundle", builtin_skills.BUNDLES.values(), ids=lambda one: one.name)
def test_a_skill_is_one_that_every_program_reads(bundle: SkillBundle) -> None:
    head = HEAD.match(bundle.content)
    assert head is not None
    assert head["name"] == bundle.name
    assert bundle.name.startswith("bullpen-")
    assert bundle.content.count("\n") <= 500
    assert all(is_safe_path(file.path) for file in bundle.files)
    # An agent under a stock daemon has the command by its other name only.
    assert "`bullpen`; where that is not on the path, `multica` is the same" in bundle.content
    assert (bundle.id, bundle.description) == (f"builtin:{bundle.name}", "")


def commands(text: str) -> set[tuple[str, ...]]:
    """What is said of the command: the words after it, up to the first that is no command."""
    found: set[tuple[str, ...]] = set()
    for line in re.findall(r"bullpen ((?:[a-z|-]+ ?)+)", text):
        words = [word.split("|") for word in line.split()]
        first, rest = words[0][0], words[1:]
        for second in rest[0] if rest else [""]:
            found.add((first, second, *(names[0] for names in rest[1:2])))
    return found


def test_every_command_that_is_named_exists() -> None:
    missing: list[str] = []
    context = click.Context(root.root)
    named = {
        words
        for bundle in builtin_skills.BUNDLES.values()
        for words in commands(bundle.content.partition("\n---\n")[2])
    }
    assert len(named) > 25
    for words in named:
        at: click.Command | None = root.root
        for word in filter(None, words):
            if not isinstance(at, click.Group):
                break
            at = at.get_command(context, word)
            if at is None:
                missing.append(" ".join(words))
                break
    assert not missing, missing
