"""The reclaim of a real daemon behind a proxy that lies, and by an operator's word.

A second machine works on some issues. What decides about its directories is what the server itself
says about their issues, twice and some time apart, and a person who says `--all`.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daemon.upkeep.reclaim import FEW, REPORT, SECOND_LOOK, env_roots
from tests.support.bullpen import CLI, clean_environment, start_up, wait_for
from tests.support.portal import open_portal
from tests.support.reverse_proxy import ReverseProxy, open_reverse_proxy
from tests.support.second_machine import Machine, second_machine

pytestmark = pytest.mark.together

ISSUES = FEW + 2


def directories(machine: Machine) -> list[Path]:
    return env_roots(machine.home / "workspaces")


def reclaim(machine: Machine) -> dict[str, Any]:
    """Say the operator's word; returns what the pass reports."""
    report = machine.home / "workspaces" / REPORT
    before = report.stat().st_mtime_ns if report.exists() else 0
    env = clean_environment(BULLPEN_HOME=str(machine.home), BULLPEN_DAEMON_PORT="0")
    words = [*CLI, "daemon", "reclaim", "--all"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return reported(report, before)


def reported(report: Path, before: int) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        if not report.exists() or report.stat().st_mtime_ns == before:
            return None
        told: dict[str, Any] = json.loads(report.read_text())
        return told

    return wait_for("a pass of the reclaim", look, seconds=60)


def kept_for(told: dict[str, Any], words: str) -> int:
    return sum(words in why for why in told["kept"].values())


def looked_at_all(machine: Machine) -> dict[str, Any] | None:
    told = reclaim(machine)
    doubted = kept_for(told, "it goes only if that is so in")
    return told if doubted == ISSUES else None


def test_a_strangers_404_removes_nothing_and_the_servers_own_only_the_second_time(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        bullpen = stack.enter_context(start_up(tmp_path / "home"))
        proxy: ReverseProxy = stack.enter_context(
            open_portal(partial(open_reverse_proxy, ""))
        ).resource
        proxy.target = int(bullpen.told["url"].rsplit(":", 1)[1])
        # a directory may go at once when its issue is gone
        env = {"BULLPEN_GC_ORPHAN_TTL": "1s"}
        machine, agent = stack.enter_context(
            second_machine(bullpen, tmp_path / "second", proxy.url, items=1, pause=0, env=env)
        )
        issues = [bullpen.create_issue(f"Work {n}", assignee=agent) for n in range(ISSUES)]
        for issue in issues:
            bullpen.wait_for_task(issue["id"], "completed", seconds=60)
        machine.wait_until_told()
        assert len(directories(machine)) == ISSUES

        proxy.lies = ("/gc-check",)
        told = reclaim(machine)
        assert proxy.lied == ISSUES
        assert len(directories(machine)) == ISSUES
        assert kept_for(told, "could not be asked") == ISSUES
        assert not told["missing_since"], "a stranger's page is no news of an issue"

        proxy.lies = ()
        told = reclaim(machine)
        assert len(directories(machine)) == ISSUES, "their issues are open"

        with bullpen.api() as api:
            doomed = {"issue_ids": [issue["id"] for issue in issues]}
            api.post("/api/issues/batch-delete", json=doomed).raise_for_status()
        # the last one may have changed less than a second ago
        told = wait_for("the first look at all", lambda: looked_at_all(machine))
        assert len(directories(machine)) == ISSUES

        # time passes while the machine is off; then its own pass takes a few
        machine.kill()
        report = machine.home / "workspaces" / REPORT
        told["missing_since"] = {
            name: since - SECOND_LOOK for name, since in told["missing_since"].items()
        }
        report.write_text(json.dumps(told))
        before = report.stat().st_mtime_ns
        machine.start()
        told = reported(report, before)
        assert len(told["removed"]) == FEW
        assert kept_for(told, "bullpen daemon reclaim --all") == ISSUES - FEW
        assert len(directories(machine)) == ISSUES - FEW

        told = reclaim(machine)
        assert len(told["removed"]) == ISSUES - FEW
        assert directories(machine) == []
