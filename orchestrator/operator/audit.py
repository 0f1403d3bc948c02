"""Compares how sagas ended with what each service holds, and names what disagrees. Pure.

The order of the reads makes a finding true while sagas run:

1. an instance is compared only if it was seen ended before its effects were read: by then what it
   left behind is final;
2. an effect counts as without an instance only if the instance was looked for again after the
   effect was seen: no command is sent before its instance is committed;
3. goods count as back on the shelf without a return only if their order was read again after that
   was seen: a return locks its order before it does anything else, and for good after its refund.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from common.messages.contracts import Effect
from orchestrator.engine.instance import State


class Drift(StrEnum):
    ORPHAN_CHARGE = "orphan_charge"
    """Money was taken for a saga that does not exist."""
    LEAKED_HOLD = "leaked_hold"
    """Stock is held for a saga that has ended."""
    MISSING_REFUND = "missing_refund"
    """Money was taken and not given back, though the saga was compensated."""
    PENDING_WITHOUT_SAGA = "pending_without_saga"
    """An order has been waiting for its saga to begin for longer than the grace."""
    RETURN_PENDING_WITHOUT_SAGA = "return_pending_without_saga"
    """An order is locked by a return, and no saga will ever release it."""
    REFUND_WITHOUT_RETURN = "refund_without_return"
    """Money was given back for a return that does not exist, or was undone."""
    RESTOCK_WITHOUT_RETURN = "restock_without_return"
    """Goods are back on the shelf, and their order was not given back."""
    RETURN_WITHOUT_REFUND = "return_without_refund"
    """An order was given back, and its money was not."""
    RETURN_WITHOUT_RESTOCK = "return_without_restock"
    """An order was given back, and its goods are not on the shelf."""
    EFFECT_WITHOUT_INSTANCE = "effect_without_instance"
    """Something was done for a saga that does not exist."""
    EFFECT_MISSING = "effect_missing"
    """A service lacks what the saga's end says it did."""
    WRONG_END = "wrong_end"
    """A contradiction between what a service holds and how the saga ended."""


REMEDIES = {
    Drift.ORPHAN_CHARGE: "see what the customer was charged for; refund it in the payment"
    " service's own way, and find out what sent the command or removed the saga",
    Drift.LEAKED_HOLD: "see saga show; the pieces are on the shelf, and cannot be sold",
    Drift.MISSING_REFUND: "see saga show; the customer is owed the money",
    Drift.PENDING_WITHOUT_SAGA: "saga doctor: does an orchestrator run, and are too many"
    " sagas under way? The order service sends StartSaga again by itself",
    Drift.RETURN_PENDING_WITHOUT_SAGA: "saga doctor, then saga show: StartSaga is sent"
    " again for an open return; if its saga has ended, release the order's lock by hand (runbook)",
    Drift.REFUND_WITHOUT_RETURN: "see what the order says: the customer may have goods and money;"
    " find out what sent the command or removed the saga",
    Drift.RESTOCK_WITHOUT_RETURN: "count the pieces: if they are not there, they are for sale"
    " all the same; find out what sent the command",
    Drift.RETURN_WITHOUT_REFUND: "see saga show; the customer is owed the money",
    Drift.RETURN_WITHOUT_RESTOCK: "see saga show; the pieces came back, and cannot be sold",
    Drift.EFFECT_WITHOUT_INSTANCE: "find out what sent the command or removed the saga",
    Drift.EFFECT_MISSING: "see saga show for what that service answered, and its log at that time",
    Drift.WRONG_END: "see saga show for what that service answered, and its log at that time",
}

ABSENT = ""
# What each step must have left behind once its saga has ended. An order may be given back later;
# the refund belongs to that other saga and leaves the charge as it was.
ORDER: Mapping[State, Mapping[str, frozenset[str]]] = {
    State.COMPLETED: {
        "create_order": frozenset({"CONFIRMED", "RETURN_PENDING", "RETURNED"}),
        "reserve_stock": frozenset({"DISPATCHED", "RETURNED"}),
        "charge_payment": frozenset({"CHARGED"}),
    },
    State.COMPENSATED: {
        "create_order": frozenset({"REJECTED"}),
        "reserve_stock": frozenset({"RELEASED", ABSENT}),
        "charge_payment": frozenset({"REFUNDED", ABSENT}),
    },
}
RETURN: Mapping[State, Mapping[str, frozenset[str]]] = {
    State.COMPLETED: {
        "open_return": frozenset({"RETURNED"}),
        "refund_order": frozenset({"REFUNDED"}),
        "restock": frozenset({"RETURNED"}),
    },
    # Goods that are back say nothing here: a later return may have brought them.
    State.COMPENSATED: {
        "open_return": frozenset({"CLOSED"}),
        "refund_order": frozenset({ABSENT}),
    },
}
ENDS = {"order": ORDER, "return": RETURN}
CREATE_ORDER, RESERVE, RESTOCK = "create_order", "reserve_stock", "restock"
RETURNED = "RETURNED"
LOCKED = "RETURN_PENDING"
UNTOUCHED = frozenset({"PENDING", "CONFIRMED"})  # by any return
TAKEN_BACK = frozenset({"RELEASED", "REFUNDED", "REJECTED", ABSENT})


