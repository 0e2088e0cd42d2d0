"""`bullpen chat …`: talking with an agent in private (spec 06 §13). Ours; the reference has none."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from daemon.cli.api import Api, open_api, segment
from daemon.cli.errors import CliError
from daemon.cli.groups import Group
from daemon.cli.named import Named, given, print_json_or
from daemon.cli.output import ago, output_option, plain, print_json, print_table, shortener
from daemon.cli.refs import agent_id
from daemon.cli.settings import Settings
from daemon.cli.text import read_text, text_options

CHATS = Named(what="chat", path="/api/chat/sessions", name="title")

_LOOK_EVERY: Final = 1.0
"""Seconds between two looks for an answer."""


@click.group(cls=Group)
def chat() -> None:
    """Talk with an agent in private."""


@chat.command("list")
@click.option("--full-id", is_flag=True, help="Show full ids.")
@output_option("table")
@click.pass_obj
def list_(settings: Settings, full_id: bool, output: str) -> None:
    """List your chats, the latest first."""
    with open_api(settings) as api:
        rows = CHATS.fetch(api)
        if output == "json":
            print_json(rows)
            return
        names = {row["id"]: row["name"] for row in api.get("/api/agents", include_archived="true")}
    shown = shortener([row["id"] for row in rows], full_id)
    print_table(
        ["ID", "NEW", "AGENT", "UPDATED", "TITLE"],
        [
            [
                shown(row["id"]),
                "*" if row["has_unread"] else "",
                names.get(row["agent_id"], row["agent_id"]),
                ago(row["updated_at"]),
                row["title"],
            ]
            for row in rows
        ],
    )


@chat.command()
@click.argument("agent", metavar="AGENT")
@click.option("--title", default="", help="What it is about.")
@output_option("json")
@click.pass_obj
def new(settings: Settings, agent: str, title: str, output: str) -> None:
    """Begin a chat with an agent."""
    with open_api(settings) as api:
        made = api.post(CHATS.path, {"agent_id": agent_id(api, agent), "title": title})
    print_json_or(made, output, f"chat {made['id']} begun")


@chat.command()
@click.argument("ref", metavar="CHAT")
@click.option("--limit", type=click.IntRange(1, 100), default=50, show_default=True)
@output_option("table")
@click.pass_obj
def messages(settings: Settings, ref: str, limit: int, output: str) -> None:
    """Show what was said last, and mark it as read."""
    with open_api(settings) as api:
        url = CHATS.url(api, ref)
        page = api.get(f"{url}/messages/page", limit=limit)
        api.post(f"{url}/read", None)
    _show(page["messages"], output)


@chat.command()
@click.argument("ref", metavar="CHAT")
@text_options("content", "the message")
@click.option("--wait", is_flag=True, help="Wait for the answer and print it.")
@output_option("table")
@click.pass_obj
def send(
    settings: Settings,
    *,
    ref: str,
    content: str | None,
    content_stdin: bool,
    content_file: str | None,
    wait: bool,
    output: str,
) -> None:
    """Say something; the agent answers when its machine has a place for it."""
    text = read_text("content", content, content_stdin, content_file)
    if text is None or not text.strip():
        raise CliError("say something: --content <text>, --content-stdin or --content-file <path>")
    with open_api(settings) as api:
        url = CHATS.url(api, ref)
        sent = api.post(f"{url}/messages", {"content": text})
        if wait:
            answers = _wait(api, url, sent["message_id"])
            _show(answers, output)
            return
    print_json_or(sent, output, f"message {sent['message_id']} sent")


@chat.command()
@click.argument("ref", metavar="CHAT")
@click.option("--title", required=True)
@output_option("json")
@click.pass_obj
def rename(settings: Settings, ref: str, title: str, output: str) -> None:
    """Give a chat another title."""
    with open_api(settings) as api:
        changed = api.call("PATCH", CHATS.url(api, ref), body=given(title=title))
    print_json_or(changed, output, f"chat {changed['id']} renamed")


@chat.command()
@click.argument("ref", metavar="CHAT")
@output_option("json")
@click.pass_obj
def delete(settings: Settings, ref: str, output: str) -> None:
    """Delete a chat; what the agent does for it is cancelled."""
    with open_api(settings) as api:
        found = CHATS.find(api, ref)
        api.delete(f"{CHATS.path}/{segment(found)}")
    print_json_or({"id": found, "deleted": True}, output, f"chat {found} deleted")


def _wait(api: Api, url: str, message_id: str) -> list[dict[str, Any]]:
    """What the agent said after a message, once nothing is under way any more."""
    while api.get(f"{url}/pending-task").get("task_id"):
        time.sleep(_LOOK_EVERY)
    said = api.get(f"{url}/messages/page", limit=100)["messages"]
    api.post(f"{url}/read", None)
    ids = [message["id"] for message in said]
    # A message whose run was cancelled before it said anything is taken back.
    start = ids.index(message_id) + 1 if message_id in ids else len(ids)
    return [message for message in said[start:] if message["role"] == "assistant"]


def _show(said: list[dict[str, Any]], output: str) -> None:
    if output == "json":
        print_json(said)
        return
    for message in said:
        who = "you" if message["role"] == "user" else "agent"
        failed = f" (failed: {message['failure_reason']})" if message.get("failure_reason") else ""
        click.secho(f"{who}, {ago(message['created_at'])}{plain(failed)}", bold=True)
        click.echo(plain(message["content"], keep_lines=True) + "\n")
