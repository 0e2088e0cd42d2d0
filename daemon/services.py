"""What the daemon's services share: one value, made in `app.py`, passed down."""

from __future__ import annotations

import attrs

from daemon.client import Client
from daemon.config import Config
from daemon.runtimes.abilities import Abilities
from daemon.runtimes.actions import Actions
from daemon.runtimes.claims import Claims
from daemon.runtimes.directory import Directory
from daemon.runtimes.freshness import Freshness
from daemon.runtimes.offers import Offers
from daemon.tasks.backlog import Backlog
from daemon.tasks.pool import TaskPool


@attrs.define(kw_only=True, eq=False)
class Services:
    """One of each; children are given the whole.

    Set once, but for `config`, which a change of the config file replaces (`reload.py`).
    """

    config: Config
    client: Client
    pool: TaskPool
    backlog: Backlog
    actions: Actions
    freshness: Freshness
    directory: Directory
    offers: Offers
    claims: Claims


def make_services(
    config: Config,
    client: Client,
    pool: TaskPool,
    backlog: Backlog,
    *,
    directory: Directory,
    abilities: Abilities,
) -> Services:
    """Make what is made of the rest."""
    offers = client.offers
    return Services(
        config=config,
        client=client,
        pool=pool,
        backlog=backlog,
        directory=directory,
        offers=offers,
        claims=Claims(client, pool, directory, offers),
        actions=Actions(client, directory, abilities),
        freshness=Freshness(config.heartbeat_interval),
    )
