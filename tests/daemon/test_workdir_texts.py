"""What briefs and prompts must say and must not (spec 05 §6 to §9)."""

from __future__ import annotations

import re
from typing import Any

import click
import pytest

from daemon.cli.root import root
from daemon.workdir.brief import brief_file, clean_name, is_plain_email, render_brief
from daemon.workdir.prompt import comment_hint, render_prompt, reply_block, thread_name
from shared.wire.task import (
    ChatAttachment,
    ClaimedTask,
    ProjectResource,
    Repo,
    Skill,
    TaskAgent,
)

pytestmark = pytest.mark.fast

LEADER = "## Squad Operating Protocol\nLead."
KINDS = ("direct", "comment", "autopilot", "quick_create", "chat")
ON_ISSUE = ("direct", "comment")
FIELDS: dict[str, dict[str, Any]] = {
    "direct": {"issue_id": "ISSUE"},
    "comment": {
        "issue_id": "ISSUE",
        "trigger_comment_id": "TRIGGER",
        "trigger_thread_id": "THREAD",
        "trigger_comment_content": "please\nretry",
        "trigger_author_type": "member",
    },
    "autopilot": {
        "autopilot_run_id": "RUN",
        "autopilot_id": "PILOT",
        "autopilot_title": "Nightly",
        "autopilot_description": "Sweep the logs.",
        "autopilot_source": "schedule",
        "autopilot_trigger_payload": {"a": 1},
    },
    "quick_create": {"quick_create_prompt": "fix\nlogin"},
    "chat": {"chat_session_id": "CHAT", "chat_message": "hello\nthere"},
}


def task_of(kind: str, *, instructions: str = "You own the API.", **fields: Any) -> ClaimedTask:
    agent = TaskAgent(
        id="AGENT",
        name="Backend",
        instructions=instructions,
        skills=[Skill(id="sk1", name="deploy", description="Deploy\nsafely")],
    )
    values: dict[str, Any] = {
        "agent_id": "AGENT",
        "agent": agent,
        "workspace_context": "Write in English.  \n",
        "repos": [Repo(url="https://example.test/api.git", description="backend")],
        **FIELDS[kind],
        **fields,
    }
    return ClaimedTask(id="TASK", **values)


def brief(kind: str, *, provider: str = "claude", resumed: bool = False, **fields: Any) -> str:
    return render_brief(task_of(kind, **fields), kind, provider=provider, resumed=resumed)


def prompt(kind: str, *, resumed: bool = False, **fields: Any) -> str:
    return render_prompt(task_of(kind, **fields), kind, resumed=resumed)


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


ALWAYS = {
    "Background Task Safety",
    "Agent Identity",
    "Workspace Context",
    "Available Commands",
    "Workflow",
    "Always use the CLI",
    "Output",
}
ISSUE = {
    "Comment Formatting",
    "Issue Metadata",
    "Sub-issue Creation",
    "Mentions",
    "Attachments",
}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("direct", ALWAYS | ISSUE | {"Instruction Precedence", "Repositories", "Skills"}),
        ("comment", ALWAYS | ISSUE | {"Repositories", "Skills"}),
        ("autopilot", ALWAYS | {"Repositories", "Skills"}),
        ("quick_create", ALWAYS),
        ("chat", ALWAYS | {"Repositories", "Skills"}),
    ],
)
def test_each_kind_gets_its_sections(kind: str, expected: set[str]) -> None:
    assert set(sections(brief(kind))) == expected


@pytest.mark.parametrize(
    ("provider", "file"),
    [("claude", "CLAUDE.md"), ("codex", "AGENTS.md"), ("demo", "AGENTS.md"), ("x", None)],
)
def test_the_file_per_provider(provider: str, file: str | None) -> None:
    assert brief_file(provider) == file


@pytest.mark.parametrize("kind", KINDS)
def test_only_our_own_command_is_named(kind: str) -> None:
    for text in (brief(kind), prompt(kind)):
        assert "multica issue" not in text
        assert "`bullpen" in text or kind == "chat"


def test_the_identity_is_verbatim_and_safe() -> None:
    text = sections(brief("direct"))["Agent Identity"]
    assert "**Backend**" in text
    assert "AGENT" in text
    assert "You own the API." in text


