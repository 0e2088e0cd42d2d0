"""`bullpen login` through a browser, end to end: the test is the browser, an opener its address bar."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import httpx
import pytest

from tests.support.bullpen import CLI, Bullpen, start_up, wait_for

pytestmark = [
    pytest.mark.together,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the opener stands in for xdg-open"),
]


@pytest.fixture(scope="module")
def bullpen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bullpen]:
    with start_up(tmp_path_factory.mktemp("login") / "home") as started:
        yield started


class Screen:
    """A machine with a screen whose opener writes down what it was to open."""

    def __init__(self, bullpen: Bullpen, folder: Path) -> None:
        self.bullpen = bullpen
        self.home = folder / "home"
        self.opened = folder / "opened"
        opener = folder / "bin" / "xdg-open"
        opener.parent.mkdir()
        opener.write_text(f'#!/bin/sh\nprintf %s "$1" > "{self.opened}.new"\n'
                          f'mv "{self.opened}.new" "{self.opened}"\n')  # fmt: skip
        opener.chmod(0o755)
        self.env = bullpen.env | {
            "BULLPEN_HOME": str(self.home),
            "BULLPEN_SERVER_URL": bullpen.told["url"],
            "DISPLAY": ":0",
            "PATH": f"{opener.parent}{os.pathsep}{os.environ['PATH']}",
        }

    def run(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*CLI, *words],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def screen(bullpen: Bullpen, tmp_path: Path) -> Screen:
    return Screen(bullpen, tmp_path)


def hidden_fields(page: str) -> dict[str, str]:
    return {
        name: unescape(value)
        for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page)
    }


def test_a_person_signs_the_command_line_in(bullpen: Bullpen, screen: Screen) -> None:
    login = screen.run("login")
    try:
        address = wait_for(
            "the opener", lambda: screen.opened.exists() and screen.opened.read_text()
        )
        with httpx.Client(trust_env=False, timeout=10) as browser, bullpen.api() as api:
            browser.get(api.post("/auth/link", json={}).json()["url"])  # signed in already
            asked = browser.get(address)
            assert "Sign the command line in?" in asked.text
            form = hidden_fields(asked.text)
            # Somebody else on this machine does not know the secret word.
            assert browser.get(form["cli_callback"], params={"token": "x"}).status_code == 400
            assert browser.get(form["cli_callback"] + "x").status_code == 404
            assert login.poll() is None
            url = f"{bullpen.told['url']}/login/cli"
            done = browser.post(url, data=form, follow_redirects=True)
            assert "Back to the command line" in done.text
        _, err = login.communicate(timeout=20)
    finally:
        login.kill()
        login.wait(5)
    assert login.returncode == 0, err
    assert "signed in to" in err
    assert "workspace:" in err
    kept = json.loads((screen.home / "secrets" / "config.json").read_text())
    assert kept["token"].startswith("mul_")
    assert kept["token"] not in err
    assert (screen.home / "secrets" / "config.json").stat().st_mode & 0o077 == 0
    with bullpen.api() as api:
        tokens = api.get("/api/tokens").json()
        sessions = api.get("/api/sessions").json()["sessions"]
    assert {each["kind"] for each in sessions} == {"link"}  # the handed-over one has ended
    made = next(each for each in tokens if kept["token"].startswith(each["token_prefix"]))
    assert made["name"].startswith("CLI (")
    assert made["expires_at"]
    status = screen.run("auth", "status")
    _, said = status.communicate(timeout=20)
    assert "local@bullpen.local" in said


def test_without_a_screen_a_token_is_asked_for(screen: Screen) -> None:
    del screen.env["DISPLAY"]
    login = screen.run("login")
    _, err = login.communicate(timeout=20)
    assert login.returncode == 1
    assert "--token" in err
