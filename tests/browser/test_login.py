"""Signing in by a code on the sign-in page, with and without the script, and by hand-over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Eye, picture
from tests.support.bullpen import Bullpen, wait_for
from tests.support.loopback import open_listener

pytestmark = pytest.mark.browser

EMAIL = "local@bullpen.local"
"""Whom `bullpen up` made."""


def code_in_log(home: Path) -> str:
    """The newest code that stands in the server's log."""

    def probe() -> str | None:
        text = "".join(path.read_text(errors="replace") for path in (home / "logs").glob("*.log"))
        found = re.findall(r"sign_in_code\W+(\d{6})", re.sub(r"\x1b\[[0-9;]*m", "", text))
        return found[-1] if found else None

    return wait_for("a code in the log", probe)


@pytest.fixture
def phone(browser: Browser, eye: Eye) -> Iterator[Page]:
    """A narrow page of nobody in particular."""
    eye.expected = ("401", "400", "429")  # what it asks as nobody, and what it gets wrong
    context = browser.new_context(viewport={"width": 360, "height": 740})
    context.set_default_timeout(10_000)
    page = context.new_page()
    page.on("console", eye.console)
    page.on("pageerror", lambda error: eye.problems.append(f"exception: {error}"))
    yield page
    context.close()


def test_a_code_signs_in_with_the_keyboard_on_a_phone(bullpen: Bullpen, phone: Page) -> None:
    phone.goto(f"{bullpen.told['url']}/bullpen/agents")
    box = phone.get_by_label("E-mail address")
    box.focus()
    phone.keyboard.type(EMAIL)
    phone.keyboard.press("Enter")
    code = phone.get_by_label("Code")
    expect(code).to_be_focused()
    expect(code).to_have_accessible_description(re.compile("in its log"))
    again = phone.get_by_role("button", name=re.compile("Send another code in 5[0-9] s|in 60 s"))
    expect(again).to_be_disabled()
    picture(phone, "login-code")
    phone.keyboard.type("000")
    phone.keyboard.press("Enter")
    expect(phone.get_by_role("alert")).to_have_text("Invalid or expired code.")
    expect(code).to_be_focused()
    expect(code).to_have_accessible_description(re.compile("Invalid or expired"))
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not phone.evaluate(wide)
    phone.keyboard.type(code_in_log(bullpen.home))
    phone.keyboard.press("Enter")
    phone.wait_for_url("**/bullpen/agents")

    with open_listener() as (callback, called):  # and now a command line wants in
        state = "s" * 32
        phone.goto(f"{bullpen.told['url']}/login?cli_callback={callback}&cli_state={state}")
        picture(phone, "login-cli")
        assert not phone.evaluate(wide)
        phone.get_by_role("button", name="Sign it in").click()
        phone.wait_for_url(f"{callback}**")
        asked = called.get(timeout=5)
        assert f"state={state}" in asked
        assert "token=" in asked
