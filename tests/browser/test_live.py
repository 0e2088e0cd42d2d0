"""Watching agents work: the live card, in every way it can be interrupted."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.browser.conftest import Eye, Visit, picture
from tests.browser.machine import Machine
from tests.support.bullpen import Bullpen

pytestmark = pytest.mark.browser


def seqs(page: Page) -> list[int]:
    """The numbers of the transcript's rows, in the order they stand on the page."""
    found: list[int] = page.eval_on_selector_all(
        ".transcript [data-seq]", "rows => rows.map((row) => Number(row.dataset.seq))"
    )
    return found


def wait_for_seqs(page: Page, last: int) -> None:
    """Wait until the transcript's newest row is `last`; then every row must be there once."""
    expect(page.locator(f'.transcript [data-seq="{last}"]')).to_be_attached()
    assert seqs(page) == list(range(1, last + 1))


def test_an_issue_for_the_demo_agent_is_worked_on_before_your_eyes(
    visit: Visit, bullpen: Bullpen
) -> None:
    page = visit("/bullpen/issues")
    page.get_by_role("button", name="New issue").first.click()
    page.get_by_label("Title").fill("Say hello from the browser")
    page.get_by_label("Description").fill("Write a file and tell me **what** you did.")
    page.locator("#new-assignee").select_option(label="demo (demo)")
    page.get_by_role("button", name="Create issue").click()
    page.wait_for_url("**/issues/BUL-*")

    card = page.locator("[data-card]")
    expect(card).to_be_visible()
    expect(card.locator("[data-seq]").first).to_be_attached()
    picture(page, "live-card")
    expect(card).to_have_count(0, timeout=30_000)

    expect(page.locator(".run.completed")).to_have_count(1)
    expect(page.locator(".comment")).not_to_have_count(0)
    expect(page.locator("#set-status")).to_have_value("in_review")

    page.locator(".run summary").first.click()
    issue = page.evaluate("document.body.dataset.issue")
    told = bullpen.messages(bullpen.tasks(issue)[0]["id"])
    assert [row["seq"] for row in told] == list(range(1, len(told) + 1))
    wait_for_seqs(page, len(told))
    picture(page, "finished")


def test_a_reload_in_the_middle_misses_nothing(
    visit: Visit, machine: Machine, agent: dict[str, Any]
) -> None:
    issue = machine.issue("Reload in the middle", agent)
    page = visit(f"/bullpen/issues/{issue['identifier']}")
    expect(page.locator(".state")).to_have_text("Queued")
    task = machine.claim()
    expect(page.locator(".state")).to_have_text("Preparing")
    machine.start(task)
    expect(page.locator(".state")).to_have_text("Running")
    machine.progress(task, "Launching claude", 1, 2)
    expect(page.locator(".run-progress")).to_contain_text("Launching claude (1 of 2)")
    machine.count(task, 1, 5)
    wait_for_seqs(page, 5)

    page.reload(wait_until="commit")
    machine.count(task, 6, 9)
    wait_for_seqs(page, 9)
    expect(page.locator(".run-progress")).to_contain_text("Launching claude (1 of 2)")
    machine.count(task, 10, 12)
    wait_for_seqs(page, 12)

    machine.complete(task, "Here is what I did.")
    expect(page.locator("[data-card]")).to_have_count(0)
    expect(page.locator(".run .state")).to_have_text("Completed")
    expect(page.locator(".comment .prose")).to_have_text("Here is what I did.")
    wait_for_seqs(page, 12)


class Wire:
    """The page's websocket with a hand on it: frames can be swallowed, the line can be cut."""

    def __init__(self, page: Page) -> None:
        self.up = True
        self.lost: set[int] = set()
        self.sockets: list[WebSocketRoute] = []
        page.route_web_socket("**/ws?*", self._connected)

    def _connected(self, socket: WebSocketRoute) -> None:
        if not self.up:
            socket.close(code=1013)
            return
        self.sockets.append(socket)
        server = socket.connect_to_server()

        def from_server(frame: str | bytes) -> None:
            if not any(f'"seq":{number},' in str(frame) for number in self.lost):
                socket.send(frame)

        server.on_message(from_server)

    def cut(self) -> None:
        self.up = False
        for socket in self.sockets:
            socket.close(code=1013)
        self.sockets.clear()


