"""Taking over changes of the config file while the daemon runs.

It looks at the file's age every two seconds; a new sign-in, another number of tasks or another path
of a program then counts without a restart. What cannot change under a running daemon keeps its old
value and is named in the log. A file that cannot be used changes nothing. It ends by being
cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import structlog

from daemon import threads
from daemon.config import Config, ConfigError
from shared.home import Home, gather_secrets
from shared.supervise import every

log = structlog.get_logger(__name__)

LOOK: Final = 2.0
"""Seconds between looks at the file's age: one system call each."""

FIXED: Final = frozenset(
    {
        "agent_isolation",
        "agent_paths",
        "control_port",
        "daemon_id",
        "device_name",
        "gc_artifact_patterns",
        "gc_artifact_ttl",
        "gc_enabled",
        "gc_interval",
        "gc_kept_ttl",
        "gc_orphan_ttl",
        "gc_ttl",
        "heartbeat_interval",
        "home",
        "launched_by",
        "legacy_daemon_ids",
        "machine_key",
        "min_free_disk",
        "parent_pid",
        "server_url",
        "service",
        "trial",
        "workspaces_root",
    }
)
"""What runtimes are registered as, and what was opened or promised with the old value."""

Load = Callable[[], Config]
"""Reads and checks every setting anew. Raises ConfigError."""


@attrs.frozen(kw_only=True)
class Change:
    """`config` is what to use now; `live` names what is new in it, `restart` what is not in it."""

    config: Config
    live: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


def plan_change(now: Config, wanted: Config) -> Change:
    """Decide what of a new configuration can be used. A token goes only to its own server. ◇"""
    fixed = FIXED | {"token"} if wanted.server_url != now.server_url else FIXED
    names = [field.name for field in attrs.fields(Config)]
    changed = [name for name in names if getattr(now, name) != getattr(wanted, name)]
    live = tuple(name for name in changed if name not in fixed)
    return Change(
        config=attrs.evolve(now, **{name: getattr(wanted, name) for name in live}),
        live=live,
        restart=tuple(name for name in changed if name in fixed),
    )


async def run_reload(now: Config, load: Load, adopt: Callable[[Config], None]) -> None:
    """Look at the config file for ever; `adopt` is called with each configuration to use."""
    current = now
    seen = await threads.in_thread(partial(_look_of, now.home.config_file))

    async def look() -> None:
        nonlocal current, seen
        found = await threads.in_thread(partial(_look_at, now.home))
        if found == seen:
            return
        seen = found
        try:
            change = plan_change(current, await threads.in_thread(load))
        except ConfigError as error:
            log.warning("the config file cannot be used; nothing changes", error=str(error))
            return
        if change.restart:
            log.warning("restart needed for a change of the config file", settings=change.restart)
        if change.live:
            log.info("settings changed", settings=change.live)
            current = change.config
            adopt(current)

    await every(LOOK, look)


def _look_at(home: Home) -> tuple[int, int, int] | None:
    gather_secrets(home)
    return _look_of(home.config_file)


def _look_of(file: Path) -> tuple[int, int, int] | None:
    """What differs when a file was written or replaced; None while there is none."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
