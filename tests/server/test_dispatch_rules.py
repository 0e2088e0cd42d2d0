"""The pure part of dispatch: who is addressed, what is posted, what is tried again."""

from __future__ import annotations

from typing import Any

import pytest

from server.dispatch.enqueue import (
    SUMMARY_LENGTH,
    Mention,
    addressed,
    is_note,
    mentions_in,
    summarise,
)
from server.dispatch.lifecycle import CHANGES
from server.dispatch.register import repos_of, repos_version
from server.dispatch.verdict import decide_retry, plan_comment
from server.store.queries import FOLDER, load, parse
from server.store.tasks import Caller, relative_work_dir
from shared.failure import RETRYABLE
from shared.wire.task import ACTIVE, TERMINAL, Repo

pytestmark = pytest.mark.fast

ME = "0198f3c2-6a77-4e0a-b1a4-5d1f0f2f9c33"
OTHER = "1198f3c2-6a77-4e0a-b1a4-5d1f0f2f9c33"


def agent(agent_id: str) -> str:
    return f"[@X](mention://agent/{agent_id})"


MEMBER = f"[@Dana](mention://member/{OTHER})"
ISSUE = f"[BUL-1](mention://issue/{OTHER})"
ALL = "[@all](mention://all/all)"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("plain", []),
        (f"{agent(ME)} and {agent(ME)}", [Mention("agent", ME)]),
        (f"{agent(ME.upper())}", [Mention("agent", ME)]),
        ("[@X](mention://agent/abc)", []),
        (ALL, [Mention("all", "all")]),
        (f"{ISSUE} {MEMBER}", [Mention("issue", OTHER), Mention("member", OTHER)]),
    ],
)
def test_mentions(content: str, found: list[Mention]) -> None:
    assert mentions_in(content) == found


@pytest.mark.parametrize(
    ("content", "facts", "expected"),
    [
        ("hello", {}, [ME]),
        ("hello", {"by_member": False}, []),
        ("hello", {"assignee": None}, []),
        (f"see {ISSUE}", {}, [ME]),
        (f"{MEMBER} hello", {}, []),
        (f"{MEMBER} and {agent(ME)}", {}, [ME]),
        (ALL, {}, []),
        (f"{ALL} {agent(ME)}", {}, [ME]),
        (agent(OTHER), {}, [OTHER]),
        (agent(OTHER), {"by_member": False}, [OTHER]),
        (f"{agent(OTHER)} {agent(ME)}", {}, [ME, OTHER]),
        # a conversation between people
        ("yes", {"parent_by_member": True}, []),
        ("yes", {"parent_by_member": True, "assignee_answered": True}, [ME]),
        ("yes", {"parent_by_member": True, "parent_content": agent(ME)}, [ME]),
        (f"yes {agent(ME)}", {"parent_by_member": True}, [ME]),
        # what the parent named is passed on by members only, and only without a mention
        ("yes", {"parent_by_member": True, "parent_content": agent(OTHER)}, [OTHER]),
        (f"yes {MEMBER}", {"parent_by_member": True, "parent_content": agent(OTHER)}, []),
        (f"yes {ISSUE}", {"parent_by_member": True, "parent_content": agent(OTHER)}, []),
        (
            "yes",
            {"by_member": False, "parent_by_member": True, "parent_content": agent(OTHER)},
            [],
        ),
        ("yes", {"parent_by_member": False, "parent_content": agent(OTHER)}, [ME]),
    ],
)
def test_addressed(content: str, facts: dict[str, Any], expected: list[str]) -> None:
    assert addressed(content, **({"by_member": True, "assignee": ME} | facts)) == expected


@pytest.mark.parametrize("content", ["/note", "  /NOTE for us", "/note\nx"])
def test_notes_are_for_people(content: str) -> None:
    assert is_note(content)


@pytest.mark.parametrize("content", ["", "  ", "/notes", "a /note"])
def test_other_comments_are_not_notes(content: str) -> None:
    assert not is_note(content)


def test_summaries_are_one_short_line() -> None:
    assert summarise(" a\nb\tc \r") == "a b c"
    assert summarise("x" * SUMMARY_LENGTH) == "x" * SUMMARY_LENGTH
    assert summarise("x" * (SUMMARY_LENGTH + 1)) == "x" * SUMMARY_LENGTH + "…"


@pytest.mark.parametrize(
    ("output", "in_thread", "posted"),
    [
        ("", False, ""),
        ("  \n", False, ""),
        ("Done.", False, "Done."),
        ("Done.", True, ""),
        (" **Done** ", True, " **Done** "),
        ("完成！", True, ""),  # noqa: RUF001
        ("done it", True, "done it"),
        (r"one\ntwo\\n", False, "one\ntwo\\n"),
        ("key sk-abcdefghijklmnopqrstuvwx", False, "key [REDACTED API KEY]"),
    ],
)
def test_what_is_posted_for_a_silent_agent(output: str, in_thread: bool, posted: str) -> None:
    assert plan_comment(output, in_thread=in_thread) == posted


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"attempt": 2}, False),
        ({"autopilot_run_id": "r"}, False),
        ({"issue_id": None}, False),
        ({"issue_id": None, "chat_session_id": "c"}, True),
        ({"issue_status": "done"}, False),
        ({"issue_status": "cancelled"}, False),
        ({"agent_archived": True}, False),
    ],
)
def test_what_is_tried_again(changes: dict[str, Any], expected: bool) -> None:
    row = {
        "attempt": 1,
        "max_attempts": 2,
        "autopilot_run_id": None,
        "issue_id": "i",
        "chat_session_id": None,
        "issue_status": "in_progress",
        "agent_archived": False,
    }
    for reason in RETRYABLE:
        assert decide_retry(row | changes, reason) is expected
    assert not decide_retry(row, "agent_blocked")


def test_nothing_leaves_a_terminal_status() -> None:
    for change in CHANGES.values():
        assert change.sources <= ACTIVE
        assert not change.sources & TERMINAL


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("", ""),
        ("/home/dana/ws/W/0198f3c2/workdir", "W/0198f3c2/workdir"),
        ("C:\\Users\\dana\\code\\x", "code/x"),
        ("/Users/dana/code", "code"),
        ("/srv/data/x/", "x"),
    ],
)
def test_work_directories_name_no_user(path: str, shown: str) -> None:
    assert relative_work_dir(path, "W", ME) == shown


def test_repos_and_their_version() -> None:
    stored = [{"url": " b "}, {"url": ""}, {"url": "a", "description": "x"}, {"url": "b"}, 7]
    repos = repos_of(stored)
    assert repos == [Repo(url="b"), Repo(url="a", description="x")]
    assert repos_version(repos) == repos_version(list(reversed(repos)))
    assert repos_version([]).startswith("e3b0c442")


def test_statements_are_found_by_name() -> None:
    queries = parse("-- head\n\n-- name: one\n-- why\nselect 1;\n-- name: two\nselect '--x'\n;")
    assert queries == {"one": "select 1", "two": "select '--x'"}
    assert queries.one == "select 1"
    with pytest.raises(AttributeError):
        queries.three  # noqa: B018
    with pytest.raises(ValueError, match="twice"):
        parse("-- name: one\nselect 1;\n-- name: one\nselect 2;")


def test_every_statement_file_loads() -> None:
    files = sorted(FOLDER.glob("*.sql"))
    assert files
    for file in files:
        assert load(file.stem), file


def test_a_caller_who_is_nobody_is_refused() -> None:
    from server.errors import Foreign

    with pytest.raises(Foreign):
        _ = Caller(user_id=None, workspace_id=None).args
