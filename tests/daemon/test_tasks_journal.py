"""The journal file, and the telling of what nobody works on any more."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from daemon.agents.contract import AgentResult
from daemon.tasks import journal as journals
from daemon.tasks.backlog import AT_ONCE, TURN, Backlog
from daemon.tasks.journal import (
    Claim,
    Journal,
    JournalError,
    Session,
    left_journals,
    open_journal,
    path_of,
    reopen_journal,
)
from daemon.tasks.outcome import Outcome
from daemon.tasks.task import REPORT_WITHIN
from shared.wire.task import COMPLETED, FAILED, RUNNING, ModelUsage, TaskMessage
from tests.conftest import ExpectedErrors
from tests.daemon.tasks_support import RUNTIME, Script, open_bench, status, tell_journals, text
from tests.support.fake_server import FakeTask, uid
from tests.support.network import HANG, REFUSE, answer

pytestmark = pytest.mark.fast

CLAIM = Claim(task_id=uid("task"), workspace_id="w", runtime_id="r", provider="claude")


def item(content: str) -> TaskMessage:
    return TaskMessage(seq=0, type="text", content=content)


def fill(folder: Path, *contents: str, outcome: Outcome | None = None, **claim: str) -> Path:
    """Leave a journal as a killed daemon does."""
    journal = open_journal(folder, attrs.evolve(CLAIM, **claim))
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
    [task_id] = left_journals(folder)
    return reopen_journal(folder, task_id)


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


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["fine", "full", "broken", "short"]), st.integers(0, 60)),
        min_size=1,
        max_size=12,
    )
)
def test_numbers_never_repeat_whatever_the_disk_does(steps: list[tuple[str, int]]) -> None:
    """What was taken has a number of its own, also when writing it failed."""
    write, weather = os.pwrite, ["fine"]

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if weather[-1] == "full":
            raise OSError(errno.ENOSPC, "full")
        if weather[-1] == "broken":
            raise OSError(errno.EIO, "broken")
        part = data[: len(data) // 2 + 1] if weather[-1] == "short" else data
        return write(descriptor, part, offset)

    def check(journal: Journal) -> None:
        read = journal.next_batch().messages
        assert [message.content for message in read] == want
        assert [message.seq for message in read] == list(range(1, len(want) + 1))
        assert journal.last_seq == len(want)

    with tempfile.TemporaryDirectory() as folder, mock.patch("os.pwrite", pwrite):
        journal = open_journal(Path(folder), CLAIM)
        for number, (disk, size) in enumerate(steps):
            weather.append(disk)
            with suppress(JournalError):
                journal.note_message(item(f"{number}:" + "x" * size))
        want = [f"{number}:" + "x" * size for number, (_, size) in enumerate(steps)]
        weather.append("fine")
        check(journal)
        journal.note_started()
        journal.close()
        again = reopen(Path(folder))
        check(again)
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

    def spying(self: Journal, kind: str, value: Any) -> None:
        append(self, kind, value)
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
            await tell_journals(bench.client, folder)
            assert task.seqs == list(range(1, items + 1))
            assert all(task.rows[seq] == final.rows[seq] for seq in task.rows)
            assert task.status == (COMPLETED if outcome else FAILED)
            if outcome is None:
                assert task.failure_reason == "runtime_recovery"
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
        await tell_journals(bench.client, bench.config.home.journals)
        assert task.status == FAILED
        assert task.failure_reason == "agent_error.provider_capacity_or_rate_limit"


async def test_what_is_left_waits_for_a_server_that_is_away(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        task = leave(bench.server)
        folder = bench.config.home.journals
        fill(folder, "a", outcome=Outcome(completed=True, text="done"))
        bench.server.fail_always(".*", REFUSE)
        with trio.move_on_after(3600) as waited:
            await tell_journals(bench.client, folder)
        assert waited.cancelled_caught
        bench.server.fail_always(".*", None)
        await tell_journals(bench.client, folder)
        assert task.status == COMPLETED
        assert bench.journals == []


async def test_journals_the_server_chokes_on_do_not_hold_up_the_rest(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Twice as many as are told at once never get through; the last one does all the same."""
    async with open_bench(tmp_path) as bench:
        folder = bench.config.home.journals
        done = Outcome(completed=True, text="done")
        for number in range(2 * AT_ONCE):
            name = uid(f"bad {number}")
            bench.server.add_task(RUNTIME.id, name).status = RUNNING
            bench.server.fail_always(f".*/{name}/complete", answer(500))
            fill(folder, "a", outcome=done, task_id=name, runtime_id="bad")
        task = leave(bench.server)
        fill(folder, "a", outcome=done)
        os.utime(path_of(folder, task.id), (2e9, 2e9))
        backlog = Backlog(bench.client, folder)
        async with trio.open_nursery() as telling:
            telling.start_soon(backlog.run)
            with trio.fail_after(3 * TURN):
                await backlog.wait_told(CLAIM.runtime_id)
            assert task.status == COMPLETED
            assert backlog.count == 2 * AT_ONCE
            assert all(backlog.owes(uid(f"bad {number}")) for number in range(2 * AT_ONCE))
            assert not backlog.owes(task.id)
            for number in range(2 * AT_ONCE):
                bench.server.fail_always(f".*/{uid(f'bad {number}')}/complete", None)
            with trio.fail_after(120):
                await backlog.wait_told("bad")
            assert bench.journals == []
            telling.cancel_scope.cancel()


