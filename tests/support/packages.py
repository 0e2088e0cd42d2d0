"""Packages of ours as an index would have them: wheels of two versions, and all they need.

`make_index` builds them into a folder once a session; `installer_environment` makes pip, pipx and uv
look there and nowhere else, so that an update is one of real packages without anything published.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import attrs

from shared import __version__

CHECKOUT = Path(__file__).parents[2]
PARTS = ("server", "daemon", "shared", "pyproject.toml", "README.md", "LICENSE")


@attrs.frozen
class Index:
    """A folder of wheels. `old` is the version of this checkout, `new` the one after it."""

    folder: Path
    old: str
    new: str

    @property
    def env(self) -> dict[str, str]:
        """What makes the installers use the index alone."""
        there = str(self.folder)
        return {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": there,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "UV_NO_INDEX": "1",
            "UV_FIND_LINKS": there,
            "UV_PYTHON_DOWNLOADS": "never",
        }

    def publish(self) -> None:
        """Let the new version be found."""
        for wheel in (self.folder / "later").glob("*.whl"):
            shutil.copy(wheel, self.folder)

    def withdraw(self) -> None:
        """Hide the new version again."""
        for wheel in self.folder.glob(f"bullpen-{self.new}-*.whl"):
            wheel.unlink()


def make_index(folder: Path) -> Index:
    """Build our wheels and fetch those of what we need, as the pins have them."""
    begin, _, patch = __version__.rpartition(".")
    index = Index(folder, __version__, f"{begin}.{int(patch) + 1}")
    (folder / "later").mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    pins = CHECKOUT / "constraints" / "run.txt"
    _run(*pip, "wheel", "--require-hashes", "-r", str(pins), "-w", str(folder))
    _run(*pip, "wheel", "pip", "setuptools", "-w", str(folder))
    _build(folder, index.old, folder / "source")
    _build(folder / "later", index.new, folder / "source")
    return index


def _build(folder: Path, version: str, source: Path) -> None:
    """Build a wheel of this checkout that says it is `version`."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    for part in PARTS:
        if (CHECKOUT / part).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(CHECKOUT / part, source / part, ignore=ignore)
        else:
            shutil.copy(CHECKOUT / part, source / part)
    for name, pattern in (
        ("pyproject.toml", r'^version = "[^"]*"'),
        ("shared/__init__.py", r'^__version__ = "[^"]*"'),
    ):
        file = source / name
        begin = pattern.split('"')[0].lstrip("^")
        changed, count = re.subn(
            pattern, f'{begin}"{version}"', file.read_text(), flags=re.MULTILINE
        )
        assert count == 1, f"no version in {name}"
        file.write_text(changed)
    _run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel"),
        *("--no-deps", "--no-build-isolation", "-w", str(folder), str(source)),
    )
    shutil.rmtree(source)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def clean_path() -> str:
    """The search path without the environment the tests run in."""
    own = str(Path(sys.executable).parent)
    return os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != own)
