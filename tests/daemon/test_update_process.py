"""Changing a real installation: an environment of its own, an installer, and a running daemon.

The environment is a venv that borrows this checkout and its libraries; the installer is a script
that "installs" a version by changing what that venv says its version is. A version may be broken:
not starting at all, or only in earnest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import __version__
from tests.daemon.test_daemon_process import Machine, Server, _wait_for, server  # noqa: F401

pytestmark = pytest.mark.together

NEW = "9.9.9"
CHECKOUT = Path(__file__).parents[2]

UV = '''#!{python}
"""The parts of uv that are used: it knows one newer version, kept in the file `newest`."""
import json, shutil, sys, sysconfig
from pathlib import Path

folder = Path(__file__).parent
words = sys.argv[1:]
with (folder / "calls").open("a") as calls:
    print(*words, file=calls)
newest, *flaws = (folder / "newest").read_text().split()

def install(prefix):
    [packages] = Path(prefix).glob("lib/python*/site-packages")
    lines = [f"import shared; shared.__version__ = {{newest!r}}"]
    if "not-starting" in flaws:
        lines.append("import os, sys; '--check' in sys.argv and os._exit(3)")
    if "not-in-earnest" in flaws:
        lines.append("import os; os.environ.get('BULLPEN_DAEMON_TRIAL') and os._exit(4)")
    (packages / "zz_version.pth").write_text("\\n".join(lines) + "\\n")

if words[:2] == ["pip", "list"]:
    print(json.dumps([{{"name": "other", "version": "1", "latest_version": "2"}},
                      {{"name": "bullpen", "version": "{version}", "latest_version": newest}}]))
elif words[0] == "venv":
    shutil.copytree("{prefix}", words[-1], symlinks=True)
elif words[:2] == ["pip", "install"]:
    assert words[-1] == f"bullpen=={{newest}}"
    prefix = Path(words[words.index("--python") + 1]).parent.parent
    script = prefix / "bin" / "bullpen"
    script.write_text(script.read_text().replace("{prefix}", str(prefix)))
    install(prefix)
elif words[:2] == ["tool", "upgrade"]:
    if "upgrade-fails" in flaws:
        install("{prefix}")
        sys.exit("error: out of disk")
    install("{prefix}")
else:
    sys.exit(f"what is {{words}}?")
'''


class Installed(Machine):
    """A machine with Bullpen installed by uv."""

    def __init__(self, folder: Path, url: str) -> None:
        home = folder / "home"
        home.mkdir()
        super().__init__(home, url)
        self.tools = folder / "tools"
        self.prefix = folder / "installed" / "bullpen"
        venv.create(self.prefix, symlinks=True)
        [packages] = self.prefix.glob("lib/python*/site-packages")
        paths = [str(CHECKOUT), sysconfig.get_path("purelib")]
        (packages / "borrowed.pth").write_text("\n".join(paths) + "\n")
        info = packages / f"bullpen-{__version__}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: bullpen\nVersion: {__version__}\n"
        )
        (self.prefix / "uv-receipt.toml").touch()
        self.bullpen = self.prefix / "bin" / "bullpen"
        self.bullpen.write_text(
            f"#!{self.prefix}/bin/python\nfrom daemon.cli import main\nmain()\n"
        )
        self.bullpen.chmod(0o755)
        self.tools.mkdir()
        uv = self.tools / "uv"
        uv.write_text(UV.format(python=sys.executable, prefix=self.prefix, version=__version__))
        uv.chmod(0o755)
        self.env["PATH"] = f"{self.tools}{os.pathsep}{os.environ['PATH']}"

    def offer(self, *newest: str) -> None:
        (self.tools / "newest").write_text(" ".join(newest))

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bullpen, *args],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def version(self) -> str:
        return self.run("--version").stdout.split()[1]


@pytest.fixture
def machine(tmp_path: Path, server: Server) -> Iterator[Installed]:  # noqa: F811
    made = Installed(tmp_path, server.url)
    made.offer(NEW)
    assert made.version() == __version__
    yield made
    made.run("daemon", "stop")
    assert made.health() == {"status": "stopped"}


def test_a_person_updates_and_goes_back(machine: Installed) -> None:
    checked = machine.run("update", "--check")
    assert (checked.returncode, f"{NEW} is there" in checked.stderr) == (0, True)
    assert machine.version() == __version__

    assert machine.run("daemon", "start", "--poll-interval", "7s").returncode == 0
    pid = machine.told()["pid"]
    updated = machine.run("update")
    assert updated.returncode == 0, updated.stderr
    assert machine.version() == NEW
    health = machine.health()
    assert (health["status"], health["cli_version"]) == ("running", NEW)
    assert health["pid"] != pid
    environ = Path(f"/proc/{health['pid']}/environ")
    if environ.exists():
        assert b"BULLPEN_DAEMON_POLL_INTERVAL=7s" in environ.read_bytes(), "started as it was"
    assert not (machine.home / "update" / "proof").exists()

    assert "is the newest version" in machine.run("update").stderr
    back = machine.run("update", "--back")
    assert back.returncode == 0, back.stderr
    assert machine.version() == machine.health()["cli_version"] == __version__


@pytest.mark.parametrize("flaw", ["not-starting", "upgrade-fails"])
def test_a_version_that_does_not_work_changes_nothing(machine: Installed, flaw: str) -> None:
    assert machine.run("daemon", "start").returncode == 0
    pid = machine.told()["pid"]
    machine.offer(NEW, flaw)
    failed = machine.run("update")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert machine.version() == __version__
    health = machine.health()
    assert (health["status"], health["cli_version"]) == ("running", __version__)
    if flaw == "not-starting":
        assert health["pid"] == pid, "the daemon was not even asked"
        assert "daemon start --check" not in failed.stderr
    else:
        assert "out of disk" in failed.stderr


def test_the_daemon_updates_itself_and_stays_the_same_process(machine: Installed) -> None:
    env = {"BULLPEN_DAEMON_AUTO_UPDATE": "on", "BULLPEN_DAEMON_AUTO_UPDATE_INTERVAL": "1s"}
    machine.offer(__version__)
    assert machine.run("daemon", "start", **env).returncode == 0
    pid = machine.told()["pid"]
    machine.offer(NEW)
    _wait_for(lambda: machine.health().get("cli_version") == NEW, 60)
    health = _wait_for(lambda: (h := machine.health())["status"] == "running" and h, 30)
    assert health["pid"] == pid
    assert machine.version() == NEW
    log = (machine.home / "logs" / "daemon.log").read_text()
    assert "the trial start has succeeded" in log


def test_a_version_that_fails_in_earnest_is_gone_back_from_and_not_tried_again(
    machine: Installed,
) -> None:
    env = {"BULLPEN_DAEMON_AUTO_UPDATE": "on", "BULLPEN_DAEMON_AUTO_UPDATE_INTERVAL": "1s"}
    machine.offer(__version__)
    assert machine.run("daemon", "start", **env).returncode == 0
    pid = machine.told()["pid"]
    machine.offer(NEW, "not-in-earnest")
    log = machine.home / "logs" / "daemon.log"
    _wait_for(lambda: "the new version did not start; going back" in log.read_text(), 60)
    _wait_for(lambda: machine.health()["status"] == "running", 30)
    health = machine.health()
    assert (health["pid"], health["cli_version"]) == (pid, __version__)
    assert machine.version() == __version__
    calls = machine.tools / "calls"
    looks = calls.read_text().count("pip list")
    _wait_for(lambda: calls.read_text().count("pip list") > looks + 1, 30)
    assert calls.read_text().count("tool upgrade") == 1


def test_a_checkout_says_how_it_is_updated(machine: Installed) -> None:
    [info] = machine.prefix.glob("lib/python*/site-packages/bullpen-*.dist-info")
    shutil.rmtree(info)
    refused = machine.run("update")
    assert refused.returncode == 1
    assert "git pull" in refused.stderr
    told = {"url": "file:///somewhere", "dir_info": {}}
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: bullpen\nVersion: {__version__}\n"
    )
    (info / "direct_url.json").write_text(json.dumps(told))
    assert "file:///somewhere" in machine.run("update").stderr
    assert not (machine.tools / "calls").exists()


def test_up_is_not_updated_under_its_feet(machine: Installed) -> None:
    (machine.home / "up.json").write_text(json.dumps({"pid": os.getpid()}))
    refused = machine.run("update")
    assert refused.returncode == 1
    assert "bullpen up" in refused.stderr
    assert machine.version() == __version__
