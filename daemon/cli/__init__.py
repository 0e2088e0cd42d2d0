"""The `bullpen` command: people use it at a terminal, agents use it inside a task."""

from __future__ import annotations


def main() -> None:
    """Run one command line and exit with its code (spec 06 §20.2)."""
    from daemon.cli.root import run

    raise SystemExit(run())