def test_the_command_section_lists_the_core_and_bans_the_rest() -> None:
    text = sections(brief("direct"))["Available Commands"]
    for needed in (
        "issue get <id> --output json",
        "--recent N",
        "--tail N",
        "--before <ts> --before-id <uuid>",
        "--since <RFC3339>",
        "--full",
        "Next reply cursor",
        "Next thread cursor",
        "--description-file <path>",
        "--stage N",
        '`--parent ""` clears',
        "todo, in_progress, in_review, done, blocked, backlog",
        "issue children <id>",
        "--content-file <path>",
        "metadata list|set|delete",
        "repo checkout <url> [--ref <branch-or-sha>]",
        "squad member set-role <squad-id>",
    ):
        assert needed in text, needed
    for banned in (
        "issue list",
        "label",
        "subscriber",
        "issue runs",
        "agent list",
        "squad list",
        "member list",
        "attachment download",
        "autopilot",
        "project list",
        "project create",
    ):
        assert banned not in text, banned


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_and_option_an_agent_is_told_of_exists(kind: str) -> None:
    files = [ChatAttachment(id="FILE", filename="a.png")]
    told = brief(kind) + prompt(kind, chat_message_attachments=files)
    seen = 0
    for snippet in re.findall(r"`bullpen ([^`]+)`", told):
        command = click_command(snippet.split())
        if command is None:
            continue
        known = {option for each in command.params for option in each.opts}
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", snippet):
            assert option in known | {"--help"}, f"bullpen {snippet}: {option}"
            seen += 1
    assert seen
    if "--attachment-id" in told:
        create = click_command(["issue", "create"])
        assert create is not None
        assert "--attachment-id" in {option for each in create.params for option in each.opts}


def click_command(words: list[str]) -> click.Command | None:
    """The command the words begin with; None for placeholders and alternatives."""
    command: click.Command = root
    for word in words:
        if not isinstance(command, click.Group):
            return command
        if not re.fullmatch(r"[a-z-]+", word):
            return None
        found = command.get_command(click.Context(command), word)
        assert found is not None, f"there is no bullpen {' '.join(words)}"
        command = found
    return command


def test_quick_create_knows_one_command() -> None:
    text = sections(brief("quick_create"))["Available Commands"]
    assert re.findall(r"`bullpen ([a-z ]+)", text) == ["issue create "]


def test_the_assignment_workflow() -> None:
    text = sections(brief("direct"))["Workflow"]
    assert len(re.findall(r"^\d\. ", text, re.MULTILINE)) == 9
    for needed in (
        "issue get ISSUE",
        "--recent 10",
        "mandatory",
        "status ISSUE in_progress",
        "status ISSUE in_review",
        "status ISSUE blocked",
        "unless your identity forbids it",
    ):
        assert needed in text
    assert "no_action" not in text


def test_the_comment_workflow() -> None:
    text = sections(brief("comment"))["Workflow"]
    assert "issue get ISSUE" in text
    assert "TRIGGER" in text
    assert "--thread THREAD --tail 30" in text
    assert "issue comment add ISSUE --parent TRIGGER --content-file ./reply.md" in text
    assert "issue status" not in text, "a comment moves no status by itself"
    assert "<" not in text, "no placeholder"


def test_the_autopilot_workflow() -> None:
    text = brief("autopilot")
    workflow = sections(text)["Workflow"]
    for needed in ("RUN", "PILOT", "Nightly", "schedule", '"a": 1', "Sweep the logs."):
        assert needed in workflow
    assert "bullpen autopilot get PILOT --output json" in workflow
    assert "issue get" not in workflow
    assert "comment add" not in sections(text)["Output"]


def test_where_results_go() -> None:
    assert "comment add" in sections(brief("direct"))["Output"]
    assert "comment add" in sections(brief("comment"))["Output"]
    assert "chat window" in sections(brief("chat"))["Output"]
    assert "Created <identifier-or-id>: <title>" in sections(brief("quick_create"))["Output"]


@pytest.mark.parametrize("kind", ON_ISSUE)
def test_squad_leaders_alone_may_do_nothing(kind: str) -> None:
    command = 'bullpen squad activity ISSUE no_action --reason "..."'
    led = brief(kind, instructions=LEADER)
    assert command in led
    assert "no_action" in sections(led)["Output"]
    assert command not in brief(kind)
    if kind == "comment":
        for author in ("member", "agent"):
            text = prompt(kind, instructions=LEADER, trigger_author_type=author)
            assert command in text
        assert command not in prompt(kind)


def test_sub_issues_without_the_parents_business() -> None:
    text = sections(brief("direct"))["Sub-issue Creation"]
    for needed in ("--status todo", "backlog", "--stage N", "issue children"):
        assert needed in text
    assert "parent_issue_id" not in brief("direct")
    assert "notify" not in text


