"""`python -m daemon`: the daemon in the foreground, until SIGINT, SIGTERM or `/shutdown`.

Settings come from the environment and the config file; the log goes to stderr. Exits 0 after an
orderly stop and 1, with one line saying why, when it cannot start or had to give up.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

import trio

from daemon.agents.discovery import discover, find_version
from daemon.agents.launch import DRIVERS
from daemon.agents.providers import DEMO
from daemon.app import Parts, run_daemon
from daemon.client import Client
from daemon.config import Config, ConfigError, load_config
from daemon.control import AlreadyRunning
from daemon.runtimes.abilities import abilities_of
from daemon.tasks.report import replay
from daemon.workspaces.programs import ProgramFinder
from daemon.workspaces.sync import SignInRefused
from shared.log import set_up


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m daemon", description=__doc__)
    parser.add_argument("--home", help="where Bullpen keeps its files")
    parser.add_argument("--profile", default="", help="CLI profile")
    given = parser.parse_args(arguments)
    reasons: list[str] = []
    try:
        config = load_config(home=given.home, profile=given.profile)
        set_up(config.log_level)
        run = partial(run_daemon, config, parts_of(config))
        trio.run(run, strict_exception_groups=True)
    except* (ConfigError, AlreadyRunning, SignInRefused) as group:
        reasons = [str(error) for error in _leaves(group)]
    for reason in reasons:
        sys.stderr.write(f"daemon: {reason}\n")
    return 1 if reasons else 0


def parts_of(config: Config) -> Parts:
    """The real parts: this machine's agent programs and this home's journals."""

    async def replay_journals(client: Client) -> None:
        await replay(client, config.home.journals)

    return Parts(
        discover=ProgramFinder(partial(discover, config.agents), os.environ),
        abilities=abilities_of(config),
        families=frozenset(DRIVERS) - {DEMO},
        ask_version=partial(find_version, env=os.environ),
        replay=replay_journals,
    )


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())
