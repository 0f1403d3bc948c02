"""The inputs of `decide()`.

Whether a person must approve at a gate is passed beside the input, since that takes a table to
find out, and `decide()` reads none.

Must not know: what an input leads to, or where it comes from.
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
    asked_at: str | None = None  # when it was requested, for the saga log


@dataclass(frozen=True, slots=True)
class StartDeadLettered:
    """The StartSaga is a dead letter: the instance exists, is stuck, and has not begun."""

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
    said: str | None = None  # the rest of its body in words, for the saga log
    process: str | None = None  # the process that handled the command, for the saga log


@dataclass(frozen=True, slots=True)
class TimedOut:
    """A deadline passed without a reply: the outcome is *unknown*, never *failed*."""

    step: str
    direction: Direction
    attempt: int
    past_sla: bool = False


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """A command, or a reply to it, was dead-lettered; or such a dead letter was discarded.

    `reason` is then why the person who discarded it did so.
    """

    step: str
    direction: Direction
    reason: str
    reply: bool = False
    discarded_by: str | None = None


@dataclass(frozen=True, slots=True)
class CompensateAsked:
    """An operator or the customer wants the saga undone."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class GateDecided:
    """A person approves or rejects the saga that is parked at a gate."""

    step: str
    approved: bool
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class RetryAsked:
    """A person wants what is awaited sent again now, which uses up no attempt."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """A person has done by hand what an undo or a retriable step could not."""

    step: str
    actor: str
    reason: str


ByHand = CompensateAsked | GateDecided | RetryAsked | Resolved
Input = Started | StartDeadLettered | ReplyArrived | TimedOut | DeadLettered | ByHand
Approvals = Mapping[str, str]
"""The gates at which a person must approve, each with the reason in words."""
NO_APPROVALS: Approvals = {}
