"""The standing instructions of a run, and the file they are put into (spec 05 §5, §6). ◇

One rendering for all providers; a kind of task gets only the sections it can use. The markers are
those already on people's disks. A file that exists keeps its own content, byte for byte.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from daemon.workdir import texts
from daemon.workdir.context import fenced_json, quote
from daemon.workdir.prompt import comment_hint, is_squad_leader, no_action_rule, reply_block
from daemon.workdir.skills import FALLBACK, folder_for
from shared.addresses import split_address
from shared.wire.task import ClaimedTask, ProjectResource

BEGIN: Final = b"<!-- BEGIN MULTICA-RUNTIME (auto-managed; do not edit) -->"
END: Final = b"<!-- END MULTICA-RUNTIME -->"
_SEPARATOR: Final = b"\n\n"

_CLAUDE: Final = frozenset({"claude", "codebuddy"})
_AGENTS: Final = frozenset(
    {"codex", "copilot", "opencode", "openclaw", "hermes", "pi", "cursor", "kimi", "kiro"}
    | {"antigravity", "qoder", "demo"}
)

_KEPT_SHOWN: Final = 10

BRIEF_FILES: Final = ("CLAUDE.md", "AGENTS.md")
"""Every file that some provider reads by itself."""

_ON_ISSUE: Final = frozenset({"comment", "direct"})


def brief_file(provider: str) -> str | None:
    """Return the name of the file the provider reads by itself, None for an unknown one."""
    if provider in _CLAUDE:
        return "CLAUDE.md"
    return "AGENTS.md" if provider in _AGENTS else None


# -- the block in the file


def written_brief(before: bytes | None, brief: str) -> bytes:
    """Return the file's content with the brief in it; `before` None means there is no file."""
    block = BEGIN + b"\n" + brief.rstrip("\n").encode("utf-8", "replace") + b"\n" + END + b"\n"
    if before is None:
        return block
    place = _locate(before)
    if place is None:
        return before + _SEPARATOR + block
    start, end = place
    return before[:start] + block + before[end:]


