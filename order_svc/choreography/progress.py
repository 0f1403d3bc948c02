"""The progress of an order or a return, as its events tell it: there is no saga log. Pure.

Progress is the set of events received, each once. The state of the saga follows from that set, so
events may come in any order and any number of times, and the same events always give the same
state. Deadlines are decided by it too (ADR 20).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple
from uuid import UUID

from common.messages.contracts import StepView
from common.messages.envelope import Direction, Envelope, Fenced, Outcome, PivotDone, Reply
from common.messages.shop.inventory import (
    NotStocked,
    OutOfStock,
    ReservationNotHeld,
    Restocked,
    StockDispatched,
    StockReleased,
    StockReserved,
)
from common.messages.shop.order import (
    OrderAccepted,
    OrderConfirmed,
    OrderRejected,
    ReturnAccepted,
    ReturnClosed,
    ReturnFinished,
)
from common.messages.shop.payment import (
    CardDeclined,
    InsufficientFunds,
    NothingToRefund,
    OrderRefunded,
    PaymentCharged,
    PaymentRefunded,
    UnknownAccount,
)

FORWARD, COMPENSATING = Direction.FORWARD, Direction.COMPENSATING
Leg = tuple[str, Direction]


class OutlineStep(NamedTuple):
    name: str
    kind: str
    events: tuple[type[Reply], ...]


@dataclass(frozen=True)
class Outline:
    """The steps of one kind of saga, each with the events that can report its outcome."""

    name: str
    steps: tuple[OutlineStep, ...]

    @cached_property
    def pivot(self) -> int:
        return next(n for n, step in enumerate(self.steps) if step.kind == "pivot")

    @property
    def first(self) -> str:
        return self.steps[0].name

    @property
    def last(self) -> str:
        return self.steps[-1].name

    @cached_property
    def undone_by_others(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.steps[1:] if s.kind == "compensatable")


# fmt: off
ORDER = Outline("order", (
    OutlineStep("create_order", "compensatable", (OrderAccepted, OrderRejected)),
    OutlineStep("reserve_stock", "compensatable",
                (StockReserved, OutOfStock, NotStocked, StockReleased)),
    OutlineStep("charge_payment", "compensatable",
                (PaymentCharged, CardDeclined, InsufficientFunds, UnknownAccount, PaymentRefunded)),
    OutlineStep("dispatch_stock", "pivot",
                (StockDispatched, ReservationNotHeld, PivotDone, Fenced)),
    OutlineStep("confirm_order", "retriable", (OrderConfirmed,)),
))
RETURN = Outline("return", (
    OutlineStep("open_return", "compensatable", (ReturnAccepted, ReturnClosed)),
    OutlineStep("refund_order", "pivot", (OrderRefunded, NothingToRefund, PivotDone, Fenced)),
    OutlineStep("restock", "retriable", (Restocked,)),
    OutlineStep("finish_return", "retriable", (ReturnFinished,)),
))
# fmt: on
OUTLINES = {outline.name: outline for outline in (ORDER, RETURN)}


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """One event of a saga's progress."""

    type: str
    outcome: Outcome
    reason: str | None  # of a refusal; of an undo, what it was done for
    process: str | None
    at: float  # when it was received: seconds since the epoch


