"""Signing in by a code (spec 06 §2.3)."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.api import Api, Caller, open_api
from tests.support.mail_server import open_mail_server
from tests.support.rows import insert

pytestmark = pytest.mark.postgres

OPEN = {"BULLPEN_ALLOW_SIGNUP": "true"}


async def nobody(api: Api) -> Caller:
    caller = await api.caller("", "", api.world.workspace_id)
    del caller.client.headers["authorization"]
    return caller


async def ask(caller: Caller, email: str = "ann@example.org", status: int = 200) -> str:
    """Have a code sent; returns the one the log shows."""
    with capture_logs() as lines:
        await caller.ok(status, "POST", "/auth/send-code", {"email": email})
    return next((line["sign_in_code"] for line in lines if "sign_in_code" in line), "")


async def answer(
    caller: Caller, code: str, email: str = "ann@example.org", status: int = 200
) -> Any:
    body = {"email": email, "code": code}
    return await caller.ok(status, "POST", "/auth/verify-code", body)


async def later(api: Api, interval: str) -> None:
    """Let time pass for all codes."""
    await api.run(
        lambda conn: conn.execute(
            "update verification_code set created_at = created_at - $1::text::interval,"
            " expires_at = expires_at - $1::text::interval",
            interval,
        )
    )


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06}"


@pytest.mark.spec("06 §2.3", "POST /auth/send-code")
@pytest.mark.spec("06 §2.3", "POST /auth/verify-code")
async def test_a_code_signs_in_once_and_makes_the_account() -> None:
    async with open_api(**OPEN) as api:
        caller = await nobody(api)
        code = await ask(caller, " Ann@Example.org ")
        assert len(code) == 6
        kept = await api.fetch("select email, code_hash from verification_code")
        assert kept[0]["email"] == "ann@example.org"
        assert code not in kept[0]["code_hash"]
        response = await caller.call(
            "POST", "/auth/verify-code", {"email": "ANN@example.org", "code": code}
        )
        said = response.json()
        assert (said["user"]["name"], said["user"]["email"]) == ("ann", "ann@example.org")
        assert set(response.cookies) == {"multica_auth", "multica_csrf"}
        signed_in = await api.caller(said["user"]["id"], said["token"], "")
        assert (await signed_in.get("/api/me"))["id"] == said["user"]["id"]
        await answer(caller, code, status=400)
        await later(api, "61 seconds")
        again = await answer(caller, await ask(caller))
        assert again["user"]["id"] == said["user"]["id"]


async def test_wrong_late_and_replaced_codes_are_refused() -> None:
    async with open_api(**OPEN) as api:
        caller = await nobody(api)
        await answer(caller, "000000", status=400)
        code = await ask(caller)
        for _ in range(5):
            await answer(caller, wrong(code), status=400)
        await answer(caller, code, status=400)  # five guesses are all it bears
        await later(api, "61 seconds")
        first = await ask(caller)
        await answer(caller, first, "bob@example.org", status=400)
        await later(api, "61 seconds")
        second = await ask(caller)
        await answer(caller, first, status=400)
        await later(api, "11 minutes")
        await answer(caller, second, status=400)


async def test_codes_are_sent_seldom() -> None:
    async with open_api(**OPEN) as api:
        caller = await nobody(api)
        await ask(caller)
        response = await caller.call("POST", "/auth/send-code", {"email": "ann@example.org"})
        assert (response.status_code, response.headers["retry-after"]) == (429, "60")
        await later(api, "61 seconds")
        await api.run(
            lambda conn: conn.execute(
                "insert into verification_code (email, code_hash, expires_at, created_at, peer)"
                " select email, code_hash, expires_at, created_at, peer from verification_code,"
                " generate_series(1, 9)"
            )
        )
        await ask(caller, status=429)
        await ask(caller, "bob@example.org")


async def test_one_peer_cannot_ask_and_guess_for_everybody() -> None:
    async with open_api(**OPEN) as api:
        caller = await nobody(api)
        for number in range(5):
            await ask(caller, f"{number}@example.org")
        await ask(caller, "5@example.org", status=429)
        for _ in range(20):
            await answer(caller, "123456", "x@example.org", status=400)
        await answer(caller, "123456", "y@example.org", status=429)


@pytest.mark.parametrize(
    ("settings", "email", "status"),
    [
        ({}, "ann@example.org", 403),
        (OPEN, "ann@example.org", 200),
        ({"BULLPEN_ALLOWED_EMAILS": "Ann@Example.org"}, "ann@example.org", 200),
        (OPEN | {"BULLPEN_ALLOWED_EMAILS": "bob@example.org"}, "ann@example.org", 403),
        ({"BULLPEN_ALLOWED_EMAIL_DOMAINS": "example.org"}, "ann@example.org", 200),
        (OPEN | {"BULLPEN_ALLOWED_EMAIL_DOMAINS": "example.org"}, "ann@sub.example.org", 403),
        (OPEN, "no address", 400),
        (OPEN, "", 400),
    ],
)
async def test_who_may_sign_up(settings: dict[str, str], email: str, status: int) -> None:
    async with open_api(**settings) as api:
        await ask(await nobody(api), email, status)


async def test_who_was_invited_and_who_is_here_may_always_sign_in() -> None:
    async with open_api() as api:
        caller = await nobody(api)
        mine = (await api.owner.get("/api/me"))["email"]
        said = await answer(caller, await ask(caller, mine), mine)
        assert said["user"]["id"] == api.owner.user_id
        await ask(caller, status=403)
        await api.run(
            lambda conn: insert(
                conn,
                "workspace_invitation",
                workspace_id=api.world.workspace_id,
                inviter_id=api.world.user_id,
                invitee_email="ann@example.org",
                role="member",
            )
        )
        code = await ask(caller)
        await api.run(lambda conn: conn.execute("delete from workspace_invitation"))
        await answer(caller, code, status=403)


async def test_with_a_mail_server_the_code_is_mailed_and_not_logged() -> None:
    async with open_mail_server() as mail:
        settings = OPEN | {
            "BULLPEN_SMTP_HOST": "127.0.0.1",
            "BULLPEN_SMTP_PORT": str(mail.port),
            "BULLPEN_SMTP_SECURITY": "none",
            "BULLPEN_SMTP_FROM": "bullpen@example.org",
        }
        async with open_api(**settings) as api:
            caller = await nobody(api)
            assert await ask(caller) == ""
            [sent] = mail.mails
            assert (sent["to"], sent["from"]) == ("ann@example.org", "bullpen@example.org")
            text = sent.get_content()
            code = next(word for word in text.split() if word.isdigit())
            await answer(caller, code)
            mail.refuse = True
            await ask(caller, "bob@example.org", 503)
            mail.refuse = False
            await ask(caller, "bob@example.org")  # what was not sent does not count