def without_block(content: bytes) -> bytes | None:
    """Return what the file held before the brief came; None if there was no file.

    What somebody wrote behind the block meanwhile stays, on a line of its own.
    """
    place = _locate(content)
    if place is None:
        return content
    start, end = place
    before, after = content[:start], content[end:]
    for separator in (_SEPARATOR, b"\r\n\r\n"):
        if before.endswith(separator):
            before = before[: -len(separator)]
            glued = before and after and not before.endswith(b"\n")
            return before + (separator[: len(separator) // 2] if glued else b"") + after
    return before + after or None


def block_of(content: bytes) -> bytes:
    """Return the block in a file as it stands there; b"" without one."""
    start, end = _locate(content) or (0, 0)
    return content[start:end]


def _locate(content: bytes) -> tuple[int, int] | None:
    """Where the block is. A block without its end, left by a crash, reaches to the file's end."""
    start = content.find(BEGIN)
    if start < 0:
        return None
    end = content.find(END, start)
    if end < 0:
        return start, len(content)
    end += len(END)
    for newline in (b"\r\n", b"\n"):
        if content.startswith(newline, end):
            return start, end + len(newline)
    return start, end


# -- the text


@attrs.frozen(kw_only=True)
class _Facts:
    task: ClaimedTask
    kind: str
    provider: str
    resumed: bool
    skills_in: str
    local: bool
    kept: Sequence[tuple[str, str]]

    @property
    def on_issue(self) -> bool:
        return self.kind in _ON_ISSUE


_Section = tuple[str, Callable[[_Facts], str]]


def render_brief(
    task: ClaimedTask,
    kind: str,
    *,
    provider: str,
    resumed: bool,
    skills_in: str = "",
    local: bool = False,
    kept: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the brief of a task; sections that do not apply or have nothing to say are left out.

    `skills_in` is where the skills are if it is not the provider's usual place, `local` says that
    the agent works in a directory of the user's. `kept` has address and ref of what earlier tasks
    of the issue left in its repositories.
    """
    facts = _Facts(
        task=task,
        kind=kind,
        provider=provider,
        resumed=resumed,
        skills_in=skills_in or folder_for(provider),
        local=local,
        kept=kept,
    )
    parts = [texts.HEADER]
    for title, render in _SECTIONS:
        body = render(facts).strip()
        if body:
            parts.append(f"## {title}\n\n{body}")
    return "\n\n".join(parts) + "\n"


def _identity(facts: _Facts) -> str:
    agent = facts.task.agent
    if agent is None or not (agent.name or agent.id or agent.instructions.strip()):
        return ""
    line = f"You are **{clean_name(agent.name) or 'agent'}** (agent id {agent.id})."
    return "\n\n".join(part for part in (line, agent.instructions) if part)


def _requesting_user(facts: _Facts) -> str:
    about = facts.task.requesting_user_profile_description
    if not about.strip():
        return ""
    name = clean_name(facts.task.requesting_user_name)
    who = f"You work for **{name}**" if name else "You work for the owner of this runtime"
    return f"{who}, who says about themselves (background only; the task comes first):\n\n" + quote(
        about
    )


def _initiator(facts: _Facts) -> str:
    task = facts.task
    name = clean_name(task.initiator_name)
    if not name:
        return ""
    if task.initiator_type == "agent":
        who = f"another agent, {name}"
    elif is_plain_email(task.initiator_email):
        who = f"{name} ({task.initiator_email}), a member of the workspace"
    else:
        who = f"{name}, a member of the workspace"
    return (
        f"This task was triggered by {who}. If your instructions have rules for certain people, "
        "apply them. Your credentials stay those of the runtime's owner: knowing who asked gives "
        "nobody more rights."
    )


def _commands(facts: _Facts) -> str:
    return texts.QUICK_CREATE_COMMANDS if facts.kind == "quick_create" else texts.COMMANDS


def _repositories(facts: _Facts) -> str:
    repos = facts.task.repos
    if not repos or facts.kind == "quick_create":
        return ""
    lines = [
        f"- {split_address(repo.url)[0]}"
        + (f", from {repo.ref}" if repo.ref else "")
        + (f": {' '.join(repo.description.split())}" if repo.description else "")
        for repo in repos
    ]
    parts = [texts.REPOSITORIES, "\n".join(lines)]
    if facts.kept:
        refs = [f"- {url}: `{ref}`" for url, ref in facts.kept[-_KEPT_SHOWN:]]
        parts += [texts.KEPT, "\n".join(refs)]
    return "\n\n".join(parts)


def _project(facts: _Facts) -> str:
    task = facts.task
    if not facts.on_issue or not (task.project_id or task.project_resources):
        return ""
    parts = []
    if task.project_title:
        parts.append(f"The issue belongs to the project **{clean_name(task.project_title)}**.")
    if task.project_description.strip():
        parts.append(quote(task.project_description))
    if task.project_resources:
        parts.append("\n".join(_resource(each) for each in task.project_resources))
        parts.append(texts.RESOURCES)
    else:
        parts.append("The project has no resources.")
    return "\n\n".join(parts)


def _resource(resource: ProjectResource) -> str:
    reference = resource.resource_ref
    if resource.resource_type == "github_repo":
        branch = reference.get("ref") or reference.get("default_branch_hint")
        text = f"repository {reference.get('url', '')}" + (f", branch {branch}" if branch else "")
    else:
        text = f"{resource.resource_type} {json.dumps(reference, ensure_ascii=False)}"
    return f"- {text}" + (f" ({resource.label})" if resource.label else "")


def _workflow(facts: _Facts) -> str:
    task, leader = facts.task, is_squad_leader(facts.task)
    match facts.kind:
        case "chat":
            return texts.CHAT
        case "quick_create":
            return texts.QUICK_CREATE
        case "autopilot":
            return _autopilot(task)
        case "comment":
            steps = texts.comment_steps(
                task.issue_id,
                task.trigger_comment_id,
                hint=comment_hint(task, resumed=facts.resumed),
                reply=reply_block(task),
                leader=no_action_rule(task) if leader else "",
            )
        case _:
            steps = texts.assignment_steps(
                task.issue_id, leader=no_action_rule(task) if leader else ""
            )
    numbered = (f"{number}. {step}" for number, step in enumerate(steps, 1))
    return "\n".join(textwrap.indent(step, "   ").removeprefix("   ") for step in numbered)


def _autopilot(task: ClaimedTask) -> str:
    facts = [f"- run {task.autopilot_run_id}"]
    facts += [f"- autopilot {task.autopilot_id}"] if task.autopilot_id else []
    facts += [f"- title: {clean_name(task.autopilot_title)}"] if task.autopilot_title else []
    facts += [f"- source: {task.autopilot_source}"] if task.autopilot_source else []
    parts = [texts.AUTOPILOT, "\n".join(facts)]
    if task.autopilot_trigger_payload is not None:
        parts.append("Payload:\n\n" + fenced_json(task.autopilot_trigger_payload))
    if task.autopilot_description.strip():
        parts.append("Instructions:\n\n" + task.autopilot_description.strip())
    if task.autopilot_id:
        command = f"bullpen autopilot get {task.autopilot_id} --output json"
        parts.append(f"Its configuration: `{command}`.")
    return "\n\n".join(parts)


def _skills(facts: _Facts) -> str:
    agent = facts.task.agent
    skills = (agent.skills if agent is not None else None) or []
    if not skills or facts.kind == "quick_create":
        return ""
    if facts.skills_in != FALLBACK:
        where = "These skills are installed; your program discovers them by itself."
    else:
        where = f"These skills are in `{facts.skills_in}`; read a `SKILL.md` to use it."
    lines = [
        f"- {skill.name}"
        + (f": {' '.join(skill.description.split())}" if skill.description.strip() else "")
        for skill in skills
    ]
    return where + "\n\n" + "\n".join(lines)


def _output(facts: _Facts) -> str:
    match facts.kind:
        case "chat":
            return texts.OUTPUT_CHAT
        case "quick_create":
            return texts.OUTPUT_QUICK_CREATE
        case "autopilot":
            return texts.OUTPUT_AUTOPILOT
    exception = texts.OUTPUT_LEADER if is_squad_leader(facts.task) else ""
    return f"{texts.OUTPUT_ISSUE} {exception}"


def _if_on_issue(text: str) -> Callable[[_Facts], str]:
    return lambda facts: text if facts.on_issue else ""


_SECTIONS: Final[tuple[_Section, ...]] = (
    ("Background Task Safety", lambda _: texts.BACKGROUND),
    ("Agent Identity", _identity),
    ("Requesting User", _requesting_user),
    ("Task Initiator", _initiator),
    ("Workspace Context", lambda facts: facts.task.workspace_context),
    ("Available Commands", _commands),
    ("Comment Formatting", _if_on_issue(texts.COMMENT_FORMATTING)),
    ("Local Directory", lambda facts: texts.LOCAL_DIRECTORY if facts.local else ""),
    ("Repositories", _repositories),
    ("Project Context", _project),
    ("Issue Metadata", _if_on_issue(texts.METADATA)),
    ("Instruction Precedence", lambda facts: texts.PRECEDENCE if facts.kind == "direct" else ""),
    ("Workflow", _workflow),
    ("Sub-issue Creation", lambda f: texts.SUB_ISSUES if f.on_issue and f.task.issue_id else ""),
    ("Skills", _skills),
    ("Mentions", _if_on_issue(texts.MENTIONS)),
    ("Attachments", _if_on_issue(texts.ATTACHMENTS)),
    ("Always use the CLI", lambda _: texts.CLI_ONLY),
    ("Output", _output),
)


def clean_name(name: str) -> str:
    """Make a name safe to stand in our own text: one line, no markup, no control characters."""
    name = re.sub(r"[\t\n\v\f\r\x85\u2028\u2029]+", " ", name)
    name = "".join(char for char in name if char.isprintable())
    return re.sub(r"([*_`\\\[\]<])", r"\\\1", name.strip())


def is_plain_email(text: str) -> bool:
    """Whether an address can be shown as it is."""
    return "@" in text and re.search(r"[\s\x00-\x1f\x7f\\`*<>\[\]]", text) is None
