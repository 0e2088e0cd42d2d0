"""Attacks on signed webhooks: whoever overheard a call sends it again."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import attrs
import pytest

from server.web import signatures
from tests.support.api import Api, open_api

pytestmark = pytest.mark.postgres

SECRET = "s" * 24


@attrs.frozen
class Hook:
    """A webhook with a signing secret."""

    api: Api
    pilot: str
    path: str

    async def call(self, body: bytes, status: int = 200, **headers: str) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.api.stranger.client.post(self.path, content=body, headers=sent)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def runs(self) -> int:
        rows = await self.api.fetch("select id from autopilot_run")
        return len(rows)


async def hook(api: Api, provider: str = "generic") -> Hook:
    body = {
        "title": "Deploy",
        "assignee_type": "agent",
        "assignee_id": api.world.agent_id,
        "execution_mode": "create_issue",
        "concurrency_policy": "skip",
    }
    pilot = await api.owner.ok(201, "POST", "/api/autopilots", body)
    path = f"/api/autopilots/{pilot['id']}/triggers"
    kind = {"kind": "webhook", "provider": provider}
    trigger = await api.owner.ok(201, "POST", path, kind)
    await api.owner.ok(
        200, "PUT", f"{path}/{trigger['id']}/signing-secret", {"signing_secret": SECRET}
    )
    return Hook(api, pilot["id"], trigger["webhook_path"])


def of_body(body: bytes) -> dict[str, str]:
    """The protocol's and GitHub's signature."""
    mac = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    return {"X_Hub_Signature_256": f"sha256={mac}"}


def standard(
    body: bytes, call: str = "msg_1", moment: float = 0.0, **change: str
) -> dict[str, str]:
    """Standard Webhooks' headers; `moment` is seconds from now."""
    stamp = str(int(time.time() + moment))
    mac = hmac.new(SECRET.encode(), f"{call}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "Webhook_Id": call,
        "Webhook_Timestamp": stamp,
        "Webhook_Signature": f"v1,AAAA v1,{base64.b64encode(mac).decode()}",
    } | change


async def test_the_same_signed_body_starts_one_run_whatever_the_unsigned_headers_say() -> None:
    async with open_api() as api:
        there = await hook(api, "github")
        body = json.dumps({"action": "opened", "number": 7}).encode()
        first = await there.call(
            body, X_GitHub_Delivery="d-1", X_GitHub_Event="pull_request", **of_body(body)
        )
        assert first["status"] == "accepted"
        forged: list[dict[str, str]] = [
            {"X_GitHub_Delivery": "d-2"},
            {"X_GitHub_Delivery": "d-2", "Idempotency_Key": "k"},
            {"Idempotency_Key": "other", "X_GitHub_Event": "push"},
            {},
        ]
        for headers in forged:
            again = await there.call(body, **headers, **of_body(body))
            assert again["status"] == "duplicate", headers
            assert again["run_id"] == first["run_id"]  # an honest retry is told of its run
        assert await there.runs() == 1
        other = json.dumps({"action": "opened", "number": 8}).encode()
        assert (await there.call(other, **of_body(other)))["status"] in {"accepted", "skipped"}


async def test_a_person_may_still_repeat_a_delivery() -> None:
    async with open_api() as api:
        there = await hook(api)
        first = await there.call(b'{"n": 1}', **of_body(b'{"n": 1}'))
        path = f"/api/autopilots/{there.pilot}/deliveries/{first['delivery_id']}/replay"
        for _ in range(2):
            assert (await api.owner.ok(200, "POST", path))["status"] in {"accepted", "skipped"}


async def test_a_refused_call_does_not_use_up_the_body() -> None:
    async with open_api() as api:
        there = await hook(api)
        body = b'{"n": 1}'
        await there.call(body, 401, X_Hub_Signature_256="sha256=00", Idempotency_Key="a")
        await there.call(body, 401, Idempotency_Key="a")
        said = await there.call(body, Idempotency_Key="a", **of_body(body))
        assert said["status"] == "accepted"


async def test_a_signed_time_stamp_is_checked_and_its_id_counts_once() -> None:
    async with open_api() as api:
        there = await hook(api)
        body = b'{"event": "deploy"}'
        first = await there.call(body, **standard(body))
        assert first["status"] == "accepted"
        # A retry is signed anew; a replay has nothing but what it heard.
        assert (await there.call(body, **standard(body, moment=5)))["status"] == "duplicate"
        # The same body as another call: the id is signed, so it is another call.
        second = await there.call(body, **standard(body, "msg_2"))
        assert second["status"] in {"accepted", "skipped"}
        for off in (-signatures.TOLERANCE - 5, signatures.TOLERANCE + 5):
            old = await there.call(body, 401, **standard(body, f"old{off}", off))
            assert (old["status"], "too far" in old["reason"]) == ("rejected", True)
        for change in (
            {"Webhook_Id": "msg_3"},
            {"Webhook_Timestamp": str(int(time.time()) + 60)},
            {"Webhook_Signature": "v1,AAAA"},
        ):
            assert (await there.call(body, 401, **standard(body, **change)))["reason"] == "invalid"
        for missing in ("Webhook_Id", "Webhook_Timestamp"):
            await there.call(body, 401, **standard(body, **{missing: ""}))
        assert await there.runs() == 2


@pytest.mark.fast
def test_a_secret_written_as_standard_webhooks_does_is_its_bytes() -> None:
    key = b"0123456789abcdef01234567"
    secret = "whsec_" + base64.b64encode(key).decode()
    mac = base64.b64encode(hmac.new(key, b"a.100.{}", hashlib.sha256).digest()).decode()
    headers = {"webhook-id": "a", "webhook-timestamp": "100", "webhook-signature": f"v1,{mac}"}
    assert signatures.check(headers, b"{}", secret, 110.0).status == "valid"
    assert signatures.check(headers, b"{ }", secret, 110.0).status == "invalid"
    for stamp in ("-1", "1e9", "٣", "", "9" * 40):
        assert signatures.check(headers | {"webhook-timestamp": stamp}, b"{}", secret, 1.0).reason


async def test_a_slip_of_the_pen_does_not_take_the_signature_away() -> None:
    async with open_api() as api:
        called = await hook(api)
        (trigger,) = await api.fetch("select id, autopilot_id from autopilot_trigger")
        path = f"/api/autopilots/{trigger['autopilot_id']}/triggers/{trigger['id']}/signing-secret"
        for body in ({}, {"secret": SECRET}):
            assert "signing_secret" in await api.owner.refused(400, "PUT", path, body)
        assert called.path
        (row,) = await api.fetch("select signing_secret from autopilot_trigger")
        assert row["signing_secret"] == SECRET
        await api.owner.ok(200, "PUT", path, {"signing_secret": ""})
