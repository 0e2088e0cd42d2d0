"""`bullpen squad …` (spec 06 §11, §20.6)."""

from __future__ import annotations

from typing import Any

import click

from daemon.cli.api import Api, open_api, segment
from daemon.cli.errors import CliError
from daemon.cli.groups import Group
from daemon.cli.named import Named, add_basics, given, print_json_or
from daemon.cli.output import notice, output_option, print_json, print_table
from daemon.cli.refs import agent_id, issue_id, need_id
from daemon.cli.settings import Settings

SQUADS = Named(what="squad", path="/api/squads", columns=("member_count", "description"))

_TYPES = click.Choice(["agent", "member"])


@click.group(cls=Group)
def squad() -> None:
    """Work with squads: a leader agent and members."""


add_basics(squad, SQUADS)


@squad.command()
@click.option("--name", required=True)
@click.option("--leader", required=True, metavar="AGENT", help="Who leads: id or name.")
@click.option("--description", help="What it is for, in a line.")
@output_option("json")
@click.pass_obj
def create(
    settings: Settings, name: str, leader: str, description: str | None, output: str
) -> None:
    """Make a squad."""
    with open_api(settings) as api:
        body = given(name=name, description=description) | {"leader_id": agent_id(api, leader)}
        made = api.post(SQUADS.path, body)
    SQUADS.show_one(made, output)


@squad.command()
@click.argument("ref", metavar="SQUAD")
@click.option("--name")
@click.option("--description")
@click.option("--instructions", help="What the leader is told beside its own instructions.")
@click.option("--leader", metavar="AGENT")
@click.option("--avatar-url")
@output_option("json")
@click.pass_obj
def update(settings: Settings, /, ref: str, output: str, **options: str | None) -> None:
    """Change a squad."""
    leader = options.pop("leader")
    body: dict[str, Any] = given(**options)
    if not body and leader is None:
        raise CliError("nothing to change: give at least one option")
    with open_api(settings) as api:
        if leader is not None:
            body["leader_id"] = agent_id(api, leader)
        changed = api.put(SQUADS.url(api, ref), body)
    SQUADS.show_one(changed, output)


@squad.group()
def member() -> None:
    """Work with a squad's members."""


@member.command("list")
@click.argument("ref", metavar="SQUAD")
@output_option("table")
@click.pass_obj
def list_members(settings: Settings, ref: str, output: str) -> None:
    """List a squad's members."""
    with open_api(settings) as api:
        rows = api.get(f"{SQUADS.url(api, ref)}/members")
    if output == "json":
        print_json(rows)
        return
    print_table(
        ["MEMBER", "TYPE", "ROLE"],
        [[row["member_id"], row["member_type"], row["role"]] for row in rows],
    )


@member.command()
@click.argument("ref", metavar="SQUAD")
@click.option(
    "--member-id", required=True, metavar="ID", help="An agent's id or name, a user's id."
)
@click.option("--type", "kind", type=_TYPES, default="agent", show_default=True)
@click.option("--role", default="member", show_default=True)
@output_option("json")
@click.pass_obj
def add(settings: Settings, ref: str, *, member_id: str, kind: str, role: str, output: str) -> None:
    """Add a member."""
    with open_api(settings) as api:
        body = _member(api, kind, member_id) | {"role": role}
        made = api.post(f"{SQUADS.url(api, ref)}/members", body)
    print_json_or(made, output, f"added to {ref}")


@member.command("set-role")
@click.argument("ref", metavar="SQUAD")
@click.option("--member-id", required=True, metavar="ID")
@click.option("--member-type", "kind", type=_TYPES, default="agent", show_default=True)
@click.option("--role", required=True)
@output_option("json")
@click.pass_obj
def set_role(
    settings: Settings, ref: str, *, member_id: str, kind: str, role: str, output: str
) -> None:
    """Say what a member does in the squad."""
    with open_api(settings) as api:
        body = _member(api, kind, member_id) | {"role": role}
        changed = api.call("PATCH", f"{SQUADS.url(api, ref)}/members/role", body=body)
    print_json_or(changed, output, "role changed")


@member.command()
@click.argument("ref", metavar="SQUAD")
@click.option("--member-id", required=True, metavar="ID")
@click.option("--type", "kind", type=_TYPES, default="agent", show_default=True)
@click.pass_obj
def remove(settings: Settings, ref: str, member_id: str, kind: str) -> None:
    """Take a member out."""
    with open_api(settings) as api:
        body = _member(api, kind, member_id)
        api.call("DELETE", f"{SQUADS.url(api, ref)}/members", body=body)
    notice(f"removed from {ref}")


def _member(api: Api, kind: str, text: str) -> dict[str, str]:
    found = agent_id(api, text) if kind == "agent" else need_id(text, "member")
    return {"member_type": kind, "member_id": found}


@squad.command()
@click.argument("issue", metavar="ISSUE")
@click.argument("outcome", type=click.Choice(["action", "no_action", "failed"]))
@click.option("--reason", default="", help="Why, in a sentence.")
@output_option("table")
@click.pass_obj
def activity(settings: Settings, issue: str, outcome: str, reason: str, output: str) -> None:
    """Record a leader's decision on an issue; for agents, once a turn."""
    with open_api(settings) as api:
        path = f"/api/issues/{segment(issue_id(api, issue))}/squad-evaluated"
        made = api.post(path, {"outcome": outcome, "reason": reason})
    print_json_or(made, output, f"recorded: {outcome}")
