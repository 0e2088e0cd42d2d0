"""`bullpen agent …` (spec 06 §10, §20.6)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from daemon.cli.api import Api, open_api
from daemon.cli.errors import CliError
from daemon.cli.groups import Group
from daemon.cli.names import Names
from daemon.cli.output import (
    notice,
    output_option,
    print_fields,
    print_json,
    print_table,
    short,
    shortener,
)
from daemon.cli.refs import agent_id, runtime_id, runtime_name
from daemon.cli.run_commands import print_runs
from daemon.cli.settings import Settings
from daemon.cli.skill_group import SKILLS
from daemon.cli.text import read_text, text_options

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@click.group(cls=Group)
def agent() -> None:
    """Work with agents."""


@agent.command("list")
@click.option("--include-archived", is_flag=True, help="Archived ones too.")
@click.option("--full-id", is_flag=True, help="Show full ids.")
@output_option("table")
@click.pass_obj
def list_(settings: Settings, include_archived: bool, full_id: bool, output: str) -> None:
    """List agents."""
    with open_api(settings) as api:
        found = api.get("/api/agents", include_archived="true" if include_archived else None)
        if output == "json":
            print_json(found)
            return
        runtimes = _runtime_names(api)
    shown = shortener([row["id"] for row in found], full_id)
    print_table(
        ["ID", "NAME", "STATUS", "RUNTIME", "ARCHIVED"],
        [
            [
                shown(row["id"]),
                row["name"],
                row["status"],
                runtimes.get(row["runtime_id"]) or short(row["runtime_id"]),
                "yes" if row.get("archived_at") else "",
            ]
            for row in found
        ],
    )


def _runtime_names(api: Api) -> dict[str, str]:
    try:
        return {row["id"]: runtime_name(row) for row in api.get("/api/runtimes")}
    except CliError:
        return {}


@agent.command()
@click.argument("ref", metavar="AGENT")
@output_option("json")
@click.pass_obj
def get(settings: Settings, ref: str, output: str) -> None:
    """Show one agent."""
    with open_api(settings) as api:
        found = api.get(f"/api/agents/{agent_id(api, ref)}")
        if output == "json":
            print_json(found)
            return
        runtime = _runtime_names(api).get(found["runtime_id"]) or found["runtime_id"]
    print_fields(
        [
            ("Name", found.get("name")),
            ("Status", found.get("status")),
            ("Runtime", runtime),
            ("Model", found.get("model")),
            ("Visibility", found.get("visibility")),
            ("Runs at once", found.get("max_concurrent_tasks")),
            ("Archived", found.get("archived_at")),
            ("Id", found.get("id")),
            ("Description", found.get("description")),
            ("Instructions", found.get("instructions")),
        ]
    )


def _edit_options(command: Decorated) -> Decorated:
    for option in (
        click.option("--max-concurrent-tasks", type=click.IntRange(1), help="Runs at once."),
        click.option("--visibility", type=click.Choice(["private", "workspace"])),
        text_options("mcp-config", "the MCP configuration (JSON)"),
        click.option("--custom-args", metavar="JSON", help="More arguments, a JSON array."),
        click.option("--thinking-level", help="How hard it thinks, in its provider's words."),
        click.option("--model", help="The model; empty is the program's own choice."),
        click.option("--runtime-config", metavar="JSON", help="Settings for the runtime."),
        text_options("instructions", "who the agent is and how it works"),
        click.option("--description", help="What it is for, in a line."),
        click.option("--runtime-id", metavar="RUNTIME", help="Where it runs: id or name."),
    ):
        command = option(command)
    return command


def _json_option(text: str, option: str, kind: type, expected: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CliError(f"{option} is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise CliError(f"{option} must be a JSON {expected}")
    return value


def _body(api: Api, given: dict[str, Any]) -> dict[str, Any]:
    """The request's keys from the options that were given; secrets are never unescaped."""
    plain = ("name", "description", "model", "thinking_level", "visibility", "status")
    body = {key: given[key] for key in plain if given.get(key) is not None}
    if given["max_concurrent_tasks"] is not None:
        body["max_concurrent_tasks"] = given["max_concurrent_tasks"]
    instructions = read_text(
        "instructions",
        given["instructions"],
        given["instructions_stdin"],
        given["instructions_file"],
    )
    if instructions is not None:
        body["instructions"] = instructions
    if given["runtime_config"] is not None:
        body["runtime_config"] = _json_option(
            given["runtime_config"], "--runtime-config", dict, "object"
        )
    if given["custom_args"] is not None:
        body["custom_args"] = _json_option(given["custom_args"], "--custom-args", list, "array")
        if not all(isinstance(word, str) for word in body["custom_args"]):
            raise CliError("--custom-args must be a JSON array of strings")
    for key, kinds, expected in (
        ("mcp_config", object, "value"),
        ("custom_env", dict, "object"),
    ):
        text = _secret(given, key)
        if text is not None:
            body[key] = _json_option(text, "--" + key.replace("_", "-"), kinds, expected)
    if given["runtime_id"] is not None:
        body["runtime_id"] = runtime_id(api, given["runtime_id"])
    return body


