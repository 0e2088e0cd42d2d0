"""The person's browser: opening it, and being told by it who is signed in (spec 06 §2.6).

For `bullpen login` the command line listens on the loopback until the sign-in page has sent the
browser there with a session, or the time is over. Each request has a thread of its own, since
browsers like to connect ahead of need; the threads end with the process.
"""

from __future__ import annotations

import hmac
import queue
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

PATIENCE: Final = 300.0
"""Seconds a person may take to sign in."""

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{heading}: Bullpen</title><link rel="icon" href="data:,"></head>
<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 30rem; margin: 12vh auto; padding: 0 1rem">
<h1>{heading}</h1><p>{text}</p>
<script>history.replaceState(null, "", "/")</script></body></html>
"""
"""The script takes the session out of the address bar and the history."""


def browser_opener(env: Mapping[str, str]) -> str | None:
    """The program that opens a link on this machine's screen, or None without a screen."""
    if sys.platform == "darwin":
        return None if env.get("SSH_CONNECTION") else shutil.which("open", path=env.get("PATH"))
    if not (env.get("DISPLAY") or env.get("WAYLAND_DISPLAY")):
        return None
    return shutil.which("xdg-open", path=env.get("PATH"))


def open_detached(words: Sequence[str]) -> None:
    """Start a program nobody waits for."""
    subprocess.Popen(
        list(words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


class SignIn:
    """One sign-in by browser under way. Open with `open_sign_in`."""

    def __init__(self, port: int) -> None:
        self._callback = f"http://127.0.0.1:{port}/callback"
        self._state = secrets.token_hex(16)
        self._sessions: queue.SimpleQueue[str] = queue.SimpleQueue()

    def url(self, app_url: str) -> str:
        """The page the person has to open."""
        return f"{app_url}/login?" + urlencode(
            {"cli_callback": self._callback, "cli_state": self._state}
        )

    def try_session(self, patience: float = PATIENCE) -> str | None:
        """The session the page hands over, or None when the time is over."""
        try:
            return self._sessions.get(timeout=patience)
        except queue.Empty:
            return None

    def session_in(self, query: str) -> str | None:
        """The session in a callback's query, if it comes from the page that was asked."""
        sent = parse_qs(query)
        state, session = sent.get("state", [""])[0], sent.get("token", [""])[0]
        return session if hmac.compare_digest(state.encode(), self._state.encode()) else None

    def put(self, session: str) -> None:
        self._sessions.put(session)


class _Handler(BaseHTTPRequestHandler):
    """Answers the callback, and nothing else."""

    timeout = 10  # seconds a connection may be silent
    sign_in: SignIn

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path != "/callback":
            self._answer(404, "Not here", "Only a sign-in that is under way is answered here.")
            return
        session = self.sign_in.session_in(parts.query)
        if not session:
            self._answer(
                400, "Not signed in", "This does not belong to the sign-in under way. Run bullpen"
                " login again, and open the link it prints.",
            )  # fmt: skip
            return
        self._answer(
            200, "Back to the command line", "It has what it needs and says there how it went."
            " This page can be closed.",
        )  # fmt: skip
        self.sign_in.put(session)  # last: then the process may end

    def _answer(self, status: int, heading: str, text: str) -> None:
        page = _PAGE.format(heading=heading, text=text).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(page)),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "Connection": "close",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its parent's name
        """Say nothing: the query has a session in it."""


@contextmanager
def open_sign_in() -> Iterator[SignIn]:
    """Listen on a free port of the loopback for the time of the block. Raises OSError."""
    handler = type("_OwnHandler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        sign_in = handler.sign_in = SignIn(server.server_address[1])  # type: ignore[attr-defined]
        listening = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        listening.start()
        try:
            yield sign_in
        finally:
            server.shutdown()
            listening.join()
