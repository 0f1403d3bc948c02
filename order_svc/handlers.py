"""What the order service does with each command. Pure: a message is taken apart, the domain
decides.

Owns: the tables HANDLERS, ON_DUPLICATE and KEPT_FOR_EVER, and what StartSaga and CancelSaga say of
an order.
Must not know: SQL, the broker, the inbox.
"""

from __future__ import annotations

from collections.abc import Callable

from common.messages.contracts import (
    START,
    CancelNoted,
    CancelOrder,
    CancelSaga,
    CloseReturn,
    ConfirmOrder,
    FinishReturn,
    KeyReused,
    Line,
    ListProduct,
    NotReturnable,
    OpenReturn,
    OrderAccepted,
    OrderConfirmed,
    OrderInvalid,
    OrderIsOver,
    OrderRejected,
    OrderUnknown,
    PlaceOrder,
    ProductListed,
    RejectOrder,
    ReturnAccepted,
    ReturnClosed,
    ReturnFinished,
    SagaStarted,
    StartSaga,
)
from common.messages.envelope import Command, Direction, Envelope, Key, Reply
from common.messages.topology import ORCHESTRATOR_COMMANDS, ORCHESTRATOR_REPLIES, commands_of
from common.participant.participant import Answered, Handler, OnDuplicate, Work
from common.storage.outbox import Outgoing
from order_svc.domain import CANCELLED, OpenedReturn, OrderBook, PlacedOrder


def placing(begin: Callable[[PlacedOrder], Outgoing]) -> Handler:
    """`begin` says what a placed order leads to."""

    def place_order(book: OrderBook, work: Work[PlaceOrder]) -> Answered:
        asked = work.command
        if stands := book.standing.get(work.saga_id):  # its saga is forgotten; the order never is
            return Answered(repeated(asked, order_accepted(stands)), keep=False)
        order = book.place(work.saga_id, work.step, asked)
        if isinstance(order, OrderInvalid):
            return Answered(order, keep=False)
        return Answered(order_accepted(order), also=(begin(order),))

    return place_order


def order_accepted(order: PlacedOrder) -> OrderAccepted:
    return OrderAccepted(
        order_id=order.order_id,
        customer=order.customer,
        currency=order.currency,
        lines=tuple(Line(sku=line.sku, quantity=line.quantity) for line in order.lines),
        total=order.total,
    )


def return_accepted(opened: OpenedReturn) -> ReturnAccepted:
    return ReturnAccepted(return_id=opened.return_id, order_id=opened.order_id)


def start_key(what: PlacedOrder | OpenedReturn) -> Key:
    saga_id = what.order_id if isinstance(what, PlacedOrder) else what.return_id
    return Key(saga_id, START, Direction.FORWARD)


def start_saga(what: PlacedOrder | OpenedReturn) -> Outgoing:
    """The same message however often it is sent; only a repeat wants to hear SagaStarted."""
    if isinstance(what, PlacedOrder):
        start, asked_at = StartSaga(definition="order", data=_order_data(what)), what.placed_at
    else:
        start, asked_at = StartSaga(definition="return", data=_return_data(what)), what.opened_at
    envelope = Envelope.command(
        start_key(what),
        start,
        issued_at=asked_at,
        reply_to=commands_of("order") if what.attempt > 1 else None,
        attempt=what.attempt,
    )
    return Outgoing(ORCHESTRATOR_COMMANDS, envelope)


def _order_data(order: PlacedOrder) -> dict[str, object]:
    return {
        "order_id": str(order.order_id),
        "customer": order.customer,
        "currency": order.currency,
        "lines": [{"sku": line.sku, "quantity": line.quantity} for line in order.lines],
        "total": order.total,
    }


def _return_data(opened: OpenedReturn) -> dict[str, object]:
    return {
        "order_id": str(opened.order_id),
        "customer": opened.customer,
        "currency": opened.currency,
        "total": opened.total,
    }


