"""What the order service does with each command. Pure: a message is taken apart, the domain
decides.

Owns: the tables HANDLERS and ON_DUPLICATE, and what StartSaga says of an order.
Must not know: SQL, the broker, the inbox.
"""

from __future__ import annotations

from typing import cast

from common.contracts import (
    ConfirmOrder,
    KeyReused,
    ListProduct,
    OrderAccepted,
    OrderConfirmed,
    OrderInvalid,
    OrderRejected,
    PlaceOrder,
    ProductListed,
    RejectOrder,
    SagaStarted,
    StartSaga,
)
from common.envelope import Command, Direction, Envelope, Key
from common.outbox import Outgoing
from common.participant import Answered, Handler, OnDuplicate, Work
from common.topology import ORCHESTRATOR_COMMANDS, commands_of
from order_svc.domain import OrderBook, PlacedOrder


def place_order(book: OrderBook, work: Work) -> Answered:
    asked = cast(PlaceOrder, work.command)
    order = book.place(work.saga_id, work.step, asked)
    if isinstance(order, OrderInvalid):
        return Answered(order, keep=False)
    accepted = OrderAccepted(
        order_id=order.order_id,
        customer=order.customer,
        currency=order.currency,
        lines=asked.lines,
        total=order.total,
    )
    return Answered(accepted, also=(start_saga(order),))


def start_key(order: PlacedOrder) -> Key:
    return Key(order.order_id, "start", Direction.FORWARD)


def start_saga(order: PlacedOrder) -> Outgoing:
    """The same message however often it is sent; only a repeat wants to hear SagaStarted."""
    data: dict[str, object] = {
        "order_id": str(order.order_id),
        "customer": order.customer,
        "currency": order.currency,
        "lines": [{"sku": line.sku, "quantity": line.quantity} for line in order.lines],
        "total": order.total,
    }
    start = Envelope.command(
        start_key(order),
        StartSaga(definition="order", data=data),
        issued_at=order.placed_at,
        reply_to=commands_of("order") if order.attempt > 1 else None,
        attempt=order.attempt,
    )
    return Outgoing(ORCHESTRATOR_COMMANDS, start)


def repeated(asked: PlaceOrder, stored: OrderAccepted) -> OrderAccepted | KeyReused:
    """The key is known: the same order again gets the same answer, another one a refusal."""
    same = (asked.customer, asked.currency, asked.lines) == (
        stored.customer,
        stored.currency,
        stored.lines,
    )
    return stored if same else KeyReused(order_id=stored.order_id)


def confirm_order(book: OrderBook, work: Work) -> OrderConfirmed:
    return book.confirm(work.saga_id)


def reject_order(book: OrderBook, work: Work) -> OrderRejected:
    return book.reject(work.saga_id, cast(RejectOrder, work.command).reason)


def saga_started(book: OrderBook, work: Work) -> Answered:
    book.saga_started(work.saga_id)
    return Answered(None)


def list_product(book: OrderBook, work: Work) -> ProductListed:
    command = cast(ListProduct, work.command)
    return book.list_product(command.sku, command.price, command.currency)


HANDLERS: dict[type[Command], Handler] = {
    PlaceOrder: place_order,
    ConfirmOrder: confirm_order,
    RejectOrder: reject_order,
    SagaStarted: saga_started,
    ListProduct: list_product,
}
ON_DUPLICATE: dict[type[Command], OnDuplicate] = {PlaceOrder: repeated}
