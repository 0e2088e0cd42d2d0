"""Whether a webhook call is signed, when it was, and what makes it the same call again. Pure.

Two ways to sign are known. The protocol's (and GitHub's) signs the body alone: then the body is all
that can be trusted, and the same body again is a repeat, whatever unsigned headers say. Standard
Webhooks signs an id and a time stamp too: then the id tells repeats, and what is old is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

import attrs

TOLERANCE: Final = 300.0
"""Seconds a signed time stamp may be off: clocks differ, and a sender's retry signs anew."""

_LONGEST_ID: Final = 256


@attrs.frozen(kw_only=True)
class Signature:
    """What a call's signature is worth.

    `status` is one of the protocol's: not_required, valid, invalid, missing. `key` names what was
    signed, for valid ones; `reason` says what is wrong.
    """

    status: str
    key: str = ""
    reason: str = ""


def check(headers: Mapping[str, str], raw: bytes, secret: str | None, now: float) -> Signature:
    """The signature of a call that arrives at `now`, in seconds since the epoch."""
    if not secret:
        return Signature(status="not_required")
    if "webhook-signature" in headers:
        return _standard(headers, raw, secret, now)
    sent = headers.get("x-hub-signature-256", "")
    if not sent:
        return Signature(status="missing", reason="missing")
    wanted = "sha256=" + hmac.new(secret.encode(), raw, hashlib.sha256).hexdigest()
    if not _same(wanted, sent):
        return Signature(status="invalid", reason="invalid")
    return Signature(status="valid", key="body:" + hashlib.sha256(raw).hexdigest())


def _standard(headers: Mapping[str, str], raw: bytes, secret: str, now: float) -> Signature:
    """Standard Webhooks: `v1,` and the HMAC-SHA256 of `id.timestamp.body`, base64; several may be given."""
    call, moment = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not call or not moment:
        return Signature(status="missing", reason="webhook-id and webhook-timestamp are required")
    if len(call) > _LONGEST_ID:
        return Signature(status="invalid", reason="webhook-id is too long")
    signed = f"{call}.{moment}.".encode("latin-1", "replace") + raw
    mac = hmac.new(_key_of(secret), signed, hashlib.sha256).digest()
    wanted = "v1," + base64.b64encode(mac).decode()
    if not any(_same(wanted, one) for one in headers["webhook-signature"].split()):
        return Signature(status="invalid", reason="invalid")
    # Signed, so it is the sender's own mistake from here on.
    if not moment.isascii() or not moment.isdigit() or len(moment) > 12:
        return Signature(status="invalid", reason="webhook-timestamp must be seconds since 1970")
    if abs(int(moment) - now) > TOLERANCE:
        return Signature(status="invalid", reason="webhook-timestamp is too far from now")
    return Signature(status="valid", key="id:" + hashlib.sha256(call.encode()).hexdigest())


def _key_of(secret: str) -> bytes:
    """The bytes of a secret; Standard Webhooks writes them as `whsec_` and base64."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            pass
    return secret.encode()


def _same(wanted: str, sent: str) -> bool:
    return hmac.compare_digest(wanted.encode(), sent.encode())
