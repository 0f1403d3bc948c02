"""The case that the judge decides: the rows of all schemas, and what was asked. Pure.

The judge imports nothing from the services, so that a mistake of theirs cannot be repeated here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TypeVar
from uuid import UUID

Row = TypeVar("Row")


@dataclass(frozen=True)
class Line:
    sku: str
    quantity: int


@dataclass(frozen=True)
class Order:
    order_id: UUID
    customer: str
    idempotency_key: str
    currency: str
    lines: tuple[Line, ...]
    prices: tuple[int, ...]  # one per line: what it was sold at
    total: int
    status: str
    reason: str | None
    placed_at: datetime
    settled_at: datetime | None

    def __str__(self) -> str:
        return f"order {self.order_id} ({self.idempotency_key} of {self.customer})"


@dataclass(frozen=True)
class Return:
    return_id: UUID
    order_id: UUID
    idempotency_key: str
    status: str
    reason: str | None


@dataclass(frozen=True)
class Stock:
    sku: str
    on_hand: int
    held: int
    dispatched: int
    received: int


@dataclass(frozen=True)
class Delivery:
    saga_id: UUID
    step: str
    sku: str
    quantity: int


@dataclass(frozen=True)
class Reservation:
    saga_id: UUID
    step: str
    status: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Account:
    customer: str
    currency: str
    balance: int


@dataclass(frozen=True)
class Transfer:
    transfer_id: UUID
    kind: str
    saga_id: UUID
    step: str
    debit: str
    credit: str
    amount: int
    currency: str
    refund_of: UUID | None

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.amount} {self.currency} "
            f"{self.debit} > {self.credit} of saga {self.saga_id}"
        )


@dataclass(frozen=True)
class Instance:
    saga_id: UUID
    definition: str
    state: str
    steps: Mapping[str, str]  # step to its status
    pivot_passed: bool


@dataclass(frozen=True)
class Claim:
    """An inbox row that was committed without an outcome; there should be none."""

    schema: str
    saga_id: UUID
    step: str
    direction: str


@dataclass(frozen=True)
class DeadLetter:
    queue: str
    reason: str
    about: str  # type and saga, if it can be read
    count: int = 1


@dataclass(frozen=True)
class Snapshot:
    """All schemas as of one moment."""

    orders: tuple[Order, ...]
    stock: tuple[Stock, ...]
    deliveries: tuple[Delivery, ...]
    reservations: tuple[Reservation, ...]
    accounts: tuple[Account, ...]
    transfers: tuple[Transfer, ...]
    ledger: Mapping[tuple[str, str], int]  # (account, currency) to the sum of its entries
    instances: tuple[Instance, ...]
    claims: tuple[Claim, ...]
    outboxes: Mapping[str, int]  # schema to rows
    dead_letters: tuple[DeadLetter, ...] = ()  # ever taken in, also redriven or discarded ones
    returns: tuple[Return, ...] = ()


@dataclass(frozen=True)
class Accepted:
    """An order the door accepted, as it was asked, with the total in the answer."""

    order_id: UUID
    customer: str
    idempotency_key: str
    currency: str
    lines: tuple[Line, ...]
    total: int


@dataclass(frozen=True)
class Facts:
    """The requests and answers of an experiment, seen from outside."""

    prices: Mapping[str, int]
    received: Mapping[str, int]  # SKU to pieces
    deposited: Mapping[tuple[str, str], int]  # (customer, currency) of every account
    accepted: Mapping[UUID, Accepted]
    refused: frozenset[tuple[str, str]]  # (customer, key) whose answers were all 4xx
    unknown: frozenset[tuple[str, str]]  # asked and never answered: it may be there or not
    healed: tuple[datetime, ...] = ()  # when each fault ended
    returns: frozenset[UUID] = frozenset()  # those the door accepted
    returns_asked: frozenset[tuple[UUID, str]] = frozenset()  # (order, key), whatever the answer
    explained: frozenset[tuple[str, str]] = frozenset()  # (queue, reason) of dead letters meant


@dataclass(frozen=True)
class Case:
    """Everything one verdict rests on, with indexes for the invariants."""

    snapshot: Snapshot
    facts: Facts
    quiescent: bool = True

    @cached_property
    def orders(self) -> dict[UUID, list[Order]]:
        return _grouped((o.order_id, o) for o in self.snapshot.orders)

    @cached_property
    def instances(self) -> dict[UUID, list[Instance]]:
        return _grouped((i.saga_id, i) for i in self.snapshot.instances)

    @cached_property
    def reservations(self) -> dict[UUID, list[Reservation]]:
        return _grouped((r.saga_id, r) for r in self.snapshot.reservations)

    @cached_property
    def transfers(self) -> dict[UUID, Transfer]:
        return {t.transfer_id: t for t in self.snapshot.transfers}

    @cached_property
    def charges(self) -> dict[UUID, list[Transfer]]:
        return self._of_kind("CHARGE")

    @cached_property
    def refunds(self) -> dict[UUID, list[Transfer]]:
        """Refunds by the saga of the charge they give back, not by their own."""
        return _grouped(
            (charge.saga_id if (charge := self.charge_of(t)) else t.saga_id, t)
            for t in self.snapshot.transfers
            if t.kind == "REFUND"
        )

    def charge_of(self, refund: Transfer) -> Transfer | None:
        return self.transfers.get(refund.refund_of) if refund.refund_of else None

    @cached_property
    def returns(self) -> dict[UUID, Return]:
        return {r.return_id: r for r in self.snapshot.returns}

    def returns_of(self, order_id: UUID) -> list[Return]:
        return [r for r in self.snapshot.returns if r.order_id == order_id]

    @cached_property
    def deposits(self) -> dict[UUID, list[Transfer]]:
        return self._of_kind("DEPOSIT")

    def with_status(self, *statuses: str) -> list[Order]:
        return [o for o in self.snapshot.orders if o.status in statuses]

    def _of_kind(self, kind: str) -> dict[UUID, list[Transfer]]:
        return _grouped((t.saga_id, t) for t in self.snapshot.transfers if t.kind == kind)


def _grouped(pairs: Iterable[tuple[UUID, Row]]) -> dict[UUID, list[Row]]:
    groups: defaultdict[UUID, list[Row]] = defaultdict(list)
    for key, row in pairs:
        groups[key].append(row)
    return dict(groups)
