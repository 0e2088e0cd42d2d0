"""The journal file, and the replay of what a dead daemon left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.agents.contract import AgentResult
from daemon.tasks import journal as journals
from daemon.tasks.journal import Claim, Journal, Session, open_journal, open_left
from daemon.tasks.outcome import Outcome
from daemon.tasks.report import REPLAY_WITHIN, replay
from shared.wire.task import COMPLETED, FAILED, RUNNING, ModelUsage, TaskMessage
from tests.conftest import ExpectedErrors
from tests.daemon.tasks_support import RUNTIME, Script, open_bench, status, text
from tests.support.fake_server import FakeTask, uid
from tests.support.network import HANG, REFUSE, answer

pytestmark = pytest.mark.fast

CLAIM = Claim(task_id=uid("task"), workspace_id="w", runtime_id="r", provider="claude")


def item(content: str) -> TaskMessage:
    return TaskMessage(seq=0, type="text", content=content)


def fill(folder: Path, *contents: str, outcome: Outcome | None = None) -> Path:
    """Leave a journal as a killed daemon does."""
    journal = open_journal(folder, CLAIM)
    journal.note_started()
    journal.note_session(Session(session_id="s1", work_dir="/w"))
    for content in contents:
        journal.note_message(item(content))
    if outcome is not None:
        journal.note_usage([ModelUsage(provider="claude", model="opus", input_tokens=3)])
        journal.note_outcome(outcome)
    journal.close()
    return journal.path


def reopen(folder: Path) -> Journal:
    [journal] = open_left(folder)
    return journal


def test_everything_comes_back(tmp_path: Path) -> None:
    outcome = Outcome(completed=True, text="done ✓", session_id="s1", work_dir="/w")
    path = fill(tmp_path, "a", "b", outcome=outcome)
    assert path.stat().st_mode & 0o777 == 0o600
    journal = reopen(tmp_path)
    assert journal.claim == CLAIM
    assert journal.started
    assert journal.session == Session(session_id="s1", work_dir="/w")
    assert journal.outcome == outcome
    assert journal.usage[0].input_tokens == 3
    assert [(m.seq, m.content) for m in journal.next_batch().messages] == [(1, "a"), (2, "b")]
    journal.remove()
    assert not path.exists()


def test_a_line_torn_at_any_byte_never_happened(tmp_path: Path) -> None:
    whole = fill(tmp_path / "whole", "a", "ü" * 5, "c").read_bytes()
    path = tmp_path / "torn" / f"{uid('task')}.jsonl"
    path.parent.mkdir()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        journal = reopen(path.parent)
        items = sum(b'"item"' in line for line in whole[:length].split(b"\n")[:-1])
        assert journal.last_seq == items
        journal.note_message(item("next"))
        journal.close()
        again = reopen(path.parent)
        assert [m.seq for m in again.next_batch().messages] == list(range(1, items + 2))
        assert again.next_batch().messages[-1].content == "next"
        again.close()


@pytest.mark.parametrize("line", [b"not json\n", b"[1]\n", b'{"session":5}\n', b'{"item":{}}\n'])
def test_a_damaged_line_costs_only_itself(tmp_path: Path, line: bytes) -> None:
    path = fill(tmp_path, "a")
    with path.open("ab") as file:
        file.write(line)
    journal = reopen(tmp_path)
    journal.note_message(item("b"))
    assert [m.content for m in journal.next_batch().messages] == ["a", "b"]
    journal.close()


def test_batches_are_bounded_and_go_on_behind_the_confirmed(tmp_path: Path) -> None:
    fill(tmp_path, *map(str, range(250)))
    journal = reopen(tmp_path)
    sizes = []
    seqs: list[int] = []
    while batch := journal.next_batch():
        sizes.append(len(batch.messages))
        seqs += [m.seq for m in batch.messages]
        journal.confirm(batch.end)
    assert sizes == [100, 100, 50]
    assert seqs == list(range(1, 251))
    journal.close()
    again = reopen(tmp_path)
    assert not again.unsent, "the confirmed position is kept"
    again.close()


def test_a_batch_is_bounded_in_bytes_but_never_empty(tmp_path: Path) -> None:
    fill(tmp_path, "x" * 300_000, "y" * 200_000, "z" * 200_000)
    journal = reopen(tmp_path)
    lengths = []
    while batch := journal.next_batch():
        lengths.append(len(batch.messages))
        journal.confirm(batch.end)
    assert lengths == [1, 1, 1]
    journal.close()


def test_a_redelivered_task_goes_on_numbering(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", outcome=Outcome(completed=True, text="done"))
    journal = open_journal(tmp_path, CLAIM)
    assert journal.outcome is None, "what the earlier delivery decided is void"
    journal.note_message(item("c"))
    assert [m.seq for m in journal.next_batch().messages] == [1, 2, 3]
    journal.close()


def test_no_secret_is_written(tmp_path: Path) -> None:
    assert b"mat_" not in fill(tmp_path, "a").read_bytes()


# -- replay


def leave(server: Any) -> FakeTask:
    """The server's row of a task whose daemon died while it ran."""
    task: FakeTask = server.add_task(RUNTIME.id, uid("task"))
    task.status = RUNNING
    return task


