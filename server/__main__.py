"""`python -m server`: arguments and environment to a running server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import structlog
import trio

from server.app import Options, run_server
from server.config import ConfigError, from_environment
from server.embedded import EmbeddedError
from server.web.serve import BindError
from shared.log import set_up

log = structlog.get_logger(__name__)


@click.command()
@click.option("--home", type=click.Path(path_type=Path), help="Where Bullpen keeps its files.")
@click.option("--host", help="Address to listen on (BULLPEN_HOST, 127.0.0.1).")
@click.option("--port", type=int, help="Port to listen on, 0 for any (BULLPEN_PORT, 8080).")
@click.option(
    "--ready-file", type=click.Path(path_type=Path), help="Write a JSON file once listening."
)
@click.option("--setup", "with_setup", is_flag=True, help="Make the first user, if there is none.")
@click.option("--parent-pid", type=int, help="Stop when this parent process is gone.")
def main(
    home: Path | None,
    host: str | None,
    port: int | None,
    ready_file: Path | None,
    parent_pid: int | None,
    *,
    with_setup: bool,
) -> None:
    """Run the Bullpen server."""
    try:
        config = from_environment(os.environ, home=home, host=host, port=port)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    set_up(config.log_level)
    options = Options(ready_file=ready_file, set_up=with_setup, parent_pid=parent_pid)
    log.info("starting", config=repr(config))
    failed = True
    try:
        trio.run(run_server, config, options)
        failed = False
    except* (EmbeddedError, BindError, OSError) as expected:
        for text in _texts(expected):
            click.echo(f"Error: {text}", err=True)
    except* Exception as group:
        log.exception("the server failed", exc_info=group)
    sys.exit(failed)


def _texts(group: BaseException) -> list[str]:
    if isinstance(group, BaseExceptionGroup):
        return [text for error in group.exceptions for text in _texts(error)]
    return [str(group)]


if __name__ == "__main__":
    main()
