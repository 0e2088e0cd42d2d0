"""Inside a real task of a whole Bullpen: no secret of the home, and the command line still works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support import ordinary_user
from tests.support.bubblewrap import has_bubblewrap
from tests.support.bullpen import CLI, Bullpen, clean_environment, start_up, wait_for
from tests.support.scripted_agent import ROOT

pytestmark = [
    pytest.mark.together,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces"),
]


def _without_bubblewrap(folder: Path) -> str:
    """A PATH on which everything is but `bwrap`."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep)[::-1]:
        for program in Path(place).glob("*") if Path(place).is_dir() else ():
            link = folder / program.name
            if program.name != "bwrap":
                link.unlink(missing_ok=True)
                link.symlink_to(program)
    return str(folder)


@pytest.fixture(
    scope="module", params=["root-bubblewrap", "root-namespaces", "ordinary-namespaces"]
)
def bullpen(request: pytest.FixtureRequest) -> Iterator[Bullpen]:
    user, _, backend = request.param.partition("-")
    if backend == "bubblewrap" and not has_bubblewrap():
        pytest.skip("no bubblewrap on this machine, and it cannot be installed")
    if user == "root" and os.geteuid() != 0:
        pytest.skip("not root")
    if user == "ordinary" and not ordinary_user.is_possible():
        pytest.skip("no way to become an ordinary user")
    with tempfile.TemporaryDirectory(prefix="bullpen-secrets-", dir="/var/lib") as name:
        place = Path(name)
        place.chmod(0o755)
        env = {"BULLPEN_SMTP_USER": "u", "BULLPEN_SMTP_PASSWORD": uuid4().hex}
        if backend == "namespaces":
            env["PATH"] = _without_bubblewrap(place / "bin")
        home = place / "home"
        home.mkdir()
        python = None
        if user == "ordinary":
            user_home = place / "user"
            user_home.mkdir()
            python = ordinary_user.command(["-P"], user_home, home)
        with start_up(home, env=env, python=python) as started:
            status = json.loads(started.cli("daemon", "status", "--output", "json").stdout)
            assert status["isolation"] == backend, status
            assert "isolation_problem" not in status
            yield started


def _said(bullpen: Bullpen, description: str) -> tuple[str, Any]:
    """Run the demo agent with this script; return its tools' output and the run."""
    issue = bullpen.create_issue(f"Look around {len(description)}", description)

    def probe() -> Any:
        rows = bullpen.tasks(issue["id"])
        return rows[0] if rows and rows[0]["status"] in {"completed", "failed"} else None

    run = wait_for("the run", probe, seconds=120)
    rows = bullpen.messages(run["id"])
    said = "\n".join(row.get("output") or "" for row in rows if row["type"] == "tool_result")
    return said, run


def test_no_secret_of_the_home_is_within_an_agents_reach(bullpen: Bullpen) -> None:
    secrets = bullpen.home / "secrets"
    control = json.loads((secrets / "daemon.json").read_text())
    wanted = {
        "token": bullpen.told["token"],
        "machine": (secrets / "machine.key").read_text().strip(),
        "postgres": (secrets / "postgres.password").read_text().strip(),
        "control": control["secret"],
        "mail": bullpen.env["BULLPEN_SMTP_PASSWORD"],
        "another task": uuid4().hex,
    }
    said, other = _said(bullpen, f"demo: sh echo {wanted['another task']} | tee kept $TMPDIR/kept")
    assert (Path(other["work_dir"]) / "kept").exists(), f"{said}\n{other}"
    hunter = ROOT / "tests" / "support" / "hunter.py"
    if bullpen.python is not None and os.geteuid() == 0:
        hunter = Path("/opt/bullpen-as-user/source/tests/support/hunter.py")
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    backwards = ",".join(secret[::-1] for secret in wanted.values())
    lines = [f"demo: sh {python} -I {hunter} {backwards} {bullpen.home}"]
    lines += ["demo: sh env | grep -c -e BULLPEN_ -e SMTP",
              f"demo: sh ls -A {bullpen.home} {bullpen.home}/workspaces/*",
              "demo: sh bullpen issue list --output json | head -c 300"]  # fmt: skip
    said, run = _said(bullpen, "\n".join(lines))
    assert run["status"] == "completed", said
    assert said.count("hunted") == 1, said
    assert "found " not in said
    own = Path(run["work_dir"]).parent.name
    assert own in said
    assert Path(other["work_dir"]).parent.name not in said
    for name in ("secrets", "journals", "postgres", "logs"):
        assert f"\n{name}\n" not in f"\n{said}\n"
    assert "Look around" in said, "the command line's door is there"


def test_a_setting_that_demands_isolation_is_kept(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.json").write_text(
        json.dumps({"server_url": "http://127.0.0.1:9", "token": "mul_" + "0" * 40})
    )
    env = clean_environment(BULLPEN_HOME=str(home), BULLPEN_AGENT_ISOLATION="required")
    done = subprocess.run(
        [*CLI, "daemon", "start", "--check"], env=env, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert "isolation: " in done.stdout + done.stderr
    env["BULLPEN_AGENT_ISOLATION"] = "sometimes"
    done = subprocess.run(
        [*CLI, "daemon", "start", "--check"], env=env, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "BULLPEN_AGENT_ISOLATION" in done.stderr
    assert "auto, required, off" in done.stderr
