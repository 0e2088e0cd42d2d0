"""The sign-in page: plain forms for mailed codes, and the hand-over to a command line."""

from __future__ import annotations

import re
from html import unescape
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pytest
from structlog.testing import capture_logs

from server.web import auth
from tests.support.api import Api, open_api
from tests.support.rows import make_session
from tests.support.server import make_config

OPEN = {"BULLPEN_ALLOW_SIGNUP": "true"}
ANN = "ann@example.org"
CALLBACK = "http://127.0.0.1:4711/callback"
STATE = "0123456789abcdef0123456789abcdef"
WISH = f"/login?cli_callback={quote(CALLBACK, safe='')}&cli_state={STATE}"

pytestmark = pytest.mark.postgres


def browser(api: Api) -> httpx.AsyncClient:
    """A browser without scripts; close it."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://127.0.0.1")


async def signed_in(api: Api, page: httpx.AsyncClient) -> str:
    """Give the browser the owner's session; returns the CSRF proof of a form."""
    session = await make_session(api.database, api.app.state.services.config, api.owner.user_id)
    page.cookies.set(auth.AUTH_COOKIE, session)
    return auth.mint_csrf(session)


async def ask(page: httpx.AsyncClient, email: str = ANN, **more: str) -> tuple[httpx.Response, str]:
    """Send the first form; returns the answer and the code that was logged."""
    with capture_logs() as lines:
        answer = await page.post("/login/code", data={"email": email, "next": "/", **more})
    codes = [line["sign_in_code"] for line in lines if "sign_in_code" in line]
    return answer, codes[0] if codes else ""


def problem(answer: httpx.Response) -> str:
    found = re.search(r'role="alert"[^>]*>([^<]*)<', answer.text)
    return unescape(found[1]) if found else ""


async def test_address_then_code_then_signed_in() -> None:
    async with open_api(**OPEN) as api, browser(api) as page:
        first = await page.get("/login", params={"next": "/acme/issues?q=1"})
        assert first.status_code == 200
        assert 'name="next" value="/acme/issues?q=1"' in first.text
        assert "bullpen link" in first.text  # the other way in
        answer, code = await ask(page, next="/acme/issues?q=1")
        assert (answer.status_code, problem(answer)) == (200, "")
        assert f'name="email" value="{ANN}"' in answer.text
        assert 'data-wait="60"' in answer.text
        form = {"email": ANN, "next": "/acme/issues?q=1"}
        wrong = await page.post("/login/verify", data=form | {"code": "x"})
        assert (wrong.status_code, problem(wrong)) == (400, "Invalid or expired code.")
        assert auth.AUTH_COOKIE not in page.cookies
        spaced = f" {code[:3]} {code[3:]} "  # as mail programs show it
        right = await page.post("/login/verify", data=form | {"code": spaced})
        assert (right.status_code, right.headers["location"]) == (303, "/acme/issues?q=1")
        me = (await page.get("/api/me")).json()
        assert me["email"] == ANN
        again = await page.get("/login", params={"next": "/acme/agents"})
        assert (again.status_code, again.headers["location"]) == (303, "/acme/agents")


async def test_errors_stand_where_they_belong() -> None:
    async with open_api() as api, browser(api) as page:
        await page.get("/login")
        refused, _ = await ask(page)
        assert refused.status_code == 403
        assert "sign-up is not open" in problem(refused)
        assert f'name="email" value="{ANN}"' in refused.text  # nobody types it twice
        assert 'aria-invalid="true"' in refused.text
        nowhere, _ = await ask(page, "<b>")
        assert (nowhere.status_code, problem(nowhere)) == (400, "Email must be an e-mail address.")
        assert "<b>" not in nowhere.text
        mine = (await api.owner.get("/api/me"))["email"]
        assert (await ask(page, mine))[0].status_code == 200
        early, _ = await ask(page, mine)
        assert (early.status_code, problem(early)) == (429, "A code was sent a moment ago.")
        assert 'name="code"' in early.text  # it can still be entered
        wait = re.search(r'data-wait="(\d+)"', early.text)
        assert wait is not None
        assert 0 < int(wait[1]) <= 60


