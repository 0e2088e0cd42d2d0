"""What Claude's own logs say of this machine: added up once, told once a day, never doubled."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.upkeep import local_usage
from daemon.upkeep.local_usage import DAYS, Tally, add_up, find_logs
from shared import codec, times
from shared.wire.runtime import MACHINE_REPORTS
from tests.support.daemon_rig import CLAUDE, CODEX, open_rig
from tests.support.fake_server import open_fake_server, uid
from tests.support.network import answer

pytestmark = pytest.mark.fast

FIRST, LOOK = 5.0, 60.0
"""Seconds; less than in earnest, because a daemon beats all the while."""

USAGE = "POST /api/daemon/runtimes/[^/]+/usage"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Claude's configuration of this test."""
    folder = tmp_path / "claude"
    monkeypatch.setattr(local_usage, "LOOK", LOOK)
    monkeypatch.setattr(local_usage, "FIRST", FIRST)
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(folder))
    return folder


def line(
    message_id: str, output: Any = 5, *, model: str = "opus", at: datetime | None = None
) -> bytes:
    usage = {"input_tokens": 10, "output_tokens": output, "cache_read_input_tokens": 3}
    event = {
        "type": "assistant",
        "timestamp": times.fine_stamp(at or times.now()),
        "requestId": f"r-{message_id}",
        "message": {"id": message_id, "model": model, "usage": usage},
    }
    return json.dumps(event).encode() + b"\n"


def write(home: Path, name: str, *lines: bytes) -> Path:
    path = home / "projects" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(lines))
    return path


async def totals(home: Path, days: int = DAYS) -> list[tuple[str, str, int, int, int]]:
    since = times.now().astimezone().date() - timedelta(days=days - 1)
    return [
        (each.date, each.model, each.input_tokens, each.output_tokens, each.cache_read_tokens)
        for each in await add_up({"CLAUDE_CONFIG_DIR": str(home)}, since)
    ]


async def test_an_answer_counts_once_however_often_it_is_written(
    autojump_clock: MockClock, home: Path
) -> None:
    """A line for each block of it, and all of them again in the session that resumed it."""
    write(home, "a/one.jsonl", line("m1", 1), line("m1", 7), line("m2"), line("m3", model="haiku"))
    write(home, "a/two.jsonl", line("m1", 7), line("m4"))
    today = times.now().astimezone().date().isoformat()
    assert await totals(home) == [(today, "haiku", 10, 5, 3), (today, "opus", 30, 17, 9)]


async def test_days_are_this_machines_and_old_ones_are_left_alone(
    autojump_clock: MockClock, home: Path
) -> None:
    now = times.now().astimezone()
    noon = now.replace(hour=12, minute=0, second=0, microsecond=0)
    lines = [line(f"m{n}", at=noon - timedelta(days=n)) for n in range(DAYS + 3)]
    write(home, "a/one.jsonl", *lines)
    days = [day for day, *_ in await totals(home)]
    assert days == sorted((noon - timedelta(days=n)).date().isoformat() for n in range(DAYS))
    old = write(home, "a/old.jsonl", line("other"))
    os.utime(old, (0, 0))
    assert await totals(home, 1) == [(noon.date().isoformat(), "opus", 10, 5, 3)]


@pytest.mark.parametrize(
    "nonsense",
    [
        b'{"usage": \n',
        b'"usage"\n',
        b'["usage"]\n',
        b'{"type":"assistant","message":{"usage":[]},"timestamp":"x"}\n',
        b'{"type":"assistant","message":{"usage":{}}}\n',
        b'{"type":"user","message":{"usage":{"input_tokens":5},"model":"opus"}}\n',
        b'"usage"' + b"[" * 100_000 + b"\n",
        line("m9", -1).replace(b"10", b"-10").replace(b": 3", b": -3"),
        line("m9", 10**13),
        line("m9").replace(b"opus", b" "),
        line("m9")[:-1],
        b"\xff\xfe usage\n",
    ],
)
async def test_what_cannot_be_understood_is_left_out(
    autojump_clock: MockClock, home: Path, nonsense: bytes
) -> None:
    write(home, "a/one.jsonl", line("m1"), nonsense)
    [(_, model, *counts)] = await totals(home)
    assert (model, counts) == ("opus", [10, 5, 3])


