"""`bullpen autopilot …` (spec 06 §15, §20.6)."""

from __future__ import annotations

from typing import Any

import click

from daemon.cli.api import Api, open_api, segment
from daemon.cli.errors import ABSENT, CliError
from daemon.cli.groups import Group
from daemon.cli.named import Named, given, print_json_or
from daemon.cli.names import Names
from daemon.cli.output import (
    ago,
    notice,
    output_option,
    plain,
    print_json,
    print_table,
    shortener,
)
from daemon.cli.project_group import PROJECTS
from daemon.cli.refs import Candidate, agent_id, match_name, try_id
from daemon.cli.settings import Settings

AUTOPILOTS = Named(
    what="autopilot",
    path="/api/autopilots",
    key="autopilots",
    name="title",
    columns=("status", "execution_mode", "last_run_status", "next_run_at"),
)

_MODES = click.Choice(["create_issue", "run_only"])


@click.group(cls=Group)
def autopilot() -> None:
    """Work with autopilots: work that starts by itself."""


@autopilot.command("list")
@click.option("--status", type=click.Choice(["active", "paused", "archived"]))
@click.option("--full-id", is_flag=True, help="Show full ids.")
@output_option("table")
@click.pass_obj
def list_(settings: Settings, status: str | None, full_id: bool, output: str) -> None:
    """List autopilots."""
    with open_api(settings) as api:
        found = api.get(AUTOPILOTS.path, status=status)
    if output == "json":
        print_json(found)
    else:
        AUTOPILOTS.show([_filled(row) for row in found["autopilots"]], output, full_id=full_id)


@autopilot.command()
@click.argument("ref", metavar="AUTOPILOT")
@output_option("json")
@click.pass_obj
def get(settings: Settings, ref: str, output: str) -> None:
    """Show one autopilot and what starts it."""
    with open_api(settings) as api:
        found = api.get(AUTOPILOTS.url(api, ref))
    if output == "json":
        print_json(found)
        return
    AUTOPILOTS.show([_filled(found["autopilot"])], output)
    if found["triggers"]:
        click.echo()
        _print_triggers(settings, found["triggers"])


@autopilot.command()
@click.option("--title", required=True)
@click.option("--agent", required=True, metavar="AGENT", help="Who does the work: id or name.")
@click.option("--mode", required=True, type=_MODES, help="Make an issue each time, or only run.")
@click.option("--description", help="What is to be done.")
@click.option("--project", metavar="PROJECT", help="Where its issues belong.")
@click.option("--issue-title-template", help="Title of its issues; {{date}} is the day.")
@click.option("--subscriber", "subscribers", multiple=True, metavar="MEMBER", help="Who is told.")
@click.option("--priority", hidden=True, help="For older callers; not used.")
@output_option("json")
@click.pass_obj
def create(settings: Settings, /, agent: str, mode: str, output: str, **options: Any) -> None:
    """Make an autopilot; give it a trigger with trigger-add."""
    with open_api(settings) as api:
        body = _body(api, options) | {"assignee_id": agent_id(api, agent), "execution_mode": mode}
        made = api.post(AUTOPILOTS.path, body)
    AUTOPILOTS.show_one(_filled(made) if output == "table" else made, output)


@autopilot.command()
@click.argument("ref", metavar="AUTOPILOT")
@click.option("--title")
@click.option("--agent", metavar="AGENT", help="Who does the work: id or name.")
@click.option("--mode", type=_MODES)
@click.option("--status", type=click.Choice(["active", "paused", "archived"]))
@click.option("--description")
@click.option("--project", metavar="PROJECT", help="Where its issues belong; empty for none.")
@click.option("--issue-title-template", help="Title of its issues; empty for its own title.")
@click.option("--subscriber", "subscribers", multiple=True, metavar="MEMBER", help="Who is told.")
@click.option("--clear-subscribers", is_flag=True, help="Tell nobody any more.")
@click.option("--priority", hidden=True, help="For older callers; not used.")
@output_option("json")
@click.pass_obj
def update(
    settings: Settings,
    /,
    *,
    ref: str,
    agent: str | None,
    mode: str | None,
    clear_subscribers: bool,
    output: str,
    **options: Any,
) -> None:
    """Change an autopilot; only what is given changes."""
    if clear_subscribers and options["subscribers"]:
        raise CliError("give either --subscriber or --clear-subscribers")
    with open_api(settings) as api:
        body = _body(api, options) | given(execution_mode=mode)
        if agent is not None:
            body |= {"assignee_type": "agent", "assignee_id": agent_id(api, agent)}
        if clear_subscribers:
            body["subscribers"] = []
        if not body:
            raise CliError("nothing to change: give at least one option")
        changed = api.call("PATCH", AUTOPILOTS.url(api, ref), body=body)
    AUTOPILOTS.show_one(_filled(changed) if output == "table" else changed, output)


