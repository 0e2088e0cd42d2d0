"""`bullpen workspace …` (spec 06 §20.4)."""

from __future__ import annotations

from typing import Any

import click

from daemon.cli.api import Api, open_api, segment
from daemon.cli.errors import CliError
from daemon.cli.groups import Group
from daemon.cli.output import (
    notice,
    output_option,
    print_fields,
    print_json,
    print_table,
    shortener,
)
from daemon.cli.refs import find_workspace, try_id
from daemon.cli.settings import Settings


@click.group(cls=Group)
def workspace() -> None:
    """Work with workspaces."""


@workspace.command("list")
@click.option("--full-id", is_flag=True, help="Show full ids.")
@output_option("table")
@click.pass_obj
def list_(settings: Settings, full_id: bool, output: str) -> None:
    """List your workspaces; * marks the one commands use."""
    with open_api(settings, workspace=False) as api:
        found = api.get("/api/workspaces")
    if output == "json":
        print_json([{key: row[key] for key in ("id", "name", "slug")} for row in found])
        return
    chosen = settings.try_workspace_id()
    shown = shortener([row["id"] for row in found], full_id)
    print_table(
        ["", "ID", "NAME", "SLUG"],
        [
            [
                "*" if row["id"] == chosen else "",
                shown(row["id"]),
                row["name"],
                row["slug"],
            ]
            for row in found
        ],
    )


def _resolve(api: Api, settings: Settings, ref: str | None) -> str:
    """The id of the workspace named, or of the current one."""
    if ref is None:
        current = settings.workspace_id()
        if try_id(current) is not None:
            return current
        ref = current
    known = try_id(ref)
    return (
        known if known is not None else str(find_workspace(api.get("/api/workspaces"), ref)["id"])
    )


@workspace.command()
@click.argument("ref", metavar="[WORKSPACE]", required=False)
@output_option("json")
@click.pass_obj
def get(settings: Settings, ref: str | None, output: str) -> None:
    """Show one workspace: by id, slug, name or id prefix; the current one by default."""
    with open_api(settings, workspace=False) as api:
        found: dict[str, Any] = api.get(f"/api/workspaces/{segment(_resolve(api, settings, ref))}")
    if output == "json":
        print_json(found)
        return
    print_fields(
        [
            ("Name", found.get("name")),
            ("Slug", found.get("slug")),
            ("Issue prefix", found.get("issue_prefix")),
            ("Repositories", "\n".join(repo["url"] for repo in found.get("repos") or [])),
            ("Id", found.get("id")),
            ("Description", found.get("description")),
            ("Context", found.get("context")),
        ]
    )


@workspace.command()
@click.argument("ref", metavar="WORKSPACE")
@click.pass_obj
def switch(settings: Settings, ref: str) -> None:
    """Make a workspace the one that commands use."""
    if settings.agent_context:
        raise CliError("inside a task the owner's settings cannot be changed")
    with open_api(settings, workspace=False) as api:
        found = find_workspace(api.get("/api/workspaces"), ref)
    settings.save(workspace_id=found["id"])
    notice(f"workspace: {found['name']} ({found['slug']})")


@workspace.group()
def member() -> None:
    """Work with members."""


@member.command("list")
@click.argument("ref", metavar="[WORKSPACE]", required=False)
@output_option("table")
@click.pass_obj
def list_members(settings: Settings, ref: str | None, output: str) -> None:
    """List a workspace's members."""
    with open_api(settings, workspace=False) as api:
        found = api.get(f"/api/workspaces/{segment(_resolve(api, settings, ref))}/members")
    if output == "json":
        print_json(found)
        return
    print_table(
        ["USER ID", "NAME", "EMAIL", "ROLE"],
        [[row["user_id"], row["name"], row["email"], row["role"]] for row in found],
    )
