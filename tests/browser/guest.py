"""Somebody else than who started Bullpen: invited, signed in by a code, in no workspace of ours.

The server sends few codes to one peer in a minute, so one guest serves all tests of a run.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import httpx

from tests.support.bullpen import Bullpen, wait_for


@attrs.frozen
class Guest:
    """`api` is signed in as the guest by a personal token; `email` is whom to invite."""

    email: str
    api: httpx.Client

    @property
    def link(self) -> str:
        """A link that signs a browser in as the guest."""
        link: str = self.api.post("/auth/link", json={}).raise_for_status().json()["url"]
        return link


def invite(bullpen: Bullpen, email: str) -> str:
    """Invite somebody into the first workspace; the invitation's id."""
    with bullpen.api() as api:
        path = f"/api/workspaces/{bullpen.told['workspace_id']}/members"
        made = api.post(path, json={"email": email, "role": "member"}).raise_for_status().json()
    invitation_id: str = made["id"]
    return invitation_id


def new_email() -> str:
    return f"{uuid.uuid4().hex[:8]}@bullpen.local"


def code_for(home: Path, email: str) -> str:
    """The newest code for an address that stands in the server's log."""

    def probe() -> str | None:
        text = "".join(path.read_text(errors="replace") for path in (home / "logs").glob("*.log"))
        lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
        codes = [re.search(r"sign_in_code\W+(\d{6})", line) for line in lines if email in line]
        found = [code[1] for code in codes if code]
        return found[-1] if found else None

    return wait_for(f"a code for {email}", probe)


@contextmanager
def open_guest(bullpen: Bullpen) -> Iterator[Guest]:
    """A guest whose first invitation is declined."""
    email = new_email()
    invitation_id = invite(bullpen, email)
    url = bullpen.told["url"]
    with httpx.Client(base_url=url, trust_env=False, timeout=15) as client:
        client.post("/auth/send-code", json={"email": email}).raise_for_status()
        code = code_for(bullpen.home, email)
        told = client.post("/auth/verify-code", json={"email": email, "code": code})
        client.headers["Authorization"] = f"Bearer {told.raise_for_status().json()['token']}"
        made = client.post("/api/tokens", json={"name": "guest"}).raise_for_status().json()
        client.post("/auth/logout", json={}).raise_for_status()
        client.cookies.clear()
        client.headers["Authorization"] = f"Bearer {made['token']}"
        client.post(f"/api/invitations/{invitation_id}/decline", json={}).raise_for_status()
        yield Guest(email, client)
