"""`bullpen daemon allow-dir`: which directories of this machine tasks may work in."""

from __future__ import annotations

import os
from pathlib import Path

import click

from daemon.allowed import AllowedError, allow_directory, allowed_directories, forget_directory
from daemon.cli.errors import UNREACHABLE, CliError
from daemon.cli.output import notice, output_option, print_json
from daemon.cli.settings import Settings


@click.command("allow-dir")
@click.argument("place", metavar="[PATH]", required=False)
@click.option("--remove", is_flag=True, help="Take the directory off the list.")
@output_option("table")
@click.pass_obj
def allow_dir(settings: Settings, place: str | None, remove: bool, output: str) -> None:
    """Let tasks work in a directory and what is in it; without PATH, list what is allowed.

    A project may name a directory of this machine, but only you decide whether tasks may work there.
    It counts from the next task on.
    """
    if settings.agent_context:
        raise CliError("an agent cannot change what its machine allows", UNREACHABLE)
    try:
        if place is None:
            if remove:
                raise CliError("--remove needs the directory")
        elif remove:
            _remove(settings, place)
        else:
            allow(settings, place)
        allowed = [str(path) for path in allowed_directories(settings.home)]
    except AllowedError as error:
        raise CliError(str(error)) from error
    if output == "json":
        print_json({"allowed": allowed})
    elif place is None:
        click.echo("\n".join(allowed) or "No directory is allowed: bullpen daemon allow-dir PATH")


def allow(settings: Settings, place: str) -> None:
    """Allow a directory that exists and say so. Raises CliError, AllowedError."""
    path = Path(os.path.realpath(Path(place).expanduser()))
    if not path.is_dir():
        raise CliError(f"{place} is not a directory on this machine")
    if path == Path(path.anchor):
        raise CliError(f"{path} is the whole machine: name the directories tasks need")
    notice(f"tasks may work in {allow_directory(settings.home, path)}")


def _remove(settings: Settings, place: str) -> None:
    path = Path(place).expanduser().absolute()
    if not forget_directory(settings.home, path):
        raise CliError(f"{place} was not allowed: `bullpen daemon allow-dir` lists what is")
    notice(f"tasks may no longer work in {path}")