def _secret(given: dict[str, Any], key: str) -> str | None:
    if f"{key}_stdin" not in given:
        return None
    inline = given[key]
    others = (given[f"{key}_stdin"], given[f"{key}_file"])
    if inline is not None and not any(others):
        return str(inline)
    return read_text(key.replace("_", "-"), inline, *others)


@agent.command()
@click.option("--name", required=True, help="What it is called.")
@_edit_options
@text_options("custom-env", "secret environment variables (JSON object)")
@output_option("json")
@click.pass_obj
def create(settings: Settings, /, output: str, **given: Any) -> None:
    """Create an agent on a runtime; it is private unless --visibility says otherwise."""
    if not given["runtime_id"]:
        raise CliError("say where it runs: --runtime-id <runtime> (`bullpen runtime list`)")
    with open_api(settings) as api:
        made = api.post("/api/agents", _body(api, given))
    if output == "json":
        print_json(made)
    else:
        notice(f"agent {made['name']} created")


@agent.command()
@click.argument("ref", metavar="AGENT")
@click.option("--name", help="What it is called.")
@click.option("--status", type=click.Choice(["idle", "working", "blocked", "error", "offline"]))
@_edit_options
@output_option("json")
@click.pass_obj
def update(settings: Settings, /, ref: str, output: str, **given: Any) -> None:
    """Change an agent; only what is given changes."""
    with open_api(settings) as api:
        body = _body(api, given)
        if not body:
            raise CliError("nothing to change: give at least one option, such as --model")
        changed = api.put(f"/api/agents/{agent_id(api, ref)}", body)
    if output == "json":
        print_json(changed)
    else:
        notice(f"agent {changed['name']} updated")


@agent.command()
@click.argument("ref", metavar="AGENT")
@output_option("json")
@click.pass_obj
def archive(settings: Settings, ref: str, output: str) -> None:
    """Archive an agent; its runs are cancelled."""
    _switch(settings, ref, output, "archive", "archived")


@agent.command()
@click.argument("ref", metavar="AGENT")
@output_option("json")
@click.pass_obj
def restore(settings: Settings, ref: str, output: str) -> None:
    """Bring an archived agent back."""
    _switch(settings, ref, output, "restore", "restored")


def _switch(settings: Settings, ref: str, output: str, verb: str, done: str) -> None:
    with open_api(settings) as api:
        changed = api.post(f"/api/agents/{agent_id(api, ref)}/{verb}", None)
    if output == "json":
        print_json(changed)
    else:
        notice(f"agent {changed['name']} {done}")


@agent.command()
@click.argument("ref", metavar="AGENT")
@click.option("--full-id", is_flag=True, help="Show full ids.")
@output_option("table")
@click.pass_obj
def tasks(settings: Settings, ref: str, full_id: bool, output: str) -> None:
    """List an agent's runs, newest first."""
    with open_api(settings) as api:
        found = api.get(f"/api/agents/{agent_id(api, ref)}/tasks")
        if output == "json":
            print_json(found)
        else:
            print_runs(found, Names(api), full_id)


@agent.group()
def skills() -> None:
    """Work with what an agent was taught."""


@skills.command("list")
@click.argument("ref", metavar="AGENT")
@output_option("table")
@click.pass_obj
def list_skills(settings: Settings, ref: str, output: str) -> None:
    """List an agent's skills."""
    with open_api(settings) as api:
        found = api.get(f"/api/agents/{agent_id(api, ref)}/skills")
    SKILLS.show(found, output)


@skills.command("set")
@click.argument("ref", metavar="AGENT")
@click.option("--skill-ids", required=True, metavar="LIST", help="Ids or names; empty clears.")
@output_option("json")
@click.pass_obj
def set_skills(settings: Settings, ref: str, skill_ids: str, output: str) -> None:
    """Give an agent these skills and no others."""
    with open_api(settings) as api:
        path = f"/api/agents/{agent_id(api, ref)}/skills"
        found = api.put(path, {"skill_ids": _skills(api, skill_ids)})
    SKILLS.show(found, output)


@skills.command("add")
@click.argument("ref", metavar="AGENT")
@click.option("--skill-ids", required=True, metavar="LIST", help="Ids or names, with commas.")
@output_option("json")
@click.pass_obj
def add_skills(settings: Settings, ref: str, skill_ids: str, output: str) -> None:
    """Give an agent more skills."""
    with open_api(settings) as api:
        path = f"/api/agents/{agent_id(api, ref)}/skills/add"
        found = api.post(path, {"skill_ids": _skills(api, skill_ids)})
    SKILLS.show(found, output)


def _skills(api: Api, text: str) -> list[str]:
    return [SKILLS.find(api, part) for part in text.split(",") if part.strip()]
