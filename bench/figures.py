"""Figures and how they are shown. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs


@attrs.frozen
class Figure:
    """One measured number; `note` says how it was come by."""

    name: str
    value: float
    unit: str
    note: str = ""


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile: p99 of fewer than 100 values is their maximum."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(name: str, values: Sequence[float], unit: str, note: str = "") -> list[Figure]:
    """p50 and p99 of a sample."""
    about = f"n={len(values)}" + (f"; {note}" if note else "")
    return [
        Figure(f"{name}, p50", quantile(values, 0.50), unit, about),
        Figure(f"{name}, p99", quantile(values, 0.99), unit, about),
    ]