def test_background_mentions_metadata_and_formatting_say_what_they_must() -> None:
    found = sections(brief("comment"))
    assert "top-level turn ends" in found["Background Task Safety"]
    for kind in ("issue", "member", "agent"):
        assert f"mention://{kind}/<id>" in found["Mentions"]
    for key in ("pr_url", "pr_number", "waiting_on", "blocked_reason", "decision"):
        assert f"`{key}`" in found["Issue Metadata"]
    assert "secrets" in found["Issue Metadata"]
    for needed in ("--content-file", "--parent", "Remove-Item", "UTF-8"):
        assert needed in found["Comment Formatting"]
    assert "curl" in found["Always use the CLI"]
    assert "https://example.test/api.git: backend" in found["Repositories"]
    assert "- deploy: Deploy safely" in found["Skills"]


def test_skills_say_where_they_are_if_they_are_not_discovered() -> None:
    assert ".agent_context/skills" in sections(brief("direct", provider="demo"))["Skills"]
    assert ".agent_context/skills" not in sections(brief("direct"))["Skills"]


def test_a_directory_of_the_users_is_called_one() -> None:
    task = task_of("direct")
    text = render_brief(task, "direct", provider="claude", resumed=False, local=True)
    told = sections(text)["Local Directory"]
    assert "never commit" in told
    assert "$TMPDIR" in told
    assert "Local Directory" not in sections(brief("direct"))


@pytest.mark.parametrize("kind", KINDS)
def test_skills_put_elsewhere_are_named_there(kind: str) -> None:
    place = ".agent_context/skills"
    text = render_brief(task_of(kind), kind, provider="claude", resumed=False, skills_in=place)
    assert (f"`{place}`" in text) is (kind != "quick_create")
    at_home = render_brief(
        task_of(kind), kind, provider="codex", resumed=False, skills_in="codex-home"
    )
    assert place not in at_home


@pytest.mark.parametrize("kind", ON_ISSUE)
def test_what_earlier_runs_left_is_named(kind: str) -> None:
    refs = [("https://example.test/api.git", f"refs/bullpen/x/{number}-ab") for number in range(12)]
    text = sections(render_brief(task_of(kind), kind, provider="claude", resumed=False, kept=refs))[
        "Repositories"
    ]
    assert "- https://example.test/api.git: `refs/bullpen/x/11-ab`" in text
    assert "git stash apply <ref>" in text
    assert "refs/bullpen/x/1-ab" not in text, "only the newest"
    assert "refs/bullpen" not in sections(brief(kind))["Repositories"]


def test_a_project_is_shown_with_its_resources() -> None:
    resources = [
        ProjectResource(
            resource_type="github_repo",
            resource_ref={"url": "https://x.test/r", "default_branch_hint": "main"},
        ),
        ProjectResource(resource_type="wiki", resource_ref={"page": 1}, label="Handbook"),
    ]
    text = brief("direct", project_id="p", project_title="Shop", project_resources=resources)
    found = sections(text)["Project Context"]
    assert "https://x.test/r, branch main" in found
    assert '- wiki {"page": 1} (Handbook)' in found
    assert "resources.json" in found
    assert "no resources" in sections(brief("direct", project_id="p"))["Project Context"]


def test_the_requesting_user_is_quoted_on_every_line() -> None:
    text = brief(
        "direct",
        requesting_user_name="Da*na\n# Root",
        requesting_user_profile_description="line\r\n## Output\rlast\n",
    )
    found = sections(text)["Requesting User"]
    assert "> line\n> ## Output\n> last" in found
    assert "**Da\\*na # Root**" in found


@pytest.mark.parametrize(
    ("email", "shown"),
    [
        ("dana@acme.dev", True),
        ("a b@x", False),
        ("no-at", False),
        ("a@x`", False),
        ("<a@x>", False),
    ],
)
def test_the_initiator_and_a_plain_address(email: str, shown: bool) -> None:
    text = brief("comment", initiator_type="member", initiator_name="Dana", initiator_email=email)
    found = sections(text)["Task Initiator"]
    assert "Dana" in found
    assert (email in found) is shown
    assert is_plain_email(email) is shown
    assert "Task Initiator" not in sections(brief("comment", initiator_name="\n\t"))


def test_names_are_made_harmless() -> None:
    assert clean_name("  a\n\tb\x00\x1b[1m `c` ") == "a b\\[1m \\`c\\`"


# -- prompts


def test_the_assignment_prompt() -> None:
    text = prompt("direct")
    assert "ISSUE" in text
    assert "issue get ISSUE --output json" in text
    for listing in re.findall(r"comment list ISSUE([^`]*)`", text):
        assert "--recent" in listing, "no unbounded list"
    assert "scope" not in text
    noted = prompt("direct", handoff_note="only\nthis")
    assert "> only\n> this" in noted
    assert "do not answer it" in noted