@dataclass(slots=True)
class SagaProgress:
    """The progress of one order or one return."""

    saga_id: UUID
    outline: Outline
    events: dict[Leg, RecordedEvent] = field(default_factory=dict)
    cancel_asked: str | None = None
    """Why the order service asked the pivot's owner to cancel: a timeout, or the customer."""
    attempt: int = 1
    stuck: bool = False

    def record(self, event: Envelope, at: float) -> bool:
        """Record an event; return whether it was new."""
        leg = (event.step, event.direction)
        if leg in self.events or event.outcome is None:
            return False
        source = event.body if event.outcome is Outcome.REFUSED else event.about or {}
        self.events[leg] = RecordedEvent(
            event.type, event.outcome, source.get("reason"), event.process, at
        )
        self.attempt, self.stuck = 1, False
        return True

    # --- what follows from the events: each implies all that must have come before it ---

    @property
    def pivot_passed(self) -> bool:
        """True if the goods have left, or the money is back.

        The pivot says so, or its fence (PivotDone), or any step that comes after the pivot.
        """
        pivot, *behind = self.outline.steps[self.outline.pivot :]
        outcomes = {self._outcome(pivot.name, direction) for direction in (FORWARD, COMPENSATING)}
        return Outcome.DONE in outcomes or any((s.name, FORWARD) in self.events for s in behind)

    @property
    def fenced(self) -> bool:
        """True if the pivot will never happen. Only then is a step undone or fenced."""
        pivot = self.outline.steps[self.outline.pivot].name
        return any(
            event.outcome is Outcome.FENCED or (direction is COMPENSATING and step != pivot)
            for (step, direction), event in self.events.items()
        )

    @property
    def reason(self) -> str | None:
        """The reason to undo the saga; None if there is none, or if it is too late for that."""
        if self.pivot_passed:
            return None
        undone = [
            event.reason
            for (_, direction), event in self.events.items()
            if direction is COMPENSATING and event.reason
        ]
        refused = [e.reason for e in self.events.values() if e.outcome is Outcome.REFUSED]
        return next(iter([*undone, *refused]), self.cancel_asked)

    @property
    def all_undone(self) -> bool:
        """True if the other services have confirmed every undo."""
        return all((step, COMPENSATING) in self.events for step in self.outline.undone_by_others)

    @property
    def state(self) -> str:
        """The state in the words of an orchestrated instance."""
        if (self.outline.last, FORWARD) in self.events:
            return "COMPLETED"
        if (self.outline.first, COMPENSATING) in self.events:
            return "COMPENSATED"
        return "COMPENSATING" if self.fenced else "RUNNING"

    @property
    def ended(self) -> bool:
        return self.state in ("COMPLETED", "COMPENSATED")

    @property
    def awaited(self) -> int:
        """The number of the step whose outcome comes next."""
        steps = self.outline.steps
        settled = [n for n, step in enumerate(steps) if (step.name, FORWARD) in self.events]
        passed = [self.outline.pivot] if self.pivot_passed else []
        return min(max([*settled, *passed]) + 1, len(steps) - 1)

    @property
    def capped(self) -> bool:
        """True if a timeout may still give up: not once a cancel was asked, nor past the pivot."""
        return self.reason is None and not self.pivot_passed and not self.fenced

    def cancel(self, reason: str) -> None:
        """Note that the pivot's owner is asked to cancel, unless it was asked or has answered."""
        if self.capped:
            self.cancel_asked, self.attempt = reason, 1

    def time_out(self, attempts: int, *, past_sla: bool) -> str | None:
        """Note that a deadline passed; return why to ask the pivot's owner to cancel.

        None means to publish the first event again, which repeats every event that followed it.
        """
        if self.capped and self.attempt >= attempts:
            self.cancel(f"{self.outline.steps[self.awaited].name}_timed_out")
        else:
            self.attempt += 1
            self.stuck = self.stuck or (past_sla and not self.capped)
        return self.reason

    # --- the status of each step ---

    def statuses(self) -> dict[str, str]:
        """Return the status of every step that has begun, as far as the events tell."""
        steps = enumerate(self.outline.steps)
        found = {step.name: self._status(number, step) for number, step in steps}
        return {name: status for name, status in found.items() if status is not None}

    def attempts(self, status: str | None) -> int:
        return 0 if status is None else self.attempt if status == "sent" else 1

    def undo_attempts(self, status: str | None) -> int:
        if status in ("undoing", "fencing"):
            return self.attempt
        return 1 if status in ("undone", "fenced") else 0

    def views(self) -> tuple[StepView, ...]:
        """Return the steps in the shape of the orchestrated style."""
        known = self.statuses()
        return tuple(
            StepView(
                step=step.name,
                kind=step.kind,
                status=known.get(step.name, "not_sent"),
                attempts=self.attempts(known.get(step.name)),
                undo_attempts=self.undo_attempts(known.get(step.name)),
                compensated=known.get(step.name) == "undone",
            )
            for step in self.outline.steps
        )

    def _status(self, number: int, step: OutlineStep) -> str | None:
        forward = self._outcome(step.name, FORWARD)
        if self.fenced:
            return self._backward(number, step, forward)
        if self.pivot_passed and number < self.awaited:
            return "done"
        if number == self.outline.pivot and self.reason is not None:
            return "fencing"
        if forward is not None:
            return forward.value
        if number != self.awaited:
            return "done" if number < self.awaited else None
        return "sent" if self.reason is None else "unknown"

    def _backward(self, number: int, step: OutlineStep, forward: Outcome | None) -> str | None:
        if number >= self.outline.pivot:
            return "fenced" if number == self.outline.pivot else None
        if (step.name, COMPENSATING) in self.events or self.ended:
            return "refused" if forward is Outcome.REFUSED else "undone"
        return "undoing" if number > 0 or self.all_undone else "done"

    def _outcome(self, step: str, direction: Direction) -> Outcome | None:
        event = self.events.get((step, direction))
        return event.outcome if event else None