async def test_a_form_of_another_site_gets_nowhere() -> None:
    async with open_api(**OPEN) as api, browser(api) as page:
        answer, code = await ask(page)  # its browser sends no SameSite=Strict cookie along
        assert (answer.status_code, code) == (403, "")
        assert await api.fetch("select * from verification_code") == []
        _, code = await ask(page)  # the page it was shown has set the cookie
        page.cookies.clear()
        answer = await page.post("/login/verify", data={"email": ANN, "code": code})
        assert answer.status_code == 403
        assert auth.AUTH_COOKIE not in page.cookies


async def test_a_session_made_by_a_plain_form_sets_no_cookies() -> None:
    async with open_api(**OPEN) as api, browser(api) as page:
        await page.get("/login")
        _, code = await ask(page)
        page.cookies.clear()
        content = f'{{"email": "{ANN}", "code": "{code}"}}'
        plain = {"content-type": "text/plain; charset=utf-8"}
        answer = await page.post("/auth/verify-code", content=content, headers=plain)
        assert answer.status_code == 200
        assert dict(answer.cookies) == {}


@pytest.mark.parametrize("away", ["https://e.example/", "//e.example", "/\\e.example", "x"])
async def test_next_stays_here(away: str) -> None:
    async with open_api(**OPEN) as api, browser(api) as page:
        assert 'data-next="/"' in (await page.get("/login", params={"next": away})).text
        _, code = await ask(page, next=away)
        form = {"email": ANN, "code": code, "next": away}
        answer = await page.post("/login/verify", data=form)
        assert answer.headers["location"] == "/"


async def test_a_command_line_is_let_in_when_the_person_says_so() -> None:
    async with open_api() as api, browser(api) as page:
        first = await page.get(WISH)
        assert f'name="next" value="{WISH}"' in unescape(first.text)  # sign in, then come back
        proof = await signed_in(api, page)
        asked = await page.get(WISH)
        assert asked.status_code == 200
        assert "http://127.0.0.1:4711<" in asked.text
        policy = asked.headers["content-security-policy"]
        assert "form-action 'self' http://127.0.0.1:4711;" in policy
        form = {"cli_callback": CALLBACK, "cli_state": STATE}
        for wrong in ({}, {"proof": ""}, {"proof": "00" * 16 + ".00"}):
            answer = await page.post("/login/cli", data=form | wrong)
            assert (answer.status_code, answer.headers["location"]) == (303, WISH)
        answer = await page.post("/login/cli", data=form | {"proof": proof})
        assert answer.status_code == 303
        assert answer.headers["cache-control"] == "no-store"
        where = urlsplit(answer.headers["location"])
        assert f"{where.scheme}://{where.netloc}{where.path}" == CALLBACK
        told = parse_qs(where.query)
        assert told["state"] == [STATE]
        caller = await api.caller("", told["token"][0], "")
        assert (await caller.get("/api/me"))["id"] == api.owner.user_id


async def test_a_callback_may_have_a_query_of_its_own() -> None:
    async with open_api() as api, browser(api) as page:
        proof = await signed_in(api, page)
        form = {"cli_callback": "http://localhost:1/c?a=b", "cli_state": STATE, "proof": proof}
        answer = await page.post("/login/cli", data=form)
        assert answer.headers["location"].startswith("http://localhost:1/c?a=b&token=")


@pytest.mark.parametrize(
    ("callback", "state"),
    [
        ("https://127.0.0.1:1/c", STATE),
        ("http://example.org/c", STATE),
        ("http://192.168.0.7:1/c", STATE),
        ("http://127.0.0.1.example.org/c", STATE),
        ("http://127.0.0.1:1@example.org/c", STATE),
        ("http://localhost\\@example.org/c", STATE),
        ("http://127.0.0.1:1/c#x", STATE),
        ("http://127.0.0.1:1", STATE),
        ("http://127.0.0.1:1/c\n", STATE),
        ("javascript:alert(1)//127.0.0.1/", STATE),
        ("", STATE),
        (CALLBACK, ""),
        (CALLBACK, "a b c d e f g"),
    ],
)
async def test_a_session_goes_to_this_machine_only(callback: str, state: str) -> None:
    async with open_api() as api, browser(api) as page:
        form = {"cli_callback": callback, "cli_state": state, "proof": await signed_in(api, page)}
        shown = await page.get("/login", params=form)
        assert (shown.status_code, "name=" in shown.text.partition("<main")[2]) == (400, False)
        assert (await page.post("/login/cli", data=form)).status_code == 400


