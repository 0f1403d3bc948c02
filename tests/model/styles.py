"""The two worlds, by style.

Owns: which is which. Must not know: what is in them.
"""

from __future__ import annotations

from tests.model import events, world
from tests.model.explore import Explored, explore


def explore_style(style: str) -> Explored:
    """`orchestrated` or `choreographed`: everything there is, or up to the first violation."""
    return explore(world) if style == "orchestrated" else explore(events)
