"""Install the real agent programs that the `real_agents` tests drive, outside the tree.

Run as a program by the nox session; it installs the pinned npm packages into the user's cache with
the machine's own npm settings, once, and does nothing when they are there. Tests ask `find` for a
program's path. `BULLPEN_TEST_AGENTS` names another cache directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import platformdirs


@attrs.frozen
class AgentPackage:
    """An npm package, its pinned version and the command it brings."""

    package: str
    version: str
    command: str


PACKAGES = {"claude": AgentPackage("@anthropic-ai/claude-code", "2.1.197", "claude")}


def cache() -> Path:
    """Return where the programs are kept."""
    chosen = os.environ.get("BULLPEN_TEST_AGENTS", "").strip()
    return Path(chosen) if chosen else platformdirs.user_cache_path("bullpen-tests") / "agents"


def _prefix(package: AgentPackage) -> Path:
    return cache() / f"{package.command}-{package.version}"


def find(name: str) -> Path | None:
    """Return the path of an installed program, None when it is not there."""
    package = PACKAGES[name]
    path = _prefix(package) / "node_modules" / ".bin" / package.command
    return path if path.exists() else None


def install(name: str) -> Path:
    """Install a program unless it is there. Exits with a plain sentence when that cannot be."""
    if (path := find(name)) is not None:
        return path
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm was not found: install Node.js (with npm) to test real agent programs")
    package = PACKAGES[name]
    prefix = _prefix(package)
    prefix.mkdir(parents=True, exist_ok=True)
    print(f"installing {package.package} {package.version} into {prefix}", flush=True)
    done = subprocess.run(
        [npm, "install", "--prefix", prefix, "--no-audit", "--no-fund", "--loglevel=error",
         f"{package.package}@{package.version}"],
        check=False,
    )  # fmt: skip
    path_now = find(name)
    if done.returncode or path_now is None:
        shutil.rmtree(prefix, ignore_errors=True)
        sys.exit(f"npm could not install {package.package} {package.version}; see above")
    return path_now


if __name__ == "__main__":
    for program in PACKAGES:
        print(f"{program}: {install(program)}")