def test_a_cut_connection_is_shown_and_made_up_for(
    visit: Visit, machine: Machine, agent: dict[str, Any]
) -> None:
    issue = machine.issue("Cut the line", agent)
    page = visit("/bullpen/agents")
    wire = Wire(page)
    page.goto(page.url.replace("/agents", f"/issues/{issue['identifier']}"))
    expect(page.locator('[data-live="live"]')).to_be_visible()
    task = machine.begin()
    machine.count(task, 1, 3)
    wait_for_seqs(page, 3)

    wire.cut()
    mark = page.locator("[data-live]")
    expect(mark).to_contain_text("Not live")
    machine.count(task, 4, 8)
    expect(mark).to_have_attribute("data-live", "polling")
    expect(page.locator("[data-banner]")).to_contain_text("proxy")
    wait_for_seqs(page, 8)  # over HTTP, without a socket
    picture(page, "not-live")

    machine.count(task, 9, 11)
    wire.up = True
    expect(page.locator('[data-live="live"]')).to_be_visible(timeout=15_000)
    expect(page.locator("[data-banner]")).to_be_hidden()
    wait_for_seqs(page, 11)


def test_a_lost_frame_is_noticed_and_fetched(
    visit: Visit, machine: Machine, agent: dict[str, Any]
) -> None:
    issue = machine.issue("Lose a frame", agent)
    page = visit("/bullpen/agents")
    wire = Wire(page)
    wire.lost = {3, 4}
    page.goto(page.url.replace("/agents", f"/issues/{issue['identifier']}"))
    expect(page.locator('[data-live="live"]')).to_be_visible()
    task = machine.begin()
    expect(page.locator(".state")).to_have_text("Running")
    machine.count(task, 1, 2)
    wait_for_seqs(page, 2)
    machine.count(task, 3, 6)
    wait_for_seqs(page, 6)


def test_a_row_that_never_comes_leaves_a_visible_gap(
    visit: Visit, machine: Machine, agent: dict[str, Any]
) -> None:
    issue = machine.issue("Leave a gap", agent)
    page = visit(f"/bullpen/issues/{issue['identifier']}")
    task = machine.begin()
    machine.count(task, 1, 2)
    machine.count(task, 5, 6)
    expect(page.locator(".gap")).to_have_text("Entries 3 to 4 were lost.")
    assert seqs(page) == [1, 2, 5, 6]
    machine.count(task, 4, 4)
    expect(page.locator(".gap")).to_have_text("Entry 3 was lost.")
    machine.count(task, 3, 3)
    wait_for_seqs(page, 6)
    expect(page.locator(".gap")).to_have_count(0)


def test_a_server_out_of_reach_is_named(
    visit: Visit, machine: Machine, agent: dict[str, Any], eye: Eye
) -> None:
    eye.expected = ("ERR_INTERNET_DISCONNECTED", "ERR_NETWORK_CHANGED", "WebSocket")
    issue = machine.issue("Pull the plug", agent)
    page = visit(f"/bullpen/issues/{issue['identifier']}")
    task = machine.begin()
    machine.count(task, 1, 2)
    wait_for_seqs(page, 2)
    page.context.set_offline(True)
    expect(page.locator("[data-live]")).to_have_attribute("data-live", "offline")
    expect(page.locator("[data-banner]")).to_contain_text("offline")
    machine.count(task, 3, 4)
    page.context.set_offline(False)
    expect(page.locator('[data-live="live"]')).to_be_visible(timeout=15_000)
    wait_for_seqs(page, 4)


