"""What an agent is told for one turn (spec 05 §7 to §9). ◇

The standing rules are in the brief; this names the task at hand. Text that somebody wrote is
quoted line by line, so that it cannot pass for ours. The comment hint and the reply block are also
part of the brief and come from here, so that the two never disagree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from daemon.workdir.context import fenced_json, quote
from shared.wire.task import ClaimedTask

SQUAD_MARKER: Final = "## Squad Operating Protocol"
"""Stands in the instructions of an agent that leads a squad."""

THREAD_NAME_LIMIT: Final = 120

ROLE: Final = (
    "You are a coding agent working in Bullpen, where people and agents share a board of issues."
)

_SKILL_LINK = re.compile(r"\[/(?:\\.|[^\]\\])*\]\(slash://skill/([^)\s]+)\)")


def is_squad_leader(task: ClaimedTask) -> bool:
    return task.agent is not None and SQUAD_MARKER in task.agent.instructions


def render_prompt(task: ClaimedTask, kind: str, *, resumed: bool) -> str:
    """Return the prompt for a task; `resumed` says that the agent remembers its last session."""
    match kind:
        case "chat":
            parts = _chat(task)
        case "comment":
            parts = _comment(task, resumed=resumed)
        case "autopilot":
            parts = _autopilot(task)
        case "quick_create":
            parts = _quick_create(task)
        case _:
            parts = _assignment(task)
    return "\n\n".join([ROLE, *parts]) + "\n"


def thread_name(task: ClaimedTask) -> str:
    """Return a one-line name for the agent's session, at most 120 characters (spec 03 §14)."""
    candidates = (
        task.thread_name,
        task.autopilot_title,
        task.quick_create_prompt,
        task.chat_message,
        task.trigger_comment_content,
    )
    name = next((" ".join(text.split()) for text in candidates if text.strip()), "")
    return name if len(name) <= THREAD_NAME_LIMIT else name[: THREAD_NAME_LIMIT - 3] + "..."


def comment_hint(task: ClaimedTask, *, resumed: bool) -> str:
    """Say which comments to read first (spec 05 §7)."""
    issue = task.issue_id
    thread = task.trigger_thread_id or task.trigger_comment_id
    listing = f"bullpen issue comment list {issue}"
    recent = f"`{listing} --recent 10 --output json`"
    if task.new_comment_count > 0 and task.new_comments_since:
        since = task.new_comments_since
        begin = (
            f"{task.new_comment_count} comment(s) were written on this issue since your last run. "
            "Do not read them all. "
        )
        if not thread:
            return begin + f"Read `{listing} --since {since} --output json`."
        return begin + (
            f"First read `{listing} --thread {thread} --since {since} --output json` "
            "(or the same with `--tail 30` instead of `--since` for the whole thread). "
            f"Read `{listing} --since {since} --output json` only if you need the rest."
        )
    if not thread:
        return f"Read {recent}."
    thread_read = f"`{listing} --thread {thread} --tail 30 --output json`"
    if resumed:
        return (
            "You remember your last session and the triggering comment is given to you; nothing "
            f"else is new. The thread is {thread}, the triggering comment "
            f"{task.trigger_comment_id}. "
            f"If your answer depends on the thread, first read {thread_read}."
        )
    return f"First read {thread_read}; for background from other threads {recent}."


def reply_block(task: ClaimedTask) -> str:
    """Say how to answer the triggering comment, if at all; "" without one (spec 05 §8)."""
    if not task.trigger_comment_id:
        return ""
    command = (
        f"bullpen issue comment add {task.issue_id} --parent {task.trigger_comment_id} "
        "--content-file ./reply.md"
    )
    return (
        "If you decide to reply: write the reply to a UTF-8 file `./reply.md` with your file tool, "
        "then run\n\n"
        f"    {command}\n"
        "    rm ./reply.md\n\n"
        "Always use exactly this `--parent`, never one from an earlier turn. Write real line "
        "breaks in the file, no `\\n` escapes."
    )


def no_action_rule(task: ClaimedTask) -> str:
    """The squad leader's way to end a turn in which nothing is to be done."""
    command = f'bullpen squad activity {task.issue_id} no_action --reason "..."'
    return (
        f"As leader of a squad: if nothing is to be done, run `{command}` and stop without any "
        "comment."
    )


def _assignment(task: ClaimedTask) -> list[str]:
    listing = f"bullpen issue comment list {task.issue_id}"
    parts = [f"The issue with the id {task.issue_id} is assigned to you."]
    if task.handoff_note:
        parts += [
            "Whoever assigned it set this scope. It is not a comment; do not answer it:",
            quote(task.handoff_note),
        ]
    parts += [
        f"Start with `bullpen issue get {task.issue_id} --output json`.",
        (
            "Then read the history, as the workflow in your instructions demands: "
            f"`{listing} --recent 10 --output json`. For older threads use the cursor it prints "
            "with `--before <ts> --before-id <uuid>`. Settled threads are folded; `--full` opens "
            "them. `--since <RFC3339>` reads what is new since a time."
        ),
        "Do the work, and report it as the workflow says.",
    ]
    return parts


