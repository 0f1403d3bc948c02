"""One run of a saga: how far each of its steps is, and what it waits for. Pure.

A step's status goes

    sent -> done | refused | unknown      done | unknown -> undoing -> undone
    sent -> fencing -> done | refused | fenced           (the pivot only)
    waiting -> open | refused                            (a gate only, which may be open at once)
    undoing, or sent if retriable -> resolved            (by a person, where no machine can)

Owns: that. Must not know: what moves it (decide.py), SQL.
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
"""A step, in one of its directions."""


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
    UNKNOWN = "unknown"  # silent for all its attempts, or dead: may or may not have happened
    UNDOING = "undoing"
    UNDONE = "undone"
    FENCING = "fencing"
    FENCED = "fenced"
    WAITING = "waiting"
    OPEN = "open"  # nobody had to be asked, or somebody said yes
    RESOLVED = "resolved"  # a named person says that it is seen to


SETTLED_WITHOUT_EFFECT = frozenset(
    {Status.REFUSED, Status.UNDONE, Status.FENCED, Status.OPEN, Status.RESOLVED}
)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where one step of an instance stands, and how often it was asked in each direction."""

    status: Status
    attempt: int = 1
    undo_attempt: int = 0


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
        """Those whose reply counts, each with its attempt (rule 3)."""
        legs: dict[Leg, int] = {}
        for name, progress in self.steps.items():
            if progress.status in (Status.SENT, Status.FENCING):
                legs[name, FORWARD] = progress.attempt
            if progress.status in (Status.UNDOING, Status.FENCING):
                legs[name, COMPENSATING] = progress.undo_attempt
        return legs

    def timed_legs(self) -> dict[Leg, int]:
        """What has a deadline: a pivot under its fence waits for the fence, a gate for a person."""
        legs = {
            (name, direction): attempt
            for (name, direction), attempt in self.awaited().items()
            if direction is COMPENSATING or self.steps[name].status is not Status.FENCING
        }
        if gate := self.waiting_at():
            legs[gate, FORWARD] = self.steps[gate].attempt
        return legs

    def waiting_at(self) -> str | None:
        """The gate it is parked at."""
        waiting = (name for name, p in self.steps.items() if p.status is Status.WAITING)
        return next(waiting, None)
