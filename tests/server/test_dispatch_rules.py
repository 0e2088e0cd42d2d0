"""The pure part of dispatch: who is addressed, what is posted, what is tried again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from server.dispatch.answer import plan_comment
from server.dispatch.lifecycle import CHANGES
from server.dispatch.loops import Limits, judge
from server.dispatch.register import repos_of, repos_version
from server.dispatch.rules import (
    SUMMARY_LENGTH,
    Candidate,
    IssueFacts,
    Remark,
    Target,
    assigned,
    child_closed,
    commented,
    is_note,
    released,
    summarise,
    targets,
)
from server.dispatch.verdict import Failure, decide_retry, resume_at
from server.markdown import LIMIT, Mention, as_text, mention, mentions_in
from server.store.queries import FOLDER, load, parse
from server.store.tasks import Caller, relative_work_dir
from shared.failure import CAPACITY, QUOTA, RETRYABLE, classify
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
        (f"> - *{agent(ME)}*", [Mention("agent", ME)]),
        (f"| a |\n|---|\n| {agent(ME)} |", [Mention("agent", ME)]),
        (f"[@A [b]](mention://agent/{ME})", [Mention("agent", ME)]),
        (f"<mention://agent/{ME}>", [Mention("agent", ME)]),
        (f"[x][1]\n\n[1]: mention://agent/{ME}", [Mention("agent", ME)]),
        (f"```\ncode\n```\n{agent(ME)} now you", [Mention("agent", ME)]),
        (f"text <!-- {agent(ME)}", [Mention("agent", ME)]),
        (f"The syntax is:\n\n```markdown\n{agent(ME)} do it\n```", []),
        (f"write `{agent(ME)}` to mention", []),
        (f"~~~~\n{agent(ME)}\n~~~~", []),
        (f"```\n{agent(ME)} unclosed", []),
        (f"> ```\n> {agent(ME)}\n> ```", []),
        (f"para\n\n    {agent(ME)}\n\nafter", []),
        (f"<!-- {agent(ME)} -->", []),
        (f"<!--\n\n{agent(ME)}\n", []),
        (f"text <!-- {agent(ME)} --> after", []),
        (f"- a\n  <!--\n  {agent(ME)}\n  -->", []),
        (f"\\{agent(ME)}", []),
        ("x " * LIMIT + agent(ME), []),
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
def test_whom_a_comment_addresses(content: str, facts: dict[str, Any], expected: list[str]) -> None:
    assignee = facts.pop("assignee", ME)
    issue = issue_of("agent", assignee)
    remark = Remark(content=content, **({"by_member": True} | facts))
    found = [Candidate(target=t, agent_id=t.id) for t in targets(issue, remark)]
    assert [choice.agent_id for choice in commented(issue, remark, found)] == expected
    assert not commented(issue, remark, found, suppressed=[ME, OTHER])


@pytest.mark.parametrize("name", ["Ada", "a]b", "[a", "\\", "`x`", "<!-- x -->", "a](mention://b)"])
def test_a_mention_is_one_whatever_the_name(name: str) -> None:
    assert mentions_in(f"hi {mention('agent', ME, name)}!") == [Mention("agent", ME)]
    assert mentions_in(f"“{as_text(agent(ME))}” `{as_text(f'<mention://agent/{ME}>')}") == []


def issue_of(kind: str, assignee: str | None, status: str = "todo") -> IssueFacts:
    return IssueFacts(
        id="i",
        workspace_id="w",
        status=status,
        assignee_type=None if assignee is None else kind,
        assignee_id=assignee,
    )


SQUAD = "2198f3c2-6a77-4e0a-b1a4-5d1f0f2f9c33"
TEAM = f"[@Team](mention://squad/{SQUAD})"


def leader(**facts: Any) -> Candidate:
    return Candidate(target=Target("squad", SQUAD), **({"agent_id": ME} | facts))


@pytest.mark.parametrize(
    ("content", "facts", "candidate", "starts"),
    [
        ("hello", {}, {}, True),
        (f"see {ISSUE}", {}, {}, True),
        (f"{MEMBER} hello", {}, {}, False),
        (ALL, {}, {}, False),
        # agents report to the leader, and the leader does not report to itself
        ("done", {"by_member": False, "author_id": OTHER}, {}, True),
        ("done", {"by_member": False, "author_id": ME}, {"led_last": True}, False),
        ("done", {"by_member": False, "author_id": ME}, {}, True),
        (f"{MEMBER} look", {"by_member": False, "author_id": OTHER}, {}, True),
        (TEAM, {"by_member": False, "author_id": ME}, {"led_last": True}, False),
        (TEAM, {"by_member": True}, {}, True),
        ("hello", {}, {"pending": True}, False),
        ("hello", {}, {"archived": True}, False),
        ("hello", {}, {"open": False}, False),
        ("hello", {}, {"online": False}, True),
    ],
)
def test_when_a_squads_leader_starts(
    content: str, facts: dict[str, Any], candidate: dict[str, Any], starts: bool
) -> None:
    remark = Remark(content=content, **({"by_member": True} | facts))
    chosen = commented(issue_of("squad", SQUAD), remark, [leader(**candidate)])
    assert [(choice.agent_id, choice.leads) for choice in chosen] == [(ME, True)] * starts


def test_an_agent_is_set_to_work_once() -> None:
    remark = Remark(content=f"{agent(ME)} {TEAM}", by_member=True)
    found = [Candidate(target=Target("agent", ME), agent_id=ME), leader()]
    chosen = commented(issue_of("agent", ME), remark, found)
    assert [(c.agent_id, c.source, c.leads) for c in chosen] == [(ME, "issue_assignee", False)]
    chosen = commented(issue_of("member", OTHER), remark, found)
    assert [(c.agent_id, c.source, c.leads) for c in chosen] == [(ME, "mention_agent", False)]


def test_who_starts_with_an_assignment() -> None:
    mine = Candidate(target=Target("agent", ME), agent_id=ME, online=False, pending=True)
    assert assigned(issue_of("agent", ME), mine)
    assert not assigned(issue_of("agent", ME, "backlog"), mine)
    assert not assigned(issue_of("agent", ME), None)
    assert assigned(issue_of("squad", SQUAD), leader())
    # A leader must be there now.
    assert not assigned(issue_of("squad", SQUAD), leader(online=False))
    assert not assigned(issue_of("squad", SQUAD), leader(pending=True))
    assert not assigned(issue_of("squad", SQUAD), leader(open=False))


def test_who_starts_when_the_backlog_is_left() -> None:
    mine = Candidate(target=Target("agent", ME), agent_id=ME, online=False)
    assert released(issue_of("agent", ME, "in_review"), "backlog", mine)
    for status in ("backlog", "done", "cancelled"):
        assert not released(issue_of("agent", ME, status), "backlog", mine)
    assert not released(issue_of("agent", ME), "todo", mine)
    assert not released(
        issue_of("agent", ME),
        "backlog",
        Candidate(target=Target("agent", ME), agent_id=ME, pending=True),
    )


def test_who_goes_on_when_a_child_is_finished() -> None:
    child = issue_of("agent", OTHER, "done")
    mine = Candidate(target=Target("agent", ME), agent_id=ME)
    assert child_closed(issue_of("agent", ME), child, mine, OTHER)
    assert child_closed(issue_of("agent", ME), issue_of("agent", ME, "done"), mine, ME)
    assert child_closed(issue_of("squad", SQUAD), child, leader(), OTHER)
    # A squad is not told of what it did itself.
    assert not child_closed(issue_of("squad", SQUAD), child, leader(), ME)
    assert not child_closed(
        issue_of("squad", SQUAD), issue_of("squad", SQUAD, "done"), leader(), OTHER
    )
    assert not child_closed(issue_of("squad", SQUAD), child, leader(open=False), OTHER)


@pytest.mark.parametrize(
    ("caused", "more", "refused", "pausing"),
    [
        ({}, 1, False, False),
        ({"on_issue": 19}, 1, False, False),
        ({"on_issue": 19}, 2, True, True),
        ({"on_issue": 20}, 1, True, True),
        ({"by_agent": 59}, 1, False, False),
        ({"by_agent": 60}, 1, True, True),
        ({"depth": 24}, 1, False, False),
        ({"depth": 25}, 1, True, True),
        ({"paused": True}, 1, True, False),
    ],
)
def test_how_far_agents_may_go(
    caused: dict[str, Any], more: int, refused: bool, pausing: bool
) -> None:
    facts = {"paused": False, "depth": 1, "on_issue": 0, "by_agent": 0} | caused
    leave = judge(facts, more, Limits())
    assert (bool(leave.refused), leave.pausing) == (refused, pausing)
    assert leave.depth == (0 if refused else facts["depth"])


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
        (r"one\ntwo" + "\n", False, "one\ntwo\n"),
        (r"one\n\n- run `printf 'a\nb'`\tthen", False, "one\n\n- run `printf 'a\\nb'`\tthen"),
        (r"see ``a`\n`` and\nmore", False, "see ``a`\\n`` and\nmore"),
        (r"Saved to C:\reports\new\table.txt", False, r"Saved to C:\reports\new\table.txt"),
        (r"on \\host\new\table and\nmore", False, "on \\\\host\\new\\table and\nmore"),
        (r"matches ^\s+\t\r?\n$", False, r"matches ^\s+\t\r?\n$"),
        (r"it is $\theta \nabla$", False, r"it is $\theta \nabla$"),
        (r"costs $5\nnot $6", False, "costs $5\nnot $6"),
        ("two\nlines, with C:\\new and \\n", False, "two\nlines, with C:\\new and \\n"),
        ('```c\nprintf("a\\n");\n```', False, '```c\nprintf("a\\n");\n```'),
        ("ends with \\", False, "ends with \\"),
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


def test_how_long_a_quota_is_waited_for() -> None:
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

    def wait(text: str, attempt: int = 1, reason: str = QUOTA) -> float | None:
        found = resume_at(Failure(error=text, reason=reason), now, attempt=attempt)
        return None if found is None else (found - now).total_seconds()

    # What gemini says, word for word.
    gemini = (
        "You exceeded your current quota, please check your plan and billing details.\n"
        "Suggested retry after 1s.."
    )
    assert classify(gemini) == QUOTA
    assert [wait(gemini, attempt) for attempt in (1, 2, 3, 9)] == [60, 240, 960, 6 * 3600]
    assert wait("usage limit, try again in 8 hours", 9) == 8 * 3600 + 30
    assert wait("Quota exceeded. Check your plan and billing details.") is None
    assert wait("overloaded, try again in 5 minutes", reason=CAPACITY) is None


@pytest.mark.parametrize(
    ("resets_at", "hours"),
    [
        ("2026-11-21T15:00:00Z", 3),
        ("2026-11-21T16:00:00+01:00", 3),
        ("", 8),
        ("soon", 8),
        ("2099-01-01T00:00:00Z", 8),
    ],
)
def test_the_moment_a_daemon_names_comes_before_the_words(resets_at: str, hours: int) -> None:
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    why = Failure(error="usage limit, try again in 8 hours", reason=QUOTA, resets_at=resets_at)
    found = resume_at(why, now)
    assert found is not None
    assert (found - now).total_seconds() // 3600 == hours


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
