"""Waits until `saga stuck` lists sagas with a cause."""

from __future__ import annotations

from uuid import UUID

from chaos.stack.system import System
from chaos.waiting import until
from tests.support.saga import saga


def is_stuck(system: System, why: str, *orders: UUID) -> str:
    """Return what `saga stuck` prints once it lists each of these sagas with this cause."""

    def listed() -> str | None:
        printed = saga(system, "stuck")
        heads = [line for line in printed.splitlines() if why in line]
        shown = all(any(line.startswith(str(o)[:8]) for line in heads) for o in orders)
        return printed if shown else None

    return until(listed, f"saga stuck says of each: {why}")
