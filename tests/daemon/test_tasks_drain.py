"""The consumer of an agent's messages and the sender of its transcript."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.agents.contract import AgentMessage
from daemon.tasks.drain import OUTPUT_LIMIT, PACE, Sender, Transcript, clip, consume
from daemon.tasks.journal import Claim, Journal, open_journal, reopen_journal
from daemon.tasks.watchdog import Watchdog
from shared.depth import CUT
from shared.redact import Redactor
from shared.wire.runtime import UNIQUE_ROWS
from shared.wire.task import RUNNING, TaskMessage
from tests.conftest import ExpectedErrors
from tests.daemon.tasks_support import (
    RUNTIME,
    Bench,
    open_bench,
    status,
    text,
    thinking,
    tool_result,
    tool_use,
)
from tests.support.fake_server import FakeTask, uid
from tests.support.network import HANG, LOSE_REQUEST, LOSE_RESPONSE, REFUSE, Fault, answer, delay

pytestmark = pytest.mark.fast

TASK = uid("task")


def item(content: str) -> TaskMessage:
    return TaskMessage(seq=0, type="text", content=content)


@asynccontextmanager
async def sending(bench: Bench) -> AsyncIterator[tuple[Journal, FakeTask, Sender]]:
    """A running sender on a running task; leaving sends the rest."""
    task = bench.server.add_task(RUNTIME.id, TASK)
    task.status = RUNNING
    journal = open_journal(bench.config.home.journals, Claim(task_id=TASK))
    sender = Sender(bench.client, journal, task_id=TASK)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.run)
            yield journal, task, sender
            await sender.stop()
        await sender.send_rest()
    finally:
        journal.close()


# -- consume


def take(*messages: AgentMessage | float) -> list[AgentMessage | float]:
    return list(messages)


async def consumed(
    folder: Path, script: list[AgentMessage | float], redactor: Redactor | None = None
) -> list[TaskMessage]:
    """What ends up in the journal when the agent says this, with pauses in seconds."""
    journal = open_journal(folder, Claim(task_id=TASK))
    send, receive = trio.open_memory_channel[AgentMessage](256)

    async def act() -> None:
        with send:
            for step in script:
                if isinstance(step, AgentMessage):
                    await send.send(step)
                else:
                    await trio.sleep(step)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(act)
        transcript = Transcript(journal, redactor or Redactor())
        assert await consume(receive, transcript, Watchdog(0, 0), lambda _: None)
    messages = journal.next_batch().messages
    journal.close()
    return messages


def short(messages: list[TaskMessage]) -> list[tuple[str, str]]:
    return [(m.type, m.content or m.output or m.tool) for m in messages]


async def test_text_is_merged_only_with_its_neighbours(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    script = take(
        *[text("a"), text("b"), text("c"), thinking("d"), thinking("e")],
        *[tool_use("1"), text("f"), tool_result("1", "out"), text("g")],
    )
    got = short(await consumed(tmp_path, script))
    # the very first text comes after quiet and goes at once
    assert got == [
        ("text", "a"),
        ("text", "bc"),
        ("thinking", "de"),
        ("tool_use", "Bash"),
        ("text", "f"),
        ("tool_result", "out"),
        ("text", "g"),
    ]


async def test_streamed_text_is_journalled_at_most_every_half_second(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    script: list[AgentMessage | float] = []
    for number in range(100):
        script += [text(f"{number} "), 0.05]
    got = short(await consumed(tmp_path, script))
    assert "".join(content for _, content in got) == "".join(f"{n} " for n in range(100))
    assert 10 <= len(got) <= 5 / PACE + 2


async def test_the_tools_name_is_filled_in_from_its_call(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    script = take(
        *[tool_use("1", "Read"), tool_use("2", "Grep")],
        *[tool_result("2", "two"), tool_result("1", "one"), tool_result("9", "?")],
    )
    got = await consumed(tmp_path, script)
    assert [(m.tool, m.output) for m in got[2:]] == [("Grep", "two"), ("Read", "one"), ("", "?")]


async def test_status_and_log_are_no_items(autojump_clock: MockClock, tmp_path: Path) -> None:
    log = AgentMessage(kind="log", content="x")
    error = AgentMessage(kind="error", content="oops")
    assert short(await consumed(tmp_path, take(status("s1"), log, error))) == [("error", "oops")]


async def test_a_secret_split_over_chunks_is_found(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    script = take(text("."), text("hunter2"), text("hunter2"), 1.0)
    got = short(await consumed(tmp_path, script, Redactor(["hunter2hunter2"])))
    assert got == [("text", "."), ("text", "[REDACTED]")]


async def test_a_message_waiting_at_the_deadline_is_not_silence(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    journal = open_journal(tmp_path, Claim(task_id=TASK))
    send, receive = trio.open_memory_channel[AgentMessage](256)
    with send:
        send.send_nowait(text("a"))
        transcript = Transcript(journal, Redactor())
        start = trio.current_time()
        with trio.move_on_after(100):
            assert not await consume(receive, transcript, Watchdog(10, 0), lambda _: None)
        assert trio.current_time() - start == pytest.approx(10)
    journal.close()


# -- the wire


def test_clipping_keeps_characters_whole() -> None:
    assert clip("abc", 8192) == "abc"
    assert clip("é" * 5000, OUTPUT_LIMIT) == "é" * 4096
    assert len(clip("x" + "é" * 5000, OUTPUT_LIMIT).encode()) == OUTPUT_LIMIT - 1
    assert clip("𝄞" * 3000, OUTPUT_LIMIT) == "𝄞" * 2048


async def test_long_output_is_cut_on_the_wire_and_whole_in_the_journal(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        async with sending(bench) as (journal, task, _):
            journal.note_message(TaskMessage(seq=0, type="tool_result", output="x" * 10_000))
        assert len(task.rows[1]["output"]) == OUTPUT_LIMIT
        assert "x" * 10_000 in journal.path.read_text()


# -- the sender


async def test_the_first_item_after_quiet_goes_at_once_the_next_wait_together(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench, sending(bench) as (journal, task, _):
        for _ in range(2):
            await trio.sleep(60)
            start = trio.current_time()
            for content in ("a", "b", "c"):
                journal.note_message(item(content))
                await trio.sleep(PACE / 5)
            await trio.sleep(5)
            sent = [t - start for t in bench.server.times(".*/messages")][-2:]
            assert sent == pytest.approx([0, PACE], abs=0.01)
        assert task.seqs == [1, 2, 3, 4, 5, 6]


async def test_a_backlog_goes_in_full_batches_without_pauses(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench, sending(bench) as (journal, task, _):
        start = trio.current_time()
        for number in range(950):
            journal.note_message(item(str(number)))
        await trio.sleep(2)
        assert task.seqs == list(range(1, 951))
        assert bench.server.count(".*/messages") == 10
        assert bench.server.times(".*/messages")[-2] - start < 0.1


async def test_an_outage_costs_nothing_but_time(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench, sending(bench) as (journal, task, _):
        bench.server.fail_always(".*/messages", REFUSE)
        for number in range(300):
            journal.note_message(item(str(number)))
            await trio.sleep(10)
        assert task.rows == {}
        assert bench.server.count(".*/messages") < 200, "it backs off"
        bench.server.fail_always(".*/messages", None)
        await trio.sleep(60)
        assert [row["content"] for _, row in sorted(task.rows.items())] == [
            str(number) for number in range(300)
        ]


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_doubled_or_reordered(
    autojump_clock: MockClock, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    faults: list[Fault] = [
        *[REFUSE, LOSE_REQUEST, LOSE_RESPONSE, HANG, answer(500), answer(429), answer(401)],
        *[answer(404, "404 page not found"), answer(200, "{}"), answer(200, "null"), answer(302)],
        *[delay(0.0), delay(0.7), delay(4.0)],
    ]
    async with open_bench(tmp_path) as bench:
        async with sending(bench) as (journal, task, _):
            bench.server.fail_next(".*/messages", *dice.choices(faults, k=30))
            for number in range(120):
                journal.note_message(item(str(number)))
                await trio.sleep(dice.choice((0.0, 0.01, 0.3, 2.0)))
        contents = [row["content"] for _, row in sorted(task.rows.items())]
        assert contents == [str(number) for number in range(120)]
        assert task.doubled == [], "a stock server stores what comes twice twice"
        firsts = [
            call.body["messages"][0]["seq"] for call in bench.server.requests("POST .*/messages")
        ]
        assert firsts == sorted(firsts), "a batch overtook another"


async def test_a_refused_item_is_left_out_and_the_rest_goes_on(
    autojump_clock: MockClock, tmp_path: Path, error_log: ExpectedErrors
) -> None:
    async with open_bench(tmp_path) as bench:
        async with sending(bench) as (journal, task, _):
            # the batch, then the item with seq 2 alone
            no = answer(400, '{"error":"invalid request body"}')
            bench.server.fail_next(".*/messages", delay(0), no, delay(0), no)
            for content in ("a", "b", "c", "d"):
                journal.note_message(item(content))
                await trio.lowlevel.checkpoint()
        error_log.expect("transcript item refused")
        assert len(task.rows) == 3
        assert journal.unsent == 0


async def test_where_rows_are_unique_nothing_is_read_back(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.server.capabilities = [UNIQUE_ROWS]
        bench.client.offers.learn([UNIQUE_ROWS])
        async with sending(bench) as (journal, task, _):
            bench.server.fail_next(".*/messages", LOSE_RESPONSE)
            journal.note_message(item("a"))
            await trio.sleep(5)
        assert task.seqs == [1]
        assert bench.server.count("GET .*/messages") == 0


async def test_what_an_earlier_process_may_have_sent_is_read_back(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        task = bench.server.add_task(RUNTIME.id, TASK)
        task.status = RUNNING
        journal = open_journal(bench.config.home.journals, Claim(task_id=TASK))
        for number in range(1, 4):
            journal.note_message(item(str(number)))
        await bench.client.messages(TASK, journal.next_batch(items=2).messages)
        journal.close()
        journal = reopen_journal(bench.config.home.journals, TASK)
        await Sender(bench.client, journal, task_id=TASK).send_rest()
        journal.close()
        assert (task.seqs, task.doubled) == ([1, 2, 3], [])


async def test_a_server_that_cannot_tell_gets_all_of_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        async with sending(bench) as (journal, task, _):
            bench.server.fail_next("POST .*/messages", LOSE_RESPONSE)
            bench.server.fail_always("GET .*/messages", answer(405))
            journal.note_message(item("a"))
            await trio.sleep(200)
        assert journal.unsent == 0
        assert task.seqs == [1]


async def test_a_stranger_refuses_no_row(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A proxy that answers 404 for a while, in its own words, and then another one's 400."""
    async with open_bench(tmp_path) as bench:
        async with sending(bench) as (journal, task, _):
            bench.server.fail_always(".*/messages", answer(404, "404 page not found"))
            for content in ("a", "b", "c"):
                journal.note_message(item(content))
            await trio.sleep(4)
            bench.server.fail_always(".*/messages", answer(400, '{"error":"bad gateway config"}'))
            await trio.sleep(4)
            assert task.seqs == []
            bench.server.fail_always(".*/messages", None)
            await trio.sleep(60)
        assert task.seqs == [1, 2, 3]


