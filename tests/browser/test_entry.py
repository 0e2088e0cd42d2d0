"""The pages around a person: sessions, a first workspace, an invitation; as a newcomer meets them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Eye, picture
from tests.browser.guest import Guest, code_for, invite, new_email
from tests.browser.test_pages import LOOKS, check_readable
from tests.support.bullpen import Bullpen

pytestmark = pytest.mark.browser

Open = Callable[..., Page]


@pytest.fixture
def fresh(bullpen: Bullpen, browser: Browser, eye: Eye) -> Iterator[Open]:
    """`fresh(**context options)`: a page of a browser of its own, signed in nowhere."""
    eye.expected = ("401", "403", "404", "409", "400")  # asked as nobody, or on purpose
    contexts = []

    def go(**options: Any) -> Page:
        context = browser.new_context(base_url=bullpen.told["url"], **options)
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("console", eye.console)
        page.on("pageerror", lambda error: eye.problems.append(f"exception: {error}"))
        return page

    yield go
    for context in contexts:
        context.close()


def sign_in(page: Page, home: Path, email: str) -> None:
    """Sign in on the page that asks for it, by a code."""
    page.get_by_label("E-mail address").fill(email)
    page.get_by_role("button", name="Send a code").click()
    page.get_by_label("Code").fill(code_for(home, email))
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/login" not in url)


def looks(page: Page, name: str) -> None:
    """Look at a page in every light and on a telephone; leave it as it was."""
    before = page.viewport_size
    for look, options in LOOKS.items():
        page.set_viewport_size(options.get("viewport", {"width": 1280, "height": 800}))
        page.emulate_media(color_scheme=options["color_scheme"])
        check_readable(page, f"{name}, {look}", nav=page.locator("nav").count() > 0)
        picture(page, f"{name}-{look}")
    page.set_viewport_size(before or {"width": 1280, "height": 800})


def test_a_newcomer_takes_an_invitation_and_looks_at_their_sessions(
    bullpen: Bullpen, fresh: Open
) -> None:
    email = new_email()
    invitation = invite(bullpen, email)
    page = fresh()
    page.goto("/login")
    looks(page, "login")

    page.goto(f"/invite/{invitation}")  # leads to signing in, and back
    sign_in(page, bullpen.home, email)
    expect(page.get_by_role("heading", level=2)).to_contain_text("Join")
    looks(page, "invite")

    page.goto("/")  # nobody hands them the link a second time
    page.wait_for_url("**/workspaces/new")
    expect(page.get_by_role("heading", level=2).first).to_have_text("You are invited")
    looks(page, "no-workspace")
    page.get_by_role("link", name="Look at it").click()
    page.get_by_role("button", name="Join").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/bullpen/issues")

    page.get_by_label("Menu of").click()
    looks(page, "menu")
    page.get_by_role("link", name="Your sessions").click()
    expect(page.get_by_role("listitem")).to_have_count(1)
    looks(page, "sessions")
    page.get_by_role("link", name="Back to your issues").click()
    page.wait_for_url("**/bullpen/issues")

    page.goto(f"/invite/{invitation}")
    expect(page.get_by_role("heading", level=1)).to_have_text("No such invitation")
    looks(page, "invite-gone")


def test_sessions_end_one_by_one_and_all_at_once(guest: Guest, fresh: Open) -> None:
    desk, phone = fresh(), fresh(viewport={"width": 360, "height": 740})
    desk.context.set_extra_http_headers(
        {"User-Agent": "Mozilla/5.0 (Windows NT 10.0; rv:140.0) Gecko/20100101 Firefox/140.0"}
    )
    for page in (desk, phone):
        page.goto(guest.link)
        page.wait_for_url("**/workspaces/new")

    phone.goto("/auth/sessions")
    expect(phone.get_by_role("listitem")).to_have_count(2)
    expect(phone.get_by_role("listitem").filter(has_text="this browser")).to_have_count(1)
    phone.get_by_role("button", name="Sign out Firefox on Windows").click()
    expect(phone.get_by_role("listitem")).to_have_count(1)
    desk.goto("/auth/sessions")
    expect(desk.get_by_role("heading", level=2).first).to_contain_text("not signed in")

    phone.get_by_role("button", name="Sign out everywhere").focus()
    phone.keyboard.press("Enter")
    phone.wait_for_url("**/login")
    phone.goto("/bullpen/issues")
    phone.wait_for_url(re.compile("/login.next="))


def test_a_first_workspace_is_made_with_the_keyboard(
    bullpen: Bullpen, guest: Guest, fresh: Open
) -> None:
    invite(bullpen, guest.email)
    page = fresh()
    page.goto(guest.link)
    page.goto("/onboarding")  # where a command line sends people
    page.wait_for_url("**/workspaces/new")
    name = page.get_by_label("Name", exact=True)
    expect(name).to_be_focused()
    page.keyboard.type("日本")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("give the name in addresses")
    looks(page, "workspace-new")
    page.get_by_label("Name in addresses").fill("bullpen")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("already exists")
    expect(name).to_have_value("日本")
    name.fill("Büro Nord")
    page.get_by_label("Name in addresses").fill("")
    page.keyboard.press("Enter")
    page.wait_for_url("**/buro-nord/issues")
    page.wait_for_selector('[data-live="live"]')
    page.get_by_label("Menu of").click()
    page.get_by_role("link", name="New workspace, invitations").click()
    page.get_by_role("link", name="Look at it").click()
    page.get_by_role("button", name="Decline").click()
    page.wait_for_url("**/buro-nord/issues")
    page.goto("/workspaces/new")
    expect(page.get_by_text("You are invited")).to_have_count(0)
    made = guest.api.get("/api/workspaces").raise_for_status().json()
    for workspace in made:
        guest.api.delete(f"/api/workspaces/{workspace['id']}").raise_for_status()


def test_what_is_not_there_is_a_page_for_people_and_plain_for_programs(
    bullpen: Bullpen, fresh: Open
) -> None:
    page = fresh(viewport={"width": 360, "height": 740})
    answer = page.goto("/nonsense/at/all")
    assert answer is not None
    assert answer.status == 404
    expect(page.get_by_role("heading", level=1)).to_have_text("Not here")
    check_readable(page, "an error", nav=False)
    picture(page, "error-phone")
    with httpx.Client(base_url=bullpen.told["url"], trust_env=False) as client:
        assert client.get("/nonsense/at/all").text == "404 page not found\n"
        asked = client.get("/api/me", headers={"Accept": "text/html"})
        assert (asked.status_code, asked.json()) == (401, {"error": asked.json()["error"]})
