"""The model of each style of saga."""

from __future__ import annotations

from tests.model import choreographed, orchestrated
from tests.model.explore import Explored, explore


def explore_style(style: str) -> Explored:
    """Explore the `orchestrated` or the `choreographed` model, up to the first violation."""
    return explore(orchestrated) if style == "orchestrated" else explore(choreographed)
