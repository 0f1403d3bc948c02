"""An instance: one run of a saga, the status of each of its steps, and what it waits for.

A step's status goes

    sent -> done | refused | fenced
    sent | done -> undoing -> undone
    sent -> fencing -> done | refused | fenced           (the pivot only)
    waiting -> open | refused                            (a gate only, which may begin open)
    undoing, or sent if retriable -> resolved            (by a person)

docs/order-saga.md draws this from the code. Must not know: what changes it (decide.py), SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID

from common.messages.envelope import Direction
from orchestrator.engine.definition import COMPENSATING, FORWARD

Leg = tuple[str, Direction]
"""A step in one direction, as in docs/glossary.md."""


class State(StrEnum):
    RUNNING = "RUNNING"
    WAITING = "WAITING"  # parked at a gate, for a person
    COMPENSATING = "COMPENSATING"
    COMPLETED = "COMPLETED"
    COMPENSATED = "COMPENSATED"

    @property
    def ended(self) -> bool:
        return self in (State.COMPLETED, State.COMPENSATED)


class Status(StrEnum):
    SENT = "sent"
    DONE = "done"
    REFUSED = "refused"
    UNKNOWN = "unknown"  # given up, it may have happened; the same decision sends its undo
    UNDOING = "undoing"
    UNDONE = "undone"
    FENCING = "fencing"
    FENCED = "fenced"
    WAITING = "waiting"
    OPEN = "open"  # no approval was needed, or a person approved
    RESOLVED = "resolved"  # a named person has seen to it


SETTLED_WITHOUT_EFFECT = frozenset(
    {Status.REFUSED, Status.UNDONE, Status.FENCED, Status.OPEN, Status.RESOLVED}
)


@dataclass(frozen=True, slots=True)
class Progress:
    """The status of one step of an instance, and its attempts in each direction."""

    status: Status
    attempt: int = 1
    undo_attempt: int = 0

    @property
    def is_first_undo(self) -> bool:
        """Return whether its undo was sent, and no deadline has passed since."""
        return self.status is Status.UNDOING and self.undo_attempt == 1


@dataclass(frozen=True, slots=True)
class Instance:
    """One run of a definition. A step not yet sent has no progress."""

    saga_id: UUID
    definition: str
    version: int
    data: Mapping[str, Any]
    state: State = State.RUNNING
    steps: Mapping[str, Progress] = field(default_factory=dict)
    reason: str | None = None
    compensate_asked: bool = False
    pivot_passed: bool = False
    stuck: bool = False

    def awaited(self) -> dict[Leg, int]:
        """Return the legs whose reply counts, each with its attempt (rule 3)."""
        legs: dict[Leg, int] = {}
        for name, progress in self.steps.items():
            if progress.status in (Status.SENT, Status.FENCING):
                legs[name, FORWARD] = progress.attempt
            if progress.status in (Status.UNDOING, Status.FENCING):
                legs[name, COMPENSATING] = progress.undo_attempt
        return legs

    def timed_legs(self) -> dict[Leg, int]:
        """Return the legs that have a deadline, each with its attempt.

        A fenced pivot has that of its fence only; a gate that waits has its expiry.
        """
        legs = {
            (name, direction): attempt
            for (name, direction), attempt in self.awaited().items()
            if direction is COMPENSATING or self.steps[name].status is not Status.FENCING
        }
        if gate := self.waiting_at():
            legs[gate, FORWARD] = self.steps[gate].attempt
        return legs

    def waiting_at(self) -> str | None:
        """Return the gate it is parked at."""
        waiting = (name for name, p in self.steps.items() if p.status is Status.WAITING)
        return next(waiting, None)