async def test_no_part_is_told_as_the_whole(
    autojump_clock: MockClock, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home, "a/one.jsonl", line("m1"))
    write(home, "a/two.jsonl", line("m2"))
    assert len(await totals(home)) == 1
    monkeypatch.setattr(local_usage, "MOST_FILES", 1)
    assert await totals(home) == []
    monkeypatch.setattr(local_usage, "MOST_FILES", 10)
    monkeypatch.setattr(local_usage, "MOST_BYTES", 300)
    assert await totals(home) == []


def test_only_files_are_read(home: Path) -> None:
    write(home, "a/one.jsonl", line("m1"))
    os.mkfifo(home / "projects" / "a" / "pipe.jsonl")
    (home / "projects" / "a" / "folder.jsonl").mkdir()
    since = datetime.now(UTC).date() - timedelta(days=2)
    assert len(find_logs({"CLAUDE_CONFIG_DIR": str(home)}, since)) == 1
    tally = Tally(since)
    tally.read(home / "projects" / "a" / "missing.jsonl")
    assert tally.entries() == []


async def test_it_is_told_once_a_day_to_one_runtime_of_each_workspace(
    autojump_clock: MockClock, tmp_path: Path, home: Path
) -> None:
    write(home, "a/one.jsonl", line("m1"))
    async with open_fake_server() as server:
        server.capabilities = [MACHINE_REPORTS]
        server.workspaces[uid("other")] = "Other"
        server.fail_next(USAGE, answer(503))
        async with open_rig(server, tmp_path, programs=(CLAUDE, CODEX)) as rig:
            await rig.until_running()
            await trio.sleep(FIRST + 1)
            assert len(server.requests(USAGE)) == 1, "the server was away"
            await trio.sleep(LOOK)
            told = server.requests(USAGE)[1:]
            runtimes = {call.path.split("/")[4] for call in told}
            assert len(told) == len(runtimes) == 2
            assert all(server.runtimes[each]["provider"] == "claude" for each in runtimes)
            for call in told:
                [entry] = call.body["entries"]
                assert (entry["provider"], entry["input_tokens"]) == ("claude", 10)
            await trio.sleep(5 * LOOK)
            assert len(server.requests(USAGE)) == 3, "not again on the same day"
            stamp = rig.config.home.root / "local-usage.told"
            yesterday = times.now().timestamp() - local_usage.DAY - 1
            os.utime(stamp, (yesterday, yesterday))
            await trio.sleep(2 * LOOK)
            assert len(server.requests(USAGE)) == 5
            assert codec.loads(codec.encode(server.requests(USAGE)[-1].body)) == told[0].body


async def test_a_server_of_the_protocol_is_told_nothing(
    autojump_clock: MockClock, tmp_path: Path, home: Path
) -> None:
    write(home, "a/one.jsonl", line("m1"))
    async with open_fake_server() as server, open_rig(server, tmp_path) as rig:
        await rig.until_running()
        await trio.sleep(2 * LOOK)
        assert server.requests(USAGE) == []


async def test_who_does_not_want_it_told_says_so(
    autojump_clock: MockClock, tmp_path: Path, home: Path
) -> None:
    write(home, "a/one.jsonl", line("m1"))
    async with open_fake_server() as server:
        server.capabilities = [MACHINE_REPORTS]
        async with open_rig(server, tmp_path, local_usage=False) as rig:
            await rig.until_running()
            await trio.sleep(2 * LOOK)
            assert server.requests(USAGE) == []
