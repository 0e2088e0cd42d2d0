"""`bullpen up`: the whole of Bullpen on this machine, from one command.

A Trio program that owns two child processes, the server (with its Postgres) and this machine's
daemon: it starts them in order, makes what a first start needs, says how to go on, restarts what
dies, and stops everything in the reverse order when it is told to. It ends with 0 after an orderly
stop and with 1 when something cannot be kept running.
"""

from __future__ import annotations

import shutil

import click

from daemon.cli.errors import CliError
from daemon.cli.settings import Settings


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="The server's port; 0 is any free one.")
@click.option("--host", help="The server's address; 127.0.0.1 unless told otherwise.")
@click.option("--no-browser", is_flag=True, help="Do not open the browser.")
@click.option("--agents", metavar="LIST", help="Only these agent programs: demo,claude")
@click.pass_obj
def up(
    settings: Settings, port: int | None, host: str | None, no_browser: bool, agents: str | None
) -> int:
    """Start Bullpen on this machine: server, pages and daemon."""
    if settings.agent_context:
        raise CliError("`bullpen up` is not for agents inside a task")

    from daemon.cli.up.plan import Plan
    from daemon.cli.up.stack import run_up

    names = None if agents is None else _names(agents)
    plan = Plan(
        home=settings.home,
        host=host or "",
        port=port,
        agents=names,
        browser=not no_browser,
        env=dict(settings.env),
        invoked_as="bullpen" if _on_path() else "./dev",
    )
    return run_up(plan)


def _names(text: str) -> tuple[str, ...]:
    """The agent programs of a comma list. Raises CliError for one we have no driver for."""
    from daemon.agents.launch import DRIVERS

    names = tuple(name for part in text.split(",") if (name := part.strip().lower()))
    unknown = [name for name in names if name not in DRIVERS]
    if unknown or not names:
        wrong = f"knows no {unknown[0]!r}" if unknown else "needs a name"
        raise CliError(f"--agents {wrong}; there are: {', '.join(sorted(DRIVERS))}")
    return names


def _on_path() -> bool:
    return shutil.which("bullpen") is not None