@dataclass(frozen=True, slots=True)
class AuditedInstance:
    """The part of an instance that the audit needs."""

    definition: str
    state: State
    order_id: UUID | None = None  # the order that a return is about

    @property
    def restocked(self) -> UUID | None:
        """Return the order whose goods this saga has put back on the shelf, if any."""
        brought_back = RESTOCK in ENDS.get(self.definition, {}).get(self.state, {})
        return self.order_id if brought_back else None


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One effect, or its absence, that disagrees with a saga."""

    drift: Drift
    saga_id: UUID
    step: str
    what: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result for a batch; `skipped` are under way, or of a definition without a table."""

    compared: int
    skipped: int
    findings: tuple[Discrepancy, ...]


def compare(
    saga_ids: Iterable[UUID],
    before: Mapping[UUID, AuditedInstance],
    effects: Iterable[Effect],
    after: Mapping[UUID, AuditedInstance],
    *,
    now: datetime,
    grace: timedelta,
) -> Comparison:
    """Compare a batch.

    `before` was read before the effects; `after` was read after them, of the sagas not in `before`.
    """
    left: defaultdict[UUID, list[Effect]] = defaultdict(list)
    for effect in effects:
        left[effect.saga_id].append(effect)
    compared = skipped = 0
    findings: list[Discrepancy] = []
    for saga_id in saga_ids:
        known = before.get(saga_id)
        if known is None and saga_id not in after:
            findings += _without_instance(left[saga_id], now - grace)
        elif known is None or known.definition not in ENDS or not known.state.ended:
            skipped += 1
            continue
        else:
            expected = ENDS[known.definition][known.state]
            findings += _after_the_end(saga_id, known.state, expected, left[saga_id])
            findings += _brought_back(left[saga_id])
        compared += 1
    return Comparison(compared, skipped, tuple(findings))


def _without_instance(effects: Iterable[Effect], overdue: datetime) -> Iterator[Discrepancy]:
    for effect in effects:
        what = f"{effect.standing} since {effect.at:%Y-%m-%d %H:%M:%S} UTC, and there is no saga"
        if effect.standing == "PENDING":
            if effect.at < overdue:
                what = f"the order was placed at {effect.at:%Y-%m-%d %H:%M:%S} UTC; no saga began"
                yield _finding(Drift.PENDING_WITHOUT_SAGA, effect, what)
        elif (effect.step, effect.standing) == ("open_return", LOCKED):
            if effect.at < overdue:
                what = f"the return was opened at {effect.at:%Y-%m-%d %H:%M:%S} UTC; no saga began"
                yield _finding(Drift.RETURN_PENDING_WITHOUT_SAGA, effect, what)
        elif effect.step == "refund_order":
            yield _finding(Drift.REFUND_WITHOUT_RETURN, effect, what)
        elif effect.standing == "CHARGED":
            yield _finding(Drift.ORPHAN_CHARGE, effect, what)
        else:
            yield _finding(Drift.EFFECT_WITHOUT_INSTANCE, effect, what)


def _after_the_end(
    saga_id: UUID, state: State, expected: Mapping[str, frozenset[str]], effects: Iterable[Effect]
) -> Iterator[Discrepancy]:
    by_step = {effect.step: effect.standing for effect in effects}
    for step, allowed in expected.items():
        found = by_step.get(step, ABSENT)
        if found not in allowed:
            should = " or ".join(sorted(each or "nothing" for each in allowed))
            what = f"the saga is {state}: found {found or 'nothing'}, expected {should}"
            yield Discrepancy(_kind(state, step, found), saga_id, step, what)
    for step in sorted(by_step.keys() - expected.keys()):
        what = f"found {by_step[step]}, and the saga has no such step"
        yield Discrepancy(Drift.WRONG_END, saga_id, step, what)


def _brought_back(effects: Sequence[Effect]) -> Iterator[Discrepancy]:
    """Find goods that are back without a return; the order was read again after its goods."""
    orders = {effect.standing for effect in effects if effect.step == CREATE_ORDER}
    for effect in effects:
        if (effect.step, effect.standing) == (RESERVE, RETURNED) and orders & UNTOUCHED:
            what = f"the goods are on the shelf again, and the order is {', '.join(orders)}"
            yield _finding(Drift.RESTOCK_WITHOUT_RETURN, effect, what)


def _kind(state: State, step: str, found: str) -> Drift:
    if found.startswith(LOCKED):
        return Drift.RETURN_PENDING_WITHOUT_SAGA
    if step == "refund_order":
        return Drift.REFUND_WITHOUT_RETURN if found else Drift.RETURN_WITHOUT_REFUND
    if step == RESTOCK:
        return Drift.RETURN_WITHOUT_RESTOCK
    if found == "HELD":
        return Drift.LEAKED_HOLD
    if state is State.COMPENSATED and found == "CHARGED":
        return Drift.MISSING_REFUND
    if found == ABSENT or (state is State.COMPLETED and found in TAKEN_BACK):
        return Drift.EFFECT_MISSING
    return Drift.WRONG_END


def _finding(drift: Drift, effect: Effect, what: str) -> Discrepancy:
    return Discrepancy(drift, effect.saga_id, effect.step, what)
