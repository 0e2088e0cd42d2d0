"""From what people type to ids, and long texts from options, stdin and files."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.cli import refs
from daemon.cli.api import Api
from daemon.cli.errors import CliError
from daemon.cli.metadata_group import typed_value
from daemon.cli.refs import Candidate, match_name
from daemon.cli.text import read_text, unescape

pytestmark = pytest.mark.fast

IDS = [f"{n:08x}-0000-4000-8000-{n:012x}" for n in range(120)]
ISSUES = [
    {"id": IDS[n], "identifier": f"BUL-{n}", "title": f"issue {n}", "status": "done"}
    for n in range(1, 120)
]


def serve(request: httpx.Request) -> httpx.Response:
    path = request.url.path
    if path == "/api/issues":
        query = request.url.params
        assert query["include_closed"] == "true"
        offset, limit = int(query["offset"]), int(query["limit"])
        page = ISSUES[offset : offset + limit]
        return httpx.Response(200, json={"issues": page, "total": len(ISSUES)})
    if path.startswith("/api/issues/"):
        ref = path.rsplit("/", 1)[1]
        number = ref.rsplit("-", 1)[-1]
        for row in ISSUES:
            if row["id"] == ref or (ref.count("-") == 1 and row["identifier"] == f"BUL-{number}"):
                return httpx.Response(200, json=row)
    if path == "/api/agents":
        return httpx.Response(200, json=[{"id": IDS[7], "name": "demo"}])
    if path.endswith("/members"):
        return httpx.Response(200, json=[{"id": IDS[1], "user_id": IDS[2], "name": "Ada"}])
    return httpx.Response(404, json={"error": "not found"})


@pytest.fixture
def api() -> Api:
    return Api("http://h", "mul_x", workspace_id=IDS[3], transport=httpx.MockTransport(serve))


@pytest.mark.parametrize(
    "ref",
    [
        "BUL-77",
        "bul-77",
        IDS[77],
        IDS[77].upper(),
        "77",
        "#77",
        "0000004d",
        IDS[77][:10],
        f"[BUL-77](mention://issue/{IDS[77]})",
        "http://127.0.0.1:8080/bullpen/issues/BUL-77",
    ],
)
def test_an_issue_by_everything_that_names_it(api: Api, ref: str) -> None:
    assert refs.issue_id(api, ref) == IDS[77]


def test_an_ambiguous_prefix_lists_candidates(api: Api) -> None:
    with pytest.raises(CliError, match=r"more than one.*BUL-1 issue 1") as error:
        refs.issue_id(api, "0000")
    assert error.value.code == 1


@pytest.mark.parametrize(("ref", "code"), [("ffff", 4), ("BUL-999", 4), ("no such", 1), ("", 1)])
def test_an_unknown_issue(api: Api, ref: str, code: int) -> None:
    with pytest.raises(CliError) as error:
        refs.issue_id(api, ref)
    assert error.value.code == code


PEOPLE = [
    [
        Candidate(kind="member", id=IDS[1], name="Ada"),
        Candidate(kind="member", id=IDS[2], name="Bo"),
    ],
    [
        Candidate(kind="agent", id=IDS[3], name="demo"),
        Candidate(kind="agent", id=IDS[4], name="demo two"),
        Candidate(kind="agent", id=IDS[5], name="Bo"),
    ],
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ADA", 1),
        ("@ada", 1),
        ("demo", 3),  # exact beats part
        ("two", 4),
        (IDS[5], 5),
        (IDS[5][:8], 5),
        (f"[@whoever](mention://agent/{IDS[4]})", 4),
    ],
)
def test_names(text: str, found: int) -> None:
    assert match_name(PEOPLE, text, "agent").id == IDS[found]


@pytest.mark.parametrize(
    ("text", "says"),
    [("bo", "several"), ("d", "several"), ("nobody", "no agent"), (" @ ", "missing")],
)
def test_names_that_fit_nothing_or_too_much(text: str, says: str) -> None:
    with pytest.raises(CliError, match=says):
        match_name(PEOPLE, text, "agent")


def test_one_list_that_cannot_be_had_is_tolerated(api: Api) -> None:
    assert refs.find_assignee(api, "demo").kind == "agent"  # /api/squads is a 404 here
    assert refs.find_assignee(api, "Ada").id == IDS[2]  # the user's id, not the membership's


def test_when_no_list_can_be_had_the_failure_is_told() -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        return httpx.Response(403, json={"error": "no"})

    with pytest.raises(CliError) as error:
        refs.find_assignee(Api("http://h", "x", transport=httpx.MockTransport(fail)), "demo")
    assert error.value.code == 3


@pytest.mark.parametrize(
    ("text", "means"),
    [
        (r"a\nb\tc", "a\nb\tc"),
        (r"a\\nb", r"a\nb"),
        (r"\q\x", r"\q\x"),
        ("\\", "\\"),
        ("ä\n", "ä\n"),
    ],
)
def test_escapes(text: str, means: str) -> None:
    assert unescape(text) == means


@given(st.text())
def test_escaping_a_text_and_decoding_it_gives_it_back(text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
    assert unescape(escaped.replace("\r", "\\r")) == text


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_stdin_and_files_are_verbatim_minus_one_newline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin(monkeypatch, b"a\\nb\n\n")
    assert read_text("content", None, True, None) == "a\\nb\n"
    path = tmp_path / "text"
    path.write_bytes("\ufeffgrüße\r\n".encode())
    assert read_text("content", None, False, str(path)) == "grüße"
    assert read_text("content", None, False, None) is None


@pytest.mark.parametrize("data", [b"", b"\n", b" \n ", b"\xff\xfe\x00"])
def test_empty_or_binary_input_is_an_error(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    stdin(monkeypatch, data)
    with pytest.raises(CliError, match="--content-stdin"):
        read_text("content", None, True, None)


def test_only_one_of_the_three_and_missing_files() -> None:
    with pytest.raises(CliError, match="only one"):
        read_text("content", "x", True, None)
    with pytest.raises(CliError, match="cannot read"):
        read_text("content", None, False, "/nonexistent/file")


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1", None, 1),
        ("1.5", None, 1.5),
        ("true", None, True),
        ("yes", None, "yes"),
        ("[1]", None, "[1]"),
        ("NaN", None, "NaN"),
        ("1", "string", "1"),
    ],
)
def test_metadata_values(text: str, kind: str | None, value: Any) -> None:
    assert typed_value(text, kind) == value


@pytest.mark.parametrize(("text", "kind"), [("x", "number"), ("true", "number"), ("1", "bool")])
def test_metadata_values_of_the_wrong_kind(text: str, kind: str) -> None:
    with pytest.raises(CliError):
        typed_value(text, kind)
