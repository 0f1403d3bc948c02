"""Stock and the reservations on it: states and rules. Pure.

- Pieces move between on_hand, held and dispatched; only a delivery changes their sum.
- A reservation takes all its lines or none, and goes HELD -> RELEASED or
  HELD -> DISPATCHED -> RETURNED. HELD is the semantic lock.

A business "no" is a reply. An illegal transition raises and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from common.messages.errors import IllegalTransition
from common.messages.shop.inventory import (
    NotStocked,
    OutOfStock,
    ReservationNotHeld,
    Restocked,
    StockDispatched,
    StockReceived,
    StockReleased,
    StockReserved,
)
from common.messages.shop.values import Line


class ReservationStatus(StrEnum):
    HELD = "HELD"
    RELEASED = "RELEASED"
    DISPATCHED = "DISPATCHED"
    RETURNED = "RETURNED"


@dataclass(slots=True)
class Pieces:
    """The pieces of one SKU, by where they are; on_hand + held + dispatched = received."""

    on_hand: int = 0
    held: int = 0
    dispatched: int = 0
    received: int = 0


@dataclass(slots=True)
class Reservation:
    """The pieces reserved for one saga; `step` is the step that made the reservation."""

    saga_id: UUID
    step: str
    lines: Mapping[str, int]  # SKU to quantity
    status: ReservationStatus = ReservationStatus.HELD


@dataclass(frozen=True, slots=True)
class GoodsDelivery:
    saga_id: UUID
    step: str
    sku: str
    quantity: int


@dataclass(slots=True)
class Stock:
    """The stock and reservations that one batch is about, and what the batch changes in them."""

    pieces: dict[str, Pieces] = field(default_factory=dict)
    reservations: dict[UUID, Reservation] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)  # SKUs
    made: dict[UUID, Reservation] = field(default_factory=dict)
    settled: dict[UUID, Reservation] = field(default_factory=dict)
    deliveries: list[GoodsDelivery] = field(default_factory=list)

    def receive(self, saga_id: UUID, step: str, sku: str, quantity: int) -> StockReceived:
        pieces = self.pieces.setdefault(sku, Pieces())
        pieces.on_hand += quantity
        pieces.received += quantity
        self.moved.add(sku)
        self.deliveries.append(GoodsDelivery(saga_id, step, sku, quantity))
        return StockReceived(sku=sku)

    def reserve(
        self, saga_id: UUID, step: str, lines: Iterable[Line]
    ) -> StockReserved | OutOfStock | NotStocked:
        if saga_id in self.reservations:
            raise IllegalTransition(f"saga {saga_id} has a reservation already")
        wanted: Counter[str] = Counter()
        for line in lines:
            wanted[line.sku] += line.quantity
        for sku, quantity in wanted.items():  # check every line before any piece moves
            pieces = self.pieces.get(sku)
            if pieces is None:
                return NotStocked(sku=sku)
            if pieces.on_hand < quantity:
                return OutOfStock(sku=sku, wanted=quantity, available=pieces.on_hand)
        for sku, quantity in wanted.items():
            self.pieces[sku].on_hand -= quantity
            self.pieces[sku].held += quantity
        self.moved.update(wanted)
        self.reservations[saga_id] = self.made[saga_id] = Reservation(saga_id, step, wanted)
        return StockReserved()

    def release(self, saga_id: UUID) -> StockReleased:
        """Undo a reservation, if there is one to undo."""
        reservation = self.reservations.get(saga_id)
        if reservation is None:
            return StockReleased(nothing_to_undo=True)
        if reservation.status in (ReservationStatus.DISPATCHED, ReservationStatus.RETURNED):
            raise IllegalTransition(f"reservation {saga_id} is dispatched: the goods have left")
        if reservation.status is ReservationStatus.HELD:
            for sku, quantity in reservation.lines.items():
                self.pieces[sku].held -= quantity
                self.pieces[sku].on_hand += quantity
            self._settle(reservation, ReservationStatus.RELEASED)
        return StockReleased()

    def dispatch(self, saga_id: UUID) -> StockDispatched | ReservationNotHeld:
        reservation = self.reservations.get(saga_id)
        if reservation is None or reservation.status is ReservationStatus.RELEASED:
            return ReservationNotHeld()
        if reservation.status is ReservationStatus.HELD:
            for sku, quantity in reservation.lines.items():
                self.pieces[sku].held -= quantity
                self.pieces[sku].dispatched += quantity
            self._settle(reservation, ReservationStatus.DISPATCHED)
        return StockDispatched()

    def restock(self, order_id: UUID) -> Restocked:
        """Put what was dispatched for a returned order back on the shelf."""
        reservation = self.reservations.get(order_id)
        if reservation is None or reservation.status is not ReservationStatus.DISPATCHED:
            raise IllegalTransition(f"nothing is dispatched for order {order_id}")
        for sku, quantity in reservation.lines.items():
            self.pieces[sku].dispatched -= quantity
            self.pieces[sku].on_hand += quantity
        self._settle(reservation, ReservationStatus.RETURNED)
        return Restocked()

    def _settle(self, reservation: Reservation, status: ReservationStatus) -> None:
        reservation.status = status
        self.moved.update(reservation.lines)
        if reservation.saga_id not in self.made:
            self.settled[reservation.saga_id] = reservation
