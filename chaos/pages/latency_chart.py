"""How long orders took to settle, over time, with the faults marked on it: an SVG of our own. Pure.

Owns: the drawing. Must not know: where the figures come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 1060, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 34, 30
TICKS = (0.01, 0.1, 1.0, 10.0, 100.0)
LOWEST = 0.01  # seconds; what is faster is drawn here
ROWS = 2  # of numbers above the chart, so that neighbours can be told apart
TIMES = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
MOST_TICKS = 12


@dataclass(frozen=True)
class Settled:
    """An order: when it was placed, how long it took to settle, and whether it was confirmed."""

    at: float
    took: float
    confirmed: bool


@dataclass(frozen=True)
class Band:
    """A fault, from its injection until it was healed."""

    number: int
    begins: float
    ends: float
    says: str


def draw(orders: Sequence[Settled], faults: Sequence[Band]) -> str:
    """Seconds from the same beginning; a logarithmic scale upwards."""
    if not orders:
        return ""
    last = max([o.at + o.took for o in orders] + [f.ends for f in faults])
    most = max([o.took for o in orders] + [1.0])
    scale = _Scale(last or 1.0, most)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg"'
        ' aria-label="Seconds until each order settled, by the time it was placed; faults shaded">',
        *(_band(scale, fault, row % ROWS) for row, fault in enumerate(faults)),
        *_axes(scale),
        *(_dot(scale, order) for order in orders),
        "</svg>",
    ]
    return "\n".join(parts)


@dataclass(frozen=True)
class _Scale:
    last: float
    most: float

    def x(self, seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.last

    def y(self, seconds: float) -> float:
        low, high = math.log10(LOWEST), math.log10(max(self.most, 1.0) * 1.3)
        share = (math.log10(max(seconds, LOWEST)) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def _axes(scale: _Scale) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>']
    for tick in TICKS:
        if tick <= scale.most * 1.3:
            y = scale.y(tick)
            parts.append(
                f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g} s'
                "</text>"
            )
    every = next((t for t in TIMES if scale.last / t <= MOST_TICKS), TIMES[-1])
    for n in range(int(scale.last // every) + 1):
        x = scale.x(n * every)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{n * every} s</text>"
        )
    return parts


def _band(scale: _Scale, fault: Band, row: int) -> str:
    left = scale.x(fault.begins)
    width = max(scale.x(fault.ends) - left, 1.5)
    return (
        f'<rect class="fault" x="{left:.1f}" y="{TOP}" width="{width:.1f}"'
        f' height="{HEIGHT - TOP - BOTTOM}"><title>{escape(fault.says)}</title></rect>'
        f'<text class="number" x="{left + width / 2:.1f}" y="{13 + 13 * row}"'
        f' text-anchor="middle">{fault.number}</text>'
    )


def _dot(scale: _Scale, order: Settled) -> str:
    kind = "confirmed" if order.confirmed else "rejected"
    x, y = scale.x(order.at), scale.y(order.took)
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>'
