"""`./dev bench [--quick] [--only NAME] [--json FILE]`: measure, print a table, write JSON."""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from bench import drain, latency, machine, throughput
from bench.figures import Figure

PARTS = {
    "latency": latency.measure,
    "machine": machine.measure,
    "drain": drain.measure,
    "throughput": throughput.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, rougher figures")
    parser.add_argument("--only", choices=sorted(PARTS), help="one part alone")
    parser.add_argument("--json", default="artifacts/bench.json", help="where the figures go")
    chosen = parser.parse_args()

    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bullpen-bench-") as root:
        for name, measure in PARTS.items():
            if chosen.only in (None, name):
                figures += measure(Path(root) / name, quick=chosen.quick)
    _print(figures)
    _write(Path(chosen.json), figures)


def _print(figures: list[Figure]) -> None:
    table = Table(title=f"Bullpen on {platform.platform()}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("how")
    for figure in figures:
        shown = f"{figure.value:,.1f}" if figure.value < 1000 else f"{figure.value:,.0f}"
        table.add_row(figure.name, shown, figure.unit, figure.note)
    Console(width=130).print(table)


def _write(path: Path, figures: list[Figure]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "figures": [attrs.asdict(figure) for figure in figures],
    }
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
