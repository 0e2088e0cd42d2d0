"""What people do on the pages: sign in, write, filter, edit, with a mouse, a keyboard or a phone."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.conftest import Eye, Visit, picture
from tests.browser.machine import Machine
from tests.support.bullpen import Bullpen

pytestmark = pytest.mark.browser


def create(api: httpx.Client, title: str, **more: Any) -> Any:
    return api.post("/api/issues", json={"title": title, **more}).raise_for_status().json()


def test_a_link_signs_in_once_and_no_session_leads_to_help(
    bullpen: Bullpen, api: httpx.Client, browser: Browser
) -> None:
    link = api.post("/auth/link", json={}).raise_for_status().json()["url"]
    first, second = browser.new_context(), browser.new_context()
    try:
        page = first.new_page()
        page.goto(link)
        page.wait_for_url("**/bullpen/issues")
        expect(page.get_by_role("heading", level=1)).to_have_text("Issues")
        page.goto(link)  # opened again by the same person: no dead end
        page.wait_for_url("**/bullpen/issues")

        stranger = second.new_page()
        stranger.goto(link)
        expect(stranger.get_by_role("alert")).to_contain_text("used already")
        expect(stranger.locator("main")).to_contain_text("bullpen link")
        stranger.goto(f"{bullpen.told['url']}/bullpen/agents")
        assert urlsplit(stranger.url).path == "/login"
        assert [each["name"] for each in stranger.context.cookies()] == ["bullpen_door"]
    finally:
        first.close()
        second.close()


def test_the_keyboard_alone_creates_an_issue(visit: Visit, api: httpx.Client) -> None:
    page = visit("/bullpen/issues")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    expect(page.get_by_label("Title")).to_be_focused()
    page.keyboard.type("Typed without a mouse, c and / included")
    page.keyboard.press("Tab")
    page.keyboard.type("First line")
    page.keyboard.press("Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("Back")  # a select takes the option that begins so
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/issues/BUL-*")
    issue = api.get(f"/api/issues/{page.url.rsplit('/', 1)[1]}").json()
    assert issue["title"] == "Typed without a mouse, c and / included"
    assert issue["description"] == "First line\nsecond line"
    assert issue["status"] == "backlog"

    page.keyboard.press("g")
    page.keyboard.press("r")
    page.wait_for_url("**/runtimes")


def test_what_was_typed_survives_a_failure_and_a_reload(
    visit: Visit, api: httpx.Client, eye: Eye
) -> None:
    eye.expected = ("ERR_FAILED", "500")
    issue = create(api, "Keep my words")
    page = visit(f"/bullpen/issues/{issue['identifier']}")

    def refuse(route: Route) -> None:
        if route.request.method == "POST":
            route.abort()
        else:
            route.fallback()

    page.route("**/api/issues/*/comments", refuse)
    box = page.get_by_label("Comment", exact=True)
    box.fill("Precious words")
    page.get_by_role("button", name="Comment").click()
    expect(page.locator(".composer .form-error")).to_contain_text("cannot be reached")
    expect(box).to_have_value("Precious words")
    page.reload()
    expect(box).to_have_value("Precious words")

    page.unroute("**/api/issues/*/comments")
    page.route(
        "**/api/issues/*/comments",
        lambda route: route.fulfill(status=500, json={"error": "internal error"}),
    )
    page.get_by_role("button", name="Comment").click()
    expect(page.locator(".composer .form-error")).to_have_text("internal error")
    page.unroute("**/api/issues/*/comments")
    page.get_by_role("button", name="Comment").click()
    expect(page.locator(".comment .prose")).to_have_text("Precious words")
    expect(box).to_have_value("")
    expect(page.locator(".composer .form-error")).to_be_hidden()
    page.reload()
    expect(box).to_have_value("")


def test_a_duplicate_is_pointed_out_and_may_be_created_anyway(
    visit: Visit, api: httpx.Client, eye: Eye
) -> None:
    eye.expected = ("409",)
    known = create(api, "Twice is nice")
    page = visit("/bullpen/issues")
    page.keyboard.press("c")
    page.get_by_label("Title").fill("twice  is NICE")
    page.get_by_role("button", name="Create issue").click()
    problem = page.locator("#new-issue .form-error")
    expect(problem).to_contain_text(known["identifier"])
    expect(problem.get_by_role("link", name=f"Open {known['identifier']}")).to_be_visible()
    problem.get_by_role("button", name="Create anyway").click()
    page.wait_for_url("**/issues/BUL-*")
    expect(page.get_by_role("heading", level=1)).to_have_text("twice  is NICE")


def test_the_board_follows_without_a_reload(visit: Visit, api: httpx.Client) -> None:
    page = visit("/bullpen/issues")
    page.evaluate("window.sameDocument = true")
    issue = create(api, "Appears by itself")
    card = page.locator(".card", has_text="Appears by itself")
    expect(page.locator('[data-status="todo"] .card', has_text="Appears by")).to_be_visible()
    card.locator("a").focus()
    api.put(f"/api/issues/{issue['id']}", json={"title": "Renamed by someone"}).raise_for_status()
    renamed = page.locator(".card", has_text="Renamed by someone")
    expect(renamed).to_be_visible()
    expect(renamed.locator("a")).to_be_focused()
    api.put(f"/api/issues/{issue['id']}", json={"status": "done"}).raise_for_status()
    expect(page.locator('[data-status="done"] .card', has_text="Renamed by")).to_be_visible()
    assert page.evaluate("window.sameDocument")


def test_the_filter_is_kept_in_the_address(
    visit: Visit, api: httpx.Client, agent: dict[str, Any], machine: Machine
) -> None:
    machine.issue("Filter apples", agent)
    create(api, "Filter pears")
    page = visit("/bullpen/issues")
    page.keyboard.press("/")
    page.keyboard.type("filter ")
    cards = page.locator(".card:visible")
    expect(cards).to_have_count(2)
    page.get_by_label("Filter by assignee").select_option(label=agent["name"])
    expect(cards).to_have_count(1)
    create(api, "Filter plums")  # a refresh does not undo the filter
    expect(page.locator(".card", has_text="Filter plums")).to_be_attached()
    expect(cards).to_have_count(1)
    page.reload()
    expect(cards).to_have_count(1)
    expect(cards).to_contain_text("Filter apples")
    page.get_by_label("Filter by text").fill("nothing like it")
    expect(page.locator("main")).to_contain_text("No issue matches")
    page.get_by_role("button", name="Clear it").click()
    expect(page.get_by_label("Filter by assignee")).to_have_value("*")
    assert "?" not in page.url


def test_an_issue_is_edited_in_place(visit: Visit, api: httpx.Client, eye: Eye) -> None:
    eye.expected = ("400",)
    issue = create(api, "Edit me", description="Old text")
    page = visit(f"/bullpen/issues/{issue['identifier']}")
    page.get_by_role("button", name="Edit title").click()
    page.get_by_label("Title", exact=True).first.fill("Edited")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Edited")

    page.keyboard.press("e")
    field = page.locator("#edit-description")
    expect(field).to_be_focused()
    field.fill("New **text**")
    api.put(f"/api/issues/{issue['id']}", json={"description": "Theirs"}).raise_for_status()
    expect(page.locator('[data-editable="description"] .form-error')).to_contain_text("Someone")
    expect(field).to_have_value("New **text**")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".prose strong")).to_have_text("text")
    page.keyboard.press("e")
    expect(field).to_have_value("New **text**")
    page.keyboard.press("Escape")
    expect(field).to_be_hidden()

    page.get_by_label("Status", exact=True).first.select_option("blocked")
    expect(page.locator(".properties .status-blocked")).to_be_visible()
    page.locator("#set-assignee").select_option(label="You (you)")
    expect(page.locator(".properties .avatar.member")).to_be_visible()
    now = api.get(f"/api/issues/{issue['id']}").json()
    assert (now["title"], now["description"]) == ("Edited", "New **text**")
    assert (now["status"], now["assignee_type"]) == ("blocked", "member")

    page.route(
        f"**/api/issues/{issue['id']}",
        lambda route: (
            route.fulfill(status=400, json={"error": "not on a Sunday"})
            if route.request.method == "PUT"
            else route.fallback()
        ),
    )
    page.locator("#set-priority").select_option("high")
    expect(page.locator(".properties .form-error")).to_have_text("not on a Sunday")
    expect(page.locator("#set-priority")).to_have_value("none")


def test_comments_form_threads_and_arrive_by_themselves(visit: Visit, api: httpx.Client) -> None:
    issue = create(api, "Talk about it")
    page = visit(f"/bullpen/issues/{issue['identifier']}")
    path = f"/api/issues/{issue['id']}/comments"
    api.post(
        path, json={"content": "From elsewhere, see https://example.org/x."}
    ).raise_for_status()
    first = page.locator(".comments > .comment")
    link = first.get_by_role("link", name="https://example.org/x")
    expect(link).to_have_attribute("rel", "noopener nofollow")
    page.get_by_role("button", name="Reply to You").click()
    expect(page.locator(".replying")).to_contain_text("Replying to You")
    page.keyboard.type("Indeed.")
    page.keyboard.press("Control+Enter")
    expect(first.locator(".replies .prose")).to_have_text("Indeed.")
    expect(page.locator(".replying")).to_be_hidden()


def test_agents_are_created_edited_and_archived(
    visit: Visit, api: httpx.Client, machine: Machine, eye: Eye
) -> None:
    eye.expected = ("409",)
    page = visit("/bullpen/agents")
    page.get_by_role("button", name="New agent").click()
    dialog = page.get_by_role("dialog", name="New agent")
    dialog.get_by_label("Name").fill("demo")
    dialog.get_by_label("Runtime").select_option(value=machine.runtime_id)
    dialog.get_by_role("button", name="Create agent").click()
    expect(dialog.locator(".form-error")).to_be_visible()  # the name is taken
    dialog.get_by_label("Name").fill("Reviewer")
    dialog.get_by_role("button", name="Create agent").click()
    row = page.locator(".row-card", has_text="Reviewer")
    expect(row).to_contain_text("claude on studio")

    row.get_by_role("button", name="Edit Reviewer").click()
    dialog = page.get_by_role("dialog", name="Reviewer")
    dialog.get_by_label("Description").fill("Reads every change")
    dialog.get_by_label("Instructions").fill("Be kind.")
    dialog.get_by_role("button", name="Save").click()
    expect(row).to_contain_text("Reads every change")
    agent = next(a for a in api.get("/api/agents").json() if a["name"] == "Reviewer")
    assert agent["instructions"] == "Be kind."

    row.get_by_role("button", name="Edit Reviewer").click()
    dialog.get_by_role("button", name="Archive").click()
    expect(row).to_have_count(0)
    page.get_by_role("link", name="archived").click()
    expect(row).to_contain_text("Archived")

    demo = page.locator(".row-card", has=page.locator(".badge.demo"))
    expect(demo).to_have_count(1)


def test_runtimes_show_machines_and_what_is_away(
    visit: Visit, api: httpx.Client, bullpen: Bullpen
) -> None:
    page = visit("/bullpen/runtimes")
    expect(page.locator(".badge.demo").first).to_have_text("demo")
    box = Machine(api, bullpen.told["workspace_id"], name="cellar", provider="codex")
    section = page.get_by_role("region", name="cellar")
    expect(section.locator(".state")).to_have_text("Online")
    expect(section).to_contain_text("2.1.0")
    box.offline()
    expect(section.locator(".state")).to_have_text("Offline")
    expect(section).to_contain_text("work for it waits")


def test_nothing_anyone_writes_becomes_markup_or_script(
    visit: Visit, machine: Machine, agent: dict[str, Any]
) -> None:
    evil = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
    issue = machine.issue(
        f"{evil} title", agent, description=f"{evil} [x](javascript:window.hit=1)"
    )
    task = machine.begin()
    machine.progress(task, evil, 1, 2)
    machine.say(
        task,
        {"seq": 1, "type": "text", "content": evil},
        {"seq": 2, "type": "thinking", "content": evil},
        {"seq": 3, "type": "tool_use", "tool": evil, "input": {evil: evil, "command": evil}},
        {"seq": 4, "type": "tool_result", "tool": evil, "output": evil},
        {"seq": 5, "type": "error", "content": evil},
        {"seq": 6, "type": evil, "content": evil},
    )
    machine.api.post(f"/api/issues/{issue['id']}/comments", json={"content": evil})
    page = visit(f"/bullpen/issues/{issue['identifier']}")
    expect(page.locator('[data-seq="6"]')).to_be_attached()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{evil} title")
    page.goto(page.url.rsplit("/", 1)[0])
    expect(page.locator(".card", has_text="onerror")).to_be_visible()
    page.go_back()
    expect(page.locator('[data-seq="6"]')).to_be_attached()
    assert page.evaluate(
        "window.hit === undefined && document.querySelectorAll('img').length === 0"
    )


def test_an_unknown_issue_or_workspace_is_said_to_be_unknown(visit: Visit, eye: Eye) -> None:
    eye.expected = ("404",)
    page = visit("/bullpen/issues")
    for path in ("/bullpen/issues/BUL-99999", "/bullpen/issues/nonsense", "/elsewhere/issues"):
        answer = page.goto(urlsplit(page.url)._replace(path=path, query="").geturl())
        assert answer is not None
        assert answer.status == 404, path
        expect(page.get_by_role("heading", level=1)).to_have_text("Not here")
        expect(page.get_by_role("link", name="To your issues")).to_be_visible()


def test_the_theme_is_chosen_and_remembered(visit: Visit) -> None:
    page = visit("/bullpen/issues", color_scheme="light")

    def background() -> str:
        found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return found

    light = background()
    page.get_by_label("Menu of").click()
    toggle = page.get_by_role("button", name="Theme")
    toggle.click()
    toggle.click()
    expect(toggle).to_contain_text("dark")
    dark = background()
    assert dark != light
    page.reload()
    assert background() == dark


def test_files_are_cached_by_their_content(bullpen: Bullpen, visit: Visit) -> None:
    page = visit("/bullpen/issues")
    sheet = page.get_attribute('link[rel="stylesheet"]', "href")
    with httpx.Client(base_url=bullpen.told["url"], trust_env=False) as client:
        answer = client.get(sheet or "")
        assert "immutable" in answer.headers["cache-control"]
        tag = answer.headers["etag"]
        assert client.get(sheet or "", headers={"If-None-Match": tag}).status_code == 304
        stale = client.get("/static/0000/bullpen.css")
        assert (stale.status_code, stale.headers["cache-control"]) == (200, "no-cache")
        assert client.get("/static/0000/../../assets.py").status_code == 404


def pages_to_see(api: httpx.Client, machine: Machine, agent: dict[str, Any]) -> dict[str, str]:
    """One of each page, with something on it; name -> path."""
    issue = machine.issue(
        "A title that is long enough to need more than one line on a telephone",
        agent,
        description="Some *words*, `code`, and a wide block:\n\n```\n" + "x" * 300 + "\n```\n",
        priority="high",
        allow_duplicate=True,
    )
    task = machine.begin()
    machine.progress(task, "Launching claude", 1, 2)
    machine.say(
        task,
        {"seq": 1, "type": "thinking", "content": "Where does it come from? " * 9},
        {"seq": 2, "type": "text", "content": "I look at the session first."},
        {"seq": 3, "type": "tool_use", "tool": "Bash", "input": {"command": "pytest -q " * 20}},
        {"seq": 4, "type": "tool_result", "tool": "Bash", "output": "y" * 400 + "\n" * 20 + "ok"},
    )
    path = f"/api/issues/{issue['id']}/comments"
    api.post(path, json={"content": "| a | b |\n|---|---|\n| 1 | " + "w" * 90 + " |"})
    api.put(f"/api/issues/{issue['id']}", json={"status": "in_progress"})
    return {
        "board": "/bullpen/issues",
        "issue": f"/bullpen/issues/{issue['identifier']}",
        "agents": "/bullpen/agents",
        "runtimes": "/bullpen/runtimes",
    }


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light"},
}


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_fits_and_can_be_read(
    look: str, visit: Visit, api: httpx.Client, machine: Machine, agent: dict[str, Any]
) -> None:
    page = visit("/bullpen/issues", **LOOKS[look])
    for name, path in pages_to_see(api, machine, agent).items():
        page.goto(urlsplit(page.url)._replace(path=path).geturl())
        page.wait_for_selector('[data-live="live"]')
        if name == "issue":
            expect(page.locator('[data-seq="4"]')).to_be_attached()
        check_readable(page, f"{name}, {look}")
        picture(page, f"{name}-{look}")
    page.keyboard.press("c")
    check_readable(page, f"new issue, {look}")
    picture(page, f"new-issue-{look}")


def check_readable(page: Page, where: str, *, nav: bool = True) -> None:
    """No sideways scrolling; every control named, one h1, unique ids, text with contrast."""
    report = page.evaluate(READABLE, nav)
    assert report == [], f"{where}: {report}"


READABLE = """(nav) => {
  const wrong = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) wrong.push(`scrolls sideways: ${root.scrollWidth}`);
  if (document.querySelectorAll("h1").length !== 1) wrong.push("not one h1");
  if (!document.querySelector("main") || (nav && !document.querySelector("nav"))) wrong.push("landmarks");
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  const twice = ids.filter((id, at) => ids.indexOf(id) !== at);
  if (twice.length) wrong.push(`ids used twice: ${twice}`);
  if (document.querySelector("[style]:not([style='']), script:not([src])")) wrong.push("inline style or script");

  const name = (element) =>
    (element.getAttribute("aria-label") ?? "").trim() ||
    [...(element.labels ?? [])].map((label) => label.textContent.trim()).join(" ") ||
    (["BUTTON", "A", "SUMMARY"].includes(element.tagName) ? element.textContent.trim() : "");
  const controls = "a[href], button, input:not([type=hidden]), select, textarea, summary";
  for (const control of document.querySelectorAll(controls)) {
    if (!name(control)) wrong.push(`unnamed: ${control.outerHTML.slice(0, 90)}`);
  }

  const parse = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, below) => ({
    r: top.r * top.a + below.r * (1 - top.a),
    g: top.g * top.a + below.g * (1 - top.a),
    b: top.b * top.a + below.b * (1 - top.a),
    a: 1,
  });
  const behind = (element) => {
    if (!element) return parse("rgb(255, 255, 255)");
    const own = parse(getComputedStyle(element).backgroundColor);
    return own.a === 1 ? own : over(own, behind(element.parentElement));
  };
  const light = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map((v) => {
      const c = v / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const said = new Set();
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("[aria-hidden], .visually-hidden, .skip, option, script")) continue;
    const background = behind(element);
    const color = over(parse(getComputedStyle(element).color), background);
    const [high, low] = [light(color), light(background)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const key = `${element.className}|${element.tagName}`;
    if (ratio < 4.5 && !said.has(key)) {
      said.add(key);
      wrong.push(`contrast ${ratio.toFixed(2)}: ${key} "${node.data.trim().slice(0, 30)}"`);
    }
  }
  return wrong;
}"""