async def test_the_cookies_demand_tls_where_there_is_tls() -> None:
    async with open_api(BULLPEN_PUBLIC_URL="https://b.example") as api, browser(api) as page:
        said = (await page.get("/login")).headers["set-cookie"]
        assert "Secure" in said
        assert "SameSite=strict" in said
        assert "HttpOnly" in said
    assert make_config().secure is False


async def test_a_first_workspace_is_made_on_a_page() -> None:
    async with open_api() as api, browser(api) as page:
        assert (await page.get("/workspaces/new")).headers["location"] == (
            "/login?next=/workspaces/new"
        )
        proof = await signed_in(api, page)
        assert 'name="proof" value="' in (await page.get("/workspaces/new")).text
        form = {"name": "My Team!", "slug": ""}
        refused = await page.post("/workspaces/new", data=form | {"proof": "00" * 16 + ".00"})
        assert refused.status_code == 403
        made = await page.post("/workspaces/new", data=form | {"proof": proof})
        assert (made.status_code, made.headers["location"]) == (303, "/my-team/issues")
        again = await page.post("/workspaces/new", data=form | {"proof": proof})
        assert again.status_code == 409
        assert "A workspace with this slug already exists." in again.text
        assert 'value="My Team!"' in unescape(again.text)


async def test_an_invitation_is_taken_on_its_page() -> None:
    async with open_api() as api, browser(api) as page:
        path = f"/api/workspaces/{api.elsewhere.workspace_id}/members"
        (row,) = await api.fetch("select email from app_user where id = $1", api.owner.user_id)
        invited = await api.stranger.ok(
            201, "POST", path, {"email": row["email"], "role": "member"}
        )
        place = f"/invite/{invited['id']}"
        proof = await signed_in(api, page)
        assert "Join" in (await page.get(place)).text
        refused = await page.post(place, data={"proof": "00" * 16 + ".00"})
        assert refused.status_code == 403
        joined = await page.post(place, data={"proof": proof})
        assert joined.status_code == 303
        assert joined.headers["location"] == f"/{api.elsewhere.slug}/issues"
        assert (await page.get(place)).status_code == 404


async def test_the_page_of_sessions_signs_out_here_and_everywhere() -> None:
    async with open_api() as api, browser(api) as page:
        asked = await page.get("/auth/sessions")
        assert asked.headers["location"] == "/login?next=/auth/sessions"
        await signed_in(api, page)
        other = await make_session(api.database, api.app.state.services.config, api.owner.user_id)
        seen = await page.get("/auth/sessions")
        rows = re.findall(r'name="session" value="([^"]+)"', seen.text)
        assert len(rows) == 3  # two sessions, and all of them
        assert seen.text.count(">this browser<") == 1
        proof = re.findall(r'name="proof" value="([^"]+)"', seen.text)[0]
        forged = await page.post("/auth/sessions", data={"session": "all", "proof": "x"})
        assert forged.headers["location"].startswith("/login")
        assert len(await api.fetch("select id from session")) == 2
        for nonsense in ("", "nobody", api.world.workspace_id):
            form = {"session": nonsense, "proof": proof}
            await page.post("/auth/sessions", data=form)
        assert len(await api.fetch("select id from session")) == 2
        done = await page.post("/auth/sessions", data={"session": "all", "proof": proof})
        assert done.headers["location"] == "/login"
        assert await api.fetch("select id from session") == []
        caller = await api.caller(api.owner.user_id, other, "")
        await caller.refused(401, "GET", "/api/me")