async def test_what_is_too_large_for_the_way_is_sent_in_part(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        async with sending(bench) as (journal, task, _):
            no = answer(413, "<html>413 Request Entity Too Large</html>")
            bench.server.fail_next("POST .*/messages", no, no, no)
            journal.note_message(item("x" * 300_000))
            journal.note_message(item("y"))
            await trio.sleep(60)
        assert task.seqs == [1, 2]
        assert len(task.rows[1]["content"]) < 300_000
        assert set(task.rows[1]["content"]) == {"x"}


async def test_input_nested_beyond_all_measure_is_cut_and_shown_as_cut(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    deep: Any = "bottom"
    for _ in range(900):
        deep = {"a": [deep]}
    [message] = await consumed(tmp_path, take(tool_use("c1", value=deep)))
    text = json.dumps(message.input)
    assert CUT in text
    assert text.count("{") < 64
    journal = open_journal(tmp_path, Claim(task_id=TASK))
    journal.close()


async def test_a_task_that_is_gone_ends_the_sending(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        async with sending(bench) as (journal, _, sender):
            del bench.server.tasks[TASK]
            journal.note_message(item("a"))
            await trio.sleep(1)
            journal.note_message(item("b"))
            await trio.sleep(60)
            assert sender.gone
        assert bench.server.count(".*/messages") == 1


async def test_a_batch_in_flight_is_not_cut_by_a_stop(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        async with sending(bench) as (journal, task, _):
            bench.server.fail_next(".*/messages", delay(3.0))
            journal.note_message(item("a"))
            await trio.sleep(1)
        assert bench.server.count(".*/messages") == 1
        assert task.seqs == [1]
