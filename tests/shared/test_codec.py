from __future__ import annotations

from typing import Any

import attrs
import pytest

from shared import codec
from shared.wire.task import ClaimedTask, ClaimReply, MessagesRequest, TaskAgent, TaskMessage

pytestmark = pytest.mark.fast


@attrs.frozen(kw_only=True)
class Sample:
    number: int
    text: str = "default"
    maybe: str | None = None
    names: list[str] = attrs.field(factory=list)
    extra: dict[str, Any] = codec.omitted(factory=dict)
    hidden: str = codec.omitted("")


def test_unknown_keys_case_and_null_are_lenient() -> None:
    body = b'{"NUMBER": 3, "text": null, "names": null, "who": 1}'
    assert codec.decode(body, Sample) == Sample(number=3)


def test_only_the_first_value_is_read() -> None:
    assert codec.decode(b'  {"number":1} {"number":"x"}', Sample).number == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"number":"1"}',
        b'{"number":true}',
        b'{"number":1.5}',
        b'{"number":1,"names":"abc"}',
        b'{"number":1,"names":{"a":1}}',
        b'{"number":1,"names":[1]}',
        b'{"number":1,"extra":[]}',
        b'{"text":"no number"}',
        b"[" * 100_000,
    ],
)
def test_anything_else_is_one_flat_error(body: bytes) -> None:
    with pytest.raises(codec.DecodeError):
        codec.decode(body, Sample)


def test_omitted_fields_are_absent_only_while_default() -> None:
    assert (
        codec.encode(Sample(number=1)) == b'{"number":1,"text":"default","maybe":null,"names":[]}'
    )
    assert b'"hidden":"x"' in codec.encode(Sample(number=1, hidden="x"))


def test_a_lone_surrogate_does_not_break_the_writer() -> None:
    assert codec.encode({"text": "\ud800"}) == b'{"text":"?"}'


def test_a_claim_round_trips_and_keeps_secrets_out_of_repr() -> None:
    task = ClaimedTask(
        id="t",
        agent=TaskAgent(id="a", custom_env={"KEY": "hush-hush"}),
        auth_token="mat_secret",
    )
    reply = codec.decode(codec.encode(ClaimReply(task=task)), ClaimReply)
    assert reply.task == task
    assert "hush-hush" not in repr(task)
    assert "mat_secret" not in repr(task)
    assert codec.decode(b'{"task":null}', ClaimReply).task is None


def test_messages_keep_their_order_and_input() -> None:
    sent = MessagesRequest(
        messages=[
            TaskMessage(seq=1, type="tool_use", tool="Bash", input={"command": "true"}),
            TaskMessage(seq=2, type="tool_result", tool="Bash", output="héllo"),
        ]
    )
    assert codec.decode(codec.encode(sent), MessagesRequest) == sent
