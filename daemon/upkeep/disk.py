"""A disk without room admits no new work; what is in hand goes on.

Looks every few seconds at the file systems of the home, the journals and the work directories, and
holds the pool back while one of them has too little left. `/health` and `daemon status` say so, and
whether the log can be written. It owns nothing and ends by being cancelled.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from daemon import threads
from shared.supervise import every

if TYPE_CHECKING:
    from daemon.services import Services

log = structlog.get_logger(__name__)

LOOK: Final = 5.0
"""Seconds between looks: an agent that fills a disk does not do it in less."""

_MIB: Final = 1024 * 1024


async def keep_disk_watched(services: Services) -> None:
    """Hold the pool back while a disk has less than the configured room; 0 looks at nothing."""
    config = services.config
    if not config.min_free_disk:
        return
    folders = (config.home.root, config.home.journals, config.workspaces_root)

    async def look() -> None:
        problem = await threads.in_thread(partial(explain, folders, config.min_free_disk))
        if problem != services.pool.held_back:
            services.pool.hold_back(problem)
            if problem:
                log.error("no new tasks", problem=problem)
            else:
                log.info("disk has room again")

    await every(LOOK, look)


def explain(folders: tuple[Path, ...], wanted: int) -> str:
    """Say which folder's disk has less than `wanted` bytes free, and what to do; "" if none."""
    for folder in folders:
        free = free_bytes(folder)
        if free is not None and free < wanted:
            return (
                f"disk full: {folder} has {free // _MIB} MiB left; new tasks wait until there are"
                f" {wanted // _MIB} MiB (BULLPEN_MIN_FREE_DISK)"
            )
    return ""


def free_bytes(folder: Path) -> int | None:
    """Bytes this user may still write where the folder is or will be; None if nobody can say."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
