"""The order service without an orchestrator: which event leads to which command. Pure.

It owns the deadline. Whatever is silent for too long, the first event is told again, and with it,
from service to service, each that followed; in the end the pivot's owner is asked to cancel, as it
is at once for a customer who wants the order no more.
The customer is told last, once the others have confirmed that nothing of theirs is left.

Owns: the table REACTIONS, the two events that are this service's own, and what PlaceOrder leads to
in this style. Must not know: SQL, the broker, who hears its events.
"""

from __future__ import annotations

from uuid import UUID

from common.contracts import (
    CancelAsked,
    CancelNoted,
    CancelOrder,
    ConfirmOrder,
    Line,
    NotReturnable,
    OpenReturn,
    OrderAccepted,
    OrderIsOver,
    OrderUnknown,
    PaymentRefunded,
    PlaceOrder,
    RejectOrder,
    StockDispatched,
    StockReleased,
)
from common.envelope import Command, Direction, Envelope, Key, PivotDone
from common.outbox import Outgoing
from common.participant import Answered, Handler, Work
from common.reactions import Reaction, Reactions, parse_event, react
from common.topology import event_of
from order_svc import handlers
from order_svc.domain import CANCELLED, CREATE_ORDER, OrderBook, PlacedOrder
from order_svc.progress import STEPS, Progress

CONFIRM = Reaction("confirm_order", ConfirmOrder)
REJECT = Reaction(CREATE_ORDER, RejectOrder)

REACTIONS: Reactions = {
    StockDispatched: CONFIRM,
    PivotDone: CONFIRM,  # asked to cancel too late
    StockReleased: REJECT,  # once all of these have been heard
    PaymentRefunded: REJECT,
}
# All that is told of an order but what we tell ourselves: the customer may ask where it stands.
HEARD = tuple(event for step in STEPS for event in step.events if event is not OrderAccepted)


def hear(progress: Progress, event: Envelope, at: float) -> tuple[bool, Envelope | None]:
    """Whether it is news, and the command it leads to."""
    news = progress.hear(event, at)
    command = react(REACTIONS, event)
    if REACTIONS.get(type(parse_event(event))) is REJECT and not progress.all_undone:
        command = None
    return news, command


def order_accepted(order: PlacedOrder) -> Outgoing:
    """The event that all others follow from; the same however often it is told."""
    accepted = OrderAccepted(
        order_id=order.order_id,
        customer=order.customer,
        currency=order.currency,
        lines=tuple(Line(sku=line.sku, quantity=line.quantity) for line in order.lines),
        total=order.total,
    )
    key = first_key(order.order_id)
    event = Envelope.event(key, accepted, issued_at=order.placed_at, attempt=order.attempt)
    return Outgoing(event_of(event.type), event)


def cancel_asked(order: PlacedOrder, reason: str) -> Outgoing:
    """To the pivot's owner, until it is answered."""
    key = Key(order.order_id, "cancel_order", Direction.FORWARD)
    event = Envelope.event(
        key, CancelAsked(reason=reason), issued_at=order.placed_at, attempt=order.attempt
    )
    return Outgoing(event_of(event.type), event)


def first_key(order_id: UUID) -> Key:
    return Key(order_id, CREATE_ORDER, Direction.FORWARD)


TOO_LATE = "nobody takes returns in the choreographed style, so settle it with the customer by hand"


def no_returns(_book: OrderBook, _work: Work) -> Answered:
    """A return is a saga of its own, and nobody reacts to it yet."""
    remedy = "returns are taken in the orchestrated style only"
    return Answered(NotReturnable(field="order_id", remedy=remedy), keep=False)


def cancel_order(book: OrderBook, work: Work) -> Answered:
    """The pivot's owner is asked at once; whoever asks again is asked for no second time."""
    order = book.cancel(work.saga_id)
    if isinstance(order, OrderIsOver | OrderUnknown):
        return Answered(order, keep=False)
    return Answered(CancelNoted(), also=(cancel_asked(order, CANCELLED),))


HANDLERS: dict[type[Command], Handler] = {
    **handlers.HANDLERS,
    PlaceOrder: handlers.placing(order_accepted),
    OpenReturn: no_returns,
    CancelOrder: cancel_order,
}
