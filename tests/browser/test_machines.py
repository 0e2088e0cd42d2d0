"""What people learn of their machines: isolation, programs that fail, machines that changed hands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Visit
from tests.browser.guest import Guest, invite
from tests.browser.machine import Machine
from tests.browser.test_entry import looks
from tests.support.bullpen import Bullpen

pytestmark = pytest.mark.browser

PROBLEM = (
    "agents can read Bullpen's secrets and each other's files: bubblewrap: setting up uid map:"
    " Permission denied (install bubblewrap or allow user namespaces)"
)


@pytest.fixture
def lent(bullpen: Bullpen, api: httpx.Client, guest: Guest) -> Iterator[Machine]:
    """A machine of ours that is not isolated, in a workspace the guest has joined."""
    workspace_id = bullpen.told["workspace_id"]
    invitation_id = invite(bullpen, guest.email)
    guest.api.post(f"/api/invitations/{invitation_id}/accept", json={}).raise_for_status()
    machine = Machine(api, workspace_id, name="loft", isolation="none", problem=PROBLEM)
    yield machine
    machine.offline()
    guest.api.post(f"/api/workspaces/{workspace_id}/leave", json={}).raise_for_status()


def test_a_machine_says_what_is_wrong_with_it_and_who_it_works_for(
    api: httpx.Client, guest: Guest, lent: Machine, visit: Visit
) -> None:
    agent = lent.agent("Left behind")
    page = visit("/bullpen/runtimes")
    loft = page.get_by_role("region", name="loft")
    expect(loft).to_contain_text("Not isolated: agents can read")
    looks(page, "not-isolated")

    issue: Any = lent.issue("Paint the loft", agent)
    path = f"/api/runtimes/{lent.runtime_id}/hand-over"
    api.post(path, json={"email": guest.email}).raise_for_status()
    page.reload()
    expect(loft).to_contain_text(f"belongs to {guest.email.split('@')[0]}")
    expect(loft).to_contain_text("does not work for Left behind")
    looks(page, "handed-over")
    page.goto(page.url.replace("/runtimes", f"/issues/{issue['identifier']}"))
    card = page.get_by_role("article")
    expect(card).to_contain_text("belongs to somebody else now")
    looks(page, "left-behind")
    page.goto(page.url.rpartition("/issues/")[0] + "/agents")
    row = page.get_by_role("listitem").filter(has_text="Left behind")
    expect(row).to_contain_text("Needs another machine")
    looks(page, "agents-left-behind")
    api.post(f"/api/agents/{agent['id']}/archive", json={}).raise_for_status()
