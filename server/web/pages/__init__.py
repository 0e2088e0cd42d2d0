"""The HTML interface: one module per page, its templates and its static files.

`routes` is matched after the API's; a slug is never the first word of one of its addresses.
"""

from __future__ import annotations

from typing import Final

from starlette.routing import BaseRoute

from server.web.pages import agents, assets, board, entry, issue, login, runtimes

routes: Final[list[BaseRoute]] = [
    *assets.routes,
    *login.routes,
    *entry.routes,
    *board.routes,
    *issue.routes,
    *agents.routes,
    *runtimes.routes,
]
