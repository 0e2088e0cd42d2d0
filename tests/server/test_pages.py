"""The pages' pure parts: markdown that is safe, and runs, failures and times in words."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match, Route

from server.markdown import LIMIT, mentions_in
from server.store.pages import ActiveRun, BoardIssue, RunNote
from server.web.pages import agents, board, failures, issue, login, markdown, routes, view
from shared import failure
from shared.times import stamp
from shared.wire.runtime import Runtime
from shared.wire.task import Task
from shared.wire.team import Agent, Member
from shared.wire.work import Comment

pytestmark = pytest.mark.fast

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


def render(text: str) -> str:
    return str(markdown.render(text, "acme", "ABC"))


# --- markdown -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("<b>x</b>", "<p>&lt;b&gt;x&lt;/b&gt;</p>\n"),
        ("**b** ~~s~~", "<p><strong>b</strong> <s>s</s></p>\n"),
        ("one\ntwo", "<p>one<br />\ntwo</p>\n"),
        ("```py\n<x>\n```", "<pre><code>&lt;x&gt;\n</code></pre>\n"),
        ("[x](/acme/agents)", '<p><a href="/acme/agents">x</a></p>\n'),
    ],
)
def test_markdown_is_rendered(text: str, html: str) -> None:
    assert render(text) == html


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "[x](data:text/html,hi)",
        "[x](vbscript:x)",
        "[x](file:///etc/passwd)",
        "[x](//elsewhere.example)",
        "<javascript:alert(1)>",
    ],
)
def test_other_protocols_are_no_links(text: str) -> None:
    assert "<a" not in render(text)


def test_links_that_lead_away_say_so() -> None:
    html = render("[x](https://e.example/a) ![p](https://e.example/p.png)")
    assert "<img" not in html
    assert html.count('rel="noopener nofollow" target="_blank"') == 2
    assert ">p</a>" in html


@pytest.mark.parametrize(
    ("text", "target", "label"),
    [
        ("see https://e.example/a.", "https://e.example/a", "https://e.example/a"),
        ("(https://e.example/a_(b))", "https://e.example/a_(b)", "https://e.example/a_(b)"),
        ("fixes ABC-12!", "/acme/issues/ABC-12", "ABC-12"),
        ("[@ABC-1](mention://issue/0f0f)", "/acme/issues/0f0f", "@ABC-1"),
    ],
)
def test_bare_addresses_and_identifiers_become_links(text: str, target: str, label: str) -> None:
    assert re.findall(r'<a href="([^"]*)"[^>]*>([^<]*)</a>', render(text)) == [(target, label)]


@pytest.mark.parametrize("text", ["XYZ-12", "ABC-12-x", "`ABC-12`", "xABC-1", "a/ABC-1"])
def test_what_only_resembles_an_identifier_stays_text(text: str) -> None:
    assert "<a" not in render(text)


def test_a_mention_is_marked_and_leads_nowhere() -> None:
    assert render("[@Ada](mention://agent/0f)") == '<p><span class="mention">@Ada</span></p>\n'


def test_a_huge_text_is_shown_as_it_is() -> None:
    html = render("**" + "x" * LIMIT + "**")
    assert html.endswith('<pre class="raw">xx**</pre>')


CALL = f"[@Ada](mention://agent/{'0f' * 4}-0000-4000-8000-{'0f' * 6})"


@given(
    st.lists(
        st.sampled_from(
            [
                CALL,
                "```",
                "~~~",
                "`",
                "``",
                "    ",
                "\n",
                "\n\n",
                "<!--",
                "-->",
                "> ",
                "- ",
                "\\",
                "!",
                "<b>",
                "<div>",
                "|",
                "[",
                "]",
                "text ",
                "\t",
                "&lt;",
                "1. ",
                "[@Ada]: ",
                "[@Ada]",
            ]
        ),
        max_size=14,
    )
)
def test_what_acts_is_what_is_rendered(parts: list[str]) -> None:
    text = "".join(parts)
    assert bool(mentions_in(text)) == ('class="mention"' in render(text)), text


def test_an_html_comment_is_shown_as_it_is_written() -> None:
    html = render(f"<!-- {CALL}\n\n*a* -->\nthen <!-- {CALL} --> **b**")
    assert html.startswith("<p>&lt;!-- [@Ada](mention://agent/")
    assert "*a* --&gt;</p>" in html
    assert html.endswith("--&gt; <strong>b</strong></p>\n")
    assert 'mention"' not in html


@given(st.text(alphabet="<>\"'&[](){}!`*_~|:/ \n\\abcjavscriptABC-1https", max_size=80))
def test_no_text_smuggles_markup(text: str) -> None:
    html = render(text)
    for tag, attributes in re.findall(r"<(/?\w+)([^>]*)>", html):
        assert tag.lstrip("/") in ALLOWED, html
        for name, value in re.findall(r'([\w-]+)="([^"]*)"', attributes):
            assert name in {"href", "title", "rel", "target", "class", "start"}, html
            assert name != "href" or re.match(r"https?:|mailto:|/(?!/)|#", value), html


ALLOWED = [
    "p",
    "br",
    "a",
    "span",
    "em",
    "strong",
    "s",
    "code",
    "pre",
    "ul",
    "ol",
    "li",
    "blockquote",
    "hr",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "div",
]


# --- words ----------------------------------------------------------------------------------------


def test_every_known_failure_has_words_of_its_own() -> None:
    reasons = {
        value
        for name, value in vars(failure).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str)
    }
    plain = failures.explain("agent_error.unknown")
    for reason in reasons - {failure.UNKNOWN, failure.AGENT_ERROR}:
        assert failures.explain(reason) != plain, reason
    assert failures.explain("something.new") == plain


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "just now"), (9, "just now"), (25, "20 s ago"), (61, "1 min ago"), (7200, "2 h ago"),
     (86400 * 3, "3 d ago"), (86400 * 20, "1 Nov 2026")],
)  # fmt: skip
def test_how_long_ago(seconds: int, words: str) -> None:
    assert view.ago(stamp(NOW - timedelta(seconds=seconds)), NOW) == words


def test_durations() -> None:
    assert [view.duration(s) for s in (0.4, 59, 61, 3660)] == [
        "0 s", "59 s", "1 min 01 s", "1 h 01 min",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "letters"),
    [("Ada Lovelace", "AL"), ("claude", "CL"), ("code-reviewer", "CR"), ("", "?"), ("(x) -", "?")],
)
def test_initials(name: str, letters: str) -> None:
    assert view.initials(name) == letters


# --- pages ----------------------------------------------------------------------------------------


def people(status: str = "online") -> view.Directory:
    runtime = Runtime(
        id="r", provider="demo", status=status, device_info="studio · 2.1", last_seen_at=stamp(NOW)
    )
    agent = Agent(id="a", name="Ada", runtime_id="r")
    return view.Directory([Member(id="m", user_id="u", name="Uma")], [agent], [runtime])


def test_the_directory_knows_everyone_and_those_who_left() -> None:
    known = people()
    ada = known.find("agent", "a")
    assert ada is not None
    assert (ada.name, ada.demo, ada.machine, ada.key) == ("Ada", True, "studio", "agent:a")
    assert known.find("member", "gone") == view.person("member", "gone", "Former member")
    assert known.find("system", "0") == view.SYSTEM
    assert known.find(None, None) is None


def test_the_board_shows_a_running_run_before_a_waiting_one() -> None:
    shown = BoardIssue(
        id="i", number=4, title="T", status="in_progress", priority="none",
        assignee_type="agent", assignee_id="a", in_column=7,
    )  # fmt: skip
    runs = [
        ActiveRun(id=str(n), issue_id="i", agent_id="a", status=status, number=4)
        for n, status in enumerate(["queued", "running", "queued"])
    ]
    columns = {column.status: column for column in board.arrange([shown], runs, people(), "ABC")}
    assert list(columns) == ["backlog", "todo", "in_progress", "in_review", "done"]
    (card,) = columns["in_progress"].cards
    assert (card.identifier, card.run and card.run.status) == ("ABC-4", "running")
    assert columns["in_progress"].hidden == 6


def test_threads_are_one_level_deep_and_lose_nobody() -> None:
    rows = [("1", None), ("2", "1"), ("3", "2"), ("4", None), ("5", "missing")]
    comments = [
        Comment(id=key, parent_id=parent, author_type="member", author_id="u")
        for key, parent in rows
    ]
    entries = issue.threads(comments, people())
    shape = [(e.comment.id, [r.comment.id for r in e.replies]) for e in entries]
    assert shape == [("1", ["2", "3"]), ("4", []), ("5", [])]


def task(status: str, **more: str) -> Task:
    return Task(id="t", agent_id="a", runtime_id="r", status=status, created_at=stamp(NOW), **more)


@pytest.mark.parametrize(
    ("status", "machine", "word", "detail"),
    [
        ("queued", "online", "Queued", "free slot"),
        ("queued", "offline", "Waiting for machine", "bullpen up"),
        ("dispatched", "online", "Preparing", "work directory"),
        ("waiting_local_directory", "online", "Waiting for directory", "held by task 1234"),
        ("running", "online", "Running", "studio"),
    ],
)
def test_a_live_run_says_where_it_stands(status: str, machine: str, word: str, detail: str) -> None:
    note = RunNote(progress={"summary": "Launching", "step": 1}, wait_reason="held by task 1234")
    shown = issue.live(task(status), people(machine), note, NOW)
    assert shown.word == word
    assert detail in shown.detail
    assert (shown.summary, shown.step, shown.total) == ("Launching", 1, 0)


def test_a_run_whose_machine_changed_hands_says_so() -> None:
    agent = Agent(id="a", name="Ann", runtime_id="r", owner_id="u", placed_under="u")
    for owner_id, visibility, word in (
        ("new", "private", "Waiting for machine"),
        ("new", "public", "Queued"),
        ("u", "private", "Queued"),
    ):
        runtime = Runtime(id="r", owner_id=owner_id, visibility=visibility, status="online")
        shown = issue.live(task("queued"), view.Directory([], [agent], [runtime]), None, NOW)
        assert shown.word == word
        assert ("somebody else" in shown.detail) == (word == "Waiting for machine")


def test_a_live_run_whose_machine_is_silent_goes_on() -> None:
    silent = task("running", unreachable_since=stamp(NOW - timedelta(minutes=3)))
    shown = issue.live(silent, people("offline"), None, NOW)
    assert shown.word == "Machine unreachable"
    assert "3 min ago" in shown.detail


def test_a_parked_run_says_when_it_starts() -> None:
    parked = task("queued", not_before=stamp(NOW + timedelta(hours=2)))
    shown = issue.live(parked, people("online"), None, NOW)
    assert shown.word == "Waiting to start"
    assert "2 h 00 min" in shown.detail
    due = task("queued", not_before=stamp(NOW - timedelta(seconds=1)))
    assert issue.live(due, people("online"), None, NOW).word == "Queued"


def test_a_late_result_is_shown_beside_the_failure() -> None:
    late = {"status": "completed", "result": {"output": "Did it."}, "at": stamp(NOW)}
    failed = Task(id="t", status="failed", created_at=stamp(NOW), late_result=late)
    assert issue.past(failed, people(), NOW, newest=False).late == "Did it."
    assert issue.past(task("completed"), people(), NOW, newest=False).late == ""


def test_an_ended_run_says_how_and_offers_another_only_when_it_is_the_newest() -> None:
    failed = task(
        "failed", failure_reason=failure.QUOTA, started_at=stamp(NOW - timedelta(seconds=70)),
        completed_at=stamp(NOW - timedelta(seconds=5)),
    )  # fmt: skip
    newest = issue.past(failed, people(), NOW, newest=True)
    assert (newest.word, newest.took, newest.again) == ("Failed", "1 min 05 s", True)
    assert newest.words is not None
    older = issue.past(failed, people(), NOW, newest=False)
    assert not older.again
    done = issue.past(task("completed"), people(), NOW, newest=True)
    assert (done.words, done.again, done.took) == (None, False, "")


@pytest.mark.parametrize(
    ("statuses", "machine", "word"),
    [([], "online", "Ready"), ([], "offline", "Machine offline"), (["queued"], "online", "queued"),
     (["queued", "running"], "online", "Working")],
)  # fmt: skip
def test_an_agent_says_what_it_does(statuses: list[str], machine: str, word: str) -> None:
    runs = [ActiveRun(id=s, issue_id="i", agent_id="a", status=s, number=4) for s in statuses]
    known = people(machine)
    row = agents.row(Agent(id="a"), known.agents[0], runs, "ABC")
    assert word in row.word
    assert [work.label for work in row.working] == ["ABC-4"] * len(statuses)


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("/acme/issues", "board"),
        ("/acme/issues/ABC-1", "issue"),
        ("/acme-2/agents", "agents"),
        ("/api/issues", None),
        ("/api/agents", None),
        ("/ws/issues", None),
        ("/Acme/issues", None),
        ("/apis/issues", "board"),
    ],
)
def test_api_addresses_are_no_pages(path: str, page: str | None) -> None:
    scope = {"type": "http", "path": path, "method": "GET"}
    found = [
        route.name
        for route in routes
        if isinstance(route, Route) and route.matches(scope)[0] is Match.FULL
    ]
    assert found == ([page] if page else [])


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("/acme/issues?q=1", True),
        ("//e.example", False),
        ("/\\e.example", False),
        ("/\t/e.example", False),
        ("https://e.example", False),
        ("javascript:x", False),
        ("", False),
    ],
)
def test_signing_in_leads_nowhere_else(asked: str, allowed: bool) -> None:
    assert login.own_path(asked) == (asked if allowed else "/")