def test_the_reader_who_scrolls_up_is_left_in_peace(
    visit: Visit, machine: Machine, agent: dict[str, Any]
) -> None:
    issue = machine.issue("Scroll up", agent)
    page = visit(f"/bullpen/issues/{issue['identifier']}")
    task = machine.begin()
    machine.count(task, 1, 60)
    wait_for_seqs(page, 60)
    log = page.locator(".run-card .transcript")
    at_end = "log => log.clientHeight && log.scrollHeight - log.scrollTop - log.clientHeight < 30"
    expect(log).to_be_visible()
    page.wait_for_function(f"({at_end})(document.querySelector('.run-card .transcript'))")

    log.evaluate("log => { log.scrollTop = 40; }")
    jump = page.get_by_role("button", name="Jump to latest")
    expect(jump).to_be_visible()
    machine.count(task, 61, 80)
    wait_for_seqs(page, 80)
    assert log.evaluate("log => log.scrollTop") == 40

    jump.click()
    expect(jump).to_be_hidden()
    assert log.evaluate(at_end)
    machine.count(task, 81, 90)
    wait_for_seqs(page, 90)
    assert log.evaluate(at_end)

    log.evaluate("log => { log.scrollTop = 40; }")
    expect(jump).to_be_visible()
    machine.complete(task)
    run = page.locator(".run details")
    expect(run).to_have_attribute("open", "")  # what one reads does not vanish with the card
    assert page.locator(".run .transcript").evaluate("log => log.scrollTop") == 40


def test_stopping_a_run(visit: Visit, machine: Machine, agent: dict[str, Any]) -> None:
    issue = machine.issue("Stop me", agent)
    page = visit(f"/bullpen/issues/{issue['identifier']}")
    task = machine.begin()
    machine.count(task, 1, 2)
    expect(page.locator(".state")).to_have_text("Running")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("[data-card]")).to_have_count(0)
    expect(page.locator(".run .state")).to_have_text("Stopped")


def test_a_failure_says_what_happened_and_what_to_do(
    visit: Visit, machine: Machine, agent: dict[str, Any]
) -> None:
    issue = machine.issue("Run out of quota", agent)
    page = visit(f"/bullpen/issues/{issue['identifier']}")
    task = machine.begin()
    machine.fail(task, "API Error: usage limit reached", "agent_error.provider_quota_limit")
    failure = page.locator(".run-failure")
    expect(failure).to_contain_text("usage limit is reached")
    expect(failure).to_contain_text("run it again")
    expect(failure).to_contain_text("API Error: usage limit reached")
    picture(page, "failed")
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("[data-card]")).to_have_count(1)


def test_a_machine_that_is_away_is_named(visit: Visit, bullpen: Bullpen, api: httpx.Client) -> None:
    away = Machine(api, bullpen.told["workspace_id"], name="attic", provider="codex")
    agent = away.agent("Codex in the attic")
    away.offline()
    issue = away.issue("Wait for the attic", agent)
    page = visit(f"/bullpen/issues/{issue['identifier']}")
    card = page.locator("[data-card]")
    expect(card.locator(".state")).to_have_text("Waiting for machine")
    expect(card).to_contain_text("attic is offline")
    away.online()
    expect(card.locator(".state")).to_have_text("Queued")
    api.post(f"/api/agents/{agent['id']}/archive", json={}).raise_for_status()
    expect(card).to_have_count(0)


def test_long_output_is_clipped_and_shown_on_request(
    visit: Visit, machine: Machine, agent: dict[str, Any]
) -> None:
    issue = machine.issue("Print a lot", agent)
    page = visit(f"/bullpen/issues/{issue['identifier']}")
    task = machine.begin()
    long = "\n".join(f"row {n}" for n in range(200))
    machine.say(
        task,
        {"seq": 1, "type": "thinking", "content": "First\nthen second"},
        {"seq": 2, "type": "tool_use", "tool": "Bash", "input": {"command": "seq 200"}},
        {"seq": 3, "type": "tool_result", "tool": "Bash", "output": long},
    )
    wait_for_seqs(page, 3)
    output = page.locator(".output")
    assert output.evaluate("block => block.clientHeight") < 300
    page.get_by_role("button", name="Show all 200 lines").click()
    assert output.evaluate("block => block.clientHeight") > 1000
    page.get_by_role("button", name="Show less").click()
    assert output.evaluate("block => block.clientHeight") < 300

    expect(page.locator(".thinking .text")).to_be_hidden()
    page.locator(".thinking summary").click()
    expect(page.locator(".thinking .text")).to_have_text("First\nthen second")
    page.locator(".tool_use summary").click()
    expect(page.locator(".tool_use dd")).to_have_text("seq 200")
