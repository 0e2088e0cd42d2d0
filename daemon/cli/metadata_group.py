"""`bullpen issue metadata …`: an issue's own key-value notes (spec 06 §5.1, §20.5)."""

from __future__ import annotations

import json
import math
from typing import Any

import click

from daemon.cli.api import Rejected, open_api, segment
from daemon.cli.errors import ABSENT, CliError
from daemon.cli.groups import Group
from daemon.cli.output import notice, output_option, print_json, print_table
from daemon.cli.refs import issue_id
from daemon.cli.settings import Settings


@click.group(cls=Group)
def metadata() -> None:
    """Read and write an issue's metadata."""


@metadata.command("list")
@click.argument("ref", metavar="ISSUE")
@output_option("table")
@click.pass_obj
def list_(settings: Settings, ref: str, output: str) -> None:
    """List all keys and values."""
    _show(_load(settings, ref), output)


@metadata.command()
@click.argument("ref", metavar="ISSUE")
@click.option("--key", required=True)
@output_option("json")
@click.pass_obj
def get(settings: Settings, ref: str, key: str, output: str) -> None:
    """Show one value."""
    found = _load(settings, ref)
    if key not in found:
        raise CliError(f"the issue has no metadata {key!r}", ABSENT)
    if output == "json":
        print_json(found[key])
    else:
        _show({key: found[key]}, output)


@metadata.command("set")
@click.argument("ref", metavar="ISSUE")
@click.option("--key", required=True)
@click.option("--value", required=True)
@click.option("--type", "kind", type=click.Choice(["string", "number", "bool"]))
@output_option("table")
@click.pass_obj
def set_(
    settings: Settings, *, ref: str, key: str, value: str, kind: str | None, output: str
) -> None:
    """Set one value; its type is guessed unless --type says it."""
    parsed = typed_value(value, kind)
    with open_api(settings) as api:
        path = f"/api/issues/{issue_id(api, ref)}/metadata/{segment(key)}"
        changed = api.put(path, {"value": parsed})["metadata"]
    notice(f"{key} set")
    if output == "json":
        print_json(changed)


@metadata.command()
@click.argument("ref", metavar="ISSUE")
@click.option("--key", required=True)
@output_option("table")
@click.pass_obj
def delete(settings: Settings, ref: str, key: str, output: str) -> None:
    """Remove one key."""
    with open_api(settings) as api:
        path = f"/api/issues/{issue_id(api, ref)}/metadata/{segment(key)}"
        changed = api.delete(path)["metadata"]
    notice(f"{key} removed")
    if output == "json":
        print_json(changed)


def typed_value(text: str, kind: str | None) -> Any:
    """The value a text stands for: as `kind` says, else a JSON primitive, else the text.

    Raises CliError when it is not of the kind.
    """
    if kind == "string":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    is_number = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    )
    if kind == "number" and not is_number:
        raise CliError(f"{text!r} is not a number")
    if kind == "bool" and not isinstance(value, bool):
        raise CliError(f"{text!r} is not true or false")
    return value if is_number or isinstance(value, (bool, str)) else text


def _load(settings: Settings, ref: str) -> dict[str, Any]:
    with open_api(settings) as api:
        found = issue_id(api, ref)
        try:
            values: dict[str, Any] = api.get(f"/api/issues/{found}/metadata")["metadata"]
        except Rejected as error:
            if error.status == 404:  # a server without metadata: none is set
                return {}
            raise
    return values


def _show(values: dict[str, Any], output: str) -> None:
    if output == "json":
        print_json(values)
        return
    rows = [[k, v if isinstance(v, str) else json.dumps(v)] for k, v in sorted(values.items())]
    print_table(["KEY", "VALUE"], rows)
