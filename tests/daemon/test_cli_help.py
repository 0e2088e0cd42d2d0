"""What the command line says of itself: each group lists its commands, and wrong words lead on."""

from __future__ import annotations

import click
import pytest

from daemon.cli import root
from daemon.cli.root import COMMANDS
from daemon.cli.settings import Settings

pytestmark = pytest.mark.fast


def groups(command: click.Command, words: tuple[str, ...]) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return []
    found = [words]
    for name, child in command.commands.items():
        found += groups(child, (*words, name))
    return found


def all_groups() -> list[tuple[str, ...]]:
    context = click.Context(root.root)
    found: list[tuple[str, ...]] = []
    for name in COMMANDS:
        command = root.root.get_command(context, name)
        assert command is not None
        found += groups(command, (name,))
    return found


@pytest.mark.parametrize("words", all_groups(), ids=" ".join)
@pytest.mark.parametrize("columns", ["52", "80"])
def test_a_groups_help_tells_each_command_whole(
    words: tuple[str, ...],
    columns: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert root.run((*words, "--help"), Settings(env={})) == 0
    out = capsys.readouterr().out
    assert "..." not in out.partition("Commands:")[2]
    assert all(len(line) <= int(columns) for line in out.splitlines() if "Usage" not in line)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("sessions", "did you mean `bullpen auth sessions`?"),
        ("allow-dir", "did you mean `bullpen daemon allow-dir`?"),
        ("isue", "did you mean `bullpen issue`?"),
        ("xyzzy", "There is no command 'xyzzy'\n"),
    ],
)
def test_a_wrong_command_leads_to_the_right_one(
    word: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert root.run((word,), Settings(env={})) == 1
    assert hint in capsys.readouterr().err
