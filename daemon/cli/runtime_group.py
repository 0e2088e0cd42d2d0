"""`bullpen runtime …`: the agent programs of your machines (spec 06 §20.7)."""

from __future__ import annotations

import os
from pathlib import Path

import click

from daemon.cli.api import Rejected, open_api
from daemon.cli.errors import CliError
from daemon.cli.output import ago, notice, output_option, print_json, print_table, shortener
from daemon.cli.refs import runtime_id
from daemon.cli.settings import Settings
from shared.ids import InvalidId, canonical_id


@click.group()
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
                row["name"],
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
