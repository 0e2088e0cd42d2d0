"""What every endpoint may use, reachable from a request or a websocket."""

from __future__ import annotations

from typing import cast

import attrs
from starlette.requests import HTTPConnection

from server.config import Config
from server.database import Database
from server.mail import Mailer
from server.metrics import Metrics
from server.push.hub import Hub
from server.web.access import AccessCache
from server.web.limits import Limits


@attrs.frozen(kw_only=True)
class Services:
    """The server's parts. `access` remembers who a token is, so that hot paths pay no SQL for it."""

    config: Config
    database: Database
    hub: Hub
    access: AccessCache = attrs.field(factory=AccessCache)
    limits: Limits = attrs.field(factory=Limits)
    mailer: Mailer = attrs.field(
        default=attrs.Factory(lambda self: Mailer(self.config), takes_self=True)
    )

    metrics: Metrics = attrs.field(
        default=attrs.Factory(lambda self: Metrics(self.hub, self.database), takes_self=True)
    )

    def __attrs_post_init__(self) -> None:
        self.hub.observe(self.access.consequence, self.access.clear)


def services(connection: HTTPConnection) -> Services:
    """The services of the application that this request or websocket came in by."""
    return cast("Services", connection.app.state.services)
