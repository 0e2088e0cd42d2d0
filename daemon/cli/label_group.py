"""`bullpen label …` (spec 06 §8, §20.6)."""

from __future__ import annotations

import click

from daemon.cli.api import open_api
from daemon.cli.errors import CliError
from daemon.cli.groups import Group
from daemon.cli.named import Named, add_basics, given
from daemon.cli.output import output_option
from daemon.cli.settings import Settings

LABELS = Named(what="label", path="/api/labels", key="labels", columns=("color",))


@click.group(cls=Group)
def label() -> None:
    """Work with labels."""


add_basics(label, LABELS)


@label.command()
@click.option("--name", required=True, help="Up to 32 bytes.")
@click.option("--color", required=True, help="Six hex digits, such as 3b82f6.")
@output_option("json")
@click.pass_obj
def create(settings: Settings, name: str, color: str, output: str) -> None:
    """Make a label."""
    with open_api(settings) as api:
        made = api.post(LABELS.path, {"name": name, "color": color})
    LABELS.show_one(made, output)


@label.command()
@click.argument("ref", metavar="LABEL")
@click.option("--name", help="A new name.")
@click.option("--color", help="A new color, six hex digits.")
@output_option("json")
@click.pass_obj
def update(settings: Settings, ref: str, name: str | None, color: str | None, output: str) -> None:
    """Change a label."""
    body = given(name=name, color=color)
    if not body:
        raise CliError("nothing to change: give --name or --color")
    with open_api(settings) as api:
        changed = api.put(LABELS.url(api, ref), body)
    LABELS.show_one(changed, output)
