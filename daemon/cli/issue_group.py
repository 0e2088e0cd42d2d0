"""`bullpen issue …`: the commands people and agents use most (spec 06 §20.5)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from daemon.cli.api import Api, open_api
from daemon.cli.comment_group import comment
from daemon.cli.errors import CliError
from daemon.cli.groups import Group
from daemon.cli.metadata_group import metadata as metadata_group
from daemon.cli.metadata_group import typed_value
from daemon.cli.names import Names
from daemon.cli.output import (
    ago,
    notice,
    output_option,
    print_fields,
    print_json,
    print_table,
)
from daemon.cli.refs import assignee_by_id, find_assignee, get_issue, issue_id, need_id
from daemon.cli.run_commands import RUN_COMMANDS
from daemon.cli.settings import Settings
from daemon.cli.text import read_text, text_options

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

STATUSES: Final = (
    "backlog",
    "todo",
    "in_progress",
    "in_review",
    "done",
    "blocked",
    "cancelled",
)
PRIORITIES: Final = ("urgent", "high", "medium", "low", "none")
CLOSED: Final = frozenset({"done", "cancelled"})

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d(T00:00:00(\.0+)?(Z|\+00:00))?")


@click.group(cls=Group)
def issue() -> None:
    """Work with issues, their comments and their runs."""


def one_of(value: str | None, allowed: Sequence[str], what: str) -> str | None:
    """Check an enumerated value before any request is made. Raises CliError."""
    if value is None or value in allowed:
        return value
    raise CliError(f"{value!r} is not a {what}: use one of {', '.join(allowed)}")


def _day(value: str | None, what: str) -> str | None:
    if not value or _DAY.fullmatch(value):
        return value
    raise CliError(f"{what} must be a day such as 2026-03-01, not {value!r}")


def _assignee(api: Api, name: str | None, by_id: str | None, options: str) -> dict[str, str] | None:
    if name is not None and by_id is not None:
        raise CliError(f"give only one of {options}")
    if name is None and by_id is None:
        return None
    chosen = find_assignee(api, name) if name is not None else assignee_by_id(api, by_id or "")
    return {"assignee_type": chosen.kind, "assignee_id": chosen.id}


def show_issue(api: Api, found: dict[str, Any], output: str) -> None:
    """Print one issue in the asked form."""
    if output == "json":
        print_json(found)
        return
    names = Names(api)
    print_fields(
        [
            ("Key", found.get("identifier")),
            ("Title", found.get("title")),
            ("Status", found.get("status")),
            ("Priority", found.get("priority")),
            ("Assignee", names.assignee(found)),
            ("Creator", names.of(found.get("creator_type"), found.get("creator_id"))),
            ("Start date", found.get("start_date")),
            ("Due date", found.get("due_date")),
            ("Created", ago(found.get("created_at"))),
            ("Updated", ago(found.get("updated_at"))),
            ("Id", found.get("id")),
            ("Description", found.get("description")),
        ]
    )


@issue.command("list")
@click.option("--status", help="Only this status.")
@click.option("--priority", help="Only this priority.")
@click.option("--assignee", help="Only issues of this member, agent or squad.")
@click.option("--assignee-id", help="The same by full id.")
@click.option("--project", help="Only issues of this project (full id).")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Only with this metadata.")
@click.option("--limit", type=click.IntRange(1, 100), default=50, show_default=True)
@click.option("--offset", type=click.IntRange(0), default=0, show_default=True)
@click.option("--full-id", is_flag=True, help="Show full ids too.")
@output_option("table")
@click.pass_obj
def list_(
    settings: Settings,
    *,
    status: str | None,
    priority: str | None,
    assignee: str | None,
    assignee_id: str | None,
    project: str | None,
    metadata: tuple[str, ...],
    limit: int,
    offset: int,
    full_id: bool,
    output: str,
) -> None:
    """List issues."""
    one_of(status, STATUSES, "status")
    one_of(priority, PRIORITIES, "priority")
    pairs = {}
    for pair in metadata:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CliError(f"--metadata takes key=value, not {pair!r}")
        pairs[key] = typed_value(value, None)
    with open_api(settings) as api:
        whose = _assignee(api, assignee, assignee_id, "--assignee and --assignee-id") or {}
        page = api.get(
            "/api/issues",
            workspace_id=api.workspace_id,
            status=status,
            priority=priority,
            assignee_id=whose.get("assignee_id"),
            project_id=project,
            metadata=json.dumps(pairs) if pairs else None,
            limit=limit,
            offset=offset,
        )
        issues, total = page["issues"], page["total"]
        more = offset + len(issues) < total
        if output == "json":
            print_json(
                {
                    "issues": issues,
                    "total": total,
                    "limit": limit,
                    "offset": offset,
                    "has_more": more,
                }
            )
            return
        header = ["KEY", "TITLE", "STATUS", "PRIORITY", "ASSIGNEE", "START DATE", "DUE DATE"]
        names = Names(api)
        rows = [
            [
                found["identifier"],
                found["title"],
                found["status"],
                found["priority"],
                names.assignee(found),
                found.get("start_date"),
                found.get("due_date"),
            ]
            for found in issues
        ]
        if full_id:
            header.insert(1, "ID")
            for row, found in zip(rows, issues, strict=True):
                row.insert(1, found["id"])
    print_table(header, rows)
    if more:
        notice(f"{offset + len(issues)} of {total} shown; more with --offset {offset + limit}")


@issue.command()
@click.argument("ref", metavar="ISSUE")
@output_option("json")
@click.pass_obj
def get(settings: Settings, ref: str, output: str) -> None:
    """Show one issue."""
    with open_api(settings) as api:
        show_issue(api, get_issue(api, ref), output)


def _edit_options(command: Decorated) -> Decorated:
    for option in (
        click.option("--due-date", metavar="DAY", help="When it is due (YYYY-MM-DD)."),
        click.option("--start-date", metavar="DAY", help="When to start (YYYY-MM-DD)."),
        click.option("--project", help="The project (full id)."),
        click.option("--stage", type=click.IntRange(1), help="Its stage among sub-issues."),
        click.option("--parent", metavar="ISSUE", help="The issue this one belongs to."),
        click.option("--assignee-id", metavar="ID", help="Who gets it, by full id."),
        click.option("--assignee", metavar="NAME", help="Who gets it, by name."),
        click.option("--priority", help=f"One of {', '.join(PRIORITIES)}."),
        click.option("--status", help=f"One of {', '.join(STATUSES)}."),
        text_options("description", "the description"),
    ):
        command = option(command)
    return command


def _body(
    api: Api,
    *,
    title: str | None,
    description: str | None,
    status: str | None,
    priority: str | None,
    assignee: str | None,
    assignee_id: str | None,
    parent: str | None,
    stage: int | None,
    project: str | None,
    start_date: str | None,
    due_date: str | None,
) -> dict[str, Any]:
    """The keys that were given; an empty parent, project or date becomes null (spec 06 §6.2)."""
    body: dict[str, Any] = {
        "title": title,
        "description": description,
        "status": status,
        "priority": priority,
        "stage": stage,
    }
    body = {key: value for key, value in body.items() if value is not None}
    if parent is not None:
        body["parent_issue_id"] = issue_id(api, parent) if parent else None
    for key, value in (
        ("project_id", project),
        ("start_date", start_date),
        ("due_date", due_date),
    ):
        if value is not None:
            body[key] = value or None
    return body | (_assignee(api, assignee, assignee_id, "--assignee and --assignee-id") or {})


def _check(
    status: str | None, priority: str | None, start_date: str | None, due_date: str | None
) -> None:
    one_of(status, STATUSES, "status")
    one_of(priority, PRIORITIES, "priority")
    _day(start_date, "--start-date")
    _day(due_date, "--due-date")


@issue.command()
@click.option("--title", required=True, help="What is to be done.")
@click.option("--allow-duplicate", is_flag=True, help="Even if an open issue has this title.")
@click.option("--attachment", "files", multiple=True, metavar="PATH", help="A file; may repeat.")
@click.option(
    "--attachment-id",
    "file_ids",
    multiple=True,
    metavar="ID",
    help="A file that was uploaded already; may repeat.",
)
@_edit_options
@output_option("json")
@click.pass_obj
def create(
    settings: Settings,
    /,
    *,
    title: str,
    allow_duplicate: bool,
    files: tuple[str, ...],
    file_ids: tuple[str, ...],
    description: str | None,
    description_stdin: bool,
    description_file: str | None,
    output: str,
    **given: Any,
) -> None:
    """Create an issue; with an assignee that is an agent, it starts working on it."""
    if not title.strip():
        raise CliError("--title must not be empty")
    ids = [need_id(each, "attachment") for each in file_ids]
    _check(given["status"], given["priority"], given["start_date"], given["due_date"])
    text = read_text("description", description, description_stdin, description_file)
    with open_api(settings) as api:
        body = _body(api, title=title, description=text, **given)
        body = {key: value for key, value in body.items() if value is not None}
        if allow_duplicate:
            body["allow_duplicate"] = True
        body |= _quick_create(settings)
        if ids:
            body["attachment_ids"] = [*body.get("attachment_ids", ()), *ids]
        made = api.post("/api/issues", body)
        for file in files:
            _attach(api, made["id"], file)
        if output == "json":
            print_json(made)
            return
    notice(f"created {made['identifier']}: {made['title']}")


def _attach(api: Api, issue: str, file: str) -> None:
    """Add a file to an issue that is there by now: what fails is told and fails nothing else."""
    if file.startswith(("http://", "https://")):
        notice(f"not attached: {file} is an address; attachments are files of this machine")
        return
    try:
        api.upload(Path(file), issue_id=issue)
    except CliError as error:
        notice(f"not attached: {file}: {error.text}")


def _quick_create(settings: Settings) -> dict[str, Any]:
    """What marks an issue as the product of a quick-create run (spec 06 §20.3)."""
    run = settings.env.get("MULTICA_QUICK_CREATE_TASK_ID", "").strip()
    if not (settings.agent_context and run):
        return {}
    marks: dict[str, Any] = {"origin_type": "quick_create", "origin_id": run}
    attachments = settings.env.get("MULTICA_QUICK_CREATE_ATTACHMENT_IDS", "").strip()
    if attachments:
        try:
            marks["attachment_ids"] = json.loads(attachments)
        except ValueError as error:
            raise CliError("MULTICA_QUICK_CREATE_ATTACHMENT_IDS is not a JSON array") from error
    return marks


@issue.command()
@click.argument("ref", metavar="ISSUE")
@click.option("--title", help="The new title.")
@_edit_options
@output_option("json")
@click.pass_obj
def update(
    settings: Settings,
    /,
    *,
    ref: str,
    title: str | None,
    description: str | None,
    description_stdin: bool,
    description_file: str | None,
    output: str,
    **given: Any,
) -> None:
    """Change an issue; only what is given changes, an empty parent, project or date is cleared."""
    _check(given["status"], given["priority"], given["start_date"], given["due_date"])
    text = read_text("description", description, description_stdin, description_file)
    if title is None and text is None and all(value is None for value in given.values()):
        raise CliError("nothing to change: give at least one option, such as --title")
    with open_api(settings) as api:
        found = issue_id(api, ref)
        body = _body(api, title=title, description=text, **given)
        changed = api.put(f"/api/issues/{found}", body)
        if output == "json":
            print_json(changed)
            return
    notice(f"updated {changed['identifier']}")


@issue.command()
@click.argument("ref", metavar="ISSUE")
@click.option("--to", metavar="NAME", help="The member, agent or squad who gets it.")
@click.option("--to-id", metavar="ID", help="The same by full id.")
@click.option("--unassign", is_flag=True, help="Take it away from whoever has it.")
@output_option("json")
@click.pass_obj
def assign(
    settings: Settings, *, ref: str, to: str | None, to_id: str | None, unassign: bool, output: str
) -> None:
    """Give an issue to somebody; an agent starts working on it."""
    if sum((to is not None, to_id is not None, unassign)) != 1:
        raise CliError("give exactly one of --to <name>, --to-id <id> and --unassign")
    with open_api(settings) as api:
        found = issue_id(api, ref)
        nobody = {"assignee_type": None, "assignee_id": None}
        body = _assignee(api, to, to_id, "--to and --to-id") or nobody
        changed = api.put(f"/api/issues/{found}", body)
        if output == "json":
            print_json(changed)
            return
        whom = Names(api).assignee(changed) or "nobody"
    notice(f"{changed['identifier']} is assigned to {whom}")


@issue.command()
@click.argument("ref", metavar="ISSUE")
@click.argument("new_status", metavar="STATUS")
@output_option("table")
@click.pass_obj
def status(settings: Settings, ref: str, new_status: str, output: str) -> None:
    """Set an issue's status."""
    one_of(new_status, STATUSES, "status")
    with open_api(settings) as api:
        changed = api.put(f"/api/issues/{issue_id(api, ref)}", {"status": new_status})
    if output == "json":
        print_json(changed)
    else:
        notice(f"{changed['identifier']} is {changed['status']}")