async def test_a_crash_after_each_append(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill the daemon after every record it writes; the next start must make the best of it."""
    images: list[bytes] = []
    append = Journal._append

    def spying(self: Journal, kind: str, value: Any, *, durable: bool = False) -> None:
        append(self, kind, value, durable=durable)
        images.append(self.path.read_bytes())

    monkeypatch.setattr(Journal, "_append", spying)
    script = Script(steps=(status("s1"), text("a"), 1.0, text("b"), 1.0, text("c")))
    async with open_bench(tmp_path / "live", script) as bench:
        await bench.run(bench.add())
        final = bench.server.tasks[uid("task")]
    monkeypatch.undo()
    assert len(images) > 8
    for number, image in enumerate(images):
        home = tmp_path / str(number)
        async with open_bench(home) as bench:
            task = leave(bench.server)
            folder = bench.config.home.journals
            folder.mkdir(parents=True)
            (folder / f"{task.id}.jsonl").write_bytes(image)
            confirmed = reopen(folder)
            # what was confirmed before the crash is on the server
            for seq in range(1, confirmed.confirmed.seq + 1):
                task.rows[seq] = final.rows[seq]
            items, outcome = confirmed.last_seq, confirmed.outcome
            confirmed.close()
            await replay(bench.client, folder)
            assert task.seqs == list(range(1, items + 1))
            assert all(task.rows[seq] == final.rows[seq] for seq in task.rows)
            assert task.status == (COMPLETED if outcome else RUNNING), "the rest is for recovery"
            if outcome:
                assert task.result == final.result
                assert task.usage == final.usage
            elif b'"session"' in image:
                assert task.session["session_id"] == "s1"
            assert list(folder.iterdir()) == []


async def test_a_failure_is_replayed_as_it_was(autojump_clock: MockClock, tmp_path: Path) -> None:
    failed = AgentResult(status="failed", error="429 overloaded", session_id="s1")
    async with open_bench(tmp_path, Script(result=failed)) as bench:
        task = bench.add()
        bench.server.fail_always(".*/fail", REFUSE)
        bench.hand_over(task)
        await trio.sleep(10)
        bench.pool.stop(0)
        await bench.pool.wait_empty()
        assert task.status == RUNNING
        bench.server.fail_always(".*/fail", None)
        await replay(bench.client, bench.config.home.journals)
        assert task.status == FAILED
        assert task.failure_reason == "agent_error.provider_capacity_or_rate_limit"


async def test_replay_waits_for_a_server_that_is_away(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        task = leave(bench.server)
        folder = bench.config.home.journals
        fill(folder, "a", outcome=Outcome(completed=True, text="done"))
        bench.server.fail_always(".*", REFUSE)
        with trio.move_on_after(3600) as waited:
            await replay(bench.client, folder)
        assert waited.cancelled_caught
        bench.server.fail_always(".*", None)
        await replay(bench.client, folder)
        assert task.status == COMPLETED
        assert bench.journals == []


async def test_one_journal_the_server_chokes_on_does_not_hold_up_the_rest(
    autojump_clock: MockClock, tmp_path: Path, error_log: ExpectedErrors
) -> None:
    async with open_bench(tmp_path) as bench:
        task = leave(bench.server)
        folder = bench.config.home.journals
        fill(folder, "a", outcome=Outcome(completed=True, text="done"))
        bench.server.fail_always(".*/complete", answer(500))
        start = trio.current_time()
        await replay(bench.client, folder)
        assert trio.current_time() - start <= REPLAY_WITHIN + 1
        error_log.expect("journal not taken by the server; kept")
        assert len(bench.journals) == 1
        bench.server.fail_always(".*/complete", None)
        await replay(bench.client, folder)
        assert task.status == COMPLETED


async def test_a_journal_of_a_task_nobody_knows_is_dropped(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        fill(bench.config.home.journals, "a", outcome=Outcome(completed=True, text="done"))
        await replay(bench.client, bench.config.home.journals)
        assert bench.journals == []


async def test_a_journal_signed_out_is_kept(
    autojump_clock: MockClock, tmp_path: Path, error_log: ExpectedErrors
) -> None:
    async with open_bench(tmp_path) as bench:
        leave(bench.server)
        fill(bench.config.home.journals, "a", outcome=Outcome(completed=True, text="done"))
        bench.server.fail_always("POST .*", answer(401, '{"error":"invalid token"}'))
        await replay(bench.client, bench.config.home.journals)
        error_log.expect("journal not taken by the server; kept")
        assert len(bench.journals) == 1


async def test_no_journals_no_calls(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.server.fail_always(".*", HANG)
        with trio.fail_after(1):
            await replay(bench.client, bench.config.home.journals)
        assert bench.server.calls == []


def test_the_format_is_one_named_record_a_line(tmp_path: Path) -> None:
    lines = fill(tmp_path, "a").read_text().splitlines()
    names = [line.split('"')[1] for line in lines]
    assert names == ["claim", "started", "session", "item"]
    assert journals.SUFFIX == ".jsonl"
