"""A chart of how long orders took to settle, with the faults marked on it. Pure.

Owns: where everything goes; templates/run.html draws it. Must not know: where the figures come
from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 1060, 300
LEFT, RIGHT, TOP, BOTTOM = 56, WIDTH - 14, 34, HEIGHT - 30
TICKS = (0.01, 0.1, 1.0, 10.0, 100.0)
LOWEST = 0.01  # seconds; what is faster is drawn here
ABOVE = 1.3  # times the highest, so that nothing touches the top
TIMES = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
MOST_TICKS = 12


class Settled(NamedTuple):
    """An order: when it was placed, how long it took to settle, and whether it was confirmed."""

    at: float
    took: float
    confirmed: bool


class FaultSpan(NamedTuple):
    """A fault, from its injection until it was healed."""

    begins: float
    ends: float
    says: str


@dataclass(frozen=True)
class Band:
    """A fault's place; its number stands above it, in one of two rows to tell neighbours apart."""

    x: float
    width: float
    middle: float
    y: int
    says: str


@dataclass(frozen=True)
class Chart:
    """Places of orders and faults: seconds to the right, a logarithmic scale upwards."""

    bands: list[Band]
    rows: list[tuple[float, float]]
    columns: list[tuple[float, int]]
    dots: list[tuple[float, float, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def lay_out(orders: Sequence[Settled], faults: Sequence[FaultSpan]) -> Chart:
    """Place everything; all seconds count from the same beginning."""
    last = max([o.at + o.took for o in orders] + [f.ends for f in faults]) or 1.0
    most = max([o.took for o in orders] + [1.0]) * ABOVE
    low, high = math.log10(LOWEST), math.log10(most)

    def x(seconds: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * max(seconds, 0.0) / last, 1)

    def y(seconds: float) -> float:
        share = (math.log10(max(seconds, LOWEST)) - low) / (high - low)
        return round(BOTTOM - (BOTTOM - TOP) * share, 1)

    bands = []
    for number, fault in enumerate(faults):
        width = round(max(x(fault.ends) - x(fault.begins), 1.5), 1)
        middle = round(x(fault.begins) + width / 2, 1)
        bands.append(Band(x(fault.begins), width, middle, 13 + 13 * (number % 2), fault.says))
    every = next((t for t in TIMES if last / t <= MOST_TICKS), TIMES[-1])
    return Chart(
        bands,
        [(y(tick), tick) for tick in TICKS if tick <= most],
        [(x(n * every), n * every) for n in range(int(last // every) + 1)],
        [(x(o.at), y(o.took), "confirmed" if o.confirmed else "rejected") for o in orders],
    )
