"""`python -m daemon`: the daemon in the foreground, until SIGINT, SIGTERM or `/shutdown`.

Settings come from the environment and the config file; the log goes to stderr. Exits 0 after an
orderly stop and 1, with one line saying why, when it cannot start or had to give up. With `--check`
it only reads the settings, looks for agent programs and asks the server, says what it found, and
touches nothing a running daemon has.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

import structlog
import trio

from daemon.agents.discovery import discover, find_version
from daemon.agents.isolation import Isolation, NotIsolated, hidden_of
from daemon.agents.launch import DRIVERS
from daemon.agents.probing import find_isolation
from daemon.agents.providers import DEMO
from daemon.app import Parts, run_daemon
from daemon.client import ApiError, open_client
from daemon.config import Config, ConfigError, load_config
from daemon.control import AlreadyRunning
from daemon.notify import Notifier, take_notifier
from daemon.reload import Load
from daemon.runtimes.abilities import abilities_of
from daemon.tasks.environment import inherited
from daemon.upkeep.installation import Installer, NotUpdatable, find_installation
from daemon.upkeep.update import Successor, become, refuse
from daemon.workspaces.programs import ProgramFinder
from daemon.workspaces.sync import SignInRefused
from shared import __version__
from shared.log import set_up


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m daemon", description=__doc__)
    parser.add_argument("--home", help="where Bullpen keeps its files")
    parser.add_argument("--profile", default="", help="CLI profile")
    parser.add_argument("--check", action="store_true", help="only say whether it could start")
    given = parser.parse_args(arguments)
    reasons: list[str] = []
    successor: Successor | None = None
    notifier = take_notifier(os.environ, os.getpid())
    started_with = dict(os.environ)
    load = partial(load_config, started_with, home=given.home, profile=given.profile)
    try:
        config = load()
        set_up(config.log_level)
        os.environ.update(config.environment)
        if given.check:
            trio.run(check, config)
            return 0
        run = partial(run_daemon, config, parts_of(config, load, notifier))
        successor = trio.run(run, strict_exception_groups=True)
    except* (ConfigError, AlreadyRunning, NotIsolated, SignInRefused) as group:
        reasons = [str(error) for error in _leaves(group)]
    for reason in reasons:
        sys.stderr.write(f"daemon: {reason}\n")
    if successor is not None:
        words = sys.argv[1:] if arguments is None else arguments
        command = [sys.executable, "-P", "-m", "daemon", *words]
        become(successor, command, started_with, notifier.environment)
    return 1 if reasons else 0


async def isolate(config: Config) -> Isolation:
    """How this machine isolates agents. Raises NotIsolated where it must and cannot."""
    found = await find_isolation(
        config.agent_isolation,
        hidden=hidden_of(config.home, config.workspaces_root),
        paths=config.agent_paths,
    )
    if found.problem and config.agent_isolation == "required":
        raise NotIsolated(f"BULLPEN_AGENT_ISOLATION is required, but {found.problem}")
    if found.problem:
        structlog.get_logger(__name__).warning("agents are not isolated", problem=found.problem)
    return found


async def check(config: Config) -> None:
    """Try what a start needs and print what came of it. Raises SignInRefused.

    A server that is away is no reason against a start: the daemon waits for it.
    """
    isolation = await isolate(config)
    programs = await discover(config.agents, os.environ)
    server = config.server_url
    try:
        async with open_client(config) as client:
            await client.workspaces()
    except ApiError as error:
        if error.unauthorized:
            raise SignInRefused(
                "the server refuses this daemon's token: run `bullpen login`"
            ) from error
        server = f"{server} (no answer: {error})"
    lines = [
        f"version: {__version__}",
        f"home: {config.home.root}",
        f"server: {server}",
        f"agents: {', '.join(f'{p.provider} {p.version}' for p in programs) or 'none found'}",
        f"isolation: {isolation.problem or isolation.backend}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def parts_of(config: Config, load: Load | None = None, notifier: Notifier = Notifier()) -> Parts:
    """The real parts: this machine's agent programs, settings and installation."""
    finder = ProgramFinder(partial(discover, config.agents), os.environ)
    now = config

    def adopt(changed: Config) -> None:
        nonlocal now
        set_up(changed.log_level)
        for name in now.environment.keys() - changed.environment.keys():
            os.environ.pop(name, None)
        os.environ.update(changed.environment)
        if (changed.agents, changed.environment) != (now.agents, now.environment):
            finder.look_with(partial(discover, changed.agents))
        now = changed

    installer, never_updates = (
        None,
        refuse(parent_pid=config.parent_pid, launched_by=config.launched_by),
    )
    if not never_updates:
        try:
            installer = Installer(find_installation(), config.home, os.environ)
        except NotUpdatable as error:
            never_updates = str(error)

    return Parts(
        discover=finder,
        abilities=abilities_of(config),
        families=frozenset(DRIVERS) - {DEMO},
        ask_version=partial(find_version, env=inherited(os.environ)),
        load=load,
        adopt=adopt,
        notifier=notifier,
        installer=installer,
        isolate=isolate,
        never_updates=never_updates,
    )


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())
