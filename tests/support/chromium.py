"""Debian's Chromium for the browser tests: there, found and started the same way everywhere.

`python -m tests.support.chromium` makes sure it is installed: as root on a machine with apt it
installs it, elsewhere it says what to do and exits 1. `BULLPEN_CHROMIUM` names another one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")

FLAGS = (
    "--headless",
    "--no-sandbox",  # the tests run as root in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find() -> str | None:
    """Return the path of a Chromium, or None."""
    given = os.environ.get("BULLPEN_CHROMIUM", "").strip()
    return next((path for name in (given, *NAMES) if name and (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser with a new profile directory of its own, which is gone afterwards."""
    path = find()
    if path is None:
        raise RuntimeError("no Chromium; run: python -m tests.support.chromium")
    with _plain_asyncio(), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def _plain_asyncio() -> Iterator[None]:
    """Give Playwright asyncio as it comes: trio-asyncio puts its own loops into the process."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)


def ensure() -> int:
    """Install Chromium if it is missing and that is possible; the exit status."""
    path = find()
    if path is None and os.geteuid() == 0 and shutil.which("apt-get"):
        apt = ["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0"]
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--no-install-recommends", "chromium"]):
            if subprocess.run([*apt, *command], env=quiet, check=False).returncode:
                break
        path = find()
    if path is None:
        print(
            "The browser tests need Chromium. Install it (as root: apt-get install chromium)"
            " or name one in BULLPEN_CHROMIUM.",
            file=sys.stderr,
        )
        return 1
    print(f"Chromium: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(ensure())
