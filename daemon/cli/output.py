"""What a command prints: JSON or tables on stdout, notices on stderr (spec 06 §20.2).

Text from the server is somebody's free text: in tables its control characters are taken out, so
that a title cannot move the cursor or recolour the reader's terminal.
"""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click

from shared.ids import short_id, short_ids
from shared.times import parse_stamp

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_COLOURS: Final = {
    "online": "green",
    "idle": "green",
    "done": "green",
    "completed": "green",
    "in_review": "magenta",
    "in_progress": "blue",
    "running": "blue",
    "working": "blue",
    "dispatched": "cyan",
    "queued": "cyan",
    "waiting_local_directory": "yellow",
    "blocked": "yellow",
    "urgent": "red",
    "high": "yellow",
    "failed": "red",
    "error": "red",
    "offline": "bright_black",
    "cancelled": "bright_black",
    "backlog": "bright_black",
    "none": "bright_black",
}

_ESCAPED: Final = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""DEL and the C1 controls: some terminals take U+009B for the beginning of a command."""

_NARROWEST: Final = 12
"""A column is never cut below this many cells to fit a terminal."""


def output_option(default: str) -> Callable[[Decorated], Decorated]:
    """The `--output json|table` option with the command's own default."""
    return click.option(
        "--output",
        type=click.Choice(["table", "json"]),
        default=default,
        show_default=True,
        help="How to print the result.",
    )


def print_json(value: Any, indent: int | None = 2) -> None:
    click.echo(json_text(value, indent).encode("utf-8", "replace"))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON for people and programs: control characters that JSON lets pass are escaped, too."""
    return json.dumps(value, indent=indent, ensure_ascii=False).translate(_ESCAPED)


def notice(text: str) -> None:
    """Tell the person something that is not the result, without the text's control characters."""
    click.echo(plain(text, keep_lines=True), err=True)


def plain(text: str, *, keep_lines: bool = False) -> str:
    """Take control characters out of text for a terminal."""
    kept = "\n\t" if keep_lines else ""
    return "".join(
        c if c in kept or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else " " for c in text
    )


def cells(text: str) -> int:
    """How many terminal cells the text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _cut(text: str, width: int) -> str:
    if cells(text) <= width:
        return text
    kept, used = [], 0
    for c in text:
        used += cells(c)
        if used > width - 1:
            break
        kept.append(c)
    return "".join(kept) + "…"


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under an upper-case header, columns two spaces apart.

    At a terminal the widest columns are cut to fit the line and statuses are coloured; into a
    file or pipe everything is printed whole.
    """
    texts = [[plain("" if v is None else str(v)) for v in row] for row in rows]
    widths = [max(cells(r[i]) for r in [list(header), *texts]) for i in range(len(header))]
    at_terminal = sys.stdout.isatty()
    if at_terminal:
        _fit(widths, shutil.get_terminal_size().columns)
    lines = []
    for index, row in enumerate([list(header), *texts]):
        parts = []
        for place, (text, width) in enumerate(zip(row, widths, strict=True)):
            shown = _cut(text, width)
            padding = "" if place == len(widths) - 1 else " " * (width - cells(shown))
            if at_terminal:
                shown = (
                    click.style(shown, bold=True)
                    if index == 0
                    else click.style(shown, fg=_COLOURS.get(text))
                )
            parts.append(shown + padding)
        lines.append("  ".join(parts).rstrip())
    click.echo("\n".join(lines))


def _fit(widths: list[int], room: int) -> None:
    """Narrow the widest columns until the line fits or nothing is left to give."""
    while sum(widths) + 2 * (len(widths) - 1) > room:
        widest = max(range(len(widths)), key=widths.__getitem__)
        if widths[widest] <= _NARROWEST:
            return
        widths[widest] -= 1


def print_fields(fields: Sequence[tuple[str, Any]]) -> None:
    """Print one object as aligned `Name: value` lines; empty values are left out."""
    shown = [(name, plain(str(v), keep_lines=True)) for name, v in fields if v not in (None, "")]
    width = max((len(name) for name, _ in shown), default=0) + 1
    for name, value in shown:
        first, *rest = value.split("\n")
        label = f"{name}:".ljust(width)
        styled = click.style(label, bold=True) if sys.stdout.isatty() else label
        click.echo(f"{styled}  {first}")
        for line in rest:
            click.echo(f"{' ' * width}  {line}")


def short(full: str | None) -> str:
    """An id that stands alone: its last eight digits, which tell it from others of its minute."""
    return short_id(full) if full else ""


def shortener(ids: Iterable[str], full_id: bool = False) -> Callable[[str], str]:
    """How a table shows these ids: as much as tells them apart, or all of them."""
    known = {one: one for one in ids} if full_id else short_ids(ids)
    return lambda full: known.get(full, full)


def ago(stamp: str | None) -> str:
    """A time as a person reads it: `12 s ago`, or the day when it is long past."""
    if not stamp:
        return ""
    try:
        moment = parse_stamp(stamp)
    except ValueError:
        return stamp
    seconds = (datetime.now(UTC) - moment).total_seconds()
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{max(int(seconds // unit), 0)} {name} ago"
    return moment.strftime("%Y-%m-%d")
