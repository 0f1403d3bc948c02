"""Commands, replies and queries of the inventory service."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from common.messages.contracts import Limit
from common.messages.envelope import Answer, Command, Done, Message, Query, Refusal, Undo
from common.messages.shop.values import Lines, Quantity, Sku, SkuPrefix


class ReserveStock(Command):
    """All lines or none."""

    lines: Lines


class StockReserved(Done):
    pass


class OutOfStock(Refusal):
    reason: Literal["out_of_stock"] = "out_of_stock"
    sku: str
    wanted: int
    available: int


class NotStocked(Refusal):
    reason: Literal["not_stocked"] = "not_stocked"
    sku: str


class ReleaseStock(Undo):
    """Undoes ReserveStock; what to release is read from the reservation, not from the message."""


class StockReleased(Done):
    nothing_to_undo: bool = False


class DispatchStock(Command):
    """The pivot: goods leave the building."""


class StockDispatched(Done):
    pass


class ReservationNotHeld(Refusal):
    reason: Literal["reservation_not_held"] = "reservation_not_held"


class Restock(Command):
    """Dispatched goods have come back, whole."""

    order_id: UUID


class Restocked(Done):
    pass


class ReceiveStock(Command):
    """A delivery of new goods; the only way stock comes into being."""

    sku: Sku
    quantity: Quantity


class StockReceived(Done):
    sku: str


class StockQuery(Query):
    """A page of the stock by SKU: those that begin with `prefix`, from behind `after` on."""

    prefix: SkuPrefix = ""
    after: Sku | None = None
    limit: Limit = 100


class StockRow(Message):
    """The pieces of one SKU; on_hand + held + dispatched = received."""

    sku: str
    on_hand: int
    held: int
    dispatched: int
    received: int


class StockPage(Answer):
    rows: tuple[StockRow, ...]
    more: bool
