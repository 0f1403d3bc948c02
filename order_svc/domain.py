"""The price list and orders: states and rules. Pure.

Owns: what an order must look like, what it costs, and what may become of it. An order goes
PENDING -> CONFIRMED or PENDING -> REJECTED, both final. PENDING is its semantic lock: a saga
is at work on it. Customers name SKUs and quantities; the price is ours, and is kept with the
order as the one it was sold at.

An illegal transition raises and changes nothing; a business "no" is a reply.
Must not know: SQL, HTTP, the clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from common.contracts import (
    Line,
    OrderConfirmed,
    OrderInvalid,
    OrderRejected,
    PlaceOrder,
    ProductListed,
)
from common.envelope import saga_id_for
from common.errors import IllegalTransition

CREATE_ORDER = "create_order"
MAX_TOTAL = 10**15  # minor units; what a charge may carry (common.contracts.Minor)


class Status(StrEnum):
    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"


class Product(NamedTuple):
    price: int
    currency: str


class PricedLine(NamedTuple):
    sku: str
    quantity: int
    price: int  # of one piece, when it was sold


@dataclass(frozen=True, slots=True)
class PlacedOrder:
    """What was ordered, at what price."""

    order_id: UUID
    customer: str
    currency: str
    lines: tuple[PricedLine, ...]
    total: int
    placed_at: datetime
    attempt: int = 1  # at having its saga started


@dataclass(slots=True)
class Standing:
    """What has become of an order so far."""

    status: Status = Status.PENDING
    reason: str | None = None
    saga_known: bool = False


@dataclass(slots=True)
class OrderBook:
    """What one batch concerns of price list and orders, and what the batch has changed of them."""

    now: datetime
    currencies: set[str] = field(default_factory=set)  # those asked for that something is sold in
    products: dict[str, Product] = field(default_factory=dict)
    orders: dict[UUID, Standing] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)  # SKUs
    placed: dict[UUID, tuple[PlacedOrder, str]] = field(default_factory=dict)  # and its key
    changed: set[UUID] = field(default_factory=set)

    def list_product(self, sku: str, price: int, currency: str) -> ProductListed:
        """Put on the price list, or give it another price for orders to come."""
        self.products[sku] = Product(price, currency)
        self.currencies.add(currency)
        self.listed.add(sku)
        return ProductListed(sku=sku)

    def place(self, saga_id: UUID, step: str, asked: PlaceOrder) -> PlacedOrder | OrderInvalid:
        if step != CREATE_ORDER:  # its undo would find nothing under another name
            return OrderInvalid(field="step", remedy=f"send it as step {CREATE_ORDER}")
        if saga_id != saga_id_for(asked.customer, asked.idempotency_key):
            return OrderInvalid(
                field="saga_id", remedy="make it from the customer and the idempotency key"
            )
        lines = self._priced(asked)
        if isinstance(lines, OrderInvalid):
            return lines
        total = sum(line.quantity * line.price for line in lines)
        if total > MAX_TOTAL:
            return OrderInvalid(field="lines", remedy=f"order for at most {MAX_TOTAL} in all")
        order = PlacedOrder(saga_id, asked.customer, asked.currency, lines, total, self.now)
        self.placed[saga_id] = (order, asked.idempotency_key)
        self.orders[saga_id] = Standing()
        return order

    def confirm(self, order_id: UUID) -> OrderConfirmed:
        order = self._order(order_id)
        if order.status is Status.REJECTED:
            raise IllegalTransition(f"order {order_id} is rejected: it cannot be confirmed")
        if order.status is Status.PENDING:
            order.status = Status.CONFIRMED
            self.changed.add(order_id)
        return OrderConfirmed()

    def reject(self, order_id: UUID, reason: str) -> OrderRejected:
        """Undo an order, if there is one to undo: it stays on record, with the reason."""
        order = self.orders.get(order_id)
        if order is None:
            return OrderRejected()
        if order.status is Status.CONFIRMED:
            raise IllegalTransition(f"order {order_id} is confirmed: it cannot be rejected")
        if order.status is Status.PENDING:
            order.status = Status.REJECTED
            order.reason = reason
            self.changed.add(order_id)
        return OrderRejected()

    def saga_started(self, order_id: UUID) -> None:
        """No need to ask for its saga again."""
        self._order(order_id).saga_known = True
        self.changed.add(order_id)

    def _order(self, order_id: UUID) -> Standing:
        order = self.orders.get(order_id)
        if order is None:
            raise IllegalTransition(f"order {order_id} was never placed")
        return order

    def _priced(self, asked: PlaceOrder) -> tuple[PricedLine, ...] | OrderInvalid:
        if asked.currency not in self.currencies:
            return OrderInvalid(field="currency", remedy=f"nothing is sold in {asked.currency}")
        lines: dict[str, PricedLine] = {}
        for index, line in enumerate(asked.lines):
            remedy = self._objection(line, asked.currency, lines)
            if remedy is not None:
                return OrderInvalid(field=f"lines[{index}].sku", remedy=remedy)
            lines[line.sku] = PricedLine(line.sku, line.quantity, self.products[line.sku].price)
        return tuple(lines.values())

    def _objection(self, line: Line, currency: str, earlier: dict[str, PricedLine]) -> str | None:
        """What to do about a line that cannot be sold so."""
        product = self.products.get(line.sku)
        if product is None:
            return f"{line.sku} is not on the price list: leave it out, or correct it"
        if line.sku in earlier:
            return f"{line.sku} is named twice: make it one line with the sum"
        if product.currency != currency:
            return f"{line.sku} is sold in {product.currency}: order it apart, in that currency"
        return None
