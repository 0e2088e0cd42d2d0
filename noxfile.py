"""One session per question that can be asked of the project; `tests` is all that CI asks.

Sessions run in the environment `./dev` made; `matrix` builds one per Python version instead.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests"]

PYTHONS = ["3.11", "3.12", "3.13"]
TIERS = (
    "fast",
    "simulation",
    "postgres",
    "postgres15",
    "together",
    "browser",
    "real_agents",
)
EMBEDDED = "tests/server/test_embedded.py"
NO_SUCH_SERVER = 77

# Some machines forbid it: then each of hundreds of processes compiles all it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

CORES = os.cpu_count() or 1
WORKERS = {
    "fast": CORES,
    "simulation": CORES,
    "postgres": CORES,
    # These wait for processes most of the time.
    "together": CORES + 1,
    "browser": CORES,
    "real_agents": CORES + 1,
}
"""Test processes side by side, by tier."""


def _pytest(session: nox.Session, tier: str, *args: str) -> None:
    chosen = _chosen(session, tier)
    # Another run of pytest would close the directory they share to the user of the test's Postgres.
    with tempfile.TemporaryDirectory(prefix=f"bullpen-{tier}-", ignore_cleanup_errors=True) as own:
        Path(own).chmod(0o755)
        place = f"--basetemp={own}/tmp"
        session.run("python", "-m", "pytest", "-q", *chosen, place, *args, *session.posargs)


def _chosen(session: nox.Session, tier: str) -> list[str]:
    """The tests of a tier, side by side unless some are named: what is debugged runs alone."""
    alone = any(not arg.startswith("-") for arg in session.posargs)
    # Where the tests of a module share processes that its fixtures start, they stay together.
    dist = "worksteal" if tier in {"fast", "simulation", "postgres"} else "loadfile"
    side_by_side = ["-n", str(WORKERS[tier]), "--dist", dist]
    return ["-m", tier, *([] if alone else side_by_side)]


@nox.session
def lint(session: nox.Session) -> None:
    """Is it written by the house rules?"""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("python", "-m", "tests.support.async_lint")
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Do the types hold?"""
    session.run("mypy")


@nox.session
def fast(session: nox.Session) -> None:
    """Do the parts work, on virtual time?"""
    _pytest(session, "fast")


@nox.session
def simulation(session: nox.Session) -> None:
    """Does the daemon lose nothing, whatever goes wrong?"""
    session.env["PYTHONHASHSEED"] = "0"  # a printed seed replays a schedule in another process
    # The same schedules every time; `./dev simulation --hypothesis-seed=N` looks at others.
    _pytest(session, "simulation", "--hypothesis-seed=1")


@nox.session
def postgres(session: nox.Session) -> None:
    """Does the server work on a real Postgres?"""
    _pytest(session, "postgres")


@nox.session
def postgres15(session: nox.Session) -> None:
    """Does it work on Debian's PostgreSQL too, the oldest we support?"""
    runner = ("python", "-m", "tests.support.debian_postgres")
    tests_ = ("python", "-m", "pytest", "-q", *_chosen(session, "postgres"), "--ignore", EMBEDDED)
    session.run(*runner, *tests_, *session.posargs, success_codes=[0, NO_SUCH_SERVER])


@nox.session
def together(session: nox.Session) -> None:
    """Do server, daemon and agent work together as processes?"""
    # The queue's random walks: the same every time; another seed walks others.
    _pytest(session, "together", "--hypothesis-seed=1")


@nox.session
def browser(session: nox.Session) -> None:
    """Does a person see it work?"""
    session.run("python", "-m", "tests.support.chromium")
    _pytest(session, "browser")


@nox.session
def real_agents(session: nox.Session) -> None:
    """Do real agent programs work, against stub model endpoints?"""
    session.run("python", "-m", "tests.support.agent_programs")
    _pytest(session, "real_agents")


@nox.session
def machine(session: nox.Session) -> None:
    """Do service, updates and renewals work on a real machine? Outside CI: it takes root and time."""
    session.run("python", "-m", "pytest", "-q", "-m", "machine", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All that CI asks."""
    for name in ("lint", "types", *TIERS):
        session.notify(name)


@nox.session
def bench(session: nox.Session) -> None:
    """How fast is it on this machine?"""
    session.run("python", "-m", "bench", *session.posargs)


@nox.session(python=PYTHONS, venv_backend="virtualenv")
def matrix(session: nox.Session) -> None:
    """Does it work on every supported Python?"""
    session.install("--require-hashes", "-r", "constraints/dev.txt")
    session.install("--no-deps", "--no-build-isolation", "-e", ".")
    for tier in ("fast", "postgres"):
        _pytest(session, tier)


@nox.session
def lock(session: nox.Session) -> None:
    """Renew the pinned versions (needs uv)."""
    compile_ = ("uv", "pip", "compile", "--universal", "--python-version", "3.11")
    flags = ("--generate-hashes", "--no-header", "--upgrade", "-q", "pyproject.toml")
    session.run(*compile_, *flags, "-o", "constraints/run.txt", external=True)
    session.run(
        *compile_, *flags, "--extra", "dev", "-c", "constraints/run.txt",
        "-o", "constraints/dev.txt", external=True,
    )  # fmt: skip


if os.environ.get("CI"):
    nox.options.error_on_external_run = False