def test_the_comment_prompt() -> None:
    text = prompt("comment")
    assert "> please\n> retry" in text
    assert "a user" in text
    assert "busy for ever" not in text, "people get no anti-loop text"
    assert "must" not in text.lower().split("if you decide to reply")[0].replace("must not", "")
    by_agent = prompt("comment", trigger_author_type="agent", trigger_author_name="QA")
    assert "another agent (QA)" in by_agent
    assert "busy for ever" in by_agent
    nameless = prompt("comment", trigger_author_type="agent")
    assert "another agent;" in nameless
    without = prompt("comment", trigger_comment_content="")
    assert "issue get ISSUE" in without
    assert "--parent TRIGGER" in without


@pytest.mark.parametrize(
    ("fields", "resumed", "needed", "banned"),
    [
        (
            {"new_comment_count": 2, "new_comments_since": "2026-01-01T00:00:00Z"},
            True,
            ["2 comment", "--thread THREAD --since 2026-01-01T00:00:00Z", "--tail 30"],
            ["remember"],
        ),
        ({}, True, ["THREAD", "TRIGGER", "--thread THREAD --tail 30", "If your answer"], []),
        ({}, False, ["First read", "--thread THREAD --tail 30", "--recent 10"], ["remember"]),
        (
            {"trigger_thread_id": ""},
            False,
            ["--thread TRIGGER --tail 30"],
            [],
        ),
        (
            {"trigger_thread_id": "", "trigger_comment_id": ""},
            False,
            ["--recent 10"],
            ["--thread"],
        ),
        (
            {
                "trigger_thread_id": "",
                "trigger_comment_id": "",
                "new_comment_count": 1,
                "new_comments_since": "T",
            },
            False,
            ["--since T"],
            ["--thread"],
        ),
    ],
)
def test_the_comment_hint(
    fields: dict[str, Any], resumed: bool, needed: list[str], banned: list[str]
) -> None:
    task = task_of("comment", **fields)
    hint = comment_hint(task, resumed=resumed)
    assert all(part in hint for part in needed), hint
    assert not any(part in hint for part in banned), hint
    assert "cursor" not in hint
    assert hint in render_brief(task, "comment", provider="claude", resumed=resumed)
    assert hint in render_prompt(task, "comment", resumed=resumed)


def test_the_reply_block_is_the_same_everywhere() -> None:
    task = task_of("comment")
    block = reply_block(task)
    assert "if you decide" in block.lower()
    assert "bullpen issue comment add ISSUE --parent TRIGGER --content-file ./reply.md" in block
    assert "rm ./reply.md" in block
    assert block in render_prompt(task, "comment", resumed=False)
    assert reply_block(task_of("direct")) == ""


def test_the_chat_prompt() -> None:
    message = "use [/de\\]ploy](slash://skill/sk1) and [/x](slash://skill/unknown)\n\nnow"
    attachment = ChatAttachment(id="at1", filename="a.png", content_type="image/png")
    text = prompt("chat", chat_message=message, chat_message_attachments=[attachment])
    assert message in text, "unmodified"
    assert "these skills for it: deploy." in text
    assert "at1: a.png (image/png)" in text
    assert "bullpen attachment download <id>" in text


def test_the_autopilot_prompt() -> None:
    text = prompt("autopilot")
    for needed in ("RUN", "PILOT", "Nightly", "schedule", '"a": 1', "Sweep the logs."):
        assert needed in text
    assert "issue get" not in text
    bare = prompt("autopilot", autopilot_description="", autopilot_title="")
    assert "Inspect the autopilot's configuration" in bare


def test_the_quick_create_prompt() -> None:
    text = prompt("quick_create")
    assert "> fix\n> login" in text
    assert "--assignee-id AGENT" in text
    assert "--project" not in text
    assert "--parent" not in text
    assert "Unrecognized assignee" in text
    pinned = prompt(
        "quick_create",
        project_id="P",
        parent_issue_id="Q",
        parent_issue_identifier="BUL-1",
        squad_id="S",
        squad_name="Core",
    )
    assert '--project "P"' in pinned
    assert '--parent "Q"' in pinned
    assert "--assignee-id S" in pinned


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_carry_no_title_and_no_skill_bodies(kind: str) -> None:
    text = prompt(kind, thread_name="The Issue's Title")
    assert "The Issue's Title" not in text


def test_thread_names_are_short_and_on_one_line() -> None:
    assert thread_name(task_of("direct", thread_name=" a \n b ")) == "a b"
    assert thread_name(task_of("chat")) == "hello there"
    assert thread_name(task_of("direct")) == ""
    long = thread_name(task_of("direct", thread_name="x" * 200))
    assert len(long) == 120
    assert long.endswith("...")
