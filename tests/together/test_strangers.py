"""Something stands between a daemon and its server: it answers in its place, or takes and says nothing.

Real processes and a real clock. A stranger's word ends nothing, and nobody waits longer for the
server than it is away.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.bullpen import Bullpen, start_up, wait_for
from tests.support.proxy import Proxy, open_proxy
from tests.support.second_machine import Machine, check_run, second_machine

pytestmark = pytest.mark.together

AWAY = 4.0
"""Seconds a proxy answers for the server, as while a deployment is replaced."""

SOON = 5.0
"""Seconds after which wake-ups are back when the server is."""


@contextmanager
def behind_a_proxy(tmp_path: Path, *, items: int) -> Iterator[tuple[Bullpen, Proxy, Machine, str]]:
    with start_up(tmp_path / "home") as bullpen:
        port = int(bullpen.told["url"].rsplit(":", 1)[1])
        with (
            open_proxy(port) as proxy,
            second_machine(bullpen, tmp_path / "second", proxy.url, items=items, pause=0.03) as (
                machine,
                agent,
            ),
        ):
            yield bullpen, proxy, machine, agent


@pytest.mark.parametrize("items", [40, 400], ids=["while it reports", "in the middle of the work"])
def test_a_proxys_404_ends_nothing(tmp_path: Path, items: int) -> None:
    with behind_a_proxy(tmp_path, items=items) as (bullpen, proxy, machine, agent):
        issue = bullpen.create_issue("Not found", assignee=agent)
        task = bullpen.wait_for_task(issue["id"], "running")
        wait_for("the first messages", lambda: bullpen.messages(task["id"]) or None)
        proxy.stand_in("404 Not Found", "404 page not found\n")
        until = time.monotonic() + AWAY
        while time.monotonic() < until:
            assert list((machine.home / "journals").glob("*")), "a stranger ended the journal"
            time.sleep(0.05)
        assert proxy.strange_answers > 3, "it was hardly asked"
        assert bullpen.tasks(issue["id"])[0]["status"] == "running"
        proxy.heal()
        done = bullpen.wait_for_task(issue["id"], "completed", seconds=60)
        machine.wait_until_told()
        assert done["id"] == task["id"], "it was run again"
        assert len(bullpen.tasks(issue["id"])) == 1
        assert done["result"]["output"] == "all said"
        check_run(machine.chatty, done, bullpen.messages(task["id"]), 0.0)
        with bullpen.api() as api:
            usage: Any = api.get(f"/api/issues/{issue['id']}/usage").raise_for_status().json()
        assert (usage["total_input_tokens"], usage["total_output_tokens"]) == (11, 7)


@pytest.mark.parametrize("answered", [True, False], ids=["answered late", "never answered"])
def test_wake_ups_are_back_soon_after_handshakes_that_stalled(
    tmp_path: Path, answered: bool
) -> None:
    """For 14 s the peer takes connections and leaves requests for a websocket unanswered."""
    with behind_a_proxy(tmp_path, items=1) as (bullpen, proxy, machine, agent):

        def opened() -> int:
            return (machine.home / "daemon.log").read_text().count("websocket open")

        wait_for("the websocket", lambda: opened() or None)
        before = opened()
        proxy.stall_websockets()
        wait_for("a handshake that stalls", lambda: proxy.stalled or None)
        time.sleep(14)
        assert opened() == before
        proxy.heal(answer=answered)
        well = time.monotonic()
        wait_for("the websocket again", lambda: opened() > before, seconds=20)
        assert time.monotonic() - well < SOON
        issue = bullpen.create_issue("Wake up", assignee=agent)
        given_out = time.monotonic()
        bullpen.wait_for_task(issue["id"], "running", "completed")
        assert time.monotonic() - given_out < SOON, "it waited for the next poll"
