"""A daemon is killed or cut off at random moments; what its agent said is what the server has.

The agent keeps a log of its own. A run that was killed with its daemon may miss what was still on
its way between the two processes, nothing else; the run that completes misses nothing.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.bullpen import start_up, wait_for
from tests.support.proxy import open_proxy
from tests.support.second_machine import check_run, second_machine

pytestmark = pytest.mark.together

KILLS = int(os.environ.get("BULLPEN_TEST_KILLS", "20"))


def test_a_daemon_killed_at_twenty_random_moments_loses_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    runs_killed = 0
    with (
        start_up(tmp_path / "home") as bullpen,
        second_machine(bullpen, tmp_path / "second", bullpen.told["url"], items=60, pause=0.03) as (
            machine,
            agent,
        ),
    ):
        for number in range(KILLS):
            issue = bullpen.create_issue(f"Kill {number}", assignee=agent)
            time.sleep(dice.uniform(0.0, 2.6))
            machine.kill()
            killed_at = time.time()
            machine.start()

            def settled(issue_id: str = issue["id"]) -> Any:
                rows = bullpen.tasks(issue_id)
                return rows if rows and rows[0]["status"] == "completed" else None

            rows = wait_for("the run to complete", settled, seconds=60)
            machine.wait_until_told()
            runs_killed += len(rows) - 1
            assert [row["status"] for row in rows].count("completed") == 1
            for row in rows:
                check_run(machine.chatty, row, bullpen.messages(row["id"]), killed_at)
    assert runs_killed > KILLS // 4, "most kills came too late to mean anything"


def test_a_server_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    with (
        start_up(tmp_path / "home") as bullpen,
        second_machine(
            bullpen, tmp_path / "second", bullpen.told["url"], items=400, pause=0.03
        ) as (machine, agent),
    ):
        issue = bullpen.create_issue("Server kills", assignee=agent)
        task = bullpen.wait_for_task(issue["id"], "running")
        for _ in range(3):  # `up` gives a server up that dies more often in a minute
            time.sleep(dice.uniform(0.5, 2.5))
            old = bullpen.told["server_pid"]
            os.kill(old, signal.SIGKILL)
            wait_for("a new server", lambda old=old: bullpen.told["server_pid"] != old or None)
        done = bullpen.wait_for_task(issue["id"], "completed", seconds=60)
        machine.wait_until_told()
        assert done["id"] == task["id"], "it was run again"
        assert len(bullpen.tasks(issue["id"])) == 1
        check_run(machine.chatty, done, bullpen.messages(task["id"]), 0.0)


def test_a_partition_of_a_minute_loses_nothing(tmp_path: Path) -> None:
    with start_up(tmp_path / "home") as bullpen:
        port = int(bullpen.told["url"].rsplit(":", 1)[1])
        with (
            open_proxy(port) as proxy,
            second_machine(bullpen, tmp_path / "second", proxy.url, items=600, pause=0.03) as (
                machine,
                agent,
            ),
        ):
            issue = bullpen.create_issue("Cut off", assignee=agent)
            task = bullpen.wait_for_task(issue["id"], "running")
            wait_for("the first messages", lambda: len(bullpen.messages(task["id"])) > 20 or None)
            proxy.cut()
            time.sleep(60)
            assert bullpen.tasks(issue["id"])[0]["status"] == "running"
            proxy.heal()
            done = bullpen.wait_for_task(issue["id"], "completed", seconds=60)
            assert done["id"] == task["id"], "it was run again"
            assert len(bullpen.tasks(issue["id"])) == 1
            machine.wait_until_told()
            check_run(machine.chatty, done, bullpen.messages(task["id"]), 0.0)


IMPATIENT = {
    "BULLPEN_OFFLINE_AFTER": "4",
    "BULLPEN_OFFLINE_GRACE": "2",
    "BULLPEN_SWEEP_INTERVAL": "1",
    "BULLPEN_DAEMON_HEARTBEAT_INTERVAL": "1s",
}


def test_an_agent_whose_machine_was_given_up_goes_on_where_it_was(tmp_path: Path) -> None:
    """As when a laptop sleeps for longer than the server waits."""
    with start_up(tmp_path / "home", env=IMPATIENT) as bullpen:
        port = int(bullpen.told["url"].rsplit(":", 1)[1])
        with (
            open_proxy(port) as proxy,
            second_machine(bullpen, tmp_path / "second", proxy.url, items=900, pause=0.03) as (
                machine,
                agent,
            ),
        ):
            issue = bullpen.create_issue("Given up", assignee=agent)
            task = bullpen.wait_for_task(issue["id"], "running")
            wait_for("the first messages", lambda: len(bullpen.messages(task["id"])) > 20 or None)
            proxy.cut()

            def given_up() -> Any:
                rows = bullpen.tasks(issue["id"])
                return len(rows) == 2 and rows[1]["status"] == "failed"

            wait_for("the server to give it up", given_up)
            assert bullpen.tasks(issue["id"])[1]["failure_reason"] == "runtime_offline"
            proxy.heal()

            def completed() -> Any:
                rows = bullpen.tasks(issue["id"])
                return next((row for row in rows if row["status"] == "completed"), None)

            done = wait_for("the task to complete", completed, seconds=90)
            machine.wait_until_told()
            assert done["id"] == task["id"], "it was run again"
            states = {row["id"]: row["status"] for row in bullpen.tasks(issue["id"])}
            assert sorted(states.values()) == ["cancelled", "completed"]
            check_run(machine.chatty, done, bullpen.messages(task["id"]), 0.0)