async def test_a_report_the_server_does_not_take_gives_its_slot_back(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.server.fail_always(".*/complete", answer(503))
        task = await bench.run(bench.add(), within=REPORT_WITHIN + 60)
        assert task.status == RUNNING
        assert bench.backlog.owes(task.id)
        assert not bench.hand_over(task), "its directory still holds what was not told"
        bench.server.fail_always(".*/complete", None)
        async with trio.open_nursery() as telling:
            telling.start_soon(bench.backlog.run)
            await bench.backlog.wait_told(RUNTIME.id)
            telling.cancel_scope.cancel()
        assert task.status == COMPLETED
        assert bench.journals == []


async def test_a_task_the_server_ended_gets_no_other_outcome_later(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path, Script(steps=(text("a"), 1e6))) as bench:
        task = bench.add()
        bench.hand_over(task)
        await trio.sleep(3)
        bench.server.cancel_task(task.id)
        bench.server.fail_always(".*/usage", answer(503))
        with trio.fail_after(REPORT_WITHIN + 60):
            await bench.pool.wait_empty()
        assert len(bench.journals) == 1
        bench.server.fail_always(".*/usage", None)
        await tell_journals(bench.client, bench.config.home.journals)
        assert ("claude", "opus") in task.usage
        assert not {"complete", "fail"} & set(bench.routes(task))


async def test_a_journal_that_cannot_be_read_stays_and_holds_nothing_up(
    autojump_clock: MockClock, tmp_path: Path, error_log: ExpectedErrors
) -> None:
    async with open_bench(tmp_path) as bench:
        folder = bench.config.home.journals
        path_of(folder, "odd").mkdir(parents=True)
        await tell_journals(bench.client, folder)
        error_log.expect("journal not told")
        assert path_of(folder, "odd").is_dir()


async def test_a_journal_that_breaks_the_telling_holds_nothing_up(
    autojump_clock: MockClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error_log: ExpectedErrors,
) -> None:
    """A bug costs one journal its telling, and not the daemon: it would meet it at every start."""
    async with open_bench(tmp_path) as bench:
        folder = bench.config.home.journals
        task = leave(bench.server)
        done = Outcome(completed=True, text="done")
        fill(folder, "a", outcome=done, task_id="odd")
        fill(folder, "a", outcome=done)
        complete = bench.client.complete

        async def odd(task_id: str, request: Any) -> Any:
            if task_id == "odd":
                raise ZeroDivisionError
            return await complete(task_id, request)

        monkeypatch.setattr(bench.client, "complete", odd)
        await tell_journals(bench.client, folder)
        assert task.status == COMPLETED
        error_log.expect("telling a journal crashed")
        assert bench.journals == [path_of(folder, "odd")]


async def test_a_task_that_leaves_a_second_journal_has_it_told_too(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        task = leave(bench.server)
        folder = bench.config.home.journals
        done = Outcome(completed=True, text="done")
        backlog = Backlog(bench.client, folder)
        async with trio.open_nursery() as telling:
            telling.start_soon(backlog.run)
            for _ in range(2):
                task.status = RUNNING
                fill(folder, "a", outcome=done)
                backlog.leave(task.id, CLAIM.runtime_id)
                with trio.fail_after(60):
                    await backlog.wait_told(CLAIM.runtime_id)
                assert task.status == COMPLETED
            telling.cancel_scope.cancel()
        assert bench.journals == []


async def test_an_outcome_is_on_disk_before_the_transcripts_last_batch_is_waited_for(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A crash meanwhile would make an interrupted run of a completed one."""
    async with open_bench(tmp_path, Script(steps=(text("a"), 1.0))) as bench:
        bench.server.fail_always(".*/messages", HANG)
        bench.hand_over(bench.add())
        await trio.sleep(1.1)
        [path] = bench.journals
        assert '"outcome"' in path.read_text()
        bench.server.fail_always(".*/messages", None)


# -- a disk without room


class Disk:
    """Takes so many more bytes, and then says that it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 10**9
        self._pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", self.write)

    def write(self, descriptor: int, data: bytes | bytearray, offset: int) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self._pwrite(descriptor, bytes(data[: self.room]), offset)
        self.room -= taken
        return taken


def test_what_a_full_disk_does_not_take_is_read_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    for room in range(300):
        folder = tmp_path / str(room)
        journal = open_journal(folder, CLAIM)
        journal.note_message(item("before"))
        disk.room = room
        for word in ("ü", "two", "three"):
            journal.note_message(item(word))
        read: list[str] = []
        while batch := journal.next_batch(items=1):
            read += [message.content for message in batch.messages]
            journal.confirm(batch.end)
        assert read == ["before", "ü", "two", "three"]
        disk.room = 10**9
        journal.note_message(item("after"))
        journal.close()
        again = reopen(folder)
        assert again.last_seq == 5
        assert [message.content for message in again.next_batch().messages] == ["after"]
        again.close()


def test_a_crash_while_the_disk_is_full_costs_only_what_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    for room in range(0, 300, 7):
        journal = open_journal(tmp_path / str(room), CLAIM)
        disk.room = room
        for word in ("one", "two", "three"):
            journal.note_message(item(word))
        journal.close()
        disk.room = 10**9
        again = reopen(tmp_path / str(room))
        assert again.last_seq <= 3
        assert [m.seq for m in again.next_batch().messages] == list(range(1, again.last_seq + 1))
        again.close()


def test_a_disk_that_stays_full_fails_the_task_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "BEHIND_LIMIT", 1000)
    disk = Disk(monkeypatch)
    journal = open_journal(tmp_path, CLAIM)
    disk.room = 0
    journal.note_message(item("x" * 500))
    with pytest.raises(JournalError, match="no space"):
        journal.note_message(item("x" * 500))
    journal.close()


async def test_a_task_goes_on_while_the_disk_is_full(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)

    def fill_up() -> None:
        disk.room = 20

    async with open_bench(tmp_path, Script(steps=(text("a"), fill_up, 1.0, text("b")))) as bench:
        task = await bench.run(bench.add())
        assert task.status == COMPLETED
        assert [task.rows[seq]["content"] for seq in task.seqs] == ["a", "b"]
        assert ("claude", "opus") in task.usage


async def test_a_task_keeps_its_slot_while_its_outcome_is_in_memory_only(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)

    def fill_up() -> None:
        disk.room = 0

    async with open_bench(tmp_path, Script(steps=(text("a"), fill_up))) as bench:
        task = bench.add()
        bench.server.fail_always(".*/(complete|fail|usage)", answer(503))
        bench.hand_over(task)
        await trio.sleep(5 * REPORT_WITHIN)
        assert task.id in bench.pool.active, "the journal says nothing of an outcome"
        disk.room = 10**9
        await trio.sleep(3 * REPORT_WITHIN)
        assert bench.backlog.owes(task.id)
        bench.server.fail_always(".*/(complete|fail|usage)", None)
        await tell_journals(bench.client, bench.config.home.journals)
        assert task.status == COMPLETED


# -- a disk that fails


async def test_an_outcome_that_cannot_be_kept_is_told_all_the_same(
    autojump_clock: MockClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error_log: ExpectedErrors,
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def break_down() -> None:
        monkeypatch.setattr(os, "pwrite", fail)

    async with open_bench(tmp_path, Script(steps=(text("a"), 1.0, break_down))) as bench:
        task = await bench.run(bench.add())
        assert task.status == COMPLETED
        assert ("claude", "opus") in task.usage
        assert bench.journals == []
    error_log.expect("not journalled")
    error_log.expect("journal not saved")


async def test_a_transcript_that_cannot_be_read_costs_neither_the_work_nor_its_outcome(
    autojump_clock: MockClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error_log: ExpectedErrors,
) -> None:
    read = Journal.next_batch

    def fail(self: Journal, **_: Any) -> Any:
        raise JournalError("Input/output error")

    def break_down() -> None:
        monkeypatch.setattr(Journal, "next_batch", fail)

    script = Script(steps=(text("a"), 1.0, break_down, text("b"), 100.0, text("c")))
    async with open_bench(tmp_path, script) as bench:
        task = await bench.run(bench.add())
        assert task.status == COMPLETED
        assert task.seqs == [1]
        monkeypatch.setattr(Journal, "next_batch", read)
        await tell_journals(bench.client, bench.config.home.journals)
        assert task.seqs == [1, 2, 3]
    error_log.expect("transcript not read")
    error_log.expect("transcript not told")


# -- journals nobody needs


async def test_a_journal_of_a_task_nobody_knows_is_dropped(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        fill(bench.config.home.journals, "a", outcome=Outcome(completed=True, text="done"))
        await tell_journals(bench.client, bench.config.home.journals)
        assert bench.journals == []


async def test_a_journal_signed_out_is_kept(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        leave(bench.server)
        fill(bench.config.home.journals, "a", outcome=Outcome(completed=True, text="done"))
        bench.server.fail_always("POST .*", answer(401, '{"error":"invalid token"}'))
        with trio.move_on_after(3600):
            await tell_journals(bench.client, bench.config.home.journals)
        assert len(bench.journals) == 1


async def test_no_journals_no_calls(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.server.fail_always(".*", HANG)
        with trio.fail_after(1):
            await tell_journals(bench.client, bench.config.home.journals)
        assert bench.server.calls == []


def test_the_format_is_one_named_record_a_line(tmp_path: Path) -> None:
    lines = fill(tmp_path, "a").read_text().splitlines()
    names = [line.split('"')[1] for line in lines]
    assert names == ["claim", "started", "session", "item"]
    assert journals.SUFFIX == ".jsonl"