def _comment(task: ClaimedTask, *, resumed: bool) -> list[str]:
    by_agent = task.trigger_author_type == "agent"
    author = "a user"
    if by_agent:
        name = " ".join(task.trigger_author_name.split())
        author = f"another agent ({name})" if name else "another agent"
    parts = [f"There is a new comment on the issue with the id {task.issue_id}."]
    if task.trigger_comment_content.strip():
        parts += [
            f"The comment, by {author}; this is the one to deal with now:",
            quote(task.trigger_comment_content),
        ]
    if by_agent:
        parts.append(
            "It comes from an agent. Two agents can keep each other busy for ever, so reply only "
            "if you did real work or have something it needs. Do not post that no reply is needed "
            "and do not mention it to say goodbye; silence is the better answer."
        )
    if is_squad_leader(task):
        parts.append(no_action_rule(task))
    parts += [
        f"Start with `bullpen issue get {task.issue_id} --output json`.",
        comment_hint(task, resumed=resumed),
        reply_block(task),
    ]
    return [part for part in parts if part]


def _chat(task: ClaimedTask) -> list[str]:
    parts = ["A person talks to you in a chat window. Answer their message."]
    chosen = _chosen_skills(task)
    if chosen:
        parts.append("They chose these skills for it: " + ", ".join(chosen) + ".")
    parts += ["Their message:", task.chat_message]
    if task.chat_message_attachments:
        lines = [
            f"- {each.id}: {each.filename}"
            + (f" ({each.content_type})" if each.content_type else "")
            for each in task.chat_message_attachments
        ]
        parts += [
            "Attachments:\n" + "\n".join(lines),
            (
                "Fetch one with `bullpen attachment download <id>`. To pass one on to an issue use "
                "`--attachment-id <id>` with `bullpen issue create`."
            ),
        ]
    return parts


def _chosen_skills(task: ClaimedTask) -> list[str]:
    """The canonical names of skills linked in the message, matched by id."""
    agent = task.agent
    if agent is None:
        return []
    known: Sequence[tuple[str, str]] = [
        *((skill.id, skill.name) for skill in agent.skills or []),
        *((ref.id, ref.name) for ref in agent.skill_refs or []),
    ]
    names = dict(known)
    linked = dict.fromkeys(_SKILL_LINK.findall(task.chat_message))
    return [names[each] for each in linked if each in names]


def _autopilot(task: ClaimedTask) -> list[str]:
    facts = [f"Run: {task.autopilot_run_id}"]
    facts += [f"Autopilot: {task.autopilot_id}"] if task.autopilot_id else []
    facts += [f"Title: {task.autopilot_title}"] if task.autopilot_title else []
    facts += [f"Source: {task.autopilot_source}"] if task.autopilot_source else []
    parts = ["This is a run of an autopilot. There is no issue.", "\n".join(facts)]
    if task.autopilot_trigger_payload is not None:
        parts.append("Payload:\n\n" + fenced_json(task.autopilot_trigger_payload))
    instructions = (
        task.autopilot_description.strip()
        or task.autopilot_title.strip()
        or "Inspect the autopilot's configuration to learn what it is for."
    )
    parts.append("Instructions:\n\n" + instructions)
    if task.autopilot_id:
        command = f"bullpen autopilot get {task.autopilot_id} --output json"
        parts.append(f"Its configuration: `{command}`.")
    return parts


def _quick_create(task: ClaimedTask) -> list[str]:
    return [
        "Turn the request below into one issue, with one `bullpen issue create` command.",
        quote(task.quick_create_prompt),
        "\n".join(_quick_create_rules(task)),
    ]


def _quick_create_rules(task: ClaimedTask) -> list[str]:
    agent = task.agent
    if task.squad_id:
        nobody = f"use `--assignee-id {task.squad_id}` (the squad {task.squad_name})"
    elif task.agent_id:
        nobody = f"use `--assignee-id {task.agent_id}` (yourself)"
    else:
        nobody = f"use `--assignee {agent.name if agent is not None else 'yourself'}`"
    rules = [
        "Rules for the fields:",
        "- title: required and concise; facts you looked up may make it clearer.",
        (
            "- description: first restate the request faithfully, with every identifier, path and "
            "piece of code as written. Leave out only words that route the request or are fillers, "
            "in any language (for example 请, 帮我, 麻烦); keep what you are unsure of. Keep mention "
            "links in a last line `CC: ...`, because they subscribe people. Then, only if you "
            "really fetched it, add a section with context. Invent no requirement, do not shorten "
            "to vagueness, do not repeat the title, do not write about what you could not fetch."
        ),
        "- priority: P0, P1, asap and the like decide it; otherwise leave it out.",
        (
            "- assignee: if somebody is named, look them up with `bullpen workspace member list`, "
            "`bullpen agent list` and `bullpen squad list` (each with `--output json`) and use "
            "`--assignee-id`. A bare @name (also with the full-width ＠) that routes the request "  # noqa: RUF001
            "counts as a name; for a squad use the squad's id. If it is ambiguous, set no assignee "
            "and end the description with `Unrecognized assignee: <name>`. If nobody is named, "
            f"{nobody}; never leave it unassigned."
        ),
    ]
    if task.project_id:
        rules.append(f'- project: `--project "{task.project_id}"`; this is settled.')
    if task.parent_issue_id:
        label = (
            f" (the issue {task.parent_issue_identifier})" if task.parent_issue_identifier else ""
        )
        rules.append(f'- parent: `--parent "{task.parent_issue_id}"`{label}; this is settled.')
    rules += [
        "- status: leave it out. Attach no files; keep image links in the text.",
        (
            "Run the command exactly once, with `--output json`. If it fails, do not try again: a "
            "second try can make a second issue; print the error and nothing else. If it works, "
            "read `identifier` (or else `id`) from the JSON and print one line: "
            "`Created <identifier-or-id>: <title>`. Do not read the issue again and do not comment."
        ),
    ]
    return rules