def cancel_order(book: OrderBook, work: Work[CancelOrder]) -> Answered:
    """Whoever asks again has the same message sent again, should the broker have lost it: nothing
    is kept, and the saga's own inbox knows a repeat.

    Not by the queue of starts: those may wait at a gate, and what is under way waits for none.
    """
    order = book.cancel(work.saga_id)
    if isinstance(order, OrderIsOver | OrderUnknown):
        return Answered(order, keep=False)
    cancel = Envelope.command(
        Key(order.order_id, "cancel", Direction.FORWARD),
        CancelSaga(
            definition="order",
            data=_order_data(order),
            actor=f"customer {order.customer}",
            reason=CANCELLED,
        ),
        issued_at=book.now,
        reply_to=None,
    )
    return Answered(CancelNoted(), also=(Outgoing(ORCHESTRATOR_REPLIES, cancel),), keep=False)


def repeated(asked: PlaceOrder, stored: OrderAccepted) -> OrderAccepted | KeyReused:
    """The key is known: the same order again gets the same answer, another one a refusal."""
    same = (asked.customer, asked.currency, asked.lines) == (
        stored.customer,
        stored.currency,
        stored.lines,
    )
    return stored if same else KeyReused(order_id=stored.order_id)


def the_same(_: Command, stored: Reply) -> Reply:
    """Whoever asks again hears what they heard before."""
    return stored


def confirm_order(book: OrderBook, work: Work[ConfirmOrder]) -> OrderConfirmed:
    return book.confirm(work.saga_id)


def reject_order(book: OrderBook, work: Work[RejectOrder]) -> OrderRejected:
    return book.reject(work.saga_id, work.command.reason)


def opening(begin: Callable[[OpenedReturn], Outgoing]) -> Handler:
    """`begin` says what an opened return leads to."""

    def open_return(book: OrderBook, work: Work[OpenReturn]) -> Answered:
        asked = work.command
        stands = book.returns.get(work.saga_id)
        if stands and stands.order_id == asked.order_id:  # as above
            again = ReturnAccepted(return_id=work.saga_id, order_id=asked.order_id)
            return Answered(again, keep=False)
        opened = book.open_return(work.saga_id, work.step, asked.order_id, asked.idempotency_key)
        if isinstance(opened, NotReturnable):
            return Answered(opened, keep=False)
        return Answered(return_accepted(opened), also=(begin(opened),))

    return open_return


def reopened(_: OpenReturn, stored: ReturnAccepted) -> ReturnAccepted:
    """The key says which return it is; there is nothing else that could differ."""
    return stored


def close_return(book: OrderBook, work: Work[CloseReturn]) -> ReturnClosed:
    return book.close_return(work.saga_id, work.command.reason)


def finish_return(book: OrderBook, work: Work[FinishReturn]) -> ReturnFinished:
    return book.finish_return(work.saga_id, work.command.order_id)


def saga_started(book: OrderBook, work: Work[SagaStarted]) -> Answered:
    book.saga_started(work.saga_id)
    return Answered(None)


def list_product(book: OrderBook, work: Work[ListProduct]) -> ProductListed:
    command = work.command
    return book.list_product(command.sku, command.price, command.currency)


HANDLERS: dict[type[Command], Handler] = {
    PlaceOrder: placing(start_saga),
    CancelOrder: cancel_order,
    ConfirmOrder: confirm_order,
    RejectOrder: reject_order,
    OpenReturn: opening(start_saga),
    CloseReturn: close_return,
    FinishReturn: finish_return,
    SagaStarted: saga_started,
    ListProduct: list_product,
}
ON_DUPLICATE: dict[type[Command], OnDuplicate] = {
    PlaceOrder: repeated,
    CancelOrder: the_same,
    OpenReturn: reopened,
}
# By the order itself, and by the return.
KEPT_FOR_EVER: frozenset[type[Command]] = frozenset({PlaceOrder, OpenReturn})
