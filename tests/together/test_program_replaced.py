"""An installer takes an agent's program away for some seconds: who is given work then waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.bullpen import start_up
from tests.support.second_machine import check_run, second_machine

pytestmark = pytest.mark.together

AWAY = 5.0


def _nothing(program: Path) -> None:
    """The name is gone."""


def _empty(program: Path) -> None:
    program.touch(mode=0o755)


def _not_executable(program: Path) -> None:
    program.write_text("#!/bin/sh\n")
    program.chmod(0o644)


@pytest.mark.parametrize("leave", [_nothing, _empty, _not_executable])
def test_a_program_that_is_being_replaced_is_waited_for(
    tmp_path: Path, leave: Callable[[Path], None]
) -> None:
    with (
        start_up(tmp_path / "home") as bullpen,
        second_machine(bullpen, tmp_path / "second", bullpen.told["url"], items=5, pause=0.01) as (
            machine,
            agent,
        ),
    ):
        program = machine.chatty.bin / "claude"
        aside = program.rename(program.with_name("claude.old"))
        leave(program)
        issue = bullpen.create_issue("Installed anew", assignee=agent)
        time.sleep(AWAY)
        [task] = bullpen.tasks(issue["id"])
        assert task["status"] in {"dispatched", "running"}, task
        aside.replace(program)
        done = bullpen.wait_for_task(issue["id"], "completed", seconds=30)
        assert len(bullpen.tasks(issue["id"])) == 1, "it was run again"
        machine.wait_until_told()
        check_run(machine.chatty, done, bullpen.messages(done["id"]), 0.0)
        assert "trying again" in (machine.home / "daemon.log").read_text()
