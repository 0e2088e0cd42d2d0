"""What `bullpen up` says while it works: stages with a spinner at a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from daemon.cli.output import plain
from shared.redact import redact

_TAIL: Final = 12
_ERROR: Final = re.compile(r"[A-Za-z_][\w.]*(: |$)")
_TAIL_BYTES: Final = 16 * 1024


class Voice:
    """Speaks to the person who started us."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Show that something is being done, then how long it took."""
        started = time.monotonic()
        if not self.console.is_terminal:
            self._print(escape(f"{what} …"))
            yield
            return
        with self.console.status(escape(what)):
            yield
        took = time.monotonic() - started
        self._print(f"[green]✓[/] {escape(what)} [dim]{took:.1f} s[/]")

    def say(self, text: str = "") -> None:
        """Print a line of ours; rich's markup counts."""
        self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"[yellow]![/] {escape(text)}")

    def _print(self, text: str) -> None:
        """Print, if that can be done: a full disk under a redirected output stops no work."""
        with suppress(OSError):
            self.console.print(text)


def log_tail(path: Path, start: int) -> str:
    """The last lines a child wrote into its log since `start` (bytes), for people; redacted."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start if start <= size else 0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line for line in map(_readable, text.splitlines()) if line.strip()]
    return redact("\n".join(lines[-_TAIL:]))


def _readable(line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return plain(line)
    if not isinstance(record, dict):
        return plain(line)
    return plain(_record(record), keep_lines=True)


def _record(record: dict[str, Any]) -> str:
    text = f"{record.pop('level', '')}: {record.pop('event', '')}".removeprefix(": ")
    trace = str(record.pop("exception", "") or "").strip()
    record.pop("timestamp", None)
    more = " ".join(f"{key}={value}" for key, value in record.items())
    # The last line that names an error: a group's traceback ends in a frame of dashes.
    last = next(
        (ln for line in reversed(trace.splitlines()) if _ERROR.match(ln := line.strip(" |+-"))), ""
    )
    return " ".join(part for part in (text, more, last) if part)
