"""The handlers of the order service's commands. Pure: each unpacks a message and asks the domain.

Placing an order also makes the message that starts its saga. In the orchestrated style that is
StartSaga; the choreographed style passes another `first_message` to `placing` and `opening`.
"""

from __future__ import annotations

from collections.abc import Callable

from common.messages.contracts import START, CancelSaga, SagaStarted, StartSaga
from common.messages.envelope import Command, Direction, Envelope, Key, Reply
from common.messages.shop.order import (
    CancelNoted,
    CancelOrder,
    CloseReturn,
    ConfirmOrder,
    FinishReturn,
    KeyReused,
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
)
from common.messages.shop.values import Line
from common.messages.topology import ORCHESTRATOR_COMMANDS, ORCHESTRATOR_REPLIES, commands_of
from common.participant.participant import Answered, Handler, OnDuplicate, Work
from common.storage.outbox import Outgoing
from order_svc.domain import CANCELLED, OpenedReturn, OrderBook, PlacedOrder


def placing(first_message: Callable[[PlacedOrder], Outgoing]) -> Handler:
    """Make the handler of PlaceOrder; `first_message` makes what starts an order's saga."""

    def place_order(book: OrderBook, work: Work[PlaceOrder]) -> Answered:
        # The inbox row of an old order may be forgotten; the order itself never is.
        if placed := book.placed_before.get(work.saga_id):
            return Answered(answer_repeat(work.command, order_accepted(placed)), keep=False)
        order = book.place(work.saga_id, work.step, work.command)
        if isinstance(order, OrderInvalid):
            return Answered(order, keep=False)
        return Answered(order_accepted(order), also=(first_message(order),))

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
    """Make the StartSaga of an order or a return, the same each time.

    Only a resend asks for a reply: SagaStarted ends the resending (rule 8).
    """
    if isinstance(what, PlacedOrder):
        start, issued_at = StartSaga(definition="order", data=_order_data(what)), what.placed_at
    else:
        start, issued_at = StartSaga(definition="return", data=_return_data(what)), what.opened_at
    envelope = Envelope.command(
        start_key(what),
        start,
        issued_at=issued_at,
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
    """Send CancelSaga, again for every repeat, in case the broker lost it.

    No inbox row is kept: the orchestrator recognises a repeat. It goes to the queue of replies, not
    to the queue of starts, which may be held back by admission control.
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


def answer_repeat(command: PlaceOrder, stored: OrderAccepted) -> OrderAccepted | KeyReused:
    """Answer a key that was used before: with the stored reply, or KeyReused for another order."""
    same = (command.customer, command.currency, command.lines) == (
        stored.customer,
        stored.currency,
        stored.lines,
    )
    return stored if same else KeyReused(order_id=stored.order_id)


def stored_reply(_: Command, stored: Reply) -> Reply:
    return stored


def confirm_order(book: OrderBook, work: Work[ConfirmOrder]) -> OrderConfirmed:
    return book.confirm(work.saga_id)


def reject_order(book: OrderBook, work: Work[RejectOrder]) -> OrderRejected:
    return book.reject(work.saga_id, work.command.reason)


def opening(first_message: Callable[[OpenedReturn], Outgoing]) -> Handler:
    """Make the handler of OpenReturn; `first_message` makes what starts a return's saga."""

    def open_return(book: OrderBook, work: Work[OpenReturn]) -> Answered:
        order_id, key = work.command.order_id, work.command.idempotency_key
        before = book.returns.get(work.saga_id)
        if before and before.order_id == order_id:  # its inbox row may be forgotten
            return Answered(ReturnAccepted(return_id=work.saga_id, order_id=order_id), keep=False)
        opened = book.open_return(work.saga_id, work.step, order_id, key)
        if isinstance(opened, NotReturnable):
            return Answered(opened, keep=False)
        return Answered(return_accepted(opened), also=(first_message(opened),))

    return open_return


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
    PlaceOrder: answer_repeat,
    CancelOrder: stored_reply,
    OpenReturn: stored_reply,
}
# Their repeats are recognised without an inbox row, by the order or the return itself.
RECOGNISED_BY_STATE: frozenset[type[Command]] = frozenset({PlaceOrder, OpenReturn})
