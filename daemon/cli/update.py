"""`bullpen update`: bring this installation to its newest version, and its daemon with it.

The installer that brought Bullpen here does the work. The new version is tried beside the one in
use; the daemon is asked to end when it has no task left; then the version is switched and the
daemon started as it was. If that start fails, the old version comes back and is started.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs
import click
import psutil
import trio

from daemon.cli.daemon_group import (
    drain,
    find_running,
    halt,
    launch,
    refuse_up,
    service_of,
    through,
)
from daemon.cli.errors import UNREACHABLE, CliError
from daemon.cli.output import notice
from daemon.cli.settings import Settings
from daemon.config import parse_duration
from daemon.upkeep.installation import (
    INSTALL,
    Installer,
    NotUpdatable,
    UpdateError,
    find_installation,
    hold_update,
    is_newer,
)
from shared import __version__


@click.command()
@click.option("--check", is_flag=True, help="Only say whether there is a newer version.")
@click.option("--to", "wanted", metavar="VERSION", help="This version instead of the newest.")
@click.option("--back", is_flag=True, help="Go back to the version before the last update.")
@click.option("--force", is_flag=True, help="Do not wait for running tasks; they are cut.")
@click.option(
    "--download-timeout",
    metavar="TIME",
    default=f"{INSTALL:g}s",
    show_default=True,
    help="How long each step of the installation may take.",
)
@click.pass_obj
def update(
    settings: Settings,
    /,
    *,
    check: bool,
    wanted: str | None,
    back: bool,
    force: bool,
    download_timeout: str,
) -> None:
    """Bring Bullpen to its newest version; the daemon's tasks are waited for."""
    if settings.agent_context:
        raise CliError("an agent cannot change the Bullpen it runs under", UNREACHABLE)
    try:
        limit = parse_duration(download_timeout)
    except ValueError as error:
        raise CliError(f"--download-timeout: {error}") from error
    try:
        installer = Installer(
            find_installation(env=settings.env),
            settings.home,
            settings.env,
            say=notice,
            install_within=limit,
        )
        with hold_update(settings.home):
            if back:
                refuse_up(settings)
                _exchange(settings, installer.go_back, installer.go_back, force=force)
                notice("The version before the last update is back.")
                return
            _update(settings, installer, wanted, only_check=check, force=force)
    except (NotUpdatable, UpdateError) as error:
        raise CliError(str(error)) from error


def _update(
    settings: Settings, installer: Installer, wanted: str | None, *, only_check: bool, force: bool
) -> None:
    version = (wanted or "").removeprefix("v") or trio.run(installer.latest) or __version__
    if version == __version__ or (wanted is None and not is_newer(version, __version__)):
        notice(f"Bullpen {__version__} is the newest version.")
        return
    if only_check:
        notice(f"Bullpen {version} is there; this is {__version__}. `bullpen update` switches.")
        return
    refuse_up(settings)
    trio.run(installer.prove, version)
    switch = partial(trio.run, installer.switch, version)
    _exchange(settings, switch, installer.go_back, force=force)
    notice(f"Updated to {version}. A server from this installation needs a restart.")


@attrs.frozen(kw_only=True)
class _Before:
    """How the daemon ran, so that it can be started like that again."""

    start: Callable[[], None]


def _exchange(
    settings: Settings, change: Callable[[], None], go_back: Callable[[], None], *, force: bool
) -> None:
    """Change the installation while no daemon runs. Raises CliError or UpdateError.

    What was running before runs again afterwards, whichever version it is then.
    """
    before = _stop(settings, force=force)
    try:
        change()
    except UpdateError:
        if before is not None:
            before.start()
        raise
    if before is None:
        return
    try:
        before.start()
    except CliError as error:
        halt(settings)
        go_back()
        before.start()
        raise CliError(f"the daemon did not start, so the old version is back: {error}") from error


def _stop(settings: Settings, *, force: bool) -> _Before | None:
    """End the running daemon, if there is one, and say how to start it again."""
    running = find_running(settings)
    if running is None:
        return None
    manager = service_of(settings)
    if manager is not None:
        start = partial(through, settings, manager.restart)
    else:
        env = psutil.Process(running.pid).environ()
        start = partial(launch, settings, env)
    if not force:
        drain(settings)
    if not halt(settings):
        raise CliError("the daemon is still finishing a task; try again when it has ended")
    return _Before(start=start)
