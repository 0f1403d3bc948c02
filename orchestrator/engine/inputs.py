"""What `decide()` takes. Pure.

Whether a person is asked at a gate comes in beside them, as all does that takes a clock or a table
to know.

Owns: the inputs. Must not know: what comes of them, nor who brings them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from common.messages.envelope import Direction, Outcome


@dataclass(frozen=True, slots=True)
class Started:
    saga_id: UUID
    data: Mapping[str, Any]
    asked_at: str | None = None  # when whoever asked for it did, for the saga log


@dataclass(frozen=True, slots=True)
class StartDeadLettered:
    """What was to start the saga cannot be handled: it is there, stuck, and has not begun."""

    saga_id: UUID
    data: Mapping[str, Any]
    reason: str


@dataclass(frozen=True, slots=True)
class ReplyArrived:
    step: str
    direction: Direction
    outcome: Outcome
    type: str = ""
    reason: str | None = None
    said: str | None = None  # what else it says, in words, for the saga log
    process: str | None = None  # who handled the command, likewise


@dataclass(frozen=True, slots=True)
class TimedOut:
    """Silence past a deadline: *unknown*, never *failed*."""

    step: str
    direction: Direction
    attempt: int
    past_sla: bool = False


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """A command or, if `reply`, what a participant answered to it; or such a dead letter was
    discarded, for a reason of somebody's own."""

    step: str
    direction: Direction
    reason: str
    reply: bool = False
    discarded_by: str | None = None


@dataclass(frozen=True, slots=True)
class CompensateAsked:
    """By an operator or the customer."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class GateDecided:
    """A person has looked at what is parked there."""

    step: str
    approved: bool
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class RetryAsked:
    """By a person: what is awaited is sent again now. No attempt is used up for it."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """By a person, who has seen to what this step was still asked for, where no machine can."""

    step: str
    actor: str
    reason: str


ByHand = CompensateAsked | GateDecided | RetryAsked | Resolved
Input = Started | StartDeadLettered | ReplyArrived | TimedOut | DeadLettered | ByHand
Asked = Mapping[str, str]
"""Gates at which a person is asked, should the saga come there now, and why, in words."""
NOBODY: Asked = {}
