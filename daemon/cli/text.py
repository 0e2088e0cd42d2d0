"""Long texts as options: `--X`, `--X-stdin` and `--X-file`, one of the three (spec 06 §20.2)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from daemon.cli.errors import CliError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_ESCAPE: Final = re.compile(r"\\([nrt\\])")
_MEANS: Final = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def text_options(name: str, what: str) -> Callable[[Decorated], Decorated]:
    """The three options of one text; the command gets `name`, `name_stdin` and `name_file`."""

    def decorate(command: Decorated) -> Decorated:
        for option in (
            click.option(f"--{name}-file", metavar="PATH", help=f"Read {what} from a UTF-8 file."),
            click.option(f"--{name}-stdin", is_flag=True, help=f"Read {what} from stdin."),
            click.option(
                f"--{name}", help=f"{what[:1].upper()}{what[1:]}; \\n, \\r, \\t, \\\\ are decoded."
            ),
        ):
            command = option(command)
        return command

    return decorate


def read_text(name: str, inline: str | None, from_stdin: bool, file: str | None) -> str | None:
    """The text one of the three options gives, or None without any. Raises CliError."""
    given = [inline is not None, from_stdin, file is not None]
    if sum(given) > 1:
        raise CliError(f"give only one of --{name}, --{name}-stdin and --{name}-file")
    if inline is not None:
        return unescape(inline)
    if from_stdin:
        return _verbatim(sys.stdin.buffer.read(), f"--{name}-stdin")
    if file is not None:
        try:
            data = Path(file).expanduser().read_bytes()
        except OSError as error:
            raise CliError(f"cannot read {file}: {error.strerror or error}") from error
        return _verbatim(data, f"--{name}-file {file}")
    return None


def unescape(text: str) -> str:
    r"""Decode \n, \r, \t and \\ in one pass; any other backslash stays as it is."""
    return _ESCAPE.sub(lambda match: _MEANS[match[1]], text)


def _verbatim(data: bytes, source: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CliError(f"{source} is not UTF-8 text") from error
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise CliError(f"{source} is empty")
    return text
