"""Find out, by trying, how this machine can isolate agents, and say what to do where it cannot.

Run once, when the daemon starts. Bubblewrap comes first, because distributions that forbid
namespaces to ordinary programs often allow them to it; then the warden's own.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import structlog
import trio

from daemon.agents import isolation
from daemon.agents.contract import AgentError
from daemon.agents.isolation import Backend, Isolation, Setting, View
from daemon.agents.process import Launch, open_process

log = structlog.get_logger(__name__)

_LIMIT: Final = 15.0
"""Seconds one attempt may take."""

# Process numbers begin anew, the hidden file is not there, and the run's own directory is writable.
_SCRIPT: Final = '[ $$ -lt 10 ] && [ ! -e "$0/hidden/file" ] && : >"$0/hidden/own/file"'

_KNOBS: Final = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "15000"),
)
"""What forbids namespaces to ordinary users: under /proc/sys, the value that does, and a better."""


async def find_isolation(
    setting: Setting,
    *,
    hidden: tuple[Path, ...] = (),
    paths: tuple[Path, ...] = (),
    env: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
) -> Isolation:
    """Try the ways there are; `hidden` and `paths` are taken over into what is returned."""
    nothing = Isolation(setting=setting, hidden=hidden, paths=paths)
    if setting == "off":
        problem = "agents can read Bullpen's secrets and each other's files: isolation is off"
        return attrs.evolve(nothing, problem=f"{problem} (BULLPEN_AGENT_ISOLATION)")
    if platform != "linux":
        return attrs.evolve(nothing, problem=_sentence("this system has no namespaces", _ELSEWHERE))
    said = ""
    ways: list[tuple[Backend, str]] = [("namespaces", "")]
    if bubblewrap := shutil.which("bwrap", path=env.get("PATH", os.defpath)):
        ways.insert(0, ("bubblewrap", bubblewrap))
    for backend, program in ways:
        found = attrs.evolve(nothing, backend=backend, bubblewrap=program)
        said = await _try(found, env)
        if not said:
            log.info("agents are isolated", by=backend)
            return found
        log.info("no isolation this way", by=backend, said=said)
    return attrs.evolve(nothing, problem=_sentence(said, _advice(bool(bubblewrap))))


async def _try(candidate: Isolation, env: Mapping[str, str]) -> str:
    """Run a small program isolated; return "" if that worked, else what was said."""
    with tempfile.TemporaryDirectory(prefix="bullpen-probe-") as name:
        place = Path(os.path.realpath(name))  # noqa: ASYNC240 - a few bytes, once, before all else
        own = place / "hidden" / "own"
        own.mkdir(parents=True)
        (place / "hidden" / "file").write_text("hidden")  # noqa: ASYNC240
        launch = Launch(
            label="a trial",
            argv=["/bin/sh", "-c", _SCRIPT, str(place)],
            cwd=own,
            env={"PATH": env.get("PATH", os.defpath)},
            view=View(own=(own,)),
        )
        token = isolation.machine.set(attrs.evolve(candidate, hidden=(place / "hidden",)))
        try:
            with trio.fail_after(_LIMIT):
                async with open_process(launch) as process:
                    process.close_stdin()
                    await process.wait()
        except (AgentError, trio.TooSlowError) as error:
            return str(error) or f"no answer within {_LIMIT:g} s"
        finally:
            isolation.machine.reset(token)
        if process.exit_code != 0:
            return process.stderr_tail().strip().rpartition("\n")[2] or "it hid nothing"
        return "" if (own / "file").exists() else "what it wrote was lost"  # noqa: ASYNC240


_ELSEWHERE: Final = "run Bullpen on Linux, or as a user who has nothing else of value"


def _sentence(why: str, advice: str) -> str:
    return f"agents can read Bullpen's secrets and each other's files ({why}): {advice}"


def _advice(has_bubblewrap: bool) -> str:
    for name, bad, good in _KNOBS:
        try:
            value = (Path("/proc/sys") / name).read_text().strip()
        except OSError:
            continue
        if value == bad:
            first = "" if has_bubblewrap else "install bubblewrap, or "
            return f"{first}run `sysctl {name.replace('/', '.')}={good}`"
    if any(os.path.exists(path) for path in ("/.dockerenv", "/run/.containerenv")):
        return (
            "start the container with `--cap-add SYS_ADMIN --security-opt apparmor=unconfined "
            "--security-opt seccomp=unconfined`"
        )
    return "let this user make namespaces" if has_bubblewrap else "install bubblewrap"
