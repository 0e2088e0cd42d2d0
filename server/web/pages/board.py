"""The board: every issue as a card in the column of its status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.store import pages as store
from server.store.queries import Connection
from server.web.pages import shell, view
from shared.wire import task as wire


@attrs.frozen(kw_only=True)
class Card:
    """An issue on the board, its assignee, and its liveliest run."""

    issue: store.BoardIssue
    identifier: str
    assignee: view.Person | None
    run: store.ActiveRun | None


@attrs.frozen(kw_only=True)
class Column:
    status: str
    cards: list[Card]
    count: int

    @property
    def hidden(self) -> int:
        return self.count - len(self.cards)


def arrange(
    issues: list[store.BoardIssue],
    runs: list[store.ActiveRun],
    people: view.Directory,
    prefix: str,
) -> list[Column]:
    """Sort cards into columns; a running run outshines a waiting one."""
    liveliest: dict[str, store.ActiveRun] = {}
    for run in runs:
        if run.issue_id and (run.issue_id not in liveliest or run.status == wire.RUNNING):
            liveliest[run.issue_id] = run
    columns: dict[str, list[Card]] = {status: [] for status in view.STATUSES}
    counts: dict[str, int] = dict.fromkeys(columns, 0)
    for issue in issues:
        counts[issue.status] = issue.in_column
        columns[issue.status].append(
            Card(
                issue=issue,
                identifier=f"{prefix}-{issue.number}",
                assignee=people.find(issue.assignee_type, issue.assignee_id),
                run=liveliest.get(issue.id),
            )
        )
    return [
        Column(status=status, cards=cards, count=counts[status])
        for status, cards in columns.items()
        if cards or status in view.ALWAYS_SHOWN
    ]


async def _read(conn: Connection, visit: shell.Visit) -> Mapping[str, Any]:
    issues = await store.board(conn, visit.workspace.id)
    runs = await store.active_runs(conn, visit.workspace.id)
    return {
        "columns": arrange(issues, runs, visit.people, visit.workspace.issue_prefix),
        "total": len(issues),
        "machines_online": any(
            runtime.status == "online" for runtime in visit.people.runtimes.values()
        ),
    }


async def board(request: Request) -> Response:
    """GET /{slug}/issues."""
    return await shell.show(request, "board.html", "issues", _read)


routes: list[BaseRoute] = [Route("/{slug:slug}/issues", board)]
