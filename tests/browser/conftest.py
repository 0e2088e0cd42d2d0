"""One Bullpen and one Chromium for all browser tests; a fresh context and a fresh eye for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

from tests.browser.guest import Guest, open_guest
from tests.browser.machine import Machine
from tests.support.bullpen import Bullpen, start_up
from tests.support.chromium import open_browser

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
"""Screenshots of the run; not committed."""


@pytest.fixture(scope="session")
def bullpen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bullpen]:
    with start_up(tmp_path_factory.mktemp("bullpen")) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def api(bullpen: Bullpen) -> Iterator[httpx.Client]:
    with bullpen.api() as client:
        yield client


@pytest.fixture
def base(bullpen: Bullpen) -> str:
    """The workspace's address: `<origin>/<slug>`."""
    return f"{bullpen.told['url']}/bullpen"


@pytest.fixture(scope="session")
def guest(bullpen: Bullpen) -> Iterator[Guest]:
    with open_guest(bullpen) as invited:
        yield invited


@pytest.fixture(scope="session")
def machine(bullpen: Bullpen) -> Iterator[Machine]:
    """A machine that does what the test says, with nothing queued on it by another test."""
    with bullpen.api() as client:
        yield Machine(client, bullpen.told["workspace_id"])


@pytest.fixture
def agent(machine: Machine, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """An agent of the test's own on the scripted machine; its work is called off afterwards."""
    made = machine.agent(request.node.name[:80])
    yield made
    machine.api.post(f"/api/agents/{made['id']}/archive", json={})


class Eye:
    """Watches a page for what a user would never see but a developer would."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.expected: tuple[str, ...] = ()

    def console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.problems.append(f"{message.type}: {message.text}")

    def check(self) -> None:
        left = [p for p in self.problems if not any(word in p for word in self.expected)]
        assert not left, left


Visit = Callable[..., Page]


@pytest.fixture
def eye() -> Iterator[Eye]:
    watching = Eye()
    yield watching
    watching.check()


@pytest.fixture
def visit(bullpen: Bullpen, browser: Browser, api: httpx.Client, eye: Eye) -> Iterator[Visit]:
    """`visit(path, **context options)`: a page of a signed-in browser, there and live."""
    contexts: list[BrowserContext] = []

    def go(path: str = "/", *, live: bool = True, **options: object) -> Page:
        options.setdefault("viewport", {"width": 1280, "height": 800})
        context = browser.new_context(**options)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("console", eye.console)
        page.on("pageerror", lambda error: eye.problems.append(f"exception: {error}"))
        page.goto(api.post("/auth/link", json={}).raise_for_status().json()["url"])
        page.goto(f"{bullpen.told['url']}{path}")
        if live:
            page.wait_for_selector('[data-live="live"]')
        return page

    yield go
    for context in contexts:
        context.close()


def picture(page: Page, name: str) -> None:
    """Keep what the page looks like now as an artefact of the run."""
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png")
