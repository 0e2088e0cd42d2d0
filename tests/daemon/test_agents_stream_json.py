"""The stream-JSON driver, on what the real program wrote (`claude_output/`, captured and reduced)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.agents.contract import AgentMessage, AgentResult, Quota, Tokens
from daemon.agents.dialogue import Ending, Step
from daemon.agents.stream_json import StreamJson
from shared import failure

pytestmark = pytest.mark.fast

OUTPUT = Path(__file__).parent / "claude_output"
MISSING = "11111111-2222-4333-8444-555555555555"


class Replay:
    """Feeds captured lines to a driver and keeps what it says."""

    def __init__(self, *, resume: str = "", model: str = "") -> None:
        self.driver = StreamJson(
            label="claude", prompt="do it", model=model, resume_session_id=resume
        )
        self.steps: list[Step] = []
        self.late: list[AgentMessage] = []

    def feed(self, name: str, *, lines: int | None = None) -> Replay:
        for line in (OUTPUT / f"{name}.jsonl").read_bytes().splitlines()[:lines]:
            self.steps.append(self.driver.line(line))
        return self

    def event(self, **event: Any) -> Step:
        self.steps.append(self.driver.line(json.dumps(event).encode()))
        return self.steps[-1]

    def close(self, **ending: Any) -> AgentResult:
        messages, result = self.driver.close(Ending(**ending))
        self.late = list(messages)
        return result

    @property
    def messages(self) -> list[AgentMessage]:
        said = [message for step in self.steps for message in step.messages]
        return [message for message in [*said, *self.late] if message.kind != "log"]

    @property
    def kinds(self) -> list[str]:
        return [message.kind for message in self.messages]


def success(text: str = "done", **more: Any) -> dict[str, Any]:
    return {"type": "result", "subtype": "success", "is_error": False, "result": text, **more}


def test_the_prompt_is_one_line_whatever_it_holds() -> None:
    driver = StreamJson(label="claude", prompt='two\nlines, "quotes", \ud800 and ä')
    (frame,) = driver.opening()
    assert frame.count(b"\n") == 1
    content = json.loads(frame)["message"]["content"]
    assert content == [{"type": "text", "text": 'two\nlines, "quotes", ? and ä'}]


def test_a_plain_turn() -> None:
    replay = Replay().feed("plain")
    result = replay.close(exit_code=0)
    assert result.status == "completed"
    assert result.output == "hi there"
    assert result.usage == {"claude-opus-4-8[1m]": Tokens(input=120, output=20)}
    assert replay.kinds == ["status", "text"]
    assert replay.messages[0].session_id == result.session_id
    assert replay.steps[-1].close_stdin
    assert not any(step.close_stdin for step in replay.steps[:-1])


def test_tools_thinking_and_text_in_order() -> None:
    replay = Replay().feed("tool")
    result = replay.close(exit_code=0)
    assert replay.kinds == [
        "status", "text", "tool_use", "tool_result", "tool_use", "tool_result", "thinking", "text",
    ]  # fmt: skip
    uses = [m for m in replay.messages if m.kind == "tool_use"]
    results = [m for m in replay.messages if m.kind == "tool_result"]
    assert [m.call_id for m in uses] == [m.call_id for m in results]
    assert uses[0].input == {"command": "echo tool-$((6*7)); pwd"}
    assert [m.tool for m in results] == ["Bash", "Bash"]
    assert results[1].output.startswith("Exit code 1")
    assert [m.content for m in replay.messages if m.kind == "thinking"] == ["hmm"]
    assert result.output.startswith("done: Exit code 1")


@pytest.mark.parametrize("name", ["bg-tool", "subagent-bg"])
def test_background_work_keeps_the_conversation_open_and_the_last_result_counts(name: str) -> None:
    replay = Replay().feed(name)
    assert [step.close_stdin for step in replay.steps].index(True) == len(replay.steps) - 1
    result = replay.close(exit_code=0)
    assert result.output == "FAKE-OK turn=2"
    assert not result.unfinished
    (tokens,) = result.usage.values()
    assert tokens.input == (420 if name == "bg-tool" else 540), "cumulative counts of the last"


def background(replay: Replay, task: str = "b1", call: str = "c1", **how: Any) -> None:
    """Begin work in the background, as a tool that returns at once."""
    block = {"type": "tool_use", "id": call, "name": "Bash", "input": {"command": "make"}}
    replay.event(type="assistant", message={"id": "m", "content": [block]})
    replay.event(
        type="system", subtype="task_started", task_id=task, tool_use_id=call, description="build"
    )
    answer = {"type": "tool_result", "tool_use_id": call, "content": "running"}
    details = how or {"backgroundTaskId": task}
    replay.event(type="user", message={"content": [answer]}, tool_use_result=details)


def test_nothing_ends_a_conversation_while_work_is_open() -> None:
    replay = Replay()
    background(replay)
    step = replay.event(**success("I'll report"))
    assert (step.close_stdin, step.linger) == (False, None), "only the watchdogs may end it"
    step = replay.event(type="system", subtype="task_progress", task_id="b1")
    assert (step.close_stdin, step.linger) == (False, None)
    replay.event(type="system", subtype="task_updated", task_id="b1", patch={"status": "completed"})
    step = replay.event(type="system", subtype="task_notification", task_id="b1")
    assert not step.close_stdin, "its news are still to be told"
    assert step.linger, "but not for ever"
    replay.event(type="system", subtype="init")
    step = replay.event(**success("built"))
    assert step.close_stdin
    assert replay.close(exit_code=0).output == "built"


@pytest.mark.parametrize("status", ["failed", "killed", "stopped"])
def test_work_that_ended_badly_is_open_no_more(status: str) -> None:
    replay = Replay()
    background(replay)
    replay.event(type="system", subtype="task_updated", task_id="b1", patch={"status": status})
    assert replay.event(**success()).linger is not None


def test_work_that_is_only_known_by_a_tools_result_is_open_too() -> None:
    for details in (
        {"backgroundTaskId": "x"},
        {"status": "async_launched", "agentId": "x", "description": "look"},
        {"status": "remote_launched", "taskId": "x"},
    ):
        replay = Replay()
        block = {"type": "tool_use", "id": "c", "name": "Agent", "input": {}}
        replay.event(type="assistant", message={"id": "m", "content": [block]})
        answer = {"type": "tool_result", "tool_use_id": "c", "content": "started"}
        replay.event(type="user", message={"content": [answer]}, tool_use_result=details)
        assert not replay.event(**success()).close_stdin
        replay.event(type="system", subtype="task_notification", task_id="x", status="completed")
        replay.event(type="system", subtype="init")
        assert replay.event(**success()).close_stdin


@pytest.mark.parametrize("ending", ["task_notification", "task_updated"])
def test_a_long_tool_in_the_foreground_keeps_nothing_open(ending: str) -> None:
    replay = Replay()
    block = {"type": "tool_use", "id": "c", "name": "Bash", "input": {}}
    replay.event(type="assistant", message={"id": "m", "content": [block]})
    replay.event(type="system", subtype="task_started", task_id="t", tool_use_id="c")
    replay.event(type="system", subtype=ending, task_id="t", patch={"status": "completed"})
    answer = {"type": "tool_result", "tool_use_id": "c", "content": "made"}
    replay.event(type="user", message={"content": [answer]}, tool_use_result={"stdout": "made"})
    assert replay.event(**success()).close_stdin


def test_news_that_came_within_a_turn_may_begin_another() -> None:
    replay = Replay()
    background(replay)
    replay.event(type="system", subtype="task_notification", task_id="b1", status="completed")
    step = replay.event(**success())
    assert not step.close_stdin
    assert step.linger


def test_an_answer_with_work_still_open_says_so_when_it_is_ended() -> None:
    replay = Replay()
    background(replay)
    replay.event(**success("I'll report"))
    result = replay.close(exit_code=143, stopped="silent for too long")
    assert (result.status, result.output, result.unfinished) == ("completed", "I'll report", True)
    assert replay.late[-1].kind == "error"
    assert replay.late[-1].content.endswith("in the background: build")


@pytest.mark.parametrize("code", [0, 1])
def test_an_empty_error_behind_the_answer_takes_nothing_away(code: int) -> None:
    replay = Replay()
    counted = {"m": {"inputTokens": 100, "outputTokens": 2000}}
    replay.event(type="assistant", message={"id": "m", "content": "42"})
    replay.event(**success("All done: 42", num_turns=2, session_id="s", modelUsage=counted))
    replay.event(
        type="result", subtype="error_during_execution", is_error=True, num_turns=0,
        errors=["only prompts can be sent in this mode"], modelUsage={}, session_id="s",
    )  # fmt: skip
    result = replay.close(exit_code=code)
    assert (result.status, result.output, result.session_id) == ("completed", "All done: 42", "s")
    assert result.usage == {"m": Tokens(input=100, output=2000)}
    assert "only prompts can be sent" in replay.messages[-1].content, "it is shown all the same"


@pytest.mark.parametrize(
    "later",
    [
        {"num_turns": 1},
        {"num_turns": 0, "modelUsage": {"m": {"inputTokens": 1}}},
        {"num_turns": 0, "said": True},
    ],
)
def test_an_error_of_real_work_counts_and_keeps_the_usage(later: dict[str, Any]) -> None:
    replay = Replay()
    replay.event(**success("first", num_turns=1, modelUsage={"m": {"inputTokens": 100}}))
    if later.pop("said", False):
        replay.event(type="assistant", message={"id": "n", "content": "on it"})
    replay.event(
        type="result", subtype="error_during_execution", is_error=True, errors=["no"], **later
    )
    result = replay.close(exit_code=1)
    assert (result.status, result.error) == ("failed", "no")
    assert result.usage


def test_half_an_emoji_is_replaced_wherever_it_comes_in() -> None:
    replay = Replay()
    block = {
        "type": "tool_use",
        "id": "t",
        "name": "Bash",
        "input": {"\ud800": ["\udfff", "\U0001f600"]},
    }
    replay.event(type="assistant", message={"id": "m", "content": [block]})
    replay.event(**success("half \ud83d end, \\ud83d as written"))
    result = replay.close(exit_code=0)
    assert result.output == "half \ufffd end, \\ud83d as written"
    assert replay.messages[0].input == {"\ufffd": ["\ufffd", "\U0001f600"]}


def test_a_line_with_bytes_that_are_no_utf8_does_not_vanish() -> None:
    replay = Replay()
    line = json.dumps({"type": "assistant", "message": {"id": "m", "content": "caf@"}}).encode()
    replay.steps.append(replay.driver.line(line.replace(b"@", b"\xe9")))
    assert [m.content for m in replay.messages] == ["caf\ufffd"]


def test_a_line_nested_beyond_reading_leaves_a_note() -> None:
    replay = Replay()
    depth = 100_000
    line = b'{"type": "assistant", "message": ' + b"[" * depth + b"]" * depth + b"}"
    replay.steps.append(replay.driver.line(line))
    replay.event(**success())
    assert replay.close(exit_code=0).status == "completed"
    [note] = replay.messages
    assert (note.kind, f"{len(line)} bytes" in note.content) == ("error", True)


REJECTED = {"status": "rejected", "resetsAt": 1796055076, "rateLimitType": "five_hour"}


@pytest.mark.parametrize("status", [429, None])
def test_a_quota_is_read_from_the_providers_own_fields(status: int | None) -> None:
    replay = Replay()
    replay.event(type="rate_limit_event", rate_limit_info=REJECTED)
    replay.event(
        type="result", subtype="success", is_error=True, api_error_status=status, num_turns=1,
        result="You've hit your session limit \u00b7 resets 5:11pm (Europe/Berlin)",
    )  # fmt: skip
    assert replay.close(exit_code=1).quota == Quota(resets_at=1796055076)


def test_a_quota_that_was_not_what_the_run_failed_of_is_none() -> None:
    replay = Replay()
    replay.event(type="rate_limit_event", rate_limit_info=REJECTED)
    replay.event(type="result", is_error=True, num_turns=1, result="Invalid API key")
    assert replay.close(exit_code=1).quota is None
    replay = Replay()
    replay.event(type="rate_limit_event", rate_limit_info={**REJECTED, "status": "allowed_warning"})
    replay.event(type="result", is_error=True, api_error_status=429, result="rate limit")
    assert replay.close(exit_code=1).quota is None
    replay = Replay()
    replay.event(type="rate_limit_event", rate_limit_info=REJECTED)
    replay.event(**success("it went on with what was left"))
    assert replay.close(exit_code=0).quota is None


def test_an_end_of_the_overage_that_is_nearer_counts() -> None:
    replay = Replay()
    info = {"status": "rejected", "resetsAt": 1796655076, "overageResetsAt": 1796055076}
    replay.event(type="rate_limit_event", rate_limit_info=info)
    replay.event(type="result", is_error=True, result="You're out of usage credits")
    assert replay.close(exit_code=1).quota == Quota(resets_at=1796055076)


def test_a_resumed_history_that_the_model_refuses_is_spoilt() -> None:
    refused = {
        "type": "result", "is_error": True, "session_id": "s", "num_turns": 1,
        "result": 'API Error: 400 {"type":"invalid_request_error","message":"bad block"}',
    }  # fmt: skip
    replay = Replay(resume="s")
    replay.event(**refused)
    assert replay.close(exit_code=1).session_id == "", "another run may begin afresh"
    replay = Replay()
    replay.event(**refused)
    assert replay.close(exit_code=1).session_id == "s"
    replay = Replay(resume="s")
    replay.event(type="result", is_error=True, session_id="s", result="prompt is too long: 9 > 8")
    assert replay.close(exit_code=1).session_id == ""


def test_a_sub_agents_words_are_not_the_answer() -> None:
    replay = Replay().feed("subagent-bg", lines=7)
    said = [(m.kind, m.content) for m in replay.messages if m.kind in {"text", "thinking"}]
    assert said[0] == ("thinking", "FAKE-OK turn=1")
    assert Replay().feed("subagent").close(exit_code=0).output.startswith("main sub answer in-sub")


def test_a_sub_agents_tools_are_shown() -> None:
    replay = Replay().feed("subagent")
    replay.close(exit_code=0)
    tools = [(m.kind, m.tool) for m in replay.messages if m.kind.startswith("tool")]
    assert tools == [
        ("tool_use", "Agent"), ("tool_use", "Bash"), ("tool_result", "Bash"),
        ("tool_result", "Agent"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "session"),
    [("resume-missing", MISSING), ("resume-missing-notuuid", "not-a-uuid")],
)
def test_a_missing_session_is_rejected_and_not_pinned(name: str, session: str) -> None:
    replay = Replay(resume=session).feed(name)
    result = replay.close(exit_code=1)
    assert result.status == "failed"
    assert result.resume_rejected
    assert result.session_id == ""
    assert "ession" in result.error
    assert all(not m.session_id for m in replay.messages)


def test_a_rejection_only_on_stderr_counts_too() -> None:
    result = Replay(resume=MISSING).close(
        exit_code=1, stderr_tail=f"No conversation found with session ID: {MISSING}\n"
    )
    assert result.resume_rejected
    assert "claude stderr: No conversation found" in result.error


def test_without_a_resume_nothing_is_rejected() -> None:
    assert not Replay().feed("resume-missing").close(exit_code=1).resume_rejected


def test_an_api_error_is_a_failure_though_its_subtype_says_success() -> None:
    replay = Replay().feed("err401")
    result = replay.close(exit_code=1)
    assert result.status == "failed"
    assert result.output == ""
    assert result.error.startswith("API error 401: Invalid API key")
    assert failure.classify(result.error) == failure.AUTH
    assert replay.kinds == ["status", "text", "error"]
    assert result.session_id


def test_an_invalid_request_is_told_with_its_status_once() -> None:
    error = Replay().feed("err400").close(exit_code=1).error
    assert error.count("400") == 1


def test_retries_are_shown() -> None:
    replay = Replay().feed("err429-once")
    assert replay.close(exit_code=0).output == "recovered"
    assert [m.content for m in replay.messages if m.kind == "error"] == [
        "API rate_limit (HTTP 429): retry 1 of 10 in 0.5 s"
    ]


def test_the_turn_limit_is_a_failure_with_its_own_words() -> None:
    result = Replay().feed("maxturns1").close(exit_code=1)
    assert result.status == "failed"
    assert result.error == "Reached maximum number of turns (1)"


@pytest.mark.parametrize("name", ["tool-running-interrupt", "hang-interrupt"])
def test_an_interrupted_turn_is_aborted_and_keeps_session_and_usage(name: str) -> None:
    replay = Replay()
    (frame,) = replay.driver.interrupt()
    assert json.loads(frame)["request"] == {"subtype": "interrupt"}
    replay.feed(name)
    result = replay.close(exit_code=1, stopped="cancelled by the server")
    assert result.status == "aborted"
    assert result.error == "cancelled by the server"
    assert result.session_id
    assert "error" not in replay.kinds
    assert bool(result.usage) == (name == "tool-running-interrupt")


def test_nothing_is_interrupted_after_the_result() -> None:
    assert list(Replay().feed("plain").driver.interrupt()) == []


def test_a_stop_that_came_too_late_changes_nothing() -> None:
    result = Replay().feed("plain").close(exit_code=-15, stopped="too late")
    assert result.status == "completed"


def test_a_killed_program_owes_its_open_tools_a_result() -> None:
    replay = Replay().feed("tool-running-sigkill")
    result = replay.close(exit_code=-9)
    assert replay.kinds == ["status", "tool_use", "tool_result"]
    assert replay.messages[-1].call_id == replay.messages[-2].call_id
    assert result.status == "failed"
    assert result.error == "claude exited with error: signal 9"
    assert failure.classify(result.error) == failure.PROCESS_FAILURE
    assert result.session_id
    assert result.usage == {"claude-opus-4-8": Tokens(input=120, output=1)}


def test_repeated_usage_of_one_message_counts_once() -> None:
    replay = Replay().feed("tool", lines=3)  # two blocks of one API message
    assert replay.close(exit_code=-9).usage == {"claude-opus-4-8": Tokens(input=120, output=1)}


def test_a_permission_request_is_granted_in_the_foreground() -> None:
    replay = Replay()
    step = replay.event(
        type="control_request",
        request_id="r1",
        request={
            "subtype": "can_use_tool",
            "tool_name": "Bash",
            "input": {"command": "ls", "run_in_background": True},
        },
    )
    (frame,) = step.frames
    assert json.loads(frame) == {
        "type": "control_response",
        "response": {
            "subtype": "success",
            "request_id": "r1",
            "response": {
                "behavior": "allow",
                "updatedInput": {"command": "ls", "run_in_background": False},
            },
        },
    }
    replay.feed("perm-allow")
    assert sum(len(step.frames) for step in replay.steps) == 2


def test_an_unknown_request_is_declined_not_ignored() -> None:
    step = Replay().event(type="control_request", request_id="r2", request={"subtype": "new"})
    assert json.loads(step.frames[0])["response"]["subtype"] == "error"


def test_partial_messages_do_not_double_the_text() -> None:
    replay = Replay().feed("slow-partial")
    result = replay.close(exit_code=0)
    assert "".join(m.content for m in replay.messages if m.kind == "text") == result.output


def test_no_result_is_a_failure_even_with_exit_code_0() -> None:
    result = Replay().feed("plain", lines=2).close(exit_code=0)
    assert result.status == "failed"
    assert failure.classify(result.error) == failure.EMPTY_OUTPUT


def test_the_exit_code_counts_after_a_success_unless_we_ended_it() -> None:
    failed = Replay().feed("plain").close(exit_code=3)
    assert failed.error == "claude exited with error: exit status 3"
    assert failed.output == ""
    assert Replay().feed("plain").close(exit_code=-15, ended_by_us=True).status == "completed"


def test_a_broken_stdout_and_a_broken_stdin() -> None:
    result = Replay().close(exit_code=-9, read_error="a line is too long")
    assert result.error == "claude stdout read error: a line is too long"
    result = Replay().close(exit_code=1, write_error="Broken pipe", stderr_tail="bad flag")
    assert result.error == "write claude input: Broken pipe; claude stderr: bad flag"


def test_stderr_in_errors_holds_no_secrets_and_no_control_characters() -> None:
    tail = "\x1b[31mbad key: ANTHROPIC_API_KEY=sk-ant-abcdefghijklmnopqrstuvwx\x07"
    error = Replay().close(exit_code=1, stderr_tail=tail).error
    assert "abcdefghij" not in error
    assert "\x1b" not in error
    assert "\x07" not in error


def test_an_overlong_prompt_spoils_the_session() -> None:
    replay = Replay().feed("plain", lines=2)
    replay.event(
        type="result", subtype="success", is_error=True, terminal_reason="prompt_too_long",
        result="nope", session_id="s",
    )  # fmt: skip
    result = replay.close(exit_code=1)
    assert failure.classify(result.error) == failure.CONTEXT_OVERFLOW
    assert result.session_id == ""


def test_an_empty_result_falls_back_to_the_last_turn_without_tools() -> None:
    def say(identity: str, *blocks: dict[str, Any]) -> dict[str, Any]:
        return {"type": "assistant", "message": {"id": identity, "content": list(blocks)}}

    text, tool = {"type": "text", "text": "the answer"}, {"type": "tool_use", "id": "t"}
    replay = Replay()
    replay.event(**say("m1", {"type": "text", "text": "on it"}))
    replay.event(**say("m1", tool))
    replay.event(**say("m2", text))
    replay.event(**success(""))
    assert replay.close(exit_code=0).output == "the answer"
    replay = Replay()
    replay.event(**say("m1", text))
    replay.event(**say("m1", tool))
    replay.event(**success(""))
    assert replay.close(exit_code=0).output == ""


def test_usage_falls_back_to_the_configured_model() -> None:
    replay = Replay(model="my-model")
    replay.event(**success(usage={"input_tokens": 3, "output_tokens": 2}, modelUsage={}))
    assert replay.close(exit_code=0).usage == {"my-model": Tokens(input=3, output=2)}


def test_a_second_result_for_one_tool_is_dropped() -> None:
    replay = Replay()
    block = {"type": "tool_use", "id": "t", "name": "Bash", "input": {}}
    replay.event(type="assistant", message={"id": "m", "content": [block]})
    answer = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}, "x"]}
    for _ in range(2):
        replay.event(type="user", message={"content": [answer]})
    replay.close(exit_code=0)
    assert replay.kinds == ["tool_use", "tool_result"]
    assert replay.messages[1].output == '[image]\n"x"'


@pytest.mark.parametrize(
    "line",
    [b"", b"not json", b"[]", b"null", b'{"type":["x"]}', b'{"type":"assistant","message":7}',
     b'{"type":"result","modelUsage":[],"errors":"x","usage":null}', b"\xff\xfe",
     b'{"type":"system","subtype":"init","session_id":5}', b"[" * 100_000,
     b'{"type":"result","usage":{"input_tokens":Infinity,"output_tokens":-3}}'],
)  # fmt: skip
def test_lines_that_make_no_sense_do_no_harm(line: bytes) -> None:
    driver = StreamJson(label="claude", prompt="x")
    driver.line(line)
    assert driver.close(Ending(exit_code=0))[1].status == "failed"


_words = st.sampled_from(
    ["system", "init", "assistant", "user", "result", "success", "text", "tool_use", "t1", "t2",
     "tool_result", "control_request", "task_started", "task_updated", "completed", "log"]
)  # fmt: skip
_keys = st.sampled_from(
    ["type", "subtype", "message", "content", "id", "tool_use_id", "name", "input", "session_id",
     "is_error", "errors", "usage", "modelUsage", "task_id", "patch", "status", "request", "text"]
)  # fmt: skip
_values = st.recursive(
    _words | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=5),
    max_leaves=12,
)


@given(st.lists(st.fixed_dictionaries({"type": _words}, optional={
    "message": _values, "subtype": _words, "task_id": _words, "patch": _values, "errors": _values,
    "usage": _values, "modelUsage": _values, "request": _values, "session_id": _values,
}), max_size=8), st.booleans())  # fmt: skip
def test_every_tool_gets_exactly_one_result_whatever_comes(
    events: list[dict[str, Any]], stopped: bool
) -> None:
    replay = Replay(resume="r")
    for event in events:
        replay.event(**event)
    result = replay.close(exit_code=0, stopped="stop" if stopped else "")
    opened: list[str] = []
    for message in replay.messages:
        if message.kind == "tool_use":
            assert message.call_id not in opened
            opened.append(message.call_id)
        elif message.kind == "tool_result":
            opened.remove(message.call_id)
    assert opened == []
    assert result.status == "completed" or not result.output
