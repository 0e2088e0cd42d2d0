"""What the groups of named things have in common: find one by name, list, show, delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import click

from daemon.cli.api import Api, open_api, segment
from daemon.cli.output import notice, output_option, print_json, print_table, shortener
from daemon.cli.refs import Candidate, match_name, try_id
from daemon.cli.settings import Settings


@attrs.frozen(kw_only=True)
class Named:
    """One kind of thing: where it is and how a list of it looks.

    `key`: the member of the list's answer that holds it; empty when the answer is the list itself.
    """

    what: str
    path: str
    key: str = ""
    name: str = "name"
    columns: tuple[str, ...] = ()

    def fetch(self, api: Api, **query: Any) -> list[dict[str, Any]]:
        """All of them."""
        answer = api.get(self.path, **query)
        found: list[dict[str, Any]] = answer[self.key] if self.key else answer
        return found

    def find(self, api: Api, ref: str) -> str:
        """The id that a full id, prefix or name stands for. Raises CliError."""
        known = try_id(ref.strip())
        if known is not None:
            return known
        rows = [
            Candidate(kind=self.what, id=row["id"], name=row[self.name]) for row in self.fetch(api)
        ]
        return match_name([rows], ref, self.what).id

    def url(self, api: Api, ref: str) -> str:
        """Where the one that `ref` names is."""
        return f"{self.path}/{segment(self.find(api, ref))}"

    def show_one(self, row: dict[str, Any], output: str) -> None:
        """Print one."""
        if output == "json":
            print_json(row)
        else:
            self.show([row], output)

    def show(self, rows: Sequence[dict[str, Any]], output: str, *, full_id: bool = False) -> None:
        """Print them."""
        if output == "json":
            print_json(rows)
            return
        header = ["ID", self.name.upper(), *(column.upper() for column in self.columns)]
        shown = shortener([row["id"] for row in rows], full_id)
        print_table(
            header,
            [
                [
                    shown(row["id"]),
                    row[self.name],
                    *("" if row.get(column) is None else row[column] for column in self.columns),
                ]
                for row in rows
            ],
        )


def print_json_or(value: Any, output: str, text: str) -> None:
    """The value for programs, a word for people."""
    if output == "json":
        print_json(value)
    else:
        notice(text)


def add_basics(group: click.Group, kind: Named) -> None:
    """Give a group `list`, `get` and `delete`."""

    @group.command("list", help=f"List {kind.what}s.")
    @click.option("--full-id", is_flag=True, help="Show full ids.")
    @output_option("table")
    @click.pass_obj
    def _list(settings: Settings, full_id: bool, output: str) -> None:
        with open_api(settings) as api:
            kind.show(kind.fetch(api), output, full_id=full_id)

    @group.command("get", help=f"Show one {kind.what}.")
    @click.argument("ref", metavar=kind.what.upper())
    @output_option("json")
    @click.pass_obj
    def _get(settings: Settings, ref: str, output: str) -> None:
        with open_api(settings) as api:
            found = api.get(kind.url(api, ref))
        kind.show_one(found, output)

    @group.command("delete", help=f"Delete a {kind.what}.")
    @click.argument("ref", metavar=kind.what.upper())
    @output_option("json")
    @click.pass_obj
    def _delete(settings: Settings, ref: str, output: str) -> None:
        with open_api(settings) as api:
            found = kind.find(api, ref)
            api.delete(f"{kind.path}/{segment(found)}")
        print_json_or({"id": found, "deleted": True}, output, f"{kind.what} {found} deleted")


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, as members of a body."""
    return {key: value for key, value in options.items() if value is not None}
