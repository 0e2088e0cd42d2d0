"""The daemon as a service under a live systemd, installed from wheels as a user installs it.

The machine is a container that has booted (`tests/support/booted.py`); the server runs outside.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.support.booted import USER, Booted, booted, can_boot
from tests.support.bullpen import Bullpen, start_up, wait_for
from tests.support.packages import Index, make_index

pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif("not sys.platform.startswith('linux')", reason="systemd"),
]

UNIT = "bullpen-daemon.service"
HOME = f"/home/{USER}"
BULLPEN = f"{HOME}/tool/bin/bullpen"


@attrs.frozen
class Installed:
    """Bullpen in an environment of the user's own, on a machine that has booted."""

    machine: Booted
    server: Bullpen
    index: Index
    env: dict[str, str]

    def run(self, *words: str, check: bool = True) -> str:
        done = self.machine.as_user(BULLPEN, *words, env=self.env, check=check)
        return done.stdout + done.stderr

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.machine.as_user("systemctl", "--user", *words, check=check).stdout.strip()

    def show(self, name: str) -> str:
        return self.systemctl("show", UNIT, f"--property={name}", "--value")

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.run("daemon", "status", "--output", "json"))
        return told

    def runtimes(self) -> list[dict[str, Any]]:
        with self.server.api() as api:
            rows: list[dict[str, Any]] = api.get("/api/runtimes").raise_for_status().json()
        own = self.status().get("daemon_id")
        return [row for row in rows if row["daemon_id"] == own]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    if not can_boot():
        pytest.skip("needs root and Debian's systemd-container")
    folder = tmp_path_factory.mktemp("service")
    wheels = make_index(folder / "index")
    with start_up(folder / "home") as server, booted() as machine:
        inside = machine.root / "opt" / "index"
        shutil.copytree(wheels.folder, inside)
        index = Index(Path("/opt/index"), wheels.old, wheels.new)
        machine.as_user("/usr/bin/python3", "-m", "venv", f"{HOME}/tool", env=index.env)
        machine.as_user(f"{HOME}/tool/bin/pip", "-q", "install", "bullpen", env=index.env)
        told = server.told
        made = Installed(
            machine,
            server,
            Index(inside, index.old, index.new),
            index.env | {"BULLPEN_SERVER_URL": told["url"], "BULLPEN_AGENTS": "demo"},
        )
        made.machine.as_user(BULLPEN, "login", "--token", told["token"], env=made.env)
        said = made.run("daemon", "install")
        assert "Traceback" not in said
        yield made
        made.run("daemon", "uninstall", check=False)


def is_ready(installed: Installed) -> bool:
    return installed.status().get("status") == "running"


def test_it_counts_as_started_once_it_has_registered(installed: Installed) -> None:
    assert installed.show("Type") == "notify"
    assert installed.show("ActiveState") == "active"
    assert installed.systemctl("is-enabled", UNIT) == "enabled"
    assert is_ready(installed)
    assert [row["status"] for row in installed.runtimes()] == ["online"]


def test_a_killed_daemon_is_started_again(installed: Installed) -> None:
    before = installed.show("MainPID")
    installed.systemctl("kill", "--signal=KILL", "--kill-whom=main", UNIT)
    wait_for("another daemon", lambda: installed.show("MainPID") not in {before, "0"})
    wait_for("it is ready", lambda: is_ready(installed))
    assert installed.show("NRestarts") == "1"


def test_restarting_goes_through_the_manager(installed: Installed) -> None:
    before = installed.show("MainPID")
    installed.run("daemon", "restart")
    assert is_ready(installed)
    assert installed.show("MainPID") != before
    assert installed.show("MainPID") == str(installed.status()["pid"])


def test_a_stopped_daemon_stays_stopped(installed: Installed) -> None:
    installed.run("daemon", "stop")
    wait_for("its end", lambda: installed.show("ActiveState") == "inactive")
    installed.run("daemon", "start")
    assert installed.show("ActiveState") == "active"
    assert is_ready(installed)


def test_an_update_is_one_of_the_service(installed: Installed) -> None:
    installed.index.publish()
    assert f"{installed.index.new} is there" in installed.run("update", "--check")
    installed.run("update")
    assert installed.run("--version").split()[1] == installed.index.new
    assert installed.status()["cli_version"] == installed.index.new
    assert installed.show("ActiveState") == "active"
    assert installed.show("MainPID") == str(installed.status()["pid"])
    installed.run("update", "--back")
    assert installed.run("--version").split()[1] == installed.index.old
    assert installed.status()["cli_version"] == installed.index.old
    installed.index.withdraw()


def test_it_comes_back_with_the_machine(installed: Installed) -> None:
    installed.machine.power_off()
    installed.machine.boot()
    wait_for("the service", lambda: installed.show("ActiveState") == "active", seconds=60)
    assert is_ready(installed)


def test_nothing_is_left_of_it(installed: Installed) -> None:
    installed.run("daemon", "uninstall")
    assert installed.show("LoadState") == "not-found"
    assert installed.status()["status"] == "stopped"
    unit = installed.machine.run("find", HOME, "-name", UNIT).stdout
    assert not unit
