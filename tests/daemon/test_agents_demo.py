"""The demo agent as a process, with a stand-in for the `bullpen` command that keeps a diary."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from daemon.agents.contract import AgentMessage, AgentResult, AgentRun
from daemon.agents.launch import demo_program, open_agent
from tests.support.processes import Watch, no_survivors

pytestmark = pytest.mark.together

ISSUE = "0190aaaa-bbbb-7ccc-8ddd-eeeeffff0001"
COMMENT = "0190aaaa-bbbb-7ccc-8ddd-eeeeffff0002"
ASSIGNED = f"You work on an issue. Start with `bullpen issue get {ISSUE} --output json`."
COMMENTED = f"{ASSIGNED} Reply with `bullpen issue comment add {ISSUE} --parent {COMMENT}`."

COMMAND = """#!/bin/sh
echo "$*" >> {diary}
case "$*" in
  *"issue get"*) cat {issue} ;;
  *"comment list"*) cat {comments} ;;
  *"comment add"*) cat >> {posted} ;;
esac
"""


@attrs.frozen
class Desk:
    """A work directory and what the stand-in knows and was told."""

    folder: Path
    watch: Watch

    def issue(self, description: str, **more: Any) -> None:
        details = {"id": ISSUE, "identifier": "BUL-7", "title": "Tidy up", "status": "todo"}
        details |= {"description": description, **more}
        (self.folder / "issue.json").write_text(json.dumps(details))

    def comment(self, content: str, **more: Any) -> None:
        rows = [{"id": COMMENT, "content": content, **more}]
        (self.folder / "comments.json").write_text(json.dumps(rows))

    @property
    def diary(self) -> list[str]:
        return (self.folder / "diary").read_text().splitlines()

    @property
    def posted(self) -> str:
        return (self.folder / "posted").read_text()

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def run(self, prompt: str, asker: str = "", **more: Any) -> AgentRun:
        env = {
            **({"MULTICA_DEMO_OWNER": asker} if asker else {}),
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.defpath}",
            "MULTICA_DEMO_PACE": "0",
            "MULTICA_TASK_ID": self.watch.word,
        }
        return AgentRun(program=demo_program(), cwd=self.work, env=env, prompt=prompt, **more)

    async def __call__(self, prompt: str, **more: Any) -> tuple[list[AgentMessage], AgentResult]:
        with trio.fail_after(30):
            async with open_agent(self.run(prompt, **more)) as agent:
                messages = [message async for message in agent.messages]
        assert agent.result is not None
        return [m for m in messages if m.kind != "log"], agent.result


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    command = tmp_path / "bin" / "bullpen"
    files = {"issue": "issue.json", "comments": "comments.json"}
    places = {name: tmp_path / files.get(name, name) for name in ("diary", "posted", *files)}
    command.write_text(COMMAND.format(**places))
    command.chmod(0o755)
    with no_survivors() as watch:
        yield Desk(tmp_path, watch)


async def test_an_assigned_issue_is_worked_on_and_set_in_review(desk: Desk) -> None:
    desk.issue("Sweep the floor. Wash the dishes.")
    messages, result = await desk(ASSIGNED)
    assert result.status == "completed"
    assert result.usage == {}
    assert [line.split()[:2] for line in desk.diary] == [
        ["issue", "get"], ["issue", "status"], ["issue", "comment"], ["issue", "status"],
    ]  # fmt: skip
    assert desk.diary[1] == f"issue status {ISSUE} in_progress"
    assert desk.diary[-1] == f"issue status {ISSUE} in_review"
    assert "Demo agent" in desk.posted
    assert "6 words in 2 sentences" in desk.posted
    notes = (desk.work / "demo-notes.md").read_text()
    assert "BUL-7: Tidy up" in notes
    assert "Sweep the floor." in notes
    shell = next(m for m in messages if m.kind == "tool_result" and "demo-notes.md" in m.output)
    assert shell.tool in {"Bash", "Write"}
    kinds = {message.kind for message in messages}
    assert kinds == {"status", "thinking", "text", "tool_use", "tool_result"}


async def test_text_that_cannot_be_encoded_does_no_harm(desk: Desk) -> None:
    desk.issue("half a pair: \ud800, ä, 漢")
    _, result = await desk(ASSIGNED)
    assert result.status == "completed", result.error


async def test_a_comment_is_answered_in_its_thread(desk: Desk) -> None:
    desk.issue("x", status="in_review")
    desk.comment("And now in blue, please.\ndemo: say noted")
    messages, result = await desk(COMMENTED)
    assert result.status == "completed"
    assert not any("issue status" in line for line in desk.diary)
    assert f"--parent {COMMENT}" in desk.diary[-1]
    assert "stays in_review" in desk.posted
    assert "noted" in [m.content for m in messages]


async def test_script_lines_are_followed(desk: Desk) -> None:
    desk.issue(
        "demo:say one\ntext between\ndemo: think two\ndemo:lines 3 every 0.001s\n"
        "demo: sh echo $((6*7)) > answer; cat answer\ndemo: sleep 0.01\ndemo: dance",
        creator_type="member",
        creator_id="anna",
    )
    messages, result = await desk(ASSIGNED, asker="anna")
    assert result.status == "completed"
    said = [m.content.strip() for m in messages if m.kind in {"text", "thinking"}]
    start = said.index("one")
    assert said[start : start + 5] == ["one", "two", "demo line 1", "demo line 2", "demo line 3"]
    assert (desk.work / "answer").read_text() == "42\n"
    assert any("do not understand" in text for text in said)


@pytest.mark.parametrize(
    ("asker", "writer"),
    [("", ("member", "anna")), ("anna", ("member", "ben")), ("anna", ("agent", "anna"))],
)
async def test_only_the_machines_owner_gets_a_shell(
    desk: Desk, asker: str, writer: tuple[str, str]
) -> None:
    kind, name = writer
    script = "demo: sh echo here > taken\ndemo: say after"
    desk.issue(script, creator_type=kind, creator_id=name)
    desk.comment(script, author_type=kind, author_id=name)
    for prompt in (ASSIGNED, COMMENTED):
        messages, result = await desk(prompt, asker=asker)
        assert result.status == "completed"
        said = [m.content for m in messages if m.kind == "text"]
        assert any("for the owner of my machine only" in text for text in said)
        assert any("after" in text for text in said)
    assert not (desk.work / "taken").exists()


async def test_words_that_somebody_else_changed_are_not_the_owners(desk: Desk) -> None:
    script = "demo: sh echo here > taken"
    desk.issue(script, creator_type="member", creator_id="anna", edited_by_others=True)
    desk.comment(script, author_type="member", author_id="anna", edited_by_others=True)
    for prompt in (ASSIGNED, COMMENTED):
        messages, _ = await desk(prompt, asker="anna")
        said = [m.content for m in messages if m.kind == "text"]
        assert any("for the owner of my machine only" in text for text in said)
    assert not (desk.work / "taken").exists()


async def test_it_fails_when_told_to_and_when_the_loop_is_broken(desk: Desk) -> None:
    desk.issue("demo: fail no paint left")
    _, result = await desk(ASSIGNED)
    assert (result.status, result.error) == ("failed", "no paint left")
    (desk.folder / "bin" / "bullpen").write_text("#!/bin/sh\necho no route >&2; exit 2\n")
    _, result = await desk(ASSIGNED)
    assert result.status == "failed"
    assert "ended with 2: no route" in result.error


async def test_a_session_is_resumed_and_an_unknown_one_refused(desk: Desk) -> None:
    desk.issue("x")
    _, first = await desk(ASSIGNED)
    _, second = await desk(ASSIGNED, resume_session_id=first.session_id)
    assert second.status == "completed"
    assert second.session_id == first.session_id
    for unknown in ("0190aaaa-bbbb-7ccc-8ddd-eeeeffff9999", "../issue"):
        _, third = await desk(ASSIGNED, resume_session_id=unknown)
        assert third.resume_rejected
        assert third.session_id == ""


@pytest.mark.parametrize("line", ["sleep 60", "sh tail -f /dev/null"])
async def test_it_stops_at_once_when_asked(desk: Desk, line: str) -> None:
    desk.issue(f"demo: say ready\ndemo: {line}")
    with trio.fail_after(30):
        async with open_agent(desk.run(ASSIGNED)) as agent:
            async for message in agent.messages:
                if message.content == "ready":
                    break
            began = trio.current_time()
            agent.stop("changed my mind")
            async for _ in agent.messages:
                pass
            assert trio.current_time() - began < 3
    assert agent.result is not None
    assert (agent.result.status, agent.result.error) == ("aborted", "changed my mind")


async def test_without_an_issue_it_says_so(desk: Desk) -> None:
    _, result = await desk("Hello?")
    assert result.status == "completed"
    assert "demo agent" in result.output
