"""The `bullpen` command: people use it at a terminal, agents use it inside a task."""

from __future__ import annotations

import sys


def main() -> None:
    """Run one command line and exit with its code (spec 06 §20.2)."""
    # httpx brings a command of its own; loading what that needs would double our start-up time.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    from daemon.cli.root import run

    raise SystemExit(run())
