"""Names beside ids, for tables: who an assignee, author or agent is. Failing to know is no error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from daemon.cli.api import Api, segment
from daemon.cli.errors import CliError
from daemon.cli.output import short

_MOST_ISSUES: Final = 100
"""How many issues a table asks for by name; each is a request."""


class Names:
    """Looks up every name once, when the first one is asked for."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: dict[str, str] | None = None

    def of(self, kind: str | None, who: str | None) -> str:
        """The name behind a type and id; the short id when it is not known."""
        if not who or kind == "system":
            return kind or ""
        if self._known is None:
            self._known = self._load()
        return self._known.get(who) or short(who)

    def issues(self, ids: Iterable[str | None]) -> dict[str | None, str]:
        """The identifiers of issues, by id: `BUL-7`; the short id of those that are not known."""
        shown: dict[str | None, str] = {None: "", "": ""}
        for one in ids:
            if one in shown or not one:
                continue
            shown[one] = short(one)
            if len(shown) <= _MOST_ISSUES:
                with suppress(CliError):
                    shown[one] = self._api.get(f"/api/issues/{segment(one)}")["identifier"]
        return shown

    def assignee(self, issue: Mapping[str, Any]) -> str:
        if not issue.get("assignee_id"):
            return ""
        return self.of(issue.get("assignee_type"), issue.get("assignee_id"))

    def _load(self) -> dict[str, str]:
        known: dict[str, str] = {}
        members = f"/api/workspaces/{segment(self._api.workspace_id)}/members"
        for path, key, query in (
            (members, "user_id", {}),
            ("/api/agents", "id", {"include_archived": "true"}),
            ("/api/squads", "id", {}),
        ):
            try:
                rows = self._api.get(path, **query)
            except CliError:
                continue
            known.update({row[key]: row.get("name") or "" for row in rows})
        return known
