"""What agent programs have used on this machine beside tasks, by their own logs, told once a day.

Reads Claude's logs, one JSON object a line (`projects/*/*.jsonl` below its configuration), adds them up
by day of this machine's calendar and by model, and tells the server, which replaces what it had for that
day: to tell it twice doubles nothing. Only where the server offers to take it and the machine's owner
has not switched it off (`BULLPEN_LOCAL_USAGE`). Files are read in
threads, one at a time, and only those written within the days told. It ends by being cancelled.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from daemon import threads
from daemon.agents.contract import Tokens
from daemon.agents.loose import mapping, number, parse, string
from daemon.client import ApiError
from shared import times
from shared.wire.runtime import MACHINE_REPORTS, DayUsage

if TYPE_CHECKING:
    from daemon.services import Services

log = structlog.get_logger(__name__)

PROVIDER: Final = "claude"

FIRST: Final = 60.0
"""Seconds after the start: whatever else begins then matters more."""

LOOK: Final = 3600.0
"""Seconds between looks at whether a day has passed: a laptop sleeps through any longer wait."""

DAY: Final = 24 * 3600.0

DAYS: Final = 8
"""Days that are told, today's among them: a machine may be off for a week and miss none."""

MOST_FILES: Final = 20_000
MOST_BYTES: Final = 1024**3
"""With more than that nothing is told, rather than a part that looks like the whole."""

LONGEST_LINE: Final = 4 * 1024 * 1024
"""Bytes; a longer line holds a tool's output and no usage."""

_MOST_TOKENS: Final = 10**12
"""Of one answer; more is nonsense."""

_STAMP: Final = "local-usage.told"


@attrs.define
class Tally:
    """Answers by their ids: a log repeats one for each of its blocks, and a resumed session copies it.

    The last line of an answer counts, which has its final numbers.
    """

    since: date
    answers: dict[tuple[str, ...], tuple[str, str, Tokens]] = attrs.field(factory=dict)

    def read(self, path: Path) -> None:
        """Take a log in. What cannot be read or understood is left out. Blocks."""
        try:
            with path.open("rb") as file:
                line = 0
                while data := file.readline(LONGEST_LINE):
                    line += 1
                    if b'"usage"' in data and data.endswith(b"\n"):
                        self._take(data, str(path), line)
        except OSError as error:
            log.debug("log not read", path=str(path), error=str(error))

    def _take(self, data: bytes, path: str, line: int) -> None:
        event = parse(data) or {}
        message = mapping(event.get("message"))
        usage, model = mapping(message.get("usage")), string(message.get("model")).strip()
        day = _day_of(string(event.get("timestamp")))
        if event.get("type") != "assistant" or not model or day is None or day < self.since:
            return
        tokens = Tokens(
            input=number(usage.get("input_tokens")),
            output=number(usage.get("output_tokens")),
            cache_read=number(usage.get("cache_read_input_tokens")),
            cache_write=number(usage.get("cache_creation_input_tokens")),
        )
        if not tokens or max(attrs.astuple(tokens)) > _MOST_TOKENS:
            return
        ids = (string(message.get("id")), string(event.get("requestId")))
        key = ids if ids[0] else (path, str(line))
        self.answers[key] = (day.isoformat(), model, tokens)

    def entries(self) -> list[DayUsage]:
        """The totals by day and model, sorted."""
        totals: dict[tuple[str, str], list[int]] = {}
        for day, model, tokens in self.answers.values():
            total = totals.setdefault((day, model), [0, 0, 0, 0])
            for place, count in enumerate(
                (tokens.input, tokens.output, tokens.cache_read, tokens.cache_write)
            ):
                total[place] += count
        return [
            DayUsage(
                date=day,
                provider=PROVIDER,
                model=model,
                input_tokens=total[0],
                output_tokens=total[1],
                cache_read_tokens=total[2],
                cache_write_tokens=total[3],
            )
            for (day, model), total in sorted(totals.items())
        ]


def find_logs(env: Mapping[str, str], since: date) -> list[Path]:
    """Claude's logs written since that day, sorted; none if they are too many. Blocks."""
    base = env.get("CLAUDE_CONFIG_DIR") or str(Path(env.get("HOME") or Path.home()) / ".claude")
    oldest = datetime.combine(since, datetime.min.time()).astimezone().timestamp()
    found, size = [], 0
    for path in (Path(base) / "projects").glob("*/*.jsonl"):
        try:
            told = path.stat()
        except OSError:
            continue
        if stat.S_ISREG(told.st_mode) and told.st_mtime >= oldest:
            found.append(path)
            size += told.st_size
            if len(found) > MOST_FILES or size > MOST_BYTES:
                log.warning("too many logs to tell the usage of this machine", folder=base)
                return []
    return sorted(found)


async def add_up(env: Mapping[str, str], since: date) -> list[DayUsage]:
    """Add up what the logs say of the days since then."""
    tally = Tally(since)
    for path in await threads.in_thread(partial(find_logs, env, since)):
        # one file at a time, so that a stop of the daemon waits for no more than that
        await threads.in_thread(partial(tally.read, path))
    return tally.entries()


async def run_local_usage(services: Services, env: Mapping[str, str] = os.environ) -> None:
    """Tell the usage of the last days once a day, for ever."""
    stamp = services.config.home.root / _STAMP
    await trio.sleep(FIRST)
    while True:
        wanted = services.config.local_usage and MACHINE_REPORTS in services.offers
        if wanted and await threads.in_thread(partial(_is_due, stamp)):
            await _tell(services, env, stamp)
        await trio.sleep(LOOK)


async def _tell(services: Services, env: Mapping[str, str], stamp: Path) -> None:
    runtimes = _one_of_each_workspace(services)
    if not runtimes:
        return
    since = times.now().astimezone().date() - timedelta(days=DAYS - 1)
    entries = await add_up(env, since)
    for runtime_id in runtimes if entries else ():
        try:
            await services.client.runtime_usage(runtime_id, entries)
        except ApiError as error:
            log.info("usage of this machine not told", runtime_id=runtime_id, error=str(error))
            if not error.final:
                return  # again at the next look
    await threads.in_thread(partial(_set_stamp, stamp))


def _one_of_each_workspace(services: Services) -> list[str]:
    """A runtime of the program's in each workspace: told of two, it would count twice there."""
    chosen = []
    for ids in services.directory.by_workspace().values():
        infos = [info for each in ids if (info := services.directory.find(each)) is not None]
        chosen += [info.id for info in infos if info.provider == PROVIDER][:1]
    return chosen


def _is_due(stamp: Path) -> bool:
    try:
        age = times.now().timestamp() - stamp.stat().st_mtime
    except OSError:
        return True
    return not 0 <= age < DAY


def _set_stamp(stamp: Path) -> None:
    try:
        stamp.touch()
        now = times.now().timestamp()
        os.utime(stamp, (now, now))
    except OSError as error:
        log.debug("not noted when usage was told", error=str(error))


def _day_of(text: str) -> date | None:
    """The day of this machine's calendar at a moment; None for what is none."""
    try:
        return datetime.fromisoformat(text).astimezone().date()
    except (ValueError, OverflowError, OSError):
        return None
