"""`bullpen runtime …`: the agent programs of your machines (spec 06 §20.7)."""

from __future__ import annotations

import os
from pathlib import Path

import click

from daemon.cli.api import Api, Rejected, open_api, segment
from daemon.cli.errors import CliError
from daemon.cli.groups import Group
from daemon.cli.output import ago, notice, output_option, print_json, print_table, shortener
from daemon.cli.refs import Candidate, match_name, runtime_id, runtime_name
from daemon.cli.settings import Settings
from shared.ids import InvalidId, canonical_id


@click.group(cls=Group)
def runtime() -> None:
    """Work with runtimes: one is one agent program on one machine."""


@runtime.command("list")
@click.option("--full-id", is_flag=True, help="Show full ids.")
@output_option("table")
@click.pass_obj
def list_(settings: Settings, full_id: bool, output: str) -> None:
    """List the workspace's runtimes."""
    with open_api(settings) as api:
        found = api.get("/api/runtimes")
    if output == "json":
        print_json(found)
        return
    shown = shortener([row["id"] for row in found], full_id)
    print_table(
        ["ID", "NAME", "MODE", "PROVIDER", "STATUS", "LAST_SEEN"],
        [
            [
                shown(row["id"]),
                runtime_name(row),
                row["runtime_mode"],
                row["provider"],
                row["status"],
                ago(row.get("last_seen_at")),
            ]
            for row in found
        ],
    )


@runtime.command()
@click.argument("ref", metavar="RUNTIME")
@click.option("--cascade", is_flag=True, help="Archive the agents that use it, too.")
@output_option("table")
@click.pass_obj
def delete(settings: Settings, ref: str, cascade: bool, output: str) -> None:
    """Delete a runtime; a running daemon registers it again."""
    with open_api(settings) as api:
        found = runtime_id(api, ref)
        told = {"id": found, "deleted": True}
        try:
            api.delete(f"/api/runtimes/{found}")
        except Rejected as error:
            if error.body.get("code") != "runtime_has_active_agents":
                raise
            agents = error.body.get("active_agents") or []
            if not cascade:
                names = ", ".join(agent["name"] for agent in agents)
                raise CliError(
                    f"agents still use this runtime: {names}; --cascade archives them first"
                ) from error
            body = {"expected_active_agent_ids": [agent["id"] for agent in agents]}
            done = api.post(f"/api/runtimes/{found}/archive-agents-and-delete", body)
            told |= {key: done.get(key, 0) for key in ("agents_archived", "tasks_cancelled")}
    if output == "json":
        print_json(told)
    else:
        notice(f"runtime {found} deleted")


@runtime.command("hand-over")
@click.argument("ref", metavar="RUNTIME")
@click.option("--to", "heir", required=True, metavar="MEMBER", help="An address, name or id.")
@click.option("--with-agents", is_flag=True, help="Your agents on it become theirs, too.")
@click.option("--with-directories", is_flag=True, help="Keep the directories you named on it.")
@output_option("table")
@click.pass_obj
def hand_over(
    settings: Settings,
    ref: str,
    *,
    heir: str,
    with_agents: bool,
    with_directories: bool,
    output: str,
) -> None:
    """Give the machine a runtime is on to another member, with all its runtimes.

    What runs there is stopped and queued again. Agents of other people stay theirs, and wait until
    their owners move them or the machine's new owner opens its runtimes to all.
    """
    with open_api(settings) as api:
        found = runtime_id(api, ref)
        user_id, name = _member(api, heir)
        body = {
            "user_id": user_id,
            "include_agents": with_agents,
            "include_directories": with_directories,
        }
        told = api.post(f"/api/runtimes/{found}/hand-over", body)
    if output == "json":
        print_json(told)
        return
    names = ", ".join(row["name"] for row in told["runtimes"])
    notice(f"the machine belongs to {name} now: {names}")
    for key, text in (
        ("agents_given", "agents that went along"),
        ("agents_waiting", "agents that wait until their owners move them"),
    ):
        if told[key]:
            notice(f"{text}: {', '.join(agent['name'] for agent in told[key])}")
    if told["directories_removed"]:
        places = ", ".join(row["local_path"] for row in told["directories_removed"])
        notice(f"directories taken out of projects: {places}")
    if told["tasks_stopped"]:
        notice(f"tasks stopped there and queued again: {told['tasks_stopped']}")


def _member(api: Api, text: str) -> tuple[str, str]:
    """The id and name of the member an address, name or id names. Raises CliError."""
    members = api.get(f"/api/workspaces/{segment(api.workspace_id)}/members")
    for member in members:
        if str(member.get("email") or "").lower() == text.strip().lower():
            return str(member["user_id"]), str(member["name"])
    known = [Candidate(kind="member", id=m["user_id"], name=m["name"]) for m in members]
    one = match_name([known], text, "member")
    return one.id, one.name


@runtime.group()
def profile() -> None:
    """Say where this machine has the programs of custom runtimes."""


@profile.command("set-path")
@click.argument("profile_id", metavar="PROFILE")
@click.option("--path", "place", required=True, metavar="PATH", help="The program, absolute.")
@click.pass_obj
def set_path(settings: Settings, profile_id: str, place: str) -> None:
    """Use this program for a runtime profile on this machine; a running daemon does so at once."""
    path = Path(place).expanduser()
    if not path.is_absolute():
        raise CliError(f"{place} is not an absolute path")
    if not os.access(path, os.X_OK) or path.is_dir():
        notice(f"warning: {path} is not an executable file at present")
    _set_place(settings, profile_id, str(path))
    notice(f"runtime profile {profile_id} uses {path} on this machine")


@profile.command("unset-path")
@click.argument("profile_id", metavar="PROFILE")
@click.pass_obj
def unset_path(settings: Settings, profile_id: str) -> None:
    """Look for a runtime profile's program in the PATH again."""
    _set_place(settings, profile_id, "")
    notice(f"runtime profile {profile_id} is looked for in the PATH")


def _set_place(settings: Settings, profile_id: str, path: str) -> None:
    """Change one entry of the overrides; the last that goes takes the key with it (03 §2.8)."""
    try:
        key = canonical_id(profile_id)
    except InvalidId:
        raise CliError(f"{profile_id!r} is not the id of a runtime profile") from None
    if settings.agent_context:
        raise CliError("inside a task the owner's settings cannot be changed")
    now = settings.config.get("profile_command_overrides")
    places = {k: v for k, v in (now if isinstance(now, dict) else {}).items() if k != key}
    if path:
        places[key] = path
    settings.save(profile_command_overrides=places)
