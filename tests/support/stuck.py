"""What `saga stuck` says of sagas that stand still.

Owns: waiting until it says so. Must not know: why they do.
"""

from __future__ import annotations

from uuid import UUID

from chaos.stack.system import System
from chaos.waiting import until
from tests.support.saga import saga


def stands_still(system: System, why: str, *orders: UUID) -> str:
    """Once `saga stuck` has each of them, with the reason."""

    def said() -> str | None:
        listed = saga(system, "stuck")
        heads = [line for line in listed.splitlines() if why in line]
        shown = all(any(line.startswith(str(o)[:8]) for line in heads) for o in orders)
        return listed if shown else None

    return until(said, f"saga stuck says of each: {why}")
