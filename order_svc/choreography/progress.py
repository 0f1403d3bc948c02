"""What the order service has heard of an order or a return, where no orchestrator keeps a saga log.
Pure.

Progress is the set of events heard, each once, and nothing else: where the saga stands follows
from it. So events may come in any order and as often as they like, and the same ones always make
the same picture. It is also what the order service's deadline is judged by.

Owns: the steps of both sagas as the customer may see them, and what silence leads to. Must not
know: SQL, the broker, the clock; what an event leads to elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple
from uuid import UUID

from common.messages.contracts import (
    CardDeclined,
    InsufficientFunds,
    NothingToRefund,
    NotStocked,
    OrderAccepted,
    OrderConfirmed,
    OrderRefunded,
    OrderRejected,
    OutOfStock,
    PaymentCharged,
    PaymentRefunded,
    ReservationNotHeld,
    Restocked,
    ReturnAccepted,
    ReturnClosed,
    ReturnFinished,
    StepView,
    StockDispatched,
    StockReleased,
    StockReserved,
    UnknownAccount,
)
from common.messages.envelope import Direction, Envelope, Fenced, Outcome, PivotDone, Reply

FORWARD, COMPENSATING = Direction.FORWARD, Direction.COMPENSATING
Leg = tuple[str, Direction]


class Step(NamedTuple):
    name: str
    kind: str
    events: tuple[type[Reply], ...]


@dataclass(frozen=True)
class Story:
    """What is told of one kind of saga, step by step."""

    name: str
    steps: tuple[Step, ...]

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
ORDER = Story("order", (
    Step("create_order", "compensatable", (OrderAccepted, OrderRejected)),
    Step("reserve_stock", "compensatable", (StockReserved, OutOfStock, NotStocked, StockReleased)),
    Step("charge_payment", "compensatable",
         (PaymentCharged, CardDeclined, InsufficientFunds, UnknownAccount, PaymentRefunded)),
    Step("dispatch_stock", "pivot", (StockDispatched, ReservationNotHeld, PivotDone, Fenced)),
    Step("confirm_order", "retriable", (OrderConfirmed,)),
))
RETURN = Story("return", (
    Step("open_return", "compensatable", (ReturnAccepted, ReturnClosed)),
    Step("refund_order", "pivot", (OrderRefunded, NothingToRefund, PivotDone, Fenced)),
    Step("restock", "retriable", (Restocked,)),
    Step("finish_return", "retriable", (ReturnFinished,)),
))
# fmt: on
STORIES = {story.name: story for story in (ORDER, RETURN)}


@dataclass(frozen=True, slots=True)
class Heard:
    """One event, as it is remembered."""

    type: str
    outcome: Outcome
    reason: str | None  # of a refusal; of an undo, what it was done for
    process: str | None
    at: float  # when it was heard: seconds of the epoch


@dataclass(slots=True)
class Progress:
    """Of one order, or of one return."""

    saga_id: UUID
    story: Story
    heard: dict[Leg, Heard] = field(default_factory=dict)
    asked: str | None = None
    """Why the order service has asked the pivot's owner to cancel: silence, or the customer."""
    attempt: int = 1
    stuck: bool = False

    def hear(self, event: Envelope, at: float) -> bool:
        """Whether it is news."""
        leg = (event.step, event.direction)
        if leg in self.heard or event.outcome is None:
            return False
        said = event.body if event.outcome is Outcome.REFUSED else event.about or {}
        self.heard[leg] = Heard(event.type, event.outcome, said.get("reason"), event.process, at)
        self.attempt, self.stuck = 1, False
        return True

    # --- what follows from what was heard: an event tells of all that must have come before it ---

    @property
    def pivot_passed(self) -> bool:
        """The goods have left, or the money is back: the pivot said so, or its fence, or who waits
        for one of them."""
        pivot, *behind = self.story.steps[self.story.pivot :]
        said = {self._outcome(pivot.name, way) for way in (FORWARD, COMPENSATING)}
        return Outcome.DONE in said or any((step.name, FORWARD) in self.heard for step in behind)

    @property
    def fenced(self) -> bool:
        """The pivot will never be. Only then is anything undone, or refused as too late."""
        pivot = self.story.steps[self.story.pivot].name
        return any(
            h.outcome is Outcome.FENCED or (direction is COMPENSATING and step != pivot)
            for (step, direction), h in self.heard.items()
        )

    @property
    def reason(self) -> str | None:
        """Why it is to be cancelled; None if it is not, or if that came too late."""
        if self.pivot_passed:
            return None
        given = [h.reason for (_, way), h in self.heard.items() if way is COMPENSATING and h.reason]
        refused = [h.reason for h in self.heard.values() if h.outcome is Outcome.REFUSED]
        return next(iter([*given, *refused]), self.asked)

    @property
    def all_undone(self) -> bool:
        """The others have confirmed that nothing of theirs is left, nor will ever be."""
        return all((step, COMPENSATING) in self.heard for step in self.story.undone_by_others)

    @property
    def state(self) -> str:
        """In the words for an instance."""
        if (self.story.last, FORWARD) in self.heard:
            return "COMPLETED"
        if (self.story.first, COMPENSATING) in self.heard:
            return "COMPENSATED"
        return "COMPENSATING" if self.fenced else "RUNNING"

    @property
    def ended(self) -> bool:
        return self.state in ("COMPLETED", "COMPENSATED")

    @property
    def awaited(self) -> int:
        """The number of the step whose outcome comes next."""
        steps = self.story.steps
        told = [n for n, step in enumerate(steps) if (step.name, FORWARD) in self.heard]
        reached = [self.story.pivot] if self.pivot_passed else []
        return min(max([*told, *reached]) + 1, len(steps) - 1)

    @property
    def capped(self) -> bool:
        """Whether it may still be given up: only before anybody asked to cancel, or the pivot."""
        return self.reason is None and not self.pivot_passed and not self.fenced

    def cancel(self, reason: str) -> None:
        """The pivot's owner is asked, until it answers; unless it was asked or has answered."""
        if self.capped:
            self.asked, self.attempt = reason, 1

    def silence(self, attempts: int, *, past_sla: bool) -> str | None:
        """Past its deadline: the reason to ask the pivot's owner to cancel for; None if the first
        event is to be told again, which brings each that followed from it again."""
        if self.capped and self.attempt >= attempts:
            self.cancel(f"{self.story.steps[self.awaited].name}_timed_out")
        else:
            self.attempt += 1
            self.stuck = self.stuck or (past_sla and not self.capped)
        return self.reason

    # --- how it is shown ---

    def statuses(self) -> dict[str, str]:
        """Of every step that was asked for, as far as this can be known here."""
        steps = enumerate(self.story.steps)
        found = {step.name: self._status(number, step) for number, step in steps}
        return {name: status for name, status in found.items() if status is not None}

    def attempts(self, status: str | None) -> int:
        return 0 if status is None else self.attempt if status == "sent" else 1

    def undo_attempts(self, status: str | None) -> int:
        if status in ("undoing", "fencing"):
            return self.attempt
        return 1 if status in ("undone", "fenced") else 0

    def views(self) -> tuple[StepView, ...]:
        """As the orchestrated style shows them too."""
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
            for step in self.story.steps
        )

    def _status(self, number: int, step: Step) -> str | None:
        forward = self._outcome(step.name, FORWARD)
        if self.fenced:
            return self._backward(number, step, forward)
        if self.pivot_passed and number < self.awaited:
            return "done"
        if number == self.story.pivot and self.reason is not None:
            return "fencing"
        if forward is not None:
            return forward.value
        if number != self.awaited:
            return "done" if number < self.awaited else None
        return "sent" if self.reason is None else "unknown"

    def _backward(self, number: int, step: Step, forward: Outcome | None) -> str | None:
        if number >= self.story.pivot:
            return "fenced" if number == self.story.pivot else None
        if (step.name, COMPENSATING) in self.heard or self.ended:
            return "refused" if forward is Outcome.REFUSED else "undone"
        return "undoing" if number > 0 or self.all_undone else "done"

    def _outcome(self, step: str, direction: Direction) -> Outcome | None:
        heard = self.heard.get((step, direction))
        return heard.outcome if heard else None