@autopilot.command()
@click.argument("ref", metavar="AUTOPILOT")
@output_option("json")
@click.pass_obj
def delete(settings: Settings, ref: str, output: str) -> None:
    """Delete an autopilot and the record of its runs."""
    with open_api(settings) as api:
        found = AUTOPILOTS.find(api, ref)
        api.delete(f"{AUTOPILOTS.path}/{segment(found)}")
    print_json_or({"id": found, "deleted": True}, output, f"autopilot {found} deleted")


@autopilot.command()
@click.argument("ref", metavar="AUTOPILOT")
@output_option("json")
@click.pass_obj
def trigger(settings: Settings, ref: str, output: str) -> None:
    """Run it now."""
    with open_api(settings) as api:
        run = api.post(f"{AUTOPILOTS.url(api, ref)}/trigger", None)
    reason = f": {plain(run['failure_reason'])}" if run.get("failure_reason") else ""
    print_json_or(run, output, f"run {run['id']} {run['status']}{reason}")


@autopilot.command()
@click.argument("ref", metavar="AUTOPILOT")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@click.option("--offset", type=click.IntRange(0), default=0)
@click.option("--full-id", is_flag=True, help="Show full ids.")
@output_option("table")
@click.pass_obj
def runs(
    settings: Settings, *, ref: str, limit: int, offset: int, full_id: bool, output: str
) -> None:
    """List its runs, newest first."""
    with open_api(settings) as api:
        found = api.get(f"{AUTOPILOTS.url(api, ref)}/runs", limit=limit, offset=offset)
        if output == "json":
            print_json(found)
            return
        issues = Names(api).issues(run.get("issue_id") for run in found["runs"])
    shown = shortener([run["id"] for run in found["runs"]], full_id)
    print_table(
        ["ID", "STATUS", "SOURCE", "STARTED", "ISSUE", "REASON"],
        [
            [
                shown(run["id"]),
                run["status"],
                run["source"],
                ago(run["triggered_at"]),
                issues[run.get("issue_id")],
                run.get("failure_reason"),
            ]
            for run in found["runs"]
        ],
    )


# --- triggers -------------------------------------------------------------------------------------


@autopilot.command("trigger-add")
@click.argument("ref", metavar="AUTOPILOT")
@click.option(
    "--kind", type=click.Choice(["schedule", "webhook"]), default="schedule", show_default=True
)
@click.option("--cron", metavar="EXPRESSION", help="Five fields, such as '0 9 * * 1-5'.")
@click.option("--timezone", metavar="ZONE", help="Such as Europe/Berlin; UTC without.")
@click.option("--label", help="What it is called.")
@output_option("json")
@click.pass_obj
def trigger_add(
    settings: Settings,
    *,
    ref: str,
    kind: str,
    cron: str | None,
    timezone: str | None,
    label: str | None,
    output: str,
) -> None:
    """Give it a schedule, or an address to call."""
    if kind == "schedule" and not cron:
        raise CliError("a schedule needs --cron")
    body = {"kind": kind} | given(cron_expression=cron, timezone=timezone, label=label)
    with open_api(settings) as api:
        made = api.post(f"{AUTOPILOTS.url(api, ref)}/triggers", body)
    _show_trigger(settings, made, output)


@autopilot.command("trigger-update")
@click.argument("ref", metavar="AUTOPILOT")
@click.argument("trigger_ref", metavar="TRIGGER")
@click.option("--enabled", type=bool, help="true or false.")
@click.option("--cron", metavar="EXPRESSION")
@click.option("--timezone", metavar="ZONE")
@click.option("--label")
@output_option("json")
@click.pass_obj
def trigger_update(
    settings: Settings,
    *,
    ref: str,
    trigger_ref: str,
    enabled: bool | None,
    cron: str | None,
    timezone: str | None,
    label: str | None,
    output: str,
) -> None:
    """Change what starts it."""
    body = given(enabled=enabled, cron_expression=cron, timezone=timezone, label=label)
    if not body:
        raise CliError("nothing to change: give at least one option")
    with open_api(settings) as api:
        changed = api.call("PATCH", _trigger_url(api, ref, trigger_ref), body=body)
    _show_trigger(settings, changed, output)


