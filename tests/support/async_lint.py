"""Runs flake8-async over the files given, or over all of the project's, on every core.

    python -m tests.support.async_lint [FILE ...]

The plugin's own command walks each file five times through a slow concrete syntax tree, even for
files that have nothing asynchronous in them. Only one rule we use needs that tree (ASYNC101, a
`yield` inside a nursery or cancel scope), so only files with both get it; all others are checked
on Python's own tree. Exit status 1 when anything was found.
"""

from __future__ import annotations

import ast
import multiprocessing
import re
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path

from flake8_async import Plugin
from flake8_async.base import Error
from flake8_async.runner import Flake8AsyncRunner

FOLDERS = ("server", "daemon", "shared", "tests", "bench")

DISABLED = (
    "ASYNC109",  # a timeout parameter is the interface where waiting is the job
    "ASYNC114",  # which functions are startable is said by their task_status parameter
    "ASYNC124",  # a function may be async because its caller awaits any of a family
    "ASYNC127",  # httpx is what the project was asked to use
    # Not every async function promises a checkpoint; loops that must have one say so.
    *("ASYNC910", "ASYNC911", "ASYNC912", "ASYNC913"),
)

_SCOPE = re.compile(r"open_nursery|CancelScope|move_on_|fail_a")
_NOQA = re.compile(r"# noqa(?:: ?(?P<codes>[A-Z0-9, ]+))?", re.IGNORECASE)


def check(path: str) -> list[str]:
    """Returns what is wrong with a file, one printable line a finding."""
    source = Path(path).read_text(encoding="utf-8")
    if "async " not in source and "trio" not in source:
        return []
    lines = source.splitlines()
    return [
        f"{path}:{error.line}:{error.col + 1}: {error.format_message()}"
        for error in sorted(_errors(source), key=lambda error: (error.line, error.col))
        if not _excused(lines[error.line - 1], error.code)
    ]


def _errors(source: str) -> Iterable[Error]:
    if "yield" in source and _SCOPE.search(source):
        return Plugin.from_source(source).run()
    return Flake8AsyncRunner.run(ast.parse(source), Plugin.from_source("").options)


def _excused(line: str, code: str) -> bool:
    found = _NOQA.search(line)
    return found is not None and (found["codes"] is None or code in found["codes"])


def _configure() -> None:
    parser = ArgumentParser()
    Plugin.add_options(parser)
    Plugin.parse_options(parser.parse_args(["--disable", ",".join(DISABLED)]))


def _files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *FOLDERS],
        check=True,
        capture_output=True,
        text=True,
    )
    return [name for name in listed.stdout.splitlines() if name.endswith(".py")]


def main() -> int:
    files = [name for name in sys.argv[1:] or _files() if Path(name).is_file()]
    # The largest first, so that no core is left with a long one at the end.
    files.sort(key=lambda name: -Path(name).stat().st_size)
    with multiprocessing.Pool(initializer=_configure) as pool:
        found = [line for lines in pool.imap_unordered(check, files) for line in lines]
    print(*sorted(found), sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
