"""The price list, orders and returns: states and rules. Pure.

- An order goes PENDING -> CONFIRMED or PENDING -> REJECTED. A confirmed one may be returned:
  CONFIRMED -> RETURN_PENDING -> RETURNED, or back to CONFIRMED.
- PENDING and RETURN_PENDING are semantic locks: a saga is working on the order.
- Customers name SKUs and quantities. The price is ours; the order keeps the one it was sold at.

A business "no" is a reply. An illegal transition raises and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID, uuid5

from common.messages.envelope import saga_id_for
from common.messages.errors import IllegalTransition
from common.messages.shop.order import (
    NotReturnable,
    OrderConfirmed,
    OrderInvalid,
    OrderIsOver,
    OrderRejected,
    OrderUnknown,
    PlaceOrder,
    ProductListed,
    ReturnClosed,
    ReturnFinished,
)
from common.messages.shop.values import Line

CREATE_ORDER = "create_order"
OPEN_RETURN = "open_return"
CANCEL_ORDER = "customer_cancels"
CANCELLED = "cancelled"  # the reason of an order that its customer cancelled
MAX_TOTAL = 10**15  # minor units; what a charge may carry (common.messages.shop.values.Minor)


def return_id_for(order_id: UUID, idempotency_key: str) -> UUID:
    """Return the id of a return and of its saga; a new attempt has a new key, so a new id."""
    return uuid5(order_id, f"return\x1f{idempotency_key}")


class OrderStatus(StrEnum):
    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"
    RETURN_PENDING = "RETURN_PENDING"
    RETURNED = "RETURNED"


class ReturnStatus(StrEnum):
    OPEN = "OPEN"
    CLOSED = "CLOSED"  # undone: the order is CONFIRMED again
    FINISHED = "FINISHED"


class Product(NamedTuple):
    price: int
    currency: str


class PricedLine(NamedTuple):
    sku: str
    quantity: int
    price: int  # of one piece, when it was sold


@dataclass(frozen=True, slots=True)
class PlacedOrder:
    """An order as its customer placed it, with the prices of that moment."""

    order_id: UUID
    customer: str
    currency: str
    lines: tuple[PricedLine, ...]
    total: int
    placed_at: datetime
    attempt: int = 1  # how often the start of its saga was sent


@dataclass(frozen=True, slots=True)
class OpenedReturn:
    """A return as its customer opened it, with the figures of its order."""

    return_id: UUID
    order_id: UUID
    customer: str
    currency: str
    total: int
    opened_at: datetime
    attempt: int = 1  # how often the start of its saga was sent


@dataclass(slots=True)
class OrderState:
    """The part of an order that changes, and what a return needs to know of it."""

    status: OrderStatus = OrderStatus.PENDING
    reason: str | None = None
    saga_known: bool = False
    return_id: UUID | None = None  # the return that locks it, or that it was returned by
    customer: str = ""
    currency: str = ""
    total: int = 0


@dataclass(slots=True)
class ReturnState:
    """The part of a return that changes."""

    order_id: UUID
    status: ReturnStatus = ReturnStatus.OPEN
    reason: str | None = None
    saga_known: bool = False


@dataclass(slots=True)
class OrderBook:
    """The products, orders and returns one batch is about, and what the batch changes in them."""

    now: datetime
    # loaded
    currencies: set[str] = field(default_factory=set)  # those of the batch that we sell in
    products: dict[str, Product] = field(default_factory=dict)
    orders: dict[UUID, OrderState] = field(default_factory=dict)
    returns: dict[UUID, ReturnState] = field(default_factory=dict)
    placed_before: dict[UUID, PlacedOrder] = field(default_factory=dict)  # by earlier batches
    # changed
    listed: set[str] = field(default_factory=set)  # SKUs
    placed: dict[UUID, tuple[PlacedOrder, str]] = field(default_factory=dict)  # and its key
    changed: set[UUID] = field(default_factory=set)  # orders
    cancelled: set[UUID] = field(default_factory=set)  # orders whose saga is asked to cancel
    opened: dict[UUID, tuple[OpenedReturn, str]] = field(default_factory=dict)  # and its key
    changed_returns: set[UUID] = field(default_factory=set)

    def list_product(self, sku: str, price: int, currency: str) -> ProductListed:
        """Put a SKU on the price list, or change its price for new orders."""
        self.products[sku] = Product(price, currency)
        self.currencies.add(currency)
        self.listed.add(sku)
        return ProductListed(sku=sku)

    def place(self, saga_id: UUID, step: str, command: PlaceOrder) -> PlacedOrder | OrderInvalid:
        if step != CREATE_ORDER:  # its undo would find nothing under another name
            return OrderInvalid(field="step", remedy=f"send it as step {CREATE_ORDER}")
        if saga_id != saga_id_for(command.customer, command.idempotency_key):
            return OrderInvalid(
                field="saga_id", remedy="make it from the customer and the idempotency key"
            )
        lines = self._priced(command)
        if isinstance(lines, OrderInvalid):
            return lines
        total = sum(line.quantity * line.price for line in lines)
        if total > MAX_TOTAL:
            return OrderInvalid(field="lines", remedy=f"order for at most {MAX_TOTAL} in all")
        order = PlacedOrder(saga_id, command.customer, command.currency, lines, total, self.now)
        self.placed[saga_id] = (order, command.idempotency_key)
        self.orders[saga_id] = OrderState(
            customer=order.customer, currency=order.currency, total=total
        )
        return order

    def confirm(self, order_id: UUID) -> OrderConfirmed:
        order = self._order(order_id)
        if order.status is OrderStatus.REJECTED:
            raise IllegalTransition(f"order {order_id} is rejected: it cannot be confirmed")
        if order.status is OrderStatus.PENDING:
            order.status = OrderStatus.CONFIRMED
            self.changed.add(order_id)
        return OrderConfirmed()

    def reject(self, order_id: UUID, reason: str) -> OrderRejected:
        """Undo an order, if there is one to undo; it stays on record with the reason."""
        order = self.orders.get(order_id)
        if order is None:
            return OrderRejected()
        if order.status is OrderStatus.PENDING:
            order.status = OrderStatus.REJECTED
            order.reason = reason
            self.changed.add(order_id)
        elif order.status is not OrderStatus.REJECTED:
            raise IllegalTransition(f"order {order_id} is confirmed: it cannot be rejected")
        return OrderRejected()

    def cancel(self, order_id: UUID) -> PlacedOrder | OrderIsOver | OrderUnknown:
        """Return the order if its saga can still be asked to undo it."""
        placed_in_this_batch, _ = self.placed.get(order_id, (None, ""))
        order = self.placed_before.get(order_id, placed_in_this_batch)
        state = self.orders.get(order_id)
        if order is None or state is None:
            return OrderUnknown()
        if state.status is not OrderStatus.PENDING:
            return OrderIsOver(status=state.status)
        self.cancelled.add(order_id)
        return order

    def open_return(
        self, saga_id: UUID, step: str, order_id: UUID, key: str
    ) -> OpenedReturn | NotReturnable:
        """Lock a confirmed order for this return."""
        if step != OPEN_RETURN:  # its undo would find nothing under another name
            return NotReturnable(field="step", remedy=f"send it as step {OPEN_RETURN}")
        if saga_id != return_id_for(order_id, key):
            remedy = "make it from the order and the idempotency key"
            return NotReturnable(field="saga_id", remedy=remedy)
        order = self.orders.get(order_id)
        if order is None:
            return NotReturnable(field="order_id", remedy=f"no order {order_id}: check its id")
        if order.status is not OrderStatus.CONFIRMED:
            return NotReturnable(field="order_id", remedy=_why_not(order))
        order.status, order.return_id = OrderStatus.RETURN_PENDING, saga_id
        self.changed.add(order_id)
        opened = OpenedReturn(
            saga_id, order_id, order.customer, order.currency, order.total, self.now
        )
        self.opened[saga_id] = (opened, key)
        self.returns[saga_id] = ReturnState(order_id)
        return opened

    def close_return(self, return_id: UUID, reason: str) -> ReturnClosed:
        """Undo a return, if there is one to undo; the order is CONFIRMED again."""
        found = self.returns.get(return_id)
        if found is None:
            return ReturnClosed(nothing_to_undo=True)
        if found.status is ReturnStatus.FINISHED:
            raise IllegalTransition(f"return {return_id} is finished: the money is back")
        if found.status is ReturnStatus.OPEN:
            order = self._locked_by(return_id, found.order_id)
            order.status, order.return_id = OrderStatus.CONFIRMED, None
            self._settle(return_id, found, ReturnStatus.CLOSED)
            found.reason = reason
        return ReturnClosed()

    def finish_return(self, return_id: UUID, order_id: UUID) -> ReturnFinished:
        found = self.returns.get(return_id)
        if found is None or found.order_id != order_id or found.status is ReturnStatus.CLOSED:
            raise IllegalTransition(f"there is no open return {return_id} of order {order_id}")
        if found.status is ReturnStatus.OPEN:
            self._locked_by(return_id, order_id).status = OrderStatus.RETURNED
            self._settle(return_id, found, ReturnStatus.FINISHED)
        return ReturnFinished()

    def saga_started(self, saga_id: UUID) -> None:
        """Note that a saga has started, which ends the resending of its StartSaga."""
        if saga_id in self.returns:
            self.returns[saga_id].saga_known = True
            self.changed_returns.add(saga_id)
        else:
            self._order(saga_id).saga_known = True
            self.changed.add(saga_id)

    def _locked_by(self, return_id: UUID, order_id: UUID) -> OrderState:
        order = self._order(order_id)
        if (order.status, order.return_id) != (OrderStatus.RETURN_PENDING, return_id):
            raise IllegalTransition(f"order {order_id} is not locked by return {return_id}")
        return order

    def _settle(self, return_id: UUID, found: ReturnState, status: ReturnStatus) -> None:
        found.status = status
        self.changed.add(found.order_id)
        self.changed_returns.add(return_id)

    def _order(self, order_id: UUID) -> OrderState:
        order = self.orders.get(order_id)
        if order is None:
            raise IllegalTransition(f"order {order_id} was never placed")
        return order

    def _priced(self, command: PlaceOrder) -> tuple[PricedLine, ...] | OrderInvalid:
        if command.currency not in self.currencies:
            return OrderInvalid(field="currency", remedy=f"nothing is sold in {command.currency}")
        lines: dict[str, PricedLine] = {}
        for index, line in enumerate(command.lines):
            remedy = self._objection(line, command.currency, lines)
            if remedy is not None:
                return OrderInvalid(field=f"lines[{index}].sku", remedy=remedy)
            lines[line.sku] = PricedLine(line.sku, line.quantity, self.products[line.sku].price)
        return tuple(lines.values())

    def _objection(self, line: Line, currency: str, earlier: dict[str, PricedLine]) -> str | None:
        """Return the remedy for a line that cannot be sold, or None."""
        product = self.products.get(line.sku)
        if product is None:
            return f"{line.sku} is not on the price list: leave it out, or correct it"
        if line.sku in earlier:
            return f"{line.sku} is named twice: make it one line with the sum"
        if product.currency != currency:
            return f"{line.sku} is sold in {product.currency}: order it apart, in that currency"
        return None


def _why_not(order: OrderState) -> str:
    """Return why an order cannot be returned now, and what to do instead."""
    match order.status:
        case OrderStatus.PENDING:
            return "it is not confirmed yet: ask again when it is, or cancel it"
        case OrderStatus.REJECTED:
            return "it was rejected: nothing was charged or sent that could go back"
        case OrderStatus.RETURN_PENDING:
            return (
                f"return {order.return_id} of it is under way: see GET /returns/{order.return_id}"
            )
        case _:
            return f"it was given back already, by return {order.return_id}"
