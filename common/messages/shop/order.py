"""Commands and replies of the order service: orders, returns, prices."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import BaseModel

from common.messages.envelope import Command, Done, Refusal, Undo
from common.messages.shop.values import Currency, Line, Lines, Minor, Name, Sku


class PlaceOrder(Command):
    """A customer's order: SKUs and quantities, never prices. Step `create_order`."""

    customer: Name
    idempotency_key: Name
    currency: Currency
    lines: Lines


class OrderAccepted(Done):
    """The order is PENDING; its saga will decide. Also the stored reply to every repeat."""

    order_id: UUID
    customer: str
    currency: str
    lines: tuple[Line, ...]
    total: int


class OrderInvalid(Refusal):
    """The order was not written; the same key may be used again with a corrected one."""

    reason: Literal["invalid_order"] = "invalid_order"
    field: str
    remedy: str


class KeyReused(Refusal):
    """The idempotency key already belongs to an order with another content."""

    reason: Literal["idempotency_key_reused"] = "idempotency_key_reused"
    order_id: UUID


class CancelOrder(Command):
    """A customer cancels an order. Step `customer_cancels` of the order's own saga id."""

    order_id: UUID


class CancelNoted(Done):
    """The cancellation was requested; the order's status will say whether it came in time."""


class OrderIsOver(Refusal):
    """Nothing is left to cancel: the goods have left, or it was rejected before."""

    reason: Literal["order_is_over"] = "order_is_over"
    status: str


class OrderUnknown(Refusal):
    reason: Literal["order_unknown"] = "order_unknown"


class ConfirmOrder(Command):
    pass


class OrderConfirmed(Done):
    pass


class RejectOrder(Undo):
    reason: str


class OrderRejected(Done):
    pass


class OpenReturn(Command):
    """A customer returns a confirmed order. Step `open_return`, handled at the door."""

    order_id: UUID
    idempotency_key: Name


class ReturnAccepted(Done):
    """The order is locked for this return; its saga will decide. Also the answer to a repeat."""

    return_id: UUID
    order_id: UUID


class NotReturnable(Refusal):
    """Nothing was written; the same key may be used again when the order's status has changed."""

    reason: Literal["not_returnable"] = "not_returnable"
    field: str
    remedy: str


class CloseReturn(Undo):
    """Undoes OpenReturn; which order is read from the return, not from the message."""

    reason: str


class ReturnClosed(Done):
    nothing_to_undo: bool = False


class FinishReturn(Command):
    order_id: UUID


class ReturnFinished(Done):
    pass


class CancelAsked(Done):
    """The order service's event, in choreography, of an order that timed out or was cancelled.

    The pivot's owner reacts: it alone can decide whether it is too late (rule 20).
    """

    reason: str


class ListProduct(Command):
    """Puts a SKU on the price list, or changes its price for orders to come."""

    sku: Sku
    price: Minor
    currency: Currency


class ProductListed(Done):
    sku: str


class OrderData(BaseModel):
    """The data the order saga begins with."""

    order_id: UUID
    customer: Name
    currency: Currency
    lines: Lines
    total: Minor