@autopilot.command("trigger-delete")
@click.argument("ref", metavar="AUTOPILOT")
@click.argument("trigger_ref", metavar="TRIGGER")
@click.pass_obj
def trigger_delete(settings: Settings, ref: str, trigger_ref: str) -> None:
    """Take away what starts it."""
    with open_api(settings) as api:
        api.delete(_trigger_url(api, ref, trigger_ref))
    notice("trigger deleted")


@autopilot.command("trigger-rotate-url")
@click.argument("ref", metavar="AUTOPILOT")
@click.argument("trigger_ref", metavar="TRIGGER")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@output_option("json")
@click.pass_obj
def trigger_rotate_url(
    settings: Settings, ref: str, trigger_ref: str, yes: bool, output: str
) -> None:
    """Give a webhook a new address; the old one is dead at once."""
    if not yes:
        click.confirm("Whoever calls the old address will be refused. Go on?", abort=True, err=True)
    with open_api(settings) as api:
        url = _trigger_url(api, ref, trigger_ref)
        changed = api.post(f"{url}/rotate-webhook-token", None)
    _show_trigger(settings, changed, output)


# --- shared ---------------------------------------------------------------------------------------


def _body(api: Api, options: dict[str, Any]) -> dict[str, Any]:
    """What create and update have in common, as members of a body."""
    names = ("title", "status", "description", "issue_title_template")
    body = given(**{name: options[name] for name in names if name in options})
    project = options["project"]
    if project is not None:
        body["project_id"] = PROJECTS.find(api, project) if project else None
    if options["subscribers"]:
        people = _members(api)
        body["subscribers"] = [
            {"user_type": "member", "user_id": match_name([people], name, "member").id}
            for name in options["subscribers"]
        ]
    return body


def _members(api: Api) -> list[Candidate]:
    rows = api.get(f"/api/workspaces/{segment(api.workspace_id)}/members")
    return [Candidate(kind="member", id=row["user_id"], name=row.get("name") or "") for row in rows]


def _trigger_url(api: Api, ref: str, trigger_ref: str) -> str:
    """Where a trigger is; by full id, the beginning of it, or its label."""
    base = AUTOPILOTS.url(api, ref)
    known = try_id(trigger_ref.strip())
    if known is None:
        rows = api.get(base)["triggers"]
        wanted = trigger_ref.strip().lower()
        hits = [
            row
            for row in rows
            if (len(wanted) >= 4 and row["id"].startswith(wanted))
            or (row.get("label") or "").lower() == wanted
        ]
        if len(hits) != 1:
            found = ", ".join(row["id"] for row in (hits or rows)) or "none"
            raise CliError(f"{trigger_ref!r} does not name one trigger; there are: {found}", ABSENT)
        known = hits[0]["id"]
    return f"{base}/triggers/{segment(known)}"


def _show_trigger(settings: Settings, row: dict[str, Any], output: str) -> None:
    if output == "json":
        print_json(row)
    else:
        _print_triggers(settings, [row])


def _print_triggers(settings: Settings, rows: list[dict[str, Any]]) -> None:
    shown = shortener([row["id"] for row in rows])
    print_table(
        ["ID", "KIND", "ENABLED", "LABEL", "WHEN OR WHERE"],
        [
            [
                shown(row["id"]),
                row["kind"],
                "yes" if row["enabled"] else "no",
                row.get("label"),
                _when_or_where(settings, row),
            ]
            for row in rows
        ],
    )


def _when_or_where(settings: Settings, row: dict[str, Any]) -> str:
    if row["kind"] == "schedule":
        return f"{row.get('cron_expression')} ({row.get('timezone') or 'UTC'})"
    path = row.get("webhook_path")
    return row.get("webhook_url") or (f"{settings.server_url()}{path}" if path else "")


def _filled(row: dict[str, Any]) -> dict[str, Any]:
    """A row with every column of the table: lists and single answers do not have the same."""
    return dict.fromkeys(AUTOPILOTS.columns) | row