@issue.command()
@click.argument("query")
@click.option("--limit", type=click.IntRange(1, 50), default=20, show_default=True)
@click.option("--include-closed", is_flag=True, help="Done and cancelled ones too.")
@output_option("table")
@click.pass_obj
def search(settings: Settings, query: str, limit: int, include_closed: bool, output: str) -> None:
    """Find issues by words in title, description and comments."""
    if not query.strip():
        raise CliError("give at least one word to search for")
    with open_api(settings) as api:
        page = api.get(
            "/api/issues/search",
            q=query,
            limit=limit,
            include_closed="true" if include_closed else None,
        )
    if output == "json":
        print_json(page)
        return
    print_table(
        ["KEY", "TITLE", "STATUS", "MATCH"],
        [
            [
                found["identifier"],
                found["title"],
                found["status"],
                found.get("matched_snippet") or found.get("match_source"),
            ]
            for found in page["issues"]
        ],
    )


@issue.command()
@click.argument("ref", metavar="ISSUE")
@click.option("--full-id", is_flag=True, help="Show full ids too.")
@output_option("table")
@click.pass_obj
def children(settings: Settings, ref: str, full_id: bool, output: str) -> None:
    """List an issue's sub-issues by stage."""
    with open_api(settings) as api:
        found = api.get(f"/api/issues/{issue_id(api, ref)}/children")["issues"]
        found.sort(key=lambda child: (child.get("stage") is None, child.get("stage") or 0))
        if output == "json":
            print_json(_by_stage(found))
            return
        names = Names(api)
        header = ["STAGE", "KEY", "TITLE", "STATUS", "PRIORITY", "ASSIGNEE"]
        rows = [
            [
                child.get("stage"),
                child["identifier"],
                child["title"],
                child["status"],
                child["priority"],
                names.assignee(child),
            ]
            for child in found
        ]
    if full_id:
        header.insert(2, "ID")
        for row, child in zip(rows, found, strict=True):
            row.insert(2, child["id"])
    print_table(header, rows)


issue.add_command(children, "subissues")


def _by_stage(issues: list[dict[str, Any]]) -> dict[str, Any]:
    stages: dict[int, list[dict[str, Any]]] = {}
    for child in issues:
        if child.get("stage") is not None:
            stages.setdefault(child["stage"], []).append(child)
    return {
        "total": len(issues),
        "stages": [
            {
                "stage": stage,
                "total": len(members),
                "done": sum(child["status"] in CLOSED for child in members),
                "issues": members,
            }
            for stage, members in stages.items()
        ],
        "unstaged": [child for child in issues if child.get("stage") is None],
    }


for _command in (comment, metadata_group, *RUN_COMMANDS):
    issue.add_command(_command)
