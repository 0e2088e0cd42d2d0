"""The server's tree, from top to bottom: database, services, web; stopped in the reverse order.

Woken by a signal or by the end of the process that started it. Stopping: accept nothing new, send
the websockets away, give requests the drain time, cancel the services, close the pool, stop the
embedded Postgres. A second signal cuts all of it short.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import psutil
import structlog
import trio

from server.config import Config
from server.database import Database, open_database
from server.dispatch import loops
from server.dispatch.scheduler import run_scheduler
from server.dispatch.sweeper import run_sweeper
from server.embedded import Embedded, open_embedded
from server.push.hub import RESTART, Hub
from server.push.relay import run_relay
from server.setup import Setup, set_up
from server.store.migrate import migrate
from server.store.sessions import shared_secret
from server.web.context import Services
from server.web.routes import make_app
from server.web.serve import open_listeners, serve, url_of
from shared.home import gather_secrets, write_private

log = structlog.get_logger(__name__)

_MIGRATION_LIMIT = 600.0
"""Seconds. Other processes queue behind a migration of large tables."""

_PARENT_CHECK = 1.0
"""Seconds between two looks; nothing tells a process of its parent's end everywhere."""


@attrs.frozen(kw_only=True)
class Options:
    """What the command line adds to the settings."""

    ready_file: Path | None = None
    set_up: bool = False
    parent_pid: int | None = None


async def run_server(config: Config, options: Options = Options()) -> None:
    """Run the server until a signal.

    Raises EmbeddedError, BindError and what the database raises when it cannot start.
    """
    if not config.jwt_secret:
        gather_secrets(config.home)
    stop = trio.Event()
    async with trio.open_nursery() as watching:
        await watching.start(_watch_signals, stop, watching.cancel_scope)
        if options.parent_pid is not None:
            watching.start_soon(_watch_parent, options.parent_pid, stop)
        await _run_until(config, options, stop)
        watching.cancel_scope.cancel(reason="the server has stopped")


async def _run_until(config: Config, options: Options, stop: trio.Event) -> None:
    listeners = await open_listeners(config.host, config.port)
    url = url_of(listeners, config.host)
    async with _find_postgres(config) as (database_url, embedded):
        log.info("opening the database")
        async with open_database(database_url, pool_size=config.database_pool) as database:
            applied = await database.write(migrate, deadline=_MIGRATION_LIMIT)
            log.info("database is ready", migrations_applied=len(applied))
            if not config.jwt_secret:
                config = attrs.evolve(config, jwt_secret=await _session_secret(database))
                with suppress(OSError):  # where earlier versions kept it
                    config.home.session_secret.unlink()
            made = await _set_up(config, options, database)
            async with open_services(config, database) as services:
                async with trio.open_nursery() as web:
                    await web.start(
                        partial(
                            serve,
                            make_app(services),
                            listeners,
                            stop=stop,
                            drain=config.drain,
                            go_away=partial(services.hub.close_all, RESTART, "the server restarts"),
                        )
                    )
                    log.info("listening", url=url)
                    if options.ready_file is not None:
                        _write_ready(options.ready_file, url, embedded, made)
                log.info("stopping the services")
    log.info("stopped")


@asynccontextmanager
async def open_services(config: Config, database: Database) -> AsyncIterator[Services]:
    """The hub and the services that run beside the web: relay, sweeper and scheduler."""
    parts = Services(config=config, database=database, hub=Hub())
    loops.use(
        loops.Limits(
            per_issue=config.agent_runs_per_issue,
            per_agent=config.agent_runs_per_agent,
            depth=config.agent_depth,
        )
    )
    async with trio.open_nursery() as services:
        await services.start(run_relay, database, parts.hub)
        await services.start(run_sweeper, database, parts.hub, config)
        await services.start(run_scheduler, database, parts.hub)
        yield parts
        services.cancel_scope.cancel(reason="the server stops")


async def _session_secret(database: Database) -> str:
    """What signs sessions on every server of this database."""
    unit: Any = partial(shared_secret, name="session", proposal=secrets.token_hex(32))
    return str(await database.write(unit))


@asynccontextmanager
async def _find_postgres(config: Config) -> AsyncIterator[tuple[str, Embedded | None]]:
    if config.database_url is not None:
        yield config.database_url, None
        return
    async with open_embedded(config.home, log.info) as embedded:
        yield embedded.url, embedded


async def _set_up(config: Config, options: Options, database: Database) -> Setup | None:
    if not options.set_up:
        return None
    unit: Any = partial(set_up, email=config.user_email, name=config.user_name)
    made: Setup = await database.write(unit)
    return made


def _write_ready(path: Path, url: str, embedded: Embedded | None, made: Setup | None) -> None:
    """Tell whoever started us that we listen, and how to reach what is inside."""
    value: dict[str, Any] = {"url": url, "pid": os.getpid(), "postgres": {"embedded": False}}
    if embedded is not None:
        value["postgres"] = {
            "embedded": True,
            "url": embedded.url,
            "pid": embedded.pid,
            "data_dir": str(embedded.data),
        }
    if made is not None:
        value |= attrs.asdict(made)
    write_private(path, json.dumps(value) + "\n")


async def _watch_signals(
    stop: trio.Event,
    everything: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The first signal asks to stop, the second insists."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if stop.is_set():
                everything.cancel(reason="second signal")
                return
            log.info("stopping", signal=signal.Signals(number).name)
            stop.set()


async def _watch_parent(pid: int, stop: trio.Event) -> None:
    """Stop when the process that started us is gone."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)  # knows its start time: a pid that is used again is no parent
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110
            await trio.sleep(_PARENT_CHECK)
    log.warning("the parent process is gone; stopping", parent=pid)
    stop.set()
