"""Logging never raises, whatever becomes of the stream, and hides secrets all the same."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from shared import log
from tests.conftest import ExpectedErrors

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def own_logging(error_log: ExpectedErrors) -> Iterator[None]:
    """What these tests log goes where they say."""
    yield
    error_log.records.clear()


class Disk(io.StringIO):
    """A stream on a disk that is full for a while."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    disk = Disk()
    log.set_up("info", disk)
    logger = structlog.get_logger("x")
    logger.info("before")
    disk.full = True
    for _ in range(3):
        logger.warning("lost")
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            logger.exception("lost", value=1)
    disk.full = False
    logger.info("after")
    told = [json.loads(line) for line in disk.getvalue().splitlines()]
    assert [line["event"] for line in told] == ["before", "log lines are missing", "after"]
    assert told[1]["count"] == 6


def test_a_closed_stream_and_none_at_all_are_borne() -> None:
    stream = io.StringIO()
    log.set_up("info", stream)
    stream.close()
    structlog.get_logger("x").error("nobody hears it")
    log.Writer(None).msg("nobody")
    assert log.Writer(None).pretty is False


class Awkward:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


@pytest.mark.parametrize("value", [Awkward(), {"a": Awkward()}, {Awkward(): 1}])
def test_what_cannot_be_shown_is_told_in_short(value: Any) -> None:
    stream = io.StringIO()
    log.set_up("info", stream)
    structlog.get_logger("x").warning("mul_" + "a" * 40, value=value)
    assert "cannot be shown" in stream.getvalue()
    assert "a" * 40 not in stream.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_process_with_stderr_on_dev_full_goes_on() -> None:
    program = (
        "import logging, structlog\nfrom shared import log\nlog.set_up('info')\n"
        "structlog.get_logger('x').warning('a', b=1)\nlogging.getLogger('y').warning('b')\n"
        "print('still here')"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=full,
            timeout=30,
            check=False,
        )
    assert done.stdout == b"still here\n"
