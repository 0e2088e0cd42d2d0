"""What the daemon's services share: one value, made in `app.py`, passed down."""

from __future__ import annotations

import attrs
import trio

from daemon.client import Client
from daemon.config import Config
from daemon.runtimes.actions import Actions
from daemon.runtimes.directory import Directory
from daemon.runtimes.freshness import Freshness
from daemon.tasks.backlog import Backlog
from daemon.tasks.pool import TaskPool


@attrs.define(kw_only=True, eq=False)
class Services:
    """Set once, but for `config`, which a change of the config file replaces (`reload.py`).

    `claims` holds the scopes of claims in flight: pollers fill it, a stop shortens them.
    """

    config: Config
    client: Client
    pool: TaskPool
    backlog: Backlog
    actions: Actions
    freshness: Freshness
    directory: Directory = attrs.field(factory=Directory)
    claims: set[trio.CancelScope] = attrs.field(factory=set)
